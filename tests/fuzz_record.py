"""The long form of `test_fuzz`, reader by reader, recorded: `python tests/fuzz_record.py [--tries 200] [NAME...]`.

Rows stand in benchmarks/results/fuzz.json, the page `safety` shows them. A name is part of a reader's; none: those
that have no row of so many tries yet."""
import argparse
import json
import os
import platform
import shutil
import tempfile
from pathlib import Path
import fuzzing
import torch
from fuzz_readers import READERS
from vidlit.floor.store import write_json

OUT = Path(__file__).resolve().parents[1]/'benchmarks'/'results'/'fuzz.json'


def record(reader, tries):
    "A row"
    box = Path(tempfile.mkdtemp())
    try: counts, wrong = fuzzing.fuzz(reader, box/'x', range(tries))
    finally: shutil.rmtree(box, ignore_errors=True)
    return dict(name=reader.name, **{**counts, 'seconds': round(counts['seconds'], 1)},
        wrong={str(k): v[:300] for k, v in wrong.items()})


def main():
    p = argparse.ArgumentParser()
    p.add_argument('names', nargs='*')
    p.add_argument('--tries', type=int, default=200)
    p.add_argument('--out', type=Path, default=OUT)
    a = p.parse_args()
    torch.set_num_threads(1)
    about = dict(memory=fuzzing.MEMORY, seconds=fuzzing.SECONDS, machine=dict(cores=os.cpu_count(),
        cpu=platform.processor() or platform.machine()))
    rows = {o['name']: o for o in json.loads(a.out.read_text())['rows']} if a.out.exists() else {}
    for r in READERS:
        if a.names and not any(o in r.name for o in a.names): continue
        if not a.names and rows.get(r.name, {}).get('tries', 0)>=a.tries: continue
        rows[r.name] = record(r, a.tries)
        o = rows[r.name]
        print(json.dumps({**o, 'wrong': len(o['wrong'])}), *o['wrong'].items(), sep='\n  ', flush=True)
        write_json(a.out, dict(about, rows=[rows[o.name] for o in READERS if o.name in rows]))


if __name__=='__main__': main()

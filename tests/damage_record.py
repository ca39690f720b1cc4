"""The long form of `test_video_damage`, recorded: `python tests/damage_record.py [--out FILE]`. The page `video/reader`
shows the rows of benchmarks/results/damage.json."""
import argparse
import tempfile
from pathlib import Path
import av
import torch
from video_toys import FPS, N, camera_table, cut_table, damage_table
from vidlit.floor.store import write_json

OUT = Path(__file__).resolve().parents[1]/'benchmarks'/'results'/'damage.json'


def main():
    p = argparse.ArgumentParser()
    p.add_argument('--out', type=Path, default=OUT)
    a = p.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as d:
        d = Path(d)
        films, tmp = d/'films', d/'tmp'
        films.mkdir()
        tmp.mkdir()
        tables = {'lossless cut': cut_table(films, tmp), 'damage': damage_table(films, tmp),
            'camera': camera_table(tmp)}
    rows = [dict(kind=kind, name=name, **got) for kind, table in tables.items() for name, got in table.items()]
    write_json(a.out, dict(what=f'videos of {N} numbered frames at {FPS} a second; frames read in order and scattered',
        av=av.__version__, ffmpeg='.'.join(map(str, av.library_versions['libavcodec'])), rows=rows))
    for o in rows: print(f"{o['kind']:13} {o['name']:48} {o['readings']:3} right {o['right']:4}, "
        f"refused {o['refused']:3}, wrong {o['wrong']}")


if __name__ == '__main__': main()

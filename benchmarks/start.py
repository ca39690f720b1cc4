"""How long the commands and the first import take, beside `python -c 'import torch'` in the same run.

Each line is started five times in a process of its own, the lines taking turns, so that a machine that grows
slower does so for all of them. Wall
seconds and core-seconds (user and system time of the process) are medians. A matrix product in between says how
fast the machine was. Bytecode is kept
in a folder of its own and made before the first start that counts: an installed package has it.

    python benchmarks/start.py [--rounds 5] [--out benchmarks/results/start.json]"""
# ruff: noqa: E402, I001 (the number of threads is set before torch is imported)
import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
os.environ.setdefault('OMP_NUM_THREADS', '1')
import torch
from step import machine

SHELL = 'import sys; from vidlit.cli.app import main; main()'
LINES = {'import torch': ('import torch',), 'from vidlit import VideoMAE': ('from vidlit import VideoMAE',),
    'vidlit --help': (SHELL, '--help'),
    'vidlit depth --help': (SHELL, 'depth', '--help'), 'vidlit reproduce --list': (SHELL, 'reproduce', '--list')}
LIMITS = {'vidlit --help': ('seconds', .3), 'vidlit depth --help': ('seconds', .5),
    'vidlit reproduce --list': ('seconds', 1.5),
    'from vidlit import VideoMAE': ('of_torch', 1.3)}
MAT = 1024

def spent():
    "Core-seconds of all processes that have ended"
    r = resource.getrusage(resource.RUSAGE_CHILDREN)
    return r.ru_utime+r.ru_stime

def start(line, env):
    "Wall seconds and core-seconds of one process"
    core,wall = spent(),time.perf_counter()
    r = subprocess.run([sys.executable, '-W', 'ignore', '-c', *line], env=env, capture_output=True, text=True)
    if r.returncode: raise SystemExit(r.stderr[-2000:])
    return time.perf_counter()-wall, spent()-core

def product(mats):
    "Core-seconds of a matrix product"
    t = time.process_time()
    torch.mm(*mats)
    return time.process_time()-t

def main():
    ap = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    ap.add_argument('--rounds', type=int, default=5, help='starts that count, for each line')
    ap.add_argument('--out', type=Path, default=Path(__file__).parent/'results'/'start.json')
    args = ap.parse_args()
    torch.set_num_threads(1)
    mats,got,mat = [torch.randn(MAT, MAT) for _ in range(2)],{k: [] for k in LINES},[]
    with tempfile.TemporaryDirectory() as bytecode:
        env = {**os.environ, 'PYTHONPYCACHEPREFIX': bytecode, 'PYTHONDONTWRITEBYTECODE': ''}
        for i in range(args.rounds+1):
            mat.append(product(mats))
            for k,line in LINES.items():
                if i: got[k].append(start(line, env))
                else: start(line, env)
    rows = {k: dict(zip(('seconds','core_seconds'), (round(statistics.median(o), 3) for o in zip(*v)))) for k,
        v in got.items()}
    torch_core,one = rows['import torch']['core_seconds'],min(mat)
    for k,r in rows.items():
        r.update(of_torch=round(r['core_seconds']/torch_core, 3), matrix_products=round(r['core_seconds']/one, 1))
        if k in LIMITS: r['limit'] = '{1:g} {0}'.format(*LIMITS[k])
        print(f'{k:28}', r, flush=True)
    res = dict(machine=machine(), rounds=args.rounds, matmul_gflops=round(2*MAT**3/one/1e9, 1), starts=rows)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(res, indent=1)+'\n')

if __name__ == '__main__': main()

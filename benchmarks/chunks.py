"""Chunks: what the pipeline costs beyond decoding and encoding, and what two workers do on two cores.

1. Overhead. A film of 848x478 (the document's size), a null model (one channel of the frame), one worker, one
chunk: `run`, then `merge` to 16-bit PNG.
   Against it the bare loop: the same reader, the same writer, one frame after the other. Once as it is given
(merge encodes in as many threads as there are
   cores), once with both sides held on one core, where threads cannot help: that is the work that the pipeline
adds.
2. Workers. A small network (its recipe below) over the same film, as one worker with two threads and as two
workers with one thread each, both as processes
   that wait for a word before they begin, so that starting them is not counted.

Sides take turns, and the minimum over the rounds is what is compared, since other programs may disturb any
round; the load of the machine is written down.

    python benchmarks/chunks.py [--rounds 3] [--frames 220] [--out benchmarks/results/chunks.json]"""
import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
import numpy as np
import torch
from PIL import Image
from vidlit.lab.experiment import machine
from vidlit.pipeline.job import cores, make_job
from vidlit.pipeline.merge import merge
from vidlit.pipeline.worker import run
from vidlit.video.depth_frames import DepthReader, DepthWriter
from vidlit.video.reader import VideoReader
from vidlit.video.writing import numbered_frame, write_video

H, W = 478, 848
GOALS = dict(overhead=.8, workers=1.3)
TWENTY = 442 # frames of twenty windows, so that four chunks have five each


def null(win): return win[0, ..., 1].float()


def bare(film, out, span=(0., 255.)):
    "Decode, encode"
    with VideoReader(film) as v, DepthWriter(out, 'disparity', (H, W), v.info.fps, 'png16', lo=span[0], hi=span[1],
        units='relative', frames=len(v)) as w:
        for i, f in enumerate(v.stream()): w[i] = f[..., 1].float()


def pipeline(film, out, parts=None):
    "The same, window by window over the disk"
    at = time.perf_counter()
    job = make_job(f'{out}.job', film, 1)
    run(job.path, null, 'null')
    mid = time.perf_counter()
    merge(job.path, out)
    if parts is not None: parts.append((mid-at, time.perf_counter()-mid))


def timed(f, *args):
    "Wall seconds and processor seconds"
    a, b = time.perf_counter(), time.process_time()
    f(*args)
    return time.perf_counter()-a, time.process_time()-b


def overhead(film, tmp, rounds, n):
    "Frames a second of both, alternating"
    took, parts = dict(bare=[], pipeline=[]), []
    pipeline(film, tmp/'first') # warms both up, and says the range, so that both write the same numbers
    m = DepthReader(tmp/'first').meta
    bare(film, tmp/'second', span := (m.offset+m.scale, m.offset+65535*m.scale))
    for i in range(n): # where windows fade, rounding may move the last of sixteen bits
        a, b = (np.array(Image.open(tmp/o/f'{i:06d}.png')).astype(int) for o in ('first', 'second'))
        assert abs(a-b).max()<=1, i
    for r in range(rounds):
        for k, f in (('bare', lambda o: bare(film, o, span)), ('pipeline', lambda o: pipeline(film, o, parts))):
            out = tmp/f'{k}_{r}'
            took[k].append(timed(f, out))
            for o in (out, Path(f'{out}.job')): shutil.rmtree(o, ignore_errors=True)
    best = {k: [min(o[i] for o in v) for i in (0, 1)] for k, v in took.items()}
    return dict(frames_per_second={k: round(n/v[0], 1) for k, v in best.items()},
        ratio=round(best['bare'][0]/best['pipeline'][0], 3),
        processor_ms_a_frame={k: round(1e3*v[1]/n, 2) for k, v in best.items()},
        processor_ratio=round(best['bare'][1]/best['pipeline'][1], 3),
        by_round=[round(a[0]/b[0], 3) for a, b in zip(took['bare'], took['pipeline'])],
        run_seconds=round(min(o[0] for o in parts), 2), merge_seconds=round(min(o[1] for o in parts), 2))


def on_one_core(args):
    "This script again, held on one core"
    again = [sys.executable, __file__, '--one-core', '--rounds', str(args.rounds), '--frames', str(args.frames)]
    return json.loads(subprocess.run(again, capture_output=True, text=True, check=True).stdout)


def network():
    "A small VideoDepth: 96 wide, 6 blocks, patch 14"
    from vidlit.depth.depth_anything import DepthAnything, DepthAnythingConfig
    from vidlit.depth.dinov2 import dinov2_s
    from vidlit.depth.dpt import DPTConfig
    from vidlit.depth.temporal_head import add_time
    gen = torch.Generator().manual_seed(0)
    cfg = DepthAnythingConfig(replace(dinov2_s, dim=96, depth=6, heads=4),
        DPTConfig(96, 32, (32, 32, 64, 64), 14, 16), (1, 2, 4, 5), 12)
    return add_time(DepthAnything(cfg, gen, 'xavier'), gen, heads=8, groups=16)


def worker(path, threads, size):
    "A worker process: ready, wait for the word, work"
    from vidlit.depth.models import wrap
    torch.set_num_threads(threads)
    m = wrap(network(), 'bench', size=size)
    m.infer(m.prep([numbered_frame(0)]*32))
    print('ready', flush=True)
    sys.stdin.readline()
    run(path, m.infer, m.id, m.prep, ttl=600)


def crew(path, n, threads, size):
    "Seconds of n workers over a job"
    env = {**os.environ, 'OMP_NUM_THREADS': str(threads), 'MKL_NUM_THREADS': str(threads)}
    code = [sys.executable, __file__, '--worker', str(path), str(threads), str(size)]
    team = [subprocess.Popen(code, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) for _ in range(n)]
    for p in team: assert p.stdout.readline()=='ready\n'
    at = time.perf_counter()
    for p in team:
        p.stdin.write('go\n')
        p.stdin.flush()
    for p in team: assert p.wait()==0
    return time.perf_counter()-at


def workers(tmp, rounds, n, size):
    "One worker with two threads against two with one, alternating"
    film, took = write_video(tmp/'small.mp4', (numbered_frame(i%1024) for i in range(n)), 25), dict(one=[], two=[])
    for r in range(rounds):
        for k, (count, threads) in dict(one=(1, 2), two=(2, 1)).items():
            job = make_job(tmp/f'{k}_{r}', film, 4)
            took[k].append(crew(job.path, count, threads, size))
            shutil.rmtree(job.path)
    best = {k: min(v) for k, v in took.items()}
    return dict(frames=n, side=size, seconds={k: [round(o, 2) for o in v] for k, v in took.items()},
        speedup=round(best['one']/best['two'], 3),
        by_round=[round(a/b, 3) for a, b in zip(*took.values())],
        paired_median=round(statistics.median(a/b for a, b in zip(*took.values())), 3))


def main():
    ap = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    ap.add_argument('--rounds', type=int, default=3)
    ap.add_argument('--frames', type=int, default=220)
    ap.add_argument('--side', type=int, default=112, help='shorter side inside the network of part 2')
    ap.add_argument('--one-core', action='store_true', help='part 1 only, held on one core')
    ap.add_argument('--worker', nargs=3, help='inner use')
    ap.add_argument('--out', type=Path, default=Path(__file__).parent/'results'/'chunks.json')
    args = ap.parse_args()
    if args.worker: return worker(args.worker[0], int(args.worker[1]), int(args.worker[2]))
    if args.one_core and hasattr(os, 'sched_setaffinity'):
        os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[-1]})
    with tempfile.TemporaryDirectory() as t:
        tmp = Path(t)
        film = write_video(tmp/'film.mp4', (numbered_frame(i%1024, H, W) for i in range(args.frames)), 30)
        part = overhead(film, tmp, args.rounds, args.frames)
        if args.one_core: return print(json.dumps(part))
        setting = (
            f'{args.frames} frames of {W}x{H}, null model, one chunk, 16-bit PNG; minimum of {args.rounds} '
            f'alternating rounds')
        got = dict(machine=machine() | dict(load=[round(o, 2) for o in os.getloadavg()]), setting=setting,
            goals=GOALS, overhead=part)
        got['overhead_one_core'] = on_one_core(args)
        got['workers'] = workers(tmp, args.rounds, TWENTY, args.side) if cores()>1 else 'needs two cores'
    args.out.parent.mkdir(exist_ok=True)
    args.out.write_text(json.dumps(got, indent=1)+'\n')
    print(json.dumps(got, indent=1))


if __name__=='__main__': main()

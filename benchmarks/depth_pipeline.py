"""Depth of a film: what the pipeline costs beside decoding and encoding, and whether its memory grows with the
film.

Overhead: a null model (green is the depth, no network) goes through `video_depth`; beside it, in turns in one
process, the same film is decoded and
its green encoded as 16-bit PNG with nothing around. Medians over the rounds of wall-clock frames a second, all
on one thread.
Memory: a tiny random network over a film of 10,000 frames and one of 500, both ways, each in a process of its
own.

    python benchmarks/depth_pipeline.py [--part both] [--rounds 3] [--frames 400] [--long 10000] [--out
benchmarks/results/depth_pipeline.json]"""
import argparse
import json
import multiprocessing as mp
import os
import platform
import shutil
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
import av
import torch
from vidlit.depth.depth_anything import DepthAnything, DepthAnythingConfig
from vidlit.depth.dinov2 import dinov2_s
from vidlit.depth.dpt import DPTConfig
from vidlit.depth.models import DepthModel, wrap
from vidlit.depth.temporal_head import add_time
from vidlit.pipeline.video_depth import video_depth
from vidlit.video.depth_frames import DepthReader, DepthWriter
from vidlit.video.reader import VideoReader
from vidlit.video.writing import numbered_frame, write_video

H, W = 360, 640
SMALL = DepthAnythingConfig(replace(dinov2_s, dim=16, depth=4, heads=2, patch=(1, 8, 8)),
    DPTConfig(16, 8, (8, 8, 8, 8), 8, 4), (0, 1, 2, 3), 1)


def machine():
    "What the numbers were measured on"
    p = Path('/proc/cpuinfo')
    cpu = (next((o.split(':')[1].strip() for o in p.read_text().splitlines() if o.startswith('model name')), '')
        if p.exists() else '')
    return dict(cpu=cpu or platform.processor(), cores=os.cpu_count(), threads=1, av=av.__version__,
        torch=torch.__version__, python=platform.python_version(),
        system=platform.system(), load=[round(o, 2) for o in os.getloadavg()])


def tiny():
    gen = torch.Generator().manual_seed(0)
    return wrap(add_time(DepthAnything(SMALL, gen, 'xavier'), gen, heads=4, groups=4), 'tiny', size=8)


@dataclass(frozen=True, eq=False)
class Null(DepthModel):
    "No network and no preparation: green is the depth"
    def inside(self, hw): return tuple(hw)
    def prep(self, frame): return torch.as_tensor(frame).movedim(-1, 0)
    def encode(self, frames): return [self.prep(f) for f in frames] if isinstance(frames, list) else self.prep(frames)
    def mix(self, x): return x[0, :, 1].float()


class Resizing(Null):
    "No network: frames are prepared and depth is brought back as for a model that sees 112 pixels"
    inside, prep = DepthModel.inside, DepthModel.prep


def pipeline(film, out, m):
    video_depth(film, out, m)
    return len(DepthReader(out))


def bare(film, out, lo, hi):
    """Decode every frame, encode one map for each, of the same range as the pipeline's so that the same bytes are
    compressed"""
    with VideoReader(film) as v, DepthWriter(out, 'disparity', (H, W), v.info.fps, 'png16', None, lo, hi, 'relative',
        frames=len(v)) as w:
        for i, f in enumerate(v): w[i] = f[..., 1].float()
        return len(v)


def overhead(tmp, rounds, n):
    "Frames a second of a null model's pipeline, of one that resizes, and of bare decode + encode, in turns"
    film = write_video(tmp/'film.mp4', (numbered_frame(i, H, W) for i in range(n)), 25)
    parts = {k: getattr(tiny(), k) for k in ('model', 'name', 'about', 'id')}
    null, resizing = Null(**parts), Resizing(**parts, size=112)
    with VideoReader(film) as v: lo, hi = (f(getattr(o[..., 1], f.__name__)().item() for o in v) for f in (min, max))
    video_depth(film, tmp/'once', null, upto=32)
    sides = dict(pipeline=lambda o: pipeline(film, o, null), resizing=lambda o: pipeline(film, o, resizing),
        bare=lambda o: bare(film, o, lo, hi))
    wall, cpu = ({k: [] for k in sides} for _ in range(2))
    for _ in range(rounds):
        for name, f in sides.items():
            t, c = time.perf_counter(), time.process_time()
            assert f(tmp/name) == n
            wall[name].append(n/(time.perf_counter()-t))
            cpu[name].append(n/(time.process_time()-c))
            shutil.rmtree(tmp/name)
    def share(runs, k): return round(statistics.median(a/b for a, b in zip(runs[k], runs['bare'])), 3)
    def fps(runs, k): return round(statistics.median(runs[k]), 1)
    rows = [dict(side=k, fps=fps(wall, k), cpu_fps=fps(cpu, k), share=share(wall, k), cpu_share=share(cpu, k))
        for k in sides]
    return dict(film=f'{W}x{H}', frames=n, rounds=rounds, rows=rows)


def status(key):
    "A line of the process's own status, bytes; getrusage would also count the parent before exec"
    line = next(o for o in Path('/proc/self/status').read_text().splitlines() if o.startswith(key))
    return int(line.split()[1])*1024


def one(film, out, mode, pipe):
    "A film in a process of its own: resident memory as it goes, and the peak"
    curve, t = [], time.perf_counter()

    def report(r):
        if r['stage'] == 'depth': curve.append((r['done'], status('VmRSS')))
    row = video_depth(film, out, tiny(), mode, report=report)
    r = DepthReader(out)
    fps = VideoReader(film).info.fps
    assert len(r) == row['frames'] and r.meta.fps == fps
    pipe.send(dict(mode=mode, frames=row['frames'], peak=status('VmHWM'), seconds=round(time.perf_counter()-t, 1),
        curve=[curve[i] for i in sorted({*range(0, len(curve), max(1, len(curve)//60)), len(curve)-1})]))


def memory(tmp, long):
    "Peaks of a short and a long film"
    rows, ctx = [], mp.get_context('spawn')
    for n in (500, long):
        write_video(tmp/f'{n}.mp4', (numbered_frame(i % 1000, 48, 80) for i in range(n)), '30000/1001',
            options=dict(preset='ultrafast'))
    for mode in ('offline', 'stream'):
        for n in (500, long):
            a, b = ctx.Pipe()
            p = ctx.Process(target=one, args=(tmp/f'{n}.mp4', tmp/f'{mode}_{n}', mode, b))
            p.start()
            b.close()
            rows.append(a.recv())
            p.join()
            shutil.rmtree(tmp/f'{mode}_{n}')
            print(f"{mode:8} {n:6} frames: peak {rows[-1]['peak']/1e6:.1f} MB, {rows[-1]['seconds']:.0f} s", flush=True)
    return rows


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--rounds', type=int, default=3)
    p.add_argument('--frames', type=int, default=400)
    p.add_argument('--long', type=int, default=10_000)
    p.add_argument('--part', choices=['overhead', 'memory', 'both'], default='both',
        help='the other part of an earlier file is kept')
    p.add_argument('--out', default=str(Path(__file__).parent/'results'/'depth_pipeline.json'))
    a = p.parse_args()
    torch.set_num_threads(1)
    what = (
        'depth of a film: share of bare decode + encode that the pipeline reaches with a null model; peak memory of '
        'a long film over a short one')
    f = Path(a.out)
    out = dict(json.loads(f.read_text()) if f.exists() else {}, what=what)
    with tempfile.TemporaryDirectory() as d:
        if a.part != 'memory':
            out['overhead'] = dict(overhead(Path(d), a.rounds, a.frames), machine=machine())
            for o in out['overhead']['rows']:
                print(
                    f"{o['side']:9} {o['fps']:6} frames/s, {o['share']:.1%} of bare decode + encode (of processor "
                    f"time {o['cpu_share']:.1%})", flush=True)
        if a.part != 'overhead':
            out['memory'] = memory(Path(d), a.long)
            tops = {m: [o['peak'] for o in out['memory'] if o['mode'] == m] for m in ('offline', 'stream')}
            out.update(ratio={m: round(v[1]/v[0], 4) for m, v in tops.items()}, machine=machine())
            for m, r in out['ratio'].items(): print(f'{m}: peak of {a.long} frames is {r} times that of 500')
    f.parent.mkdir(parents=True, exist_ok=True)
    f.write_text(json.dumps(out, indent=1)+'\n')


if __name__ == '__main__': main()

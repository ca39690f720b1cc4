"""How fast worlds are made: `python benchmarks/worlds.py` prints a table and writes
benchmarks/results/worlds.json.

One thread; wall time is the best of several runs, so a busy machine shows least. `cpu_ms` is the time this
process really had a core."""
import argparse
import json
import os
import platform
import time
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
import torch  # noqa: E402
from vidlit.worlds.control import ControlWorld, random_actions  # noqa: E402
from vidlit.worlds.warp import backward_warp  # noqa: E402
from vidlit.worlds.worlds import WorldConfig, make_clips, make_worlds  # noqa: E402

BIG = WorldConfig(t=16, h=64, w=64, n_obj=5, camera='any')
CASES = {  # name: (what is made, worlds at once)
    '16x64x64, 5 objects, all truth': (lambda b: make_worlds(range(b), BIG), 1),
    '16x64x64, 5 objects, all truth, lit': (
    lambda b: make_worlds(range(b), WorldConfig(16, 64, 64, 5, camera='any', lit=True)), 1),
    '16x64x64, 5 objects, all truth, lit, shadows': (
    lambda b: make_worlds(range(b), WorldConfig(16, 64, 64, 5, camera='any', lit=True, shadows=True)), 1),
    '16x64x64, 5 objects, clips only': (lambda b: make_clips(range(b), BIG), 4),
    '8x32x32, 2 objects, clips only': (lambda b: make_clips(range(b), WorldConfig()), 32),
    '16x32x32, 3 objects, clips only': (lambda b: make_clips(range(b), WorldConfig(t=16, n_obj=3, camera='hand')), 32),
    '8x32x32, 2 objects, all truth': (lambda b: make_worlds(range(b), WorldConfig()), 32),
    'control, 8 steps of 64x64, all truth': (lambda b: ControlWorld(range(b)).rollout(random_actions(b, 7)), 4),
}


def machine():
    "What this ran on."
    info = Path('/proc/cpuinfo')
    cpu = (next((x.split(':')[1].strip() for x in info.read_text().splitlines() if x.startswith('model name')), '')
        if info.exists() else '')
    load = os.getloadavg()[0] if hasattr(os, 'getloadavg') else None
    return dict(cpu=cpu or platform.processor(), cores=os.cpu_count(), python=platform.python_version(),
        torch=torch.__version__,
                threads=torch.get_num_threads(), load=load)


def measure(make, b, budget):
    "Best wall and CPU milliseconds for a world, in at least 5 runs and `budget` seconds."
    make(b)
    wall, cpu, end = [], [], time.perf_counter()+budget
    while time.perf_counter() < end or len(wall) < 5:
        w0, c0 = time.perf_counter(), time.process_time()
        make(b)
        wall.append(time.perf_counter()-w0)
        cpu.append(time.process_time()-c0)
    return dict(batch=b, wall_ms=round(min(wall)/b*1e3, 3), cpu_ms=round(min(cpu)/b*1e3, 3),
        clips_per_s=round(b/min(wall), 1), runs=len(wall))


def truth(n=24):
    "How true: mean warp error of unlit clips in sight, and the largest disagreement of float32 and float64 depth."
    w = make_worlds(range(n), BIG)
    now, after = (x.transpose(1, 2) for x in (w.unlit[:, :, :-1], w.unlit[:, :, 1:]))
    see = (~w.occ).expand_as(now)
    exact = make_worlds(range(n), BIG, dtype=torch.float64)
    same = w.seg == exact.seg
    off = (w.depth-exact.depth).abs()[same]
    return dict(warp_error=(backward_warp(after, w.flow)-now).abs()[see].mean().item(),
        copy_error=(after-now).abs()[see].mean().item(),
                float_depth_max=off.max().item(), float_depth_q999=off.sort().values[int(.999*len(off))].item(),
                float_seg_differs=1-same.float().mean().item())


def main():
    ap = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    ap.add_argument('--budget', type=float, default=2., help='seconds for each case')
    ap.add_argument('--out', type=Path, default=Path(__file__).parent/'results'/'worlds.json')
    a = ap.parse_args()
    torch.set_num_threads(1)
    out = dict(machine=machine(), truth=truth(), cases={})
    for name, (make, b) in CASES.items():
        r = out['cases'][name] = measure(make, b, a.budget)
        print(f"{name:48} {r['wall_ms']:8.2f} ms  {r['clips_per_s']:8.0f} clips/s")
    print(out['truth'])
    a.out.parent.mkdir(parents=True, exist_ok=True)
    a.out.write_text(json.dumps(out, indent=1)+'\n')


if __name__ == '__main__': main()

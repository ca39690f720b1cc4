"""The student's training step from cached tokens, and with the teacher in the loop: ViT-B, ViT-H. One CPU thread.

The student is the document's (384 wide, 12 blocks, 8 factorised), targets are 384 wide. The same step each
time: forward with hidden tokens, cosine loss,
backward; the only difference is where the targets come from: read from a float16 `TokenCache` on disk, or from
a teacher that looks at the clip (norm and
projection included). Sides and a large matrix product take turns in one process, processor time is counted.
What the operations promise is the FLOP ratio
(step with teacher over step without); the bar is 85 % of it.

    python benchmarks/stjepa.py [--rounds 5] [--frames 8] [--size 112] [--batch 2] [--teachers B H] [--out
benchmarks/results/stjepa.json]"""
# ruff: noqa: E402, I001 (the number of threads is set before torch is imported)
import argparse
import json
import os
import statistics
import sys
import tempfile
import warnings
from pathlib import Path
os.environ.setdefault('OMP_NUM_THREADS', '1')
warnings.filterwarnings('ignore')
import torch
sys.path.insert(0, str(Path(__file__).parent))
from step import SIDE, alternate, flops_of, machine, ratio
from vidlit.floor.store import TokenCache
from vidlit.nn.tokens import grid_of, split_mask, take
from vidlit.nn.vit import ViT, count_params, vit_b, vit_h, vit_l, vit_s
from vidlit.pretrain.stjepa import STJEPA, cosine_loss, stjepa_s
from vidlit.pretrain.token_targets import Teacher, orthogonal_projection
from vidlit.pretrain.tube_masking import tube_mask

SIZES = dict(S=vit_s, B=vit_b, L=vit_l, H=vit_h)

def speed(rounds, frames, size, batch, teachers):
    "Steps from the cache and with each teacher in the loop"
    gen = torch.Generator().manual_seed(0)
    net,clip = STJEPA(stjepa_s, gen=gen).train(),torch.randn(batch, 3, frames, size, size, generator=gen)
    grid = grid_of(clip)
    mask = tube_mask(batch, grid, .9, gen)
    hidden = split_mask(mask)[1]
    nets = {k: Teacher(ViT(SIZES[k], norm=False), orthogonal_projection(SIZES[k].dim, 384)) for k in teachers}
    box = tempfile.TemporaryDirectory()
    caches = {k: TokenCache(Path(box.name)/k, batch, (grid.n, 384), teacher=k) for k in teachers}
    said = {k: t(clip) for k,t in nets.items()}
    for k,c in caches.items():
        for i in range(batch): c.put(i, said[k][i])
    def step(targ):
        net.zero_grad(set_to_none=True)
        loss = cosine_loss(net(clip, mask), take(targ.float(), hidden))
        loss.backward()
        return loss.item()
    one = teachers[0]
    read = lambda k=one: caches[k][list(range(batch))]
    same = {k: abs(step(read(k))-step(nets[k](clip))) for k in teachers}
    if max(same.values())>1e-3: raise SystemExit(f"results differ: {same}")
    flops = {'cached': flops_of(lambda: step(read())),
        **{k: flops_of(lambda k=k: step(nets[k](clip))) for k in teachers}}
    mats = [torch.randn(SIDE, SIDE, generator=gen) for _ in range(2)]
    steps = {'cached': lambda: step(read()), **{k: (lambda k=k: step(nets[k](clip))) for k in teachers},
        'matmul': lambda: torch.mm(*mats)}
    times = alternate(steps, rounds)
    out = dict(
        setting=f'student 384 x 12 (8 factorised), {frames}x{size}x{size}, batch {batch}, {grid.n} tokens, tube .9, '
        f'one thread, fp32',
        student_params=count_params(net), teacher_params={k: count_params(t.encoder) for k,t in nets.items()},
        loss_difference=same,
        gflop={k: round(v/1e9, 2) for k,v in flops.items()},
        seconds={k: dict(minimum=round(min(v), 4), median=round(statistics.median(v), 4)) for k,v in times.items()},
        matmul_gflops=round(2*SIDE**3/min(times['matmul'])/1e9, 1), speedup={})
    for k in teachers:
        r,f = ratio(times, k, 'cached'),flops[k]/flops['cached']
        out['speedup'][k] = dict(**r, flop_ratio=round(f, 3), of_flop_ratio=round(r['paired_median']/f, 3), bar=.85)
    box.cleanup()
    return out

def main():
    ap = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    ap.add_argument('--rounds', type=int, default=5, help='timed rounds after two warm-up rounds')
    ap.add_argument('--frames', type=int, default=8)
    ap.add_argument('--size', type=int, default=112)
    ap.add_argument('--batch', type=int, default=2)
    ap.add_argument('--teachers', nargs='+', default=['B', 'H'], choices=list(SIZES))
    ap.add_argument('--out', type=Path, default=Path(__file__).parent/'results'/'stjepa.json')
    args = ap.parse_args()
    torch.set_num_threads(1)
    res = dict(machine=machine(), **speed(args.rounds, args.frames, args.size, args.batch, args.teachers))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(res, indent=1))
    for k,v in res['speedup'].items():
        print(
            f"from the cache {v['paired_median']} times as fast as with ViT-{k} in the loop; operations say "
            f"{v['flop_ratio']}: "
            f"{v['of_flop_ratio']:.0%} of it (goal 85 %)")

if __name__ == '__main__': main()

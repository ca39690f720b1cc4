"""Both V-JEPA masks in one forward against two forwards, forward and backward, on one CPU thread (or on a GPU when
asked).

ViT-S with a 192x6 predictor, clips 16x128x128, masks as the official generator draws them (8 blocks of 15 %, 2
of 70 %). One forward puts the contexts of
both masks side by side in one row, where neither sees the other, and pads the predictor's rows. Results and
gradients are compared before anything is timed;
the sides take turns in one process and processor time is counted.

    python benchmarks/vjepa_masks.py [--rounds 9] [--batch 4] [--how faithful|unbiased|padded] [--device
cpu|cuda] [--out benchmarks/results/vjepa_masks.json]"""
# ruff: noqa: E402, I001 (the number of threads is set before torch is imported)
import argparse
import json
import os
import statistics
import time
import warnings
from pathlib import Path
os.environ.setdefault('OMP_NUM_THREADS', '1')
warnings.filterwarnings('ignore')
import torch
from step import flops_of, machine, ratio
from vidlit.nn.tokens import Grid
from vidlit.nn.vit import ViTConfig, init_vit
from vidlit.pretrain.block_masking import multiblock3d
from vidlit.pretrain.vjepa import VJEPA, VJEPAConfig

GRID = Grid(8,8,8)
CFG = VJEPAConfig(ViTConfig(384, 12, 6, qkv_bias='fused'), ViTConfig(192, 6, 6, qkv_bias='fused'), GRID)

def alternate(steps, rounds, device, warm=2):
    "Seconds of each step, all taking turns: of the processor, or on the wall when a GPU does the work"
    times = {k: [] for k in steps}
    for i in range(warm+rounds):
        for k,f in steps.items():
            if device!='cpu': torch.cuda.synchronize()
            clock = time.process_time if device=='cpu' else time.perf_counter
            start = clock()
            f()
            if device!='cpu': torch.cuda.synchronize()
            if i>=warm: times[k].append(clock()-start)
    return times

def compare(how, batch, rounds, device):
    "One against two, for the networks that are trained and for the whole step with its targets"
    # large weights, so that a difference would show
    model = init_vit(VJEPA(CFG), 'xavier', torch.Generator().manual_seed(0)).to(device).train()
    gen = torch.Generator().manual_seed(1)
    clip,masks = torch.randn(batch, 3, 16, 128, 128,
        generator=gen).to(device),[o.to(device) for o in multiblock3d(batch, GRID, gen, how=how)]
    def nets(together):
        model.zero_grad(set_to_none=True)
        model.together = together
        pred = model.predict(clip, masks)
        torch.stack([z[v].abs().mean() if v is not None else z.abs().mean() for z,
            v in zip(pred, [o.targ_valid for o in masks])]).sum().backward()
        return pred
    def step(together):
        model.zero_grad(set_to_none=True)
        model.together = together
        out = model(clip, masks)
        out.loss.backward()
        return out.loss.item(),model.predictor.predictor_embed.weight.grad.clone(
            ),model.encoder.patch_embed.proj.weight.grad.clone()
    a,b = step(False),step(True)
    same = dict(loss=abs(a[0]-b[0]),
        **{k: float((a[i]-b[i]).norm()/a[i].norm()) for i,k in ((1,'predictor_grad'),(2,'encoder_grad'))})
    if max(same.values())>1e-4: raise SystemExit(f"results differ: {same}")
    flops = {k: flops_of(lambda t=t: nets(t)) for k,t in (('two',False),('one',True))}
    sides = dict(two=lambda: nets(False), one=lambda: nets(True), two_step=lambda: step(False),
        one_step=lambda: step(True))
    times = alternate(sides, rounds, device)
    return dict(tokens=[[o.keep.shape[1], o.targ.shape[1]] for o in masks], largest_difference=same,
        gflop={k: round(v/1e9, 2) for k,v in flops.items()},
        seconds={k: dict(minimum=round(min(v), 4), median=round(statistics.median(v), 4)) for k,v in times.items()},
        networks_speedup=ratio(times, 'two', 'one'), step_speedup=ratio(times, 'two_step', 'one_step'))

def main():
    ap = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    ap.add_argument('--rounds', type=int, default=9, help='timed rounds after two warm-up rounds')
    ap.add_argument('--batch', type=int, nargs='+', default=[1], help='clips in a batch')
    ap.add_argument('--how', nargs='+', default=['faithful', 'padded'], choices=['faithful', 'unbiased', 'padded'])
    ap.add_argument('--device', default='cpu')
    ap.add_argument('--out', type=Path, default=Path(__file__).parent/'results'/'vjepa_masks.json')
    args = ap.parse_args()
    torch.set_num_threads(1)
    res = dict(machine=machine(),
        setting='ViT-S, predictor 192x6, 16x128x128, masks .15x8 and .7x2, one thread, fp32', device=args.device,
        runs={f'{how}, batch {b}': compare(how, b, args.rounds, args.device) for how in args.how for b in args.batch})
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(res, indent=1))
    for k,v in res['runs'].items():
        fast = [v[o]['paired_median'] for o in ('networks_speedup', 'step_speedup')]
        print(
            f"{k}: one forward is {fast[0]} times as fast as two (whole step {fast[1]}); GFLOP {v['gflop']}, tokens "
            f"{v['tokens']}")

if __name__ == '__main__': main()

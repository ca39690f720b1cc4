"""What dual masking saves: time and memory of a training step (forward, loss, backward) with and without it, at S
and B.

Input 16x128x128 (and 16x224x224 at B), tubes at 90 %, running cell at .5, target built in the step, one CPU
thread. "Without" is vidlit's own
VideoMAE, the same code that benchmarks/step.py times. All steps take turns in one process and processor time is
counted; the saving is set against the
ratio of operations, and against the document's 1.4x and 40 %. Memory, of a batch of 8, is counted twice: bytes
that autograd keeps for the backward pass,
and the peak of all tensors alive in a step, gradients included (torch's profiler). With attention written out,
as in the official code, the scores are
kept as well; how much that makes is counted on the meta device, up to ViT-g.

    python benchmarks/dual.py [--rounds 15] [--out benchmarks/results/dual.json]"""
# ruff: noqa: E402, I001 (the number of threads is set before torch is imported)
import argparse
import json
import statistics
import warnings
from itertools import accumulate
from pathlib import Path
from step import alternate, flops_of, machine, ratio  # the neighbour: sets the threads too
warnings.filterwarnings('ignore')
import torch
from torch.profiler import ProfilerActivity, profile
from vidlit.nn.tokens import Grid, grid_of
from vidlit.pretrain.dual_masking import dual_mask, split_dual
from vidlit.pretrain.videomae import VideoMAE, kept_bytes
from vidlit.pretrain.videomae_v2 import VideoMAE2, presets2

GOAL = .95 # of the ratio of operations

def peak_bytes(step):
    """Most bytes alive at one time during a step, beyond what was there before: the running sum of the profiler's
    memory events"""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof: step()
    events = sorted((e.start_ns(), e.nbytes()) for e in prof.profiler.kineto_results.events() if e.name()=='[memory]')
    return max(accumulate(n for _,n in events))

def kept_meta(net, clip, d):
    "MiB that a pass on the meta device keeps for the backward pass, each storage once"
    own,seen = {p.untyped_storage()._cdata for p in net.parameters()},{}
    def note(x):
        if x.untyped_storage()._cdata not in own: seen[x.untyped_storage()._cdata] = x.untyped_storage().nbytes()
        return x
    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        loss = net.forward_dual(clip, d._replace(keep=d.keep.to('meta'), decode=d.decode.to('meta'))).loss
    return round(sum(seen.values())/2**20, 1) if loss.is_meta else None

def written_out(size, side):
    "The same without and with dual masking, with attention written out (as torch does on the meta device)"
    with torch.device('meta'): net = VideoMAE2(presets2[size]).train()
    clip = torch.empty(1, 3, 16, side, side, device='meta')
    grid = grid_of(clip, presets2[size].enc.patch)
    out = {k: kept_meta(net, clip, split_dual(dual_mask(1, grid, .9, torch.Generator().manual_seed(1), v))) for k,
        v in (('without', 0), ('dual', .5))}
    return out | dict(saved=round(1-out['dual']/out['without'], 3))

def pair(size, batch, side):
    "Steps with (V2) and without (VideoMAE) dual masking, from the same weights, on the same clip and tubes"
    gen = torch.Generator().manual_seed(1)
    one,two = (m(presets2[size], gen=torch.Generator().manual_seed(0)).train() for m in (VideoMAE, VideoMAE2))
    clip = torch.randn(batch, 3, 16, side, side, generator=gen)
    mask = dual_mask(batch, Grid(*grid_of(clip, presets2[size].enc.patch)), .9, gen)
    def without(): one.zero_grad(set_to_none=True); one(clip, mask[:,0]).loss.backward()
    def dual(): two.zero_grad(set_to_none=True); two(clip, mask).loss.backward()
    with torch.no_grad(): gap = float((one(clip, mask[:,0]).loss-two(clip, mask[:,0]).loss).abs())
    if gap>1e-5: raise SystemExit(f"with nothing passed over the losses differ by {gap}")
    return dict(without=without, dual=dual), (lambda: one(clip, mask[:,0]).loss), (lambda: two(clip, mask).loss)

def measure(size, side, batch, rounds):
    "Time, operations and memory at one size"
    steps,*_ = pair(size, batch, side)
    flops = {k: flops_of(f) for k,f in steps.items()}
    many,loss1,loss2 = pair(size, 8, side)
    kept,peak = dict(without=kept_bytes(loss1), dual=kept_bytes(loss2)),{k: peak_bytes(f) for k,f in many.items()}
    times = alternate(steps, rounds)
    fast,ops = ratio(times, 'without', 'dual'),flops['without']/flops['dual']
    return dict(batch=batch, side=side,
        seconds={k: dict(minimum=round(min(v), 4), median=round(statistics.median(v), 4)) for k,v in times.items()},
        gflop={k: round(v/1e9, 2) for k,v in flops.items()}, flop_ratio=round(ops, 3), speedup=fast,
        of_flop_ratio={k: round(v/ops, 3) for k,v in fast.items()},
        kept_mib={k: round(v/2**20, 1) for k,v in kept.items()}, kept_saved=round(1-kept['dual']/kept['without'], 3),
        peak_mib={k: round(v/2**20, 1) for k,v in peak.items()}, peak_saved=round(1-peak['dual']/peak['without'], 3))

def main():
    ap = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    ap.add_argument('--rounds', type=int, default=15, help='timed rounds after two warm-up rounds')
    ap.add_argument('--sizes', default='S,B,B224', help='of S, B, B224')
    ap.add_argument('--out', type=Path, default=Path(__file__).parent/'results'/'dual.json')
    args = ap.parse_args()
    torch.set_num_threads(1)
    known = dict(S=('S', 128, 4), B=('B', 128, 2), B224=('B', 224, 1))
    sizes = {s: measure(*known[s], args.rounds) for s in args.sizes.split(',')}
    setting = '16 frames, tubes .9, running cell .5, one thread, fp32; without = vidlit VideoMAE'
    out = {f'{k} {side}': written_out(k, side) for k,side in (('S', 128), ('B', 128), ('B', 224), ('g', 224))}
    res = dict(machine=machine(), setting=setting, document=dict(speedup=1.4, memory_saved=.4), sizes=sizes,
        written_out=out)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(res, indent=1)+'\n')
    for s,o in sizes.items():
        print(
            f"{s}: {o['speedup']} times as fast; operations {o['flop_ratio']}, of which {o['of_flop_ratio']} (goal "
            f"{GOAL}; document 1.4)")
        print(
            f"   kept for the backward pass: {o['kept_saved']:.0%} less; peak: {o['peak_saved']:.0%} less (document "
            f"40 %)")
    print('kept, with attention written out:', {k: f"{o['saved']:.0%} less" for k,o in res['written_out'].items()})

if __name__ == '__main__': main()

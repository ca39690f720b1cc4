"""What a frame costs: a model of stills, the same model in windows of 32, the same as a stream, and MiDaS's
architecture, at their published sizes.

Random weights (cost does not depend on weights), one CPU thread, float32, input 224x224, which is a multiple of
both patch sizes. MiDaS is transformers'
DPTForDepthEstimation with the configuration of Intel/dpt-large; no weights are loaded. Every case runs in a
process of its own: processor time of
`--rounds` calls after one that is not counted, per frame of film (a window of 32 gives 22 new frames), and the
memory at its peak above that of the
loaded model. A large matrix product in the same process says how fast the machine was at that moment.
Operations at the models' own sizes (518, MiDaS
384) are counted on the meta device.

    python benchmarks/per_frame.py [--rounds 3] [--cases S stills,...] [--out benchmarks/results/per_frame.json]"""
# ruff: noqa: E402, I001 (the number of threads is set before torch is imported)
import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path
os.environ.setdefault('OMP_NUM_THREADS', '1')
warnings.filterwarnings('ignore')
import torch
from torch.utils.flop_counter import FlopCounterMode

SIDE,OWN,MIDAS_OWN,NEW,MAT = 224,518,384,22,1024
CASES = [f'{s} {m}' for s in 'SB' for m in ('stills','stream','windows')]+['MiDaS stills']

def midas():
    "transformers' DPT as Intel/dpt-large is configured: MiDaS 3.0's large model"
    from transformers import DPTConfig, DPTForDepthEstimation
    cfg = DPTConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096,
        image_size=384,
        backbone_out_indices=[5,11,17,23], neck_hidden_sizes=[256,512,1024,1024])
    return DPTForDepthEstimation(cfg)

def build(case, device='cpu'):
    "The model of a case"
    from vidlit.depth.temporal_head import VideoDepth, video_depth_b, video_depth_l, video_depth_s
    size,mode = case.split()
    with torch.device(device):
        if size=='MiDaS': return midas().eval()
        # tables made by numpy, too
        model = VideoDepth(dict(S=video_depth_s, B=video_depth_b, L=video_depth_l)[size]).eval().to(device)
    return model.image if mode=='stills' else model

def full_state(model, x):
    "A stream in its steady state: 42 frames kept, the tokens of one frame in all of them"
    from vidlit.depth.streaming import remember
    _,seen = model.talk(x[:,:,None])
    state = model.init_state()
    for _ in range(42): state = remember(state, (1, *x.shape[-2:]), seen)
    return state

def call(case, model, side, device='cpu'):
    "(what to run, frames of film that it gives)"
    from vidlit.depth.streaming import look_back
    size,mode = case.split()
    x = torch.randn(1, 3, side, side, device=device)
    if size=='MiDaS': return lambda: model(pixel_values=x).predicted_depth, 1
    if mode=='stills': return lambda: model(x), 1
    if mode=='windows':
        clip = x[:,:,None].expand(-1, -1, 32, -1, -1).contiguous()
        return lambda: model(clip), NEW
    state = full_state(model, x)
    if device=='meta': return lambda: model.talk(x[:,:,None], look_back(state)), 1
    return lambda: model.step(x, state), 1

def memory(key='VmRSS'):
    "Bytes of this process, now or at its peak"
    line = next(l for l in Path('/proc/self/status').read_text().splitlines() if l.startswith(key))
    return int(line.split()[1])*1024

def one(case, rounds):
    "Time and memory of a case, in this process"
    torch.manual_seed(0)
    model = build(case)
    mats,times,mat = [torch.randn(MAT, MAT) for _ in range(2)],[],[]
    with torch.no_grad():
        run,frames = call(case, model, SIDE)
        gc.collect()
        Path('/proc/self/clear_refs').write_text('5') # the peak starts anew
        before = memory()
        for i in range(rounds+1):
            for f,keep in ((lambda: torch.mm(*mats), mat), (run, times)):
                start = time.process_time()
                f()
                if i: keep.append(time.process_time()-start)
        peak = memory('VmHWM')
    p = sum(o.numel() for o in model.parameters())
    return dict(seconds=round(min(times)/frames, 4), seconds_median=round(statistics.median(times)/frames, 4),
        frames=frames, params=p,
        weights_mib=round(p*4/2**20, 1), working_mib=round((peak-before)/2**20, 1),
        matmul_gflops=round(2*MAT**3/min(mat)/1e9, 1))

def gflop(case, side=None):
    """Operations for a frame of film, at the model's own size when no other is given; counted on the meta device,
    where attention is counted too"""
    model = build(case, 'meta')
    with torch.no_grad():
        run,frames = call(case, model, side or (MIDAS_OWN if case[0]=='M' else OWN), 'meta')
        with FlopCounterMode(display=False) as count: run()
    return round(count.get_total_flops()/frames/1e9, 2)

def main():
    ap = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    ap.add_argument('--rounds', type=int, default=3, help='timed calls after one that is not counted')
    ap.add_argument('--cases', default=','.join(CASES), help='some of: '+', '.join(CASES))
    ap.add_argument('--one', help='(run one case and print it)')
    ap.add_argument('--out', type=Path, default=Path(__file__).parent/'results'/'per_frame.json')
    args = ap.parse_args()
    torch.set_num_threads(1)
    if args.one: return print(json.dumps(one(args.one, args.rounds)))
    from step import machine
    rows = {}
    for case in args.cases.split(','):
        r = subprocess.run([sys.executable, __file__, '--one', case, '--rounds', str(args.rounds)],
            capture_output=True, text=True)
        if r.returncode: raise SystemExit(r.stderr[-2000:])
        rows[case] = dict(json.loads(r.stdout.splitlines()[-1]), gflop=gflop(case, SIDE), own_size_gflop=gflop(case))
        print(case, rows[case], flush=True)
    big = {c: gflop(c) for c in ('L stills','L stream','L windows')}
    import transformers
    res = dict(machine=machine(), transformers=transformers.__version__,
        setting=f'{SIDE}x{SIDE}, float32, one thread, random weights; own size 518, MiDaS 384',
        cases=rows, own_size_gflop_l=big)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(res, indent=1)+'\n')

if __name__ == '__main__': main()

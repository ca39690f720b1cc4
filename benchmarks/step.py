"""One VideoMAE training step (forward, loss, backward) against transformers' on one CPU thread.

ViT-S with a 192x4 decoder, clips 16x128x128, batch 4, tubes at 90 %, target built in the step. Both sides start
from the same weights and see the
same clip and mask; their results are compared before anything is timed. All sides and a large matrix product
take turns in one process, and
processor time is counted, so that a busy machine slows all of them; ratios of minima and medians are reported.

    python benchmarks/step.py [--rounds 9] [--curve 60] [--out benchmarks/results/step.json]"""
# ruff: noqa: E402, I001 (the number of threads is set before torch is imported)
import argparse
import json
import os
import platform
import statistics
import tempfile
import time
import warnings
from pathlib import Path
os.environ.setdefault('OMP_NUM_THREADS', '1')
warnings.filterwarnings('ignore')
import torch
from torch.utils.flop_counter import FlopCounterMode
from vidlit.nn.tokens import Grid
from vidlit.nn.vit import ViTConfig
from vidlit.pretrain.tube_masking import tube_mask
from vidlit.pretrain.videomae import VideoMAE, VideoMAEConfig, target_raw, videomae_s

SIDE = 2048 # of the matrices whose product measures the machine

def machine():
    "What the numbers were measured on"
    flags = Path('/proc/cpuinfo').read_text() if Path('/proc/cpuinfo').exists() else ''
    cpu = next((l.split(':')[1].strip() for l in flags.splitlines() if l.startswith('model name')),
        platform.processor())
    return dict(cpu=cpu, cores=os.cpu_count(), threads=torch.get_num_threads(), avx512_bf16='avx512_bf16' in flags,
        amx='amx_bf16' in flags,
        torch=torch.__version__, python=platform.python_version(), system=platform.system(),
        load=[round(o, 2) for o in os.getloadavg()])

def pair():
    "Our model and transformers', from the same weights"
    import transformers
    transformers.logging.set_verbosity_error()
    ours = VideoMAE(videomae_s, gen=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as d:
        theirs = transformers.VideoMAEForPreTraining.from_pretrained(ours.save_pretrained(d, (16,128,128)))
    return ours.train(), theirs.train(), transformers.__version__

def flops_of(step):
    "Floating-point operations of one call"
    with FlopCounterMode(display=False) as count: step()
    return count.get_total_flops()

def alternate(steps, rounds, warm=2):
    "Times of each step, all taking turns"
    times = {k: [] for k in steps}
    for i in range(warm+rounds):
        for k,f in steps.items():
            start = time.process_time()
            f()
            if i>=warm: times[k].append(time.process_time()-start)
    return times

def ratio(times, a, b):
    "How many times as fast b is as a: by minima, and the median of ratios within a round"
    return dict(minimum=round(min(times[a])/min(times[b]), 3),
        paired_median=round(statistics.median(x/y for x,y in zip(times[a], times[b])), 3))

def speed(rounds):
    "Both models, ours under bf16 autocast too, and the matrix product"
    ours,theirs,version = pair()
    gen = torch.Generator().manual_seed(1)
    clip,mask = torch.randn(4, 3, 16, 128, 128, generator=gen),tube_mask(4, Grid(8,8,8), .9, gen)
    their_clip,mats = clip.transpose(1, 2).contiguous(),[torch.randn(SIDE, SIDE, generator=gen) for _ in range(2)]
    grads = lambda m: m.zero_grad(set_to_none=True)
    def vidlit(): grads(ours); ours(clip, mask).loss.backward()
    def vidlit_bf16():
        grads(ours)
        with torch.autocast('cpu', torch.bfloat16): loss = ours(clip, mask).loss
        loss.backward()
    def hf(): grads(theirs); theirs(their_clip, bool_masked_pos=mask).loss.backward()
    with torch.no_grad(): a,b = ours(clip, mask),theirs(their_clip, bool_masked_pos=mask)
    same = dict(pred=float((a.pred-b.logits).abs().max()), loss=float((a.loss-b.loss).abs()))
    vidlit(); hf()
    same['grad'] = float((ours.mask_token.grad-theirs.mask_token.grad).abs().max())
    if max(same.values())>1e-4: raise SystemExit(f"results differ: {same}")
    flops = flops_of(vidlit)
    times = alternate({'transformers': hf, 'vidlit': vidlit, 'matmul': lambda: torch.mm(*mats),
        'vidlit_bf16': vidlit_bf16}, rounds)
    rate = [2*SIDE**3/o for o in times['matmul']]
    own = [flops/o for o in times['vidlit']]
    return dict(transformers=version,
        seconds={k: dict(minimum=round(min(v), 4), median=round(statistics.median(v), 4)) for k,v in times.items()},
        largest_difference=same, gflop=round(flops/1e9, 2), matmul_gflops=round(max(rate)/1e9, 1),
        fp32_speedup=ratio(times, 'transformers', 'vidlit'), bf16_speedup=ratio(times, 'transformers', 'vidlit_bf16'),
        fraction_of_matmul=dict(minimum=round(max(own)/max(rate), 3),
        paired_median=round(statistics.median(a/b for a,b in zip(own, rate)), 3)))

def curve(steps, seed, bf16):
    "Losses of a short training on worlds"
    from vidlit.video.pixels import normalise
    from vidlit.worlds.worlds import WorldConfig, make_clips
    gen = torch.Generator().manual_seed(seed)
    patch = (2,8,8)
    cfg = VideoMAEConfig(ViTConfig(dim=96, depth=4, heads=3, patch=patch), ViTConfig(dim=64, depth=2, heads=2))
    model = VideoMAE(cfg, target=target_raw, gen=gen) # plain pixels: a loss that falls within few steps
    opt = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(.9,.95), weight_decay=.05)
    losses = []
    for i in range(steps):
        clip = normalise(make_clips([seed*10**6+i*16+j for j in range(16)], WorldConfig(t=8, h=32, w=32))[0])
        with torch.autocast('cpu', torch.bfloat16, enabled=bf16):
            loss = model(clip, tube_mask(16, Grid(4,4,4), .75, gen)).loss
        opt.zero_grad(); loss.backward(); opt.step()
        losses.append(loss.item())
    return losses

def curves(steps, seeds=4):
    "Is the bf16 curve within the noise between seeds of fp32?"
    full = [curve(steps, s, False) for s in range(seeds)]
    half = [curve(steps, s, True) for s in range(seeds)]
    tail = steps//4
    last = lambda c: sum(c[-tail:])/tail
    noise = statistics.stdev(map(last, full))
    gap = [last(b)-last(a) for a,b in zip(full, half)]
    return dict(steps=steps, seeds=seeds, fp32=[[round(o, 4) for o in c] for c in full],
        bf16=[[round(o, 4) for o in c] for c in half],
        last_quarter=dict(fp32=[round(last(c), 4) for c in full], bf16=[round(last(c), 4) for c in half]),
        seed_deviation=round(noise, 5), mean_gap=round(statistics.mean(gap), 5),
        largest_gap=round(max(map(abs, gap)), 5),
        within_noise=max(map(abs, gap))<=noise)

def main():
    ap = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    ap.add_argument('--rounds', type=int, default=9, help='timed rounds after two warm-up rounds')
    ap.add_argument('--curve', type=int, default=80, help='training steps of the bf16 check; 0 leaves it out')
    ap.add_argument('--out', type=Path, default=Path(__file__).parent/'results'/'step.json')
    args = ap.parse_args()
    torch.set_num_threads(1)
    res = dict(machine=machine(),
        setting='ViT-S, decoder 192x4, 16x128x128, batch 4, tube .9, one thread, fp32 unless said',
        **speed(args.rounds))
    if args.curve: res['bf16_curve'] = curves(args.curve)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(res, indent=1))
    print(f"fp32: {res['fp32_speedup']} times as fast as transformers {res['transformers']} (goal 1.08)")
    print(
        f"fraction of the matrix-product rate of {res['matmul_gflops']} GFLOP/s: {res['fraction_of_matmul']} (goal "
        f".80)")
    print(f"bf16 autocast: {res['bf16_speedup']} times transformers' fp32 (goal 1.5)")
    if args.curve: print({k: v for k,v in res['bf16_curve'].items() if k not in ('fp32','bf16')})

if __name__ == '__main__': main()

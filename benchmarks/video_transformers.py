"""Divided against joint attention, and our TimeSformer and ViViT against transformers', on one CPU thread.

Both sides start from the same weights and see the same clip; results and a gradient are compared before anything is
timed. All sides and a matrix product take turns in one process, processor time is counted, minima are compared.
"products alone" is the time of a step's multiplications at the rate of that matrix product. "attention" times what
divided and joint layouts do differently: scores, softmax and weighted sum of 8 frames of 196 patches, then whole
layers. "transformers" times a step (forward, mean cube, backward) of the body.

    python benchmarks/video_transformers.py [--rounds 5] [--out benchmarks/results/video_transformers.json]"""
# ruff: noqa: E402, I001 (the number of threads is set before torch is imported)
import argparse
import json
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from step import alternate, flops_of, machine, ratio  # the neighbour: sets the threads too
warnings.filterwarnings('ignore')
import torch
import torch.nn.functional as F
from vidlit.nn.tokens import Grid
from vidlit.nn.vit import ViTConfig, vit_s
from vidlit.pyramid.divided_attention import TimeSformer, TimeSformerConfig
from vidlit.pyramid.vivit import ViViT, ViViTConfig

MS = 1e3

def attention(rounds, frames=(4, 8, 16)):
    "Divided and joint attention over frames of 14 x 14 patches, width 384"
    gen,rows = torch.Generator().manual_seed(0),[]
    for t in frames:
        q = torch.randn(3, 1, t, 196, 6, 64, generator=gen)
        joint = q.flatten(2, 3).transpose(2, 3)
        place,frame = (q[:,0].permute(0, 2, 3, 1, 4), q[:,0].transpose(2, 3))
        def divided(place=place, frame=frame):
            F.scaled_dot_product_attention(*place)
            F.scaled_dot_product_attention(*frame)
        def both(joint=joint): F.scaled_dot_product_attention(*joint)
        cfg = TimeSformerConfig(replace(vit_s, patch=(1,16,16), qkv_bias='fused', depth=1), Grid(t,14,14), classes=0)
        models = {k: TimeSformer(replace(cfg, attention=k), gen).eval() for k in ('divided','joint','space')}
        tok = torch.randn(1, 1+t*196, 384, generator=gen)
        flat = torch.randn(t, 197, 384, generator=gen)
        steps = {'divided': divided, 'joint': both} | {f'{k} layer': (
            lambda m=m, k=k, tok=tok, flat=flat, t=t: m.blocks[0](tok, t) if k=='divided' else
            m.blocks[0](flat if k=='space' else tok)) for k,m in models.items()}
        with torch.no_grad(): times = alternate(steps, rounds)
        best = {k: round(min(v)*MS, 2) for k,v in times.items()}
        rows.append(dict(frames=t, **{f'{k}, ms': v for k,v in best.items()},
            attention_ratio=round(best['joint']/best['divided'], 2),
            layer_ratio=round(best['joint layer']/best['divided layer'], 2)))
    return rows

def step_pair(ours, run, theirs, call, weights):
    "Both steps, after a comparison of results and one gradient"
    def mine(): ours.zero_grad(set_to_none=True); run().pow(3).mean().backward()
    def other(): theirs.zero_grad(set_to_none=True); call().pow(3).mean().backward()
    with torch.no_grad(): gap = float((run().mean(1)-call().mean(1)).abs().max()) # of any order of tokens
    mine(); other()
    a,b = (w.grad for w in weights)
    grad = float((a.reshape(b.shape)-b).abs().max()/b.abs().max())
    if gap>1e-5 or grad>1e-3: raise SystemExit(f'results differ: {gap}, gradient {grad}')
    return {'vidlit': mine, 'transformers': other},dict(difference=gap, gradient=grad)

def timesformer(rounds, kind, grid, depth, batch, dim=384):
    "A TimeSformer against transformers'"
    import transformers
    transformers.logging.set_verbosity_error()
    enc = replace(vit_s, dim=dim, heads=dim//64, depth=depth, patch=(1,16,16), qkv_bias='fused')
    ours,gen = TimeSformer(TimeSformerConfig(enc, grid, kind, 0), torch.Generator().manual_seed(0)),torch.Generator()
    with torch.no_grad():
        for p in ours.parameters(): p.add_(.02*torch.randn(p.shape, generator=gen.manual_seed(p.numel())))
    with tempfile.TemporaryDirectory() as d:
        theirs = transformers.TimesformerModel.from_pretrained(ours.save_pretrained(d))
    clip = torch.randn(batch, 3, grid.t, 16*grid.h, 16*grid.w, generator=gen.manual_seed(1))
    flipped = clip.transpose(1, 2).contiguous()
    steps,same = step_pair(ours.train(), lambda: ours.tokens(clip), theirs.train(),
        lambda: theirs(flipped).last_hidden_state,
        (ours.patch_embed.proj.weight, theirs.embeddings.patch_embeddings.projection.weight))
    work,times = flops_of(steps['vidlit']),alternate(steps, rounds, 1)
    return dict(model=f'TimeSformer {kind}', clip=f'{grid.t}x{16*grid.h}', batch=batch, dim=dim, depth=depth,
        gflop=round(work/1e9, 1), **same,
        **{f'{k}, s': round(min(v), 3) for k,v in times.items()},
        share=round(min(times['vidlit'])/min(times['transformers']), 3), paired=ratio(times, 'vidlit', 'transformers'))

def vivit(rounds, depth):
    "ViViT's joint model against transformers'"
    import transformers
    cfg = ViViTConfig(ViTConfig(384, depth, 6, qkv_bias='fused'), Grid(4,14,14), classes=0)
    ours,gen = ViViT(cfg, torch.Generator().manual_seed(0)),torch.Generator().manual_seed(1)
    with tempfile.TemporaryDirectory() as d:
        theirs = transformers.VivitModel.from_pretrained(ours.save_pretrained(d), add_pooling_layer=False)
    clip = torch.randn(1, 3, 8, 224, 224, generator=gen)
    flipped = clip.transpose(1, 2).contiguous()
    steps,same = step_pair(ours.train(), lambda: ours.tokens(clip), theirs.train(),
        lambda: theirs(flipped).last_hidden_state,
        (ours.patch_embed.proj.weight, theirs.embeddings.patch_embeddings.projection.weight))
    work,times = flops_of(steps['vidlit']),alternate(steps, rounds, 1)
    return dict(model='ViViT joint', clip='8x224', batch=1, dim=384, depth=depth,
        gflop=round(work/1e9, 1), **same,
        **{f'{k}, s': round(min(v), 3) for k,v in times.items()},
        share=round(min(times['vidlit'])/min(times['transformers']), 3), paired=ratio(times, 'vidlit', 'transformers'))

def main():
    ap = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    ap.add_argument('--rounds', type=int, default=5, help='timed rounds')
    ap.add_argument('--out', type=Path, default=Path(__file__).parent/'results'/'video_transformers.json')
    args = ap.parse_args()
    torch.set_num_threads(1)
    pairs = [timesformer(args.rounds, 'divided', Grid(8,14,14), 4, 1),
        timesformer(args.rounds, 'joint', Grid(8,14,14), 2, 1),
        timesformer(args.rounds, 'space', Grid(8,14,14), 2, 1),
        timesformer(min(args.rounds, 3), 'divided', Grid(16,28,28), 1, 1),
        timesformer(args.rounds, 'divided', Grid(8,14,14), 4, 1, 192), vivit(args.rounds, 2)]
    mats = [torch.randn(2048, 2048, generator=torch.Generator().manual_seed(0)) for _ in range(2)]
    product = min(alternate({'matmul': lambda: torch.mm(*mats)}, args.rounds)['matmul'])
    rate = 2*2048**3/product/1e9
    for r in pairs: r['products alone, share'] = round(r['gflop']/rate/r['transformers, s'], 3) # no step can be below
    import transformers
    res = dict(machine=machine(), transformers=transformers.__version__, matmul_gflops=round(rate, 1),
        attention=attention(args.rounds), transformers_step=pairs)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(res, indent=1)+'\n')
    for r in res['attention']: print(r)
    for r in pairs: print({k: v for k,v in r.items() if k not in ('paired',)})
    print('goals: attention_ratio at 8 frames at least 2; share at most .8')

if __name__ == '__main__': main()

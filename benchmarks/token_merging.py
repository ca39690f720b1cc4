"""Token merging (ToMe) and run-length tokens against the unmerged model, on one CPU thread.

ViT-S/16, a class token, 224 px, batch 8, fused attention on both sides; all ways and a matrix product take turns in one
process, processor time is counted, minima are compared. Also how far the results move, and what of the time is merging.

    python benchmarks/token_merging.py [--rounds 5] [--out benchmarks/results/token_merging.json]"""
# ruff: noqa: E402, I001 (the number of threads is set before torch is imported)
import argparse
import json
import warnings
from dataclasses import replace
from pathlib import Path
from step import alternate, flops_of, machine  # the neighbour: sets the threads too
warnings.filterwarnings('ignore')
import torch
from vidlit.nn.vit import ViT, init_vit, run_blocks, vit_s
from vidlit.pyramid.token_merging import RunLength, merge, run_merged, schedule, soft_match
from vidlit.worlds.worlds import WorldConfig, make_worlds
from vidlit.video.pixels import normalise

def images(rounds, batch=8):
    "ViT-S with a class token"
    gen = torch.Generator().manual_seed(0)
    vit = init_vit(ViT(replace(vit_s, patch=(1,16,16), qkv_bias='fused')), gen=gen).eval()
    cls,clip = torch.zeros(1, 1, 384),torch.randn(batch, 3, 1, 224, 224, generator=gen)
    def embed(): return torch.cat((cls.expand(batch, -1, -1), vit.embed(clip)[0]), 1)
    def plain(): return vit.norm(run_blocks(vit.blocks, embed()))
    def merged(r): return lambda: vit.norm(run_merged(vit.blocks, embed(), schedule(r, 12), protect=1)[0])
    ways = {'unmerged': plain} | {f'r={r}': merged(r) for r in (0, 8, 13, 16)} | {'r=(13, -1)': merged((13, -1))}
    tok,key = torch.randn(batch, 197, 384, generator=gen),torch.randn(batch, 197, 64, generator=gen)
    ways['12 merges alone'] = lambda: [merge(tok, *soft_match(key, 13, 1)) for _ in range(12)]
    with torch.no_grad():
        drift = float((merged(0)()-plain()).abs().max())
        left = {k: f().shape[1] for k,f in ways.items() if k!='12 merges alone'}
        work = {k: flops_of(f)/1e9 for k,f in ways.items()}
        times = alternate(ways, rounds)
    if drift>1e-4: raise SystemExit(f'r=0 differs from the unmerged model by {drift}')
    best = {k: min(v) for k,v in times.items()}
    rows = [dict(way=k, tokens_at_the_end=left.get(k), ms=round(best[k]*1e3, 1),
        speedup=round(best['unmerged']/best[k], 3), gflop=round(work[k], 1),
        flop_ratio=round(work['unmerged']/work[k], 3) if work[k]>1 else None) for k in ways]
    return rows,drift

def videos(rounds):
    "Run-length tokens on one clip of worlds, still and moving camera: ViT-S over 16 frames of 128 px"
    gen = torch.Generator().manual_seed(0)
    vit,rows = init_vit(ViT(vit_s), gen=gen).eval(),[]
    for camera in ('still','hand'):
        clip = normalise(make_worlds([1], WorldConfig(t=16, h=128, w=128, camera=camera), truth=False).clip)
        way = RunLength(vit)
        with torch.no_grad():
            times = alternate({'all': lambda clip=clip: vit(clip),
                'rlt': lambda clip=clip, way=way: way(clip)}, rounds)
            sent = float(way(clip, dense=True)[1].sum())/512
        rows.append(dict(camera=camera, sent=round(sent, 3), all_ms=round(min(times['all'])*1e3, 1),
            rlt_ms=round(min(times['rlt'])*1e3, 1), speedup=round(min(times['all'])/min(times['rlt']), 3)))
    return rows

def main():
    ap = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    ap.add_argument('--rounds', type=int, default=5, help='timed rounds after two warm-up rounds')
    ap.add_argument('--out', type=Path, default=Path(__file__).parent/'results'/'token_merging.json')
    args = ap.parse_args()
    torch.set_num_threads(1)
    rows,drift = images(args.rounds)
    mats = [torch.randn(2048, 2048, generator=torch.Generator().manual_seed(0)) for _ in range(2)]
    product = min(alternate({'matmul': lambda: torch.mm(*mats)}, args.rounds)['matmul'])
    res = dict(machine=machine(), setting='ViT-S/16, 224 px, batch 8, class token, fused attention, one thread',
        matmul_gflops=round(2*2048**3/product/1e9, 1), drift_at_r_0=drift, rows=rows, run_length=videos(args.rounds))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(res, indent=1)+'\n')
    for r in [*rows, *res['run_length']]: print(r)
    print('goal: r=13 at least 1.9 times the unmerged model')

if __name__ == '__main__': main()

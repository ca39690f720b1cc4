"""Why numba and not warp-lang on a CPU: the forward pass of both, on the same lists of the same scenes.

Warp's kernel is what one writes for it, a thread a pixel that walks its tile's list and stops when it is done; one
source runs on CPU and CUDA. Numba's runs over 64 pixels in the inner loop, which becomes vector instructions.
warp-lang is no dependency: pip install warp-lang first.

    python benchmarks/splat_warp.py [--rounds 9] [--out benchmarks/results/splat_warp.json]"""
# ruff: noqa: E402, I001 (the number of threads is set before torch is imported)
import argparse
import json
from pathlib import Path
from step import alternate, machine  # the neighbour: sets the threads too
import numpy as np
import torch
import warp as wp
from splat import RULES, scene
from vidlit.splat.rasterizer_compiled import TILE, blend_tiles, composite_compiled, tile_lists

wp.config.quiet, wp.config.enable_backward = True, False


@wp.kernel
def pixel(mean: wp.array2d(dtype=float), con: wp.array2d(dtype=float), op: wp.array(dtype=float),
        feats: wp.array2d(dtype=float), gid: wp.array(dtype=int), start: wp.array(dtype=wp.int64), tw: int, width: int,
        cap: float, floor: float, stop: float, out: wp.array2d(dtype=float)):
    i = wp.tid()
    x = i % width
    y = i/width
    t = (y/8)*tw+x/8
    light = float(1.)
    r = float(0.)
    g = float(0.)
    b = float(0.)
    d = float(0.)
    s = float(0.)
    for j in range(int(start[t]), int(start[t+1])):
        k = gid[j]
        dx = float(x)+.5-mean[k, 0]
        dy = float(y)+.5-mean[k, 1]
        sigma = .5*(con[k, 0]*dx*dx+con[k, 2]*dy*dy)+con[k, 1]*dx*dy
        alpha = wp.min(cap, op[k]*wp.exp(-sigma))
        if alpha >= floor:
            after = light*(1.-alpha)
            if after <= stop: break
            w = alpha*light
            r += w*feats[k, 0]
            g += w*feats[k, 1]
            b += w*feats[k, 2]
            d += w*feats[k, 3]
            s += w
            light = after
    out[i, 0] = r
    out[i, 1] = g
    out[i, 2] = b
    out[i, 3] = d
    out[i, 4] = s


def compare(n, size, scale, rounds):
    "Both on the same lists -> a row"
    ins, boxes = scene(n, size, scale)
    mean, con, op, feats = (o.detach().contiguous().numpy() for o in ins)
    tw, real = -(-size//TILE), np.float32
    consts = real(RULES.cap), real(RULES.floor), real(RULES.stop)
    gid, start = tile_lists(mean, con, op, boxes.numpy(), tw, tw, RULES.floor)
    there = [wp.array(o, device='cpu') for o in (mean, con, op, feats, gid, start)]
    out = wp.zeros((size*size, 5), dtype=float, device='cpu')
    one = np.concatenate((feats, np.ones((len(feats), 1), real)), 1)
    sums = np.zeros((tw*tw, 5, TILE*TILE), real)

    def warp(): wp.launch(pixel, dim=size*size, inputs=[*there, tw, size, *map(float, consts), out], device='cpu')

    def numba():
        sums[:] = 0
        blend_tiles(mean, con, op, one, gid, start, tw, tw, *consts, sums)
    warp()
    with torch.no_grad(): rgb, _ = composite_compiled(*ins, boxes, size, size, RULES)
    apart = float(np.abs(out.numpy().reshape(size, size, 5)[..., :4]-rgb.numpy()).max())
    assert apart < 1e-4, f'not the same picture: {apart}'
    X = torch.rand(512, 512)
    best = {k: min(v)*1e3 for k, v in alternate(dict(warp=warp, numba=numba, matmul=lambda: X@X), rounds).items()}
    return dict(gaussians=n, size=size, apart=apart, ms={k: round(v, 2) for k, v in best.items()},
        warp_to_numba=round(best['warp']/best['numba'], 1))


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--rounds', type=int, default=9)
    ap.add_argument('--out', type=Path, default=Path(__file__).parent/'results'/'splat_warp.json')
    args = ap.parse_args()
    rows = [compare(*o, args.rounds) for o in ((2000, 128, .034), (10000, 128, .0325), (20000, 200, .034))]
    print(json.dumps(rows, indent=1))
    args.out.write_text(json.dumps(dict(machine=machine(), warp=wp.__version__, forward=rows), indent=1)+'\n')


if __name__ == '__main__': main()

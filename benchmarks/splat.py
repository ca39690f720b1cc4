"""Rasterising alone, forward and backward, on one core: brute force, tiled torch, numba.

Scenes of 2k Gaussians at 128x128, 10k at 128x128 and 20k at 200x200 with about .66, 3.2 and 12.6 million pairs of a
pixel and a Gaussian in boxes of three standard deviations and two pixels, of which about .28, .94 and 2.7 million are
drawn. A step is sorted, projected Gaussians -> colour, depth, alpha -> gradients of means, conics, opacities, colours.

OpenSplat's CPU path is AGPL and on no package index, so it isn't run here: `stated` holds what it took, measured
elsewhere on this kind of machine on scenes of these sizes, 13.5 / 50 / 140 ms. Set the ratios to it beside the matrix
product of this run, not in place of a run side by side.

    python benchmarks/splat.py [--rounds 9] [--out benchmarks/results/splat.json]"""
# ruff: noqa: E402, I001 (the number of threads is set before torch is imported)
import argparse
import json
from pathlib import Path
from step import alternate, machine  # the neighbour: sets the threads too
import torch
from vidlit.splat.rasterizer import composite_ref, presets, project_gaussians
from vidlit.splat.rasterizer_compiled import composite_compiled
from vidlit.splat.rasterizer_tiled import composite_tiled

STATED = {2000: 13.5, 10000: 50., 20000: 140.}  # ms, OpenSplat's C++ CPU path, forward and backward
RULES = presets['gsplat']
BARS = dict(numba=.9, torch=2.2)  # of STATED


def scene(n, size, scale, seed=0):
    "Random Gaussians before one camera, projected and sorted -> inputs that want gradients, boxes"
    gen = torch.Generator().manual_seed(seed)
    means = torch.rand(n, 3, generator=gen)*2-1
    means[:, 2] += 4
    quats = torch.randn(n, 4, generator=gen)
    scales = scale*torch.exp(.5*torch.randn(n, 3, generator=gen))
    opac, col = torch.rand(n, generator=gen), torch.rand(n, 3, generator=gen)
    K = torch.tensor([[[1.6*size, 0, size/2], [0, 1.6*size, size/2], [0, 0, 1]]])
    p = project_gaussians(means, quats, scales, opac, torch.eye(4)[None], K, size, size, RULES)
    i = p.radii[0, :, 0].nonzero()[:, 0]
    i = i[p.depths[0, i].argsort(stable=True)]
    ins = p.means2d[0, i], p.conics[0, i], p.opacities[0, i], torch.cat((col, p.depths[0, :, None]), 1)[i]
    return [o.clone().requires_grad_() for o in ins], p.boxes[0, i]


@torch.no_grad()
def pairs(ins, size):
    "Millions of pairs in boxes of 3 sigma + 2 pixels, and of those that are drawn"
    m, con, o, _ = ins
    a, b, c = con.unbind(-1)
    sd = torch.stack((c, a), -1).div((a*c-b*b)[:, None]).sqrt()
    lo, hi = ((m-3*sd-2).floor().clamp(0, size), (m+3*sd+2).ceil().clamp(0, size))
    drawn = 0
    for y in range(size):
        dx, dy = torch.arange(size)[:, None]+.5-m[:, 0], y+.5-m[:, 1]
        alpha = (o*torch.exp(-.5*(a*dx*dx+c*dy*dy)-b*dx*dy)).clamp_max(RULES.cap)
        alpha = torch.where(alpha >= RULES.floor, alpha, 0)
        drawn += ((alpha > 0) & ((1-alpha).cumprod(1) > RULES.stop)).sum().item()
    return round((hi-lo).prod(1).sum().item()/1e6, 2), round(drawn/1e6, 2)


def step(blend, ins, boxes, size, back=True):
    "One pass; the loss is a fixed random weighting"
    w = torch.rand(size, size, 5, generator=torch.Generator().manual_seed(1))

    def run():
        with torch.set_grad_enabled(back):
            rgb, alpha = blend(*ins, boxes, size, size, RULES)
        if back: torch.autograd.grad((rgb, alpha), ins, (w[..., :4], w[..., 4]))
    return run


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--rounds', type=int, default=9)
    ap.add_argument('--out', type=Path, default=Path(__file__).parent/'results'/'splat.json')
    args = ap.parse_args()
    X = torch.rand(512, 512)
    rows = []
    for n, size, scale in ((2000, 128, .034), (10000, 128, .0325), (20000, 200, .034)):
        ins, boxes = scene(n, size, scale)
        box, drawn = pairs(ins, size)
        steps = dict(matmul=lambda: X@X)
        for name, blend in (('numba', composite_compiled), ('torch', composite_tiled)):
            steps[f'{name}_forward'] = step(blend, ins, boxes, size, False)
            steps[name] = step(blend, ins, boxes, size)
        best = {k: min(v)*1e3 for k, v in alternate(steps, args.rounds).items()}
        row = dict(gaussians=n, size=size, box_pairs_millions=box, drawn_pairs_millions=drawn,
            ms={k: round(v, 2) for k, v in best.items()}, stated_opensplat_ms=STATED[n],
            to_stated={k: round(best[k]/STATED[n], 3) for k in BARS},
            matmuls={k: round(v/best['matmul'], 2) for k, v in best.items()})
        if n == 2000:
            few = alternate({k: steps[k] for k in BARS} | dict(dense=step(composite_ref, ins, boxes, size)), 2, 1)
            dense = min(few['dense'])*1e3
            row |= dict(dense_autograd_ms=round(dense, 1), dense_to={k: round(dense/best[k], 1) for k in BARS})
        row['met'] = {k: row['to_stated'][k] <= bar and row.get('dense_to', {}).get(k, 30) >= 30
            for k, bar in BARS.items()}
        rows.append(row)
        print(json.dumps(row), flush=True)
    out = dict(machine=machine(), bars=BARS, note='OpenSplat not run here: stated figures', scenes=rows)
    args.out.write_text(json.dumps(out, indent=1)+'\n')


if __name__ == '__main__': main()

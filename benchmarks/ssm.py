"""The selective scan, and blocks of equal size, on one CPU thread.

Scan: 1,369 sequences (a 37x37 grid) of 12 frames, 128 channels, 16 states, forward and forward+backward. Rivals are the
parallel scan of mamba.py (`pip install --no-deps mambapy==1.2.0`; left out when it is not installed) and the style of
mamba's own reference: decays and inputs of all times first, then a loop. Blocks: width 64, about 33,000 parameters
each, forward+backward. All sides start from the same numbers, their results are compared first, and they take turns in
one process; processor time is counted, and minima are compared.

    python benchmarks/ssm.py [--rounds 7] [--out benchmarks/results/ssm.json]"""
# ruff: noqa: E402, I001 (the number of threads is set before torch is imported)
import argparse
import json
import statistics
from pathlib import Path
from step import SIDE, alternate, machine, ratio  # the neighbour: sets the threads too
import torch
import torch.nn.functional as F
from vidlit.nn.ssm import scan, ssd, ssd_ref
from vidlit.nn.temporal_cores import make_core
from vidlit.nn.vit import count_params

BARS = dict(mambapy=6., reference=9., mamba2=1.6, mamba=5.)
B, L, D, N, WIDTH, PARAMS = 1369, 12, 128, 16, 64, 33_000

def reference(u, dt, A, B, C):
    "Style of mamba's selective_scan_ref"
    decay,add = torch.exp(torch.einsum('bld,dn->bldn', dt, A)),torch.einsum('bld,bln,bld->bldn', dt, B, u)
    x,ys = u.new_zeros(len(u), *A.shape),[]
    for t in range(u.shape[1]):
        x = decay[:,t]*x+add[:,t]
        ys.append(torch.einsum('bdn,bn->bd', x, C[:,t]))
    return torch.stack(ys, 1)

def mambapy():
    "mamba.py's scan, or None"
    try: from mambapy.pscan import pscan
    except ImportError: return None
    def run(u, dt, A, B, C):
        states = pscan(torch.exp(dt[...,None]*A), dt[...,None]*B[:,:,None]*u[...,None])
        return (states@C[...,None])[...,0]
    return run

def inputs(gen):
    "Arguments of a scan"
    r = lambda *s: torch.randn(*s, generator=gen)
    A = -torch.arange(1., N+1).repeat(D, 1)
    return [o.requires_grad_() for o in (r(B, L, D), F.softplus(r(B, L, D)-3), A, r(B, L, N), r(B, L, N))]

def grads(f, args):
    "Output and gradients"
    for o in args: o.grad = None
    y = f(*args)
    y.square().sum().backward()
    return [y.detach(), *(o.grad.clone() for o in args)]

def gap(a, b): return max(float((x-y).abs().max()/y.abs().max()) for x,y in zip(a, b))

def seconds(times):
    return {k: dict(minimum=round(min(v), 4), median=round(statistics.median(v), 4)) for k,v in times.items()}

def scans(rounds, gen):
    "Times of the scans, forward and both ways, and of a matrix product"
    args = inputs(gen)
    sides = dict(vidlit=lambda *a: scan(*a)[0], reference=reference)
    if (other := mambapy()) is not None: sides['mambapy'] = other
    else: print("mambapy is left out: pip install --no-deps mambapy==1.2.0")
    want = grads(reference, args)
    same = {k: gap(grads(f, args), want) for k,f in sides.items() if k!='reference'}
    if max(same.values())>1e-4: raise SystemExit(f"results differ: {same}")
    @torch.no_grad()
    def forward(f): f(*args)
    mats = [torch.randn(SIDE, SIDE, generator=gen) for _ in range(2)]
    steps = {f'{k} {way}': (lambda f=f, go=go: go(f)) for k,f in sides.items()
        for way,go in (('forward', forward), ('both', lambda f: grads(f, args)))}
    times = alternate(steps|dict(matmul=lambda: torch.mm(*mats)), rounds)
    speedup = {f'{k} {way}': ratio(times, f'{k} {way}', f'vidlit {way}') for k in sides if k!='vidlit'
        for way in ('forward', 'both')}
    return dict(largest_difference=same, seconds=seconds(times), speedup=speedup)

def blocks(rounds, gen):
    "Times of cores of equal size, forward and backward, over the GRU's"
    kinds = {'gru': {}, 'mamba': {}, 'mamba2': {}, 'mamba2, 64 states': dict(d_state=64), 'attention': {}, 'conv': {}}
    cores = {k: make_core(k.split(',')[0], WIDTH, PARAMS, gen=gen, **kw) for k,kw in kinds.items()}
    x = torch.randn(B, L, WIDTH, generator=gen).requires_grad_()
    def step(m):
        m.zero_grad()
        x.grad = None
        m(x)[0].square().sum().backward()
    times = alternate({k: (lambda m=m: step(m)) for k,m in cores.items()}, rounds)
    return dict(parameters={k: count_params(m) for k,m in cores.items()}, seconds=seconds(times),
        over_gru={k: ratio(times, k, 'gru') for k in cores if k!='gru'})

def duals(rounds, gen):
    "Mamba-2's two forms"
    out = {}
    for n in (16, 64):
        r = lambda *s: torch.randn(*s, generator=gen)
        args = [r(B, L, 4, 32), F.softplus(r(B, L, 4)), -torch.rand(4, generator=gen), r(B, L, 1, n), r(B, L, 1, n)]
        args = [o.requires_grad_() for o in args]
        sides = dict(dual=lambda *a: ssd(*a)[0], recurrent=lambda *a: ssd_ref(*a)[0])
        same = gap(grads(sides['dual'], args), grads(sides['recurrent'], args))
        times = alternate({k: (lambda f=f, a=args: grads(f, a)) for k,f in sides.items()}, rounds)
        out[f'{n} states'] = dict(largest_difference=same, seconds=seconds(times),
            speedup=ratio(times, 'recurrent', 'dual'))
    return out

def main():
    ap = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    ap.add_argument('--rounds', type=int, default=7, help='timed rounds after two warm-up rounds')
    ap.add_argument('--out', type=Path, default=Path(__file__).parent/'results'/'ssm.json')
    args = ap.parse_args()
    torch.set_num_threads(1)
    gen = torch.Generator().manual_seed(0)
    res = dict(machine=machine(), bars=BARS,
        setting=f'{B} sequences x {L}, one thread, fp32; scan: {D} channels, {N} states; blocks: width {WIDTH}',
        scan=scans(args.rounds, gen), blocks=blocks(args.rounds, gen), mamba2_forms=duals(max(3, args.rounds//2), gen))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(res, indent=1)+'\n')
    for k in ('mambapy', 'reference'):
        if f'{k} both' in res['scan']['speedup']: print(
            f"scan, both ways: {res['scan']['speedup'][f'{k} both']} times as fast as {k} (goal {BARS[k]})")
    for k,v in res['blocks']['over_gru'].items(): print(f"{k}: {v} times the GRU's time (goal {BARS.get(k, 'none')})")
    for k,v in res['mamba2_forms'].items(): print(f"Mamba-2, {k}: dual {v['speedup']} times as fast as the recurrence")

if __name__ == '__main__': main()

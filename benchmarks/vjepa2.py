"""V-JEPA 2's encoder and predictor, forward and backward, against transformers' on one CPU thread.

A ViT-S encoder and the published predictor (384 wide, 12 blocks, 12 heads), clips 16x128x128: all 512 tokens
are encoded, 192 are context, 320 are
predicted, as transformers does it. Both sides start from the same weights and see the same clip and masks;
predictions and gradients are compared before
anything is timed. Both sides and a large matrix product take turns in one process, and processor time is
counted, so that a busy machine slows all of
them. Beside it, vidlit alone: what encoding only the context saves, as training does it.

    python benchmarks/vjepa2.py [--rounds 9] [--batch 2] [--out benchmarks/results/vjepa2.json]"""
# ruff: noqa: E402, I001 (the number of threads is set before torch is imported)
import argparse
import json
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from step import SIDE, alternate, flops_of, machine, ratio
import torch
from vidlit.nn.tokens import Grid, take
from vidlit.nn.vit import vit_s
from vidlit.pretrain.vjepa2 import VJEPA2, VJEPA2Config
import vidlit.pretrain.vjepa2_weights  # noqa: F401 (adds loading and saving)

SIZE,GRID,CONTEXT = (16,128,128),Grid(8,8,8),192

def pair():
    "Our model and transformers', from the same weights"
    import transformers
    transformers.logging.set_verbosity_error()
    ours = VJEPA2(VJEPA2Config(replace(vit_s, qkv_bias='fused'), legacy_tiled=True),
        gen=torch.Generator().manual_seed(0))
    with torch.no_grad(): ours.predictor.mask_tokens[1].normal_(generator=torch.Generator().manual_seed(2))
    with tempfile.TemporaryDirectory() as d:
        theirs = transformers.VJEPA2Model.from_pretrained(ours.save_pretrained(d, SIZE, 'encoder'),
            attn_implementation='sdpa')
    return ours.train(), theirs.train(), transformers.__version__

def speed(rounds, b):
    "Both models and the matrix product"
    ours,theirs,version = pair()
    gen = torch.Generator().manual_seed(1)
    clip,mats = torch.randn(b, 3, *SIZE, generator=gen),[torch.randn(SIDE, SIDE, generator=gen) for _ in range(2)]
    order = torch.stack([torch.randperm(GRID.n, generator=gen) for _ in range(b)])
    keep,targ = (o.sort(1).values for o in (order[:, :CONTEXT], order[:, CONTEXT:]))
    their_clip = clip.transpose(1, 2).contiguous()
    def ask(): return ours.predictor(take(ours.encoder(clip), keep), GRID, keep, targ, 1)
    def ask_hf(): return theirs(their_clip, context_mask=[keep], target_mask=[targ]).predictor_output.last_hidden_state
    def clear(m): m.zero_grad(set_to_none=True)
    def vidlit(): clear(ours); ask().abs().mean().backward()
    def hf(): clear(theirs); ask_hf().abs().mean().backward()
    def visible(): clear(ours); ours.predictor(ours.encoder(clip, keep), GRID, keep, targ, 1).abs().mean().backward()
    with torch.no_grad(): same = dict(pred=float((ask()-ask_hf()).abs().max()))
    vidlit(); hf()
    same['grad'] = float((ours.encoder.blocks[0].mlp.fc1.weight.grad
        -theirs.encoder.layer[0].mlp.fc1.weight.grad).abs().max())
    same['token'] = float((ours.predictor.mask_tokens[1].grad
        -theirs.predictor.embeddings.mask_tokens.grad[1]).abs().max())
    if max(same.values())>1e-4: raise SystemExit(f"results differ: {same}")
    flops,less = flops_of(vidlit),flops_of(visible)
    times = alternate({'transformers': hf, 'vidlit': vidlit, 'matmul': lambda: torch.mm(*mats),
        'vidlit_context_only': visible}, rounds)
    rate,own = ([n/o for o in times[k]] for k,n in (('matmul', 2*SIDE**3), ('vidlit', flops)))
    other = [flops_of(hf)/o for o in times['transformers']]
    return dict(transformers=version, batch=b,
        seconds={k: dict(minimum=round(min(v), 4), median=round(statistics.median(v), 4)) for k,v in times.items()},
        largest_difference=same, gflop=round(flops/1e9, 2), matmul_gflops=round(max(rate)/1e9, 1),
        speedup=ratio(times, 'transformers', 'vidlit'),
        fraction_of_matmul=dict(minimum=round(max(own)/max(rate), 3),
        paired_median=round(statistics.median(a/b for a,b in zip(own, rate)), 3)),
        transformers_fraction=dict(minimum=round(max(other)/max(rate), 3),
        paired_median=round(statistics.median(a/b for a,b in zip(other, rate)), 3)),
        context_only=dict(ratio(times, 'vidlit', 'vidlit_context_only'), flop_ratio=round(flops/less, 3)))

def main():
    ap = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    ap.add_argument('--rounds', type=int, default=9, help='timed rounds after two warm-up rounds')
    ap.add_argument('--batch', type=int, default=2, help='clips in a batch')
    ap.add_argument('--out', type=Path, default=Path(__file__).parent/'results'/'vjepa2.json')
    args = ap.parse_args()
    torch.set_num_threads(1)
    res = dict(machine=machine(),
        setting='ViT-S, predictor 384x12, 16x128x128, 192 of 512 tokens context, one thread, fp32',
        **speed(args.rounds, args.batch))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(res, indent=1))
    print(f"{res['speedup']} times as fast as transformers {res['transformers']} (goal 1)")
    print(
        f"fraction of the matrix-product rate of {res['matmul_gflops']} GFLOP/s: {res['fraction_of_matmul']} (goal "
        f".80); "
          f"transformers: {res['transformers_fraction']}")
    print(f"encoding the context only: {res['context_only']}")

if __name__ == '__main__': main()

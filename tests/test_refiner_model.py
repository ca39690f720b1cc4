"""The refiner model: what holds for any size, any input and any variant."""
import json
import pytest
import torch
from hypothesis import given, settings, strategies as st
from vidlit.refiner import model as parts
from vidlit.refiner.model import Refiner, RefinerConfig, clamp_bound, clamp_residual, frame_stats, log_depth

ALL = RefinerConfig(width=8, rgb=True, global_path=True, memory=True, mid=True, high=True, mixing='bilateral')


def gen(seed=0): return torch.Generator().manual_seed(seed)


def inputs(b=1, n=6, h=18, w=23, seed=0):
    g = gen(seed)
    depth = 1+5*torch.rand(b, 1, 1, h, w, generator=g)*(1+.03*torch.randn(b, n, 1, 1, 1, generator=g))
    return depth.contiguous(), torch.rand(depth.shape, generator=g), torch.rand(b, n, 3, h, w, generator=g)


def shaken(cfg=ALL, by=.2):
    "A refiner that does something"
    model = Refiner(cfg, gen())
    with torch.no_grad():
        for p in model.parameters():
            if not p.any(): p.copy_(by*torch.randn(p.shape, generator=gen(1)))
    return model.eval()


@settings(max_examples=20, deadline=None)
@given(st.integers(8, 40), st.integers(8, 40), st.sampled_from([1, 2, 3, 4, 8]), st.randoms(use_true_random=False))
def test_an_impulse_comes_back_to_its_place(h, w, down, rnd):
    "The largest value of an impulse lies in its own cell, and constants stay"
    low = parts.to_low(torch.zeros(1, 1, 1, h, w), down)
    assert low.shape[-2:]==(-(-h//down), -(-w//down))
    i,j = rnd.randrange(h//down),rnd.randrange(w//down)
    low[...,i,j] = 1
    full = parts.to_full(low, down, h, w)[0,0,0]
    y,x = divmod(int(full.argmax()), w)
    assert full.shape==(h, w) and (y//down, x//down)==(i, j)
    torch.testing.assert_close(parts.to_full(torch.ones_like(low), down, h, w), torch.ones(1, 1, 1, h, w))


@settings(max_examples=30, deadline=None)
@given(st.floats(.01, 100), st.floats(0, 1), st.floats(-3, 3), st.sampled_from(['soft', 'hard']))
def test_no_pixel_moves_further_than_the_document_allows(depth, conf, r, how):
    d,c = torch.tensor(depth, dtype=torch.float64),torch.tensor(conf, dtype=torch.float64)
    moved = (d*clamp_residual(torch.tensor(r, dtype=torch.float64), clamp_bound(d, c), how).exp()-d).abs()
    assert moved<=max(.1*depth, .02)*(2-conf)*(1+1e-9)


def test_later_frames_change_nothing_before_them():
    depth,conf,rgb = inputs()
    model,other = shaken(),depth.clone()
    other[:,4:] *= 1.5
    with torch.no_grad(): a,b = model(depth, conf, rgb),model(other, conf, rgb)
    assert (a.depth[:,:4]==b.depth[:,:4]).all() and not (a.residual[:,4:]==b.residual[:,4:]).all()


def test_scale_of_the_scene_does_not_matter_to_the_statistics():
    depth,conf,_ = inputs()
    stats = [frame_stats(log_depth(s*depth, conf)[0], conf) for s in (1., 7.)]
    torch.testing.assert_close(*stats, rtol=1e-3, atol=1e-5)
    jump = depth.clone()
    jump[:,3] *= 1.02 # one frame's scale
    change = frame_stats(log_depth(jump)[0], conf)[0,:,4]-stats[0][0,:,4]
    torch.testing.assert_close(change[[3,4]], torch.tensor([.0198, -.0198]), rtol=0, atol=1e-3)


@pytest.mark.parametrize('clamp', ['soft', 'hard', 'none'])
def test_gradients_reach_every_part(clamp):
    "After one step away from zero, and none is nan, holes or not"
    from dataclasses import replace
    depth,conf,rgb = inputs(n=4)
    depth[0,1,0,:5] = float('nan')
    model = shaken(replace(ALL, clamp=clamp), .01).train()
    out = model(depth, conf, rgb)
    out.residual.square().sum().backward()
    grads = {n: p.grad for n,p in model.named_parameters()}
    assert all(g is not None and g.isfinite().all() for g in grads.values())
    assert {n.split('.')[0] for n,g in grads.items() if g.any()}=={'glob', 'low', 'mid', 'fuse', 'high', 'memory'}


def test_a_long_stream_has_a_state_of_one_size():
    def count(s):
        if s is None: return 0
        return s.numel() if isinstance(s, torch.Tensor) else sum(map(count, s))
    model,state,sizes = shaken(),None,[]
    depth,conf,rgb = (o[:,0] for o in inputs(n=1))
    with torch.no_grad():
        for _ in range(40):
            out,state = model.step(depth, conf, rgb, state)
            sizes.append(count(state))
    assert len(set(sizes[1:]))==1 and out.depth.isfinite().all() and out.depth.shape==depth.shape


def test_a_state_survives_a_file(tmp_path):
    model,(depth,conf,rgb) = shaken(),inputs(n=8)
    with torch.no_grad():
        _,state = model.advance(depth[:,:4], conf[:,:4], rgb[:,:4])
        want,_ = model.advance(depth[:,4:], conf[:,4:], rgb[:,4:], state)
        def plain(s): return s if s is None or isinstance(s, torch.Tensor) else [plain(o) for o in s]
        torch.save(plain(state), tmp_path/'state.pt')
        got,_ = model.advance(depth[:,4:], conf[:,4:], rgb[:,4:], torch.load(tmp_path/'state.pt', weights_only=True))
    assert (got.depth==want.depth).all()


def test_a_folder_with_an_unknown_field_is_refused(tmp_path):
    shaken().save_pretrained(tmp_path)
    cfg = json.loads((tmp_path/'config.json').read_text())
    (tmp_path/'config.json').write_text(json.dumps(cfg|{'magic': 1}))
    with pytest.raises(ValueError, match='unknown magic'): Refiner.from_pretrained(tmp_path)
    (tmp_path/'config.json').write_text(json.dumps(cfg|{'width': 9}))
    with pytest.raises(ValueError, match='weights do not fit'): Refiner.from_pretrained(tmp_path)

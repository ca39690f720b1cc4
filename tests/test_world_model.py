"""The predictor against a slow one written from the paper, weights both ways, causality, batches, resuming."""
import math
import tempfile
from dataclasses import replace
from pathlib import Path
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from vidlit.nn.tokens import sincos_3d
from vidlit.nn.vit import ViT, ViTConfig, count_params
from vidlit.nn.weights import WeightsError, load_strict
from vidlit.pretrain.world_model import (
    ACConfig,
    ACPredictor,
    WorldModel,
    ac_keys,
    ac_loss,
    encode_frames,
    frame_causal_mask,
    move_by,
    unit_norm,
)
from vidlit.pretrain.world_model_variants import CrossPredictor

torch.set_num_threads(1)
cfg = ACConfig(dim=24, hw=(2, 3), acts=7, blocks=ViTConfig(dim=52, depth=2, heads=2, qkv_bias='fused'),
    legacy_tiled=True)

def gen(seed=0): return torch.Generator().manual_seed(seed)
def inputs(b=2, t=4, c=cfg, seed=0):
    g = gen(seed)
    return torch.randn(b, t, c.n, c.dim, generator=g), torch.randn(b, t, c.acts, generator=g), torch.randn(b, t,
        c.acts, generator=g)


def turned(x, pos):
    "One axis of rotary positions, tiled frequencies: x [b, h, n, d], pos [n]"
    d = x.shape[-1]
    om = 1/10000**(torch.arange(d//2).float()/(d/2))
    a = torch.outer(pos.float(), om).repeat(1, 2)
    y = x.unflatten(-1, (-1, 2))
    return x*a.cos() + torch.stack((-y[..., 1], y[..., 0]), -1).flatten(-2)*a.sin()


def slow(p, tok, actions, states, extrinsics=None):
    "The predictor with loops: every kind of token handled by itself"
    c,t = p.cfg,tok.shape[1]
    k,(h,w),heads,hd = c.cond,c.hw,c.blocks.heads,c.blocks.head_dim
    d = 2*(hd//3//2)
    parts = [p.action_encoder(actions), p.state_encoder(states)] + ([p.extrinsics_encoder(extrinsics)]
        if extrinsics is not None else [])
    x = torch.cat([o.unsqueeze(2) for o in parts] + [p.predictor_embed(tok)], 2)
    for blk in p.predictor_blocks:
        y = blk.norm1(x)
        q,key,v = blk.attn.qkv(y.flatten(1, 2)).unflatten(-1, (3, heads, hd)).permute(2, 0, 3, 1, 4)
        q,key = (o.unflatten(2, (t, k+h*w)).clone() for o in (q, key))
        for o in (q, key):
            for i in range(k): o[:, :, :, i, :d] = turned(o[:, :, :, i, :d], torch.arange(t))
            for n in range(h*w):
                o[:, :, :, k+n, :d] = turned(o[:, :, :, k+n, :d], torch.arange(t))
                o[:, :, :, k+n, d:2*d] = turned(o[:, :, :, k+n, d:2*d], torch.full((t,), n//w))
                o[:, :, :, k+n, 2*d:3*d] = turned(o[:, :, :, k+n, 2*d:3*d], torch.full((t,), n%w))
        s = q.flatten(2, 3)@key.flatten(2, 3).mT/hd**.5
        for i in range(t): s[:, :, i*(k+h*w):(i+1)*(k+h*w), (i+1)*(k+h*w):] = -math.inf
        x = x + blk.attn.proj((s.softmax(-1)@v).transpose(1, 2).flatten(2)).unflatten(1, (t, -1))
        x = x + blk.mlp(blk.norm2(x))
    return p.predictor_proj(p.predictor_norm(x[:, :, k:]))


@pytest.mark.parametrize('extrinsics', [False, True])
def test_equals_the_slow_predictor(extrinsics):
    p = ACPredictor(replace(cfg, extrinsics=extrinsics), gen()).eval()
    for q in p.parameters(): q.data.normal_(std=.3, generator=gen(q.numel()))
    tok,a,s = inputs()
    e = torch.randn(2, 4, 6, generator=gen(5)) if extrinsics else None
    with torch.no_grad(): assert (p(tok, a, s, e)-slow(p, tok, a, s, e)).abs().max() < 1e-4


def test_published_size_on_meta():
    with torch.device('meta'): p = ACPredictor()
    assert round(count_params(p)/1e6, 1) == 305.2
    assert p.extrinsics_encoder.weight.shape == (1024, 6) and len(p.predictor_blocks) == 24
    assert p.predictor_blocks[0].attn.qkv.bias.shape == (3072,)
    assert p.predictor_embed.weight.shape == (1024, 1408) and p.predictor_proj.weight.shape == (1408, 1024)


@pytest.mark.parametrize('prefix', ['', 'module.', 'module.backbone.'])
def test_official_layout_both_ways(prefix):
    p,q = ACPredictor(cfg, gen(1)),ACPredictor(cfg, gen(2))
    theirs = {prefix+k: v.clone() for k,v in p.state_dict().items()}
    load_strict(q, theirs, ac_keys)
    assert all(torch.equal(v, q.state_dict()[k]) for k,v in p.state_dict().items())
    back = ac_keys.to_theirs(q.state_dict())
    assert {k.removeprefix('module.') for k in back} == set(p.state_dict())
    theirs.pop(prefix+'extrinsics_encoder.bias')
    with pytest.raises(WeightsError, match='extrinsics_encoder.bias'): load_strict(q, theirs, ac_keys)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 7))
def test_mask_is_causal_in_blocks(t, m):
    x = frame_causal_mask(t, m)
    i = torch.arange(t*m)//m
    assert torch.equal(x, i[:, None] >= i[None])
    assert x.sum() == m*m*t*(t+1)//2


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 3), st.sampled_from(['tok', 'act', 'state']))
def test_nothing_later_is_seen(k, which):
    p,x = ACPredictor(cfg, gen()).eval(),list(inputs())
    with torch.no_grad():
        was = p(*x)
        i = ['tok', 'act', 'state'].index(which)
        x[i] = x[i].clone()
        x[i][:, k] += 1
        diff = (p(*x)-was).abs().amax((0, 2, 3)) > 1e-7
    assert not diff[:k].any() and diff[k]


@pytest.mark.parametrize('auto', [1, 2, 3])
def test_rollout_of_training_is_that_of_planning(auto):
    p = ACPredictor(replace(cfg, acts=2), gen()).eval()
    wm = WorldModel(torch.nn.Identity(), p, auto)
    tok,a,s = inputs(c=p.cfg)
    s = torch.cat((s[:, :1], s[:, :1]+a[:, :-1].cumsum(1)), 1)  # states as actions add up
    z = unit_norm(tok)
    with torch.no_grad():
        assert (ac_loss(p, z, a[:, :3], s, auto).rolled-wm.rollout(z[:, 0], s[:, 0], a[:, :auto])).abs().max() < 1e-4


def test_candidates_do_not_meet():
    wm = WorldModel(torch.nn.Identity(), ACPredictor(replace(cfg, acts=2), gen()).eval())
    g = gen(3)
    tok,s,a = torch.randn(1, 6, 24, generator=g),torch.randn(1, 2, generator=g),torch.randn(9, 3, 2, generator=g)
    with torch.no_grad():
        many = wm.rollout(tok, s, a)
        one = torch.cat([wm.rollout(tok, s, a[i:i+1]) for i in range(9)])
    assert (many-one).abs().max() < 1e-5


def test_encoder_learns_nothing():
    eye = ViT(ViTConfig(dim=24, depth=1, heads=2, patch=(2,8,8), drop_path=.5), sincos_3d)
    wm = WorldModel(eye, ACPredictor(replace(cfg, acts=2), gen())).train()
    x = torch.rand(2, 3, 4, 16, 24, generator=gen())
    assert torch.equal(wm.encode(x), wm.encode((x*1)))
    wm(x, torch.zeros(2, 3, 2), torch.zeros(2, 4, 2)).loss.backward()
    assert all(p.grad is None for p in eye.parameters())
    assert wm.predictor.extrinsics_encoder.weight.grad is None and wm.predictor.action_encoder.weight.grad is not None
    assert (encode_frames(eye.eval(), (x*255).round().byte())-encode_frames(eye,
        (x*255).round()/255)).abs().max() < 1e-4


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([2, 3, 6]))
def test_moves_add_up(seed, k):
    g = gen(seed)
    s,a = torch.randn(5, k, generator=g),torch.randn(5, k, generator=g)*.3
    back = move_by(move_by(s, a), -a)
    assert (back[:, :3]-s[:, :3]).abs().max() < 1e-5
    assert move_by(s, a).dtype == s.dtype
    with pytest.raises(ValueError, match='not 5'): move_by(torch.zeros(1, 5), torch.zeros(1, 5))


def test_document_predictor_has_no_order():
    p = CrossPredictor(replace(cfg, acts=2), gen()).eval()
    tok,a = torch.randn(2, 6, 24, generator=gen()),torch.randn(2, 4, 2, generator=gen(1))
    with torch.no_grad():
        assert (p.ahead(tok, a)-p.ahead(tok, a[:, torch.tensor([2, 0, 3, 1])])).abs().max() < 1e-5
        assert torch.allclose(F.layer_norm(p.ahead(tok, a), (24,)).mean(-1), torch.zeros(2, 4, 6), atol=1e-5)


def test_a_killed_training_goes_on():
    from vidlit.studies.world_model_jobs import WorldSetup, new_world, train_predictor, trajectories
    r = WorldSetup(size=24, patch=12, frames=4, dim=16, heads=1, depth=1, eye_depth=1, steps=60, bs=8, n_train=32,
        eye='random')
    data = trajectories(r, 7, 32)
    with tempfile.TemporaryDirectory() as tmp:
        whole = new_world(r, 0)
        train_predictor(r, whole, data, 0, Path(tmp)/'a')
        def kill(o):
            if o['done'] >= 55: raise RuntimeError('killed')
        with pytest.raises(RuntimeError, match='killed'):
            train_predictor(r, new_world(r, 0), data, 0, Path(tmp)/'b', kill)
        again = new_world(r, 0)
        rows = train_predictor(r, again, data, 0, Path(tmp)/'b')
    assert len(rows) == 60
    for k,v in whole.state_dict().items(): assert torch.equal(v, again.state_dict()[k]), k

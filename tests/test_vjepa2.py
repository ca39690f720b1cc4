"V-JEPA 2 beyond its lessons: rotation, groups, horizons, foresight, phases, and a study that goes on where it stopped."
from dataclasses import replace
import pytest
import torch
from hypothesis import given, settings, strategies as st
from vidlit.nn.tokens import Grid, grid_of
from vidlit.nn.vit import ViTConfig, run_blocks
from vidlit.pretrain.block_masking import multiblock3d
from vidlit.pretrain.vjepa import by_content
from vidlit.pretrain.vjepa2 import VJEPA2, GroupSampler, VJEPA2Config, phase_at, vjepa2_phases
from vidlit.pretrain.vjepa2_variants import SlotTargets, fixed_positions, horizon_blocks, variants
from vidlit.studies.vjepa2_jobs import Setup, class_recall, fresh, pretrain, setups, study_jobs, views_of
from vidlit.train.schedules import wsd


def gen(seed=0): return torch.Generator().manual_seed(seed)
def sizes(dim=24, heads=2): return ViTConfig(dim=dim, depth=2, heads=heads, patch=(2,4,4), qkv_bias='fused')
cfg = VJEPA2Config(sizes(), sizes(), mask_tokens=3)

def model(seed=0, **kw):
    m = VJEPA2(cfg, gen=gen(seed), **kw)
    noise = gen(9)
    with torch.no_grad(): [p.add_(torch.randn(p.shape, generator=noise)*.2) for p in m.parameters()]
    return m.eval()

NET = model()

@settings(max_examples=15, deadline=None)
@given(st.tuples(st.integers(0, 6), st.integers(0, 5), st.integers(0, 9)))
def test_rotation_sees_differences_only(shift):
    "A block of tokens anywhere in a large grid, encoder and predictor"
    big,tok = Grid(8,7,11),torch.randn(1, 8, 24, generator=gen(1))
    idx = torch.tensor([[t*77+r*11+c for t in (0,1) for r in (0,1) for c in (0,1)]])
    off = shift[0]*77+shift[1]*11+shift[2]
    a,b = (run_blocks(NET.encoder.blocks, tok, NET.encoder.pos(big, idx+o)) for o in (0, off))
    torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-4)
    a,b = (NET.predictor(tok[:,:5], big, idx[:,:5]+o, idx[:,5:]+o, 2) for o in (0, off))
    torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-4)

@settings(max_examples=10, deadline=None)
@given(st.integers(2, 5), st.integers(4, 7), st.integers(4, 7), st.sampled_from(['faithful','unbiased','padded']),
    st.integers(0, 99))
def test_apart_and_together(t, h, w, how, seed):
    "Any shape of video, any way to make masks rectangular: one padded forward gives what two give"
    clip = torch.randn(3, 3, 2*t, 4*h, 4*w, generator=gen(seed))
    blocks = multiblock3d(3, Grid(t,h,w), gen(seed), how=how)
    two = NET(clip, blocks)
    NET.together = True
    try: one = NET(clip, blocks)
    finally: NET.together = False
    torch.testing.assert_close(one.loss, two.loss, atol=1e-5, rtol=1e-5)
    for a,b,v in zip(one.pred, two.pred, two.valid):
        torch.testing.assert_close(a if v is None else a[v], b if v is None else b[v], atol=1e-4, rtol=1e-4)

def test_groups_have_their_own_tokens():
    clips = [torch.randn(2, 3, t, 16, 24, generator=gen(t)) for t in (4, 6, 8)]
    masks = [multiblock3d(2, grid_of(c, (2,4,4)), gen(1)) for c in clips]
    out = NET(clips, masks)
    parts = [z for g,(c,m) in enumerate(zip(clips, masks)) for z in NET.predict(c, m, g)]
    for a,b in zip(out.pred, parts): torch.testing.assert_close(a, b)
    torch.testing.assert_close(out.loss, torch.stack([(a-b).abs().mean() for a,b in zip(out.pred, out.targ)]).mean())
    assert not torch.allclose(NET.predict(clips[0], masks[0], 0)[0], NET.predict(clips[0], masks[0], 1)[0])
    with pytest.raises(IndexError): NET.predict(clips[0], masks[0], 3)
    assert by_content(out).shape == NET.targets(clips[0]).shape

def test_a_batch_that_does_not_deal():
    s = GroupSampler((4,6), multiblock3d, patch=(2,4,4))
    s.learn = type('L', (), dict(xb=(torch.zeros(1, 3, 8, 16, 16),), yb=(), training=True))()
    with pytest.raises(ValueError): s.before_batch()

@settings(max_examples=30, deadline=None)
@given(st.integers(2, 20), st.integers(1, 4), st.integers(1, 4), st.integers(0, 9))
def test_horizons_look_ahead_only(t, h, w, seed):
    blocks,n = horizon_blocks(2, Grid(t,h,w), gen(seed)),h*w
    assert 1 <= len(blocks) <= 5
    for b in blocks:
        now,ahead = b.keep.shape[1]//n-1,(b.targ[0,0].item()//n)-(b.keep.shape[1]//n-1)
        assert ahead in (1,2,4,8,16) and now+ahead < t and b.targ.shape == (2,n)
        assert b.keep.max() < b.targ.min() and len(b.targ[0].unique()) == n

def test_foresight_is_the_predictor_on_the_longer_grid():
    clip = torch.randn(2, 3, 4, 16, 24, generator=gen())
    past,future = NET.anticipate(clip, 3, group=1)
    torch.testing.assert_close(past, NET.target_encoder(clip))
    at = torch.arange(5*24).expand(2, -1)
    torch.testing.assert_close(future, NET.predictor(past, Grid(5,4,6), at[:, :48], at[:, 48:], 1))
    assert not future.requires_grad

def test_foresight_cannot_see_the_future():
    setup = setups['toy']
    views,x = views_of(fresh(setup, 0).eval(), setup.ahead),torch.randn(2, 3, 8, 24, 24, generator=gen())
    other = torch.cat((x[:,:,:4], torch.randn(2, 3, 4, 24, 24, generator=gen(1))), 2)
    for f in views.values(): assert torch.equal(f(x), f(other))
    held = torch.cat((torch.randn(2, 3, 3, 24, 24, generator=gen(2)), x[:,:,3:]), 2)
    assert torch.equal(views['last frame'](x), views['last frame'](held))

@pytest.mark.parametrize('name', list(variants))
def test_every_variant_trains(name):
    kind,parts,how = variants[name]
    m = kind(cfg, gen=gen(), **(dict(parts, grid=Grid(4,4,4)) if kind is fixed_positions else parts))
    masks = how.get('masks', multiblock3d)(2, Grid(4,4,4), gen=gen())
    out = m(torch.randn(2, 3, 8, 16, 16, generator=gen()), masks)
    out.loss.backward()
    assert out.loss.isfinite() and all(p.grad is None for p in m.target_encoder.parameters())
    seen = [n for n,p in m.named_parameters() if p.requires_grad and p.grad is None and 'mask_tokens' not in n]
    assert not seen

def test_slots_alone_and_whole_agree_on_one_slot():
    a,b = SlotTargets(cfg, gen=gen()),VJEPA2(cfg, gen=gen())
    clip = torch.randn(2, 3, 2, 16, 16, generator=gen())
    torch.testing.assert_close(a.targets(clip), b.targets(clip))

@settings(max_examples=40, deadline=None)
@given(st.integers(0, 252_000))
def test_phases_are_one_schedule(step):
    phase,lr = phase_at(step)
    done = min(step+1, 252_000)
    assert lr == pytest.approx(wsd(done, 252_000, 12_000, 5.25e-4, 12_000, 1e-6, 1e-4), rel=1e-9)
    assert phase.frames == (64 if step>=240_000 else 16)
    assert sum(p.steps for p in vjepa2_phases) == 252_000

def test_recall_counts_classes_alike():
    y = torch.tensor([0]*90+[1]*10)
    s = torch.zeros(100, 3); s[:,0] = 1
    assert class_recall(s, y) == .5 and class_recall(s, y, 3) == 1.
    for k in (0, 4):
        with pytest.raises(ValueError, match=f'got {k}'): class_recall(s, y, k)

class Stop(Exception): pass

def test_interrupted_training_goes_on(tmp_path):
    r = replace(Setup(), size=16, clips=32, steps=70, dim=24, heads=2, pred_dim=24, pred_heads=2, depth=1,
        pred_depth=1, bs=4)
    clips = torch.randint(0, 256, (32, 3, 8, 16, 16), generator=gen(), dtype=torch.uint8)
    whole,rows,_ = pretrain(r, clips, 0, tmp_path/'a')
    def stop(info):
        if info['done']>=60: raise Stop('in the middle')
    with pytest.raises(Stop): pretrain(r, clips, 0, tmp_path/'b', report=lambda i: stop(i))
    again,rest,_ = pretrain(r, clips, 0, tmp_path/'b')
    assert [o['loss'] for o in rest] == [o['loss'] for o in rows]
    for a,b in zip(whole.state_dict().values(), again.state_dict().values()): assert torch.equal(a, b)

def test_scales():
    jobs = study_jobs('toy', range(3), variants=True)
    assert len({j.key for j in jobs}) == len(jobs)
    from vidlit.studies.vjepa2 import cost
    assert cost('paper')[0]['encoder'] == '303.9 M' and [c['tokens'] for c in cost('paper')] == [2048, 2048, 18432]

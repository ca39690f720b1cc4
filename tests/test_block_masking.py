"Block masks against a plain re-telling of the official generator, and what every draw keeps."
import pytest
import torch
from hypothesis import given, settings, strategies as st
from vidlit.nn.tokens import Grid
from vidlit.pretrain.block_masking import (
    Blocks,
    BlockSpec,
    as_blocks,
    block_size,
    document_blocks,
    draw_union,
    long,
    multiblock,
    multiblock3d,
    predictive_blocks,
    predictive_mask,
    short,
)


def gen(seed=0): return torch.Generator().manual_seed(seed)

quick = settings(max_examples=40, deadline=None)
grids = st.builds(Grid, st.integers(1, 6), st.integers(3, 10), st.integers(3, 10))
specs = st.builds(BlockSpec, st.integers(1, 4), st.floats(.05, .6), st.just((.75,1.5)),
    st.sampled_from([1., .5, (.3,1.)]))


def plain(pred):
    "Lists cut to the shortest of the batch, lowest numbers kept: loops, no tensors"
    ctx = [[i for i,p in enumerate(row) if not p] for row in pred.tolist()]
    tgt = [[i for i,p in enumerate(row) if p] for row in pred.tolist()]
    k,m = min(map(len, ctx)),min(map(len, tgt))
    return [o[:k] for o in ctx],[o[:m] for o in tgt]

@quick
@given(grids, specs, st.integers(0, 2**31), st.integers(1, 5))
def test_faithful_is_the_plain_cut(grid, spec, seed, b):
    try: pred = draw_union(b, grid, spec, gen(seed))
    except ValueError: return # no context can be left on so small a grid
    ctx,tgt = plain(pred)
    o = as_blocks(pred)
    assert o.keep.tolist()==ctx and o.targ.tolist()==tgt and o.keep_valid is None and o.targ_valid is None

@quick
@given(grids, specs, st.integers(0, 2**31), st.integers(1, 5), st.sampled_from(['faithful','unbiased','padded']))
def test_every_draw(grid, spec, seed, b, how):
    draw = lambda: multiblock(b, grid, gen(seed), spec.blocks, spec.scale, spec.aspect, spec.time, how)
    try: o = draw()
    except ValueError: return
    keep,targ = o.mask(grid.n),o.mask(grid.n, 'targ')
    assert not (keep&targ).any() and keep.any(1).all() and targ.any(1).all()
    assert o.keep.dtype==o.targ.dtype==torch.int64
    for idx,ok in ((o.keep,o.keep_valid),(o.targ,o.targ_valid)):
        rows = idx if ok is None else [r[v] for r,v in zip(idx, ok)]
        assert all((r.diff()>0).all() for r in rows) # ascending, no doubles
    if how=='padded': assert (keep|targ).all()
    else: assert o.keep_valid is None and len(set(keep.sum(1).tolist()))==1
    for a,c in zip(o, draw()): assert a is c is None or torch.equal(a, c)

def test_all_hows_share_the_draw():
    grid = Grid(4,8,8)
    whole,cut,fair = (multiblock(6, grid, gen(3), how=h) for h in ('padded','faithful','unbiased'))
    for o in cut,fair:
        assert not (o.mask(256) & ~whole.mask(256)).any() and not (o.mask(256, 'targ') & ~whole.mask(256, 'targ')).any()
    assert cut.keep.shape==fair.keep.shape and cut.targ.shape==fair.targ.shape

def test_unbiased_loses_no_slot():
    grid = Grid(8,14,14)
    slots = lambda how: torch.stack([multiblock(24, grid, gen(i), how=how).mask(grid.n).view(24,8,
        196).sum((0,2)).float() for i in range(30)]).mean(0)
    fair,cut = slots('unbiased'),slots('faithful')
    assert fair.min()>.95*fair.max() and cut[-1]<.15*cut[0]
    assert abs(float(fair.sum()/cut.sum())-1)<1e-6

@pytest.mark.parametrize('spec,mean', [(short,.627), (long,.813)])
def test_published_fraction(spec, mean):
    g = gen(1)
    assert abs(torch.cat([draw_union(1, Grid(8,14,14), spec, g).float().mean(1) for _ in range(1500)]).mean()-mean)<.012

def test_block_size_by_hand():
    "Three uniform numbers in the order time, scale, aspect; rounding as Python rounds"
    for seed in range(50):
        g = gen(seed)
        r = [torch.rand(1, generator=g).item() for _ in range(3)]
        t,s,a = .25+r[0]*.75, .1+r[1]*.4, .75+r[2]*.75
        n = int(14*14*s)
        want = max(1, int(8*t)), min(int(round((n*a)**.5)), 14), min(int(round((n/a)**.5)), 14)
        assert tuple(block_size(Grid(8,14,14), BlockSpec(8, (.1,.5), (.75,1.5), (.25,1.)), gen(seed)))==want

def test_places_are_uniform():
    size = Grid(8,5,5)
    from vidlit.pretrain.block_masking import block_union
    m = block_union(4000, Grid(8,14,14), size, 1, gen()).view(-1, 8, 14, 14)
    top = m[:,0].any(2).int().argmax(1)
    share = torch.bincount(top, minlength=10)/4000
    assert len(share)==10 and (share-.1).abs().max()<.02 and torch.equal(m.sum((1,2,3)), torch.full((4000,), 200))

def test_one_size_per_batch_and_two_kinds():
    near,far = multiblock3d(8, Grid(8,14,14), gen(2))
    assert near.keep.shape[1]!=far.keep.shape[1] and len(near.keep)==len(far.keep)==8
    ones = multiblock(16, Grid(2,14,14), gen(5), blocks=1, how='padded').mask(392, 'targ').sum(1)
    assert len(ones.unique())==1

def test_predictive_counts():
    m = predictive_mask(3, Grid(5,4,4), gen(), .3, .9)
    assert m[:, :32].sum(1).tolist()==[9]*3 and m[:, 32:].sum(1).tolist()==[43]*3
    o = predictive_blocks(3, Grid(5,4,4), gen())
    assert torch.equal(~o.mask(80), m)

def test_document_block_is_80_to_90_percent():
    f = torch.tensor([document_blocks(2, Grid(8,14,14), gen(i)).targ.shape[1]/1568 for i in range(200)])
    assert .78<f.min() and f.max()<.94
    for g in (Grid(2,4,4), Grid(4,6,6), Grid(1,2,1)): # small grids keep some context
        for i in range(20): assert document_blocks(3, g, gen(i)).keep.shape[1]>0

@pytest.mark.parametrize('kw,say', [(dict(how='fair'), 'fair'), (dict(scale=1.5), 'fractions'), (dict(scale=0.), '0.0'),
    (dict(aspect=(2.,1.)), r'\(2.0, 1.0\)'), (dict(scale=1., aspect=1.), 'no context'),
    (dict(scale=.9, aspect=1., blocks=200), 'no context')])
def test_refusals(kw, say):
    with pytest.raises(ValueError, match=say): multiblock(2, Grid(2,6,6), gen(), **kw)

def test_rows_and_devices():
    o = multiblock(4, Grid(2,6,6), gen(), how='padded')
    assert torch.equal(o.rows(slice(2,4)).keep, o.keep[2:]) and isinstance(o.to('cpu'), Blocks)

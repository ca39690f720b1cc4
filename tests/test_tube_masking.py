"Properties every mask keeps, whatever the grid, ratio and seed."
import pytest
import torch
from hypothesis import given, settings, strategies as st
from vidlit.nn.tokens import Grid, split_mask
from vidlit.pretrain.tube_masking import (
    choose,
    copy_source,
    document_mask,
    exposed,
    frame_mask,
    leakage,
    random_mask,
    slot_mask,
    space_mask,
    time_mask,
    tube_mask,
)


def gen(seed=0): return torch.Generator().manual_seed(seed)

grids = st.builds(Grid, st.integers(2, 8), st.integers(2, 8), st.integers(2, 8))
quick = settings(max_examples=40, deadline=None)
kinds = [tube_mask, random_mask, slot_mask, space_mask, time_mask, frame_mask, document_mask]

def draw(f, b, grid, ratio, seed):
    "A mask, or None where the ratio leaves nothing hidden or nothing visible"
    try: return f(b, grid, ratio, gen(seed))
    except ValueError: return None

@quick
@given(grids, st.floats(.05, .95), st.integers(0, 2**31), st.integers(1, 4), st.sampled_from(kinds))
def test_every_mask(grid, ratio, seed, b, f):
    m = draw(f, b, grid, ratio, seed)
    if m is None: return
    assert m.shape==(b, grid.n) and m.dtype==torch.bool
    keep,hidden = split_mask(m) # refuses ragged masks
    assert 0 < hidden.shape[1] < grid.n and keep.shape[1]+hidden.shape[1]==grid.n
    assert torch.equal(m, draw(f, b, grid, ratio, seed))

@quick
@given(grids, st.floats(.05, .95), st.integers(0, 2**31))
def test_tube(grid, ratio, seed):
    m = draw(tube_mask, 3, grid, ratio, seed)
    if m is None:
        assert int(ratio*grid.h*grid.w)==0
        return
    slots = m.view(3, grid.t, -1)
    assert (slots==slots[:, :1]).all() and (slots.sum(-1)==int(ratio*grid.h*grid.w)).all()
    assert exposed(m, grid)==0 and torch.equal(copy_source(m, grid)[1], ~m)
    assert leakage(torch.rand(3, grid.n, 12, generator=gen(seed)), m, grid)==0

@quick
@given(grids, st.floats(.05, .95), st.integers(0, 2**31))
def test_counts_of_the_others(grid, ratio, seed):
    m = draw(slot_mask, 2, grid, ratio, seed)
    if m is not None: assert (m.view(2, grid.t, -1).sum(-1)==int(ratio*grid.h*grid.w)).all()
    m = draw(random_mask, 2, grid, ratio, seed)
    if m is not None: assert (m.sum(1)==int(ratio*grid.n)).all()
    m = draw(time_mask, 2, grid, ratio, seed)
    if m is not None:
        assert ((s := m.view(2, grid.t, -1).sum(-1)) % (grid.h*grid.w)==0).all() and (s.sum(1)==m[0].sum()).all()

@quick
@given(st.integers(2, 30), st.integers(0, 2**31))
def test_choose(n, seed):
    for k in (1, n-1): assert (choose(5, n, k, gen(seed)).sum(1)==k).all()
    for k in (0, n, n+1, -1):
        with pytest.raises(ValueError, match=f'{k} of {n}'): choose(5, n, k, gen(seed))

@quick
@given(grids, st.integers(0, 2**31))
def test_copy_source_is_visible_and_nearest(grid, seed):
    m = draw(random_mask, 1, grid, .6, seed)
    if m is None: return
    src,shown = copy_source(m, grid)
    hw = grid.h*grid.w
    for i in range(grid.n):
        visible = [j for j in range(i%hw, grid.n, hw) if not m[0, j]]
        assert bool(shown[0, i])==bool(visible)
        if visible: assert int(src[0, i]) in visible and abs(int(src[0, i])-i)==min(abs(j-i) for j in visible)

def test_paper_grid():
    m = tube_mask(64, Grid(8,14,14), .9, gen())
    assert (m.sum(1)==1408).all() and len(m.unique(dim=0))==64

def test_no_global_randomness():
    state = torch.get_rng_state()
    for f in kinds: f(2, Grid(8,4,4), .5, gen=gen())
    assert torch.equal(state, torch.get_rng_state())

def test_every_cell_equally_often():
    for f in (tube_mask, random_mask, slot_mask):
        rate = f(4000, Grid(2,4,4), .75, gen()).float().mean(0)
        assert (rate-.75).abs().max() < .05

def test_document_mixes():
    n = torch.stack([document_mask(2, Grid(8,14,14), .9, gen(i)).sum(1) for i in range(60)])
    assert (n[:, 0]==n[:, 1]).all() and set(n.flatten().tolist())=={1408, 784} and 15 < int((n[:, 0]==784).sum()) < 45

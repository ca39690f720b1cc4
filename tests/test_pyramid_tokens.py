"Token merging and run-length tokens: definition, properties, rotary models, gradients"
import pytest
import torch
from hypothesis import given, settings, strategies as st
from vidlit.nn.tokens import Rope3D
from vidlit.nn.vit import ViT, ViTConfig, init_vit
from vidlit.pyramid.token_merging import (
    RunLength,
    ToMe,
    changed,
    merge,
    merge_ref,
    ragged,
    run_merged,
    runs_of,
    schedule,
    soft_match,
    unmerge,
)

CFG = ViTConfig(dim=48, depth=3, heads=2, patch=(2,8,8))


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 24), st.integers(0, 15), st.integers(0, 3), st.integers(0, 10**6))
def test_merge_is_its_definition(n, r, protect, seed):
    gen = torch.Generator().manual_seed(seed)
    protect = min(protect, n)
    x, m = torch.randn(2, n, 5, generator=gen), torch.randn(2, n, 3, generator=gen)
    size = torch.randint(1, 9, (2, n, 1), generator=gen).float()
    most = min(r, (n-protect)//2)
    to, left = soft_match(m, r, protect)
    assert left == n-most
    if not most:  # nothing moves
        assert torch.equal(to, torch.arange(n).expand(2, n))
        return
    out, new = merge(x, to, left, size)
    want, sizes, place = merge_ref(x, m, most, size, protect)
    torch.testing.assert_close(out, want, atol=1e-5, rtol=1e-5)
    assert torch.equal(new, sizes) and torch.equal(to, place)
    assert torch.equal(new.sum(1), size.sum(1))


def test_source_follows_the_tokens():
    gen = torch.Generator().manual_seed(0)
    vit = init_vit(ViT(CFG), gen=gen).eval()
    clip = torch.randn(2, 3, 4, 32, 32, generator=gen)
    tok, source, size = ToMe(vit, 5)(clip, trace=True)
    count = torch.zeros(2, tok.shape[1]).scatter_add(1, source, torch.ones(2, 32))
    assert torch.equal(count, size[...,0])
    assert unmerge(tok, source).shape == (2, 32, 48)


def test_protected_tokens_stay_first():
    gen = torch.Generator().manual_seed(0)
    for protect in (1, 2, 3):
        to, n = soft_match(torch.randn(4, 20, 3, generator=gen), 6, protect)
        for i in range(protect):
            group = (to == to[:,i:i+1]).sum(1)
            assert torch.equal(group, torch.ones(4, dtype=torch.int64))  # nothing joins it


def test_class_token_keeps_place_zero():
    gen = torch.Generator().manual_seed(0)
    vit, tok = init_vit(ViT(CFG), gen=gen), torch.randn(2, 17, 48, generator=gen)
    out, source, size = run_merged(vit.blocks, tok, schedule(3, 3), protect=1)
    assert (source[:,0] == 0).all() and (size[:,0] == 1).all() and out.shape[1] == 8


def test_rotary_model_with_r_zero_and_more():
    gen = torch.Generator().manual_seed(0)
    vit = init_vit(ViT(CFG, pos=Rope3D(24)), gen=gen).eval()
    clip = torch.randn(2, 3, 4, 32, 32, generator=gen)
    torch.testing.assert_close(ToMe(vit, 0)(clip), vit(clip))
    assert ToMe(vit, 4)(clip).shape == (2, 20, 48)


def test_gradients_pass_the_merge():
    gen = torch.Generator().manual_seed(0)
    x = torch.randn(1, 8, 4, generator=gen, dtype=torch.float64, requires_grad=True)
    to, n = soft_match(x.detach(), 3)
    assert torch.autograd.gradcheck(lambda o: merge(o, to, n)[0], (x,))


def test_changed_follows_the_released_rule():
    "The last frame of a slot against the first of the slot before"
    clip = torch.zeros(1, 3, 4, 8, 8)
    clip[:,:,1] = 1.  # second frame of slot 0: neither compared frame
    assert changed(clip, (2,8,8)).flatten().tolist() == [True, False]
    clip[:,:,2] = 1.  # first frame of slot 1 only
    assert changed(clip, (2,8,8)).flatten().tolist() == [True, False]
    clip[:,:,3] = .11
    assert changed(clip, (2,8,8)).flatten().tolist() == [True, True]
    clip[:,:,3] = .09
    assert changed(clip, (2,8,8)).flatten().tolist() == [True, False]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=12))
def test_runs(bits):
    keep = torch.tensor([True]+bits)[None,:,None]
    start, length = (o.flatten().tolist() for o in runs_of(keep))
    assert all(keep.flatten()[s] for s in start) and sum(length[s] for s in set(start)) == len(bits)+1


def test_ragged_puts_the_kept_first():
    keep = torch.tensor([[True, False, True, False], [True, False, False, False]])
    idx, valid = ragged(keep)
    assert idx[0].tolist() == [0, 2] and idx[1,0] == 0 and valid.tolist() == [[True, True], [True, False]]


def test_length_embedding_starts_silent_and_learns():
    gen = torch.Generator().manual_seed(0)
    vit = init_vit(ViT(CFG), gen=gen).eval()
    still = torch.randn(2, 3, 1, 32, 32, generator=gen).expand(-1, -1, 6, -1, -1)
    off, on = RunLength(vit), RunLength(vit, lengths=8)
    assert torch.equal(off(still), on(still))
    on(still).pow(3).sum().backward()
    assert on.length.weight.grad.abs().sum(1).nonzero().flatten().tolist() == [2]  # runs of three


def test_refusals():
    with pytest.raises(ValueError, match='slope'): schedule((4, 2), 3)
    with pytest.raises(ValueError, match='by must be'): RunLength(ViT(CFG), by='x')

"Tokens: properties, and equality with the sources' own formulas"
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from vidlit.nn.tokens import (
    Grid,
    Rope3D,
    denorm_patches,
    grid_of,
    norm_patches,
    patchify,
    put,
    resize_pos,
    rope_angles,
    rotate,
    sincos_1d,
    sincos_2d,
    sincos_3d,
    split_mask,
    take,
    take_patches,
    unpatchify,
)

quick = settings(max_examples=25, deadline=None)
side = st.integers(1, 4)

def film(b, c, grid, patch, seed=0):
    gen = torch.Generator().manual_seed(seed)
    return torch.rand(b, c, *(g*p for g,p in zip(grid, patch)), generator=gen)

def some_mask(b, n, k, seed=0):
    gen = torch.Generator().manual_seed(seed)
    return torch.rand(b, n, generator=gen).argsort(1).argsort(1) < k

# patches

@quick
@given(grid=st.tuples(side, side, side), patch=st.tuples(side, side, side), c=st.integers(1, 4),
    order=st.sampled_from(['pixel','channel']))
def test_there_and_back(grid, patch, c, order):
    clip = film(2, c, grid, patch)
    tok = patchify(clip, patch, order)
    assert tuple(grid_of(clip, patch))==grid and tok.shape==(2, np.prod(grid), c*np.prod(patch))
    assert torch.equal(unpatchify(tok, Grid(*grid), patch, order), clip)

@quick
@given(grid=st.tuples(side, side, side), patch=st.tuples(side, side, side), data=st.data())
def test_a_token_is_a_block(grid, patch, data):
    clip = film(1, 3, grid, patch)
    i,j,k = (data.draw(st.integers(0, g-1)) for g in grid)
    (p,q,r),n = patch,(i*grid[1]+j)*grid[2]+k
    block = clip[0,:,i*p:i*p+p,j*q:j*q+q,k*r:k*r+r]
    assert torch.equal(patchify(clip, patch, 'channel')[0,n], block.flatten())
    assert torch.equal(patchify(clip, patch, 'pixel')[0,n], block.permute(1,2,3,0).flatten())

def test_channel_order_is_a_convolution():
    conv,clip = nn.Conv3d(3, 8, (2,4,4), (2,4,4)),film(2, 3, (2,3,4), (2,4,4))
    want = conv(clip).flatten(2).mT
    torch.testing.assert_close(patchify(clip, (2,4,4), 'channel')@conv.weight.flatten(1).T + conv.bias, want)

@quick
@given(seed=st.integers(0, 99), k=st.integers(1, 24), order=st.sampled_from(['pixel','channel']))
def test_some_patches(seed, k, order):
    clip = film(3, 3, (2,3,4), (2,4,4), seed)
    idx = split_mask(some_mask(3, 24, k, seed))[1]
    assert torch.equal(take_patches(clip, idx, (2,4,4), order), take(patchify(clip, (2,4,4), order), idx))

@pytest.mark.parametrize('k', [2, 20])
def test_gradient_reaches_the_clip(k):
    clip = film(2, 3, (2,3,4), (1,2,2)).requires_grad_()
    idx = split_mask(some_mask(2, 24, k))[1]
    take_patches(clip, idx, (1,2,2)).sum().backward()
    assert clip.grad.sum()==2*k*12 and clip.grad.max()==1

def test_other_types_and_memory_layouts():
    clip = film(1, 3, (1,2,2), (2,4,4))
    for dtype in (torch.uint8, torch.float16, torch.bfloat16, torch.float64): assert patchify((clip*9).to(dtype),
        (2,4,4)).dtype==dtype
    stored = clip.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(patchify(stored, (2,4,4)), patchify(clip, (2,4,4)))

@pytest.mark.parametrize('shape,patch,word',
    [((1,3,15,32,32), (2,16,16), 'frames 15'), ((1,3,16,30,32), (2,16,16), 'height 30'),
    ((1,3,16,32,0), (2,16,16), 'width 0'), ((3,16,32,32), (2,16,16), '5 axes'),
        ((1,3,2,32,32), (16,), 'needs a tensor')])
def test_refused(shape, patch, word):
    with pytest.raises(ValueError, match=word): patchify(torch.zeros(shape), patch)

# targets

@pytest.mark.parametrize('kind', ['videomae','omnimae'])
def test_targets_against_the_formula(kind):
    x = film(2, 3, (2,2,2), (2,4,4)).double()
    tok = patchify(x, (2,4,4)).unflatten(-1, (-1,3))
    var,mean = tok.var(-2, unbiased=True, keepdim=True),tok.mean(-2, keepdim=True)
    want = (tok-mean)/(var.sqrt()+1e-6 if kind=='videomae' else (var+1e-6).sqrt())
    torch.testing.assert_close(norm_patches(patchify(x, (2,4,4)), kind)[0], want.flatten(-2), rtol=1e-12, atol=1e-12)

def test_targets_leave_the_input_alone_and_carry_gradients():
    tok = torch.rand(1, 2, 48, dtype=torch.float64)
    was = tok.clone()
    norm_patches(tok)
    assert torch.equal(tok, was)
    assert torch.autograd.gradcheck(lambda x: norm_patches(x)[0], tok.requires_grad_())

def test_flat_patches_stay_finite():
    for kind in ('videomae','omnimae','joint'):
        normed,mean,std = norm_patches(torch.full((1,1,48), .5), kind)
        assert normed.abs().max()==0 and torch.equal(denorm_patches(normed, mean, std), torch.full((1,1,48), .5))

# masks

@quick
@given(b=st.integers(1, 4), n=st.integers(1, 40), data=st.data())
def test_split_take_put(b, n, data):
    k = data.draw(st.integers(0, n))
    mask = some_mask(b, n, k, n)
    keep,hidden = split_mask(mask)
    assert keep.shape==(b, n-k) and hidden.shape==(b, k) and keep.dtype==torch.int64
    assert torch.equal(torch.cat((keep,hidden), 1).sort(1)[0], torch.arange(n).expand(b, n))
    for a,v in zip((keep,hidden), (False,True)):
        assert (a.diff(dim=1)>0).all() and (mask.gather(1, a)==v).all()
    assert all(torch.equal(*o) for o in zip(split_mask(mask, k), (keep,hidden)))
    tok = torch.rand(b, n, 3)
    assert torch.equal(put(take(tok, keep), keep, n) + put(take(tok, hidden), hidden, n), tok)

def test_ragged_masks_are_named():
    mask = torch.zeros(3, 6, dtype=torch.bool)
    mask[0,:2],mask[1,:3],mask[2,:2] = True,True,True
    with pytest.raises(ValueError, match='samples hide 2, 3 of 6'): split_mask(mask)
    with pytest.raises(ValueError, match='float32'): split_mask(mask.float())

def test_take_and_put_gradients():
    tok,idx = torch.rand(2, 5, 3, dtype=torch.float64, requires_grad=True),torch.tensor([[0,2,2],[4,1,0]])
    assert torch.autograd.gradcheck(lambda x: take(x, idx), tok)
    fill = torch.rand(3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x,f: put(x[:,:2], idx[:,:2], 5, f), (tok,fill))

# position tables

def test_videomae_table_bit_for_bit():
    n,d = 1568,384
    want = np.arange(n)[:,None]/np.power(10000, 2*(np.arange(d)//2)/d)
    want[:,0::2],want[:,1::2] = np.sin(want[:,0::2]),np.cos(want[:,1::2])
    assert torch.equal(sincos_1d(n, d), torch.tensor(want).float())

@pytest.mark.parametrize('uniform', [False, True])
@pytest.mark.parametrize('d', [48, 64])
def test_jepa_table(uniform, d):
    def one(pos, k): return np.concatenate(
        [f(np.outer(pos, 1/10000**(np.arange(k//2)/(k/2)))) for f in (np.sin,np.cos)], 1)
    grid = Grid(3,4,5)
    t,h,w = (o.ravel() for o in np.meshgrid(*(np.arange(n) for n in grid), indexing='ij'))
    share = [int(np.ceil(d/6)*2)]*3 if uniform else [d//2, d//4, d//4]
    want = np.concatenate([one(p, k) for p,k in zip((t,h,w), share)], 1)[:,:d]
    np.testing.assert_allclose(sincos_3d(grid, d, uniform), want, atol=1e-6)

def test_image_table_orders():
    a,b = sincos_2d(3, 5, 16),sincos_2d(3, 5, 16, w_first=True)
    assert torch.equal(a[:,:8], b[:,8:]) and torch.equal(a[:5,:8], a[:1,:8].expand(5, 8))

def test_stretching_is_trilinear_interpolation():
    pos,grid,new = sincos_3d(Grid(4,6,6), 24),Grid(4,6,6),Grid(8,9,12)
    x = pos.view(1,4,6,6,24).permute(0,4,1,2,3)
    want = nn.functional.interpolate(x, scale_factor=(2,1.5,2), mode='trilinear').permute(0,2,3,4,1).reshape(-1, 24)
    torch.testing.assert_close(resize_pos(pos, grid, new), want, atol=1e-6, rtol=0)

# rotary positions

def test_legacy_rope_equals_transformers():
    from transformers.models.vjepa2.modeling_vjepa2 import rotate_queries_or_keys
    grid,x = Grid(2,3,4),torch.randn(1, 2, 24, 64)
    cut = torch.cartesian_prod(*(torch.arange(float(n)) for n in grid)).T
    want = torch.cat([rotate_queries_or_keys(x[...,20*i:20*i+20], cut[i].view(1,1,-1).expand(1,2,-1))
        for i in range(3)]+[x[...,60:]], -1)
    torch.testing.assert_close(rotate(x, *Rope3D(64, legacy_tiled=True)(grid)), want, atol=1e-5, rtol=0)

@quick
@given(a=st.integers(0, 63), b=st.integers(0, 63), seed=st.integers(0, 9))
def test_clean_rope_keeps_lengths_and_sees_differences_only(a, b, seed):
    gen,grid,rope = torch.Generator().manual_seed(seed),Grid(8,8,8),Rope3D(32)
    q,k = torch.randn(2, 1, 1, 1, 32, generator=gen)
    at = lambda x,n: rotate(x, *rope(grid, torch.tensor([[n]])))
    up = lambda n: (n//16+1)*64 + (n//4%4+1)*8 + n%4 # the same cell of a 4x4x4 corner, and one slot and row on
    down = lambda n: n//16*64 + n//4%4*8 + n%4
    torch.testing.assert_close(at(q, a).norm(), q.norm())
    torch.testing.assert_close((at(q, up(a))*at(k, up(b))).sum(), (at(q, down(a))*at(k, down(b))).sum(),
        atol=1e-4, rtol=1e-4)

def test_cached_tables_survive_odd_contexts():
    rope_angles.cache_clear()
    with torch.inference_mode(), torch.device('meta'): Rope3D(24)(Grid(2,2,2), device='cpu')
    cos,sin = Rope3D(24)(Grid(2,2,2))
    assert cos.device.type=='cpu' and not cos.is_inference()
    x = torch.randn(1, 1, 8, 24, requires_grad=True)
    rotate(x, cos, sin).sum().backward()

def test_half_precision_angles_differ():
    a,b = Rope3D(64)(Grid(64,2,2))[0],Rope3D(64, angle_dtype=torch.bfloat16)(Grid(64,2,2))[0]
    assert .05 < (a-b).abs().max() < 1

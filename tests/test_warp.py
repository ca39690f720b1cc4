"Properties of warping: identity, whole-pixel shifts, conservation, agreement of the two directions, refusals"
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.nn import functional as F
from vidlit.worlds.camera import look_at, make_K, stereo_pose
from vidlit.worlds.warp import (
    backward_warp,
    depth_occlusion,
    fb_occlusion,
    flow_from_depth,
    forward_splat,
    in_view,
    sample_at,
    splat_sum,
    warp_by_depth,
)

quick = settings(deadline=None, max_examples=15)
seeds, sizes, lead = st.integers(0, 10**6), st.integers(2, 24), st.sampled_from([(), (2,), (2, 3)])


def rand(seed, *shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def shift(x, dx, dy):
    "A constant flow for a map"
    return x.new_tensor([dx, dy])[:, None, None].expand(*x.shape[:-3], 2, *x.shape[-2:])


@quick
@given(seeds, lead, sizes, sizes, st.sampled_from(['bilinear', 'nearest', 'bicubic']))
def test_standing_still_is_the_identity(seed, lead, h, w, mode):
    x = rand(seed, *lead, 3, h, w)
    torch.testing.assert_close(backward_warp(x, shift(x, 0, 0), mode), x)
    out, hole = forward_splat(x, shift(x, 0, 0), 1+rand(seed, *lead, 1, h, w))
    torch.testing.assert_close(out, x)
    assert not hole.any() and not fb_occlusion(shift(x, 0, 0), shift(x, 0, 0)).any()


@quick
@given(seeds, sizes, sizes, st.integers(-3, 3), st.integers(-3, 3))
def test_whole_pixels(seed, h, w, dx, dy):
    "Backward by a whole number is a roll, but for the border; forward is the roll the other way"
    x = rand(seed, 2, h, w)
    flow, keep = shift(x, dx, dy), in_view(shift(x, dx, dy))[0]
    assert keep.sum() == max(0, h-abs(dy))*max(0, w-abs(dx))
    torch.testing.assert_close(backward_warp(x, flow)[:, keep], x.roll((-dy, -dx), (1, 2))[:, keep])
    out, hole = forward_splat(x, flow)
    came = in_view(-flow)[0]
    assert torch.equal(~hole[0], came)
    torch.testing.assert_close(out[:, came], x.roll((dy, dx), (1, 2))[:, came])


@quick
@given(seeds, lead, sizes, sizes, st.floats(.1, 3))
def test_splat_conserves(seed, lead, h, w, speed):
    "What does not leave arrives: pad the picture by more than the speed and nothing is lost"
    x, flow = rand(seed, *lead, 3, h, w), speed*(2*rand(seed+1, *lead, 2, h, w)-1)
    pad = (5,)*4
    wide = splat_sum(F.pad(x, pad), F.pad(flow, pad))
    torch.testing.assert_close(wide.sum((-2, -1)), x.sum((-2, -1)))
    assert (splat_sum(x, flow).sum((-2, -1)) <= x.sum((-2, -1)) + 1e-9).all()


@quick
@given(seeds, sizes, sizes, st.floats(.1, 3))
def test_splat_is_the_transpose_of_fetching(seed, h, w, speed):
    "<fetch(y), x> = <y, splat(x)>, which also proves its weights"
    x, y, flow = rand(seed, 2, h, w), rand(seed+1, 2, h, w), speed*(2*rand(seed+2, 2, h, w)-1)
    fetched = backward_warp(y, flow, pad='zeros')
    torch.testing.assert_close((fetched*x).sum(), (y*splat_sum(x, flow)).sum())


@quick
@given(seeds, sizes, sizes, st.floats(.1, 3))
def test_splat_stays_in_range(seed, h, w, speed):
    x, flow, z = rand(seed, 3, h, w), speed*(2*rand(seed+1, 2, h, w)-1), 1+5*rand(seed+2, 1, h, w)
    out, hole = forward_splat(x, flow, z)
    assert out.min() >= 0 and out.max() <= x.max() + 1e-9
    assert (out[:, hole[0]] == 0).all() and not forward_splat(x*0+1, flow, z)[0][:,
        ~hole[0]].sub(1).abs().gt(1e-9).any()


def test_the_nearest_wins_in_any_order():
    x, flow = torch.tensor([[[1., 2, 3, 0]]]), torch.tensor([[[2., 1, 0, 0]], [[0., 0, 0, 0]]])
    for z, who in ([1., 2, 3, 9], 1), ([3., 1, 2, 9], 2), ([3., 2, 1, 9], 3):
        assert forward_splat(x, flow, torch.tensor([[z]]))[0][0, 0, 2] == who
    assert forward_splat(x, flow)[0][0, 0, 2] == 2


@quick
@given(seeds, st.floats(.02, .4))
def test_depth_warp_equals_flow_warp(seed, base):
    K, a = make_K(60, 12, 16).double(), look_at(rand(seed, 3), torch.tensor([0., 0, 6], dtype=torch.float64))
    b, x, z = stereo_pose(a, base), rand(seed+1, 3, 12, 16), 2+rand(seed+2, 1, 12, 16)
    flow = flow_from_depth(z, K, a, b)
    torch.testing.assert_close(flow[0], -K[0, 0]*base/z[0])
    torch.testing.assert_close(warp_by_depth(x, z, K, b, a), backward_warp(x, flow))
    torch.testing.assert_close(flow_from_depth(z, K, a, a), torch.zeros_like(flow), atol=1e-9, rtol=0)


def test_a_wall_hides_nothing():
    K, a = make_K(60, 12, 16), torch.eye(4)
    b, z = stereo_pose(a, .3), torch.full((1, 12, 16), 4.)
    fw, bw = flow_from_depth(z, K, a, b), flow_from_depth(z, K, b, a)
    assert torch.equal(fb_occlusion(fw, bw), ~in_view(fw))
    assert torch.equal(depth_occlusion(z, z, K, a, b), ~in_view(fw))


def test_not_finite_flow_goes_nowhere():
    x, flow = torch.ones(1, 4, 4), torch.zeros(2, 4, 4)
    flow[0, 1, 1], flow[1, 2, 2] = float('nan'), float('inf')
    total = splat_sum(x, flow)
    assert total.sum() == 14 and torch.isfinite(total).all()
    out, hole = forward_splat(x, flow, x)
    assert hole.sum() == 2 and torch.isfinite(out).all()
    assert in_view(flow).sum() == 14


def test_gradients():
    x, flow = rand(0, 2, 5, 6).requires_grad_(), (rand(1, 2, 5, 6)-.5).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, f: backward_warp(x, f), (x, flow), atol=1e-4)
    assert torch.autograd.gradcheck(splat_sum, (x, flow), atol=1e-4)


one, still = torch.ones(3, 4, 4), torch.zeros(2, 4, 4)


@pytest.mark.parametrize('bad, words', [
    (lambda: backward_warp(one, torch.zeros(2, 4, 5)), '[2, 4, 5]'),
    (lambda: backward_warp(one, one), '[3, 4, 4]'),
    (lambda: forward_splat(torch.ones(2, 3, 4, 4), still), 'does not match'),
    (lambda: sample_at(torch.ones(2, 3, 4, 4), torch.zeros(4, 4, 2)), 'batch axes'),
    (lambda: forward_splat(one, still, torch.zeros(1, 4, 4)), 'smallest is 0'),
    (lambda: forward_splat(one, still, torch.ones(1, 4, 5)), '[1, 4, 5]')])
def test_refusals(bad, words):
    with pytest.raises(ValueError) as e: bad()
    assert words in str(e.value)

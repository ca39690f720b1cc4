"Properties of the depth measures and losses: invariances, masked pixels, batches, time reversal, slow references"
import math
from functools import partial
import pytest
import torch
from hypothesis import given, settings, strategies as st
from vidlit.depth.losses import (
    affine_loss,
    cutmix_loss,
    feature_loss,
    official_ssi,
    silog_loss,
    spread_norm,
    ssi_loss,
    tgm_loss,
    video_loss,
)
from vidlit.depth.measure import (
    DepthMap,
    Kind,
    accuracy,
    align,
    centre_spread,
    disparity_to_z,
    file_kind,
    fit_affine,
    fit_median,
    fit_spread,
    frame_errors,
    masked_mean,
    masked_median,
    valid_depth,
    z_to_disparity,
)
from vidlit.depth.stability import (
    boundary_f,
    carry_nearest,
    carry_splat,
    drift,
    flicker,
    opw,
    scale_jitter,
    seam_jump,
    static_pixels,
    tae,
    temporal_report,
)
from vidlit.worlds.camera import look_at, make_K
from vidlit.worlds.worlds import WorldConfig, make_worlds

quick = settings(deadline=None, max_examples=8)
seeds, sizes = st.integers(0, 10**6), st.integers(3, 10)
scales, shifts = st.floats(.05, 20), st.floats(-5, 5)
LOSSES = dict(ssi=ssi_loss, official=partial(ssi_loss, **official_ssi), trimmed=partial(ssi_loss, trim=.2),
    affine=affine_loss, silog=silog_loss,
    tgm=partial(tgm_loss, threshold=.5, strides=2), video=video_loss)


def gen(seed): return torch.Generator().manual_seed(seed)


def rand(seed, *shape): return torch.rand(*shape, generator=gen(seed), dtype=torch.float64)


def scene(seed, t=3, h=6, w=7, b=()):
    "Depth 1 to 5 m, a relative map of it with some error, and a mask"
    z = 1+4*rand(seed, *b, t, 1, h, w)
    return z, 1/z+.05*rand(seed+1, *z.shape), rand(seed+2, *z.shape) < .7


def walk(seed, b=2, t=4):
    "A still scene and a moving camera"
    return make_worlds(range(seed, seed+b), WorldConfig(t=t, h=16, w=20, motion='still', camera='orbit'),
        dtype=torch.float64)


def close(a, b, tol=1e-9):
    torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), rtol=tol, atol=tol, equal_nan=True,
        check_dtype=False)


# -- kinds
@quick
@given(seeds, sizes, sizes, st.floats(20, 110))
def test_round_trips(seed, h, w, fov):
    m = DepthMap(.1+50*rand(seed, 2, 1, h, w), 'depth', make_K(fov, h, w))
    for k in ('radius', 'disparity'): close(m.to_kind(k).to_kind('depth').data, m.data)
    close(m.to_kind('radius').to_kind('disparity').to_kind('radius').data, m.to_kind('radius').data)
    assert (m.to_kind('radius').data >= m.data).all()


def test_relative_goes_nowhere():
    m = DepthMap(torch.rand(1, 2, 2), Kind.relative)
    assert m.to_kind('relative') is m
    for k in ('depth', 'radius', 'disparity'):
        with pytest.raises(ValueError, match='unknown scale'): m.to_kind(k)
    for f in (frame_errors, accuracy, boundary_f):
        with pytest.raises(ValueError, match='unknown scale'): f(m, torch.rand(1, 2, 2))
    with pytest.raises(ValueError, match='unknown scale'):
        flicker(DepthMap(torch.rand(2, 1, 2, 2), 'relative'), torch.ones(1, 2, 2, dtype=torch.bool))


def test_no_reading_and_sky():
    z = torch.tensor([2., math.inf, 0., -3., math.nan])
    close(z_to_disparity(z), torch.tensor([.5, 0., math.nan, math.nan, math.nan]))
    close(disparity_to_z(z_to_disparity(z)), torch.tensor([2., math.inf, math.nan, math.nan, math.nan]))
    assert valid_depth(z, 10).tolist() == [True, False, False, False, False]
    with pytest.raises(ValueError, match='not known'): file_kind('disparity', 'm')


# -- alignment
@quick
@given(seeds, scales, shifts, st.sampled_from(['frame', 'clip']), st.sampled_from([fit_affine, fit_spread]))
def test_aligned_errors_do_not_know_scale_and_shift(seed, s, b, per, fit):
    z, rel, ok = scene(seed)
    one, two = (accuracy(align(r, z, ok, per, fit), z, ok) for r in (rel, s*rel+b))
    for k in one: close(one[k], two[k], 1e-6)
    assert one['abs_rel'] > 1e-3


@quick
@given(seeds, scales, st.sampled_from(['frame', 'clip']))
def test_median_fit_does_not_know_scale(seed, s, per):
    z, rel, ok = scene(seed)
    for x, y in zip(fit_median(s*rel, 1/z, ok, per), fit_median(rel, 1/z, ok, per)): close(x*s, y)


@quick
@given(seeds, st.sampled_from(['frame', 'clip']))
def test_least_squares_is_least(seed, per):
    z, rel, ok = scene(seed, b=(2,))
    s, b = fit_affine(rel, z, ok, per)
    cost = lambda s, b: masked_mean((s*rel+b-z)**2, ok, per=per)
    for ds, db in ((1e-3, 0), (-1e-3, 0), (0, 1e-3), (0, -1e-3)): assert (cost(s+ds, b+db) > cost(s, b)).all()


@quick
@given(seeds)
def test_integer_weights_are_copies(seed):
    z, rel, ok = scene(seed, t=1)
    w = torch.randint(0, 4, z.shape, generator=gen(seed))
    rep = lambda o: o[0, 0][ok[0, 0]].repeat_interleave(w[0, 0][ok[0, 0]]).reshape(1, 1, 1, -1)
    for a, b in zip(fit_affine(rel, z, ok, 'frame', w), fit_affine(rep(rel), rep(z), per='frame')): close(a, b)
    close(masked_mean(z, ok, w), masked_mean(rep(z)))


# -- holes
@quick
@given(seeds, st.sampled_from([math.nan, math.inf, -7., 0., 1e30]))
def test_holes_may_hold_anything(seed, junk):
    z, rel, ok = scene(seed)
    bad = lambda o: torch.where(ok, o, junk)
    for per in ('frame', 'clip'): close(align(bad(rel), bad(z), ok, per)[ok], align(rel, z, ok, per)[ok])
    for k, v in frame_errors(bad(rel), bad(z), ok).items(): close(v, frame_errors(rel, z, ok)[k])
    close(masked_median(bad(z), ok), torch.stack([f[o].median() for f, o in zip(z, ok)]))
    for a, b in zip(centre_spread(bad(z), ok), centre_spread(z, ok)): close(a, b)
    for n, f in LOSSES.items(): close(f(bad(rel), bad(z), ok), f(rel, z, ok)), n
    close(boundary_f(bad(rel), bad(z), ok), boundary_f(rel, z, ok))
    for a, b in zip(seam_jump(bad(z), [1], ok), seam_jump(z, [1], ok)): close(a, b)
    static = ok.all(0)
    close(flicker(torch.where(static, z, junk), static), flicker(z, static))
    close(drift(torch.where(static, z, junk), static), drift(z, static))


@quick
@given(seeds, st.sampled_from([math.nan, math.inf, -7., 0.]), st.sampled_from([carry_nearest, carry_splat]))
def test_holes_are_not_carried(seed, junk, carry):
    w = walk(seed, 1)
    ok = torch.rand(w.depth.shape, generator=gen(seed)) < .8
    close(tae(torch.where(ok, w.depth, junk), w.K, w.pose, ok, carry),
        tae(torch.where(ok, w.depth, 3.), w.K, w.pose, ok, carry))


@pytest.mark.parametrize('name', LOSSES)
def test_no_pixels_no_loss_no_nan(name):
    z, rel, _ = scene(0)
    # nothing, and one frame only
    for ok in (torch.zeros_like(z, dtype=torch.bool), torch.arange(3)[:, None, None, None].expand_as(z) > 1):
        x = rel.clone().requires_grad_()
        loss = LOSSES[name](x, z, ok)
        loss.backward()
        assert loss.isfinite() and x.grad.isfinite().all()
        if not ok.any(): assert loss == 0


@pytest.mark.parametrize('name', LOSSES)
def test_holes_have_no_gradient(name):
    z, rel, ok = scene(7)
    for junk in (math.nan, math.inf):
        x = torch.where(ok, rel, junk).requires_grad_()
        LOSSES[name](x, torch.where(ok, z, junk), ok).backward()
        assert x.grad.isfinite().all() and (x.grad[~ok] == 0).all() and (x.grad[ok] != 0).any()


# -- losses
@quick
@given(seeds, scales, shifts)
def test_losses_do_not_know_scale_and_shift(seed, s, b):
    z, rel, ok = scene(seed)
    for f in (ssi_loss, affine_loss, partial(tgm_loss, threshold=.5)): close(f(s*rel+b, z, ok), f(rel, z, ok), 1e-6)
    for f in (ssi_loss, affine_loss): close(f(rel, s*z+b, ok), f(rel, z, ok), 1e-6)
    close(cutmix_loss(torch.where(ok, s*rel+b, rel), z, 1/z, ok), cutmix_loss(rel, s*z+b, 1/z, ok), 1e-6)
    close(cutmix_loss(torch.where(ok, s*z+b, 2*rel-1), z, rel, ok), 0., 1e-6)
    close(silog_loss(s*z, z, ok).item(), abs(math.log(s))*.5**.5, 1e-5)


@quick
@given(seeds)
def test_a_flat_map_costs_one(seed):
    z, _, ok = scene(seed)
    close(affine_loss(z*0+3, z, ok).item(), 1.)
    close(masked_mean(spread_norm(z, ok).abs(), ok), torch.ones(3))
    close(masked_median(spread_norm(z, ok), ok), torch.zeros(3))


@pytest.mark.parametrize('name', LOSSES)
def test_a_perfect_answer_has_a_finite_gradient(name):
    z, _, ok = scene(1)
    x = z.clone().requires_grad_()
    loss = LOSSES[name](x, z, ok)
    loss.backward()
    assert loss < 2e-6 and x.grad.isfinite().all()


def test_targets_and_frozen_features_get_no_gradient():
    gen = torch.Generator().manual_seed(0)
    a, b = (torch.randn(4, 3, generator=gen).requires_grad_() for _ in range(2)) # Far apart: no tolerance hides them
    feature_loss(a, b).backward()
    assert b.grad is None and a.grad.abs().sum() > 0


def test_trimming_forgets_the_worst_and_only_them():
    z, rel, _ = scene(4, h=20, w=20)
    wild = rel.clone()
    wild[:, :, :2] += 3  # a tenth of every frame
    cost = lambda p, trim: ssi_loss(p, 1/z, alpha=0., trim=trim)
    assert cost(wild, .2) < .5*cost(wild, 0.) and cost(wild, 0.) > 1.2*cost(rel, 0.)
    close(ssi_loss(rel, 1/z, alpha=0., trim=.2, count_trimmed=True), .8*cost(rel, .2))


# -- batches
@quick
@given(seeds)
def test_a_batch_is_a_loop(seed):
    z, rel, ok = scene(seed, b=(3,))
    each = list(zip(rel, z, ok))
    for k, v in frame_errors(rel, z, ok).items(): close(v, torch.stack([frame_errors(*o)[k] for o in each]))
    for per in ('frame', 'clip'): close(align(rel, z, ok, per), torch.stack([align(*o, per) for o in each]))
    close(boundary_f(rel, z, ok), torch.stack([boundary_f(*o) for o in each]))
    close(boundary_f(rel, z, ok, reach=1), torch.stack([boundary_f(*o, reach=1) for o in each]))
    for i, v in enumerate(seam_jump(z, [1], ok)): close(v, torch.stack([seam_jump(o[1], [1], o[2])[i] for o in each]))
    close(flicker(z, ok[:, 0]), torch.stack([flicker(o[1], o[2][0]) for o in each]))
    close(drift(z, ok[:, 0]), torch.stack([drift(o[1], o[2][0]) for o in each]))
    close(affine_loss(rel, z, ok), torch.stack([affine_loss(*o) for o in each]).mean())


@pytest.mark.parametrize('carry', [carry_nearest, carry_splat])
def test_a_batch_of_walks_is_a_loop(carry):
    w = walk(3, 3)
    shaken = scale_jitter(w.depth, .05, gen(0))
    close(tae(shaken, w.K, w.pose, carry=carry),
        torch.stack([tae(d, K, p, carry=carry) for d, K, p in zip(shaken, w.K, w.pose)]))
    close(opw(shaken, w.clip, w.flow, w.occ), torch.stack([opw(*o) for o in zip(shaken, w.clip, w.flow, w.occ)]))


# -- time
@quick
@given(seeds, st.sampled_from([carry_nearest, carry_splat]))
def test_time_may_run_backwards(seed, carry):
    w = walk(seed, 1)
    d = scale_jitter(w.depth, .05, gen(seed))
    close(tae(d.flip(1), w.K, w.pose.flip(1), carry=carry), tae(d, w.K, w.pose, carry=carry))
    ok = torch.ones_like(d[:, 0], dtype=torch.bool)
    close(flicker(d.flip(1), ok), flicker(d, ok))
    close(drift(d.flip(1), ok), -drift(d, ok))
    close(seam_jump(d.flip(1), [1]).at, seam_jump(d, [3]).at)


@quick
@given(seeds, st.floats(.1, 10))
def test_stability_does_not_know_the_unit(seed, s):
    w = walk(seed, 1)
    d, pose = scale_jitter(w.depth, .05, gen(seed)), w.pose.clone()
    pose[..., :3, 3] *= s
    ok = torch.ones_like(d[:, 0], dtype=torch.bool)
    close(tae(s*d, w.K, pose), tae(d, w.K, w.pose), 1e-6)
    close(flicker(s*d, ok), flicker(d, ok))
    close(drift(s*d, ok), drift(d, ok), 1e-8)
    close(seam_jump(s*d, [2]).ratio, seam_jump(d, [2]).ratio, 1e-6)
    close(boundary_f(s*d, w.depth), boundary_f(d, w.depth))


@quick
@given(seeds)
def test_a_constant_video_is_perfectly_stable_and_wrong(seed):
    w = make_worlds([seed], WorldConfig(t=4, h=16, w=16))
    r = temporal_report(torch.full_like(w.depth, 2.), w, seams=[2])
    for k in ('tae', 'tae_published', 'opw', 'flicker', 'drift'): close(r[k], 0., 1e-4)
    assert math.isnan(r['seam_ratio']) and r['abs_rel'] > .1 and r['boundary_f'] < .5
    assert temporal_report(w.depth, w)['abs_rel'] == 0


@quick
@given(seeds, st.integers(0, 2))
def test_boundaries_have_no_preferred_side(seed, reach):
    z, rel, ok = scene(seed)
    for turn in (lambda o: o.flip(-1), lambda o: o.flip(-2), lambda o: o.mT):
        close(boundary_f(turn(1/rel), turn(z), turn(ok), reach=reach), boundary_f(1/rel, z, ok, reach=reach))
    close(boundary_f(1/z, z, ok), torch.zeros(3))  # near and far exchanged
    assert (boundary_f(1/rel, z, ok, reach=1) >= boundary_f(1/rel, z, ok)).all()


# -- carriers
def nearest_ref(z, K, a, b):
    "The published rule, a point at a time"
    h, w = z.shape[-2:]
    out, move = torch.zeros(h, w, dtype=z.dtype), torch.linalg.inv(b) @ a
    for y in range(h):
        for x in range(w):
            p = z[0, y, x]*torch.tensor([(x+.5-K[0, 2])/K[0, 0], (y+.5-K[1, 2])/K[1, 1], 1.], dtype=z.dtype)
            q = move[:3, :3] @ p+move[:3, 3]
            i, j = math.floor(K[0, 0]*q[0]/q[2]+K[0, 2]), math.floor(K[1, 1]*q[1]/q[2]+K[1, 2])
            if 0 <= i < w and 0 <= j < h and q[2] > 0: out[j, i] = q[2]
    return out


@quick
@given(seeds, st.floats(-.8, .8), st.floats(-.5, .5))
def test_nearest_is_the_published_rule(seed, dx, dz):
    z, K = 2+3*rand(seed, 1, 7, 9), make_K(70, 7, 9).double()
    a, b = torch.eye(4, dtype=torch.float64), look_at(torch.tensor([dx, .1, dz]).double(),
        torch.tensor([0., 0, 4]).double())
    out, hole = carry_nearest(z, K, a, b, z > 0)
    close(out[0], nearest_ref(z, K, a, b))
    assert ((out == 0) == hole).all()


@quick
@given(seeds)
def test_standing_still_carries_everything(seed):
    z, K, eye = 1+rand(seed, 2, 1, 6, 6), make_K(60, 6, 6).double(), torch.eye(4, dtype=torch.float64)
    for carry in (carry_nearest, carry_splat):
        out, hole = carry(z, K, eye, eye, z > 1.5)
        close(torch.where(hole, 0., out), torch.where(z > 1.5, z, 0.))


def test_true_depth_is_stable_only_with_a_z_buffer():
    w = make_worlds([5, 6], WorldConfig(t=4, h=48, w=48, motion='still', camera='orbit'))
    near, buf = tae(w.depth, w.K, w.pose, carry=carry_nearest), tae(w.depth, w.K, w.pose)
    assert (buf < .3).all() and (near > 5*buf).all()


def test_static_pixels_are():
    w = make_worlds(range(4), WorldConfig(t=6, h=24, w=24))
    static = static_pixels(w.flow, w.occ)
    assert .1 < static.float().mean() < .99
    close(flicker(w.depth, static), torch.zeros(4), 1e-4)
    assert (flicker(w.depth, ~static) > .01).all()

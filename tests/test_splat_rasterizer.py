"The fast rasterizers against the brute force: images and the gradient of every input; constants; refusals"
import math
import pytest
import torch
from vidlit.splat import rasterizer
from vidlit.splat.gaussians import random_gaussians
from vidlit.splat.rasterizer import Rules, backends, composite_ref, presets, rasterize, rasterize_ref, render_gaussians
from vidlit.splat.rasterizer_compiled import composite_compiled
from vidlit.splat.rasterizer_tiled import composite_tiled

FAST = 'torch', 'numba'
F64 = torch.float64
NAMES = 'means quats scales opacities colors viewmats Ks background'.split()


def scene(n=80, w=37, h=29, cams=2, dtype=F64, seed=0, sh=False):
    "Two cameras turned against each other; small and large, faint and opaque Gaussians, some behind a camera"
    gen = torch.Generator().manual_seed(seed)
    def rand(*s): return torch.rand(*s, generator=gen, dtype=dtype)
    means = rand(n, 3)*2-1
    means[:5, 2] -= 6
    view = torch.eye(4, dtype=dtype).repeat(cams, 1, 1)
    for i in range(cams):
        c, s = math.cos(.3*i), math.sin(.3*i)
        view[i, :3, :3] = torch.tensor([[c, 0, s], [0, 1, 0], [-s, 0, c]], dtype=dtype)
    view[:, :3, 3] = torch.tensor([.1, -.2, 3.], dtype=dtype)
    K = torch.tensor([[40., 0, w/2+1], [0, 38, h/2-2], [0, 0, 1]], dtype=dtype).repeat(cams, 1, 1)
    colors = torch.randn(n, 9, 3, generator=gen, dtype=dtype)*.4 if sh else rand(n, 3)
    opac = rand(n)
    opac[::4] = .9995  # beyond every cap
    return dict(means=means, quats=torch.randn(n, 4, generator=gen, dtype=dtype),
        scales=.12*torch.exp(.6*torch.randn(n, 3, generator=gen, dtype=dtype)), opacities=opac,
        colors=colors, viewmats=view, Ks=K, background=rand(cams, 3), width=w, height=h)


def outputs(backend, s, **kw):
    "Everything rendered and every gradient, the screen-space one too, for a fixed random cotangent"
    s = {k: v.clone().requires_grad_() if isinstance(v, torch.Tensor) else v for k, v in s.items()}
    r = rasterize(**s, backend=backend, **kw)
    gen = torch.Generator().manual_seed(9)
    parts = dict(rgb=r.rgb, alpha=r.alpha, depth=r.depth, expected=r.expected_depth)
    sum((v*torch.rand(v.shape, generator=gen, dtype=v.dtype)).sum() for v in parts.values()).backward()
    return parts | {f'd {k}': s[k].grad for k in NAMES} | {'d means2d': r.means2d.grad, 'radii': r.radii.double()}


def far(a, b): return {k: ((a[k]-b[k]).abs().max()/b[k].abs().max().clamp_min(1e-9)).item() for k in a}


@pytest.mark.parametrize('backend', FAST)
@pytest.mark.parametrize('preset', presets)
@pytest.mark.parametrize('kw', [{}, dict(antialiased=True), dict(sh_degree=2)], ids=lambda k: next(iter(k), 'plain'))
def test_fast_equals_brute_force(backend, preset, kw):
    s = scene(sh='sh_degree' in kw)
    got, want = outputs(backend, s, preset=preset, **kw), outputs('ref', s, preset=preset, **kw)
    assert all(want[k].abs().max() > 0 for k in want)
    assert max(far(got, want).values()) < 1e-10, far(got, want)


@pytest.mark.parametrize('backend', FAST)
@pytest.mark.parametrize('seed', range(4))
def test_float32(backend, seed):
    s = scene(120, 50, 41, dtype=torch.float32, seed=seed)
    got = outputs(backend, s)
    want = outputs('ref', {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in s.items()})
    d = far(got, want)
    assert max(d[k] for k in ('rgb', 'alpha', 'depth')) < 1e-5, d
    same = outputs('ref', s)  # gradients: against the same projection, in float32
    assert max(far(got, same).values()) < 1e-5, far(got, same)


@pytest.mark.parametrize('backend', ('ref', *FAST))
def test_finite_differences(backend):
    "Every input moved, every output watched"
    s = scene(6, 11, 9, cams=1)
    s['means'][:5, 2] += 6
    s['opacities'] = s['opacities'].clamp(.3, .8)
    s['scales'] = s['scales'].clamp_min(.25)

    def f(*xs):
        r = rasterize(**dict(zip(NAMES, xs)), width=11, height=9, backend=backend,
            preset=Rules(floor=1e-30, reach=50., stop=1e-30))  # no jumps
        return r.rgb, r.alpha, r.depth
    assert torch.autograd.gradcheck(f, [s[k].requires_grad_() for k in NAMES], eps=1e-6, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize('blend', (composite_ref, composite_tiled, composite_compiled))
def test_off_diagonal_conic_gradient(blend):
    "The entry b stands twice in the quadratic form: its gradient is the whole one, not half"
    m, o = torch.tensor([[7.3, 5.1]], dtype=F64), torch.tensor([.7], dtype=F64)
    f, box = torch.ones(1, 1, dtype=F64), torch.tensor([[0, 0, 16, 12]], dtype=torch.int32)
    weight = torch.rand(12, 16, generator=torch.Generator().manual_seed(0), dtype=F64)
    def loss(con): return (blend(m, con, o, f, box, 16, 12, Rules(floor=1e-30))[1]*weight).sum()
    con = torch.tensor([[.11, .04, .07]], dtype=F64, requires_grad=True)
    g, = torch.autograd.grad(loss(con), con)
    for i in range(3):
        step = torch.zeros_like(con)
        step[0, i] = 1e-6
        num = (loss(con.detach()+step)-loss(con.detach()-step))/2e-6
        assert abs(num) > 1 and abs(g[0, i]/num-1) < 1e-6, (i, g, num)
    # by hand: the gradient of exp(-sigma) with respect to b is -dx dy exp(-sigma)
    y, x = torch.meshgrid(torch.arange(12, dtype=F64)+.5, torch.arange(16, dtype=F64)+.5, indexing='ij')
    dx, dy = x-7.3, y-5.1
    a = .7*torch.exp(-.5*(.11*dx*dx+.07*dy*dy)-.04*dx*dy)
    assert abs(g[0, 1]/(-(dx*dy*a*weight).sum())-1) < 1e-10


def test_constants():
    g, new, old = (presets[k] for k in ('gsplat', 'gsplat-1.6', 'inria'))
    assert (g.cap, new.cap, old.cap) == (.999, .99, .99)
    assert (g.near, new.near, old.near) == (.01, .01, .2) and (g.far, new.far, old.far) == (1e10, 1e10, math.inf)
    assert g.reach == new.reach == 3.33 and old.reach == 3 and (g.block, new.block, old.block) == (None, None, 16)
    assert {r.floor for r in presets.values()} == {1/255} and {r.stop for r in presets.values()} == {1e-4}
    assert g.stop_equal and new.stop_equal and not old.stop_equal and {r.blur for r in presets.values()} == {.3}
    assert g.shrink_floor == 0 and new.shrink_floor == .005
    assert (g.view, old.view) == ('image', 'centre') and abs(math.sqrt(2*math.log(255))-3.33) < 1e-3


def one(scale=.2, opac=.9999, z=2., x=0., w=32, **kw):
    "A round Gaussian in front of one camera"
    K = torch.tensor([[[32., 0, w/2], [0, 32, 16], [0, 0, 1]]], dtype=F64)
    d = dict(means=torch.tensor([[x, 0, z]], dtype=F64), quats=torch.tensor([[1., 0, 0, 0]], dtype=F64),
        scales=torch.full((1, 3), scale, dtype=F64), opacities=torch.tensor([opac], dtype=F64),
        colors=torch.ones(1, 3, dtype=F64), viewmats=torch.eye(4, dtype=F64)[None], Ks=K, width=w, height=32)
    return rasterize(**d, **kw)


@pytest.mark.parametrize('backend', ('ref', *FAST))
def test_constants_in_pixels(backend):
    "What the constants do, seen from outside"
    def top(p): return one(2., preset=p, backend=backend).alpha.max().item()
    assert [round(top(p), 6) for p in presets] == [.999, .99, .99]
    a = one(preset='gsplat', backend=backend).alpha
    assert a[a > 0].min() >= 1/255
    assert [bool(one(z=.1, preset=p, backend=backend).radii.any()) for p in presets] == [True, True, False]
    assert [bool(one(z=.2, preset=p, backend=backend).radii.any()) for p in presets] == [True, True, False]
    # a far Gaussian: the variance of the blur is all that is left of it, a^2 = .3
    r = one(1e-6, .5, z=50., backend=backend)
    assert abs(r.alpha.max().item()-.5*math.exp(-.25/.3)) < 1e-6
    assert one(1e-6, .5, z=50., backend=backend, antialiased=True).alpha.max() == 0
    big = one(1., backend=backend, antialiased=True).alpha.max()
    assert 0 < one(1., backend=backend).alpha.max()-big < .01
    # three standard deviations, in blocks of 16 pixels, against all of it: what is lost depends on the place
    worst = []
    for i in range(10):
        kw = dict(x=-1.2+.1*i, w=64, backend=backend)
        cut, whole = (one(.6, preset=p, **kw).alpha[0, 16, :, 0] for p in ('inria', 'gsplat'))
        lost = (cut == 0) & (whole > 1/255)
        worst.append(whole[lost].max().item() if lost.any() else 0)
    assert .006 < max(worst) < .0115 and 0 in worst


def test_depth_order_and_stop():
    "The nearer hides the farther; a pixel is done before the Gaussian that would bring its light to 1e-4"
    s = dict(quats=torch.tensor([[1., 0, 0, 0]]*3), scales=torch.full((3, 3), 5.), viewmats=torch.eye(4)[None],
        Ks=torch.tensor([[[8., 0, 4], [0, 8, 4], [0, 0, 1]]]), width=8, height=8)
    means = torch.tensor([[0., 0, 9], [0, 0, 3], [0, 0, 6]])
    r = rasterize_ref(means, opacities=torch.full((3,), .999), colors=torch.eye(3), **s)
    at = r.rgb[0, 4, 4]
    assert at[1] > .99 and at[0] == 0  # light after two would be 1e-6: only one is drawn
    assert abs(r.alpha[0, 4, 4, 0]-at.sum()) < 1e-6 and abs(r.expected_depth[0, 4, 4, 0]-3) < .02


@pytest.mark.parametrize('backend', ('ref', *FAST))
def test_nothing_to_see(backend):
    s = scene(10, dtype=torch.float32)
    s['means'][:, 2] = -9
    got = outputs(backend, s)
    assert torch.equal(got['rgb'], s['background'][:, None, None].expand_as(got['rgb']))
    assert not got['d means'].any() and not got['radii'].any() and not got['expected'].any()
    none = {k: v[:0] if k in ('means', 'quats', 'scales', 'opacities', 'colors') else v for k, v in s.items()}
    assert rasterize(**none, backend=backend).rgb.shape == (2, 29, 37, 3)


def test_cameras_are_independent():
    s = scene()
    both = rasterize(**s)
    for i in range(2):
        one = rasterize(**(s | {k: s[k][i:i+1] for k in ('viewmats', 'Ks', 'background')}))
        assert torch.equal(both.rgb[i], one.rgb[0]) and torch.equal(both.means2d[i], one.means2d[0])


def test_colours_by_camera_and_many_channels():
    s = scene(40)
    col = torch.rand(2, 40, 5, dtype=F64)
    s |= dict(colors=col, background=torch.rand(5, dtype=F64))
    got = [rasterize(**s, backend=b).rgb for b in ('ref', *FAST)]
    assert got[0].shape == (2, 29, 37, 5) and all((g-got[0]).abs().max() < 1e-12 for g in got)


def test_turned_scene():
    "Scene and camera turned together give the same picture, harmonics of degree 0"
    g = random_gaussians(60, -1, 1, torch.Generator().manual_seed(3), degree=0, dtype=F64)
    s = scene()
    a = render_gaussians(g, s['viewmats'], s['Ks'], 37, 29)
    q = torch.tensor([.8, .1, -.5, .3], dtype=F64)
    q = q/q.norm()
    R = rasterizer.quat_matrix(q)
    turned = rasterize(g.means@R.T, q.expand(60, 4), g.scales, g.opacities, g.sh,
        s['viewmats']@torch.block_diag(R.T, torch.ones(1, 1, dtype=F64)), s['Ks'], 37, 29, sh_degree=0)
    assert (turned.rgb-a.rgb).abs().max() < 1e-12


@pytest.mark.parametrize('change, said', [
    (dict(quats=torch.zeros(80, 3)), r'quats must be \[80, 4\], got \[80, 3\]'),
    (dict(opacities=torch.zeros(80, 1)), r'opacities must be \[80\], got \[80, 1\]'),
    (dict(colors=torch.zeros(79, 3)), r'colors must be \[n, d\] or \[c, n, d\] with n=80, c=2, got \[79, 3\]'),
    (dict(Ks=torch.zeros(1, 3, 3)), r'Ks must be \[2, 3, 3\]'),
    (dict(background=torch.zeros(4)), r'background must be \[3\] or \[2, 3\], got \[4\]'),
    (dict(width=0), 'width 0'), (dict(preset='3dgs'), "got '3dgs'"), (dict(backend='cuda'), "got 'cuda'"),
    (dict(sh_degree=1), r'colors must be \[n, k, 3\]')])
def test_refusals(change, said):
    with pytest.raises(ValueError, match=said): rasterize(**(scene() | change))


def test_missing_package(monkeypatch):
    monkeypatch.setattr(rasterizer, '_have', lambda name: False)
    s = scene(10)
    with pytest.raises(ImportError, match=r"pip install numba"): rasterize(**s, backend='numba')
    assert rasterizer.get_backend('auto', 'cpu') == 'torch' and rasterizer.get_backend('auto', 'cuda') == 'torch'
    assert set(backends) == {'auto', 'ref', 'torch', 'numba', 'gsplat'}

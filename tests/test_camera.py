"Properties of cameras: intrinsics against moving pixels, round trips, groups, refusals"
import math
import pytest
import torch
from hypothesis import given, settings, strategies as st
from vidlit.worlds.camera import (
    crop_K,
    flip_K,
    flip_pose,
    inv_pose,
    look_at,
    make_K,
    mat_to_quat,
    orbit_path,
    pad_K,
    pixel_grid,
    pixel_rays,
    project,
    quat_to_mat,
    radius_to_z,
    relative_pose,
    resize_K,
    slerp,
    spline_path,
    stereo_pose,
    to_world,
    unproject,
    z_to_radius,
)

quick = settings(deadline=None, max_examples=15)
D = torch.float64
seeds, sizes = st.integers(0, 10**6), st.integers(2, 40)


def camera(seed, h=12, w=16):
    "A random but sensible camera with skew, a pose, and points before it, in float64"
    gen = torch.Generator().manual_seed(seed)
    r = lambda *s: torch.rand(*s, generator=gen, dtype=D)
    K = make_K(30 + 80*r(1).item(), h, w).to(D)
    K[0, 1], K[0, 2], K[1, 2], K[1, 1] = r(1).item(), w*r(1).item(), h*r(1).item(), K[1, 1]*(.5+r(1).item())
    pose = look_at(4*r(3)-2, torch.tensor([0., 0, 6], dtype=D) + r(3))
    xyz = to_world(torch.cat([4*r(9, 2)-2, .5+5*r(9, 1)], -1), pose)
    return K, pose, xyz


@quick
@given(seeds, sizes, sizes, sizes, sizes)
def test_resize_moves_pixels(seed, h, w, h2, w2):
    K, pose, xyz = camera(seed, h, w)
    xy, z = project(xyz, K, pose)
    new, z2 = project(xyz, resize_K(K, (h, w), (h2, w2)), pose)
    torch.testing.assert_close(new, xy*torch.tensor([w2/w, h2/h], dtype=D))
    torch.testing.assert_close(z, z2)


@quick
@given(seeds, st.integers(-20, 20), st.integers(-20, 20))
def test_crop_and_pad_move_pixels(seed, top, left):
    K, pose, xyz = camera(seed)
    xy, _ = project(xyz, K, pose)
    by = torch.tensor([left, top], dtype=D)
    torch.testing.assert_close(project(xyz, crop_K(K, top, left), pose)[0], xy-by)
    torch.testing.assert_close(project(xyz, pad_K(K, top, left), pose)[0], xy+by)
    torch.testing.assert_close(pad_K(crop_K(K, top, left), top, left), K)


@quick
@given(seeds, sizes)
def test_flip_moves_pixels(seed, w):
    K, pose, xyz = camera(seed, w=w)
    xy, z = project(xyz, K, pose)
    m = torch.tensor([-1., 1, 1], dtype=D)
    new, z2 = project(xyz*m, flip_K(K, w), flip_pose(pose))
    torch.testing.assert_close(new[:, 0], w-xy[:, 0])
    torch.testing.assert_close(new[:, 1], xy[:, 1])
    torch.testing.assert_close(z, z2)
    torch.testing.assert_close(torch.linalg.det(flip_pose(pose)[:3, :3]), torch.tensor(1., dtype=D))
    torch.testing.assert_close(flip_K(flip_K(K, w), w), K)


@quick
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 5), st.integers(0, 5))
def test_integer_moves_are_exact(h, w, top, left):
    "With whole numbers not a bit may be lost, even in float32"
    K = torch.tensor([[64., 0, 32], [0, 64, 24], [0, 0, 1]])
    assert torch.equal(crop_K(K, top, left)[:2, 2], torch.tensor([32.-left, 24-top]))
    assert torch.equal(flip_K(K, 64), K)
    assert torch.equal(pad_K(crop_K(K, top, left), top, left), K)


@quick
@given(seeds, sizes, sizes, st.booleans())
def test_round_trip(seed, h, w, world):
    K, pose, _ = camera(seed, h, w)
    pose = pose if world else None
    depth = .5 + 9*torch.rand(2, 1, h, w, generator=torch.Generator().manual_seed(seed), dtype=D)
    xy, z = project(unproject(depth, K, pose), K, pose)
    torch.testing.assert_close(xy, pixel_grid(h, w, depth).expand_as(xy))
    torch.testing.assert_close(z, depth[:, 0])


@quick
@given(seeds, sizes, sizes)
def test_radius(seed, h, w):
    K, pose, _ = camera(seed, h, w)
    depth = .5 + 9*torch.rand(3, 1, h, w, generator=torch.Generator().manual_seed(seed), dtype=D)
    radius = z_to_radius(depth, K)
    torch.testing.assert_close(radius[:, 0], (unproject(depth, K, pose)-pose[:3, 3]).norm(dim=-1))
    torch.testing.assert_close(radius_to_z(radius, K), depth)
    assert (radius >= depth).all()


@quick
@given(seeds)
def test_poses_are_a_group(seed):
    _, a, xyz = camera(seed)
    _, b, _ = camera(seed+1)
    eye = torch.eye(4, dtype=D)
    torch.testing.assert_close(inv_pose(a) @ a, eye)
    torch.testing.assert_close(relative_pose(a, a), eye)
    torch.testing.assert_close(a @ relative_pose(a, b), b)
    torch.testing.assert_close(to_world(to_world(xyz, inv_pose(a)), a), xyz)


@quick
@given(seeds)
def test_quaternions(seed):
    gen = torch.Generator().manual_seed(seed)
    q = torch.nn.functional.normalize(torch.randn(20, 4, generator=gen, dtype=D), dim=-1)
    q[:3] = torch.eye(4, dtype=D)[1:]  # the three half turns
    R = quat_to_mat(q)
    torch.testing.assert_close(R @ R.mT, torch.eye(3, dtype=D).expand(20, 3, 3))
    torch.testing.assert_close(quat_to_mat(mat_to_quat(R)), R)
    u = torch.rand(20, 1, generator=gen, dtype=D)
    a, b = mat_to_quat(R), mat_to_quat(R.flip(0))
    torch.testing.assert_close(quat_to_mat(slerp(a, b, u)), quat_to_mat(slerp(b, a, 1-u)))


@quick
@given(seeds, st.integers(2, 6), st.integers(1, 5))
def test_spline_passes_its_keys(seed, k, m):
    keys = torch.stack([camera(seed+i)[1] for i in range(k)])
    path = spline_path(keys, (k-1)*m + 1)
    torch.testing.assert_close(path[::m], keys)
    R = path[:, :3, :3]
    torch.testing.assert_close(R @ R.mT, torch.eye(3, dtype=D).expand_as(R))


@quick
@given(st.integers(1, 12), st.floats(.5, 5), st.floats(-2, 2), st.floats(-360, 360))
def test_orbit_looks_inwards(n, radius, height, start):
    centre = torch.tensor([1., 2, 3], dtype=D)
    poses = orbit_path(n, centre, radius, height, start=start)
    z = project(centre.expand(n, 1, 3), torch.eye(3, dtype=D), poses)[1]
    torch.testing.assert_close(z[:, 0], torch.full((n,), math.hypot(radius, height), dtype=D))
    torch.testing.assert_close(poses[:, :3, 2]*z, centre-poses[:, :3, 3])
    assert (poses[:, 1, 1] > 0).all()  # the image is not upside down


def test_upright():
    "y points down: what is above in the world (smaller y) is above in the image (smaller row)"
    xy, _ = project(torch.tensor([[0., -1, 5], [0., 1, 5]]), make_K(60, 48, 64), look_at((0., 0, 0), (0., 0, 5)))
    assert xy[0, 1] < 24 < xy[1, 1]


def test_stereo_disparity_and_epipolar_lines():
    K, pose, xyz = camera(3)
    (l, z), (r, _) = project(xyz, K, pose), project(xyz, K, stereo_pose(pose, .2))
    torch.testing.assert_close(l[:, 0]-r[:, 0], K[0, 0]*.2/z)
    torch.testing.assert_close(l[:, 1], r[:, 1])


def test_dtype_follows_data_and_gradients_flow():
    K = make_K(60, 4, 6).to(D)
    depth = torch.ones(1, 4, 6, dtype=D, requires_grad=True)
    xyz = unproject(depth, K)
    assert xyz.dtype == pixel_rays(K, 4, 6).dtype == D
    behind = project(-xyz, K)
    behind[0].sum().backward()
    assert (behind[1] < 0).all() and torch.isfinite(depth.grad).all()


eye = torch.eye(4)


@pytest.mark.parametrize('bad, words', [
    (lambda: make_K(0, 4, 4), 'not 0'),
    (lambda: resize_K(eye[:3, :3], (4, 4), (0, 4)), '(0, 4)'),
    (lambda: crop_K(eye, 1, 1), '[4, 4]'),
    (lambda: project(torch.zeros(5, 2), eye[:3, :3]), '[5, 2]'),
    (lambda: unproject(eye, eye[:3, :3]), '[4, 4]'),
    (lambda: unproject(torch.ones(2, 1, 4, 4), eye[:3, :3].expand(2, 3, 1, 3, 3)), 'batch axes'),
    (lambda: look_at((1., 1, 1), (1., 1, 1)), 'cannot look'),
    (lambda: spline_path(eye[None], 3), '[1, 4, 4]'),
    (lambda: spline_path(eye.repeat(2, 1, 1), 0), 'not 0'),
    (lambda: orbit_path(0, (0., 0, 1), 1.), 'not 0')])
def test_refusals(bad, words):
    with pytest.raises(ValueError) as e: bad()
    assert words in str(e.value)

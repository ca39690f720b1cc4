"""Worlds: the truth is true, and a seed makes the same world everywhere."""
from dataclasses import replace
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.utils.data import DataLoader
from vidlit.worlds.camera import project, unproject
from vidlit.worlds.control import ControlWorld, random_actions, rotation, rotation_vector
from vidlit.worlds.motions import CAMERAS, MOTIONS, REVERSED
from vidlit.worlds.raycast import pixel_centres, trace
from vidlit.worlds.textures import TEXTURES
from vidlit.worlds.warp import backward_warp
from vidlit.worlds.worlds import (
    SHAPES,
    WorldConfig,
    WorldDataset,
    make_clips,
    make_scene,
    make_worlds,
    reverse,
    stereo,
    tracks,
    view_from,
)

ALL = WorldConfig(motion=MOTIONS, camera='any', n_obj=3, lit=True, shadows=True)
FIELDS = ('clip', 'unlit', 'depth', 'radius', 'flow', 'occ', 'seg', 'point', 'label', 'shape', 'texture')
seeds = st.integers(0, 2**59-1)


def same(a, b, i, j):
    return [n for n in FIELDS if not torch.equal(getattr(a, n)[i], getattr(b, n)[j])]


@settings(max_examples=4, deadline=None)
@given(st.lists(seeds, min_size=2, max_size=3), st.sampled_from(['train', 'test']), st.booleans())
def test_same_bits_in_any_batch(ss, split, truth_odd):
    cfg = replace(ALL, split=split, noise=.02, h=33 if truth_odd else 32, w=30)
    together = make_worlds(ss, cfg)
    for i, s in enumerate(ss): assert not same(together, make_worlds([s], cfg), i, 0)


def test_nothing_global_is_drawn():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    make_worlds([1, 2], replace(ALL, noise=.1))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize('workers', [0, 2])
def test_loader_gives_the_same_items_whatever_the_workers(workers):
    ds = WorldDataset(7, seed=5, cfg=WorldConfig(t=4), reversed_pairs=True)
    got = [x for b in DataLoader(ds, batch_size=3, num_workers=workers) for x in zip(*b)]
    for i, (clip, label) in enumerate(got):
        want = ds[i]
        assert torch.equal(clip, want[0]) and int(label) == want[1]


def test_sets_of_other_seeds_and_splits_differ():
    a, b, c = (WorldDataset(2, s, replace(WorldConfig(), split=p))[0][0]
        for s, p in ((0, 'train'), (1, 'train'), (0, 'test')))
    assert not torch.equal(a, b) and not torch.equal(a, c)


@pytest.mark.parametrize('split', ['train', 'test'])
@pytest.mark.parametrize('size', [(16, 64, 64, 5), (8, 32, 32, 2), (8, 48, 40, 9)])
def test_warping_along_the_flow_gives_the_frame_back(split, size):
    t, h, w, n = size
    errors, copies = [], []
    for motion, camera in ((MOTIONS[:12], 'still'), (MOTIONS, 'any')):
        x = make_worlds(range(4 if t > 8 else 12),
            WorldConfig(t=t, h=h, w=w, n_obj=n, motion=motion, camera=camera, split=split))
        now, after = (v.transpose(1, 2) for v in (x.unlit[:, :, :-1], x.unlit[:, :, 1:]))
        see = (~x.occ).expand_as(now)
        errors.append((backward_warp(after, x.flow)-now).abs()[see].mean())
        copies.append((after-now).abs()[see].mean())
    assert max(errors) < .01 and all(e < c for e, c in zip(errors, copies))


def test_fast_and_reference_agree():
    x = make_worlds(range(6), replace(ALL, n_obj=9, h=24, w=31), dtype=torch.float64)
    z, seg = trace(x.scene, pixel_centres(x.scene))
    assert (x.depth.flatten(2)-z).abs().max() < 1e-9
    assert torch.equal(x.seg.flatten(2), seg)


@settings(max_examples=4, deadline=None)
@given(st.lists(seeds, min_size=3, max_size=3, unique=True))
def test_float32_agrees_with_float64(ss):
    a, b = (make_worlds(ss, replace(ALL, n_obj=5), dtype=d) for d in (torch.float32, torch.float64))
    same_seg = a.seg == b.seg
    assert (~same_seg).float().mean() < 1e-3 and (a.occ != b.occ).float().mean() < 1e-3
    near = (a.depth-b.depth).abs()[same_seg]
    assert near.quantile(.999) < 1e-4 and near.mean() < 1e-5  # the rims of balls amplify rounding
    flow = (a.flow-b.flow).abs().amax(2, keepdim=True)[same_seg[:, :-1]]
    assert flow.quantile(.999) < 1e-2 and flow.mean() < 1e-4
    assert (a.unlit-b.unlit).abs().mean() < 1e-4


def test_points_agree_across_views():
    cfg = WorldConfig(t=2, freeze=True, h=48, w=48, n_obj=5, camera='any')
    x = make_worlds(range(12), cfg, dtype=torch.float64)
    other = x.pose.clone()
    other[:, 1, :3, 3] += torch.tensor([.3, -.1, .2], dtype=torch.float64)
    pair = view_from(x, other, cfg)
    xyz = unproject(pair.depth[:, :1], pair.K, other[:, :1]).flatten(2, 3)
    xy, z = project(xyz, pair.K, other[:, 1:])
    s = replace(pair.scene, pose=other[:, 1:], pos=pair.scene.pos[:, :, 1:], rot=pair.scene.rot[:, :, 1:])
    seen = ~pair.occ[:, :1].flatten(2)[:, 0, None]
    gap = (trace(s, xy)[0]-z).abs()[seen]
    assert len(gap) > 10000 and gap.max() < 1e-4
    hidden = (trace(s, xy)[0] < z-1e-6) & ((xy > 0) & (xy < 48)).all(-1)
    assert (hidden & seen).sum() == 0


def test_occlusion_is_what_the_next_camera_cannot_see():
    x = make_worlds(range(6), replace(ALL, n_obj=6), dtype=torch.float64)
    s = x.scene
    at = pixel_centres(s)[:, :-1]+x.flow.flatten(3).mT
    nxt = replace(s, pose=s.pose[:, 1:], pos=s.pos[:, :, 1:], rot=s.rot[:, :, 1:])
    seen = ((at >= 0) & (at <= 32)).all(-1)
    seg = trace(nxt, at)[1]
    other = (seg != x.seg[:, :-1].flatten(2)) & seen
    occ = x.occ.flatten(2)[:, :, :]
    assert (other & ~occ).float().mean() < 1e-4  # met something else first: must be marked
    assert (~seen & ~occ).sum() == 0


def test_radius_points_and_segments():
    x = make_worlds([3], replace(ALL, camera='orbit'))
    xyz = unproject(x.depth, x.K.float(), x.pose.float())
    origin = x.pose[:, :, None, None, :3, 3].float()
    assert ((xyz-origin).norm(dim=-1)-x.radius[:, :, 0]).abs().max() < 1e-4
    room = x.seg[:, :, 0] == 0
    assert (x.point.movedim(2, -1)-xyz)[room].abs().max() < 1e-4
    assert x.seg.max() <= 3 and x.clip.min() >= 0 and x.clip.max() <= 1


@pytest.mark.parametrize('motion', MOTIONS)
def test_every_motion_and_its_twin(motion):
    cfg = WorldConfig(motion=tuple(dict.fromkeys((motion, REVERSED[motion]))), t=5, camera='any')
    x = make_worlds(range(4), cfg)
    r = reverse(x, cfg)
    for n in ('clip', 'unlit'): assert torch.equal(getattr(r, n), getattr(x, n).flip(2))
    for n in ('depth', 'seg', 'point', 'radius'): assert torch.equal(getattr(r, n), getattr(x, n).flip(1))
    for i, j in zip(x.label, r.label): assert cfg.motion[j] == REVERSED[cfg.motion[i]]
    assert not same(reverse(r, cfg), x, slice(None), slice(None))


def test_frames_of_twins_are_one_bag():
    ds = WorldDataset(40, cfg=WorldConfig(), reversed_pairs=True)
    clip, label = ds.batch(range(40))
    bag = clip.transpose(1, 2).flatten(2).sum(-1).sort(1).values.view(20, 2, 8)
    assert torch.equal(bag[:, 0], bag[:, 1])
    assert (label.view(20, 2)[:, 0] != label.view(20, 2)[:, 1]).all()


def test_states_do_not_depend_on_the_arrow():
    "Over many worlds the middle moment looks alike for the two twins, and so does a random frame."
    s, label, *_ = make_scene(range(4000), WorldConfig(motion=('right', 'left'), t=8))
    x = s.pos[:, 0, :, 0]/s.pos[:, 0, :, 2]
    g = torch.Generator().manual_seed(0)
    one = x.gather(1, torch.randint(8, (4000, 1), generator=g))[:, 0]
    for v in (one, x.mean(1)):
        a, b = v[label == 0], v[label == 1]
        assert (a.mean()-b.mean()).abs() < 4*(a.var()/len(a)+b.var()/len(b)).sqrt()


def test_labels_are_balanced_and_appearance_is_free_of_motion():
    cfg = WorldConfig()
    _, label, shape, family = make_scene(range(3000), cfg)
    for v, n in ((label, 12), (shape, len(SHAPES)), (family, 3)):
        assert (v.bincount(minlength=n)/3000-1/n).abs().max() < .03
    table = torch.zeros(12, 4).index_put((label, shape), torch.ones(3000), accumulate=True)
    assert ((table/table.sum(1, keepdim=True))-.25).abs().max() < .12


def test_textures_of_the_splits_are_disjoint():
    assert not set(TEXTURES['train']) & set(TEXTURES['test'])
    rgb = {s: make_scene(range(200), replace(ALL, split=s))[0].tex[..., 31:37].reshape(-1, 3) for s in TEXTURES}
    assert (rgb['train'][:, 1] >= rgb['train'][:, 2]).all() and (rgb['test'][:, 1] <= rgb['test'][:, 2]).all()


def test_still_images():
    one, two = make_worlds([4], WorldConfig(t=1)), make_worlds([4], WorldConfig(t=2, freeze=True))
    assert torch.equal(two.clip[:, :, 0], two.clip[:, :, 1]) and torch.equal(one.clip[:, :, 0], two.clip[:, :, 0])
    assert one.flow.shape == (1, 0, 2, 32, 32) and two.flow.abs().max() < 1e-5
    assert not two.occ.float().mean() > .01


def test_labels_of_datasets():
    for label, names in (('motion', MOTIONS[:12]), ('shape', SHAPES), ('texture', TEXTURES['train'])):
        cfg = WorldConfig(label=label, t=1)
        assert cfg.classes == names and WorldDataset(3, cfg=cfg)[0][1] in range(len(names))
    clip, shape = make_clips([7], WorldConfig(label='shape'))
    assert shape == make_worlds([7]).shape and clip.shape == (1, 3, 8, 32, 32)


def test_stereo_and_tracks():
    cfg = replace(ALL, t=3)
    left = make_worlds(range(3), cfg)
    right, disp = stereo(left, cfg, .2)
    assert torch.equal(right.pose[:, :, :3, :3], left.pose[:, :, :3, :3]) and (disp > 0).all()
    xy, xyz, seen = tracks(left, 200, torch.Generator().manual_seed(1))
    assert xy.shape == (3, 3, 200, 2) and xyz.shape == (3, 3, 200, 3) and .6 < seen.float().mean() <= 1
    z = trace(left.scene, xy)[0]
    back = unproject(left.depth, left.K.float(), left.pose.float())
    assert torch.isfinite(z).all() and torch.isfinite(back).all()


@pytest.mark.parametrize('bad, says', [
    (dict(t=0), 't must be at least 1, not 0'), (dict(n_obj=10), 'not 10'), (dict(motion='fly'), "'fly'"),
        (dict(motion='cw'), "'ccw'"),
    (dict(camera='drone'), "'drone'"), (dict(split='val'), "'val'"), (dict(shadows=True), 'needs lit'),
        (dict(fov=170), 'not 170'),
    (dict(label='colour'), "'colour'"), (dict(n_obj=1, motion='pass'), 'at least 2'), (dict(aa=0), 'aa'),
        (dict(noise=-1.), 'noise'),
    (dict(motion=()), 'motion')])
def test_bad_configurations_are_refused(bad, says):
    with pytest.raises(ValueError, match=says): WorldConfig(**bad)


def test_bad_seeds_are_refused():
    for s in (-1, 2**59):
        with pytest.raises(ValueError, match=str(s)): make_clips([s])
    with pytest.raises(ValueError, match='seed'): make_clips([])


@pytest.mark.parametrize('camera', CAMERAS)
def test_many_objects_and_odd_sizes(camera):
    x = make_worlds([0, 1], WorldConfig(t=3, h=17, w=41, n_obj=9, camera=camera, lit=True, shadows=True, aa=3))
    for n in FIELDS: assert torch.isfinite(getattr(x, n).float()).all(), n
    assert x.clip.shape == (2, 3, 3, 17, 41)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-1.7, 1.7), min_size=3, max_size=3))
def test_rotation_vectors(v):
    v = torch.tensor(v, dtype=torch.float64)
    assert (rotation_vector(rotation(v))-v).abs().max() < 1e-6


@pytest.mark.parametrize('dims', [2, 3, 6])
def test_control_world(dims):
    act = random_actions(3, 6, dims, size=.6, gen=torch.Generator().manual_seed(dims))
    w = ControlWorld(range(3), WorldConfig(n_obj=4), dims)
    x = w.rollout(act)
    one = ControlWorld([1], WorldConfig(n_obj=4), dims).rollout(act[1:2])
    assert torch.equal(one.clip[0], x.clip[1]) and torch.equal(one.state[0], x.state[1])
    assert x.state.shape == (3, 7, dims) and torch.equal(x.action, act) and x.flow.shape == (3, 6, 2, 32, 32)
    p = x.scene.pos
    assert (p >= w.low-1e-9).all() and (p <= w.high+1e-9).all()
    state = w.start
    for a in act.unbind(1): state = w.step(state, a)
    assert (w.numbers(state).float()-x.state[:, -1]).abs().max() < 1e-6
    with pytest.raises(ValueError, match='dimensions'): ControlWorld([0], dims=5)

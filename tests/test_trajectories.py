"""Trajectories: files written here are read back, conventions agree with SciPy, faults are named, workers agree."""
import json
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.spatial.transform import Rotation
from torch.utils.data import DataLoader
from vidlit.pretrain.trajectories import (
    TrajectoryError,
    TrajectorySet,
    euler_matrix,
    in_camera,
    list_trajectories,
    matrix_euler,
    pose_actions,
    pose_move,
    read_states,
    video_path,
    write_trajectory,
)
from vidlit.video.reader import write_video

h5py = pytest.importorskip('h5py')
pose,grip = 'observation/robot_state/cartesian_position','observation/robot_state/gripper_position'

def walk(n=40, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.cat((torch.randn(n, 3, generator=g).cumsum(0)*.02, torch.randn(n, 3, generator=g).cumsum(0)*.1,
        torch.rand(n, 1, generator=g)), 1).double()

def video(n=40):
    "Frame i is grey level 6i: its number can be read off"
    return torch.arange(n, dtype=torch.uint8).mul(6)[:, None, None, None].expand(n, 32, 48, 3).contiguous()

@pytest.fixture(scope='module')
def root(tmp_path_factory):
    at = tmp_path_factory.mktemp('robot')
    for i in range(3):
        write_trajectory(at/f'lab{i%2}'/f'run{i}', video(), walk(seed=i), torch.arange(6.).expand(40, 6)/10, fps=15,
            camera=f'cam{i}', crf=8)
    return at


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-3.1, 3.1), min_size=6, max_size=6))
def test_actions_are_scipys(x):
    s = torch.zeros(2, 7).double()
    s[:, 3:6] = torch.tensor(x).view(2, 3)
    a,b = (Rotation.from_euler('xyz', o[3:6].numpy()) for o in s)
    assert torch.allclose(euler_matrix(s[0, 3:6]), torch.tensor(a.as_matrix()), atol=1e-9)
    got = euler_matrix(pose_actions(s)[0, 3:6])
    assert torch.allclose(got, torch.tensor((b*a.inv()).as_matrix()), atol=1e-6)
    assert torch.allclose(euler_matrix(pose_move(s[0], pose_actions(s)[0])[3:6]), euler_matrix(s[1, 3:6]), atol=1e-6)
    assert torch.allclose(euler_matrix(matrix_euler(euler_matrix(s[:, 3:6]))), euler_matrix(s[:, 3:6]), atol=1e-6)


def test_gripper_stays_within():
    s = torch.tensor([0, 0, 0, 0, 0, 0, .9])
    assert pose_move(s, torch.tensor([0, 0, 0, 0, 0, 0, .5]))[6] == 1
    assert pose_move(s, torch.tensor([0, 0, 0, 0, 0, 0, -5.]))[6] == 0


def test_frames_and_states_belong_together(root):
    ds = TrajectorySet(root, t=8, rate=5, size=32)
    assert len(ds) == 3 == len(list_trajectories(root))
    for i in range(3):
        clip,act,state = ds[i]
        level = (clip.mean((0, 2, 3))*255/6).round().long()
        assert level.diff().tolist() == [3]*7
        want = read_states(ds.folders[i])[0][level]
        assert torch.allclose(state.double(), want, atol=1e-6)
        assert torch.allclose(act.double(), pose_actions(want), atol=1e-5)


@pytest.mark.parametrize('rate,steps', [(4., {3, 4}), (15., {1}), (6., {2, 3})])
def test_rate_is_exact_on_average(root, rate, steps):
    ds = TrajectorySet(root, t=6, rate=rate, size=32, seed=None)
    level = (ds[0][0].mean((0, 2, 3))*255/6).round().long()
    assert set(level.diff().tolist()) <= steps
    assert abs((level[-1]-level[0]).item()-5*15/rate) <= 1


def test_workers_agree(root):
    def all_of(w): return [o for b in DataLoader(TrajectorySet(root, t=4, rate=5, size=32, seed=3), 3, num_workers=w)
        for o in b]
    for a,b in zip(all_of(0), all_of(2)): assert torch.equal(a, b)


def test_epochs_and_seeds_differ(root):
    def levels(seed, epoch):
        ds = TrajectorySet(root, t=3, rate=15, size=32, seed=seed)
        ds.set_epoch(epoch)
        return [ds[i][2][0].tolist() for i in range(3)]
    assert levels(0, 0) == levels(0, 0) != levels(0, 1)
    assert levels(0, 0) != levels(1, 0)


def test_camera_frame_and_extrinsics(root):
    base,seen = (TrajectorySet(root, t=4, rate=5, size=32, camera_frame=c, extrinsics=True)[1] for c in (False, True))
    assert torch.allclose(in_camera(base[2].double(), base[3].double()).float(), seen[2], atol=1e-5)
    assert torch.allclose(pose_actions(seen[2].double()).float(), seen[1], atol=1e-4)
    assert base[3].shape == (4, 6)


def spoil(tmp_path, change=None):
    at = write_trajectory(tmp_path/'t', video(20), walk(20))
    if change:
        with h5py.File(at/'trajectory.h5', 'a') as f: change(f)
    return at

def cut(key, n):
    def f(file):
        x = file[key][:n]
        del file[key]
        file[key] = x
    return f

faults = {'missing key': (lambda f: f.__delitem__(pose), f'{pose}: is missing'),
    'other lengths': (cut(grip, 12), f'{grip}: has 12 rows'),
    'wrong shape': (lambda f: (f.__delitem__(pose), f.__setitem__(pose, [[0.]*7]*20)),
        r'must be \[n, 6\], is \[20, 7\]'),
    'not finite': (lambda f: f[grip].__setitem__(4, float('inf')), f'{grip}: row 4 is not finite')}

@pytest.mark.parametrize('name', faults)
def test_faults_in_the_file(tmp_path, name):
    change,said = faults[name]
    with pytest.raises(TrajectoryError, match=said) as e: read_states(spoil(tmp_path, change))
    assert str(e.value).startswith(str(tmp_path/'t'/'trajectory.h5'))


def test_faults_around_it(tmp_path):
    at = spoil(tmp_path)
    ds = TrajectorySet(at, t=4, rate=5, size=32)
    assert ds[0][0].shape == (3, 4, 32, 32)
    with pytest.raises(TrajectoryError, match='camera_extrinsics/cam_left: is missing'):
        TrajectorySet(at, t=4, rate=5, size=32, extrinsics=True)[0]
    with pytest.raises(TrajectoryError, match='right_mp4_path: is missing'):
        TrajectorySet(at, t=4, rate=5, view='right')[0]
    with pytest.raises(TrajectoryError, match='need 118'): TrajectorySet(at, t=40, rate=5)[0]
    write_video(at/'recordings'/'MP4'/'cam.mp4', video(30), 15)
    with pytest.raises(TrajectoryError, match='30 frames but 20 states'): ds[0]
    (at/'recordings'/'MP4'/'cam.mp4').write_bytes(b'nothing')
    with pytest.raises(TrajectoryError, match='cam.mp4'): ds[0]
    (at/'recordings'/'MP4'/'cam.mp4').unlink()
    with pytest.raises(TrajectoryError, match='names cam.mp4'): video_path(at)
    (at/'metadata.json').write_text(json.dumps([1]))
    with pytest.raises(TrajectoryError, match='metadata.json'): video_path(at)
    (at/'trajectory.h5').write_bytes(b'nothing')
    with pytest.raises(TrajectoryError, match='not a readable HDF5'): read_states(at)
    (at/'trajectory.h5').unlink()
    with pytest.raises(TrajectoryError, match='no such file'): read_states(at)
    with pytest.raises(TrajectoryError, match='no trajectory.h5 below'): TrajectorySet(tmp_path)
    with pytest.raises(ValueError, match='20 frames and 19 states'): write_trajectory(tmp_path/'x', video(20), walk(19))

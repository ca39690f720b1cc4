"""LeRobot data sets, version 3: rows belong to frames, and what is wrong is said with file and key."""
import json
import pytest
import torch

pytest.importorskip('pyarrow')
from vidlit.pretrain.lerobot import LeRobotSet, write_lerobot  # noqa: E402
from vidlit.pretrain.trajectories import TrajectoryError, pose_actions  # noqa: E402


def episode(n, first):
    "Brightness tells the frame: twice the row and the first value"
    frames = torch.stack([torch.full((32, 48, 3), first+2*i, dtype=torch.uint8) for i in range(n)])
    rows = (first+2*torch.arange(n))[:, None].repeat(1, 7)/255
    return frames, rows, rows*10


@pytest.fixture
def root(tmp_path): return write_lerobot(tmp_path/'set', [episode(40, 10), episode(30, 120), episode(20, 60)], fps=15)


def test_states_and_actions_belong_to_the_frames_of_each_episode(root):
    ds = LeRobotSet(root, t=4, rate=5, size=32)
    for i in range(3):
        clip, act, state = ds[i]
        assert (clip.mean((0, 2, 3))-state[:, 0]).abs().max() < .015
        assert torch.allclose(act, state[:-1]*10, atol=1e-5)
        assert (state[:, 0].diff()*255/2).round().tolist() == [3, 3, 3]


def test_actions_from_poses_and_the_next_epoch(root):
    ds = LeRobotSet(root, t=4, rate=5, size=32, actions='pose')
    a, b = ds[0], ds[0]
    assert torch.allclose(a[1], pose_actions(a[2].double()).float(), atol=1e-5) and not torch.equal(a[2], b[2])
    assert torch.equal(ds.get(0, 1)[2], b[2])


def test_damage_is_named(root):
    info = json.loads((root/'meta'/'info.json').read_text())
    video = next(root.rglob('*.mp4'))
    video.write_bytes(video.read_bytes()[:300])
    with pytest.raises(TrajectoryError, match='file-000.mp4'): LeRobotSet(root, t=4, rate=5)[0]
    (root/'data'/'chunk-000'/'file-000.parquet').write_bytes(b'x')
    with pytest.raises(TrajectoryError, match='not a readable parquet'): LeRobotSet(root, t=4, rate=5)[0]
    (root/'meta'/'info.json').write_text(json.dumps({**info, 'codebase_version': 'v2.1'}))
    with pytest.raises(TrajectoryError, match='is v2.1; v3 is read'): LeRobotSet(root)
    (root/'meta'/'info.json').write_text('{')
    with pytest.raises(TrajectoryError, match='info.json'): LeRobotSet(root)
    with pytest.raises(TrajectoryError, match='info.json'): LeRobotSet(root/'nothing')


def test_refusals(root):
    with pytest.raises(ValueError, match='observation.images.top'): LeRobotSet(root, camera='wrist')
    with pytest.raises(ValueError, match='wild'): LeRobotSet(root, actions='wild')
    with pytest.raises(TrajectoryError, match='20 frames at 15 a second'): LeRobotSet(root, t=9, rate=5)[2]

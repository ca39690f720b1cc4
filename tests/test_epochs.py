"""A fresh augmentation every epoch, whoever trains: a bare loop, torch's loader with workers of any kind, fastai."""
from functools import partial
import pytest
import torch
from torch.utils.data import DataLoader
from vidlit.pretrain.trajectories import TrajectorySet, write_trajectory
from vidlit.train.finetune import check_labels
from vidlit.video.clips import ClipSet, TensorSource, VideoFolder
from vidlit.video.sampling import list_folder, strided
from vidlit.video.writing import numbered_frame, write_video


def noisy(clip, gen): return clip+torch.rand(1, generator=gen)
def still(clip, gen=None, size=None): return clip


def clips(): return ClipSet(TensorSource(torch.zeros(6, 3, 1, 2, 2), torch.arange(6)), noisy, seed=3)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    d = tmp_path_factory.mktemp('videos')
    for s in ('train', 'val'):
        for k in ('a', 'b'):
            (d/s/k).mkdir(parents=True)
            write_video(d/s/k/'0.mp4', [numbered_frame(i) for i in range(40)], fps=10)
    return d


def passes(ds, n=3, **kw): # First number of each item, in n epochs of one loader
    dl = DataLoader(ds, 2, shuffle=True, **kw)
    order = [{int(y): float(x[0, 0, 0, 0]) for xs, ys in dl for x, y in zip(xs, ys)} for _ in range(n)]
    return [[o[k] for k in sorted(o)] for o in order]


@pytest.mark.parametrize('kw', [dict(), dict(num_workers=2), dict(num_workers=1, persistent_workers=True),
    dict(num_workers=1, multiprocessing_context='spawn', persistent_workers=True)], ids=str)
def test_every_loader_moves_on_and_all_agree(kw):
    torch.manual_seed(0)
    want = [[float(clips().get(i, e)[0][0, 0, 0, 0]) for i in range(6)] for e in range(3)]
    assert passes(clips(), **kw) == want and want[0] != want[1] != want[2]


def test_fastai_moves_on_too():
    from fastai.data.load import DataLoader as Fast
    dl = Fast(clips(), bs=6)
    a, b = [next(iter(dl))[0] for _ in range(2)]
    assert not torch.equal(a, b)


def test_set_epoch_decides_until_it_is_taken_back():
    ds = clips()
    ds.set_epoch(5)
    assert torch.equal(ds[1][0], ds[1][0]) and torch.equal(ds[1][0], ds.get(1, 5)[0])
    ds.set_epoch()
    assert torch.equal(ds[1][0], ds.get(1, 0)[0]) and torch.equal(ds[1][0], ds.get(1, 1)[0])


def test_a_pinned_epoch_reaches_persistent_workers():
    ds = clips()
    ds.set_epoch(0)
    dl = DataLoader(ds, 6, num_workers=1, persistent_workers=True)
    first = [x for x, _ in dl][0]
    ds.set_epoch(1)
    assert not torch.equal([x for x, _ in dl][0], first)


def test_what_is_for_validation_stands_still(root):
    take = partial(strided, t=2, stride=1)
    train, val = (VideoFolder(root, take, still, split=s) for s in ('train', 'valid'))
    assert not torch.equal(train[0][0], train[0][0]) and torch.equal(val[0][0], val[0][0])


def test_trajectories_move_on(tmp_path):
    states = torch.arange(40.)[:, None].repeat(1, 7)*.01
    frames = torch.stack([torch.full((16, 16, 3), 6*i, dtype=torch.uint8) for i in range(40)])
    write_trajectory(tmp_path/'one', frames, states, fps=10)
    ds = TrajectorySet(tmp_path, t=3, rate=10, size=16)
    dl = DataLoader(ds, 1, num_workers=1)
    seen = [next(iter(dl))[2][0, 0, 0].item() for _ in range(4)]
    assert len(set(seen)) > 1 and seen[0] == ds.get(0, 0)[2][0, 0].item()


def test_unlabelled_videos_are_named(root, tmp_path):
    write_video(tmp_path/'loose.mp4', [numbered_frame(i) for i in range(3)], fps=10)
    with pytest.raises(ValueError, match='1 of 1 have no label: .*loose.mp4'): check_labels(list_folder(tmp_path))
    check_labels(VideoFolder(root, split='train'), 2)
    with pytest.raises(ValueError, match='there are 1 classes'): check_labels(VideoFolder(root), 1)

"""Windows and maps of the refiner, for every length and size"""
import torch
from hypothesis import given, settings, strategies as st
from vidlit.refiner.windows import (
    Mapping,
    WindowDataset,
    apply_map,
    boxed,
    key_frames,
    low_pair,
    square,
    undo_map,
    window_frames,
    window_starts,
)

few = settings(max_examples=40, deadline=None)


@few
@given(t=st.integers(1, 100), n=st.integers(1, 20), data=st.data())
def test_every_frame_is_covered(t, n, data):
    overlap = data.draw(st.integers(0, n-1))
    starts, seen = window_starts(t, n, overlap), torch.zeros(t)
    for s in starts:
        i, ok = window_frames(t, s, n)
        assert len(i) == n and i.min() >= 0 and i.max() < t and int(ok.sum()) == min(n, t)
        seen[i[ok]] += 1
    assert (seen >= 1).all() and starts[0] == 0 and starts == sorted(set(starts))
    # neighbours share at least `overlap` frames, and the last window ends with the video
    assert all(b-a <= n-overlap for a, b in zip(starts, starts[1:])) and (t <= n or starts[-1] == t-n)


def test_lengths_to_100_by_the_document():
    for t in range(1, 101):
        key = torch.zeros(t, dtype=torch.bool)
        for s in window_starts(t):
            i, ok = window_frames(t, s)
            key[i[ok & key_frames()]] = True
        assert key[0] and (t < 9 or key[8])


@few
@given(h=st.integers(2, 60), w=st.integers(2, 60), side=st.integers(4, 64), how=st.sampled_from([square, boxed]))
def test_points_and_camera_agree(h, w, side, how):
    m = how(h, w, side)
    assert m.size == (side, side)
    K = torch.tensor([[50., 0, w/2], [0, 55., h/2], [0, 0, 1]])
    xyz = torch.rand(20, 3, generator=torch.Generator().manual_seed(0))+torch.tensor([-.5, -.5, 1.])

    def seen(K): return (xyz@K.T)[:, :2]/xyz[:, 2:]
    assert torch.allclose(seen(m.K(K)), m.points(seen(K)), atol=1e-3)


@few
@given(h=st.integers(4, 40), w=st.integers(4, 40), side=st.integers(8, 48))
def test_metres_stay_metres(h, w, side):
    x = torch.full((2, 1, h, w), 3.7)
    m = boxed(h, w, side)
    y, inside = undo_map(apply_map(x, m), m)
    assert torch.allclose(y, x, atol=1e-4) and inside.all()


@few
@given(h=st.integers(1, 30), w=st.integers(1, 30), f=st.integers(1, 5))
def test_low_grid_lies_within_the_full_one(h, w, f):
    g = torch.Generator().manual_seed(h*100+w)
    d, c = 1+torch.rand(2, 1, h, w, generator=g), torch.rand(2, 1, h, w, generator=g)
    low, conf = low_pair(d, c, f)
    assert low.shape == (2, 1, -(-h//f), -(-w//f))
    assert low.min() >= d.min()-1e-5 and low.max() <= d.max()+1e-5 and conf.max() <= c.max()


def test_identity_map_changes_nothing():
    x, m = torch.rand(3, 7, 9), Mapping((7, 9), (7, 9))
    assert torch.equal(apply_map(x, m), x) and torch.allclose(undo_map(x, m)[0], x, atol=1e-6)


@few
@given(t=st.integers(1, 40), train=st.booleans(), seed=st.integers(0, 1000))
def test_dataset_never_mixes_videos_and_repeats_itself(t, train, seed):
    v = [dict(depth=torch.full((t, 1, 4, 4), 1.+i)+torch.arange(t).view(t, 1, 1, 1)/100, conf=torch.ones(t, 1, 4, 4),
        rgb=torch.zeros(t, 3, 4, 4)) for i in range(2)]
    a, b = (WindowDataset(v, train=train, seed=seed, factor=2) for _ in range(2))
    for k in range(len(a)):
        x = a[k]
        assert len({int(o) for o in x['depth'].flatten()}) == 1 and torch.equal(x['frames'], b[k]['frames'])
        assert torch.allclose(x['depth'][:, 0, 0, 0] % 1, x['frames']/100, atol=1e-5)

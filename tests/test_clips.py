"Samplers, lists and loaders: properties, workers, damaged files, exact frames."
import json
import os
import pickle
from collections import Counter
from functools import partial
from pathlib import Path
import pytest
import torch
from fastai.learner import Learner
from hypothesis import given, settings, strategies as st
from vidlit.video import clips as C
from vidlit.video.clips import ClipLoader, ClipSet, TooManyBad, VideoFolder, VideoSource, clip_dls, fit_square, item_gen
from vidlit.video.reader import numbered_frame, read_number, write_video
from vidlit.video.sampling import (
    VideoList,
    by_rate,
    dense,
    list_csv,
    list_folder,
    list_ssv2,
    list_ucf,
    sliding,
    strided,
    strided_views,
    uniform,
    uniform_views,
)
from vidlit.video.transforms import compose, finetune_tfm, mix, three_crop

SHARED = Path(os.environ.get('VIDLIT_SHARED', Path(__file__).resolve().parents[2]/'shared'))
quick = settings(max_examples=60, deadline=None)


def film(path, n=40, fps=25):
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_video(path, torch.stack([numbered_frame(i) for i in range(n)]), fps)


@pytest.fixture(scope='module')
def films(tmp_path_factory):
    root = tmp_path_factory.mktemp('films')
    for i in range(8): film(root/'ab'[i % 2]/f'{i}.mp4', 20+i)
    return root


@pytest.fixture
def damaged(films, tmp_path):
    "Eight files, two of them unreadable: exactly a quarter"
    files = list_folder(films).paths
    out = [tmp_path/f'{i}.mp4' for i in range(8)]
    for a, b in zip(files, out): b.write_bytes(a.read_bytes())
    out[2].write_bytes(b'no film at all')
    out[5].unlink()
    return VideoList(out, list(range(8)))


def noisy(clip, gen): return fit_square(clip, size=16)+torch.rand(1, generator=gen)


# which frames

@quick
@given(st.integers(1, 400), st.integers(1, 32), st.integers(1, 8), st.one_of(st.none(), st.integers(0, 2**40)))
def test_samplers_stay_inside(n, t, stride, seed):
    def gen(): return None if seed is None else torch.Generator().manual_seed(seed)
    fs = dict(uniform=partial(uniform, t=t), strided=partial(strided, t=t, stride=stride),
        jepa=partial(strided, t=t, stride=stride, ends=True),
        dense=partial(dense, t=t, window=8*stride), rate=partial(by_rate, t=t, rate=25/stride))
    for k, f in fs.items():
        i = f(n, 25., gen())
        assert i.shape == (t,) and i.dtype == torch.int64, k
        assert 0 <= i.min() and i.max() < n and (i.diff() >= 0).all(), k
        assert torch.equal(i, f(n, 25., gen())), k


@quick
@given(st.integers(1, 300), st.integers(1, 20), st.integers(1, 5), st.integers(1, 6))
def test_views_stay_inside_and_sliding_covers(n, t, stride, k):
    for i in (strided_views(n, n=k, t=t, stride=stride), uniform_views(n, n=k, t=t)):
        assert i.shape == (k, t) and 0 <= i.min() and i.max() < n and (i.diff(dim=1) >= 0).all()
    i = sliding(n, t=t)
    assert i.unique().tolist() == list(range(n)) and i.shape[1] == t
    v = strided_views(n, n=k, t=t, stride=stride)
    assert k == 1 or n < (t-1)*stride+1 or (v[0, 0] == 0 and v[-1, -1] == n-1)


def test_strided_reaches_every_start_and_long_videos_keep_their_stride():
    starts = {strided(40, gen=item_gen(s), t=4, stride=4)[0].item() for s in range(400)}
    assert starts == set(range(40-13+1))
    assert by_rate(1000, 30000/1001, rate=29.97002997/2, t=8).diff().tolist() == [2]*7


@pytest.mark.parametrize('call, says', [
    (lambda: uniform(0), '0 frames'), (lambda: strided(9, t=0), 't must be positive, not 0'),
        (lambda: strided(9, stride=0), 'stride'),
    (lambda: by_rate(9, 0., t=2), 'fps'), (lambda: by_rate(9, 25.), 'seconds=None'),
        (lambda: dense(9, window=0), 'window'),
    (lambda: sliding(9, hop=-1), 'hop')])
def test_samplers_refuse(call, says):
    with pytest.raises(ValueError, match=says): call()


# which files

def test_lists_refuse_by_name(tmp_path):
    (tmp_path/'classInd.txt').write_text('1 run\n')
    (tmp_path/'trainlist02.txt').write_text('jump/a.avi 1\n')
    (tmp_path/'ss.json').write_text(json.dumps([{'id': '3', 'template': 'Lifting [x]'}]))
    (tmp_path/'lab.json').write_text('{"Dropping x": "0"}')
    (tmp_path/'empty.csv').write_text('\n')
    calls = {'jump/a.avi': lambda: list_ucf(tmp_path, tmp_path, 2), 'not 4': lambda: list_ucf(tmp_path, tmp_path, 4),
        f'no video found by {tmp_path}$': lambda: list_folder(tmp_path),
            'empty.csv': lambda: list_csv(tmp_path/'empty.csv'),
        'Lifting x': lambda: list_ssv2(tmp_path/'ss.json', tmp_path/'lab.json', tmp_path)}
    for says, call in calls.items():
        with pytest.raises(ValueError, match=says): call()


def test_flat_folder_has_no_labels(films):
    flat = list_folder(films/'a')
    assert set(flat.labels) == {-1} and flat.vocab == [] and len(flat) == 4


# exact frames

@pytest.mark.parametrize('sampler',
    [partial(strided, t=5, stride=3), partial(uniform, t=7), partial(strided_views, n=3, t=4, stride=2)])
def test_the_frames_are_the_ones_the_sampler_named(films, sampler):
    src = VideoSource(list_folder(films), sampler)
    for i in (0, 3):
        clip, _ = src(i, item_gen(1, i))
        n = 20+int(Path(src.videos.paths[i]).stem)
        frames = (clip.movedim(-4, -1)*255).round().byte()
        assert torch.equal(read_number(frames), sampler(n, 25., item_gen(1, i)))


def test_one_decode_for_many_views(films, monkeypatch):
    opened = Counter()

    class Counting(C.VideoReader):
        def __init__(self, path, **kw): opened.update([str(path)]); super().__init__(path, **kw)
    monkeypatch.setattr(C, 'VideoReader', Counting)
    dl = ClipLoader(ClipSet(VideoSource(list_folder(films), partial(strided, t=2)), noisy, views=4), bs=4, shuffle=True)
    got = list(dl)
    assert [o[0].shape[0] for o in got] == [16, 16] and set(opened.values()) == {1} and len(opened) == 8
    clip, label = got[0]
    assert torch.equal(label.view(4, 4), label.view(4, 4)[:, :1].expand(-1, 4))
    assert not torch.equal(clip[0], clip[1])


def test_clips_times_crops(films):
    ds = ClipSet(VideoSource(list_folder(films), partial(strided_views, n=2, t=3)), partial(three_crop, size=16))
    clip, label = ClipLoader(ds, bs=4).one_batch()
    assert clip.shape == (4, 6, 3, 3, 16, 16) and label.shape == (4,)


def test_shrinking_bytes_first(films):
    clip, _ = VideoSource(list_folder(films), partial(strided, t=2), short=24)(0)
    assert clip.shape == (3, 2, 24, 40)


# workers and order

def passes(ds, workers, context=None, epochs=2, **kw):
    dl = ClipLoader(ds, bs=3, shuffle=True, num_workers=workers, context=context, **kw)
    return [b for _ in range(epochs) for b in dl]


def same(a, b): return len(a) == len(b) and all(torch.equal(x, y) for p, q in zip(a, b) for x, y in zip(p, q))


@pytest.mark.parametrize('workers, context', [(1, 'fork'), (2, 'fork'), (1, 'spawn')])
def test_workers_change_nothing(films, workers, context):
    ds = ClipSet(VideoSource(list_folder(films), partial(strided, t=2)), compose(noisy), views=2, seed=5)
    kw = dict(batch_tfm=partial(mix, classes=2), epochs=1 if context == 'spawn' else 2)
    assert same(passes(ds, workers, context, **kw), passes(ds, 0, **kw))


def test_items_do_not_depend_on_order_batch_or_global_state():
    ds = ClipSet(C.TensorSource(torch.rand(10, 3, 2, 4, 4), torch.arange(10)), lambda c,
        gen: c+torch.rand(1, generator=gen), seed=3)
    state = torch.get_rng_state()
    a = {int(y): x for c, l in ClipLoader(ds, bs=4, shuffle=True) for x, y in zip(c, l)}
    torch.manual_seed(123)
    b = {int(y): x for c, l in ClipLoader(ds, bs=7) for x, y in zip(c, l)}
    assert all(torch.equal(a[k], b[k]) for k in a) and len(a) == 10
    torch.set_rng_state(state)
    list(ClipLoader(ds, bs=4, shuffle=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_epochs_advance_only_when_finished():
    dl = clip_dls((torch.rand(9, 3, 1, 2, 2), torch.arange(9)), bs=3).train
    first = [l.tolist() for _, l in dl]
    assert dl.epoch == 1
    next(iter(dl))
    dl.one_batch()
    assert dl.epoch == 1
    second = [l.tolist() for _, l in dl]
    assert first != second and sorted(sum(second, [])) == list(range(9))
    dl.epoch = 0
    assert [l.tolist() for _, l in dl] == first


def test_a_new_loader_keeps_what_the_old_one_was():
    dl = ClipLoader(ClipSet(C.TensorSource(torch.rand(6, 3, 1, 2, 2))), bs=2, shuffle=True, seed=9, bad_limit=.5)
    new = dl.new(shuffle=False)
    assert (new.seed, new.bad_limit, new.bs, new.shuffle, new.flat) == (9, .5, 2, False, True)


def test_learner_trains_and_predicts_in_order():
    x, y = torch.rand(12, 3, 2, 4, 4), torch.arange(12) % 3
    dls = clip_dls((x, y), bs=4)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(96, 3))
    learn = Learner(dls, model, loss_func=torch.nn.CrossEntropyLoss(), lr=.1)
    with learn.no_logging(): learn.fit(1)
    for ds in (0, 1):
        p, t = learn.get_preds(ds, act=torch.nn.Identity())
        assert torch.equal(t, y) and torch.allclose(p, model(x), atol=1e-5)


def test_what_travels_to_spawned_workers_can_be_pickled(films):
    ds = pickle.loads(pickle.dumps(
        ClipSet(VideoSource(list_folder(films), partial(uniform, t=2), short=20), finetune_tfm(16))))
    assert ds[0][0].shape == (3, 2, 16, 16)


# damaged files

@pytest.mark.parametrize('workers', [0, 2])
def test_bad_files_are_left_out_named_and_never_replaced(damaged, workers):
    dl = ClipLoader(ClipSet(VideoSource(damaged, partial(strided, t=2)), partial(fit_square, size=16)), bs=3,
        num_workers=workers)
    for _ in range(2):  # a second pass counts no file twice
        assert sorted(int(o) for _, l in dl for o in l) == [0, 1, 3, 4, 6, 7]
    assert [Path(o['file']).name for o in dl.bad_report()] == ['2.mp4', '5.mp4'] and all(o['why']
        for o in dl.bad_report())


def test_past_the_limit_the_run_stops(damaged):
    damaged.paths[7].write_bytes(b'')
    ds = ClipSet(VideoSource(damaged, partial(strided, t=2)), partial(fit_square, size=16))
    with pytest.raises(TooManyBad, match='3 of 8 files(.|\n)*2.mp4'): list(ClipLoader(ds, bs=3))
    with pytest.raises(TooManyBad): list(ClipLoader(ds, bs=3, bad_limit=0))
    assert len(list(ClipLoader(ds, bs=8, bad_limit=.4))[0][1]) == 5


def test_a_batch_of_bad_files_is_skipped(damaged):
    bad = VideoList([damaged.paths[2], damaged.paths[5], *damaged.paths[:2]], [0]*4)
    got = list(ClipLoader(ClipSet(VideoSource(bad, partial(strided, t=2)), partial(fit_square, size=16)), bs=2,
        bad_limit=.5))
    assert len(got) == 1 and len(got[0][1]) == 2


def test_errors_that_are_no_bad_files_are_not_swallowed(films):
    def broken(clip, gen): raise ValueError('broken transform')
    with pytest.raises(ValueError, match='broken transform'): list(
        ClipLoader(ClipSet(VideoSource(list_folder(films)), broken), bs=2))


@pytest.mark.parametrize('kw, says', [(dict(bs=0), 'bs'), (dict(bad_limit=1.5), '1.5')])
def test_loader_refuses(kw, says):
    with pytest.raises(ValueError, match=says): ClipLoader(ClipSet(C.TensorSource(torch.rand(2, 3, 1, 2, 2))), **kw)


@pytest.mark.skipif(not (SHARED/'videos').is_dir(), reason='no shared videos')
def test_real_films():
    ds = VideoFolder(SHARED/'videos', partial(uniform, t=2), partial(fit_square, size=32), short=32)
    dl = ClipLoader(ds, bs=4, bad_limit=.5)
    good = sum(len(l) for _, l in dl)
    assert good+len(dl.bad) == len(ds) and good >= len(ds)/2
    assert not dl.bad or any('corrupt' in Path(o).name for o in dl.bad)

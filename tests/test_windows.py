"""Windows of long videos: the stream against the lists of the official program, memory, arithmetic."""
import weakref
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from vidlit.depth import windows
from vidlit.depth.windows import (
    apply_fit,
    cut_score,
    fit_window,
    frame_parts,
    infer_windows,
    is_cut,
    n_windows,
    scale_shift,
    scenes,
    slide,
    window_frames,
)

lengths = st.integers(1, 400)
quick = settings(max_examples=60, deadline=None, derandomize=True)


def drifting(seed):
    "A model with another scale and shift for each window, in the order it is asked"
    gen = torch.Generator().manual_seed(seed)
    def model(win):
        s, t = torch.rand(2, generator=gen).tolist()
        return win[0]*(.5+s)+t-.3
    return model


def video(n, h=3, w=4): return torch.rand(n, h, w, generator=torch.Generator().manual_seed(n))


def by_lists(frames, model, fit, metric=False):
    "All frames in a list, all depths in a list, then all aligned ones: plain and slow, in numpy"
    n, frames = len(frames), [*frames]+[frames[-1]]*60
    raws, held = [], None
    for at in range(0, n, 22):
        win = frames[at:at+32]
        if held: win[:10] = [held[j] for j in (0, 12, 24, 25, 26, 27, 28, 29, 30, 31)]
        raws.append(model(torch.stack(win)[None]).numpy())
        held = win
    out, refs = list(raws[0]), [raws[0][0], raws[0][12]]
    for raw in raws[1:]:
        s, t = (1., 0.) if metric else fit(raw[:2], np.stack(refs))
        new = [np.maximum(d*np.float32(s)+np.float32(t), 0) for d in raw]
        for j in range(8): out[j-8] = out[j-8]*np.float32(1-j/7)+new[2+j]*np.float32(j/7)
        out += new[10:]
        refs[1] = new[12]
    return np.stack(out[:n])


@given(st.integers(1, 100), st.integers(0, 99), st.booleans())
@quick
def test_stream_equals_lists(n, seed, metric):
    got = torch.stack(list(infer_windows(video(n), drifting(seed), metric=metric)))
    assert np.array_equal(got, by_lists(video(n), drifting(seed), scale_shift, metric))


@given(st.integers(1, 100), st.integers(0, 99))
@quick
def test_fit_is_least_squares(n, seed):
    def lstsq(x, y):
        return np.linalg.lstsq(np.stack([x.ravel(), np.ones(x.size)], 1).astype(float), y.ravel().astype(float),
            rcond=None)[0]
    got = torch.stack(list(infer_windows(video(n), drifting(seed))))
    np.testing.assert_allclose(got, by_lists(video(n), drifting(seed), lstsq), atol=2e-4)


@given(lengths)
@quick
def test_every_frame_once(n):
    used = set()
    for i in range(n):
        parts = frame_parts(i)
        assert sum(w for *_, w in parts)==pytest.approx(1) and all(0<=w<=1 and 0<=j<32 for _, j, w in parts)
        assert all(window_frames(k)[j]==i for k, j, _ in parts)
        used |= {k for k, *_ in parts}
    assert used==set(range(n_windows(n))) and n_windows(n)<=n_windows(n, official=True)<=n_windows(n)+1


@given(lengths, st.integers(1, 20))
@quick
def test_slide_goes_on_anywhere(n, k):
    wins = list(slide(range(n)))
    assert [w for w, _ in wins]==[window_frames(j, n) for j in range(n_windows(n))]
    if k<len(wins): assert list(slide(range(22*k+10, n), window_frames(k, n)[:10], min(10, n-22*k)))==wins[k:]
    assert all(w[:10]==[v[j] for j in windows.KEYS] for (v, _), (w, _) in zip(wins, wins[1:]))


@pytest.mark.parametrize('n', [1, 500, 3000])
def test_memory_is_a_window(n):
    alive, most, read = {'frame': 0, 'raw': 0}, {'frame': 0, 'raw': 0}, [0]

    def born(o, kind):
        alive[kind] += 1
        weakref.finalize(o, lambda: alive.update({kind: alive[kind]-1}))
        return o

    def source():
        for i in range(n):
            read[0] += 1
            yield born(torch.full((2, 3), i%9+.5), 'frame')

    for i, d in enumerate(infer_windows(source(), lambda w: born(w[0]*(1+.1*read[0]%.5), 'raw'))):
        for k in most: most[k] = max(most[k], alive[k])
        assert read[0]<=i+32 and d.untyped_storage().nbytes()==d.nbytes # not later than needed, and no view of a window
    assert i==n-1 and most['frame']<=60 and most['raw']<=2


def test_prep_is_asked_once_a_frame():
    seen = []
    out = list(infer_windows((torch.full((2, 3, 3), i, dtype=torch.uint8) for i in range(70)), lambda w: w[0, :, 0],
                             prep=lambda f: seen.append(int(f[0, 0, 0])) or f.movedim(-1, 0)/255))
    assert seen==list(range(70)) and len(out)==70 and out[0].shape==(2, 3)


@pytest.mark.parametrize('bad,msg',
    [(lambda w: w[0, :31], r'\[31, 3, 4\]'), (lambda w: w[0, 0], r'\[3, 4\]'), (lambda w: w[0]/0, '384 of 384 values')])
def test_bad_answers_are_refused(bad, msg):
    with pytest.raises(ValueError, match=msg): list(infer_windows(video(5), bad))
    assert torch.equal(windows.run_window(lambda w: w, [video(1)[0]]*32), video(1).expand(32, -1, -1))


def test_fits_that_say_nothing_are_refused():
    gen = torch.Generator().manual_seed(0)
    a, noise = torch.rand(2, 20, 20, generator=gen), torch.rand(2, 20, 20, generator=gen)
    state = windows.WindowState(a[0], a[1], (2., .1))
    assert fit_window(2*a-1, state)==pytest.approx((.5, .5))
    for x in (noise, 1-a, a*0+.3): assert fit_window(x, state)==(2., .1)
    assert fit_window(a, None) is None and fit_window(noise, state, metric=True)==(1., 0.)
    assert windows.next_state(noise, (2., 0.),
        state).anchor is state.anchor and torch.equal(windows.next_state(noise, (2., 0.), state).key, noise[1]*2)
    assert apply_fit(a-2, (1., 0.)).max()==0 and apply_fit(a, None) is a


@given(st.lists(st.integers(0, 3), max_size=60))
@quick
def test_scenes_lose_nothing(labels):
    got = [list(s) for s in scenes(iter(labels), lambda a, b: a!=b)]
    assert [o for s in got for o in s]==labels and all(len(set(s))==1 for s in got)
    assert all(a[0]!=b[0] for a, b in zip(got, got[1:]))


def test_scenes_start_anew():
    x = video(120)
    got = torch.stack(list(infer_windows(iter(x), lambda w: w[0], cut=lambda a, b: bool((b==x[50]).all()))))
    want = torch.cat([torch.stack(list(infer_windows(p, lambda w: w[0]))) for p in (x[:50], x[50:])])
    assert torch.equal(got, want) and not list(infer_windows([], lambda w: w[0], cut=is_cut))


def test_cut_score_is_a_distance_of_colours():
    black, white = torch.zeros(8, 8, 3, dtype=torch.uint8), torch.full((8, 8, 3), 255, dtype=torch.uint8)
    half = torch.cat([black[:4], white[:4]])
    assert [cut_score(black, black), cut_score(black, white), cut_score(half, white)]==[0, 1, .5]
    assert cut_score(half.movedim(-1, 0)/255, white.movedim(-1, 0)/255)==.5
    assert cut_score(half, half.flip(0))==0 and is_cut(black, white) and not is_cut(half, white)


@pytest.mark.parametrize('window,fade', [(32, 8), (32, 4), (24, 6), (16, 3)])
def test_overlap_is_changed_in_one_place(window, fade, monkeypatch):
    "Windows, their parts and the blend follow from the two numbers"
    step = window-fade-2
    keys = [0, min(12, step), *range(window-fade, window)]
    for k, v in dict(WINDOW=window, FADE=fade, STEP=step, KEYS=keys).items():
        monkeypatch.setattr(windows, k, v)
    x = video(100)
    for k in range(n_windows(100)): assert list(slide(range(100)))[k][0]==window_frames(k, 100)
    for i in range(100):
        parts = frame_parts(i)
        assert sum(w for *_, w in parts)==pytest.approx(1) and all(window_frames(k)[j]==i for k, j, _ in parts)
    model = drifting(1)
    got = torch.stack(list(infer_windows(x, lambda win: model(win)+.3)))  # nothing below 0, where depth is clipped
    s, t = scale_shift(got, x)
    torch.testing.assert_close(got*s+t, x, atol=1e-4, rtol=1e-4)

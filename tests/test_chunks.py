"""Chunks: exact arithmetic, kills at random and at every write, two workers, hanging ones, bad input, exact merges."""
import errno
import json
import multiprocessing as mp
import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from vidlit.depth.windows import infer_windows, n_windows, window_frames
from vidlit.floor import store
from vidlit.pipeline import job as C
from vidlit.pipeline.depth_source import load_depths
from vidlit.pipeline.job import ChunkError, auto_chunks, first_windows, make_job, open_job, share_windows, split
from vidlit.pipeline.merge import chunk_fits, merge, merge_files, merge_frames, robust_fit
from vidlit.pipeline.worker import Lease, forget, run, status
from vidlit.video.depth_frames import DepthError, DepthReader
from vidlit.video.reader import VideoReader
from vidlit.video.writing import EmptyVideoError, VideoError, numbered_frame, write_video

fork = mp.get_context('fork')
quick = settings(max_examples=80, deadline=None, derandomize=True)
sizes = (st.integers(1, 9000), st.integers(1, 12), st.integers(0, 64))


class Drifting:
    "Brightness on a scale that depends on what is seen; counts its calls in a file, which outlives the process"
    def __init__(self, log=None, slow=0., stop=None): self.log, self.slow, self.calls, self.stop = log, slow, 0, stop

    def __call__(self, win):
        self.calls += 1
        if self.calls==self.stop: raise RuntimeError('no memory left')
        if self.log:
            with open(self.log, 'ab', buffering=0) as f: f.write(b'x')
        time.sleep(self.slow)
        x = win[0].float().mean(-1)/255
        s = float(x[20:].double().mean())*1000%1
        return x*(.5+s)+s/3


@pytest.fixture(scope='module')
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp('video')/'video.mp4', (numbered_frame(i) for i in range(150)), 25)


@pytest.fixture(scope='module')
def undisturbed(video, tmp_path_factory):
    "A job done in one go by one worker, and its merged video"
    path = tmp_path_factory.mktemp('whole')
    make_job(path/'job', video, 3, 12)
    run(path/'job', Drifting(), 'drifting')
    merge(path/'job', path/'out')
    return contents(path/'job'), images(path/'out')


def contents(path):
    return {o.relative_to(path).as_posix(): o.read_bytes() for o in sorted(path.glob('chunk_*/*')) if o.suffix!='.lock'}
def images(path): return {o.name: o.read_bytes() for o in sorted(path.glob('[!.]*.*'))}
def calls(log): return log.stat().st_size if log.exists() else 0


def started(f, *args, **kw):
    p = fork.Process(target=quiet, args=(f, *args), kwargs=kw)
    p.start()
    return p


def quiet(f, *args, **kw):
    try: f(*args, **kw)
    except ChunkError: os._exit(3)


# arithmetic

@given(*sizes)
@quick
def test_split_is_exact(n, k, o):
    r = split(n, k, o)
    assert r[0][0]==0 and r[-1][1]==n and len(r)<=k
    assert all(b-a2==o for (_, b), (a2, _) in zip(r, r[1:]))
    assert max(b-a for a, b in r)-min(b-a for a, b in r)<=1
    assert all(b<=a2 for (_, b), (a2, _) in zip(r, r[2:])), 'a frame in three chunks'
    assert len(r)==k or n<(k+1)*max(1, o)


def test_the_numbers_of_the_document():
    r = split(6553, 5, 32)
    assert sum(b-a for a, b in r)==6681 and sum(b-a for a, b in r)-4*32==6553
    flat = [torch.zeros(1, 1)]*1337
    assert [i for i, _ in merge_frames([flat]*5, r, [None]*5)]==list(range(6553))
    for bad in ((0, 5, 32), (10, 0, 32), (10, 5, -1)):
        with pytest.raises(ValueError, match=str(bad)[1:-1]): split(*bad)


@given(st.integers(1, 300), st.integers(1, 9), st.integers(0, 40), st.integers(0, 99))
@quick
def test_n_frames_give_n_depth_frames(n, k, o, seed):
    truth = torch.rand(n, 3, 4, generator=torch.Generator().manual_seed(seed))
    r = split(n, k, o)
    got = list(merge_frames([truth[a:b] for a, b in r], r, [None]*len(r)))
    assert [i for i, _ in got]==list(range(n)) and torch.allclose(torch.stack([d for _, d in got]), truth, atol=1e-6)
    for i in (0, n//2, n-1):
        assert torch.equal(next(merge_frames([truth[a:b] for a, b in r], r, [None]*len(r), which=[i]))[1], got[i][1])


def test_the_later_chunk_fades_in():
    parts = [torch.zeros(8, 1, 1), torch.ones(8, 1, 1)]
    def weights(discard): return [float(d) for _, d in merge_frames(parts, [(0, 8), (5, 13)], [None, None], discard)]
    assert weights(False)==[0]*5+[.25, .5, .75]+[1]*5 and weights(True)==[0]*8+[1]*5


@given(st.integers(1, 200), st.integers(1, 5), st.integers(4, 30), st.integers(0, 99))
@quick
def test_scales_of_chunks_are_undone(n, k, o, seed):
    gen = torch.Generator().manual_seed(seed)
    truth, r = torch.rand(n, 6, 5, generator=gen)+1, split(n, k, o)
    scales = torch.rand(len(r), 2, generator=gen)*.5+.5
    parts = [truth[a:b]*s+t for (a, b), (s, t) in zip(r, scales)]
    got = torch.stack([d for _, d in merge_frames(parts, r, chunk_fits(parts, r))])
    assert torch.allclose(got, truth*scales[0, 0]+scales[0, 1], atol=1e-4)


@given(st.floats(.1, 10), st.floats(-5, 5), st.integers(0, 35), st.integers(0, 99))
@quick
def test_outliers_do_not_move_the_fit(s, t, percent, seed):
    rng = np.random.default_rng(seed)
    x = rng.random(3000)
    y = s*x+t
    y[:30*percent] += s*rng.uniform(.5, 4)
    assert robust_fit(x, y)==pytest.approx((s, t), rel=1e-3, abs=1e-3*s)


@given(st.floats(.2, 5), st.floats(.03, .5), st.integers(0, 10), st.integers(0, 99))
@settings(quick, max_examples=25)
def test_a_flat_scene_does_not_draw_the_scale_to_zero(s, part, percent, seed):
    rng = np.random.default_rng(seed)
    d = np.where(rng.random(5000)<part, rng.uniform(.5, 1, 5000), .3+.02*rng.random(5000))
    x, y = d+.004*rng.standard_normal(5000), s*(d+.004*rng.standard_normal(5000))-.1
    x[:50*percent] += 1
    assert robust_fit(x, y)[0]==pytest.approx(s, rel=.02) and robust_fit(y, x)[0]==pytest.approx(1/s, rel=.02)


def test_auto_chunks():
    assert auto_chunks(6553)==1 and auto_chunks(6553, 3)==6 and auto_chunks(100, 8)==1 and auto_chunks(1, 2)==1


# kills

def killed(job, log, rng):
    "Kill the worker at ten random moments, then let it finish: how often it was killed"
    work, kills = partial(run, job.path, Drifting(log, slow=.03), 'drifting', ttl=5), 0
    while kills<10 and any(job.work(c).missing for c in range(3)):
        p = started(work)
        time.sleep(rng.uniform(.02, .35))
        os.kill(p.pid, signal.SIGKILL)
        p.join()
        kills += 1
    work()
    return kills


def test_ten_random_kills(video, undisturbed, tmp_path):
    job, log, rng = make_job(tmp_path/'job', video, 3, 12), tmp_path/'calls', random.Random(1)
    kills = killed(job, log, rng)
    assert contents(job.path)==undisturbed[0]
    assert sum(n_windows(job.length(c)) for c in range(3))<=calls(log)<=sum(n_windows(job.length(c))
        for c in range(3))+kills
    assert status(job.path)['done']==150 and not list(tmp_path.rglob('.tmp-*'))
    for _ in range(4):
        p = started(merge, job.path, tmp_path/'out')
        time.sleep(rng.uniform(.05, .4))
        os.kill(p.pid, signal.SIGKILL)
        p.join()
    merge(job.path, tmp_path/'out')
    assert images(tmp_path/'out')==undisturbed[1]


@quick
@given(sizes[0], sizes[1])
def test_windows_shared_out(n, chunks):
    "Every window of the video once, every frame in the piece that makes it, nothing shared but the fade"
    r = share_windows(n, chunks)
    first = first_windows(n, chunks)
    each = [b-a for a, b in zip(first, first[1:])]
    assert len(r)==min(chunks, n_windows(n)) and r[0][0]==0 and r[-1][1]==n and max(each)-min(each)<=1
    for (a, b), k, end in zip(r, first, first[1:]):
        assert all(a<=i<b for j in range(k, end) for i in window_frames(j, n)[2:] if k or i)
    assert all(b-a<=8 for (_, b), (a, _) in zip(r, r[1:]))


def test_ten_kills_of_shared_windows(video, tmp_path):
    "Three pieces, killed ten times: the video in one go, to the bit, and no window asked for twice but those in flight"
    job, log = make_job(tmp_path/'job', video, 3), tmp_path/'calls'
    kills = killed(job, log, random.Random(2))
    assert n_windows(150)<=calls(log)<=n_windows(150)+kills and status(job.path)['done']==150
    with job.read() as v: straight = torch.stack(list(infer_windows(v.stream(), Drifting())))
    assert torch.equal(merge(job.path, tmp_path/'out', storage='npz')[:][:, 0], straight)
    with pytest.raises(ChunkError, match='no frames to discard'): merge(job.path, tmp_path/'no', how='discard')


def test_shared_windows_of_a_metric_model(video, tmp_path):
    job = make_job(tmp_path/'job', video, 4)
    run(job.path, Drifting(), 'drifting', kind='depth', units='m', metric=True)
    with job.read() as v: straight = torch.stack(list(infer_windows(v.stream(), Drifting(), metric=True)))
    assert torch.equal(merge(job.path, tmp_path/'out', storage='npz')[:][:, 0], straight)


@pytest.mark.parametrize('what', ['gone', 'changed'])
def test_a_damaged_shared_window_is_noticed(video, tmp_path, what):
    job = make_job(tmp_path/'job', video, 3)
    run(job.path, Drifting(), 'drifting')
    f = job.box(1)/'window_00001.npy'
    data = bytearray(f.read_bytes())
    data[-1] ^= 1
    f.unlink() if what=='gone' else f.write_bytes(data)
    with pytest.raises(ChunkError, match='forget its chunk'): merge(job.path, tmp_path/'out')
    forget(job.path, 1)
    run(job.path, Drifting(), 'drifting')
    assert len(merge(job.path, tmp_path/'out'))==150


def dies_at(k, job, log):
    "Work, and die at the k-th write that counts: a rename, or in the middle of a log line"
    left = [k]
    def last():
        left[0] -= 1
        return left[0]==0
    rename, add = os.replace, store._Log.add

    def replace(a, b, **kw):
        if last(): os._exit(9)
        rename(a, b, **kw)
        if last(): os._exit(9)

    def torn(self, item, value):
        if last():
            with self.path.open('ab') as f: f.write(store._row(item, value)[:-7])
            os._exit(9)
        add(self, item, value)
    os.replace, store._Log.add = replace, torn
    run(job.path, Drifting(log), 'drifting', ttl=5)


def test_a_kill_at_every_write(video, tmp_path):
    "One chunk of two windows; the worker dies at its 1st, 2nd, 3rd... write"
    whole = make_job(tmp_path/'whole', write_video(tmp_path/'short.mp4', (numbered_frame(i) for i in range(40)), 25))
    run(whole.path, Drifting(), 'drifting')
    for k in range(1, 100):
        job, log = make_job(tmp_path/f'job{k}', tmp_path/'short.mp4'), tmp_path/f'calls{k}'
        p = started(dies_at, k, job, log)
        p.join()
        run(job.path, Drifting(log), 'drifting', ttl=5)
        assert contents(job.path)==contents(whole.path), k
        assert calls(log)<=2+1, k
        if p.exitcode==0: break
        assert p.exitcode==9
    assert k>12


def test_a_real_process_is_killed(video, undisturbed, tmp_path):
    job = make_job(tmp_path/'job', video, 3, 12)
    code = f'''import sys, time; sys.path.insert(0, {str(os.path.dirname(__file__))!r})
from test_chunks import Drifting, run
run({str(job.path)!r}, Drifting({str(tmp_path/"calls")!r}, slow=.05), "drifting", ttl=5)'''
    p = subprocess.Popen([sys.executable, '-c', code])
    end = time.monotonic()+120
    while calls(tmp_path/'calls')<4 and time.monotonic()<end: time.sleep(.01)
    p.kill()
    p.wait()
    now = status(job.path)
    assert 0<now['done']<150 and [o['state'] for o in now['workers']]==['gone'] and now['rate']==0
    assert now['left'] is None
    assert not any(o['state']=='working' for o in now['chunks'])
    run(job.path, Drifting(tmp_path/'calls'), 'drifting')
    assert contents(job.path)==undisturbed[0] and calls(tmp_path/'calls')<=9+1


# several workers

def test_two_workers_share(video, undisturbed, tmp_path):
    job, log = make_job(tmp_path/'job', video, 3, 12), tmp_path/'calls'
    two = [started(run, job.path, Drifting(log, slow=.05), 'drifting', ttl=5) for _ in range(2)]
    for p in two: p.join()
    assert [p.exitcode for p in two]==[0, 0]
    assert contents(job.path)==undisturbed[0] and calls(log)==9
    rows = status(job.path)['workers']
    assert sorted(o['state'] for o in rows)==['done', 'done'] and sum(o['frames'] for o in rows)==150+2*12
    assert min(o['windows'] for o in rows)>=1


def test_a_dead_workers_chunk_is_taken_over(video, undisturbed, tmp_path):
    job, log = make_job(tmp_path/'job', video, 3, 12), tmp_path/'calls'
    first = started(run, job.path, Drifting(log, slow=.2), 'drifting', ttl=600)
    while calls(log)<2: time.sleep(.01)
    second = started(run, job.path, Drifting(log, slow=.02), 'drifting', ttl=600)
    while calls(log)<5: time.sleep(.01)
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    second.join()
    assert second.exitcode==0 and contents(job.path)==undisturbed[0] and calls(log)<=9+1


def test_a_hanging_workers_chunk_is_taken_over(video, undisturbed, tmp_path):
    job, log = make_job(tmp_path/'job', video, 3, 12), tmp_path/'calls'
    first = started(run, job.path, Drifting(log, slow=.3), 'drifting', ttl=1)
    while calls(log)<2: time.sleep(.01)
    time.sleep(.05)
    os.kill(first.pid, signal.SIGSTOP)
    try:
        run(job.path, Drifting(log), 'drifting', ttl=1)
        assert contents(job.path)==undisturbed[0]
    finally: os.kill(first.pid, signal.SIGCONT)
    first.join()
    assert first.exitcode==0 and contents(job.path)==undisturbed[0] and calls(log)<=9+1


def test_static_tasks(video, undisturbed, tmp_path):
    job = make_job(tmp_path/'job', video, 3, 12)
    for i in (3, 1): run(job.path, Drifting(), 'drifting', task=(i, 4))
    assert [bool(job.work(c).missing) for c in range(3)]==[True, False, True]
    for i in (0, 2): run(job.path, Drifting(), 'drifting', task=(i, 4))
    assert contents(job.path)==undisturbed[0]
    for bad in ((4, 4), (-1, 4)):
        with pytest.raises(ValueError, match=f'task {bad[0]} of 4'): run(job.path, Drifting(), 'drifting', task=bad)


def test_leases_exclude(tmp_path):
    def grab(q):
        lease = Lease(tmp_path/'a.json')
        q.put(lease.take())
        done.wait(60) # alive until all have tried
    q, done = fork.Queue(), fork.Event()
    four = [started(grab, q) for _ in range(4)]
    got = [q.get() for _ in four]
    done.set()
    for p in four: p.join()
    assert sum(got)==1 and Lease(tmp_path/'a.json').take()


def test_forget_waits_for_nobody(video, tmp_path):
    job = make_job(tmp_path/'job', video, 3, 12)
    lease = Lease(job.path/'leases/001.json')
    assert lease.take()
    with pytest.raises(store.StoreBusy, match='chunk 1'): forget(job.path, 1)


# what can go wrong

def test_a_full_disk_loses_nothing(video, undisturbed, tmp_path, monkeypatch):
    job, save, n = make_job(tmp_path/'job', video, 3, 12), np.save, [0]

    def full(p, a):
        n[0] += 1
        if n[0]==5:
            p.write_bytes(b'half')
            raise OSError(errno.ENOSPC, 'No space left on device', str(p))
        save(p, a)
    monkeypatch.setattr(C.np, 'save', full)
    with pytest.raises(ChunkError, match='No space left.*goes on'): run(job.path, Drifting(), 'drifting')
    assert not list(job.path.rglob('.vidlit-*')) and sum(len(job.work(c).done) for c in range(3))==4
    log = tmp_path/'calls'
    run(job.path, Drifting(log), 'drifting')
    assert contents(job.path)==undisturbed[0] and calls(log)==5


def test_a_failing_chunk_keeps_the_others(video, undisturbed, tmp_path):
    job = make_job(tmp_path/'job', video, 3, 12)
    with pytest.raises(ChunkError, match='1 of 3 chunks failed.*chunk 1: RuntimeError: no memory left'):
        run(job.path, Drifting(stop=5), 'drifting')
    now = status(job.path)
    assert [o['state'] for o in now['chunks']]==['done', 'open', 'done'] and [o['chunk'] for o in now['failures']]==[1]
    with pytest.raises(ChunkError, match='chunk 1.*2 of 3 windows are missing'): merge(job.path, tmp_path/'out')
    run(job.path, Drifting(), 'drifting')
    assert contents(job.path)==undisturbed[0]


def test_values_that_are_no_numbers_fail_the_chunk(video, tmp_path):
    job = make_job(tmp_path/'job', video, 1)
    with pytest.raises(ChunkError, match='not finite'): run(job.path, lambda w: w[0, ..., 0].float()/0, 'nan')
    assert not job.work(0).done


def test_videos_that_are_none(video, tmp_path):
    for name, content, error in (('cut', video.read_bytes()[:4000], VideoError), ('empty', b'', EmptyVideoError),
        ('text', b'not a video', VideoError)):
        (tmp_path/f'{name}.mp4').write_bytes(content)
        with pytest.raises(error, match=f'{name}.mp4'): make_job(tmp_path/name, tmp_path/f'{name}.mp4')
        assert not (tmp_path/name).exists()
    with pytest.raises(VideoError, match='no such file'): make_job(tmp_path/'x', tmp_path/'nothing.mp4')


def test_a_video_damaged_in_the_middle(tmp_path):
    f = write_video(tmp_path/'f.mkv', (numbered_frame(i) for i in range(150)), 25, options={'g': 10, 'bf': 0})
    data = bytearray(f.read_bytes())
    data[len(data)*2//3:len(data)*2//3+4000] = bytes(4000)
    f.write_bytes(data)
    try: job = make_job(tmp_path/'job', f, 3, 12)
    except VideoError as e: return check_good(e, 150)
    with pytest.raises(ChunkError, match=r'of 3 chunks failed.*f.mkv'): run(job.path, Drifting(), 'drifting')
    assert 0<status(job.path)['done']<150


def check_good(e, n): assert 0<e.good<n and 'f.mkv' in str(e)


@pytest.mark.parametrize('n', [1, 2, 23, 24, 25])
def test_short_videos(tmp_path, n):
    f = write_video(tmp_path/'f.mp4', (numbered_frame(i) for i in range(n)), '30000/1001')
    job = make_job(tmp_path/'job', f, 5)
    run(job.path, Drifting(), 'drifting')
    out = merge(job.path, tmp_path/'out', storage='npz')
    with VideoReader(f) as v: want = torch.stack(list(infer_windows(v.stream(), Drifting())))
    assert len(out)==n and out.meta.fps==VideoReader(f).info.fps and torch.equal(out[:][:, 0], want)


def test_folders_of_something_else(video, tmp_path):
    job = make_job(tmp_path/'job', video, 3, 12)
    assert open_job(job.path)==make_job(job.path, video, 3, 12)==job
    other = write_video(tmp_path/'other.mp4', (numbered_frame(i+1) for i in range(150)), 25)
    for f, k, o, what in ((other, 3, 12, 'source'), (video, 2, 12, 'chunks'), (video, 3, 11, 'overlap')):
        with pytest.raises(ChunkError, match=f'another {what}'): make_job(job.path, f, k, o)
    run(job.path, Drifting(), 'drifting')
    with pytest.raises(ChunkError, match="another model: 'drifting', not 'other'"): run(job.path, Drifting(), 'other')
    for kw, what in ((dict(kind='depth'), 'kind'), (dict(metric=True), 'units'), (dict(units='1/m'), 'units')):
        with pytest.raises(ChunkError, match=f'another {what}'): run(job.path, Drifting(), 'drifting', **kw)
    two = make_job(tmp_path/'two', other, 3, 12)
    run(two.path, Drifting(), 'drifting')
    merge(job.path, tmp_path/'out', storage='npz')
    with pytest.raises(DepthError, match='another source'): merge(two.path, tmp_path/'out', storage='npz')
    with pytest.raises((DepthError, ChunkError), match='another'):
        merge(job.path, tmp_path/'out', storage='npz', how='discard')
    with pytest.raises(ValueError, match='is the folder of the input'): merge(job.path, tmp_path)
    (tmp_path/'full').mkdir()
    (tmp_path/'full'/'letter.txt').write_text('dear')
    with pytest.raises(DepthError, match='holds other things'): merge(job.path, tmp_path/'full')
    (tmp_path/'made').mkdir()
    with pytest.raises(ChunkError, match='no chunk job'): status(tmp_path/'made')
    for text in ('{', '{"format": "other"}', '{"format": "vidlit-chunks-1"}'):
        (job.path/'job.json').write_text(text)
        with pytest.raises(store.StoreError, match='job.json'): open_job(job.path)


def test_names_on_disk_are_those_of_the_first_version(video, tmp_path):
    "Jobs and folders outlive the names in the code"
    job = make_job(tmp_path/'job', video, 3)
    row = json.loads((job.path/'job.json').read_text())
    assert {*row}=={'format', 'film', 'source', 'frames', 'height', 'width', 'fps', 'overlap', 'chunks'}
    assert row['film']==job.video==str(video) and row['format']=='vidlit-chunks-1' and open_job(job.path)==job
    run(job.path, Drifting(), 'drifting')
    assert merge(job.path, tmp_path/'out').meta.made['how']=='deal'


def test_damaged_windows(video, undisturbed, tmp_path):
    job = make_job(tmp_path/'job', video, 3, 12)
    run(job.path, Drifting(), 'drifting')
    f = job.box(1)/'window_00001.npy'
    for data in (f.read_bytes()[:-1]+b'\x01', f.read_bytes()[:99], b''):
        f.write_bytes(data)
        with pytest.raises(ChunkError, match='window_00001'): merge(job.path, tmp_path/'out')
    forget(job.path, 1)
    run(job.path, Drifting(), 'drifting')
    assert contents(job.path)==undisturbed[0]


@given(st.integers(1, 40000), st.integers(0, 10**6), st.integers(1, 255))
@quick
def test_one_other_byte_is_another_checksum(n, at, by):
    a = np.random.default_rng(n).integers(0, 256, n, dtype=np.uint8)
    b = a.copy()
    b[at%n] = (int(b[at%n])+by)%256
    assert C.checksum(a)==C.checksum(a.copy())!=C.checksum(b)


# merging

@pytest.mark.parametrize('storage,dtype', [('png16', None), ('npz', 'float16'), ('npz', 'uint16'), ('zarr', 'float32')])
def test_storages(video, tmp_path, storage, dtype):
    job = make_job(tmp_path/'job', video, 2, 12)
    run(job.path, Drifting(), 'drifting')
    exact, got = merge(job.path, tmp_path/'exact', storage='npz'), merge(job.path, tmp_path/'out', storage=storage,
        dtype=dtype)
    assert len(got)==len(exact)==150 and got.meta.source==exact.meta.source and got.meta.units=='relative'
    eps = got.meta.scale or (1e-3 if dtype=='float16' else 1e-9)
    assert (got[:]-exact[:]).abs().max()<=eps
    made = got.meta.made
    assert made['fingerprint']=='drifting' and made['how']=='align' and len(made['fits'])==2


def test_merge_holds_few_windows(video, tmp_path, monkeypatch):
    job, loads = make_job(tmp_path/'job', video, 2, 12), []
    run(job.path, Drifting(), 'drifting')
    load = C.load_window
    monkeypatch.setattr(C, 'load_window', lambda w, k: loads.append((w.folder.name, k)) or load(w, k))
    readers = [C.ChunkFrames(job, c) for c in range(2)]
    for _ in merge_frames(readers, job.chunks, [None, None]): assert all(len(r._near)<=2 for r in readers)
    assert len(loads)==sum(n_windows(job.length(c)) for c in range(2)), 'each window is read once'


def test_foreign_files(tmp_path):
    d = np.random.default_rng(0).random((9, 4, 5)).astype(np.float32)
    np.savez(tmp_path/'depths.npz', depths=d, fps=25)
    np.savez(tmp_path/'depth.npz', depth=d[..., None])
    np.savez(tmp_path/'object.npz', depths=np.array([{}], dtype=object))
    for f in ('depths.npz', 'depth.npz'):
        assert torch.equal(torch.stack([load_depths(tmp_path/f)[i][0] for i in range(9)]), torch.from_numpy(d))
    with pytest.raises(ValueError, match='object.npz'): load_depths(tmp_path/'object.npz')
    with pytest.raises(IndexError): load_depths(tmp_path/'depth.npz')[9]
    got = torch.stack(list(merge_files([tmp_path/'depths.npz']*2, [(0, 9), (5, 14)], how='discard')))
    assert torch.equal(got, torch.from_numpy(np.concatenate([d, d[4:]])))
    with pytest.raises(ChunkError, match='gap after 9'):
        list(merge_files([tmp_path/'depths.npz']*2, [(0, 9), (10, 19)]))


def test_exr_files(tmp_path):
    exr = pytest.importorskip('OpenEXR')
    (tmp_path/'e').mkdir()
    d = np.random.default_rng(0).random((2, 4, 5)).astype(np.float32)
    for i, a in enumerate(d):
        with exr.File({'compression': exr.ZIP_COMPRESSION, 'type': exr.scanlineimage}, {'Z': a}) as f:
            f.write(str(tmp_path/f'e/{i}.exr'))
    got = load_depths(tmp_path/'e')
    assert len(got)==2 and torch.equal(torch.stack([got[i][0] for i in range(2)]), torch.from_numpy(d))


def test_reader_of_the_merged_video(video, undisturbed, tmp_path):
    job = make_job(tmp_path/'job', video, 3, 12)
    run(job.path, Drifting(), 'drifting')
    merge(job.path, tmp_path/'out')
    assert len(DepthReader(tmp_path/'out', source=video, kind='disparity'))==150
    assert images(tmp_path/'out')==undisturbed[1]

"""Films: exact on every kind of file, one family of errors, workers, bounded memory. Films are made here; real
ones are read too where they are."""
import os
import random
import weakref
from fractions import Fraction
from pathlib import Path
import av
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from vidlit.video.index import good_frames
from vidlit.video.reader import (
    BackendError,
    CorruptVideoError,
    EmptyVideoError,
    MissingVideoError,
    NoVideoStreamError,
    TruncatedVideoError,
    UnreadableVideoError,
    VideoError,
    VideoReader,
    video_info,
    write_video,
)
from vidlit.video.writing import numbered_frame, read_number

SHARED = Path(os.environ.get('VIDLIT_SHARED') or Path(__file__).resolve().parents[2]/'shared')/'videos'
N = 60
quick = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def numbered(n=N, h=48, w=80): return (numbered_frame(i, h, w) for i in range(n))


def raw_write(path, pts=None, tb=Fraction(1, 1000), codec='libx264', n=N, turn=None, audio=False, video=True,
    muxer=None, pix='yuv420p', **opts):
    "A film with any time stamps, display matrix, sound and muxer options"
    with av.open(str(path), 'w', options=muxer or {}) as c:
        if audio: a = c.add_stream('aac', rate=16000)
        if video:
            s = c.add_stream(codec, rate=25,
                options={k.replace('_', '-') if k == 'auto_alt_ref' else k: str(v) for k, v in opts.items()})
            s.width, s.height, s.pix_fmt, s.codec_context.thread_count = 80, 48, pix, 1
            if pts is not None: s.codec_context.time_base = tb
            if turn: s.set_display_rotation(*turn)
            for i in range(n):
                f = av.VideoFrame.from_ndarray(numbered_frame(i).numpy(), format='rgb24')
                f.pts, f.time_base = (i, Fraction(1, 25)) if pts is None else (pts[i], tb)
                c.mux(s.encode(f))
            c.mux(s.encode())
        if audio:
            for k in range(int(16*n/25)):
                f = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format='fltp', layout='mono')
                f.sample_rate, f.pts, f.time_base = 16000, k*1024, Fraction(1, 16000)
                c.mux(a.encode(f))
            c.mux(a.encode())
    return path


X264 = 'open-gop=1:keyint=12:min-keyint=12:bframes=5:b-adapt=0:b-pyramid=normal:scenecut=0'
X265 = 'open-gop=1:keyint=12:min-keyint=12:bframes=4:scenecut=0'
STAMPS = np.cumsum([0, *random.Random(0).choices([17, 33, 40, 120], k=N-1)]).tolist()
KINDS = {
    'closed.mp4': lambda p: write_video(p, numbered(), options=dict(g=12)),
    'open264.mp4': lambda p: write_video(p, numbered(), options={'x264-params': X264}),
    'open264.mkv': lambda p: write_video(p, numbered(), options={'x264-params': X264}),
    'open265.mp4': lambda p: write_video(p, numbered(), codec='libx265',
        options={'preset': 'ultrafast', 'x265-params': X265}),
    'vfr.mp4': lambda p: raw_write(p, STAMPS, g=12),
    'vfr.mkv': lambda p: raw_write(p, STAMPS, g=12),
    'av1.mp4': lambda p: write_video(p, numbered(), codec='libsvtav1',
        options={'preset': 12, 'g': 24, 'svtav1-params': 'lp=1'}),
    'vp9.webm': lambda p: write_video(p, numbered(), codec='libvpx-vp9',
        options={'g': 24, 'deadline': 'realtime', 'cpu-used': 8}),
    'hidden.webm': lambda p: raw_write(p, codec='libvpx', g=24, auto_alt_ref=1, b='300k', deadline='good'),
    'mpeg4.avi': lambda p: write_video(p, numbered(), codec='mpeg4', options=dict(bf=2, g=12, q=2)),
    'mpeg2.mpg': lambda p: write_video(p, numbered(), codec='mpeg2video', options=dict(bf=2, g=12)),
    'stream.ts': lambda p: write_video(p, numbered(), options=dict(g=12)),
    'intra.mkv': lambda p: write_video(p, numbered(), codec='ffv1', pix_fmt='yuv444p'),
    'ten.mp4': lambda p: write_video(p, numbered(), pix_fmt='yuv420p10le', options=dict(g=12)),
    'sound.mp4': lambda p: raw_write(p, audio=True, g=12),
    'sound.mkv': lambda p: raw_write(p, audio=True, g=12),
    'fast.mp4': lambda p: raw_write(p, g=12, muxer={'movflags': 'faststart'}),
}


@pytest.fixture(scope='session')
def film(tmp_path_factory):
    "Make a film by name, once"
    home = tmp_path_factory.mktemp('films')
    return lambda name: p if (p := home/name).exists() else KINDS[name](p)


@pytest.mark.parametrize('name', KINDS)
def test_exact_in_any_order(film, name):
    r = VideoReader(film(name))
    assert len(r) == N
    idx = random.Random(name).choices(range(N), k=16)
    assert read_number(r[idx]).tolist() == idx
    for i in idx[:4]: assert int(read_number(r[i])) == i
    for i in (0, 9, 11, 12, 47): assert read_number(r[i:i+4]).tolist() == list(range(i, i+4)), 'across a key frame'
    straight = torch.stack(list(r.stream()))
    assert torch.equal(straight[idx], r[idx]), 'the pixels do not depend on the way there'
    assert len(r.types()) == N and r.types()[0] == 'I'
    assert (np.diff(r.times) > 0).all() and r.times[0] == 0


def test_stamps(film):
    for ext in ('mp4', 'mkv'):
        r = VideoReader(film(f'vfr.{ext}'))
        assert r.info.vfr and np.allclose(r.times*1000, STAMPS)
        assert read_number(r.at([t/1000 for t in STAMPS])).tolist() == list(range(N))
        assert r.numbers_at((STAMPS[7]+STAMPS[8])/2000) == [7]
        a, b = STAMPS[10]/1000, STAMPS[20]/1000
        assert read_number(r.between(a, b)).tolist() == list(range(10, 20))
    r = VideoReader(film('stream.ts'))
    assert r.info.start > 0 and r.times[0] == 0 and abs(r.info.duration-N/25) < 1e-6
    assert abs(VideoReader(film('mpeg2.mpg')).info.duration-N/25) < .01, 'also where stamps cannot be trusted'


@quick
@given(idx=st.lists(st.integers(-N, N-1), max_size=8))
def test_any_list(film, idx):
    r = VideoReader(film('open264.mp4'))
    out = r[idx]
    assert out.shape == (len(idx), 48, 80, 3) and out.dtype == torch.uint8
    if idx: assert read_number(out).tolist() == [i % N for i in idx]


@quick
@given(a=st.integers(-70, 70) | st.none(), b=st.integers(-70, 70) | st.none(),
    s=st.sampled_from([None, 1, 2, 7, -1, -3]))
def test_any_slice(film, a, b, s):
    out = VideoReader(film('open265.mp4'))[a:b:s]
    want = list(range(N))[a:b:s]
    assert read_number(out).tolist() == want if want else len(out) == 0


@pytest.mark.parametrize('ext', ['mp4', 'mkv', 'mov', 'webm'])
def test_frame_rates_come_back_exactly(tmp_path, ext):
    rates = [24, 25, 60, Fraction(24000, 1001), Fraction(30000, 1001), Fraction(60000, 1001), Fraction(25, 2),
        Fraction(15, 4)]
    if ext in ('mp4', 'mov'): rates += [1, Fraction(1, 3), Fraction(997, 41), Fraction(8, 7)]
    codec = 'libvpx' if ext == 'webm' else 'libx264'
    for fps in rates:
        i = video_info(write_video(tmp_path/f'a.{ext}', numbered(7), fps=fps, codec=codec))
        assert i.fps == fps and i.frames == 7 and not i.vfr, fps
        assert abs(i.duration-7/fps) < .002*(ext in ('mkv', 'webm'))+1e-9


def test_sizes(tmp_path):
    odd = torch.stack([numbered_frame(i, 49, 83) for i in range(3)])
    with pytest.raises(ValueError, match='49x83'): write_video(tmp_path/'a.mp4', odd)
    for how, size in dict(pad=(50, 84), crop=(48, 82)).items():
        r = VideoReader(write_video(tmp_path/'a.mp4', odd, odd=how))
        assert r[0].shape == (*size, 3) and read_number(r[:]).tolist() == [0, 1, 2]
    r = VideoReader(write_video(tmp_path/'a.mp4', odd, pix_fmt='yuv444p', crf=1))
    assert r[0].shape == (49, 83, 3) and (r[:].float()-odd.float()).abs().mean() < 2
    with pytest.raises(ValueError, match='frame 1'): write_video(tmp_path/'b.mp4',
        [numbered_frame(0), numbered_frame(1, 50)])
    with pytest.raises(ValueError, match='no encoder'): write_video(tmp_path/'b.mp4', numbered(2), codec='libnone')
    with pytest.raises(ValueError, match='no rotation'): write_video(tmp_path/'b.mkv', numbered(2), rotation=90)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['a.mp4']


def test_one_frame(tmp_path):
    r = VideoReader(write_video(tmp_path/'one.mp4', numbered(1), fps=10))
    assert len(r) == 1 and abs(r.info.duration-.1) < 1e-6 and r.at(.05).shape == (48, 80, 3) and len(r[0:0]) == 0


@pytest.mark.parametrize('turn',
    [(d, h, v) for d in (0, -90, 180, 90) for h, v in ((False, False), (True, False), (False, True))])
def test_turned_and_mirrored(tmp_path, turn):
    deg, hflip, vflip = turn
    want = np.rot90(numbered_frame(5).numpy(), deg//90)  # degrees count counter-clockwise, as PyAV's
    if hflip: want = want[:, ::-1]
    if vflip: want = want[::-1]
    r = VideoReader(raw_write(tmp_path/'a.mp4', turn=turn, n=6, crf=1))
    assert r[5].shape == want.shape and (r.info.height, r.info.width) == want.shape[:2]
    assert np.abs(r[5].numpy().astype(int)-want).mean() < 4
    assert r.info.mirrored == (hflip != vflip)


def test_lossless_round_trip(tmp_path):
    x = torch.randint(0, 256, (4, 34, 46, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    r = VideoReader(write_video(tmp_path/'a.mkv', x, codec='ffv1', pix_fmt='bgr0'))
    assert torch.equal(r[:], x)
    assert torch.equal(VideoReader(write_video(tmp_path/'b.mkv', iter(x.numpy()), codec='ffv1', pix_fmt='bgr0'))[:], x)


def test_info_is_plain(film):
    import json
    d = json.loads(json.dumps(video_info(film('sound.mp4')).dict()))
    assert d['audio'] and d['fps'] == '25' and d['keys'] >= 5 and d['frames'] == N and not d['open_gop']
    assert video_info(film('open264.mp4')).open_gop and video_info(film('open265.mp4')).open_gop and not video_info(
        film('closed.mp4')).audio


# ---- what is wrong with a file

def test_each_error(tmp_path):
    (tmp_path/'empty.mp4').touch()
    (tmp_path/'words.mp4').write_text('these are words\n'*99)
    (tmp_path/'noise.mp4').write_bytes(random.Random(0).randbytes(9999))
    os.mkfifo(tmp_path/'pipe.mp4')
    raw_write(tmp_path/'sound.m4a', audio=True, video=False)
    with av.open(str(tmp_path/'zero.mp4'), 'w') as c:
        s = c.add_stream('libx264', rate=25)
        s.width, s.height, s.pix_fmt = 80, 48, 'yuv420p'
        c.start_encoding()
    want = {'nobody.mp4': MissingVideoError, 'pipe.mp4': MissingVideoError, '.': MissingVideoError,
        'empty.mp4': EmptyVideoError,
            'words.mp4': UnreadableVideoError, 'noise.mp4': UnreadableVideoError, 'sound.m4a': NoVideoStreamError,
            'zero.mp4': (EmptyVideoError, NoVideoStreamError)}
    for name, kind in want.items():
        for get in (video_info, VideoReader, lambda p: VideoReader(p, backend='decord')):
            with pytest.raises(kind, match=name): get(tmp_path/name)


@pytest.mark.parametrize('name',
    ['closed.mp4', 'fast.mp4', 'open264.mkv', 'sound.mkv', 'vp9.webm', 'stream.ts', 'mpeg4.avi', 'av1.mp4'])
def test_cut_off_anywhere(film, tmp_path, name):
    data, p = film(name).read_bytes(), tmp_path/name
    seen, rng = set(), random.Random(2)
    for cut in sorted(rng.randrange(1, len(data)) for _ in range(12)):
        p.write_bytes(data[:cut])
        try: r = VideoReader(p)
        except VideoError as e:
            seen.add(type(e))
            assert name in str(e)
            if type(e) is TruncatedVideoError:
                part = VideoReader(p, partial=True) if e.good else None
                if part: assert len(part) <= e.good and read_number(part[:]).tolist() == list(range(len(part)))
            continue
        # not seen to be cut (a stream without a header): no frame may be another's
        try: assert read_number(r[:]).tolist() == list(range(len(r)))
        except CorruptVideoError as e: assert e.good < len(r)
    if name in ('fast.mp4', 'open264.mkv', 'sound.mkv', 'vp9.webm', 'av1.mp4'): assert seen & {TruncatedVideoError,
        UnreadableVideoError}


@pytest.mark.parametrize('name',
    ['closed.mp4', 'open264.mkv', 'open265.mp4', 'vp9.webm', 'av1.mp4', 'mpeg4.avi', 'stream.ts'])
def test_damage_never_escapes_the_family(film, tmp_path, name):
    data, p, rng = film(name).read_bytes(), tmp_path/name, random.Random(3)
    for _ in range(10):
        b = bytearray(data)
        for _ in range(rng.choice([1, 3, 30])):
            i = rng.randrange(len(b))
            b[i:i+4] = rng.randbytes(len(b[i:i+4]))
        p.write_bytes(b)
        try: VideoReader(p)[[3, 50, 20]]
        except VideoError as e: assert name in str(e)
        except IndexError as e: assert 'which has' in str(e)


def test_a_bad_frame_is_an_error_and_its_neighbours_are_not(film, tmp_path):
    src = film('closed.mp4')
    with av.open(str(src)) as c: spots = sorted((p.pts, p.pos, p.size, p.is_keyframe)
        for p in c.demux(video=0) if p.size)
    i = 26
    b = bytearray(src.read_bytes())
    _, pos, size, key = spots[i]
    assert not key
    b[pos+4:pos+size] = bytes(size-4)
    (tmp_path/'a.mp4').write_bytes(b)
    good, why = good_frames(tmp_path/'a.mp4')
    assert why and 12 <= len(good) <= i
    r, first = VideoReader(tmp_path/'a.mp4'), VideoReader(tmp_path/'a.mp4', partial=True)
    assert len(good) <= len(first) <= i and read_number(first[:]).tolist() == list(range(len(first)))
    with pytest.raises(CorruptVideoError, match=f'{len(first)} of {N} frames are good') as e: r[i]
    assert e.value.good == len(first) and e.value.frames == N
    assert read_number(r[:12]).tolist() == list(range(12)) and read_number(r[48:]).tolist() == list(
        range(48, N)), 'goes on after an error'


def test_a_failed_write_leaves_the_old_file(tmp_path):
    p = write_video(tmp_path/'a.mp4', numbered(4))
    old = p.read_bytes()
    def broken():
        yield from numbered(3)
        raise RuntimeError('out of frames')
    with pytest.raises(RuntimeError, match='out of frames'): write_video(p, broken())
    assert p.read_bytes() == old and len(list(tmp_path.iterdir())) == 1


# ---- memory and workers

def test_frames_do_not_pile_up(tmp_path):
    alive, most = weakref.WeakSet(), 0
    class Frame(np.ndarray): pass
    def source():
        nonlocal most
        for i in range(50):
            f = numbered_frame(i).numpy().view(Frame)
            alive.add(_Ref(f))
            most = max(most, len(alive))
            yield f
    class _Ref:
        def __init__(self, f): f.ref = self
    p = write_video(tmp_path/'a.mp4', source())
    assert most <= 4
    kept, most = [], 0
    for f in VideoReader(p).stream():
        kept.append(weakref.ref(f))
        most = max(most, sum(k() is not None for k in kept))
    assert most <= 3


class _Items(torch.utils.data.Dataset):
    def __init__(self, r): self.r = r
    def __len__(self): return 12
    def __getitem__(self, i): return read_number(self.r[[i*5, i*5+1, i*5+2]]), os.getpid()


@pytest.mark.timeout(60)
@pytest.mark.parametrize('how,backend', [('fork', 'pyav'), ('spawn', 'pyav'), ('fork', 'decord')])
def test_workers(film, how, backend):
    if backend == 'decord': pytest.importorskip('decord')
    r = VideoReader(film('closed.mp4' if backend == 'decord' else 'open264.mp4'), backend=backend)
    r[[40, 41]]  # open, in mid-film
    dl = torch.utils.data.DataLoader(_Items(r), batch_size=3, num_workers=2 if how == 'fork' else 1,
        multiprocessing_context=how, timeout=30)
    got, pids = zip(*dl)
    assert torch.equal(torch.cat(got), torch.arange(12)[:, None]*5+torch.arange(3))
    assert os.getpid() not in torch.cat(pids)
    assert read_number(r[42]) == 42


def test_closing(film):
    with VideoReader(film('closed.mp4')) as r: r[3]
    assert r._file is None and int(read_number(r[4])) == 4
    with pytest.raises(ValueError, match="'ffmpeg'"): VideoReader(film('closed.mp4'), backend='ffmpeg')


# ---- decord

def test_decord_agrees_or_refuses(film):
    pytest.importorskip('decord')
    for name in ('closed.mp4', 'vfr.mp4', 'vp9.webm', 'sound.mp4'):
        a, b = VideoReader(film(name)), VideoReader(film(name), backend='decord')
        idx = [50, 3, 3, 27]
        assert read_number(b[idx]).tolist() == idx and (a[idx].float()-b[idx].float()).abs().mean() < 3
    for name in ('open264.mp4', 'open265.mp4', 'mpeg4.avi', 'stream.ts', 'av1.mp4'):
        with pytest.raises(BackendError, match=name): VideoReader(film(name), backend='decord')


# ---- real films

REAL = sorted(p for p in SHARED.glob('*') if p.suffix in ('.mp4', '.mkv', '.mov')) if SHARED.is_dir() else []
SIZES = {'av1.mkv': (125, 360, 640), 'bigbuckbunny.mp4': (132, 720, 1280), 'bikes.mp4': (250, 272, 640),
    'h264_10bit.mp4': (30, 200, 200),
         'h265.mp4': (10, 128, 128), 'nasa_13013.mp4': (390, 270, 480), 'pancake.mkv': (310, 240, 426),
             'rotated_180.mov': (3, 320, 568),
         'rotated_90.mov': (3, 568, 320), 'unordered_pts.mov': (4, 50, 50)}


@pytest.mark.skipif(not REAL, reason='no real films here')
@pytest.mark.parametrize('path', REAL, ids=lambda p: p.name)
def test_real_films(path):
    r = VideoReader(path)
    if path.name == 'corrupted.mp4':
        assert len(r) == 50 and r[:20].shape[0] == 20
        with pytest.raises(CorruptVideoError, match='29 of 50 frames are good') as e: r[49]
        # the packet of frame 30 fails; 29 leans on it, 28 is decoded before
        assert e.value.good == 29 and len(VideoReader(path, partial=True)) == 29
        return
    assert path.name not in SIZES or (len(r), r.info.height, r.info.width) == SIZES[path.name]
    want, some = {}, {0, 1, len(r)//2, len(r)-1}
    with av.open(str(path)) as c:
        for i, f in enumerate(c.decode(c.streams.best('video'))):
            if i in some: want[i] = np.rot90(f.to_ndarray(format='rgb24', threads=1), -r.info.rotation//90).copy()
    assert i+1 == len(r)
    for i in sorted(some, reverse=True): assert np.array_equal(r[i].numpy(), want[i]), i

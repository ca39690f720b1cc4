"""Videos as people have them, made here: cuts without re-encoding, damage, the habits of cameras. Every frame has its
number painted on it, so that a wrong one is seen."""
import random
import warnings
from fractions import Fraction
import av
import numpy as np
import torch
from vidlit.video.reader import VideoError, VideoReader, write_video
from vidlit.video.writing import numbered_frame, read_number

N, FPS = 60, 10
OPEN = 'open-gop=1:keyint=12:min-keyint=12:bframes=3:b-adapt=0:scenecut=0'
SOURCES = {
    'h264-closed': ('libx264', {'g': 12, 'bf': 2}), 'h264-open': ('libx264', {'x264-params': OPEN}),
    'hevc-closed': ('libx265', {'x265-params': 'keyint=12:min-keyint=12:open-gop=0:bframes=3:pools=1'}),
    'hevc-open': ('libx265', {'x265-params': 'keyint=12:min-keyint=12:open-gop=1:bframes=3:pools=1'})}


def frames(n=N): return (numbered_frame(i) for i in range(n))


def source(folder, kind, ext='mp4'):
    "One of the four sources, written once"
    p = folder/f'{kind}.{ext}'
    codec, options = SOURCES[kind]
    return p if p.exists() else write_video(p, frames(), FPS, codec=codec, options=options)


def remux(src, dst, packets, options=None):
    "Copy packets: `packets(stream, iterator)` says which, and how"
    with av.open(str(src)) as a, av.open(str(dst), 'w', options=options or {}) as b:
        s = a.streams.video[0]
        out = b.add_stream_from_template(s)
        for p in packets(s, (p for p in a.demux(s) if p.dts is not None)):
            p.stream = out
            b.mux(p)
    return dst


def cut(src, dst, at):
    "From the key frame at or before `at` seconds; what is shown earlier gets a negative stamp"
    def later(s, packets):
        t = int(at/s.time_base)
        s.container.seek(t, stream=s)
        for p in packets:
            p.pts, p.dts = p.pts-t, p.dts-t
            yield p
    return remux(src, dst, later)


def report(path, fps=FPS, last=None, seed=0, **kw):
    """How a video reads: {'right', 'refused', 'wrong'} frames, in order and scattered. A frame is right when its number
    is what its time says, counted from the first frame that can be read. A file that is refused is one refusal."""
    out = dict(right=0, refused=0, wrong=0)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try: r = VideoReader(path, **kw)
        except VideoError: return out | dict(refused=1)
    steps, base, seen = np.rint(r.times*float(fps)).astype(int), None, {}
    order = [*range(len(r)), *random.Random(seed).sample(range(len(r)), min(len(r), 8))]
    for i in order:
        try: n = int(read_number(r[i]))
        except VideoError:
            out['refused'] += 1
            continue
        if base is None: base = n-steps[i]
        good = n == base+steps[i] and seen.setdefault(i, n) == n
        out['right' if good else 'wrong'] += 1
    if last is not None and seen and len(r)-1 in seen and seen[len(r)-1] != last: out['wrong'] += 1
    return out


# ---- damage

FILMS = {'h264.mp4': SOURCES['h264-closed'], 'h264.mkv': SOURCES['h264-open'], 'h264.ts': SOURCES['h264-closed'],
    'hevc.mp4': SOURCES['hevc-open'], 'hevc.mkv': SOURCES['hevc-closed'], 'hevc.ts': SOURCES['hevc-closed'],
    'vp9.webm': ('libvpx-vp9', {'g': 12, 'deadline': 'realtime', 'cpu-used': 8}), 'mpeg4.avi': ('mpeg4', {'g': 12,
    'bf': 2}), 'mpeg2.mpg': ('mpeg2video', {'g': 12, 'bf': 2}), 'ffv1.mkv': ('ffv1', {'g': 1, 'slicecrc': 1})}
HOWS = 'cut', 'hole', 'noise', 'lost'


def film(folder, name):
    p = folder/name
    codec, options = FILMS[name]
    return p if p.exists() else write_video(p, frames(), FPS, codec=codec, options=options)


def lose(src, dst, k):
    "One packet less: of 188 bytes in a transport stream, else of the picture"
    if src.suffix in ('.ts', '.mpg'):
        b, n = src.read_bytes(), 188 if src.suffix == '.ts' else 300
        i = len(b)*k//N//n*n
        dst.write_bytes(b[:i]+b[i+n:])
        return dst
    return remux(src, dst, lambda s, packets: (p for j, p in enumerate(packets) if j != k))


def damage(src, dst, how, seed):
    "A copy with one thing wrong"
    rng, b = random.Random(f'{src.name} {how} {seed}'), bytearray(src.read_bytes())
    if how == 'lost': return lose(src, dst, rng.randrange(5, N-5))
    if how == 'cut': b = b[:rng.randrange(len(b)//5, len(b)-1)]
    else:
        at = rng.randrange(len(b)//5, len(b)*4//5)
        n = 200 if how == 'hole' else 24
        b[at:at+n] = bytes(n) if how == 'hole' else rng.randbytes(n)
    dst.write_bytes(b)
    return dst


# ---- cameras

def camera(path, codec='libx264', stamps=None, tb=Fraction(1, 1000), pix='yuv420p', turn=None, sound=False,
    aspect=None, muxer=None, second=None, n=N, fps=FPS, **options):
    "A file as a device may write it"
    with av.open(str(path), 'w', options=muxer or {}) as c:
        s = c.add_stream(codec, rate=fps, options={k.replace('_', '-'): str(v) for k, v in options.items()})
        if second:
            other = c.add_stream('libx264', rate=fps)
            other.width, other.height, other.pix_fmt = *second, 'yuv420p'
        s.width, s.height, s.pix_fmt, s.codec_context.thread_count = 80, 48, pix, 1
        if stamps is not None: s.codec_context.time_base = tb
        if aspect: s.codec_context.sample_aspect_ratio = Fraction(aspect)
        if turn: s.set_display_rotation(turn)
        if sound: a = c.add_stream('aac', rate=16000)
        for i in range(n):
            f = av.VideoFrame.from_ndarray(numbered_frame(i).numpy(), format='rgb24')
            f.pts, f.time_base = (i, 1/Fraction(fps)) if stamps is None else (stamps[i], tb)
            c.mux(s.encode(f))
            g = av.VideoFrame.from_ndarray(numbered_frame(i).numpy(), format='rgb24')
            if second: c.mux(other.encode(g.reformat(*second)))
        for k in range(int(16*n/fps) if sound else 0):
            f = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format='fltp', layout='mono')
            f.sample_rate, f.pts, f.time_base = 16000, k*1024, Fraction(1, 16000)
            c.mux(a.encode(f))
        for o in [s, *([other] if second else []), *([a] if sound else [])]: c.mux(o.encode())
    return path


def entered(p):
    "A transport stream received from somewhere between two key frames on"
    src = camera(p.with_name('whole.ts'), g=12, bf=2)
    return remux(src, p, lambda s, packets: (o for k, o in enumerate(packets) if k >= 7))


def uneven(seed, steps): return np.cumsum([0, *random.Random(seed).choices(steps, k=N-1)]).tolist()


CAMERAS = {
    'phone, upright, uneven rate': ('a.mp4', lambda p: camera(p, turn=90, sound=True,
        stamps=uneven(1, [33, 33, 34, 67]))),
    'dashcam, a stream entered between key frames': ('a.ts', entered),
    'action camera, HEVC of 10 bits, open groups': ('a.mp4', lambda p: camera(p, 'libx265', pix='yuv420p10le',
        **{'x265_params': SOURCES['hevc-open'][1]['x265-params']})),
    'security camera, Motion-JPEG in AVI': ('a.avi', lambda p: camera(p, 'mjpeg', pix='yuvj420p', q=2)),
    'browser, VP8 without a length': ('a.webm', lambda p: camera(p, 'libvpx', stamps=uneven(2, [31, 36, 100]),
        muxer={'live': '1'}, deadline='realtime', g=30)),
    'screen recorder, one key frame, long pauses': ('a.mkv', lambda p: camera(p, g=999,
        stamps=uneven(3, [17, 17, 4000]))),
    'drone, a second small picture beside it': ('a.mov', lambda p: camera(p, second=(40, 24), g=15, sound=True)),
    'camcorder, packets of 192 bytes, fields': ('a.m2ts', lambda p: camera(p, muxer={'mpegts_m2ts_mode': '1'}, g=12,
        **{'x264_params': 'tff=1'}, sound=True)),
    'compact camera, MPEG-4 with B frames in AVI': ('a.avi', lambda p: camera(p, 'mpeg4', bf=2, g=12, q=3, sound=True)),
    'recorder, MP4 in fragments': ('a.mp4', lambda p: camera(p, muxer={'movflags': 'frag_keyframe+empty_moov'}, g=12)),
    'network camera, H.264 without stamps': ('a.h264', lambda p: camera(p, g=12, bf=0)),
    'DV-like tape, pixels wider than high': ('a.mkv', lambda p: camera(p, 'ffv1', aspect='59/54', pix='yuv422p', g=1))}


# ---- tables: how all of a kind read

CUTS = [round(.05+k*5.6/16, 3) for k in range(17)]
EXTS = 'mp4', 'mov', 'mkv'


def add(table, name, got):
    row = table.setdefault(name, dict(readings=0, right=0, refused=0, wrong=0))
    for k, v in dict(got, readings=1).items(): row[k] += v


def cut_table(folder, tmp, long=True):
    "68 cuts without re-encoding"
    table = {}
    for k, kind in enumerate(SOURCES):
        for j, at in enumerate(CUTS if long else CUTS[k::6]):
            path = cut(source(folder, kind), tmp/f'{kind}-{j}.{EXTS[(j+k)%3]}', at)
            add(table, kind, report(path, last=N-1))
    return table


def damage_table(folder, tmp, long=True):
    "40 damaged videos, each read as it is and with `partial='skip'`"
    table = {}
    for k, name in enumerate(FILMS):
        for how in HOWS if long else [HOWS[k%4]]:
            path = damage(film(folder, name), tmp/f'{how}-{name}', how, 0)
            for kw in ({}, dict(partial='skip')): add(table, f'{name} {how}', report(path, **kw))
    return table


def camera_table(tmp, long=True):
    "12 habits of cameras: all frames right, in order and scattered"
    table = {}
    for k, (name, (file, make)) in enumerate(CAMERAS.items()):
        if not long and k%3: continue
        (tmp/f'{k}').mkdir()
        path = make(tmp/f'{k}'/file)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            r = VideoReader(path)
        upright = torch.stack([r[i].rot90(-1) if r.info.rotation else r[i] for i in range(len(r))])
        n = read_number(upright).tolist()
        scattered = random.Random(k).sample(range(len(r)), 8)
        again = r[scattered]
        again = read_number(again.rot90(-1, (1, 2)) if r.info.rotation else again).tolist()
        good = n == list(range(n[0], N)) and again == [n[i] for i in scattered]
        add(table, name, dict(right=len(r) if good else 0, refused=0, wrong=0 if good else len(r)))
    return table

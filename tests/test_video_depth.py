"""Depth of whole videos: bad input in one line, kills at random, full disks, memory that does not grow, odd videos."""
import contextlib
import errno
import io
import itertools
import json
import multiprocessing as mp
import os
import random
import re
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
import av
import numpy as np
import pytest
import torch
import vidlit.cli.depth  # noqa: F401 (puts its command into the app)
from vidlit.cli.app import app, run_app
from vidlit.depth.depth_anything import DepthAnything, DepthAnythingConfig
from vidlit.depth.dinov2 import dinov2_s
from vidlit.depth.dpt import DPTConfig
from vidlit.depth.models import load_depth_model, toy_folder, wrap
from vidlit.depth.temporal_head import add_time
from vidlit.depth.windows import infer_windows
from vidlit.pipeline import parts as depth_parts, video_depth as V
from vidlit.pipeline.video_depth import video_depth
from vidlit.video import depth_frames
from vidlit.video.depth_frames import DepthReader
from vidlit.video.reader import VideoReader, good_frames
from vidlit.video.writing import numbered_frame, write_video
from vidlit.worlds.worlds import WorldConfig, make_worlds

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get('VIDLIT_SHARED') or ROOT.parent/'shared')/'videos'
fork = mp.get_context('fork')
CFG = DepthAnythingConfig(replace(dinov2_s, dim=16, depth=4, heads=2, patch=(1, 8, 8)),
    DPTConfig(16, 8, (8, 8, 8, 8), 8, 4), (0, 1, 2, 3), 2)


def net(seed=0, metric=False):
    "A random network whose frames talk"
    gen = torch.Generator().manual_seed(seed)
    cfg = replace(CFG, head=replace(CFG.head, max_depth=10.)) if metric else CFG
    model = add_time(DepthAnything(cfg, gen, 'xavier'), gen, heads=4, groups=4)
    with torch.no_grad():
        for m in model.time.values(): m.proj_out.weight.normal_(std=.2, generator=gen)
    return model


def tiny(seed=0, metric=False, **kw): return wrap(net(seed, metric), 'tiny', size=16, **kw)
def numbered(n, h=48, w=80): return (numbered_frame(i % 1000, h, w) for i in range(n))


def files(p):
    "What is in a folder; of a video only its length, for x264 does not repeat itself"
    return {o.relative_to(p).as_posix(): o.read_bytes() if o.suffix != '.mp4' else len(VideoReader(o))
        for o in sorted(p.rglob('*')) if o.is_file()}


@pytest.fixture(scope='module')
def box(tmp_path_factory):
    "Videos and models for the shell"
    p = tmp_path_factory.mktemp('box')
    write_video(p/'video.mp4', numbered(60), '30000/1001')
    write_video(p/'other.mp4', numbered(40, 64, 96), 25)
    net().save_pretrained(p/'tiny')
    net(1).save_pretrained(p/'other')
    return p


def shell(*args):
    "Exit code, standard output and standard error of `vidlit depth`, in this process"
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run_app(app, ['depth', *map(str, args)])
    return code, out.getvalue(), err.getvalue()


def go(box, video, out, *args): return shell(video, '--out', out, '--model', box/'tiny', '--device', 'cpu', *args)


def refused(said, *words):
    "Exit code 2, nothing on standard output, one line that says so"
    code, out, err = said
    lines = [o for o in err.splitlines() if o.startswith('vidlit: ')]
    assert (code, out, len(lines)) == (2, '', 1), said
    for w in words: assert w in lines[0], (w, lines[0])


# what goes well

WAYS = (('--format', 'png16'), ('--format', 'npz', '--mode', 'stream'), ('--format', 'zarr', '--dtype', 'float16'),
    ('--native', '--preview'), ('--max-len', '30'))


@pytest.mark.parametrize('args', WAYS)
def test_a_video_through_the_shell(box, tmp_path, args):
    code, out, err = go(box, box/'video.mp4', tmp_path/'d', '--json', *args)
    row = json.loads(out)
    assert code == 0 and err.splitlines() == [row['model']]
    assert row['kind'] == 'disparity' and row['units'] == 'relative'
    r = DepthReader(tmp_path/'d', source=box/'video.mp4')
    assert len(r) == row['frames'] == (30 if '--max-len' in args else 60) and r.meta.fps == Fraction(30000, 1001)
    assert (r.meta.height, r.meta.width) == ((16, 24) if '--native' in args else (48, 80))
    assert r.meta.made['fingerprint'] == tiny().id
    assert not (tmp_path/'d/.work').exists() and not list((tmp_path/'d').rglob('.*')) and r[:].isfinite().all()
    if '--preview' in args:
        v = VideoReader(tmp_path/'d/preview.mp4')
        assert (len(v), v.info.fps, v.info.codec, v.info.width) == (60, Fraction(30000, 1001), 'h264', 160)


def test_numbers_are_those_of_the_windows(box, tmp_path):
    m = tiny()
    with VideoReader(box/'video.mp4') as v:
        want = m.back(torch.stack(list(infer_windows(v.stream(), m.mix, m.encode))), (48, 80))
    for storage in ('npz', 'png16'):
        video_depth(box/'video.mp4', tmp_path/storage, m, storage=storage)
        r = DepthReader(tmp_path/storage)
        off = (r[:][:, 0]-want).abs().max().item()
        assert off <= (1e-6 if storage == 'npz' else r.meta.scale*.5+1e-6*want.max().item())


def test_metres(box, tmp_path):
    row = video_depth(box/'video.mp4', tmp_path/'d', tiny(metric=True), preview=True)
    r = DepthReader(tmp_path/'d', kind='depth')
    assert (row['units'], r.meta.units) == ('m', 'm') and 0 < r[:].min() <= r[:].max() < 10


def test_flat_depth_has_a_range(box, tmp_path):
    m = tiny()
    with torch.no_grad():
        for p in m.model.image.head.output3.parameters(): p.zero_()
    video_depth(box/'video.mp4', tmp_path/'zero', m, preview=True)
    assert (DepthReader(tmp_path/'zero')[:] == 0).all()


def vfr(path, stamps):
    with av.open(str(path), 'w') as c:
        s = c.add_stream('libx264', rate=25)
        s.width, s.height, s.pix_fmt, s.codec_context.time_base = 80, 48, 'yuv420p', Fraction(1, 1000)
        for i, t in enumerate(stamps):
            f = av.VideoFrame.from_ndarray(numbered_frame(i).numpy(), format='rgb24')
            f.pts, f.time_base = t, Fraction(1, 1000)
            c.mux(s.encode(f))
        c.mux(s.encode())
    return path


def test_odd_videos(box, tmp_path):
    stamps = np.cumsum([0, *random.Random(0).choices([17, 33, 120], k=29)]).tolist()
    def made(name, n, *hw, **kw): return write_video(tmp_path/name, numbered(n, *hw), 24, **kw)
    videos = {'one': (made('one.mp4', 1), 48, 80), 'portrait': (made('tall.mp4', 26, 120, 80), 120, 80),
        'wide': (made('wide.mp4', 3, 24, 200), 24, 200),
        'rotated': (made('turned.mp4', 26, rotation=90), 80, 48),
        'odd': (made('odd.mkv', 5, 47, 81, pix_fmt='yuv444p'), 47, 81),
        'variable': (vfr(tmp_path/'vfr.mp4', stamps), 48, 80)}
    for name, (video, h, w) in videos.items():
        for mode in ('offline', 'stream'):
            code, out, _ = go(box, video, tmp_path/name/mode, '--preview', '--json', '--mode', mode)
            with VideoReader(video) as v, VideoReader(tmp_path/name/mode/'preview.mp4') as p:
                r = DepthReader(tmp_path/name/mode, source=video)
                assert (code, len(r), len(p)) == (0, len(v), len(v)), name
                assert (r.meta.height, r.meta.width, r.meta.fps) == (h, w, v.info.fps), name
                assert (p.info.width, p.info.height) == (2*w+2*w % 2, h+h % 2) and r[:].isfinite().all()
    assert np.allclose(json.loads((tmp_path/'variable/offline/times.json').read_text()), np.array(stamps)/1000)
    assert DepthReader(tmp_path/'variable/stream').meta.made['rate'].startswith('variable')
    assert not (tmp_path/'odd/stream/times.json').exists()


@pytest.mark.skipif(not SHARED.is_dir(), reason='no shared videos here')
def test_shared_videos(box, tmp_path):
    "Every video a reader can read: frames out = frames in, rate kept; the damaged one named"
    seen = {}
    for video in sorted(o for o in SHARED.iterdir() if o.suffix in ('.mp4', '.mkv', '.mov')):
        code, out, err = go(box, video, tmp_path/video.stem, '--max-len', 40, '--native', '--json', '--mode',
            random.Random(video.name).choice(['offline', 'stream']))
        seen[video.name] = code
        if code:
            refused((code, out, err), video.name)
            continue
        with VideoReader(video) as v: want = min(40, len(v)), v.info.fps
        r = DepthReader(tmp_path/video.stem, source=video)
        assert (len(r), r.meta.fps) == want and r[:].isfinite().all(), video.name
    assert seen.pop('corrupted.mp4') == 2 and set(seen.values()) == {0} and len(seen) >= 10, seen


# what goes wrong

def test_videos_that_are_none(box, tmp_path):
    (tmp_path/'empty.mp4').touch()
    (tmp_path/'words.mp4').write_text('these are words\n'*99)
    with av.open(str(tmp_path/'zero.mp4'), 'w') as c:
        s = c.add_stream('libx264', rate=25)
        s.width, s.height, s.pix_fmt = 80, 48, 'yuv420p'
        c.start_encoding()
    words = {'gone.mp4': 'no such file', 'empty.mp4': 'empty', 'words.mp4': 'cannot be opened', 'zero.mp4': 'zero.mp4',
        '.': 'folder'}
    for name, word in words.items():
        refused(go(box, tmp_path/name, tmp_path/'out'), word)
    assert not (tmp_path/'out').exists()


def test_a_video_that_is_cut_off(box, tmp_path):
    data = write_video(tmp_path/'whole.mkv', numbered(60), 25).read_bytes()
    (tmp_path/'cut.mkv').write_bytes(data[:len(data)*2//3])
    refused(go(box, tmp_path/'cut.mkv', tmp_path/'out'), 'cut.mkv', '--partial', 'frames are good')
    code, out, _ = go(box, tmp_path/'cut.mkv', tmp_path/'out', '--partial', '--json')
    good = json.loads(out)['frames']
    assert code == 0 and 0 < good < 60 and len(DepthReader(tmp_path/'out')) == good


@pytest.mark.parametrize('args', [('--format', 'png16'), ('--format', 'npz', '--mode', 'stream')])
def test_a_damaged_frame_in_the_middle(box, tmp_path, args):
    "Seen only when it is decoded: what is done is kept, and the good frames are taken on request"
    src = write_video(tmp_path/'a.mp4', numbered(120), 25, options=dict(g=12))
    with av.open(str(src)) as c:
        spots = sorted((p.pts, p.pos, p.size, p.is_keyframe) for p in c.demux(video=0) if p.size)
    b = bytearray(src.read_bytes())
    _, pos, size, key = spots[90]
    assert not key
    b[pos+4:pos+size] = bytes(size-4)
    src.write_bytes(b)
    n = len(VideoReader(src, partial=True))
    assert 88 <= n <= 90 and len(good_frames(src)[0]) <= n
    refused(go(box, src, tmp_path/'out', *args), 'cannot be decoded', '--partial', f'{n} of 120 frames are good')
    kept = json.loads((tmp_path/'out/.work/point.json').read_text())['n']
    assert 60 < kept < 90
    code, out, _ = go(box, src, tmp_path/'out', '--partial', '--json', *args)
    assert code == 0 and json.loads(out)['frames'] == n
    go(box, src, tmp_path/'fresh', '--partial', *args)
    a, b = (DepthReader(tmp_path/o)[:] for o in ('out', 'fresh'))
    assert len(a) == n and torch.equal(a[:kept], b[:kept]) if args[1] == 'npz' else (a-b).abs().max() < 1e-3


def test_folders_of_something_else(box, tmp_path):
    assert go(box, box/'video.mp4', tmp_path/'d')[0] == 0
    before = files(tmp_path/'d')
    refused(go(box, box/'other.mp4', tmp_path/'d'), 'another video', 'nothing was touched')
    refused(shell(box/'video.mp4', '--out', tmp_path/'d', '--model', box/'other'), 'another model')
    others = {'mode': ('--mode', 'stream'), 'precision': ('--precision', 'bf16'), 'input size': ('--input-max', 16),
        'storage': ('--format', 'npz'),
        'number of frames': ('--max-len', 9), 'size': ('--native',), 'cut': ('--cut',)}
    for word, args in others.items(): refused(go(box, box/'video.mp4', tmp_path/'d', *args), f'another {word}')
    assert files(tmp_path/'d') == before
    assert go(box, box/'video.mp4', tmp_path/'d')[0] == 0 and files(tmp_path/'d') == before
    refused(go(box, box/'video.mp4', box), 'is the folder of the input')
    refused(go(box, box/'video.mp4', box/'other.mp4'), 'other.mp4')
    with V.writer(tmp_path/'busy'): refused(go(box, box/'video.mp4', tmp_path/'busy'), 'held by process')


def test_a_begun_folder_is_guarded_too(box, tmp_path, monkeypatch):
    with monkeypatch.context() as m:
        m.setattr(V, 'save_point', stop_after(1))
        with pytest.raises(KeyboardInterrupt): video_depth(box/'video.mp4', tmp_path/'d', tiny())
    for kw in (dict(model=tiny(1)), dict(model=tiny(), mode='stream'), dict(model=tiny(), storage='exr')):
        with pytest.raises(ValueError, match='another'): video_depth(box/'video.mp4', tmp_path/'d', **kw)
    video_depth(box/'video.mp4', tmp_path/'d', tiny())
    video_depth(box/'video.mp4', tmp_path/'e', tiny())
    assert files(tmp_path/'d') == files(tmp_path/'e')


def stop_after(n):
    "`save_point` that is interrupted once it has been called so often"
    real, calls = depth_parts.save_point, []

    def save(*args, **kw):
        calls.append(real(*args, **kw))
        if len(calls) == n: raise KeyboardInterrupt
    return save


def test_weights_of_another_model(box, tmp_path):
    torch.save({'fc.weight': torch.zeros(1000, 512), 'fc.bias': torch.zeros(1000)}, tmp_path/'resnet.pth')
    (tmp_path/'half.safetensors').write_bytes((box/'tiny/model.safetensors').read_bytes()[:5000])
    (tmp_path/'vit').mkdir()
    (tmp_path/'vit/config.json').write_text('{"model_type": "vit"}')
    (tmp_path/'torn').mkdir()
    (tmp_path/'torn/config.json').write_text((box/'tiny/config.json').read_text())
    with zipfile.ZipFile(tmp_path/'code.pth', 'w') as z: z.writestr('x/data.pkl', b"cos\nsystem\n(S'true'\ntR.")
    words = {'resnet.pth': 'holds no depth model', 'half.safetensors': 'not a readable safetensors', 'vit': "'vit'",
        'torn': 'none of model.safetensors',
        'code.pth': 'code.pth', 'gone': 'choose toy'}
    for name, word in words.items():
        refused(shell(box/'video.mp4', '--out', tmp_path/'out', '--model', tmp_path/name), word)
    refused(shell(box/'video.mp4', '--out', tmp_path/'out', '--model', 'depth-anything/Video-Depth-Anything-Large'),
        'hf download', 'choose toy')
    assert not (tmp_path/'out').exists()


FULL = (('part', ()), ('state', ()), ('state', ('--mode', 'stream')), ('frame', ()), ('frame', ('--format', 'npz')),
    ('preview', ('--preview',)))


@pytest.mark.parametrize('where, args', FULL)
def test_a_full_disk(box, tmp_path, monkeypatch, where, args):
    "Whatever finds the disk full says so, leaves no half file, and the same command goes on"
    full = OSError(errno.ENOSPC, 'No space left on device')

    def broken(real, at):
        n = [0]

        def f(*a, **kw):
            n[0] += 1
            if n[0] != at: return real(*a, **kw)
            if where == 'state':
                said = 'IoError(Os { code: 28, kind: StorageFull, message: "No space left on device" })'
                raise RuntimeError(f'Error while serializing: {said}')
            raise full
        return f
    spots = dict(part=(V.np, 'save', 2), state=(depth_parts, 'write_weights', 2), frame=(depth_frames, '_save', 31),
        preview=(V, 'write_preview', 1))
    spot, name, at = spots[where]
    with monkeypatch.context() as m:
        m.setattr(spot, name, broken(getattr(spot, name), at))
        if where == 'state' and args:  # the second state of a stream comes after 66 frames
            write_video(tmp_path/'long.mp4', numbered(150), 25)
        video = tmp_path/'long.mp4' if (tmp_path/'long.mp4').exists() else box/'video.mp4'
        refused(go(box, video, tmp_path/'d', *args), 'is full', 'frames are kept')
    assert not [o for o in tmp_path.rglob('.vidlit*')] and not list((tmp_path/'d').glob('*.tmp*'))
    assert go(box, video, tmp_path/'d', *args)[0] == 0
    assert go(box, video, tmp_path/'e', *args)[0] == 0 and files(tmp_path/'d') == files(tmp_path/'e')


@pytest.mark.skipif(sys.platform != 'linux' or os.geteuid() != 0, reason='needs a file system of its own')
def test_a_really_full_disk(box, tmp_path):
    (tmp_path/'small').mkdir()
    r = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=200k', 'tmpfs', str(tmp_path/'small')], capture_output=True)
    if r.returncode: pytest.skip('no mounting here')
    try:
        refused(go(box, box/'video.mp4', tmp_path/'small/d'), 'is full', 'of 60 frames are kept')
        assert json.loads((tmp_path/'small/d/.work/point.json').read_text())['n'] > 0
        subprocess.run(['mount', '-o', 'remount,size=20m', str(tmp_path/'small')], check=True)
        assert go(box, box/'video.mp4', tmp_path/'small/d')[0] == 0
        go(box, box/'video.mp4', tmp_path/'e')
        assert files(tmp_path/'small/d') == files(tmp_path/'e')
    finally: subprocess.run(['umount', str(tmp_path/'small')])


# half precision

@pytest.mark.parametrize('mode', ['offline', 'stream'])
def test_half_precision_that_breaks(box, tmp_path, mode):
    loud = net()
    with torch.no_grad():
        for p in loud.image.encoder.blocks[1].mlp.fc2.parameters(): p.mul_(1e7)
    loud.save_pretrained(tmp_path/'loud')
    kw = '--model', tmp_path/'loud', '--mode', mode, '--format', 'npz'
    code, out, err = shell(box/'video.mp4', '--out', tmp_path/'d', *kw, '--precision', 'fp16', '--json')
    said = 'vidlit: fp16 gave values that are not finite at frame 0: all of the video is made in fp32'
    assert code == 0 and said in err
    made = DepthReader(tmp_path/'d').meta.made
    row = json.loads(out)
    assert (made['asked'], made['precision'], row['precision']) == ('fp16', 'fp32',
        'fp32') and 'not finite' in row['note']
    shell(box/'video.mp4', '--out', tmp_path/'e', *kw)
    assert torch.equal(DepthReader(tmp_path/'d')[:], DepthReader(tmp_path/'e')[:])


def test_half_precision_that_breaks_later(box, tmp_path, monkeypatch):
    "A single part is made again, and counted"
    m, real = tiny(precision='bf16'), type(tiny()).mix
    calls = []

    def mix(self, *a):
        calls.append(self.precision)
        d = real(self, *a)
        return d*float('nan') if len(calls) == 2 else d
    monkeypatch.setattr(type(m), 'mix', mix)
    notes = []
    row = video_depth(box/'video.mp4', tmp_path/'d', m, report=lambda r: notes.append(r.get('note')))
    assert calls == ['bf16', 'bf16', 'fp32', 'bf16'] and '1 further parts' in row['note']
    assert DepthReader(tmp_path/'d').meta.made['fp32_again'] == 1
    said = 'bf16 gave values that are not finite at frame 24: this part is made in fp32 (1 so far)'
    assert [o for o in notes if o] == [said]
    with pytest.raises(ValueError, match='not finite in fp32'):
        monkeypatch.setattr(type(m), 'mix', lambda self, *a: real(self, *a)*float('inf'))
        video_depth(box/'video.mp4', tmp_path/'e', m)


# kills

def dying(at, before, *args):
    "The command, killed at its `at`-th move of a file into place, before or after it"
    real, count = os.replace, itertools.count(1)

    def replace_(*a, **kw):
        n = next(count) # frames are moved by several threads: each has a number of its own
        if n == at and before: os.kill(os.getpid(), signal.SIGKILL)
        real(*a, **kw)
        if n == at: os.kill(os.getpid(), signal.SIGKILL)
    os.replace = replace_
    os._exit(go(*args)[0])


def attempt(*args, seconds=None, target=dying):
    p = fork.Process(target=target, args=args)
    p.start()
    p.join(seconds)
    if p.exitcode is None: os.kill(p.pid, signal.SIGKILL)
    p.join()
    return p.exitcode


@pytest.mark.parametrize('args', [('--format', 'png16', '--preview'), ('--format', 'zarr', '--mode', 'stream'),
    ('--format', 'npz', '--precision', 'bf16')])
def test_kills_at_random(box, tmp_path, args):
    video, rng = write_video(tmp_path/'video.mp4', numbered(100), 25), random.Random(0)
    t = time.monotonic()
    assert go(box, video, tmp_path/'whole', *args)[0] == 0
    took = time.monotonic()-t
    ends = [attempt(rng.randint(1, 6 if k < 4 else 40), k % 2, box, video, tmp_path/'d', *args) for k in range(7)]
    assert ends.count(-signal.SIGKILL) >= 5 and {*ends} <= {0, -signal.SIGKILL}, ends
    for _ in range(3):
        attempt(0, 0, box, video, tmp_path/'d', *args, seconds=rng.uniform(.1, .8)*took)  # and at moments of no meaning
    assert attempt(0, 0, box, video, tmp_path/'d', *args) == 0
    a, b = files(tmp_path/'d'), files(tmp_path/'whole')
    assert list(a) == list(b) and [k for k in a if a[k] != b[k]] == []


def untidy(at, *args):
    "The command, killed before its `at`-th removal of a file that it goes on from"
    real, n = os.unlink, [0]

    def unlink(path, **kw):
        n[0] += Path(path).name in ('run.json', 'point.json')
        if n[0] == at: os.kill(os.getpid(), signal.SIGKILL)
        real(path, **kw)
    os.unlink = unlink
    os._exit(go(*args)[0])


@pytest.mark.parametrize('args', [('--format', 'png16'), ('--format', 'npz', '--mode', 'stream')])
def test_kills_while_it_tidies_up(box, tmp_path, args):
    "All of the depth is written: whatever is left then of what it was made with, the video is done"
    video = write_video(tmp_path/'video.mp4', numbered(20), 25)
    assert go(box, video, tmp_path/'whole', *args)[0] == 0
    whole, ends = files(tmp_path/'whole'), []
    while not ends or ends[-1]:
        out = tmp_path/f'd{len(ends)}'
        ends.append(attempt(len(ends)+1, box, video, out, *args, target=untidy))
        assert attempt(0, 0, box, video, out, *args) == 0
        assert files(out) == whole and not (out/'.work').exists()
    assert ends == [-signal.SIGKILL]*2+[0]


# memory

def peak(conn, video, out, mode):
    "Bytes by which the process's own memory grows after 150 frames, and its peak (pages of libraries do not count)"
    m, seen = tiny(), []

    def own(): return 1024*int(re.search(r'RssAnon:\s*(\d+) kB', Path('/proc/self/status').read_text())[1])

    def report(row):
        if row['stage'] == 'depth':
            seen.append((row['done'], own()))
    video_depth(video, out, m, mode, native=True, storage='npz', report=report)
    top = max(v for _, v in seen)
    conn.send((top-next(v for n, v in seen if n >= 150), top))


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
@pytest.mark.parametrize('mode, n', [('offline', 1500), ('stream', 700)])
def test_memory_does_not_grow_with_the_video(tmp_path, mode, n):
    "A video that would be 15 MB a thousand frames, were it kept"
    tops = []
    for k in (300, n):
        video = write_video(tmp_path/f'{k}.mp4', numbered(k, 48, 80), 25, options=dict(preset='ultrafast'))
        a, b = fork.Pipe()
        p = fork.Process(target=peak, args=(b, video, tmp_path/str(k), mode))
        p.start()
        b.close()
        grown, top = a.recv()
        p.join()
        tops.append(top)
        assert grown < 4e6, (mode, k, grown)
    assert tops[1] <= 1.1*tops[0], tops


# the toy, where it is

@pytest.mark.skipif(not (toy_folder()/'config.json').is_file(), reason='no toy here yet')
def test_the_toy(tmp_path):
    m = load_depth_model('toy', 'cpu')
    assert 'toy' in m.about and m.units == 'relative' and json.loads((toy_folder()/'recipe.json').read_text())['about']
    w = make_worlds([3], WorldConfig(t=30, h=64, w=64))
    video = write_video(tmp_path/'w.mp4', (w.clip[0].permute(1, 2, 3, 0)*255).byte(), 24)
    assert shell(video, '--out', tmp_path/'d', '--device', 'cpu')[0] == 0
    near = DepthReader(tmp_path/'d')[:][:, 0]
    assert np.corrcoef(near.flatten(), (1/w.depth[0, :, 0]).flatten())[0, 1] > .3  # nearer is larger


def test_weights_travel_with_the_wheel(tmp_path, monkeypatch):
    "data/models/toy of a checkout becomes vidlit/toy of a wheel, where `toy_folder` finds it"
    src = tmp_path/'src'
    for d in ('vidlit', 'vidlit/video'):
        (src/d).mkdir(parents=True)
        (src/d/'__init__.py').write_text('')
    for f in ('setup.py', 'settings.ini', 'pyproject.toml', 'README.md', 'LICENSE'):
        (src/f).write_bytes((ROOT/f).read_bytes())
    net().save_pretrained(src/'data/models/toy')
    (src/'data/models/toy/recipe.json').write_text('{"about": "from a wheel"}')
    r = subprocess.run([sys.executable, 'setup.py', '-q', 'bdist_wheel', '-d', str(tmp_path)], cwd=src,
        capture_output=True, text=True)
    assert r.returncode == 0, r.stderr[-2000:]
    with zipfile.ZipFile(next(tmp_path.glob('*.whl'))) as z: z.extractall(tmp_path/'site')
    assert sorted(o.name for o in (tmp_path/'site/vidlit/toy').iterdir()) == ['config.json', 'model.safetensors',
        'recipe.json']
    monkeypatch.setattr('vidlit.__file__', str(tmp_path/'site/vidlit/__init__.py'))
    assert toy_folder() == tmp_path/'site/vidlit/toy'
    m = load_depth_model('toy', 'cpu')
    assert m.id == tiny().id and m.about.endswith('from a wheel')

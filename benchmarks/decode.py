"""Frames a second and exactness of reading videos: vidlit's reader (PyAV) against decord and torchcodec, on closed- and
open-GOP videos.

Every frame has its number painted in, so that a wrong frame is seen. All sides take turns in one process on one
thread, and processor time is counted, so that a busy machine slows all; minima over the rounds and ratios are reported.
decord and torchcodec are called directly here: vidlit's own backends refuse what comes out wrong. The last way of
reading is what training needs: sixteen frames of 64 from a random start, scaled to a short side of 224 (the crop of the
middle square costs nothing); the others resize with torchvision. torchcodec is lent the FFmpeg of PyAV's wheel where
the system has none, and is left out where it is not installed.

    python benchmarks/decode.py [--rounds 3] [--frames 144] [--out benchmarks/results/decode.json]"""
import argparse
import importlib
import json
import os
import platform
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
import av
import decord
import numpy as np
import torch
from torchvision.transforms.v2.functional import resize
from vidlit.video.reader import VideoReader
from vidlit.video.writing import numbered_frame, read_number, write_video

H, W = 360, 640
OPEN = 'open-gop=1:keyint=24:min-keyint=24:bframes=5:b-adapt=0:b-pyramid=normal:scenecut=0'
SMALL = 224, round(224*W/H)
VIDEOS = {
    'h264 closed GOP': dict(options={'g':24, 'sc_threshold':0}),
    'h264 open GOP': dict(options={'x264-params':OPEN}),
    'h265 open GOP': dict(codec='libx265',
    options={'preset':'veryfast', 'x265-params':'open-gop=1:keyint=24:min-keyint=24:bframes=4:scenecut=0:pools=1'}),
}

def machine():
    "What the numbers were measured on"
    p = Path('/proc/cpuinfo')
    cpu = (next((o.split(':')[1].strip() for o in p.read_text().splitlines() if o.startswith('model name')), '')
        if p.exists() else '')
    return dict(cpu=cpu or platform.processor(), cores=os.cpu_count(), threads=1, av=av.__version__,
        decord=decord.__version__, torch=torch.__version__,
        torchcodec=next((metadata.version(o) for o in ['torchcodec'] if len(sides()) > 2), None),
        python=platform.python_version(), system=platform.system(), load=[round(o, 2) for o in os.getloadavg()])

def requests(n, rng):
    "Lists of frame numbers for each way of reading"
    clips = [list(range(i, i+64, 4)) for i in rng.integers(0, n-64, 8)]
    return {'in order, 32 at a time': [list(range(i, i+32)) for i in range(0, n-31, 32)],
        'clips of 16 from 64': clips, 'scattered, 40 a time': [rng.choice(n, 40, replace=False).tolist()],
        'clips of 16 from 64, 224': clips}

def ours(path, cache, small):
    r = VideoReader(path, cache=cache)
    return lambda idx: r.frames(idx, SMALL if small else None)

def shrunk(get, small):
    "torchvision's resize after a reader"
    if not small: return get
    return lambda idx: resize(get(idx).permute(0, 3, 1, 2), SMALL, antialias=True).permute(0, 2, 3, 1)

def decorded(path, cache, small):
    r = decord.VideoReader(str(path), num_threads=1)
    return shrunk(lambda idx: torch.from_numpy(r.get_batch(idx).asnumpy()), small)

def codec(mode):
    def side(path, cache, small):
        from torchcodec.decoders import VideoDecoder
        r = VideoDecoder(str(path), dimension_order='NHWC', num_ffmpeg_threads=1, seek_mode=mode)
        return shrunk(lambda idx: r.get_frames_at(indices=list(map(int, idx))).data, small)
    return side

def sides():
    out = dict(pyav=ours, decord=decorded)
    try: importlib.import_module('torchcodec.decoders').VideoDecoder(b'no video')
    except (ImportError, OSError): return out
    except Exception as e: # the libraries are looked for only now
        if 'Could not load' in str(e): return out
    return out | {'torchcodec exact': codec('exact'), 'torchcodec approximate': codec('approximate')}

def once(side, path, cache, asked, small):
    "Processor seconds and wrong frames of one pass: every request opens the video, as a loader does"
    took, wrong = 0., 0
    for idx in asked:
        t = time.process_time()
        got = side(path, cache, small)(idx)
        took += time.process_time()-t
        # a resized number is read after going back to the size it was painted in
        if small: got = resize(got.permute(0, 3, 1, 2), (H, W), antialias=True).permute(0, 2, 3, 1)
        wrong += int((read_number(got) != torch.tensor(idx)).sum())
    return took, wrong

def measure(path, cache, rounds, n):
    "One row per way of reading"
    rng, rows, all_ = np.random.default_rng(0), [], sides()
    for way, asked in requests(n, rng).items():
        k, runs, small = sum(map(len, asked)), {o: [] for o in all_}, way.endswith('224')
        for _ in range(rounds):
            for name, side in all_.items(): runs[name].append(once(side, path, cache, asked, small))
        fps = {o: k/min(t for t, _ in v) for o, v in runs.items()}
        rows.append(dict(way=way, frames=k, fps={o: round(v, 1) for o, v in fps.items()},
            ratio={o: round(fps['pyav']/v, 3) for o, v in fps.items() if o != 'pyav'},
            wrong={o: round(max(w for _, w in v)/k, 4) for o, v in runs.items()}))
    return rows

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--rounds', type=int, default=3)
    p.add_argument('--frames', type=int, default=144)
    p.add_argument('--out', default=str(Path(__file__).parent/'results'/'decode.json'))
    a = p.parse_args()
    decord.logging.set_level(decord.logging.QUIET)
    rows = []
    with tempfile.TemporaryDirectory() as d:
        for name, kw in VIDEOS.items():
            path = write_video(Path(d)/'video.mp4', (numbered_frame(i, H, W) for i in range(a.frames)), **kw)
            rows += [dict(video=name, **o) for o in measure(path, Path(d)/'kept', a.rounds, a.frames)]
    for o in rows:
        print(f"{o['video']:16} {o['way']:25}", '  '.join(f"{k} {v:.0f}/s, {o['wrong'][k]:.0%} wrong"
            for k, v in o['fps'].items()), ' ratios', o['ratio'])
    what = f'{W}x{H}, {a.frames} frames, {a.rounds} rounds, processor time, opening included, index kept on disk'
    out = dict(what=what,
        machine=machine(), rows=rows)
    Path(a.out).parent.mkdir(parents=True, exist_ok=True)
    Path(a.out).write_text(json.dumps(out, indent=1)+'\n')

def lend():
    "Start again with PyAV's FFmpeg on the path of libraries, under the names that torchcodec looks for"
    libs = Path(av.__file__).parents[1]/'av.libs'
    if len(sides()) > 2 or 'VIDLIT_LENT' in os.environ or not libs.is_dir(): return
    d = tempfile.mkdtemp()
    for o in libs.glob('lib*-*.so.*'):
        name, rest = o.name.split('-', 1)
        major = rest.split('.so.')[1].split('.')[0]
        if name.startswith(('libav', 'libsw')): (Path(d)/f'{name}.so.{major}').symlink_to(o)
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, 'VIDLIT_LENT': d, 'LD_LIBRARY_PATH': d})

if __name__ == '__main__':
    lend()
    main()

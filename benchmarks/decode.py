"""Frames a second and exactness of reading films: vidlit's PyAV reader against decord, on closed- and open-GOP
films.

Every frame has its number painted in, so that a wrong frame is seen. Both sides take turns in one process on
one thread, and processor time is
counted, so that a busy machine slows both; medians over the rounds and their ratio are reported. decord is
called directly here: vidlit's own
backend="decord" refuses the films that come out wrong.

    python benchmarks/decode.py [--rounds 3] [--frames 144] [--out benchmarks/results/decode.json]"""
import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
import av
import decord
import numpy as np
import torch
from vidlit.video.reader import VideoReader
from vidlit.video.writing import numbered_frame, read_number, write_video

H, W = 360, 640
OPEN = 'open-gop=1:keyint=24:min-keyint=24:bframes=5:b-adapt=0:b-pyramid=normal:scenecut=0'
FILMS = {
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
        python=platform.python_version(), system=platform.system(), load=[round(o, 2) for o in os.getloadavg()])

def requests(n, rng):
    """Lists of frame numbers for each way of reading: one after another, clips as a loader asks for them,
    scattered frames"""
    return {'in order, 32 at a time': [list(range(i, i+32)) for i in range(0, n-31, 32)],
        'clips of 16, every 2nd': [list(range(s, s+32, 2)) for s in rng.integers(0, n-32, 8)],
        'scattered, 40 a time': [rng.choice(n, 40, replace=False).tolist() for _ in range(2)]}

def pyav(path):
    r = VideoReader(path)
    return r.frames

def decorded(path):
    r = decord.VideoReader(str(path), num_threads=1)
    return lambda idx: torch.from_numpy(r.get_batch(idx).asnumpy())

def once(side, path, asked):
    "Processor seconds and wrong frames of one pass: open, then answer every request"
    t, wrong = time.process_time(), 0
    get, took = side(path), 0.
    for idx in asked:
        got = get(idx)
        took += time.process_time()-t
        wrong += int((read_number(got) != torch.tensor(idx)).sum())
        t = time.process_time()
    return took, wrong

def measure(path, rounds, n):
    "One row per way of reading"
    rng, rows = np.random.default_rng(0), []
    for way, asked in requests(n, rng).items():
        k, runs = sum(map(len, asked)), {'pyav':[], 'decord':[]}
        for _ in range(rounds):
            for name, side in (('pyav', pyav), ('decord', decorded)): runs[name].append(once(side, path, asked))
        fps = {o:k/statistics.median(t for t, _ in v) for o, v in runs.items()}
        rows.append(dict(way=way, frames=k, ratio=round(fps['pyav']/fps['decord'], 3),
            **{f'{o}_fps':round(v, 1) for o, v in fps.items()},
            **{f'{o}_wrong':round(max(w for _, w in v)/k, 4) for o, v in runs.items()}))
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
        for name, kw in FILMS.items():
            path = write_video(Path(d)/'film.mp4', (numbered_frame(i, H, W) for i in range(a.frames)), **kw)
            rows += [dict(film=name, **o) for o in measure(path, a.rounds, a.frames)]
    print(f"{'film':16} {'way of reading':24} {'pyav f/s':>9} {'decord f/s':>11} {'ratio':>6}  wrong: pyav, decord")
    for o in rows:
        print(
            f"{o['film']:16} {o['way']:24} {o['pyav_fps']:9.0f} {o['decord_fps']:11.0f} {o['ratio']:6.2f}  "
            f"{o['pyav_wrong']:.1%}, {o['decord_wrong']:.1%}")
    out = dict(what=f'{W}x{H}, {a.frames} frames, {a.rounds} rounds, processor time, opening included',
        machine=machine(), rows=rows)
    Path(a.out).parent.mkdir(parents=True, exist_ok=True)
    Path(a.out).write_text(json.dumps(out, indent=1)+'\n')

if __name__ == '__main__': main()

"""What it costs that finished folders count their frames, and that writers say when their place is gone.

One video through a null model (green is the depth) into 16-bit PNG, as it is and with both left out, in turns in one
process on one thread: the least processor time of each side, and a product of matrices of the same run.

    python benchmarks/safety.py [--rounds 5] [--frames 120] [--out benchmarks/results/safety.json]"""
import argparse
import json
import os
import platform
import shutil
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
import torch
from depth_pipeline import Null, tiny
from vidlit.pipeline import video_depth as V
from vidlit.video import depth_frames as D
from vidlit.video.writing import numbered_frame, write_video


@contextmanager
def without():
    "Frames are not counted, and a place that is gone is an error as Python says it"
    @contextmanager
    def plain(path):
        from vidlit.floor.places import _mark
        box = Path(path).parent/_mark()
        box.mkdir()
        try: yield box/Path(path).name
        finally: shutil.rmtree(box, ignore_errors=True)
    was = D.temp_path, V.DepthRun.all_there, V.DepthRun.lost
    D.temp_path, V.DepthRun.all_there, V.DepthRun.lost = plain, lambda self: None, lambda self: []
    try: yield
    finally: D.temp_path, V.DepthRun.all_there, V.DepthRun.lost = was


def product():
    a = torch.randn(512, 512)
    at = time.process_time()
    for _ in range(20): a @ a
    return time.process_time()-at


def one(video, model):
    with tempfile.TemporaryDirectory() as t:
        at = time.process_time()
        V.video_depth(video, Path(t)/'out', model)
        return time.process_time()-at


def main():
    p = argparse.ArgumentParser()
    p.add_argument('--rounds', type=int, default=5)
    p.add_argument('--frames', type=int, default=120)
    p.add_argument('--out', default=str(Path(__file__).parent/'results'/'safety.json'))
    a = p.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as t:
        video = write_video(Path(t)/'v.mp4', (numbered_frame(i, 180, 320) for i in range(a.frames)), 25)
        parts = {k: getattr(tiny(), k) for k in ('model', 'name', 'about', 'id')}
        model, times = Null(**parts), dict(plain=[], counted=[], product=[])
        for _ in range(a.rounds):
            with without(): times['plain'].append(one(video, model))
            times['counted'].append(one(video, model))
            times['product'].append(product())
    least = {k: min(v) for k, v in times.items()}
    row = dict(frames=a.frames, size='320x180', rounds=a.rounds, seconds=least, ratio=least['counted']/least['plain'],
        machine=dict(cpu=platform.processor() or platform.machine(), torch=torch.__version__))
    Path(a.out).write_text(json.dumps(row, indent=1)+'\n')
    print(json.dumps(row, indent=1))


if __name__=='__main__': main()

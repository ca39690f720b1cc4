"""The neural codec beside x264: frames per second of encoding and decoding at 320 x 240 on one thread, and rate and
distortion from files beside x264 and x265. Processor time, minimum of several rounds, all in one process.

    python benchmarks/codec.py [--rounds 3] [--out benchmarks/results/codec.json]"""
# ruff: noqa: E402, I001 (the number of threads is set before torch is imported)
import argparse
import json
import tempfile
import warnings
from pathlib import Path
from step import alternate, machine  # the neighbour: sets the threads too
warnings.filterwarnings('ignore')
import av
import numpy as np
import torch
from vidlit.pyramid.codec_file import decode_video, encode_video, load_codec, rate_distortion
from vidlit.pyramid.neural_codec import codec_clips
from vidlit.worlds.worlds import WorldConfig, make_worlds

def x264(clip, path, preset, crf=23):
    "Encode on one thread"
    with av.open(str(path), 'w') as c:
        s = c.add_stream('libx264', rate=25, options=dict(crf=str(crf), preset=preset, threads='1'))
        s.height,s.width,s.pix_fmt = *clip.shape[1:3],'yuv420p'
        for f in clip:
            for p in s.encode(av.VideoFrame.from_ndarray(f, format='rgb24')): c.mux(p)
        for p in s.encode(): c.mux(p)

def read(path):
    "Decode on one thread, to RGB"
    with av.open(str(path)) as c:
        c.streams.video[0].thread_type,c.streams.video[0].codec_context.thread_count = 'NONE',1
        return [f.to_ndarray(format='rgb24') for f in c.decode(video=0)]

def speed(rounds, n=12):
    "Frames per second, and bits per pixel of the files"
    clip = make_worlds([7001], WorldConfig(t=n, h=240, w=320, camera='hand', n_obj=3), truth=False).clip[0]
    clip = (clip.permute(1, 2, 3, 0)*255).round().to(torch.uint8).numpy()
    codec,rows = load_codec(),[]
    data = encode_video(clip, codec, 16)
    with tempfile.TemporaryDirectory() as d:
        names = {p: Path(d)/f'{p}.mkv' for p in ('ultrafast','medium')}
        steps = {'vidlit encode': lambda: encode_video(clip, codec, 16),
            'vidlit decode': lambda: decode_video(data, codec)}
        for p,f in names.items():
            steps |= {f'x264 {p} encode': lambda p=p, f=f: x264(clip, f, p), f'x264 {p} decode': lambda f=f: read(f)}
        times = alternate(steps, rounds, 1)
        size = {'vidlit': len(data), **{f'x264 {p}': f.stat().st_size for p,f in names.items()}}
    for k,b in size.items():
        rows.append(dict(codec=k, encode_fps=round(n/min(times[f'{k} encode']), 1),
            decode_fps=round(n/min(times[f'{k} decode']), 1), bits_per_pixel=round(8*b/clip[...,0].size, 3)))
    return rows

def main():
    ap = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    ap.add_argument('--rounds', type=int, default=3, help='timed rounds after a warm-up round')
    ap.add_argument('--out', type=Path, default=Path(__file__).parent/'results'/'codec.json')
    args = ap.parse_args()
    torch.set_num_threads(1)
    rows = speed(args.rounds)
    clips = [codec_clips([s], t=12, side=96)[0].permute(0, 2, 3, 1).numpy() for s in range(7001, 7007)]
    worlds = [np.ascontiguousarray(o) for o in clips]
    def curve(levels): return rate_distortion(worlds, levels=levels, crfs=(12, 20, 28, 36, 44) if levels==1 else ())
    setting = '320x240, 12 frames, step 16, one thread; rate and distortion: 6 worlds, 96x96'
    curves = {f'{l} levels': curve(l) for l in (1, 3)}
    res = dict(machine=machine(), setting=setting, speed=rows, rate_distortion=curves)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(res, indent=1)+'\n')
    for r in rows: print(r)
    for k,v in res['rate_distortion'].items():
        for r in v: print(k, r)

if __name__ == '__main__': main()

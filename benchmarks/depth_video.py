"""Depth of a film by windows of 32 frames: the official program's schedule against ours, in one process, in turns.

Speed: the reference takes every window whole, pads included, as the official program does (a window each 22 frames,
the first ten slots fed again, 32 frames through encoder and head), with the modules of this library, which the
official weights fit. Ours is what `vidlit depth` runs. Both give the same depth, which is checked before anything is
timed. Random weights of ViT-S, processor time, one thread, minimum over the rounds; beside it the rate of the same
run's matrix product, and how many of the operations that each side asks for are done at that rate.
Stills: an image model, frame by frame, against the same in windows.
Memory: the most bytes that tensors held at any one time (weights apart), and resident memory, at 518x924.

    python benchmarks/depth_video.py [--part speed] [--size 196x462] [--frames 76] [--rounds 2] [--precision fp32]
    python benchmarks/depth_video.py --part memory [--model s] [--memory 1GiB] [--repeat]
    python benchmarks/depth_video.py --part film --model toy [--film FILE] [--frames 120]
    python benchmarks/depth_video.py --part weights [--forms fp32 bf16 int8 compiled]

Film: from a file to its depth folder and preview, beside the network alone (frames in memory, windows brought to one
scale, nothing written), and what each stage takes.

`--repeat`: one frame is encoded, and copies of what was said of it fill the windows, which takes as much memory.
`--part shapes`: nothing is computed, tensors have shapes alone (float32): for networks that are large."""
# ruff: noqa: E402, I001 (the number of threads is set before torch is imported)
import argparse
import copy
import json
import os
import tempfile
import threading
import time
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
os.environ.setdefault('OMP_NUM_THREADS', '1')
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from vidlit.depth.depth_anything import DepthAnything
from vidlit.depth.frame_maps import Pieces
from vidlit.depth.models import DepthModel, as_bytes, load_depth_model, per_frame, wrap
from vidlit.depth.temporal_head import VideoDepth, video_depth_b, video_depth_l, video_depth_s
from vidlit.depth.windows import KEYS, infer_windows, scale_shift
from vidlit.pipeline import parts, preview, video_depth as one_go
from vidlit.video import depth_frames, reader, writing

from step import machine

CONFIGS = dict(s=video_depth_s, b=video_depth_b, l=video_depth_l)


def network(name='s', stills=False):
    "Random weights; the temporal modules say something"
    gen, cfg = torch.Generator().manual_seed(0), CONFIGS[name]
    if stills: return per_frame(DepthAnything(cfg.image, gen))
    net = VideoDepth(cfg, gen)
    with torch.no_grad():
        for m in net.time.values(): m.proj_out.weight.normal_(std=.02, generator=gen)
    return net


def film(n, h, w):
    "Frames that move: a smooth picture, shifted"
    gen = torch.Generator().manual_seed(1)
    x = torch.nn.functional.interpolate(torch.rand(1, 3, h//8, w//8+n, generator=gen), scale_factor=8, mode='bilinear')
    return [(x[0, :, :h, 8*i:8*i+w]*255).byte().movedim(0, -1) for i in range(n)]


@torch.no_grad()
def official(net, frames, prep):
    "The schedule of the official program: lists, whole windows, pads"
    n, frames = len(frames), [*frames, *[frames[-1]]*53]
    raws, held = [], None
    for at in range(0, n, 22):
        win = frames[at:at+32]
        if held: win[:10] = [held[j] for j in KEYS]
        raws += list(net(torch.stack([prep(f) for f in win], 1)[None])[0])
        held = win
    out, refs = raws[:32], [raws[0], raws[12]]
    for at in range(32, len(raws), 32):
        s, t = scale_shift(torch.stack(raws[at:at+2]), torch.stack(refs))
        new = [(o*s+t).clamp(min=0) for o in raws[at:at+32]]
        for j in range(8): out[j-8] = out[j-8]*(1-j/7)+new[2+j]*(j/7)
        out, refs = out+new[10:], [refs[0], new[12]]
    return torch.stack(out[:n])


def ours(m, frames): return torch.stack(list(infer_windows(frames, m.mix, m.encode)))


def spent(f, *args):
    "Processor seconds of a call, and what it gave"
    t = time.process_time()
    out = f(*args)
    return time.process_time()-t, out


def product(m=1848, k=384, n=1536, times=40):
    "Operations a second of the product that the encoder's layers are made of"
    gen = torch.Generator().manual_seed(2)
    a, b = torch.randn(m, k, generator=gen), torch.randn(n, k, generator=gen)
    def go():
        for _ in range(times): torch.nn.functional.linear(a, b)
    return 2*m*k*n*times/spent(go)[0]


def sized(net, h, w, **kw):
    "The model at a size inside that is that of the frames"
    m = wrap(net, **kw)
    size = next(o for o in range(m.patch, 2*max(h, w)) if replace(m, size=o).inside((h, w)) == (h, w))
    return replace(m, size=size)


def operations(f):
    with FlopCounterMode(display=False) as c: f()
    return c.get_total_flops()


def speed(a):
    "Official schedule and ours, in turns"
    h, w = map(int, a.size.split('x'))
    frames, net = film(a.frames, h, w), network(a.model, a.stills)
    m, full = sized(net, h, w, precision=a.precision), sized(net, h, w)
    sides = dict(official=lambda: official(net, frames, full.prep), ours=lambda: ours(m, frames))
    secs, rates, depth = {k: [] for k in sides}, [], {}
    for _ in range(a.rounds):
        for k, f in sides.items():
            rates.append(product())
            t, depth[k] = spent(f)
            secs[k].append(t)
            print(f'{k:9} {t:7.2f} s, {a.frames/t:.3f} frames/s, product {rates[-1]/1e9:.1f} GFLOP/s', flush=True)
    off = ((depth['ours']-depth['official']).abs().max()/depth['official'].abs().max()).item()
    best = {k: min(v) for k, v in secs.items()}
    row = dict(size=a.size, frames=a.frames, model=a.model, stills=a.stills, precision=a.precision, rounds=a.rounds,
        seconds={k: round(v, 2) for k, v in best.items()}, fps={k: round(a.frames/v, 3) for k, v in best.items()},
        times_as_fast=round(best['official']/best['ours'], 3), largest_difference=off,
        product_gflops=round(max(rates)/1e9, 1))
    if a.operations:
        ops = {k: operations(f) for k, f in sides.items()}
        row |= dict(tera_operations={k: round(v/1e12, 2) for k, v in ops.items()},
            of_the_product_rate={k: round(ops[k]/best[k]/max(rates), 3) for k in ops})
    return row


class Live(TorchDispatchMode):
    "Bytes that tensors hold, counted after every operation; what was there before is not counted"
    def __init__(self, least=1 << 14):
        super().__init__()
        self.least, self.now, self.peak = least, {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        old = {o.untyped_storage()._cdata for o in args if isinstance(o, torch.Tensor)}
        for o in out if isinstance(out, (tuple, list)) else [out]:
            if not isinstance(o, torch.Tensor): continue
            s = o.untyped_storage()
            if s.nbytes() >= self.least and s._cdata not in old: self.now[s._cdata] = StorageWeakRef(s), s.nbytes()
        self.now = {k: v for k, v in self.now.items() if not v[0].expired()}
        self.peak = max(self.peak, sum(n for _, n in self.now.values()))
        return out


def status(key):
    line = next(o for o in Path('/proc/self/status').read_text().splitlines() if o.startswith(key))
    return int(line.split()[1])*1024


def memory(a):
    "The most that two windows hold at a time"
    h, w = map(int, a.size.split('x'))
    net = network(a.model, a.stills)
    m = replace(sized(net, h, w, precision=a.precision), memory=as_bytes(a.memory) if a.memory else None)
    start = status('VmRSS')
    frames, live, known = film(a.frames, h, w), Live() if a.live else nullcontext(), []
    def copied(f):
        if not known: known.append(m.encode(f))
        return known[0]._replace(maps=[o.clone() for o in known[0].maps])
    with live:
        prep = copied if a.repeat else m.encode
        n = sum(1 for _ in islice(infer_windows(iter(frames), m.mix, prep), a.frames))
    assert n == a.frames
    return dict(size=a.size, frames=n, model=a.model, precision=a.precision, memory=a.memory, repeat=a.repeat,
        weights=sum(p.nbytes for p in net.parameters()), live=live.peak if a.live else None,
        resident=status('VmHWM'), resident_above_start=status('VmHWM')-start)


STAGES = dict(decode=(reader.VideoReader, '__getitem__'), resize=(DepthModel, 'prep'), enlarge=(parts, 'to_source'),
    pack=(depth_frames.DepthWriter, '__setitem__'), unpack=(depth_frames.DepthReader, 'stored'),
    align=(parts, 'settle'), colour=(preview, '_panel'), encode=(writing, '_encode'))


@contextmanager
def told(secs):
    "Processor seconds of stages, in whatever thread they run; a stage inside another counts for the inner one only"
    old, local = {k: getattr(*v) for k, v in STAGES.items()}, threading.local()
    def timed(k, f):
        def g(*args, **kw):
            stack = local.__dict__.setdefault('stack', [0.])
            stack.append(0.)
            t = time.thread_time()
            try: return f(*args, **kw)
            finally:
                t = time.thread_time()-t
                secs[k] = secs.get(k, 0)+t-stack.pop()
                stack[-1] += t
        return g
    for k, (o, n) in STAGES.items(): setattr(o, n, timed(k, old[k]))
    try: yield
    finally:
        for k, (o, n) in STAGES.items(): setattr(o, n, old[k])


def to_preview(a):
    "A film to its folder and preview, and the network alone, in turns"
    with tempfile.TemporaryDirectory() as d:
        path = Path(a.film) if a.film else writing.write_video(Path(d)/'film.mp4', film(a.frames, 272, 640), 25)
        with reader.VideoReader(path) as v: frames = [v[i] for i in range(min(a.frames, len(v)))]
        m = load_depth_model('toy') if a.model == 'toy' else wrap(network(a.model), size=196)
        n, rows, stages = len(frames), [], {}
        def whole(i): one_go.video_depth(path, Path(d)/f'out{i}', m, preview=True, upto=n)
        for i in range(a.rounds):
            t, (net, _) = time.perf_counter(), spent(ours, m, frames)
            net_wall, t = time.perf_counter()-t, time.perf_counter()
            rows.append(dict(network=net, film=spent(whole, i)[0], network_wall=net_wall,
                film_wall=time.perf_counter()-t))
            print(f"network {net/n*1e3:.1f}, film {rows[-1]['film']/n*1e3:.1f} ms a frame", flush=True)
        if a.stages:
            with told(stages): spent(whole, 'told')
    best = {k: min(o[k] for o in rows) for k in rows[0]}
    hw, ms = tuple(frames[0].shape[:2]), {k: round(v/n*1e3, 2) for k, v in best.items()}
    return dict(film=Path(a.film).name if a.film else 'drawn', size='{}x{}'.format(*hw), model=a.model, frames=n,
        inside='{}x{}'.format(*m.inside(hw)), rounds=a.rounds, ms_a_frame=ms,
        times_the_network=round(best['film']/best['network'], 3),
        times_the_network_wall=round(best['film_wall']/best['network_wall'], 3),
        stages={k: round(v/n*1e3, 2) for k, v in stages.items()})


def forms(net, which):
    "The network with its weights in another form, and how a frame is encoded by it"
    mine = copy.deepcopy(net).eval().requires_grad_(False)
    if which == 'int8': # dynamic: activations are rounded as they come; the query, key and value matrix stays as it is
        some = {k for k, o in mine.image.encoder.named_modules() if isinstance(o, torch.nn.Linear) and 'qkv' not in k}
        mine.image.encoder = torch.ao.quantization.quantize_dynamic(mine.image.encoder, some, torch.qint8)
    m = wrap(mine, size=196, precision='bf16' if which == 'bf16' else 'fp32')
    return m


def weights(a):
    "A frame encoded with weights in other forms, in turns; what it does to the depth of four frames"
    h, w = map(int, a.size.split('x'))
    frames, net = film(4, h, w), network(a.model)
    secs, rows, depth = {}, [], {}
    ways = {k: forms(net, k) for k in a.forms}
    for k, m in ways.items():
        t = time.process_time()
        if k == 'compiled': m.model.image.encoder = Compiled(m.model.image.encoder)
        depth[k] = m.mix([m.encode(f) for f in frames])
        print(f'{k}: first {time.process_time()-t:.1f} s', flush=True)
        rows.append(dict(form=k, first=round(time.process_time()-t, 2)))
    for _ in range(max(2, a.rounds)):
        for k, m in ways.items(): secs.setdefault(k, []).append(spent(m.encode, frames[0])[0])
    ref = depth['fp32']
    for r in rows:
        k = r['form']
        r.update(ms=round(min(secs[k])*1e3, 1), times_as_fast=round(min(secs['fp32'])/min(secs[k]), 3),
            largest_difference=((depth[k]-ref).abs().max()/ref.abs().max()).item(),
            mean_difference=((depth[k]-ref).abs().mean()/ref.abs().mean()).item())
    return dict(size=a.size, model=a.model, forms=rows)


class Compiled(torch.nn.Module):
    "An encoder whose `taps` is compiled"
    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder
        self.taps = torch.compile(encoder.taps, dynamic=False)


def shapes(a):
    "The same count without computing: a frame encoded, 32 of it mixed, beside 12 maps of answers"
    h, w = map(int, a.size.split('x'))
    net = VideoDepth(CONFIGS[a.model]).eval().requires_grad_(False).to('meta')
    VideoDepth.single_image = property(lambda self: False) # nothing can be asked of weights without values
    autocast, torch.autocast = torch.autocast, lambda *args, **kw: nullcontext()
    pieces = Pieces(tight=a.memory=='tight')
    try:
        with torch.device('meta'), torch.no_grad(), Live() as live:
            one = net.frame_maps(torch.empty(1, 3, h, w), pieces.tight)[0]
            window = [one._replace(maps=[o.clone() for o in one.maps]) for _ in range(32)]
            held = [torch.empty(h, w).clone() for _ in range(12)]
            net.mix_frames(window, 32, pieces)
    finally: torch.autocast = autocast
    weights = sum(p.nbytes for p in net.parameters())
    return dict(size=a.size, frames=32, model=a.model, precision='fp32', memory=a.memory, shapes=True, weights=weights,
        live=live.peak, held=len(held))


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--part', choices=['speed', 'memory', 'shapes', 'film', 'weights'], default='speed')
    p.add_argument('--model', choices=[*CONFIGS, 'toy'], default='s')
    p.add_argument('--size', default=None)
    p.add_argument('--frames', type=int, default=None)
    p.add_argument('--film', default=None, help='a video, for --part film; one is drawn when missing')
    p.add_argument('--forms', nargs='*', default=['fp32', 'bf16', 'int8', 'compiled'], help='for --part weights')
    p.add_argument('--no-stages', dest='stages', action='store_false', help='of a film: totals alone')
    p.add_argument('--rounds', type=int, default=2)
    p.add_argument('--precision', choices=['fp32', 'bf16'], default='fp32')
    p.add_argument('--stills', action='store_true', help='an image model')
    p.add_argument('--operations', action='store_true', help='count them too: one more run of each side')
    p.add_argument('--memory', default=None, help='budget, such as 1GiB; tight for shapes')
    p.add_argument('--repeat', action='store_true', help='encode one frame, copy what was said of it')
    p.add_argument('--no-live', dest='live', action='store_false', help='count resident memory alone')
    p.add_argument('--out', default=str(Path(__file__).parent/'results'/'depth_video.json'))
    a = p.parse_args()
    torch.set_num_threads(1)
    a.size = a.size or dict(speed='196x462', weights='196x462').get(a.part, '518x924')
    a.frames = a.frames or dict(speed=76, film=120).get(a.part, 54)
    row = dict(speed=speed, memory=memory, shapes=shapes, film=to_preview, weights=weights)[a.part](a)
    for k, v in row.items(): print(f'{k}: {v}')
    f = Path(a.out)
    old = json.loads(f.read_text()) if f.exists() else {}
    rows = old.get(a.part, [])
    own = ('size', 'frames', 'model', 'stills', 'precision', 'memory', 'repeat', 'film')
    rows = [o for o in rows if any(o.get(k) != row.get(k) for k in own)]+[dict(row, machine=machine())]
    f.parent.mkdir(parents=True, exist_ok=True)
    f.write_text(json.dumps({**old, 'what': __doc__.splitlines()[0], a.part: rows}, indent=1)+'\n')


if __name__ == '__main__': main()

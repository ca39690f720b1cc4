"""Every frame once: whatever the length, the depth of whole windows; chunks equal to one go; memory as said."""
import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
import pytest
import torch
from vidlit.depth.depth_anything import DepthAnything, DepthAnythingConfig
from vidlit.depth.dinov2 import dinov2_s
from vidlit.depth.dpt import DPTConfig
from vidlit.depth.frame_maps import Pieces
from vidlit.depth.models import DepthModel, wrap
from vidlit.depth.temporal_head import VideoDepth, add_time, video_depth_s
from vidlit.depth.windows import infer_windows, settle
from vidlit.pipeline.run import depth_in_chunks
from vidlit.pipeline.video_depth import video_depth
from vidlit.video.depth_frames import DepthReader
from vidlit.video.writing import numbered_frame, write_video

ROOT = Path(__file__).resolve().parents[1]
CFG = DepthAnythingConfig(replace(dinov2_s, dim=16, depth=4, heads=2, patch=(1, 8, 8)),
    DPTConfig(16, 8, (8, 8, 8, 8), 8, 4), (0, 1, 2, 3), 2)


def bench():
    sys.path.insert(0, str(ROOT/'benchmarks'))
    spec = importlib.util.spec_from_file_location('depth_video', ROOT/'benchmarks'/'depth_video.py')
    mod = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mod)
    return mod


def net(metric=False):
    gen = torch.Generator().manual_seed(0)
    cfg = replace(CFG, head=replace(CFG.head, max_depth=10.)) if metric else CFG
    model = add_time(DepthAnything(cfg, gen, 'xavier'), gen, heads=4, groups=4)
    with torch.no_grad():
        for m in model.time.values(): m.proj_out.weight.normal_(std=.2, generator=gen)
    return model


def frames(n, h=48, w=80): return [numbered_frame(i, h, w) for i in range(n)]


@pytest.mark.parametrize('n', [1, 23, 32, 33, 55])
def test_windows_computed_whole(n):
    m = wrap(net(), size=16)
    want = torch.stack(list(infer_windows(frames(n), m.infer, m.prep)))
    got = torch.stack(list(infer_windows(frames(n), m.mix, m.encode)))
    assert got.shape == want.shape and (got-want).abs().max() < 1e-5*want.abs().max()


def test_a_frame_is_encoded_once(monkeypatch):
    m, seen = wrap(net(), size=16), []
    real = type(m.model.image.encoder).taps
    monkeypatch.setattr(type(m.model.image.encoder), 'taps', lambda s, x, at: seen.append(len(x)) or real(s, x, at))
    assert len(list(infer_windows(iter(frames(76)), m.mix, m.encode))) == sum(seen) == 76


@pytest.mark.parametrize('metric', [False, True])
@pytest.mark.parametrize('storage, workers', [('png16', 1), ('npz', 2)])
def test_chunks_are_one_go_to_the_byte(tmp_path, metric, storage, workers):
    film = write_video(tmp_path/'film.mp4', frames(80), 25)
    net(metric).save_pretrained(tmp_path/'net')
    kw = dict(model=str(tmp_path/'net'), device='cpu', storage=storage)
    torch.set_num_threads(1)
    video_depth(film, tmp_path/'one', **kw)
    depth_in_chunks(film, tmp_path/'three', chunks=3, workers=workers, **kw)
    def files(p): return {o.name: o.read_bytes() for o in p.iterdir() if o.suffix in ('.png', '.npz')}
    a, b = (DepthReader(tmp_path/o).meta for o in ('one', 'three'))
    assert (a.scale, a.offset) == (b.scale, b.offset) and len(files(tmp_path/'one')) == 80
    assert files(tmp_path/'one') == files(tmp_path/'three')


@pytest.mark.parametrize('tight', [False, True])
def test_tensors_stay_in_the_budget(tight):
    b = bench()
    gen = torch.Generator().manual_seed(0)
    cfg = DepthAnythingConfig(replace(dinov2_s, dim=96, depth=4, heads=2), DPTConfig(96, 32, (24, 48, 96, 96), 14),
        (0, 1, 2, 3), 4)
    model = add_time(DepthAnything(cfg, gen), gen, heads=8, groups=8)
    with torch.no_grad(): model.time['path3'].proj_out.weight.normal_(std=.02, generator=gen)
    m = b.sized(model, 112, 196)
    need = m.needs((112, 196), Pieces(tight=tight))
    m = replace(m, memory=need)
    assert m.pieces((112, 196)).tight == tight
    weights, film = sum(o.nbytes for o in model.parameters()), b.film(40, 112, 196)
    with b.Live() as live: n = sum(1 for _ in infer_windows(iter(film), m.mix, m.encode))
    assert n == 40 and weights+live.peak < need, (weights, live.peak, need)
    with pytest.raises(ValueError, match='a window of frames of 196x112 needs about .* a smaller max_res'):
        replace(m, memory=weights).encode(film[0])


def test_a_gibibyte_is_enough_for_the_small_model():
    m = DepthModel(VideoDepth(video_depth_s), 'vits', '', '', memory=2**30)
    assert m.pieces((518, 924)).tight and not replace(m, memory=2**31).pieces((518, 924)).tight


def test_a_settled_window_is_let_go():
    raw = torch.rand(32, 4, 6)
    depth, state, tail = settle(raw, 32)
    want = [o.clone() for o in (*depth, state.anchor, state.key, *tail)]
    raw.zero_()
    assert all(torch.equal(a, b) for a, b in zip((*depth, state.anchor, state.key, *tail), want))

"""Streaming against the authors' list of caches over long videos, through saves at any frame, in constant memory."""
import gc
from dataclasses import replace
import pytest
import torch
from vidlit.depth.depth_anything import DepthAnything, DepthAnythingConfig
from vidlit.depth.dinov2 import dinov2_s
from vidlit.depth.dpt import DPTConfig
from vidlit.depth.streaming import stream, stream_keep, stream_slots
from vidlit.depth.temporal_head import add_time, places
from vidlit.depth.windows import window_frames
from vidlit.floor.store import StoreError
from vidlit.nn.weights import WeightsError

SMALL = DepthAnythingConfig(replace(dinov2_s, dim=16, depth=4, heads=2, patch=(1, 4, 4)),
    DPTConfig(16, 8, (8, 8, 8, 16), 4, 4), (0, 1, 2, 3), 2)


def build(seed=0, **kw):
    gen = torch.Generator().manual_seed(seed)
    model = add_time(DepthAnything(SMALL, gen, 'xavier'), gen, heads=2, groups=4, **kw).eval()
    with torch.no_grad():
        for m in model.time.values(): m.proj_out.weight.normal_(std=.3, generator=gen)
    return model


def frames(n, seed=1, h=4, w=8): return torch.randn(n, 3, h, w, generator=torch.Generator().manual_seed(seed))


def play(model, video, state=None):
    state, out = state or model.init_state(), []
    for f in video:
        d, state = model.step(f, state)
        out.append(d)
    return torch.stack(out), state


def test_stream_is_the_authors_list():
    "Their bookkeeping (32 copies of frame 0, the second entry leaves when there are 43) around our modules"
    model, video, cache, want = build(), frames(52), [], []
    with torch.no_grad():
        for n, f in enumerate(video):
            look = [*cache[:2], *cache[-29:]]
            past = {p: [torch.cat([c[p][i] for c in look], 1) for i in range(2)] for p in places} if n else None
            d, seen = model.forward_past(f[None, :, None], past)
            want.append(d[0, 0])
            cache = cache+[seen] if n else [seen]*32
            if len(cache) > 42: del cache[1]
    got, state = play(model, video)
    assert (got == torch.stack(want)).all()
    assert state.n == 52 and state.ids == (0, *range(11, 52))


def test_slots():
    for n in range(1, 300):
        slots, keep = stream_slots(n), stream_keep(n)
        assert len(slots) == 31 and slots == sorted(slots) and set(slots) <= set(keep)
        assert keep[-1] == n-1 and len(keep) <= 42
        # nothing that is dropped is missed later
        assert all(set(stream_slots(m)) <= set(keep)|set(range(n, m)) for m in range(n, n+60))
    for k in (2, 3, 9): # when a window ends with the current frame it holds the same neighbours, and frame 0
        now = window_frames(k)[-1]
        assert window_frames(k)[3:31] == stream_slots(now)[3:] and stream_slots(now)[0] == window_frames(k)[0]


@pytest.mark.parametrize('pos', ['sincos', 'rotary'])
def test_step_is_exact_given_the_past(pos):
    model, clip = build(pos=pos), frames(32, 2).transpose(0, 1)[None]
    with torch.no_grad():
        whole, seen = model.forward_past(clip)
        last, _ = model.forward_past(clip[:, :, 31:], {p: [o[:, :31] for o in two] for p, two in seen.items()})
        other, _ = model.forward_past(clip[:, :, 31:], {p: [o[:, :31].flip(1) for o in two] for p, two in seen.items()})
    assert (last[0, 0]-whole[0, 31]).abs().max() < 1e-5*whole.abs().max() < (other[0, 0]-whole[0, 31]).abs().max()


@pytest.mark.parametrize('at', [0, 1, 12, 43])
def test_saved_anywhere(at, tmp_path):
    model, video = build(), frames(48)
    whole, end = play(model, video)
    state = play(model, video[:at])[1] if at else model.init_state()
    model.save_state(state, tmp_path/'s.safetensors')
    again = model.load_state(tmp_path/'s.safetensors')
    assert again[:3] == state[:3] and again.nbytes == state.nbytes
    rest, last = play(model, video[at:], again)
    assert (rest == whole[at:]).all() and last.ids == end.ids


def test_memory_does_not_grow():
    "Tensors alive and bytes of the state, at frame 50 and at frame 130"
    model, video = build(), frames(1)[0]
    def alive(): return gc.collect() and 0 or sum(isinstance(o, torch.Tensor) for o in gc.get_objects())
    state, seen = model.init_state(), []
    for n in range(131):
        _, state = model.step(video, state)
        if n in (50, 130): seen.append((state.nbytes, len(state.ids), alive()))
    assert seen[0] == seen[1] and seen[0][1] == 42


def test_state_is_a_value():
    model, video = build(), frames(50)
    _, state = play(model, video[:45])
    before = {p: [[o.clone() for o in row] for row in two] for p, two in state.past.items()}
    a, _ = model.step(video[45], state)
    b, _ = model.step(video[46], state)
    c, _ = model.step(video[45], state)
    assert (a == c).all() and (a != b).any()
    assert all((x == y).all() for p in places for r, s in zip(before[p], state.past[p]) for x, y in zip(r, s))
    assert all(not o.requires_grad for two in state.past.values() for row in two for o in row)


def test_refusals(tmp_path):
    model, video = build(), frames(3)
    _, state = play(model, video)
    with pytest.raises(ValueError, match='frame 3 is 8x4 .*those before were 4x8'): model.step(video[0].mT, state)
    with pytest.raises(ValueError, match='streaming fills 32 slots, the model has 8'): build(slots=8).init_state()
    model.save_state(state, tmp_path/'s.safetensors')
    with pytest.raises(StoreError, match='not the state of a video seen by this model'):
        build(5).load_state(tmp_path/'s.safetensors')
    (tmp_path/'t.safetensors').write_bytes((tmp_path/'s.safetensors').read_bytes()[:200])
    with pytest.raises(WeightsError, match='t.safetensors'): model.load_state(tmp_path/'t.safetensors')
    with pytest.raises(WeightsError, match='no such file'): model.load_state(tmp_path/'none.safetensors')


def test_video_of_frames():
    model = build()
    video = (torch.rand(4, 9, 15, 3, generator=torch.Generator().manual_seed(3))*255).byte()
    out = list(stream(model, video, size=8))
    assert [d.shape for d, _ in out] == [(9, 15)]*4 and out[-1][1].n == 4
    assert (out[3][0] == next(stream(model, video[3:], 8, out[2][1]))[0]).all()
    with pytest.raises(ValueError, match='frame 1 is 18x30, those before were 9x15'):
        list(stream(model, [video[0], video[1].repeat(2, 2, 1)], 8))

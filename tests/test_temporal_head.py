"""The temporal modules against the released code's formulas; files of the true size; what training changes."""
from dataclasses import replace
import pytest
import torch
import torch.nn.functional as F
from vidlit.depth.depth_anything import DepthAnything, DepthAnythingConfig, depth_anything_s
from vidlit.depth.dinov2 import dinov2_s
from vidlit.depth.dpt import DPTConfig
from vidlit.depth.temporal_head import VideoDepth, add_time, clip_loss, places, train_only_time, video_depth_s
from vidlit.depth.video_depth_weights import official_video_config, official_video_depth
from vidlit.nn.weights import WeightsError

SMALL = DepthAnythingConfig(replace(dinov2_s, dim=32, depth=4, heads=2, patch=(1, 7, 7)),
    DPTConfig(32, 16, (8, 16, 32, 48), 7, 8), (0, 1, 2, 3), 3)
SAY = dict(heads=4, groups=8, taps=SMALL.taps, enc_heads=2)


def build(seed=0, **kw):
    "A small model whose every weight matters"
    gen = torch.Generator().manual_seed(seed)
    model = add_time(DepthAnything(SMALL, gen, 'xavier'), gen, heads=4, groups=8, **kw)
    with torch.no_grad():
        for p in model.parameters(): p.add_(torch.randn(p.shape, generator=gen)*.1)
    return model.eval()


def plain_positions(t, c):
    "The table as the authors write it"
    place, rate = torch.arange(t).float()[:,
        None], torch.exp(torch.arange(0, c, 2).float()*(-torch.log(torch.tensor(10000.))/c))
    return place*rate


def plain_attention(state, at, x, heads, rotary):
    "x [s, t, c]; one softmax at a time, queries and keys turned as complex numbers before the heads are split"
    a, (s, t, c) = plain_positions(x.shape[1], x.shape[2]), x.shape
    if not rotary: x = x+torch.stack((a.sin(), a.cos()), -1).flatten(1)
    q, k, v = (x@state[f'{at}to_{o}.weight'].T for o in 'qkv')
    def turn(o):
        return torch.view_as_real(torch.view_as_complex(o.reshape(s, t, c//2,
            2).contiguous())*torch.polar(torch.ones_like(a), a)).flatten(2)
    if rotary: q, k = turn(q), turn(k)
    out, d = torch.zeros_like(x), c//heads
    for h in range(heads):
        cut = slice(h*d, (h+1)*d)
        for i in range(t):
            w = torch.stack([(q[:, i, cut]*k[:, j, cut]).sum(-1)*d**-.5 for j in range(t)], -1).softmax(-1)
            out[:, i, cut] = (w[..., None]*v[:, :, cut]).sum(1)
    return F.linear(out, state[at+'to_out.0.weight'], state[at+'to_out.0.bias'])


def plain_module(state, n, x, heads, groups, rotary):
    "x [b, c, t, h, w] through module n of a state under the authors' names"
    at = f'head.motion_modules.{n}.temporal_transformer.'
    blk, (b, c, t, h, w) = at+'transformer_blocks.0.', x.shape
    def two(k): return state[k+'.weight'], state[k+'.bias']
    y = torch.stack([F.group_norm(o, groups, *two(at+'norm'), 1e-6) for o in x.unbind(2)], 2)
    y = F.linear(y.permute(0, 3, 4, 2, 1).reshape(b*h*w, t, c), *two(at+'proj_in'))
    for i in range(2):
        y = y+plain_attention(state, f'{blk}attention_blocks.{i}.', F.layer_norm(y, (c,), *two(f'{blk}norms.{i}')),
            heads, rotary)
    z = F.linear(F.layer_norm(y, (c,), *two(blk+'ff_norm')), *two(blk+'ff.net.0.proj'))
    y = y+F.linear(z[..., :4*c]*F.gelu(z[..., 4*c:]), *two(blk+'ff.net.2'))
    return x+F.linear(y, *two(at+'proj_out')).reshape(b, h, w, t, c).permute(0, 4, 3, 1, 2)


@pytest.mark.parametrize('pos', ['sincos', 'rotary'])
def test_modules_are_the_formulas(pos):
    model, gen = build(pos=pos), torch.Generator().manual_seed(1)
    state = model.to_official()
    for n, p in enumerate(places):
        x = torch.randn(2, model.cfg.widths[p], 5, 2, 3, generator=gen)
        want = plain_module(state, n, x, 4, 8, pos == 'rotary')
        got = model.time[p](x.transpose(1, 2).flatten(0, 1), 5)[0].unflatten(0, (2, 5)).transpose(1, 2)
        assert (got-want).abs().max() < 1e-4*want.abs().max(), p
        assert (want-x).abs().mean() > 1e-2  # the module does something


def test_modules_sit_where_the_authors_put_them():
    "Each module silenced in turn changes the depth; their order in the head is that of their numbers"
    model, gen = build(), torch.Generator().manual_seed(2)
    clip = torch.randn(1, 3, 3, 14, 21, generator=gen)
    with torch.no_grad():
        full, seen = model.forward_past(clip)
        for p in places:
            kept = model.time[p].proj_out.weight.clone(), model.time[p].proj_out.bias.clone()
            model.time[p].proj_out.weight.zero_(), model.time[p].proj_out.bias.zero_()
            assert (model(clip)-full).abs().max() > 1e-5, p
            model.time[p].proj_out.weight.copy_(kept[0]), model.time[p].proj_out.bias.copy_(kept[1])
    assert tuple(seen) == places
    # 2x3, 1x2, 2x3, 4x6 pixels
    assert [o[0].shape for o in seen.values()] == [(6, 3, 32), (2, 3, 48), (6, 3, 16), (24, 3, 16)]


@pytest.mark.parametrize('b,t,h,w,eps',
    [(1, 1, 28, 28, 0), (2, 3, 21, 28, 0), (1, 32, 28, 21, 0), (1, 32, 7, 14, 1e-6)])
def test_fresh_is_per_frame(b, t, h, w, eps):
    "To the last bit; maps of one pixel change their strides, and the convolution after them its rounding"
    gen = torch.Generator().manual_seed(t)
    image_model = DepthAnything(SMALL, gen, 'xavier').eval()
    clip = torch.randn(b, 3, t, h, w, generator=gen)
    with torch.no_grad():
        alone = image_model(clip.transpose(1, 2).flatten(0, 1)).unflatten(0, (b, t))
        gap = add_time(image_model, gen, heads=4, groups=8)(clip)-alone
    assert gap.abs().max() <= eps


def test_file_of_the_true_size(tmp_path):
    "Small's 351 entries at their true shapes, from a half-precision file, to the last one and back"
    with torch.device('meta'): shapes = official_video_depth.to_theirs(VideoDepth(video_depth_s).state_dict())
    state = {k: torch.full(v.shape, (i%7+1)/8, dtype=torch.float16) for i, (k, v) in enumerate(shapes.items())}
    torch.save(state, tmp_path/'video_depth_anything_vits.pth')
    model = VideoDepth.from_official(tmp_path/'video_depth_anything_vits.pth')
    back = model.to_official()
    assert model.cfg == video_depth_s and len(state) == 351 and sum(p.numel() for p in model.parameters()) == 29_035_137
    assert back.keys() == state.keys() and all((back[k] == v.float()).all() and back[k].shape == v.shape
        for k, v in state.items())
    assert next(model.parameters()).dtype == torch.float32


def test_every_entry_is_needed():
    state = build().to_official()
    for k in [o for o in state if 'motion_modules.1' in o][::3]:
        with pytest.raises(WeightsError): VideoDepth.from_official({n: v for n, v in state.items() if n != k}, **SAY)
        with pytest.raises(WeightsError): VideoDepth.from_official({**state, k: torch.zeros(*state[k].shape, 2)}, **SAY)
    assert VideoDepth.from_official(state, **SAY).cfg == build().cfg
    assert official_video_config(official_video_depth.to_ours(state), **SAY) == build().cfg


@pytest.mark.parametrize('head', [False, True])
def test_training_touches_what_it_says(head):
    model, gen = train_only_time(build(), head), torch.Generator().manual_seed(3)
    clip, depth = torch.randn(1, 3, 4, 14, 14, generator=gen), 1+torch.rand(1, 4, 1, 14, 14, generator=gen)
    clip_loss(model(clip), depth).backward()
    with_grad = {n.split('.')[0 if n.startswith('time') else 1] for n, p in model.named_parameters()
        if p.grad is not None}
    assert with_grad == ({'time', 'head'} if head else {'time'})
    assert all(p.grad is not None for p in model.time.parameters())


def test_loss_does_not_see_the_unit_and_bears_holes():
    gen = torch.Generator().manual_seed(4)
    pred, depth = torch.rand(2, 4, 8, 8, generator=gen), 1+torch.rand(2, 4, 1, 8, 8, generator=gen)
    assert torch.isclose(clip_loss(pred, depth), clip_loss(3*pred+1, 7*depth), rtol=1e-3)
    holes = depth.clone()
    holes[:, :, :, :2] = 0
    wild = pred.clone()
    wild[:, :, :2] = 1e3
    assert torch.isclose(clip_loss(pred, holes), clip_loss(wild, holes), rtol=1e-4) and clip_loss(pred,
        holes).isfinite()


def test_half_precision_stays():
    model = build().to(torch.bfloat16)
    with torch.no_grad(): out = model(torch.randn(1, 3, 2, 14, 14).bfloat16())
    assert out.dtype == torch.bfloat16 and out.isfinite().all()


def test_widths_of_the_published_sizes():
    assert video_depth_s.widths == dict(layer3=192, layer4=384, path4=64, path3=64) and video_depth_s.heads == 8
    odd = replace(depth_anything_s.head, out=(48, 96, 200, 384))
    with pytest.raises(ValueError, match='channels at layer3'):
        replace(video_depth_s, image=replace(depth_anything_s, head=odd))

"Depth Anything against transformers from the same weights, both ways; kinds of files; sizes; the head's places; alignment."
import json
import warnings
from dataclasses import replace
import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import load_file, save_file
from vidlit.depth.depth_anything import (
    DepthAnything,
    DepthAnythingConfig,
    aligned_l1,
    depth_anything_b,
    depth_anything_l,
    depth_anything_s,
    depth_images,
    depth_learner,
    first_version,
    metric,
    metric_from,
    metric_loss,
)
from vidlit.depth.depth_anything_weights import config_from_hf, hf_depth_anything, to_hf_config, whose
from vidlit.depth.dinov2 import DINOv2, dinov2_b, dinov2_l, dinov2_s, stretch_pos
from vidlit.depth.dpt import DPTConfig, DPTHead, lower_bound, to_input, to_source
from vidlit.nn.vit import count_params
from vidlit.nn.weights import WeightsError, load_strict
from vidlit.train.callbacks import fit
from vidlit.worlds.worlds import WorldConfig

warnings.filterwarnings('ignore')
transformers = pytest.importorskip('transformers')
HF = transformers.DepthAnythingForDepthEstimation

def gen(seed=0): return torch.Generator().manual_seed(seed)

def small(cfg, dim, depth):
    "A published configuration with less width and depth; its own ratio of channels, its own kind of taps"
    head = replace(cfg.head, dim=dim, features=cfg.head.features//8, out=tuple(o//8 for o in cfg.head.out))
    return replace(cfg, enc=replace(cfg.enc, dim=dim, depth=depth, heads=dim//16), head=head,
        taps=(0,1,depth-2,depth-1), side=5, offset=0.)

SMALL = dict(s=small(depth_anything_s, 48, 4), b=small(depth_anything_b, 64, 5), l=small(depth_anything_l, 96, 6))

def shake(model, seed=7, scale=.1):
    "Weights of some size everywhere, an open ReLU, and an output that varies"
    g = gen(seed)
    with torch.no_grad():
        for p in model.parameters(): p.add_(torch.randn(p.shape, generator=g)*(scale*p.std() if p.numel()>1 else 0))
        for n,p in model.named_parameters():
            if n in ('head.output3.weight','head.conv3.weight'): p.mul_(30)
            if n in ('head.output3.bias','head.conv3.bias'): p.fill_(.5)
    return model.eval()

def built(cfg, seed=0): return shake(DepthAnything(cfg, gen(seed), 'xavier'))

def agree(ours, ref, sizes, eps=1e-4):
    for h,w in sizes:
        x = torch.randn(1, 3, h, w, generator=gen(h*w))
        with torch.no_grad(): a,b = ours(x),ref(x).predicted_depth
        assert a.shape==b.shape==(1, h, w) and b.std()>.02, b.std()
        assert (a-b).abs().max()<eps, (h, w, (a-b).abs().max())

SIZES = (42,98), (98,56), (14,28), (70,70) # the last is the size of the stored positions

@pytest.mark.parametrize('size', SMALL)
@pytest.mark.parametrize('kind', ['relative', 'metric'])
@pytest.mark.parametrize('taps', ['spread', 'last'])
def test_transformers_reads_ours(size, kind, taps, tmp_path):
    cfg = SMALL[size] if taps=='spread' else first_version(SMALL[size])
    ours = built(cfg if kind=='relative' else metric(cfg, 80.))
    ref = HF.from_pretrained(ours.save_pretrained(tmp_path)).eval()
    assert (ref.config.depth_estimation_type, ref.config.backbone_config.out_indices) == (kind, [i+1 for i in cfg.taps])
    agree(ours, ref, SIZES)

@pytest.mark.parametrize('size', SMALL)
@pytest.mark.parametrize('kind', ['relative', 'metric'])
def test_we_read_transformers(size, kind, tmp_path):
    cfg = first_version(SMALL[size])
    c = {k: v for k,v in to_hf_config(cfg if kind=='relative' else metric(cfg, 20.)).items() if k!='pos_offset'}
    torch.manual_seed(3)
    ref = HF(transformers.DepthAnythingConfig(**c))
    with torch.no_grad():
        for p in ref.parameters(): p.copy_(torch.randn(p.shape, generator=gen(p.numel()))*.08 + p)
    ref = shake(ref)
    ref.save_pretrained(tmp_path)
    ours = DepthAnything.from_pretrained(tmp_path).eval()
    assert (ours.kind, ours.cfg.offset) == ('relative' if kind=='relative' else 'depth', 0.)
    agree(ours, ref, SIZES)
    back = HF.from_pretrained(ours.save_pretrained(tmp_path/'back'))
    for (k,a),(_,b) in zip(ref.state_dict().items(), back.state_dict().items()): assert torch.equal(a, b), k

def test_the_published_small_one(tmp_path):
    ours = built(replace(depth_anything_s, offset=0.))
    ref = HF.from_pretrained(ours.save_pretrained(tmp_path)).eval()
    agree(ours, ref, [(70,126)])
    assert sum(p.numel() for p in ref.parameters())==count_params(ours)
    assert {k: v.shape for k,v in load_file(tmp_path/'model.safetensors').items()} == saved_by(ref, tmp_path/'ref')

def saved_by(ref, path):
    ref.save_pretrained(path)
    return {k: v.shape for k,v in load_file(path/'model.safetensors').items()}

def test_the_test_can_fail(tmp_path):
    "A tap off by one, an offset, a unit that is left out: each is far from transformers"
    cfg = SMALL['b']
    ours = built(cfg)
    ref = HF.from_pretrained(ours.save_pretrained(tmp_path)).eval()
    for bad in (replace(cfg, taps=(0,2,3,4)), replace(cfg, offset=.1)):
        other = DepthAnything(bad).eval()
        load_strict(other, ours.state_dict())
        with pytest.raises(AssertionError): agree(other, ref, SIZES[:1])
    ours.head.fuse[0].skip = torch.nn.Identity()
    with pytest.raises(AssertionError): agree(ours, ref, SIZES[:1])

def test_names_in_memory_and_on_disk(tmp_path):
    "transformers keeps other names in memory than in its files; both are read"
    ours = built(SMALL['s'])
    ref = HF.from_pretrained(ours.save_pretrained(tmp_path/'a'))
    assert any('q_proj' in k for k in ref.state_dict())
    (tmp_path/'b').mkdir()
    save_file({k: v.contiguous() for k,v in ref.state_dict().items()}, tmp_path/'b/model.safetensors')
    (tmp_path/'b/config.json').write_text((tmp_path/'a/config.json').read_text())
    for k,v in DepthAnything.from_pretrained(tmp_path/'b').state_dict().items():
        assert torch.equal(v, ours.state_dict()[k]), k

def test_half_precision_files(tmp_path):
    ours = built(SMALL['s'])
    ours.half().save_pretrained(tmp_path)
    back = DepthAnything.from_pretrained(tmp_path)
    assert {p.dtype for p in back.parameters()}=={torch.float32}

@pytest.mark.parametrize('cfg,m', [(depth_anything_s, 24.8), (depth_anything_b, 97.5), (depth_anything_l, 335.3)])
def test_official_sizes(cfg, m):
    with torch.device('meta'): model = DepthAnything(cfg)
    assert round(count_params(model)/1e6, 1)==m

def official_keys(cfg):
    "Names of an official file, written out independently of the map"
    blk = ['norm1','attn.qkv','attn.proj','norm2','mlp.fc1','mlp.fc2']
    enc = ['cls_token','pos_embed','mask_token','patch_embed.proj.weight','patch_embed.proj.bias','norm.weight',
        'norm.bias']
    enc += [f'blocks.{i}.{b}.{p}' for i in range(cfg.enc.depth) for b in blk for p in ('weight','bias')]
    enc += [f'blocks.{i}.ls{k}.gamma' for i in range(cfg.enc.depth) for k in (1,2)]
    head = [f'projects.{i}.{p}' for i in range(4) for p in ('weight','bias')] + [f'resize_layers.{i}.{p}'
        for i in (0,1,3) for p in ('weight','bias')]
    head += [f'scratch.layer{i}_rn.weight' for i in (1,2,3,4)]
    units = [f'resConfUnit{u}.conv{c}' for u in (1,2) for c in (1,2)] + ['out_conv']
    head += [f'scratch.refinenet{i}.{u}.{p}' for i in (1,2,3,4) for u in units for p in ('weight','bias')]
    head += [f'scratch.{o}.{p}' for o in ('output_conv1','output_conv2.0','output_conv2.2') for p in ('weight','bias')]
    return {f'pretrained.{k}' for k in enc} | {f'depth_head.{k}' for k in head}

@pytest.mark.parametrize('size', SMALL)
def test_official_both_ways(size, tmp_path):
    cfg = replace(SMALL[size], offset=.1)
    ours = built(cfg)
    state = ours.to_official()
    assert set(state)==official_keys(cfg) and state['pretrained.patch_embed.proj.weight'].ndim==4
    torch.save(state, tmp_path/'a.pth')
    back = DepthAnything.from_official(tmp_path/'a.pth', 2, heads=cfg.enc.heads, taps=cfg.taps)
    assert back.cfg==cfg
    for k,v in back.to_official().items(): assert torch.equal(v, state[k]), k
    x = torch.randn(1, 3, 42, 98, generator=gen(1))
    with torch.no_grad(): assert torch.equal(back.eval()(x), ours(x))

def test_loading_makes_copies():
    ours = built(SMALL['s'])
    state = ours.to_official()
    back = DepthAnything.from_official(state, 1, heads=3)
    with torch.no_grad(): back.head.output1.weight.zero_()
    assert state['depth_head.scratch.output_conv1.weight'].abs().sum()>0

def test_wrong_files(tmp_path):
    ours = built(SMALL['s'])
    good = ours.to_official()
    video = {k.replace('depth_head.', 'head.'): v
        for k,v in good.items()} | {'head.motion_modules.0.norm.weight': torch.ones(1)}
    cases = [(video, 'Video Depth Anything'), (ours.encoder.to_weights(), 'encoder alone'),
        ({'core.core.pretrained.cls_token': torch.ones(1)}, 'ZoeDepth'),
        (hf_depth_anything.to_theirs(ours.state_dict()), 'from_pretrained'),
        ({'fc.weight': torch.ones(1)}, 'something else')]
    for state,word in cases:
        with pytest.raises(WeightsError, match=word): DepthAnything.from_official(state, 2)
    changes = [(lambda s: s.pop('pretrained.norm.bias'), 'missing: encoder.norm.bias'),
        (lambda s: s.update({'pretrained.extra': torch.ones(1)}), 'left over: encoder.extra'),
        (lambda s: s.update({'depth_head.projects.1.bias': torch.ones(3)}), 'wrong shape: head.projects.1')]
    for change,word in changes:
        state = dict(good)
        change(state)
        with pytest.raises(WeightsError, match=word): DepthAnything.from_official(state, 1, heads=3)
    (tmp_path/'x.pth').write_bytes(b'no weights')
    with pytest.raises(WeightsError, match='x.pth'): DepthAnything.from_official(tmp_path/'x.pth', 1)
    with pytest.raises(WeightsError, match='no config.json'): DepthAnything.from_pretrained(tmp_path)
    with pytest.raises(TypeError): DepthAnything.from_official(good) # the version must be said

def test_wrong_folders(tmp_path):
    ours = built(SMALL['s'])
    odd = [('model_type','dpt','not of'), ('head_in_index',0,'head_in_index=0'),
        ('reassemble_factors',[2,2,1,.5],'reassemble_factors')]
    for key,value,word in [*odd, ('max_depth',20,'max_depth=20')]:
        ours.save_pretrained(tmp_path)
        c = json.loads((tmp_path/'config.json').read_text()) | {key: value}
        (tmp_path/'config.json').write_text(json.dumps(c))
        with pytest.raises(WeightsError, match=word): DepthAnything.from_pretrained(tmp_path)
    c = to_hf_config(SMALL['s'])
    c['backbone_config']['apply_layernorm'] = False
    with pytest.raises(WeightsError, match='apply_layernorm=False'): config_from_hf(c)
    assert whose({}) == 'something else'

@pytest.mark.parametrize('cfg,name', [(dinov2_s, 'small'), (dinov2_b, 'base'), (dinov2_l, 'large')])
def test_timm_names(cfg, name):
    timm = pytest.importorskip('timm')
    with torch.device('meta'):
        ref,ours = timm.create_model(f'vit_{name}_patch14_dinov2', pretrained=False),DINOv2(cfg, mask_token=False)
    from vidlit.depth.dinov2 import official_dinov2
    assert {k: v.shape for k,v in official_dinov2.to_theirs(ours.state_dict()).items()} == {k: v.shape
        for k,v in ref.state_dict().items()}

@pytest.mark.parametrize('size', SIZES)
def test_dinov2_of_transformers(size, tmp_path):
    cfg = replace(dinov2_s, dim=48, depth=3, heads=3)
    ref = transformers.Dinov2Model(transformers.Dinov2Config(hidden_size=48, num_hidden_layers=3,
        num_attention_heads=3, image_size=70)).eval()
    with torch.no_grad(): [p.add_(torch.randn(p.shape, generator=gen(p.numel()))*.1) for p in ref.parameters()]
    ref.save_pretrained(tmp_path)
    ours = DINOv2.from_weights(tmp_path/'model.safetensors', 'hf', heads=3).eval()
    assert ours.cfg==cfg
    x = torch.randn(2, 3, *size, generator=gen(1))
    with torch.no_grad(): assert (ours(x)-ref(x).last_hidden_state).abs().max()<1e-4
    for k,v in load_file(tmp_path/'model.safetensors').items(): assert torch.equal(ours.to_weights('hf')[k], v), k

def test_offset_is_as_the_authors_scale_factor():
    "At the stored size nothing happens; elsewhere the authors' call and ours give the same table"
    pos = torch.randn(1, 26, 8, generator=gen())
    assert stretch_pos(pos, (5,5)) is pos
    x = pos[:,1:].reshape(1, 5, 5, 8).permute(0, 3, 1, 2)
    want = torch.nn.functional.interpolate(x, scale_factor=((7+.1)/5, (3+.1)/5), mode='bicubic')
    assert want.shape[-2:]==(7,3)
    assert torch.equal(stretch_pos(pos, (7,3))[0,1:], want[0].flatten(1).T)

@settings(max_examples=200, deadline=None)
@given(st.integers(1, 4000), st.integers(1, 4000), st.integers(14, 700))
def test_lower_bound(h, w, size):
    a,b = lower_bound(h, w, size)
    up = -(-size//14)*14
    assert a%14==b%14==0 and min(a, b)>=size and min(a, b)<=up+14
    scale = max(size/h, size/w)
    assert abs(a-scale*h)<14 and abs(b-scale*w)<14

@pytest.mark.parametrize('h,w', [(1,1), (9,31), (37,20), (45,45)])
def test_predict_any_size(h, w):
    model = built(SMALL['s'])
    frames = torch.randint(0, 256, (3, h, w, 3), generator=gen(h), dtype=torch.uint8)
    out = model.train().predict(frames, size=28, batch=2)
    assert out.shape==(3, h, w) and out.isfinite().all() and model.training
    assert torch.equal(model.predict(frames.numpy(), size=28, batch=2), out)
    one = torch.cat([model.predict(f[None], size=28) for f in frames])
    torch.testing.assert_close(out, one, atol=1e-5, rtol=1e-5)
    with torch.no_grad(): want = to_source(model.eval()(to_input(frames, 28)), (h, w))
    torch.testing.assert_close(out, want, atol=1e-5, rtol=1e-5)

def test_between():
    "Each place is passed once, in order; an unchanged map changes nothing, a changed one does at every place"
    head,g = DPTHead(DPTConfig(24, 16, (8,12,16,24), mid=8)),gen()
    head.output3.bias.data.fill_(5.)
    toks = [torch.randn(1, 15, 24, generator=g) for _ in range(4)]
    places = ['layer1','layer2','layer3','layer4','path4','path3','path2','path1']
    seen = []
    def look(k): return lambda x: (seen.append(k), x)[1]
    base = head(toks, (3,5))
    assert torch.equal(head(toks, (3,5), {k: look(k) for k in places}), base) and seen==places
    for k in places: assert (head(toks, (3,5), {k: lambda x: x+1})-base).abs().max()>1e-5, k

def test_gradients_reach_all_but_the_idle_unit():
    model = built(SMALL['s']).train()
    model(torch.randn(2, 3, 42, 28, generator=gen(1))).square().mean().backward()
    idle = {n for n,p in model.named_parameters() if p.grad is None}
    assert idle=={'encoder.mask_token'} | {f'head.fuse.3.skip.conv{i}.{p}' for i in (1,2) for p in ('weight','bias')}

@settings(max_examples=25, deadline=None)
@given(st.floats(.1, 10), st.floats(-20, 20), st.booleans())
def test_alignment_hides_scale_shift_and_sign(a, b, flip):
    z = 2+5*torch.rand(2, 1, 6, 6, generator=gen())
    pred = z[:,0]+torch.randn(2, 6, 6, generator=gen(1))
    moved = (-a if flip else a)*pred+b
    torch.testing.assert_close(aligned_l1(moved, z), aligned_l1(pred, z), atol=1e-3, rtol=1e-3)
    assert abs(metric_loss(1.3*z[:,0], z, 50.)-metric_loss(z[:,0], z, 50.))>.1

def test_metric_training_freezes_then_moves():
    from fastai.data.core import DataLoaders
    from torch.utils.data import DataLoader
    tiny = DepthAnythingConfig(replace(dinov2_s, dim=32, depth=4, heads=2, patch=(1,8,8)),
        DPTConfig(32, 8, (8,8,8,8), 8, 4), (0,1,2,3), 2)
    start = DepthAnything(tiny, gen(), 'xavier')
    dls = DataLoaders(DataLoader(depth_images(range(16), WorldConfig(t=1, h=16, w=16)), 8))
    model = metric_from(start, 20., gen(1))
    assert model.kind=='depth'
    fit(depth_learner(model, dls, lr=1e-3, frozen=1.), steps=3)
    same = [torch.equal(a, b) for a,b in zip(model.encoder.parameters(), start.encoder.parameters())]
    assert all(same) and all(p.requires_grad for p in model.parameters())
    fit(depth_learner(model, dls, lr=1e-3), steps=3)
    assert not any(torch.equal(a, b) for a,b in zip(model.encoder.blocks.parameters(),
        start.encoder.blocks.parameters()))

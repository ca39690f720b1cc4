"""Dual masking and VideoMAE V2: masks against the queue, steps against the code as written, VideoMAE at ratio 0,
official layouts, the document's parts."""
from dataclasses import replace
from functools import partial
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.utils.flop_counter import FlopCounterMode
from vidlit.nn.tokens import Grid, grid_of, split_mask
from vidlit.nn.vit import Attention, CosineAttention, ViTConfig, count_params, run_blocks
from vidlit.nn.weights import WeightsError
from vidlit.pretrain.dual_masking import (
    cell_mask,
    cell_masks_ref,
    decoder_flops,
    document_dual,
    dual_loss,
    dual_mask,
    holes,
    split_dual,
)
from vidlit.pretrain.tube_masking import random_mask, time_mask, tube_mask
from vidlit.pretrain.videomae import VideoMAE, VideoMAEConfig
from vidlit.pretrain.videomae_v2 import VideoMAE2, VideoMAE2Classifier, presets2, videomae2_g
from vidlit.pretrain.videomae_v2_variants import (
    CrossDecoder,
    WindowAttention,
    WindowViT,
    fit_window,
    partition,
    relative_index,
    unpartition,
)


def gen(seed=0): return torch.Generator().manual_seed(seed)
def tiny(patch=(2,8,8)):
    return VideoMAEConfig(ViTConfig(dim=64, depth=2, heads=1, patch=patch), ViTConfig(dim=64, depth=2, heads=1))
def loud(model, seed=3):
    "Weights far from their start, biases not zero"
    for i,p in enumerate(model.parameters()): p.data += .05*torch.randn(p.shape, generator=gen(seed+i))
    return model

even = st.sampled_from([2, 4, 6])
grids = st.builds(Grid, st.integers(1, 9), even, even)

@settings(max_examples=40, deadline=None)
@given(grids, st.sampled_from([.25, .5, .75]), st.integers(0, 10**6))
def test_running_cell_is_the_queue(grid, ratio, seed):
    m = cell_mask(24, grid, ratio, gen(seed))
    ref = cell_masks_ref(grid, ratio)
    assert all(any(torch.equal(o, r) for r in ref) for o in m)
    assert torch.equal(m.view(24, grid.t, -1).sum(-1), torch.full((24, grid.t), int(ratio*grid.h*grid.w)))
    for s in range(grid.t-3):  # any four slots in a row
        assert torch.equal(m.view(24, grid.t, -1)[:,s:s+4].sum(1), torch.full((24, grid.h*grid.w), int(4*ratio)))
    if grid.t>1: assert holes(m, grid).max()<=(1 if ratio<1 else 9)

def test_running_cell_shares_its_phase_out_evenly():
    "Four phases, each a quarter of the samples, and the same generator gives the same masks"
    m, ref = cell_mask(4000, Grid(4,2,2), .5, gen()), cell_masks_ref(Grid(4,2,2))
    n = torch.stack([(m==r).all(1).sum() for r in ref])
    assert n.sum()==4000 and n.min()>900
    assert torch.equal(m, cell_mask(4000, Grid(4,2,2), .5, gen()))

@settings(max_examples=40, deadline=None)
@given(grids.filter(lambda g: g.h*g.w>=8 and g.t>1), st.sampled_from([cell_mask, random_mask, time_mask]),
    st.integers(0, 10**6))
def test_lists_are_the_masks(grid, dec, seed):
    mask = dual_mask(5, grid, .75, gen(seed), .5, dec=dec)
    try: d = split_dual(mask)
    except ValueError as e:
        assert 'ragged' in str(e) or 'nothing to learn' in str(e)
        return
    for i in range(5):
        hidden, skip = mask[i]
        assert torch.equal(d.keep[i], (~hidden).nonzero()[:,0])
        assert sorted(d.decode[i].tolist())==(~skip).nonzero()[:,0].tolist()
        judged = d.decode[i,-d.ask:]
        if d.weight is not None: judged = judged[d.weight[i]]
        assert judged.tolist()==(hidden&~skip).nonzero()[:,0].tolist()

def test_masks_that_make_no_lists():
    m = dual_mask(2, Grid(4,4,4), .75, gen())
    bad = m.clone()
    bad[0,1,:2] = ~bad[0,1,:2]
    if (~bad[0,1]).sum()==(~bad[1,1]).sum(): bad[0,1] = True
    with pytest.raises(ValueError, match='ragged decoder mask'): split_dual(bad)
    for wrong in (m.float(), m[:,:1], m[:,[0,1,1]], m[None]):
        with pytest.raises(ValueError, match='dual mask is bool'): split_dual(wrong)
    with pytest.raises(ValueError, match='even height'): cell_mask(1, Grid(4,3,4), .5, gen())
    with pytest.raises(ValueError, match='gen=None'): cell_mask(1, Grid(4,4,4))

@pytest.mark.parametrize('size', ['S', 'B', 'L', 'H', 'g'])
def test_decoder_cost_is_what_torch_counts(size):
    cfg = presets2[size]
    with torch.device('meta'): dec = VideoMAE2(cfg).decoder
    d = split_dual(dual_mask(1, Grid(8,8,8), .9, gen()))
    tok = torch.empty(1, d.keep.shape[1]+d.decode.shape[1], cfg.dec.dim, device='meta')
    with FlopCounterMode(display=False) as count: dec(tok, d.ask)
    assert count.get_total_flops()==decoder_flops(cfg.dec, d.keep.shape[1], d.decode.shape[1], d.ask, cfg.pixels)

def as_written(mae, clip, mask):
    "Everything painted goes through all blocks; errors are weighted by what was hidden"
    hidden, skip = mask.unbind(1)
    decode = torch.stack([(~o).nonzero()[:,0] for o in skip])
    tok = mae.mix(mae.encoder(clip, split_mask(hidden)[0]), grid_of(clip, mae.cfg.enc.patch), split_mask(hidden)[0],
        decode)
    pred = mae.decoder.head(mae.decoder.norm(run_blocks(mae.decoder.blocks, tok)[:,-decode.shape[1]:]))
    each = (pred-mae.target(clip, decode, mae.cfg.enc.patch)[0]).square().mean(-1)
    w = torch.stack([h[i] for h, i in zip(hidden, decode)])
    return (each*w).sum()/w.sum()

def grads(model, loss):
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])

@pytest.mark.parametrize('attn', [Attention, CosineAttention])
@pytest.mark.parametrize('size', [(8,32,48), (6,16,32)])
@pytest.mark.parametrize('how',
    [dict(), dict(skip=.25), dict(skip=.75), dict(dec=random_mask), dict(enc=random_mask), dict(skip=0)])
def test_loss_and_gradients_are_those_of_the_code_as_written(size, how, attn):
    model, clip = loud(VideoMAE2(tiny(), attn=attn, gen=gen())), torch.randn(3, 3, *size, generator=gen(1))
    mask = dual_mask(3, grid_of(clip, (2,8,8)), .75, gen(2), **how)
    a, b = model(clip, mask).loss, as_written(model, clip, mask)
    assert abs((a-b).item())<1e-5
    torch.testing.assert_close(grads(model, a), grads(model, b), atol=1e-5, rtol=1e-4)

@pytest.mark.parametrize('size,patch', [((16,64,64), (2,16,16)), ((4,48,24), (2,8,8)), ((8,56,28), (2,14,14))])
def test_ratio_zero_is_videomae(size, patch):
    one, two = loud(VideoMAE(tiny(patch), gen=gen(5))), loud(VideoMAE2(tiny(patch), gen=gen(5)))
    clip = torch.randn(2, 3, *size, generator=gen(1))
    mask = dual_mask(2, grid_of(clip, patch), .75, gen(2), 0, enc=random_mask)
    a, b = one(clip, mask[:,0]), two(clip, mask)
    for x, y in zip(a, b): torch.testing.assert_close(x, y, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(grads(one, a.loss), grads(two, b.loss), atol=1e-6, rtol=1e-5)
    assert torch.equal(one.reconstruct(clip, mask[:,0]), two.reconstruct(clip, mask[:,0])) or \
        (one.reconstruct(clip, mask[:,0])-two.reconstruct(clip, mask[:,0])).abs().max()<1e-5

def test_half_precision_is_near():
    model, clip = loud(VideoMAE2(tiny(), gen=gen())), torch.randn(2, 3, 8, 32, 32, generator=gen(1))
    mask = dual_mask(2, Grid(4,4,4), .75, gen(2))
    with torch.autocast('cpu', torch.bfloat16): half = model(clip, mask)
    assert half.loss.dtype==torch.float32 and abs(half.loss.item()/model(clip, mask).loss.item()-1)<.02

@pytest.mark.parametrize('decoder', [None, CrossDecoder])
@pytest.mark.parametrize('masks', [partial(dual_mask, ratio=.75), partial(document_dual, ratio=.5)])
def test_hidden_pixels_are_not_seen(masks, decoder):
    model = VideoMAE2(tiny(), gen=gen(), **({} if decoder is None else dict(decoder=decoder)))
    clip, mask = torch.randn(2, 3, 8, 32, 32, generator=gen(1)), masks(2, Grid(4,4,4), gen=gen(2))
    px = mask[:,0].view(2, 1, 4, 4, 4).repeat_interleave(2, 2).repeat_interleave(8, 3).repeat_interleave(8, 4)
    assert torch.equal(model(clip, mask).pred, model(torch.where(px, clip.flip(0), clip), mask).pred)

def test_checkpointing_gives_the_same_gradients():
    clip, mask = torch.randn(2, 3, 8, 32, 32, generator=gen(1)), dual_mask(2, Grid(4,4,4), .75, gen(2))
    a, b = (loud(VideoMAE2(tiny(), ckpt=k, gen=gen())).train() for k in (False, True))
    assert torch.equal(grads(a, a(clip, mask).loss), grads(b, b(clip, mask).loss))

COUNTS = dict(S=(21.9, 2.1), B=(86.2, 7.7), L=(303.9, 13.4), H=(631.6, 13.4), g=(1011.6, 14.0))

@pytest.mark.parametrize('size', COUNTS)
def test_published_sizes(size):
    with torch.device('meta'): model = VideoMAE2(presets2[size])
    assert tuple(round(count_params(o)/1e6, 1) for o in (model.encoder, model.decoder))==COUNTS[size]
    with torch.device('meta'): back = VideoMAE2.from_official(model.state_dict())
    dec, want = back.cfg.dec, presets2[size].dec
    assert (back.cfg.enc==presets2[size].enc
        and (dec.dim, dec.depth, dec.heads, dec.hidden)==(want.dim, 4, want.heads, want.hidden))

def official_keys(cos, depth, prefix=''):
    "The official names of one stack, as the fact sheet lists them"
    attn = ['q_bias', 'v_bias', 'qkv.weight', 'proj.weight', 'proj.bias'] + ['scale']*cos
    block = [f'attn.{o}' for o in attn] + [f'{n}.{k}' for n in ('norm1', 'norm2', 'mlp.fc1', 'mlp.fc2')
        for k in ('weight', 'bias')]
    return {f'{prefix}blocks.{i}.{k}' for i in range(depth) for k in block}

@pytest.mark.parametrize('cos', [False, True])
def test_official_layouts_both_ways(cos, tmp_path):
    attn = CosineAttention if cos else Attention
    model = loud(VideoMAE2(tiny(), attn=attn, gen=gen()))
    want = official_keys(cos, 2, 'encoder.') | official_keys(cos, 2, 'decoder.') | {'encoder_to_decoder.weight',
        'mask_token'} | \
        {f'{n}.{k}' for n in ('encoder.patch_embed.proj', 'encoder.norm', 'decoder.norm', 'decoder.head')
        for k in ('weight', 'bias')}
    state = model.to_official()['model']
    assert set(state)==want
    clf = loud(model.classifier(5))
    assert set(clf.state_dict())==official_keys(cos,
        2) | {f'{n}.{k}' for n in ('patch_embed.proj', 'fc_norm', 'head') for k in ('weight', 'bias')}
    clip, mask = torch.randn(2, 3, 8, 32, 32, generator=gen(1)), dual_mask(2, Grid(4,4,4), .75, gen(2))
    for wrap in ('model', 'module', None):
        torch.save({wrap: state} if wrap else state, tmp_path/'mae.pth')
        torch.save({wrap: clf.state_dict()} if wrap else clf.state_dict(), tmp_path/'clf.pth')
        a, b = VideoMAE2.from_official(tmp_path/'mae.pth'), VideoMAE2Classifier.from_official(tmp_path/'clf.pth')
        assert (a.cfg, a.attn)==(model.cfg, attn) and torch.equal(a(clip, mask).pred, model(clip, mask).pred)
        assert torch.equal(b.eval()(clip), clf.eval()(clip))

@pytest.mark.parametrize('fault,word',
    [('missing', 'decoder.norm.bias'), ('extra', 'surprise'), ('shape', 'mask_token'),
    ('scale', 'decoder.blocks.1.attn.scale')])
def test_loading_refuses(fault, word):
    state = VideoMAE2(tiny(), attn=CosineAttention).to_official()['model']
    if fault=='missing': del state['decoder.norm.bias']
    if fault=='extra': state['surprise'] = torch.zeros(1)
    if fault=='shape': state['mask_token'] = torch.zeros(1, 1, 9)
    if fault=='scale': del state['decoder.blocks.1.attn.scale']
    with pytest.raises(WeightsError, match=word): VideoMAE2.from_official(state)
    with pytest.raises(ValueError, match='no head in it'): VideoMAE2Classifier.from_official(state)

def test_transformers_files(tmp_path):
    "Without cosines, files of transformers go both ways; with them, there is no place for the temperatures"
    model = loud(VideoMAE2(tiny(), gen=gen()))
    clip, mask = torch.randn(2, 3, 8, 32, 32, generator=gen(1)), dual_mask(2, Grid(4,4,4), .75, gen(2))
    back = VideoMAE2.from_pretrained(model.save_pretrained(tmp_path, (8,32,32)))
    torch.testing.assert_close(back(clip, mask).pred, model(clip, mask).pred)
    with pytest.raises(WeightsError, match='scale'):
        VideoMAE2(tiny(), attn=CosineAttention).save_pretrained(tmp_path, (8,32,32))

@settings(max_examples=25, deadline=None)
@given(st.tuples(*[st.integers(1, 7)]*3), st.tuples(*[st.integers(1, 4)]*3), st.integers(0, 10**6))
def test_windows_pad_and_mask(grid, window, seed):
    "Boxes go apart and together; a token is influenced by the tokens of its window that are there, and by nothing else"
    grid = Grid(*grid)
    w = fit_window(window, grid)
    x = torch.randn(1, *grid, 8, generator=gen(seed), dtype=torch.float64)
    assert torch.equal(unpartition(partition(x, w), w, grid), x)
    att = WindowAttention(8, 2, window=window).double()
    torch.nn.init.normal_(att.table, generator=gen(seed))
    there = torch.rand(grid.n, generator=gen(seed))<.7
    there[0] = True
    keep = there.nonzero()[:,0][None]
    tok = x.flatten(1, 3)[:,keep[0]].requires_grad_()
    att(tok, grid, keep)[0,0].pow(2).sum().backward()
    place = torch.cartesian_prod(*map(torch.arange, grid)).view(-1, 3)
    box = place//torch.tensor(w)
    same = (box==box[0]).all(1)[keep[0]]
    touched = tok.grad[0].abs().sum(-1)>0
    assert tok.grad.isfinite().all() and not touched[~same].any()
    if same.sum()>1: assert touched[same].all()

def test_relative_positions():
    "Rows depend on the displacement only, stay inside the table, and all of a full window's rows are used"
    for w in (Grid(2,3,2), Grid(1,4,3)):
        i = relative_index(w, Grid(3,4,4))
        p = torch.cartesian_prod(*map(torch.arange, w)).view(-1, 3)
        by = {}
        for a in range(w.n):
            for b in range(w.n): by.setdefault(tuple((p[a]-p[b]).tolist()), set()).add(int(i[a,b]))
        assert (all(len(v)==1 for v in by.values()) and len(set.union(*by.values()))==len(by) and i.min()>=0
            and i.max()<5*7*7)
    assert relative_index(Grid(3,4,4), Grid(3,4,4)).unique().numel()==5*7*7

def test_the_documents_model():
    model = VideoMAE2(tiny(), decoder=CrossDecoder, encoder=partial(WindowViT, windows=((2,3,3),)), gen=gen()).train()
    clip, mask = torch.randn(2, 3, 8, 32, 48, generator=gen(1)), document_dual(2, Grid(4,4,6), gen=gen(2))
    out = model(clip, mask)
    assert out.pred.shape==(2, 24, 384) and not (~mask).all(1).any()
    g = grads(model, out.loss)
    assert g.isfinite().all() and (g!=0).float().mean()>.9
    thrifty = VideoMAE2(tiny(), decoder=CrossDecoder, encoder=partial(WindowViT, windows=((2,3,3),)), ckpt=True,
        gen=gen()).train()
    thrifty.load_state_dict(model.state_dict())
    assert torch.equal(grads(thrifty, thrifty(clip, mask).loss), g)
    for kw in (dict(decoder=CrossDecoder), dict(encoder=WindowViT)):
        with pytest.raises(ValueError, match='CosineAttention'): VideoMAE2(tiny(), attn=CosineAttention, **kw)

def test_cross_attention_does_not_care_what_else_is_painted():
    "Also with painted tokens that are seen: they are no memory"
    model, clip = VideoMAE2(tiny(), decoder=CrossDecoder, gen=gen()).eval(), torch.randn(2, 3, 8, 32, 32,
        generator=gen(1))
    mask = dual_mask(2, Grid(4,4,4), .75, gen(2))
    with torch.no_grad(): half, full = model(clip, mask), model(clip, mask[:,0])
    d, hidden = split_dual(mask), split_mask(mask[:,0])[1]
    assert d.decode.shape[1]>d.ask
    for i in range(2):
        at = torch.searchsorted(hidden[i], d.decode[i,-d.ask:])
        torch.testing.assert_close(half.pred[i], full.pred[i,at], atol=1e-5, rtol=1e-5)

def test_loss_weights():
    p, t = torch.randn(2, 3, 7, 5, generator=gen())
    w = torch.rand(3, 7, generator=gen(1))<.5
    assert abs(dual_loss(p, t, w)-(p-t)[w].square().mean())<1e-6

def test_giant_is_the_published_one():
    assert (videomae2_g.enc.hidden, videomae2_g.dec.hidden, videomae2_g.enc.patch)==(6144, 2234, (2,14,14))
    assert presets2['H'].dec.dim==512 and replace(presets2['H'], dec=presets2['L'].dec)==presets2['H']
    assert tube_mask(1, Grid(8,16,16), .9, gen()).sum()==230*8

"V-JEPA 2 against transformers, both directions, and where transformers' positions go wrong."
import warnings
from dataclasses import replace
from itertools import repeat
import pytest
import torch
from vidlit.nn.tokens import Grid, grid_of, take
from vidlit.nn.vit import ViTConfig, count_params
from vidlit.nn.weights import WeightsError
from vidlit.pretrain.block_masking import Blocks
from vidlit.pretrain.vjepa2 import VJEPA2, RopePredictor, VJEPA2Config, presets, rope_encoder
from vidlit.pretrain.vjepa2_weights import VJEPA2Classifier, sizes_from_hf, to_hf_config

warnings.filterwarnings('ignore')
transformers = pytest.importorskip('transformers')

def gen(seed=0): return torch.Generator().manual_seed(seed)

def sizes(patch=(2,8,8), head=16):
    def one(heads, **kw): return ViTConfig(dim=head*heads, depth=2, heads=heads, qkv_bias='fused', **kw)
    return VJEPA2Config(one(3, patch=patch), one(2), legacy_tiled=True)

def shake(model, scale=.1):
    "Weights of some size everywhere, so that no zero hides a slip"
    with torch.no_grad():
        for p,g in zip(model.parameters(), repeat(gen(7))): p.add_(torch.randn(p.shape, generator=g)*scale)
    return model.eval()

def theirs(side, patch=(2,8,8), classes=None, frames=8, **kw):
    cfg = transformers.VJEPA2Config(**{**to_hf_config(sizes(patch), (frames,side,side), classes), **kw})
    torch.manual_seed(3)
    return shake((transformers.VJEPA2ForVideoClassification if classes else transformers.VJEPA2Model)(cfg))

def lists(b, n, k, m, seed=1):
    "Context and targets in any order, other ones for every sample"
    order = torch.stack([torch.randperm(n, generator=gen(seed+i)) for i in range(b)])
    return order[:, :k], order[:, k:k+m]

def ours_pair(ours, clip, keep, targ, group=1):
    "What transformers does: encode everything, take the context, predict with token 1"
    tok = ours.encoder(clip)
    return tok, ours.predictor(take(tok, keep), grid_of(clip, ours.cfg.enc.patch), keep, targ, group)

def close(a, b, **kw): torch.testing.assert_close(a, b, **{**dict(atol=1e-5, rtol=1e-5), **kw})

CASES = [((8,32,32), (2,8,8)), ((4,48,48), (2,16,16)), ((16,32,32), (2,8,8)), ((3,24,24), (1,8,8))]

def agree(ours, hf, size):
    clip = torch.randn(2, 3, *size, generator=gen(1))
    grid = grid_of(clip, ours.cfg.enc.patch)
    keep,targ = lists(2, grid.n, grid.n//3, grid.n//2)
    tok,pred = ours_pair(ours, clip, keep, targ)
    ref = hf(clip.transpose(1, 2), context_mask=[keep], target_mask=[targ])
    close(tok, ref.last_hidden_state)
    close(pred, ref.predictor_output.last_hidden_state)
    return tok, pred, ref

@pytest.mark.parametrize('size,patch', CASES)
def test_from_transformers(size, patch, tmp_path):
    hf = theirs(size[1], patch); hf.save_pretrained(tmp_path)
    ours = VJEPA2.from_pretrained(tmp_path)
    assert sum(p.numel() for p in [*ours.encoder.parameters(), *ours.predictor.parameters()]) == sum(p.numel()
        for p in hf.parameters())
    agree(ours, hf, size)

@pytest.mark.parametrize('size,patch', CASES[:3])
def test_to_transformers(size, patch, tmp_path):
    ours = shake(VJEPA2(sizes(patch), gen=gen(5)))
    hf,info = transformers.VJEPA2Model.from_pretrained(ours.save_pretrained(tmp_path, size, which='encoder'),
        output_loading_info=True)
    assert not any(info[k] for k in ('missing_keys', 'unexpected_keys', 'mismatched_keys'))
    agree(ours, hf.eval(), size)

@pytest.mark.parametrize('head', [24, 64, 80])
def test_published_head_widths(head, tmp_path):
    "8, 20 and 26 channels for each axis, and 0, 4 and 2 that are not turned"
    ours = shake(VJEPA2(sizes(head=head), gen=gen(5)), .05)
    agree(ours, transformers.VJEPA2Model.from_pretrained(ours.save_pretrained(tmp_path, (8,32,32),
        which='encoder')).eval(), (8,32,32))

def test_gradients_agree(tmp_path):
    hf = theirs(32); hf.save_pretrained(tmp_path)
    ours = VJEPA2.from_pretrained(tmp_path)
    _,pred,ref = agree(ours, hf, (8,32,32))
    pred.square().mean().backward(); ref.predictor_output.last_hidden_state.square().mean().backward()
    q = ours.encoder.blocks[0].attn.qkv.weight.grad.chunk(3)
    att = hf.encoder.layer[0].attention
    for a,b in ((q[0], att.query.weight.grad), (q[1], att.key.weight.grad), (q[2], att.value.weight.grad),
                (ours.predictor.mask_tokens[1].grad, hf.predictor.embeddings.mask_tokens.grad[1]),
                (ours.predictor.predictor_blocks[1].mlp.fc1.weight.grad, hf.predictor.layer[1].mlp.fc1.weight.grad),
                (ours.encoder.patch_embed.proj.weight.grad,
                 hf.encoder.embeddings.patch_embeddings.proj.weight.grad)):
        close(a, b, rtol=1e-4)
    assert ours.predictor.mask_tokens[0].grad.abs().max() == 0
    assert hf.predictor.embeddings.mask_tokens.grad[0].abs().max() == 0

def test_the_target_of_transformers_is_the_encoder(tmp_path):
    "The target is layer-normed and from the EMA encoder; right after loading both encoders are equal"
    hf = theirs(32); hf.save_pretrained(tmp_path)
    ours = VJEPA2.from_pretrained(tmp_path)
    clip = torch.randn(1, 3, 8, 32, 32, generator=gen(1))
    ref = hf(clip.transpose(1, 2), skip_predictor=True).last_hidden_state
    close(ours.targets(clip), torch.nn.functional.layer_norm(ref, ref.shape[-1:]))

@pytest.mark.parametrize('depth', [3, 1])
def test_classifier_both_ways(depth, tmp_path):
    hf = theirs(32, classes=7, num_pooler_layers=depth); hf.save_pretrained(tmp_path/'a')
    ours = VJEPA2Classifier.from_pretrained(tmp_path/'a').eval()
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in hf.parameters())
    clip = torch.randn(2, 3, 8, 32, 32, generator=gen(1))
    close(ours(clip), hf(clip.transpose(1, 2)).logits)
    shake(ours, .03)
    back,info = transformers.VJEPA2ForVideoClassification.from_pretrained(ours.save_pretrained(tmp_path/'b',
        (8,32,32)), output_loading_info=True)
    assert not any(info[k] for k in ('missing_keys', 'unexpected_keys', 'mismatched_keys'))
    close(back.eval()(clip.transpose(1, 2)).logits, ours(clip))

def rectangle(grid, side):
    "Numbers of a grid's tokens inside a larger square grid"
    return torch.cartesian_prod(*(torch.arange(o) for o in grid))@torch.tensor([side*side, side, 1])

@pytest.mark.parametrize('size', [(8,32,64), (4,56,24), (4,64,64)])
def test_shapes_that_transformers_gets_wrong(size, tmp_path):
    """transformers counts rows and columns with the side in its configuration. Its own layers, told the right
    positions, agree with us; its forward does not. Twice as long a clip of the configured side, it gets right."""
    hf = theirs(32); hf.save_pretrained(tmp_path)
    ours = VJEPA2.from_pretrained(tmp_path)
    clip = torch.randn(1, 3, *size, generator=gen(1))
    grid = grid_of(clip, (2,8,8))
    wide = transformers.VJEPA2Model(transformers.VJEPA2Config(**{**hf.config.to_dict(),
        'crop_size': 8*max(grid.h, grid.w)})).eval()
    wide.load_state_dict(hf.state_dict())
    x = wide.encoder.embeddings(clip.transpose(1, 2))
    for layer in wide.encoder.layer: x = layer(x, rectangle(grid, max(grid.h, grid.w))[None])[0]
    tok = ours.encoder(clip)
    close(tok, wide.encoder.layernorm(x))
    said = hf(clip.transpose(1, 2), skip_predictor=True).last_hidden_state
    assert (tok-said).norm()/tok.norm() > .01

def test_targets_of_any_size(tmp_path):
    "The predictor knows the grid it is told: a wide one agrees with transformers' at the enclosing square"
    hf = theirs(64); hf.save_pretrained(tmp_path)
    ours = VJEPA2.from_pretrained(tmp_path)
    grid,tok = Grid(3,4,8),torch.randn(2, 96, 48, generator=gen(2))
    keep,targ = lists(2, 96, 30, 40)
    to = rectangle(grid, 8)
    whole = torch.zeros(2, 3*64, 48).index_copy(1, to, tok)
    ref = hf.predictor(whole, [to[keep]], [to[targ]]).last_hidden_state
    close(ours.predictor(take(tok, keep), grid, keep, targ, 1), ref)

def test_two_masks(tmp_path):
    "transformers fails at a second mask; ours, apart or padded together, gives what each gives alone"
    hf = theirs(32); hf.save_pretrained(tmp_path)
    ours = VJEPA2.from_pretrained(tmp_path)
    clip = torch.randn(2, 3, 8, 32, 32, generator=gen(1))
    masks = [lists(2, 64, 20, 30), lists(2, 64, 12, 40, seed=5)]
    with pytest.raises(RuntimeError):
        hf(clip.transpose(1, 2), context_mask=[k for k,_ in masks], target_mask=[t for _,t in masks])
    blocks = [Blocks(*(o.sort(1).values for o in m)) for m in masks]
    apart = ours.predict(clip, blocks, group=1)
    ours.together = True
    for a,b,o in zip(apart, ours.predict(clip, blocks, group=1), blocks):
        close(a, b)
        close(a, ours.predictor(ours.encoder(clip, o.keep), grid_of(clip, (2,8,8)), o.keep, o.targ, 1))

@pytest.mark.parametrize('wrap', ['module.backbone.', 'backbone.', 'module.', ''])
def test_official_layout(wrap, tmp_path):
    ours = shake(VJEPA2(sizes(head=32), gen=gen()))
    parts = {k: {n.replace('module.backbone.', wrap): v for n,v in s.items()} for k,s in ours.to_official().items()}
    assert {f'{wrap}{k}' for k in ('patch_embed.proj.weight', 'blocks.1.attn.qkv.bias',
        'norm.weight')} <= parts['encoder'].keys()
    some = ('predictor_embed.weight', 'mask_tokens.9', 'predictor_blocks.1.mlp.fc2.bias', 'predictor_norm.bias',
        'predictor_proj.weight')
    assert {f'{wrap}{k}' for k in some} <= parts['predictor'].keys()
    torch.save(parts | dict(opt={}, scaler=None, epoch=3, batch_size=24, lr=1e-4), tmp_path/'latest.pt')
    back = VJEPA2.from_official(tmp_path/'latest.pt', heads=3, pred_heads=2)
    assert back.cfg == ours.cfg
    for k,v in ours.state_dict().items(): assert torch.equal(v, back.state_dict()[k]), k

def test_target_encoder_is_not_lost(tmp_path):
    ours = VJEPA2(sizes(head=32), gen=gen()); shake(ours.target_encoder)
    back = VJEPA2.from_official(ours.to_official(), heads=3, pred_heads=2)
    a,b = (dict(o.state_dict()) for o in (back.encoder, back.target_encoder))
    assert not torch.equal(a['norm.weight'], b['norm.weight']) and torch.equal(b['norm.weight'],
        ours.target_encoder.norm.weight)
    only = ours.to_official(); del only['target_encoder']
    back = VJEPA2.from_official(only, heads=3, pred_heads=2)
    assert torch.equal(back.encoder.norm.weight, back.target_encoder.norm.weight)

@pytest.mark.parametrize('part', ['encoder', 'target_encoder', 'predictor'])
@pytest.mark.parametrize('fault', ['missing', 'extra', 'shape', 'table'])
def test_loading_refuses(part, fault):
    ckpt = VJEPA2(sizes(head=32)).to_official()
    key = 'module.backbone.'+('predictor_norm.bias' if part=='predictor' else 'norm.bias')
    table = 'module.backbone.'+('predictor_' if part=='predictor' else '')+'pos_embed'
    if fault=='missing': del ckpt[part][key]
    if fault=='extra': ckpt[part]['module.backbone.surprise'] = torch.zeros(1)
    if fault=='shape': ckpt[part][key] = torch.zeros(5)
    if fault=='table': ckpt[part][table] = torch.zeros(1, 8, 32)
    word = dict(missing='norm.bias', extra='surprise', shape='norm.bias', table='drop_pos')[fault]
    with pytest.raises(WeightsError, match=word): VJEPA2.from_official(ckpt, heads=3, pred_heads=2)
    if fault=='table': VJEPA2.from_official(ckpt, heads=3, pred_heads=2, drop_pos=True)

def test_no_pickles(tmp_path):
    class Bomb:
        def __reduce__(self): return (print, ('executed',))
    torch.save({'encoder': Bomb(), 'predictor': {}}, tmp_path/'bad.pt')
    with pytest.raises(WeightsError): VJEPA2.from_official(tmp_path/'bad.pt')

@pytest.mark.parametrize('name,enc,pred', [('L', 303.9, 22.1), ('H', 631.6, 22.3), ('g', 1012.2, 22.4)])
def test_published_sizes(name, enc, pred):
    "Counts, and transformers' count of the same configuration, without making either"
    cfg = replace(presets[name], legacy_tiled=True)
    with torch.device('meta'):
        nets = rope_encoder(cfg), RopePredictor(cfg)
        hf = transformers.VJEPA2Model(transformers.VJEPA2Config(**to_hf_config(cfg)))
    assert [round(count_params(o)/1e6, 1) for o in nets] == [enc, pred]
    assert sum(map(count_params, nets)) == sum(p.numel() for p in hf.parameters())
    assert sizes_from_hf(to_hf_config(cfg)) == cfg

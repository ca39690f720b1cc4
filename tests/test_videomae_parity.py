"Our VideoMAE against transformers' from the same weights, in both directions, and what loading refuses."
import warnings
from dataclasses import replace
import pytest
import torch
from vidlit.nn.tokens import grid_of
from vidlit.nn.vit import ViTConfig
from vidlit.nn.weights import WeightsError
from vidlit.pretrain.tube_masking import random_mask, tube_mask
from vidlit.pretrain.videomae import VideoMAE, VideoMAEClassifier, VideoMAEConfig, hf_config, norm_patches

warnings.filterwarnings('ignore')
transformers = pytest.importorskip('transformers')

def gen(seed=0): return torch.Generator().manual_seed(seed)

def sizes(patch=(2,16,16)):
    return VideoMAEConfig(ViTConfig(dim=48, depth=2, heads=4, patch=patch), ViTConfig(dim=32, depth=2, heads=2))

def theirs(size, patch=(2,16,16), classes=None, **kw):
    "A randomly started model of transformers, its biases not zero"
    cfg = hf_config(sizes(patch).enc, size, None if classes else sizes().dec, classes)
    kind = transformers.VideoMAEForVideoClassification if classes else transformers.VideoMAEForPreTraining
    torch.manual_seed(3)
    model = kind(transformers.VideoMAEConfig(**{**cfg, 'layer_norm_eps': 1e-12, **kw})).eval()
    for p in model.parameters():
        p.data = torch.randn(p.shape, generator=gen(p.numel()))*(.1 if p.ndim>1 else .05) + p.data*(p.ndim==1)
    return model

def inputs(size, ratio=.75, patch=(2,16,16), how=tube_mask):
    clip = torch.randn(2, 3, *size, generator=gen(1))
    return clip, how(2, grid_of(clip, patch), ratio, gen(2))

CASES = [((16,64,64), (2,16,16)), ((8,48,80), (2,16,16)), ((4,96,32), (2,16,16)), ((6,48,32), (2,8,8)),
    ((4,40,24), (1,8,8))]

def agree(ours, hf, clip, mask):
    "Predictions, targets, loss and gradients"
    out,ref = ours(clip, mask),hf(clip.transpose(1, 2), bool_masked_pos=mask)
    torch.testing.assert_close(out.pred, ref.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out.loss, ref.loss, atol=1e-5, rtol=1e-5)
    return out, ref

def their_targets(hf, clip, mask):
    "Read through the loss: predicting zero leaves the targets' mean square, and its gradient the targets themselves"
    head = hf.decoder.head
    head.weight.data.zero_(); head.bias.data.zero_()
    got = {}
    hook = head.register_forward_hook(lambda m, i, o: got.update(pred=o))
    ref = hf(clip.transpose(1, 2), bool_masked_pos=mask)
    hook.remove()
    grad, = torch.autograd.grad(ref.loss, got['pred'])
    return -grad*got['pred'].numel()/2

@pytest.mark.parametrize('size,patch', CASES)
def test_from_transformers(size, patch, tmp_path):
    hf = theirs(size, patch)
    hf.save_pretrained(tmp_path)
    ours = VideoMAE.from_pretrained(tmp_path)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in hf.parameters())
    for how in (tube_mask, random_mask):
        out,_ = agree(ours, hf, *inputs(size, patch=patch, how=how))
    clip,mask = inputs(size, patch=patch)
    torch.testing.assert_close(ours(clip, mask).targ, their_targets(hf, clip, mask), atol=1e-5, rtol=1e-5)

@pytest.mark.parametrize('size,patch', CASES[:3])
def test_to_transformers(size, patch, tmp_path):
    ours = VideoMAE(replace(sizes(patch), enc=replace(sizes(patch).enc, eps=1e-12),
        dec=replace(sizes().dec, eps=1e-12), head_eps=1e-5), gen=gen(5))
    for p in ours.parameters(): p.data += torch.randn(p.shape, generator=gen(p.numel()))*.05
    hf,info = transformers.VideoMAEForPreTraining.from_pretrained(ours.save_pretrained(tmp_path, size),
        output_loading_info=True)
    assert not any(info[k] for k in ('missing_keys', 'unexpected_keys', 'mismatched_keys'))
    agree(ours, hf.eval(), *inputs(size, patch=patch))

def test_gradients_agree(tmp_path):
    hf = theirs((8,48,80)); hf.save_pretrained(tmp_path)
    ours = VideoMAE.from_pretrained(tmp_path)
    out,ref = agree(ours, hf, *inputs((8,48,80)))
    out.loss.backward(); ref.loss.backward()
    for a,b in ((ours.mask_token, hf.mask_token),
        (ours.encoder.blocks[0].mlp.fc1.weight, hf.videomae.encoder.layer[0].intermediate.dense.weight),
                (ours.encoder.blocks[1].attn.q_bias, hf.videomae.encoder.layer[1].attention.attention.query.bias),
                (ours.encoder.patch_embed.proj.weight, hf.videomae.embeddings.patch_embeddings.projection.weight)):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-4)

@pytest.mark.parametrize('old,new', [('q_bias','query.bias'), ('query.bias','q_bias')])
def test_both_bias_names(old, new, tmp_path):
    """Files say q_bias and v_bias, version 5 says query.bias and value.bias inside: both are read, by us and by
    transformers"""
    from safetensors.torch import load_file, save_file
    hf = theirs((16,64,64)); hf.save_pretrained(tmp_path)
    state = {k.replace(old, new).replace(*('v_bias','value.bias')[::1 if old=='q_bias' else -1]): v for k,
        v in load_file(tmp_path/'model.safetensors').items()}
    assert any(k.endswith(new) for k in state) and not any(k.endswith('.'+old) for k in state)
    save_file(state, tmp_path/'model.safetensors', metadata={'format':'pt'})
    ours = VideoMAE.from_pretrained(tmp_path)
    assert ours.encoder.blocks[0].attn.q_bias.abs().sum() > 0
    agree(ours, hf, *inputs((16,64,64)))
    agree(ours, transformers.VideoMAEForPreTraining.from_pretrained(tmp_path).eval(), *inputs((16,64,64)))

@pytest.mark.parametrize('size', [(16,64,64), (8,48,80)])
def test_classifier_both_ways(size, tmp_path):
    hf = theirs(size, classes=7); hf.save_pretrained(tmp_path/'a')
    ours = VideoMAEClassifier.from_pretrained(tmp_path/'a').eval()
    clip,_ = inputs(size)
    torch.testing.assert_close(ours(clip), hf(clip.transpose(1, 2)).logits, atol=1e-5, rtol=1e-5)
    back,info = transformers.VideoMAEForVideoClassification.from_pretrained(ours.save_pretrained(tmp_path/'b', size),
        output_loading_info=True)
    assert not any(info[k] for k in ('missing_keys', 'unexpected_keys', 'mismatched_keys'))
    torch.testing.assert_close(back.eval()(clip.transpose(1, 2)).logits, ours(clip), atol=1e-5, rtol=1e-5)

@pytest.mark.parametrize('wrapped', ['model', 'module', None])
def test_official_layout(wrapped, tmp_path):
    ours = VideoMAE(replace(sizes(), enc=replace(sizes().enc, dim=128, heads=2),
        dec=replace(sizes().dec, dim=64, heads=1)), gen=gen())
    state = ours.to_official()['model']
    assert {'encoder.patch_embed.proj.weight', 'encoder.blocks.0.attn.q_bias', 'encoder.norm.weight',
        'encoder_to_decoder.weight', 'mask_token',
        'decoder.blocks.1.mlp.fc2.bias', 'decoder.norm.bias', 'decoder.head.weight'} <= state.keys()
    torch.save({wrapped: state, 'epoch': 3} if wrapped else state, tmp_path/'ckpt.pth')
    back = VideoMAE.from_official(tmp_path/'ckpt.pth')
    assert back.cfg == ours.cfg
    clip,mask = inputs((4,32,32))
    assert torch.equal(back(clip, mask).pred, ours(clip, mask).pred)

@pytest.mark.parametrize('fault,word',
    [('missing', 'decoder.norm.bias'), ('extra', 'surprise'), ('shape', 'mask_token')])
def test_loading_refuses(fault, word, tmp_path):
    state = VideoMAE(replace(sizes(), enc=replace(sizes().enc, dim=64, heads=1),
        dec=replace(sizes().dec, dim=64, heads=1))).to_official()['model']
    if fault=='missing': del state['decoder.norm.bias']
    if fault=='extra': state['surprise'] = torch.zeros(1)
    if fault=='shape': state['mask_token'] = torch.zeros(1, 1, 9)
    with pytest.raises(Exception, match=word): VideoMAE.from_official(state)

def test_hf_loading_without_a_norm(tmp_path):
    hf = theirs((16,64,64), use_mean_pooling=True); hf.save_pretrained(tmp_path)  # no norm after the encoder
    model = VideoMAE.from_pretrained(tmp_path)
    assert not list(model.encoder.norm.parameters())
    state = VideoMAE(sizes()).state_dict()
    del state['mask_token']
    with pytest.raises(Exception, match='mask_token'): VideoMAE.from_official(state)

def test_no_pickles(tmp_path):
    class Bomb:
        def __reduce__(self): return (print, ('executed',))
    torch.save({'model': Bomb()}, tmp_path/'bad.pth')
    with pytest.raises(WeightsError): VideoMAE.from_official(tmp_path/'bad.pth')

def test_targets_are_the_reference():
    from vidlit.nn.tokens import patchify, split_mask, take
    clip = torch.rand(2, 3, 8, 48, 32, generator=gen())
    from vidlit.video.pixels import normalise
    model = VideoMAE(sizes()); mask = tube_mask(2, grid_of(clip), .5, gen())
    ref = take(norm_patches(patchify(clip))[0], split_mask(mask)[1])
    torch.testing.assert_close(model(normalise(clip), mask).targ, ref, atol=1e-5, rtol=1e-5)

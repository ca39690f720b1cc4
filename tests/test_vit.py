"The vision transformer: equality with transformers, counts, gradients, groups"
import copy
from dataclasses import replace
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from vidlit.nn.tokens import Grid, Rope3D, sincos_3d, split_mask
from vidlit.nn.vit import (
    Attention,
    Block,
    CosineAttention,
    FactorisedBlock,
    StoredPos,
    ViT,
    block_flops,
    count_params,
    draw_paths,
    flat_pos,
    init_vit,
    layer_decay_groups,
    run_blocks,
    vit_b,
    vit_g,
    vit_h,
    vit_l,
    vit_s,
)
from vidlit.nn.weights import KeyMap, load_strict

tiny = replace(vit_s, dim=48, depth=3, heads=4, patch=(2,8,8))

def rand(*shape, seed=0): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
def stir(model, seed=0):
    gen = torch.Generator().manual_seed(seed)
    with torch.no_grad(): [p.normal_(std=.1, generator=gen) for p in model.parameters()]
    return model

# against transformers

@pytest.mark.parametrize('cfg', [vit_s, vit_b, vit_l, vit_h])
def test_counts_equal_transformers(cfg):
    from transformers import VideoMAEConfig, VideoMAEModel
    with torch.device('meta'):
        ours = count_params(ViT(cfg))
        theirs = VideoMAEModel(VideoMAEConfig(hidden_size=cfg.dim, num_hidden_layers=cfg.depth,
            num_attention_heads=cfg.heads,
            intermediate_size=cfg.hidden, use_mean_pooling=False))
    assert ours==count_params(theirs)

def test_exact_counts():
    with torch.device('meta'): got = [count_params(ViT(c)) for c in (vit_s, vit_b, vit_l, vit_h, vit_g)]
    assert got==[21_879_936, 86_227_200, 303_860_736, 631_607_040, 1_011_610_752]

@pytest.mark.parametrize('size', [(32,32), (24,40)])
def test_vjepa2_encoder_equals_transformers(size):
    from transformers import VJEPA2Config, VJEPA2Model
    side = 32
    cfg = VJEPA2Config(patch_size=8, crop_size=side, frames_per_clip=4, tubelet_size=2, hidden_size=96,
        num_attention_heads=4, num_hidden_layers=2,
        mlp_ratio=4, pred_hidden_size=48, pred_num_attention_heads=4, pred_num_hidden_layers=1, pred_num_mask_tokens=1)
    theirs = stir(VJEPA2Model(cfg).encoder).eval()
    ours = ViT(replace(tiny, dim=96, depth=2, qkv_bias='fused'), pos=Rope3D(24, legacy_tiled=True)).eval()
    three = lambda s: tuple('layer.{i}.attention.'+f'{o}.{s}' for o in ('query','key','value'))
    names = KeyMap([('patch_embed.proj.{p}', 'embeddings.patch_embeddings.proj.{p}'),
        ('blocks.{i}.attn.qkv.weight', three('weight')),
        ('blocks.{i}.attn.qkv.bias', three('bias')), ('blocks.{i}.attn.proj.{p}', 'layer.{i}.attention.proj.{p}'),
        ('blocks.{i}.{rest}', 'layer.{i}.{rest}'), ('norm.{p}', 'layernorm.{p}')])
    load_strict(ours, theirs.state_dict(), names)
    clip = rand(2, 3, 4, *size)
    with torch.no_grad(): a,b = ours(clip),theirs(clip.transpose(1, 2)).last_hidden_state
    if size==(side,side): torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)
    else: assert a.shape==b.shape # transformers takes rows and columns from crop_size, so only square sizes can agree

# attention

def test_cosine_attention_is_its_formula():
    att,tok = stir(CosineAttention(48, 4)),rand(2, 7, 48)
    with torch.no_grad(): att.scale.fill_(9.) # above the limit
    q,k,v = F.linear(tok, att.qkv.weight, torch.cat((att.q_bias, 0*att.q_bias, att.v_bias))).view(2,7,3,4,
        12).permute(2,0,3,1,4)
    w = (F.normalize(q, dim=-1)@F.normalize(k, dim=-1).mT*100).softmax(-1)
    torch.testing.assert_close(att(tok), att.proj((w@v).transpose(1,2).reshape(2,7,48)), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(att.weights(tok), w, atol=1e-4, rtol=1e-3)

def test_mask_and_last():
    att,tok,g = stir(Attention(48, 4)),rand(2, 8, 48),Grid(2,2,2)
    causal = torch.ones(8, 8, dtype=torch.bool).tril()
    changed = tok.clone()
    changed[:,5:] += 1
    assert torch.equal(att(tok, mask=causal)[:,:5], att(changed, mask=causal)[:,:5])
    rope = Rope3D(12)(g)
    for last in (1, 3, 8): torch.testing.assert_close(att(tok, rope, last=last), att(tok, rope)[:,-last:])

def test_key_bias_would_do_nothing():
    att,tok = stir(Attention(48, 4, 'fused')),rand(1, 6, 48)
    a = att(tok)
    with torch.no_grad(): att.qkv.bias[48:96] += rand(48)
    torch.testing.assert_close(att(tok), a, atol=1e-5, rtol=1e-5)

def test_attention_gradients():
    att = stir(Attention(12, 2)).double()
    assert torch.autograd.gradcheck(att, rand(1, 4, 12).double().requires_grad_())

# the encoder

def test_names_are_the_official_ones():
    block = ['norm1.weight','norm1.bias','attn.q_bias','attn.v_bias','attn.qkv.weight','attn.proj.weight',
        'attn.proj.bias','norm2.weight','norm2.bias',
        'mlp.fc1.weight','mlp.fc1.bias','mlp.fc2.weight','mlp.fc2.bias']
    want = {f'blocks.{i}.{o}' for i in range(3) for o in block} | {'patch_embed.proj.weight','patch_embed.proj.bias',
        'norm.weight','norm.bias'}
    state = ViT(tiny).state_dict()
    assert set(state)==want and state['patch_embed.proj.weight'].shape==(48,3,2,8,8)
    assert {'gamma_1','gamma_2'} <= {k.split('.')[-1] for k in ViT(replace(tiny, layer_scale=.1)).state_dict()}

@pytest.mark.parametrize('pos', [flat_pos, sincos_3d, Rope3D(12), None])
def test_hidden_pixels_cannot_matter(pos):
    vit,clip = ViT(tiny, pos=pos),rand(2, 3, 4, 16, 24)
    mask = rand(2, 12).argsort(1).argsort(1) < 9
    keep,_ = split_mask(mask)
    noise = mask.view(2,1,2,2,3).repeat_interleave(2, 2).repeat_interleave(8, 3).repeat_interleave(8, 4)
    assert torch.equal(vit(clip, keep), vit(clip+9*noise, keep))

def test_order_of_kept_tokens_only_permutes():
    vit,clip,keep = ViT(tiny),rand(1, 3, 4, 16, 16),torch.tensor([[1,4,6]])
    torch.testing.assert_close(vit(clip, keep.flip(1)), vit(clip, keep).flip(1))

def test_checkpointing_with_everything_on():
    cfg,clip = replace(tiny, drop_path=.5, layer_scale=.3),rand(4, 3, 4, 16, 16)
    a,b = ViT(cfg, pos=Rope3D(12)),ViT(cfg, pos=Rope3D(12), ckpt=True)
    b.load_state_dict(a.state_dict())
    grads = []
    for m in (a,b):
        for gen in (torch.Generator().manual_seed(3), None):
            torch.manual_seed(5)
            m.zero_grad()
            m(clip, gen=gen).square().sum().backward()
            grads.append([p.grad.clone() for p in m.parameters()])
    for i in (0,1): assert all(torch.equal(x, y) for x,y in zip(grads[i], grads[i+2]))
    assert not all(torch.equal(x, y) for x,y in zip(grads[0], grads[1]))

def test_drop_path_only_in_training():
    vit,clip = ViT(replace(tiny, drop_path=.9)),rand(2, 3, 4, 16, 16)
    vit.eval()
    assert torch.equal(vit(clip), vit(clip))
    vit.train()
    assert not torch.equal(vit(clip), vit(clip))
    draw = lambda: draw_paths(5, .5, torch.Generator().manual_seed(1))
    assert torch.equal(draw(), draw())

def test_copies_and_training_after_inference_mode():
    vit,clip = copy.deepcopy(ViT(tiny)),rand(1, 3, 4, 16, 16)
    flat_pos.cache_clear()
    with torch.inference_mode(): vit(clip)
    vit(clip).sum().backward()
    assert all(p.grad is not None for p in vit.parameters())

@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_device_comes_from_the_data():
    vit,clip,keep = ViT(tiny),rand(2, 3, 4, 16, 16),torch.tensor([[0,3],[1,2]])
    want = vit(clip, keep)
    torch.testing.assert_close(vit.cuda()(clip.cuda(), keep.cuda()).cpu(), want, atol=1e-4, rtol=1e-4)

@pytest.mark.parametrize('pos', [flat_pos, Rope3D(12)])
def test_bfloat16_stays_close_and_in_type(pos):
    vit,clip,seen = ViT(tiny, pos=pos),rand(2, 3, 4, 16, 16),[]
    for b in vit.blocks: b.register_forward_hook(lambda m, i, o: seen.append(o.dtype))
    full = vit(clip)
    seen.clear()
    with torch.autocast('cpu', torch.bfloat16): half = vit(clip)
    assert set(seen)=={torch.bfloat16}
    assert (half-full).norm()/full.norm() < .03

@settings(max_examples=15, deadline=None)
@given(n=st.integers(1, 60), heads=st.sampled_from([1,2,4]))
def test_work_by_formula(n, heads):
    cfg = replace(tiny, heads=heads)
    with FlopCounterMode(display=False) as count, torch.no_grad(): Block(cfg)(torch.zeros(1, n, 48))
    assert count.get_total_flops()==block_flops(cfg, n)

# first values and groups

def test_first_values():
    vit = init_vit(ViT(vit_s), 'xavier', torch.Generator().manual_seed(0))
    w = vit.blocks[3].attn.qkv.weight
    assert abs(w.abs().max()-(6/(384+1152))**.5) < 1e-4 and vit.blocks[0].mlp.fc1.bias.abs().max()==0
    vit = init_vit(ViT(tiny), 'trunc', torch.Generator().manual_seed(0))
    assert abs(vit.blocks[0].attn.qkv.weight.std()-.02) < .001

@settings(max_examples=20, deadline=None)
@given(depth=st.integers(1, 6), decay=st.floats(.3, 1), prefix=st.sampled_from(['encoder','backbone.vit']))
def test_groups_hold_everything_once(depth, decay, prefix):
    net = nn.Module()
    inner = net
    for part in prefix.split('.'):
        setattr(inner, part, ViT(replace(tiny, depth=depth, layer_scale=.1)) if part==prefix.split('.')[-1]
            else nn.Module())
        inner = getattr(inner, part)
    net.head,net.fc_norm = nn.Linear(48, 3),nn.LayerNorm(48)
    groups = layer_decay_groups(net, 1e-3, decay, .05)
    ids = [id(p) for g in groups for p in g['params']]
    assert sorted(ids)==sorted(id(p) for p in net.parameters()) and len(set(ids))==len(ids)
    for g in groups:
        assert g['lr']==pytest.approx(1e-3*decay**(depth+1-g['layer']))
        assert all((p.ndim<2)==(g['weight_decay']==0) for p in g['params'])
    assert next(g['layer'] for g in groups if 'head.weight' in g['names'])==depth+1
    torch.optim.AdamW(groups)

def test_frozen_parameters_are_in_no_group():
    net = ViT(tiny, pos=StoredPos(flat_pos(Grid(2,2,2), 48), Grid(2,2,2), learned=False))
    net.patch_embed.requires_grad_(False)
    names = [n for g in layer_decay_groups(net, 1.) for n in g['names']]
    assert not any(n.startswith(('patch_embed','pos')) for n in names)

# time, then space

def test_factorised_block_on_one_slot_is_the_joint_block():
    fact,joint,tok = FactorisedBlock(tiny),Block(tiny),rand(2, 12, 48)
    joint.load_state_dict({k:v for k,v in fact.state_dict().items() if '_t.' not in k})
    torch.testing.assert_close(fact(tok, Grid(1,3,4)), joint(tok))

def test_factorised_block_equals_a_loop():
    fact,tok,g = stir(FactorisedBlock(tiny)),rand(2, 24, 48),Grid(2,3,4)
    x = tok.view(2, 2, 12, 48).clone()
    x = x + torch.stack([fact.attn_t(fact.norm_t(x[:,:,s])) for s in range(12)], 2)
    want = torch.stack([Block.forward(fact, x[:,t]) for t in range(2)], 1).flatten(1, 2)
    torch.testing.assert_close(fact(tok, g), want, atol=1e-4, rtol=1e-4)

def test_factorised_block_skips_whole_samples():
    fact,tok = stir(FactorisedBlock(tiny, .5)),rand(3, 24, 48)
    paths = torch.tensor([0,0,1.]).view(1,3,1,1).expand(2,3,1,1)
    out = fact(tok, Grid(2,3,4), paths)
    assert torch.equal(out[:2], tok[:2]) and not torch.equal(out[2], tok[2])

def test_blocks_answer_for_the_last_tokens():
    blocks,tok = stir(nn.ModuleList(Block(replace(tiny, layer_scale=.1), .5) for _ in range(2))).train(),rand(2, 9, 48)
    a,b = (run_blocks(blocks, tok, gen=torch.Generator().manual_seed(1), last=n) for n in (4,0))
    torch.testing.assert_close(a, b[:,-4:])

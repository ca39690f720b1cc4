"V-JEPA against an independent plain re-implementation, its official layout, schedules and monitors."
import math
import warnings
from dataclasses import replace
import pytest
import torch
import torch.nn.functional as F
from fastai.data.core import DataLoaders
from torch.utils.data import DataLoader, TensorDataset
from vidlit.nn.tokens import Grid, Rope3D, sincos_3d
from vidlit.nn.vit import ViTConfig, count_params
from vidlit.nn.weights import WeightsError
from vidlit.pretrain.block_masking import BlockSpec, document_blocks, multiblock, multiblock3d, predictive_blocks
from vidlit.pretrain.vjepa import (
    VJEPA,
    NoStop,
    OwnTarget,
    Predictor,
    VJEPAConfig,
    join_blocks,
    smooth_l1,
    vjepa_h,
    vjepa_l,
    vjepa_lr,
    vjepa_momentum,
    vjepa_pretrainer,
    vjepa_wd,
)
from vidlit.pretrain.vjepa_weights import jepa_sizes, learned_table, unpack_jepa
from vidlit.train.callbacks import fit


def gen(seed=0): return torch.Generator().manual_seed(seed)

tiny = VJEPAConfig(ViTConfig(48, 3, 4, patch=(2,8,8), qkv_bias='fused'), ViTConfig(36, 2, 3, qkv_bias='fused'),
    Grid(4,4,6))

@pytest.fixture(scope='module')
def model():
    m = VJEPA(tiny, gen=gen(1))
    g = gen(2)
    with torch.no_grad():
        for p in [*m.encoder.parameters(), *m.predictor.parameters(), *m.target_encoder.parameters()]:
            # no zero is left that could hide a slip
            if p.requires_grad or p.ndim<3: p.add_(torch.randn(p.shape, generator=g)*.1)
    return m.eval()

@pytest.fixture(scope='module')
def clip(): return torch.randn(3, 3, 8, 32, 48, generator=gen(3))


# A second V-JEPA: functions on the official state dict, nothing of the library's networks

def norm(x, w, name): return F.layer_norm(x, x.shape[-1:], w[f'{name}.weight'], w[f'{name}.bias'], 1e-6)
def lin(x, w, name): return x@w[f'{name}.weight'].T + w[f'{name}.bias']

def block(x, w, name, heads):
    b,n,d = x.shape
    q,k,v = lin(norm(x, w, f'{name}.norm1'), w, f'{name}.attn.qkv').reshape(b, n, 3, heads, d//heads).permute(2,0,3,1,4)
    a = (q@k.transpose(-2, -1)/math.sqrt(d//heads)).softmax(-1)
    x = x + lin((a@v).transpose(1, 2).reshape(b, n, d), w, f'{name}.attn.proj')
    return x + lin(F.gelu(lin(norm(x, w, f'{name}.norm2'), w, f'{name}.mlp.fc1')), w, f'{name}.mlp.fc2')

def rows(x, idx): return torch.stack([a[i] for a,i in zip(x, idx)])

def plain_encode(w, clip, idx, heads):
    x = F.conv3d(clip, w['patch_embed.proj.weight'], w['patch_embed.proj.bias'],
        stride=w['patch_embed.proj.weight'].shape[2:])
    x = x.flatten(2).transpose(1, 2) + w['pos_embed']
    if idx is not None: x = rows(x, idx)
    for i in range(tiny.enc.depth): x = block(x, w, f'blocks.{i}', heads)
    return norm(x, w, 'norm')

def plain_predict(w, z, keep, targ, which, heads):
    pos = w['predictor_pos_embed'].expand(len(z), -1, -1)
    x = torch.cat([lin(z, w, 'predictor_embed')+rows(pos, keep), w[f'mask_tokens.{which}']+rows(pos, targ)], 1)
    for i in range(tiny.pred.depth): x = block(x, w, f'predictor_blocks.{i}', heads)
    return lin(norm(x, w, 'predictor_norm')[:, keep.shape[1]:], w, 'predictor_proj')

def plain(state, clip, masks):
    "Predictions, targets and loss as in the paper, from an official checkpoint"
    w = {k: {n.removeprefix('module.backbone.'): v for n,v in s.items()} for k,s in state.items()}
    h = plain_encode(w['target_encoder'], clip, None, tiny.enc.heads)
    h = (h-h.mean(-1, keepdim=True))/(h.var(-1, keepdim=True, unbiased=False)+1e-5).sqrt()
    ctx = [plain_encode(w['encoder'], clip, o.keep, tiny.enc.heads) for o in masks]
    preds = [plain_predict(w['predictor'], z, o.keep, o.targ, i, tiny.pred.heads)
        for i,(z,o) in enumerate(zip(ctx, masks))]
    targs = [rows(h, o.targ) for o in masks]
    return preds, targs, sum((z-y).abs().mean() for z,y in zip(preds, targs))/len(masks)


@pytest.mark.parametrize('how', ['faithful', 'unbiased'])
@pytest.mark.parametrize('together', [False, True])
def test_parity(model, clip, how, together):
    masks = multiblock3d(3, tiny.grid, gen(5), how=how)
    model.together = together
    with torch.no_grad(): out = model(clip, masks)
    model.together = False
    preds,targs,loss = plain(model.to_official(), clip, masks)
    for a,b in zip([*out.pred, *out.targ], [*preds, *targs]): assert (a-b).abs().max()<2e-5
    assert abs(out.loss-loss)<1e-6

def test_padded_rows_equal_single_samples(model, clip):
    "A padded batch gives every sample what it gets alone"
    masks = multiblock3d(3, tiny.grid, gen(6), how='padded')
    assert masks[0].keep_valid is not None
    with torch.no_grad(): out = model(clip, masks)
    for z,o,which in zip(out.pred, masks, (0,1)):
        for i in range(3):
            kv,tv = (True if v is None else v[i] for v in (o.keep_valid, o.targ_valid))
            keep,targ = (idx[i][v].view(1, -1) for idx,v in ((o.keep,kv),(o.targ,tv)))
            with torch.no_grad():
                alone = model.predictor(model.encoder(clip[i:i+1], keep), tiny.grid, keep, targ, which)
            assert (z[i][tv].view_as(alone)-alone).abs().max()<2e-5

@pytest.mark.parametrize('how', ['faithful', 'unbiased', 'padded'])
def test_one_forward_has_the_gradients_of_two(model, clip, how):
    masks,grads = multiblock3d(3, tiny.grid, gen(7), how=how),[]
    for together in (False, True):
        model.zero_grad()
        model.together = together
        model(clip, masks).loss.backward()
        grads.append({n: p.grad.clone() for n,p in model.named_parameters() if p.grad is not None})
    model.together = False
    model.zero_grad()
    assert grads[0].keys()==grads[1].keys() and all(n.startswith(('encoder','predictor')) for n in grads[0])
    for n in grads[0]: assert (grads[0][n]-grads[1][n]).abs().max()<1e-5*max(1, grads[0][n].abs().max())

def test_three_masks_in_one_forward(model, clip):
    specs = BlockSpec(), BlockSpec(2,.7), BlockSpec(1,.3)
    masks = multiblock3d(3, tiny.grid, gen(8), specs)
    joint = join_blocks(masks)
    assert len(joint.keep)==9 and joint.keep_valid is not None
    with torch.no_grad(): apart = model(clip, masks).pred
    model.together = True
    with torch.no_grad(): once = model(clip, masks).pred
    model.together = False
    for a,b in zip(apart, once): assert (a-b).abs().max()<2e-5

def test_rotary_predictor_padded():
    pred = Predictor(48, tiny.pred, Rope3D(12)).eval()
    g = gen(9)
    for p in pred.parameters(): p.data.add_(torch.randn(p.shape, generator=g)*.1)
    order = torch.rand(2, 96, generator=g).argsort(1)
    keep,targ,tok = order[:, :10],order[:, 10:30],torch.randn(2, 10, 48, generator=g)
    ok = torch.tensor([[True]*10, [True]*7+[False]*3])
    out = pred(tok, tiny.grid, keep, targ, torch.tensor([0,1]), keep_valid=ok)
    one = pred(tok[1:,:7], tiny.grid, keep[1:,:7], targ[1:], 1)
    assert (out[1:]-one).abs().max()<2e-5

def test_encoder_is_blind_to_the_targets(model, clip):
    o = multiblock(3, tiny.grid, gen(10))
    from vidlit.nn.tokens import patchify, unpatchify
    spoil = patchify(torch.ones_like(clip), (2,8,8))*(~o.mask(96))[..., None]
    with torch.no_grad(): a,b = model(clip, o),model(clip+unpatchify(spoil, tiny.grid, (2,8,8)), o)
    assert (a.pred[0]-b.pred[0]).abs().max()<1e-5 and (a.targ[0]-b.targ[0]).abs().mean()>1e-3

# Layout

def test_layout_both_ways(model, clip, tmp_path):
    masks = multiblock3d(3, tiny.grid, gen(11))
    state = {**model.to_official(), 'opt': {}, 'epoch': 7}
    torch.save(state, tmp_path/'jepa.pth.tar')
    for source in (state, tmp_path/'jepa.pth.tar'):
        back = VJEPA.from_official(source, heads=4, pred_heads=3, grid=tiny.grid)
        assert back.cfg.enc==tiny.enc and back.cfg.pred.dim==36
        with torch.no_grad(): assert torch.equal(back(clip, masks).loss, model(clip, masks).loss)
        for k,v in back.to_official().items():
            assert v.keys()==state[k].keys() and all(torch.equal(v[n], state[k][n]) for n in v)
    assert all(k.startswith('module.backbone.') for s in model.to_official().values() for k in s)

@pytest.mark.parametrize('part,drop', [('encoder','blocks.1.mlp.fc1.bias'), ('predictor','mask_tokens.0'),
    ('predictor','predictor_pos_embed'), ('target_encoder','pos_embed')])
def test_a_missing_key_is_named(model, part, drop):
    state = model.to_official()
    state[part].pop(f'module.backbone.{drop}')
    with pytest.raises((WeightsError,ValueError)): VJEPA.from_official(state, heads=4, pred_heads=3, grid=tiny.grid)

def test_a_foreign_key_is_named(model):
    state = model.to_official()
    state['encoder']['module.backbone.cls_token'] = torch.zeros(1)
    with pytest.raises(WeightsError, match='cls_token'):
        VJEPA.from_official(state, heads=4, pred_heads=3, grid=tiny.grid)
    with pytest.raises(ValueError, match='96 positions'): jepa_sizes(unpack_jepa(model.to_official()), 4, 3)
    with pytest.raises(ValueError, match='is not of grid'):
        jepa_sizes(unpack_jepa(model.to_official()), 4, 3, Grid(8,14,14))

def test_published_counts_and_names():
    with torch.device('meta'): big = {k: VJEPA(c) for k,c in dict(L=vjepa_l, H=vjepa_h).items()}
    count = {k: [round(count_params(o, trainable=True)/1e6, 1) for o in (m.encoder, m.predictor)]
        for k,m in big.items()}
    assert count==dict(L=[303.9,22.1], H=[631.6,22.3])
    shapes = {k: tuple(v.shape) for k,v in big['L'].predictor.state_dict().items()}
    assert shapes['mask_tokens.1']==(1,1,384) and shapes['predictor_pos_embed']==(1,1568,384)
    assert shapes['predictor_blocks.11.attn.qkv.weight']==(1152,384)
    assert tuple(big['H'].encoder.pos.table.shape)==(1,1568,1280)

def test_start():
    "Truncated normals of deviation .02, zero biases and mask tokens, fixed sines; the target encoder starts equal"
    m = VJEPA(replace(tiny, enc=replace(tiny.enc, dim=192, depth=4)), gen=gen(0))
    for i in (0,3): assert abs(m.encoder.blocks[i].mlp.fc2.weight.std()-.02)<.001
    assert all((p==0).all() for n,p in m.named_parameters() if n.endswith('bias') or 'mask_tokens' in n)
    assert torch.equal(m.encoder.pos.table[0], sincos_3d(tiny.grid, 192, True))
    assert not m.encoder.pos.table.requires_grad
    assert all(torch.equal(a, b) for a,b in zip(m.encoder.parameters(), m.target_encoder.parameters()))
    assert torch.equal(VJEPA(tiny, gen=gen(4)).encoder.blocks[0].attn.qkv.weight,
        VJEPA(tiny, gen=gen(4)).encoder.blocks[0].attn.qkv.weight)

# Recipe

def official(step, total, ipe_scale=1.25):
    "Schedules as the official loop computes them: the counter is raised before it is used, the momentum's is not"
    warm,end = int(total*40/300),int(ipe_scale*total)
    s = step+1
    if s<warm: lr = 2e-4+s/warm*(6.25e-4-2e-4)
    else: lr = max(1e-6, 1e-6+(6.25e-4-1e-6)*.5*(1+math.cos(math.pi*(s-warm)/(end-warm))))
    wd = .4+(.04-.4)*.5*(1+math.cos(math.pi*s/end))
    return lr, wd, .998+step*(1-.998)/(total*ipe_scale)

@pytest.mark.parametrize('total', [300, 90_000])
def test_schedules_are_the_official_ones(total):
    for step in range(0, total, total//60):
        for f,want in zip((vjepa_lr, vjepa_wd, vjepa_momentum), official(step, total)):
            assert abs(f(step, total)-want)<1e-9

def loaders(n=32, bs=8):
    videos = torch.randn(n, 3, 4, 16, 16, generator=gen(0))
    return DataLoaders(DataLoader(TensorDataset(videos), bs), DataLoader(TensorDataset(videos), bs))

toy = VJEPAConfig(ViTConfig(32, 2, 2, patch=(2,4,4), qkv_bias='fused'), ViTConfig(24, 1, 2, qkv_bias='fused'),
    Grid(2,4,4))

def test_the_copy_follows_eq_2():
    m = VJEPA(toy, gen=gen(0))
    learn = vjepa_pretrainer(loaders(), m, momentum=.75, lr=1e-2)
    start = m.encoder.blocks[0].mlp.fc1.weight.detach().clone()
    fit(learn, steps=1)
    assert torch.allclose(m.target_encoder.blocks[0].mlp.fc1.weight, .75*start+.25*m.encoder.blocks[0].mlp.fc1.weight,
        atol=1e-7)
    assert torch.equal(m.target_encoder.pos.table, m.encoder.pos.table) and not m.target_encoder.training

def test_runs_are_reproducible_and_monitored():
    def run():
        learn = vjepa_pretrainer(loaders(), VJEPA(toy, gen=gen(1)), lr=1e-3, gen=5, how='unbiased', health=2)
        fit(learn, steps=6)
        return learn
    a,b = run(),run()
    assert a.history.curve()[1]==b.history.curve()[1] and len(a.health.rows)==3
    assert {'feature_std','effective_rank','target_var','grad_norm','ema_lag'} <= set(a.health.rows[-1])

@pytest.mark.parametrize('masks,kw', [(document_blocks, {}), (predictive_blocks, {}),
    (multiblock3d, dict(how='padded'))])
@pytest.mark.parametrize('cls', [VJEPA, OwnTarget])
def test_variants_train(cls, masks, kw):
    learn = vjepa_pretrainer(loaders(16), cls(toy, pos=learned_table, loss=smooth_l1), masks=masks,
        momentum=None if cls is OwnTarget else .99, **kw)
    fit(learn, epochs=1)
    assert math.isfinite(learn.history.rows[-1]['loss']) and len(learn.history.valid)==1
    assert learn.model.encoder.pos.table.abs().max()>0 # the document's positions learn

def test_collapse_is_flagged():
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        fit(vjepa_pretrainer(loaders(64, 16), NoStop(toy, gen=gen(2)), lr=3e-3, momentum=None, health=4,
            how='unbiased'), steps=80)
    assert sum('collapse' in str(o.message) for o in said)==1

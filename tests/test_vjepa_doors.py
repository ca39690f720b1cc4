"""The doors of the JEPA family: V-JEPA 2-AC and 2.1 at their true names and shapes, published probes with both eps,
cameras through loss, rollout and planner."""
import math
import pytest
import torch
import torch.nn.functional as F
from vidlit.nn.tokens import Grid
from vidlit.nn.vit import ViT, ViTConfig
from vidlit.nn.weights import WeightsError
from vidlit.pretrain.block_masking import Blocks, multiblock3d
from vidlit.pretrain.planner import Obs, Planner, arm_planner, droid
from vidlit.pretrain.vjepa2 import VJEPA2, VJEPA2Config, rope_encoder
from vidlit.pretrain.vjepa2_weights import AttentiveClassifier, Probed, VJEPA2Classifier
from vidlit.pretrain.vjepa21 import VJEPA21, StretchedRope, VJEPA21Config, mask_distance
from vidlit.pretrain.world_model import ACConfig, ACPredictor, WorldModel

WRAPPERS = '', 'module.', 'module.backbone.', '_orig_mod.module.', 'backbone.', 'model.'
V = ViTConfig(dim=48, depth=4, heads=2, patch=(2, 8, 8), qkv_bias='fused')


def gen(seed=0): return torch.Generator().manual_seed(seed)


def meta(*shape): return torch.empty(*shape, device='meta')


def linear(name, out, n): return {f'{name}.weight': meta(out, n), f'{name}.bias': meta(out)}


def norm(name, d): return {f'{name}.weight': meta(d), f'{name}.bias': meta(d)}


def blocks(name, depth, d, hidden):
    out = {}
    for i in range(depth):
        b = f'{name}.{i}.'
        out |= norm(b+'norm1', d) | linear(b+'attn.qkv', 3*d, d) | linear(b+'attn.proj', d, d) | norm(b+'norm2', d)
        out |= linear(b+'mlp.fc1', hidden, d) | linear(b+'mlp.fc2', d, hidden)
    return out


def patch(name, d, t): return {f'{name}.proj.weight': meta(d, 3, t, 16, 16), f'{name}.proj.bias': meta(d)}


def under(p, state): return {p+k: v for k, v in state.items()}


def same(a, b):
    x, y = a.state_dict(), b.state_dict()
    assert x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)


def ac_file(p='module.'):
    "The published file's names and shapes, written down from the authors' classes"
    enc = patch('patch_embed', 1408, 2) | blocks('blocks', 40, 1408, 6144) | norm('norm', 1408)
    pred = linear('predictor_embed', 1024, 1408) | linear('action_encoder', 1024, 7) | linear('state_encoder', 1024, 7)
    pred |= linear('extrinsics_encoder', 1024, 6) | blocks('predictor_blocks', 24, 1024, 4096)
    pred |= norm('predictor_norm', 1024) | linear('predictor_proj', 1408, 1024)
    return {'encoder': under(p, enc), 'predictor': under(p, pred), 'epoch': 315, 'opt': {}}


@pytest.mark.parametrize('p', WRAPPERS)
def test_published_ac_at_true_shapes(p):
    with torch.device('meta'): world = WorldModel.from_official(ac_file(p))
    c = world.predictor.cfg
    assert (c.dim, c.hw, c.acts, c.blocks.heads, c.blocks.depth, c.extrinsics) == (1408, (16, 16), 7, 16, 24, False)
    assert world.encoder.cfg.heads == 22 and c.legacy_tiled and world.encoder.pos.legacy_tiled
    assert sum(q.numel() for q in world.predictor.parameters()) == pytest.approx(305.2e6, rel=1e-3)
    broken = ac_file(p)
    broken['predictor'].pop(p+'state_encoder.bias')
    with torch.device('meta'), pytest.raises(WeightsError, match='state_encoder.bias'):
        WorldModel.from_official(broken)
    broken = ac_file(p)
    broken['encoder'][p+'pos_embed'] = meta(1, 8192, 1408) # unused by rotary models: dropped
    broken['encoder'][p+'surprise'] = meta(1)
    with torch.device('meta'), pytest.raises(WeightsError, match='surprise'): WorldModel.from_official(broken)


SIZES21 = dict(b=(768, 12, 3072, 12), l=(1024, 16, 4096, 24), g=(1408, 22, 6144, 40), G=(1664, 26, 8192, 48))


def file21(name, p='module.backbone.'):
    "The same for V-JEPA 2.1: students of one level, teachers of four"
    d, _, hidden, depth = SIZES21[name]
    student, out = name in 'bl', 1664 if name in 'bl' else d
    n = 1 if student else 4
    enc = patch('patch_embed', d, 2) | patch('patch_embed_img', d, 1) | blocks('blocks', depth, d, hidden)
    for i in range(4): enc |= norm(f'norms_block.{i}', d)
    mods = lambda w: {'img_mod_embed': meta(1, 1, w), 'video_mod_embed': meta(1, 1, w)}
    pred = linear('predictor_embed', 384, d) if student else linear('predictor_embed.0', d, 4*d) | linear(
        'predictor_embed.2', 384, d)
    pred |= {f'mask_tokens.{i}': meta(1, 1, 384) for i in range(8)} | norm('predictor_norm', 384) | mods(384)
    pred |= blocks('predictor_blocks', 12 if student else 24, 384, 1536)
    pred |= linear('predictor_proj', n*out, 384) | linear('predictor_proj_context', n*out, 384)
    kinds = ('ema_encoder',) if student else ('encoder', 'target_encoder')
    return {**{k: under(p, enc | mods(d)) for k in kinds}, 'predictor': under(p, pred), 'epoch': 1}


@pytest.mark.parametrize('name', SIZES21)
def test_published_21_at_true_shapes(name):
    d, heads, _, depth = SIZES21[name]
    with torch.device('meta'): model = VJEPA21.from_official(file21(name))
    c = model.cfg
    assert (c.enc.dim, c.enc.heads, c.enc.depth, c.pred.heads, c.mask_tokens) == (d, heads, depth, 12, 8)
    assert (c.supervised, c.out) == ((1, 1664) if name in 'bl' else (4, 0)) and not c.legacy_tiled and c.side == 16
    for part in ('encoder', 'target_encoder', 'predictor'):
        own = {k: tuple(v.shape) for k, v in getattr(model, part).state_dict().items()}
        file = file21(name, '')
        theirs = {k: tuple(v.shape) for k, v in file.get(part, file.get('ema_encoder')).items()}
        assert own == theirs
    broken = file21(name)
    broken['predictor'].pop('module.backbone.predictor_proj_context.bias')
    with torch.device('meta'), pytest.raises(WeightsError, match='predictor_proj_context.bias'):
        VJEPA21.from_official(broken)


@pytest.mark.parametrize('p', WRAPPERS)
def test_21_under_wrappings_and_as_a_folder(p, tmp_path):
    model = VJEPA21(VJEPA21Config(V, V, 2), gen=gen())
    file = {k: under(p, {n.removeprefix('module.backbone.'): v for n, v in s.items()})
        for k, s in model.to_official().items()}
    torch.save({**file, 'epoch': 3}, tmp_path/'a.pt')
    back = VJEPA21.from_official(tmp_path/'a.pt', heads=2, pred_heads=2)
    same(back, model)
    same(VJEPA21.from_pretrained(back.save_pretrained(tmp_path/'own'), gen=gen(1)), model)
    with pytest.raises(WeightsError, match='VJEPA21.from_official'): VJEPA2.from_official(file)
    with pytest.raises(WeightsError, match='no V-JEPA 2.1 folder'):
        two = VJEPA2(VJEPA2Config(V, V, legacy_tiled=True))
        VJEPA21.from_pretrained(two.save_pretrained(tmp_path/'two', (4, 16, 16)))
    with pytest.raises(WeightsError, match='not a V-JEPA 2.1 checkpoint'):
        VJEPA21.from_official(VJEPA2(VJEPA2Config(V, V)).to_official())


@pytest.mark.parametrize('p', WRAPPERS)
def test_ac_under_wrappings_and_as_a_folder(p, tmp_path):
    cfg = ACConfig(48, (2, 2), 7, ViTConfig(dim=48, depth=2, heads=2, qkv_bias='fused'), legacy_tiled=True)
    world = WorldModel(rope_encoder(VJEPA2Config(V, legacy_tiled=True)), ACPredictor(cfg, gen())).eval()
    file = {k: under(p, {n.removeprefix('module.'): v for n, v in s.items()}) for k, s in world.to_official().items()}
    torch.save({**file, 'epoch': 3}, tmp_path/'a.pt')
    back = WorldModel.from_official(tmp_path/'a.pt', size=(16, 16), heads=2, pred_heads=2)
    same(back, world)
    again = WorldModel.from_pretrained(back.save_pretrained(tmp_path/'own'))
    same(again, world)
    frames, a, s = torch.rand(1, 3, 3, 16, 16, generator=gen()), torch.rand(1, 2, 7), torch.rand(1, 3, 7)
    with torch.no_grad(): assert (again(frames, a, s).loss-world(frames, a, s).loss).abs() < 1e-6
    with pytest.raises(WeightsError, match='WorldModel.from_official'): VJEPA2.from_official(file, heads=2)
    with pytest.raises(WeightsError, match='no V-JEPA 2-AC'):
        WorldModel.from_official(VJEPA2(VJEPA2Config(V, V)).to_official())


# Probes

def by_hand(s, tok, heads, eps):
    "The authors' pooler from its state, nothing of ours"
    def ln(name, x): return F.layer_norm(x, x.shape[-1:], s[name+'.weight'], s[name+'.bias'], eps)
    def lin(name, x): return F.linear(x, s[name+'.weight'], s[name+'.bias'])
    def split(x): return x.unflatten(-1, (heads, -1)).transpose(1, 2)
    def attend(q, k, v):
        w = (split(q)@split(k).mT/math.sqrt(q.shape[-1]//heads)).softmax(-1)
        return (w@split(v)).transpose(1, 2).flatten(2)
    def mlp(name, x): return lin(name+'.fc2', F.gelu(lin(name+'.fc1', x)))
    i = 0
    while f'pooler.blocks.{i}.norm1.weight' in s:
        b = f'pooler.blocks.{i}.'
        tok = tok+lin(b+'attn.proj', attend(*lin(b+'attn.qkv', ln(b+'norm1', tok)).chunk(3, -1)))
        tok, i = tok+mlp(b+'mlp', ln(b+'norm2', tok)), i+1
    c, q = 'pooler.cross_attention_block.', s['pooler.query_tokens'].expand(len(tok), -1, -1)
    q = q+attend(lin(c+'xattn.q', q), *lin(c+'xattn.kv', ln(c+'norm1', tok)).chunk(2, -1))
    return lin('linear', (q+mlp(c+'mlp', ln(c+'norm2', q)))[:, 0])


@pytest.mark.parametrize('eps', [1e-5, 1e-6, 1e-2])
@pytest.mark.parametrize('depth', [0, 3])
def test_published_probes(depth, eps, tmp_path):
    torch.manual_seed(0)
    s = {k: torch.randn(v.shape)*.2 for k, v in AttentiveClassifier(48, 5, depth, 4).state_dict().items()}
    file = under('module.', s)
    unused = 'module.pooler.cross_attention_block.xattn.proj.'
    if not depth: file |= {unused+k: torch.ones(1) for k in ('weight', 'bias')}
    torch.save({'classifiers': [file]} if depth else {'classifier': file, 'epoch': 20}, tmp_path/'probe.pt')
    probe, tok = AttentiveClassifier.from_official(tmp_path/'probe.pt', heads=4, eps=eps), torch.randn(3, 7, 48)
    with torch.no_grad(): assert torch.allclose(probe(tok), by_hand(s, tok, 4, eps), atol=2e-5)
    whole = Probed(ViT(V), probe)
    clips = torch.randn(2, 3, 3, 4, 16, 16)
    tokens = torch.cat([whole.encoder(clips[:, i]) for i in range(3)], 1)
    with torch.no_grad(): assert torch.allclose(whole(clips), probe(tokens), atol=1e-5)
    assert not whole.train().encoder.training


def test_eps_tells_the_two_copies_of_a_probe_apart():
    s = AttentiveClassifier(48, 5, 3, 4)
    tok = torch.randn(2, 7, 48)*1e-3
    a, b = (AttentiveClassifier.from_official(s.to_official(), heads=4, eps=e)(tok) for e in (1e-5, 1e-6))
    assert (a-b).abs().max() > 1e-4
    with pytest.raises(WeightsError, match='say which=0..1'):
        AttentiveClassifier.from_official({'classifiers': s.to_official()['classifiers']*2})
    with pytest.raises(WeightsError, match="no 'classifier'"): AttentiveClassifier.from_official({'encoder': {}})


def test_labels_of_a_vjepa2_classifier(tmp_path):
    m = VJEPA2Classifier(VJEPA2Config(V, V, legacy_tiled=True), 3, gen=gen())
    folder = m.save_pretrained(tmp_path, (4, 16, 16), labels=['a', 'b', 'c'])
    assert VJEPA2Classifier.from_pretrained(folder, revision='main').labels == ('a', 'b', 'c')
    from transformers import AutoModelForVideoClassification, AutoVideoProcessor
    hf = AutoModelForVideoClassification.from_pretrained(folder)
    assert hf.config.id2label == {0: 'a', 1: 'b', 2: 'c'} and hf.config.num_frames == 4
    assert AutoVideoProcessor.from_pretrained(folder).image_mean == pytest.approx([.485, .456, .406])


# V-JEPA 2.1 against few slow lines

def test_distances_and_loss_by_hand():
    cfg = VJEPA21Config(V, ViTConfig(dim=36, depth=2, heads=2, qkv_bias='fused'), 2)
    model, clip, g = VJEPA21(cfg, gen=gen()).eval(), torch.randn(1, 3, 4, 32, 32, generator=gen()), Grid(2, 4, 4)
    masks = multiblock3d(1, g, gen=gen(3))
    out = model(clip, masks)
    h = model.target_encoder.at_levels(clip)
    targ = torch.cat([(x-x.mean(-1, keepdim=True))/(x.var(-1, keepdim=True, correction=0)+1e-5).sqrt() for x in h], -1)
    hidden = visible = 0.
    for o in masks:
        pred, context, _ = model.answer(clip, o)
        at = lambda i: torch.tensor([int(i)//16, int(i)//4%4, int(i)%4]).float()
        d = torch.tensor([min(math.dist(at(i), at(j)) for j in o.targ[0]) for i in o.keep[0]])
        assert torch.allclose(mask_distance(o, g)[0], d, atol=1e-5)
        hidden += (pred-targ[:, o.targ[0]]).abs().mean()/len(masks)
        visible += ((context-targ[:, o.keep[0]]).abs().mean(-1)[0]/d.sqrt()).mean()/len(masks)
    assert torch.allclose(out.loss, hidden+.5*visible, atol=1e-5)


def test_padding_changes_nothing():
    "A clip's answers are the same when its lists are padded to be as long as its neighbour's"
    cfg = VJEPA21Config(V, ViTConfig(dim=36, depth=2, heads=2, qkv_bias='fused'), 2)
    model, clip = VJEPA21(cfg, gen=gen()).eval(), torch.randn(1, 3, 4, 32, 32, generator=gen())
    keep, targ = torch.tensor([[0, 1, 5, 9]]), torch.tensor([[2, 3, 20]])
    yes = lambda n, k: (torch.arange(n+k) < n)[None]
    pad = lambda x, k: torch.cat((x, x.new_zeros(1, k)), 1)
    with torch.no_grad():
        a = model(clip, Blocks(keep, targ))
        b = model(clip, Blocks(pad(keep, 2), pad(targ, 3), yes(4, 2), yes(3, 3)))
    assert torch.allclose(a.loss, b.loss, atol=1e-5) and torch.allclose(a.pred[0], b.pred[0][:, :3], atol=1e-4)


def test_positions_are_stretched_as_the_authors_do():
    d = 24
    cos, sin = StretchedRope(d, side=16)(Grid(2, 24, 20))
    om = 1/10000**(torch.arange(4)/4.)
    n = torch.arange(2*24*20)
    where = n//480, (n % 480)//20*15/23, n % 20*15/19
    ang = torch.cat([(p[:, None]*om).repeat_interleave(2, -1) for p in where], 1)
    assert torch.equal(StretchedRope(d, side=16)(Grid(2, 24, 20))[0], cos) # asked twice
    assert torch.allclose(cos[0, 0], ang.cos(), atol=1e-5) and torch.allclose(sin[0, 0], ang.sin(), atol=1e-5)


# A camera's pose, all the way

def test_extrinsics_through_loss_rollout_and_planner():
    cfg = ACConfig(48, (2, 2), 7, ViTConfig(dim=48, depth=2, heads=2, qkv_bias='fused'), extrinsics=True)
    world = WorldModel(ViT(V), ACPredictor(cfg, gen())).eval()
    f, s, a = torch.rand(2, 3, 4, 16, 16, generator=gen()), torch.rand(2, 4, 7), torch.rand(2, 3, 7)
    cam = torch.rand(2, 4, 6)
    with pytest.raises(ValueError, match='extrinsics are needed'): world(f, a, s)
    tok = world.encode(f)
    o = world(f, a, s, cam)
    forced = F.layer_norm(world.predictor(tok[:, :-1], a, s[:, :-1], cam[:, :-1]), (48,))
    second = F.layer_norm(world.predictor(torch.stack((tok[:, 0], forced[:, 0]), 1), a[:, :2], s[:, :2], cam[:, :2]),
        (48,))[:, 1]
    rolled = torch.stack((forced[:, 0], second), 1)
    want = (forced-tok[:, 1:]).abs().mean()+(rolled-tok[:, 1:3]).abs().mean()
    assert torch.allclose(o.loss, want, atol=1e-5)
    obs = Obs(f[:, :, :1], s[:, :1], extrinsics=cam[:, :1])
    for kw in ({}, dict(chunk=5)):
        plan = arm_planner(world, samples=12, seed=1, **kw).plan(obs, f[:, :, -1])
        assert plan.action.shape == (2, 7) and plan.action[:, 3:6].abs().max() == 0
    moved = arm_planner(world, samples=12, seed=1).plan(obs._replace(extrinsics=cam[:, :1]+3), f[:, :, -1])
    assert not torch.equal(moved.actions, plan.actions)
    steps = world.rollout(tok[:, 0], s[:, 0], a, extrinsics=cam[:, 0])
    one = world.step(tok[:, :1], a[:, :1], s[:, :1], cam[:, :1])
    assert torch.allclose(steps[:, 0], one, atol=1e-5)
    with pytest.raises(ValueError, match='2 numbers'):
        arm_planner(WorldModel(ViT(V), ACPredictor(ACConfig(48, (2, 2), 2, cfg.blocks))))
    assert isinstance(arm_planner(world), Planner) and arm_planner(world, reach=.1).space.most[:3] == (.1,)*3
    assert droid.most[0] == .05

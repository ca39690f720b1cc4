"Small things of the official codes, each against a few lines that do what theirs does."
import math
from functools import partial
import numpy as np
import pytest
import torch
from torch import nn
from vidlit.nn.tokens import Grid
from vidlit.nn.vit import ViTConfig
from vidlit.pretrain.planner import CEM, droid
from vidlit.pretrain.videomae import official_rate
from vidlit.pretrain.vjepa import VJEPA, LateGradClip, vjepa_pretrainer
from vidlit.pretrain.vjepa2 import VJEPA2, Phase, VJEPA2Config, vjepa2_pretrainer
from vidlit.pretrain.vjepa_weights import VJEPAConfig
from vidlit.pretrain.world_model import ACConfig, ACPredictor, WorldModel, world_learner
from vidlit.train.callbacks import GradClip, fit
from vidlit.train.schedules import from_one, param_groups, wsd
from vidlit.video.clips import clip_dls
from vidlit.worlds.camera import mat_to_quat, quat_to_mat


def gen(seed=0): return torch.Generator().manual_seed(seed)


V = ViTConfig(dim=48, depth=1, heads=2, patch=(2, 8, 8), qkv_bias='fused')


def videomae_table(base, final, epochs, per, warm, start):
    "VideoMAE's table: the climb ends at its top, the fall begins at it"
    climb = np.linspace(start, base, warm*per)
    n = epochs*per-warm*per
    return np.concatenate([climb, [final+.5*(base-final)*(1+math.cos(math.pi*i/n)) for i in range(n)]])


@pytest.mark.parametrize('epochs, per, warm', [(10, 7, 2), (40, 3, 1), (5, 1, 1)])
def test_videomae_rate_to_the_last_step(epochs, per, warm):
    lr, n = 1.2e-3, epochs*per
    theirs = videomae_table(lr, lr/15, epochs, per, warm, lr/150)
    if warm*per == 1: theirs[0] = lr/150
    ours = [official_rate(lr, warm*per)(s, n) for s in range(n)]
    assert np.allclose(ours, theirs, rtol=1e-12)


def jepa_wsd(T, warm, cool, start, ref, final):
    "V-JEPA 2's scheduler: its counter moves first"
    for s in range(1, T+1):
        if s < warm: yield start+s/warm*(ref-start)
        elif s < T-cool: yield ref
        else: yield ref+(s-(T-cool))/cool*(final-ref)


@pytest.mark.parametrize('T, warm, cool', [(60, 3, 3), (12, 1, 4), (30, 10, 20)])
def test_wsd_is_not_a_step_late(T, warm, cool):
    ours = partial(from_one, partial(wsd, warmup=warm, base=4.25e-4, decay=cool, final=0., start=7.5e-5))
    assert np.allclose([ours(s, T) for s in range(T)], list(jepa_wsd(T, warm, cool, 7.5e-5, 4.25e-4, 0.)), rtol=1e-9)


def test_learners_use_it():
    tok = torch.randn(8, 3, 4, 48, generator=gen())
    trips = [(tok[i], torch.zeros(2, 2), torch.zeros(3, 2)) for i in range(8)]
    from fastai.data.core import DataLoaders
    from torch.utils.data import DataLoader
    ac = ACPredictor(ACConfig(48, (2, 2), 2, V), gen())
    dls = DataLoaders(DataLoader(trips, 4), DataLoader(trips, 4))
    learn = fit(world_learner(dls, WorldModel(nn.Identity(), ac), warmup=2, decay=4), steps=10, validate=False)
    want = list(jepa_wsd(10, 2, 4, 7.5e-5, 4.25e-4, 0.))
    assert [o['lr'] for o in learn.history.rows] == pytest.approx(want)
    p = Phase('cool-down', 4, 8, 16, 4e-4, 0.)
    assert [p.lr(s, 4) for s in range(4)] == pytest.approx([3e-4, 2e-4, 1e-4, 0.])


def test_mask_tokens_decay_in_vjepa2():
    model = VJEPA2(VJEPA2Config(V, V, 2), gen=gen())
    decays = {id(p) for g in param_groups(model) if g['wd_scale'] for p in g['params']}
    assert all(id(p) in decays for p in model.predictor.mask_tokens)
    for n, p in model.named_parameters():
        theirs = 'bias' not in n and p.ndim != 1 and p.requires_grad
        assert (id(p) in decays) == theirs, n


def test_encoder_and_predictor_are_clipped_apart():
    model = VJEPA(VJEPAConfig(V, V, Grid(2, 2, 2)), gen=gen())
    dls = clip_dls((torch.randn(4, 3, 4, 16, 16, generator=gen()), torch.zeros(4).long()), bs=2, seed=0)
    seen = []
    class Look(GradClip):
        order = 21
        def before_step(self):
            n = {k: math.sqrt(sum(float(p.grad.square().sum()) for p in getattr(model, k).parameters()
                if p.grad is not None)) for k in ('encoder', 'predictor')}
            seen.append(n)
    learn = vjepa_pretrainer(dls, model, warmup=0, cbs=[Look()], health=1000)
    clip = next(o for o in learn.cbs if isinstance(o, LateGradClip))
    clip.norm = 1e-4
    fit(learn, steps=1, validate=False)
    assert all(v > 1e-4 for v in clip.last.values()) and set(clip.last) == {'encoder', 'predictor'}
    assert seen[0] == pytest.approx(dict(encoder=1e-4, predictor=1e-4), rel=1e-2)


def test_a_held_number_starts_where_it_is_held():
    "With momentum a mean that began at 0 would never arrive"
    from dataclasses import replace
    space = replace(droid, held={1: .02, 3: -.4})
    for rounds in (1, 3):
        found = CEM(samples=8, elites=2, iters=rounds, horizon=2)(lambda a: a[..., 0].sum(-1), space, 2, gen())
        assert torch.allclose(found.actions[..., 1], torch.full((2, 2), .02), rtol=1e-6)
        assert torch.allclose(found.path[..., 3], torch.full((2, rounds, 2), -.4), rtol=1e-6)


@pytest.mark.parametrize('name, sign', [('shear_x', 1), ('shear_x', -1), ('shear_y', 1), ('shear_y', -1)])
def test_shear_turns_about_the_corner(name, sign):
    from PIL import Image
    from timm.data import auto_augment
    from vidlit.video.transforms import rand_ops
    x = torch.nn.functional.interpolate(torch.rand(1, 3, 6, 8, generator=gen()), (48, 64), mode='bilinear')
    img = Image.fromarray((x[0]*255).round().byte().permute(1, 2, 0).numpy())
    theirs = getattr(auto_augment, name)(img, sign*.3*.7, fillcolor=(124, 116, 104), resample=Image.BILINEAR)
    ours = rand_ops[name](torch.from_numpy(np.asarray(img)).permute(2, 0, 1)[None]/255., .7, sign)[0]
    off = (ours*255-torch.from_numpy(np.asarray(theirs)).permute(2, 0, 1).float()).abs()
    y, x = torch.meshgrid(torch.arange(48)+.5, torch.arange(64)+.5, indexing='ij')
    src = x+sign*.21*y if name == 'shear_x' else y+sign*.21*x
    inside = (src > 1.5) & (src < (62.5 if name == 'shear_x' else 46.5))
    assert inside.float().mean() > .7 and off[:, inside].max() <= 1.01 # of 255: rounding


def test_a_mirror_is_no_rotation():
    q = torch.nn.functional.normalize(torch.randn(64, 4, generator=gen()), dim=-1)
    R = quat_to_mat(q)
    assert torch.allclose(quat_to_mat(mat_to_quat(R)), R, atol=1e-5)
    for bad in (R*torch.tensor([1., 1, -1]), R[:, :, [1, 0, 2]], -R, torch.cat([R, -R[:1]])):
        with pytest.raises(ValueError, match='a mirror, not a rotation'): mat_to_quat(bad)


def test_vjepa2_learner_counts_from_one():
    dls = clip_dls((torch.randn(4, 3, 4, 16, 16, generator=gen()), torch.zeros(4).long()), bs=2, seed=0)
    model = VJEPA2(VJEPA2Config(V, V, 2), gen=gen())
    learn = fit(vjepa2_pretrainer(dls, model, warmup=2, decay=2, health=1000), steps=5, validate=False)
    r = 5.25e-4
    want = list(jepa_wsd(5, 2, 2, .19*r, r, .002*r))
    assert [o['lr'] for o in learn.history.rows] == pytest.approx(want)

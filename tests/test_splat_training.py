"""Training of splats: optimiser state survives densification, the cap holds, a killed run resumes to the same bits."""
import subprocess
import sys
import time
from glob import glob
import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import load
from vidlit.splat.deformation import MovingGaussians
from vidlit.splat.densify import DensifyConfig, grow_and_prune, regrow, relocate, splat_params
from vidlit.splat.gaussians import from_points


def scene(n, seed=0, moving=False):
    gen = torch.Generator().manual_seed(seed)
    g = from_points(torch.rand(n, 3, generator=gen), torch.rand(n, 3, generator=gen), degree=1)
    return MovingGaussians(g) if moving else g


def adam(g, steps=3):
    opt = torch.optim.Adam([dict(params=[p], name=k) for k, p in splat_params(g).items() if p.requires_grad])
    for _ in range(steps):
        opt.zero_grad()
        sum((p*(i+1)).square().sum() for i, p in enumerate(splat_params(g).values())).backward()
        opt.step()
    return opt


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 40), st.integers(1, 60), st.integers(0, 99), st.booleans())
def test_cap_and_state(n, cap, seed, moving):
    "Whatever grows: never above the cap (nor above what there was), and each row that stays keeps its averages"
    g, gen = scene(n, seed, moving), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        g.log_scales.uniform_(-6, -1, generator=gen)
        g.logit_opacities.uniform_(-7, 2, generator=gen)
    opt = adam(g)
    old = {k: (p.detach().clone(), opt.state[p]['exp_avg'].clone()) for k, p in splat_params(g).items()
        if p.requires_grad}
    grad = 4e-4*torch.rand(n, generator=gen)
    drop = g.opacities < .005
    found = grow_and_prune(g, opt, grad, 1., gen, DensifyConfig(cap=cap))
    assert len(g) <= max(cap, n) and len(g) == n-found['pruned']+found['cloned']+found['split']
    assert found['pruned'] == drop.sum()
    stay = len(g)-found['cloned']-2*found['split']
    for k, p in splat_params(g).items():
        assert len(p) == len(g)
        if k not in old: continue
        avg, rows = opt.state[p]['exp_avg'], old[k][0][~drop]
        assert avg.shape == p.shape and not avg[stay:].any()
        if k in ('means', 'log_scales'): continue  # moved by the split
        at = [(rows == o).flatten(1).all(1).nonzero()[0, 0] if rows.ndim > 1 else (rows == o).nonzero()[0, 0]
            for o in p[:stay]]
        if at: assert torch.equal(avg[:stay], old[k][1][~drop][torch.stack(at)])
    assert {id(q) for o in opt.param_groups for q in o['params']} == {id(p) for k, p in splat_params(g).items()
        if k in old}


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 40), st.integers(1, 60), st.integers(0, 99))
def test_mcmc_cap(n, cap, seed):
    g, gen = scene(n, seed), torch.Generator().manual_seed(seed)
    with torch.no_grad(): g.logit_opacities.uniform_(-7, 2, generator=gen)
    opt = adam(g)
    for _ in range(4): relocate(g, opt, gen, cap)
    assert len(g) <= max(cap, n)
    assert all(opt.state[p]['exp_avg'].shape == p.shape for p in splat_params(g).values())


def test_regrow_step_continues():
    "A step after a cut equals the same step without it, for the rows that stay"
    a, b = scene(9, moving=True), scene(9, moving=True)
    oa, ob, keep = adam(a), adam(b), torch.tensor([0, 3, 4, 8])
    regrow(b, ob, keep)
    for g, o in ((a, oa), (b, ob)):
        o.zero_grad()
        sum((p+i).square().sum() for i, p in enumerate(splat_params(g).values())).backward()
        o.step()
    for k, p in splat_params(a).items(): assert torch.equal(p[keep], splat_params(b)[k]), k


RUN = """
import sys, torch
torch.set_num_threads(1)
from vidlit.splat.scenes import RigConfig, world_scene
from vidlit.splat.densify import DensifyConfig
from vidlit.splat.hexplane import HexPlaneConfig
from vidlit.splat.model import splat_model
from vidlit.splat.training import SplatConfig, splat_learner
from vidlit.train.callbacks import fit
from vidlit.train.checkpoint import Checkpoint
from vidlit.worlds.worlds import WorldConfig
from safetensors.torch import save_file
rig = RigConfig(WorldConfig(t=5, h=24, w=24, n_obj=2), cameras=3, held=1, points=150)
scene,_ = world_scene(0, rig)
cfg = SplatConfig(fine=50, densify=DensifyConfig(cap=1200, start=5, stop=45, every=8, grad=5e-5, reset_every=42),
    strategy=sys.argv[2])
kind = sys.argv[3]
m = splat_model(scene, kind, planes=HexPlaneConfig(4, (8, 8, 8, 4), (1,)), degree=1)
fit(splat_learner(m, scene, cfg, 3, [Checkpoint(sys.argv[1]+'/ckpt', every=10)]), steps=50)
save_file({k: v.contiguous() for k,v in m.state_dict().items()}, sys.argv[1]+'/end.safetensors')
"""


@pytest.mark.parametrize('strategy,kind', [('grow', 'hexplane'), ('mcmc', 'motion')])
def test_killed_training_resumes_to_the_same_bits(tmp_path, strategy, kind):
    def start(name):
        (tmp_path/name).mkdir(exist_ok=True)
        return subprocess.Popen([sys.executable, '-c', RUN, str(tmp_path/name), strategy, kind],
            stderr=subprocess.DEVNULL)
    assert start('whole').wait() == 0
    p = start('killed')
    while not glob(f'{tmp_path}/killed/ckpt/step-*20.safetensors'):
        assert p.poll() is None, 'ended before it was killed'
        time.sleep(.02)
    p.kill()
    p.wait()
    assert start('killed').wait() == 0
    a, b = ((tmp_path/o/'end.safetensors').read_bytes() for o in ('whole', 'killed'))
    assert a == b
    means = next(v for k, v in load(a).items() if k.endswith('means'))
    assert len(means) > 150 # more than at the start: what is compared has grown, before the kill and after it


def test_the_first_stage_takes_one_moment_where_four_cameras_see_one():
    from vidlit.splat.run import Recipe
    from vidlit.splat.scenes import RigConfig, pick_views, world_scene
    from vidlit.worlds.worlds import WorldConfig
    scene, _ = world_scene(0, RigConfig(WorldConfig(t=5, h=16, w=16), cameras=4, held=1, points=50))
    at = lambda s, **kw: Recipe(steps=10, **kw).training(s).coarse_at
    assert [at(scene), at(pick_views(scene, scene.camera<3)), at(scene, coarse_at='all')] == ['middle', 'all', 'all']

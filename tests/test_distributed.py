"""Two processes on the CPU take the steps that one takes on the joint batch.

As a script, under torchrun or alone, this file trains and writes what happened."""
import sys
from functools import partial
import torch
from torch import nn

STEPS = 4


class Fill(nn.Module):
    "Guesses hidden numbers; its output carries the loss"
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(16, 32), nn.LayerNorm(32), nn.GELU(), nn.Linear(32, 8))
    def forward(self, x, mask):
        pred = self.net(torch.cat([x*~mask, mask.float()], 1))
        return dict(pred=pred, loss=((pred-x)*mask).square().sum()/mask.sum())


def hide(b, gen): return torch.rand(b, 8, generator=gen).argsort(1)<4


def train(bs, kind='fastai', acc=1, folder=None, steps=STEPS):
    "Gradients of each step as the optimiser sees them, the weights at the end, the masks and items of this process"
    from fastai.callback.core import Callback
    from fastai.data.core import DataLoaders
    from fastai.data.load import DataLoader
    from fastai.learner import Learner
    from vidlit.train.callbacks import (
        EMA,
        Accumulate,
        GradClip,
        History,
        MaskSampler,
        ParamSchedule,
        adamw,
        bare,
        fit,
        warmup_cosine,
    )
    from vidlit.train.checkpoint import Checkpoint, Distributed, Seeded
    got = dict(grad=[], items=[], masks=[])

    class Note(Callback):
        "Writes down what passes by"
        order = 15
        def before_batch(self):
            got['items'].append(self.xb[0][:,0].clone())
            got['masks'].append(self.xb[1].clone())
        def before_step(self): got['grad'].append(
            torch.cat([p.grad.flatten() for p in bare(self.learn.model).parameters()]))

    torch.set_num_threads(1)
    torch.manual_seed(0)
    net, xs = Fill(), torch.randn(34, 8, generator=torch.Generator().manual_seed(1))
    ds = [(o,) for o in xs]
    dl = DataLoader(ds, bs, shuffle=True, drop_last=True) if kind=='fastai' else torch.utils.data.DataLoader(ds, bs,
        shuffle=True, drop_last=True)
    cbs = [Distributed(), Seeded(3), MaskSampler(hide, 7), Accumulate(acc), GradClip(.5),
        ParamSchedule(lr=partial(warmup_cosine, warmup=2, base=1e-2)),
        EMA(.9), History(), Note()]
    if folder: cbs.append(Checkpoint(folder, every=2))
    learn = Learner(DataLoaders(dl), net, loss_func=lambda out, *_: out['loss'],
        opt_func=adamw(net, 1e-2, eps=1e-4), cbs=cbs)
    fit(learn, steps=steps)
    flat = partial(torch.nn.utils.parameters_to_vector)
    return dict(got, weights=flat(learn.model.parameters()).detach(), slow=flat(learn.ema.module.parameters()),
        loss=[o['loss'] for o in learn.history.rows])


def main(out):
    from vidlit.train.checkpoint import process_group
    with process_group('gloo') as (rank, world):
        got = {k: train(8//world, **kw)
            for k, kw in dict(fastai={}, torch=dict(kind='torch'), acc=dict(acc=2),
                saved=dict(folder=f'{out}/ckpt', steps=2)).items()}
        if world>1: torch.distributed.barrier()
        got['resumed'] = train(8//world, folder=f'{out}/ckpt')
        torch.save(got, f'{out}/{world}-{rank}.pt')


if __name__=='__main__':
    main(sys.argv[1])
    sys.exit()


import pytest  # noqa: E402 - the script above does without
from torchrun import two_and_one  # noqa: E402


@pytest.fixture(scope='module')
def ran(tmp_path_factory):
    "The same script under torchrun and alone"
    out, alone = tmp_path_factory.mktemp('dist'), tmp_path_factory.mktemp('alone')
    two_and_one(__file__, main, out, alone)
    return [torch.load(o, weights_only=True) for o in (out/'2-0.pt', out/'2-1.pt', alone/'1-0.pt')]


def far(a, b): return (a-b).abs().max().item()


@pytest.mark.parametrize('how', ['fastai', 'torch', 'acc'])
def test_gradients_are_those_of_the_joint_batch(ran, how):
    r0, r1, one = (o[how] for o in ran)
    assert len(one['grad'])==len(r0['grad'])==STEPS
    for a, b, c in zip(one['grad'], r0['grad'], r1['grad']):
        assert torch.equal(b, c)
        assert far(a, b)<1e-6*max(1, a.abs().max().item()) and a.abs().max()>1e-3
    assert torch.equal(r0['weights'], r1['weights']) and far(one['weights'], r0['weights'])<1e-5
    assert torch.equal(r0['slow'], r1['slow']) and far(one['slow'], r0['slow'])<1e-5


@pytest.mark.parametrize('how', ['fastai', 'torch', 'acc'])
def test_items_and_masks_are_shared_out(ran, how):
    r0, r1, one = (o[how] for o in ran)
    for key in ('items', 'masks'):
        for a, b, c in zip(one[key], r0[key], r1[key]): assert torch.equal(a, torch.cat([b, c]))


def test_losses_are_averaged(ran):
    r0, r1, one = (o['fastai']['loss'] for o in ran)
    assert r0==r1 and r0==pytest.approx(one, abs=1e-5)


def test_group_resumes_bit_for_bit(ran):
    for o in ran:
        assert torch.equal(o['resumed']['weights'], o['fastai']['weights'])
        assert torch.equal(o['resumed']['slow'], o['fastai']['slow'])
        assert len(o['resumed']['grad'])==STEPS-2


def test_the_tests_can_fail(ran):
    "One process on half the batch takes other steps"
    assert far(train(4)['grad'][0], ran[2]['fastai']['grad'][0])>1e-3

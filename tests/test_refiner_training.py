"""Training of the refiner: what a fit may not forget, and what is refused"""
import pytest
import torch
from torch.utils.data import DataLoader
from vidlit.refiner.losses import losses
from vidlit.refiner.model import Refiner, RefinerConfig
from vidlit.refiner.training import JitterPath, KeepCalmest, best_model, clean_clips, correlation, refiner_learner
from vidlit.train.callbacks import fit
from vidlit.train.checkpoint import Seeded
from vidlit.worlds.worlds import WorldConfig


@pytest.fixture(scope='module')
def data(): return clean_clips(range(16), WorldConfig(t=6, h=16, w=20))


def loaders(data):
    from fastai.data.core import DataLoaders
    return DataLoaders(DataLoader(data, 4, shuffle=True, drop_last=True, generator=torch.Generator().manual_seed(0)))


def small(): return Refiner(RefinerConfig(width=8, core='gru', global_path=True, memory=True),
    torch.Generator().manual_seed(0))


def weights(m): return {k: v.clone() for k, v in m.state_dict().items()}


def same(a, b): return all(torch.equal(a[k], b[k]) for k in a)


def test_two_runs_are_one(data):
    runs = [fit(refiner_learner(small(), loaders(data), valid=data, every=3, cbs=[Seeded(0)]), steps=6)
        for _ in range(2)]
    assert same(*(weights(r.model) for r in runs)) and runs[0].watch.rows == runs[1].watch.rows
    assert [o['step'] for o in runs[0].keep_calmest.rows] == [3, 6]


def test_a_second_fit_begins_where_the_first_ended(data):
    "fastai calls a model's `reset` before every fit: a refiner must not have one that forgets"
    learn = fit(refiner_learner(small(), loaders(data), cbs=[Seeded(0)]), steps=5)
    was = weights(learn.model)
    learn.remove_cbs([o for o in learn.cbs if type(o).__name__ == 'ParamSchedule'])
    fit(learn, steps=1, lr=0.)
    assert same(was, weights(learn.model))


def test_best_model_is_a_copy_and_keeps_the_calmest(data):
    learn = fit(refiner_learner(small(), loaders(data), valid=data, every=2, cbs=[Seeded(0)]), steps=6)
    best, kept = best_model(learn), learn.keep_calmest
    right = [o for o in kept.rows if o['error'] <= 1]
    assert kept.score(best)['flicker'] == pytest.approx(min(o['flicker'] for o in right), rel=1e-5)
    assert best is not learn.model and not best.training


def test_a_constant_video_is_never_the_calmest(data):
    class Still(torch.nn.Module):
        "Perfectly calm and quite wrong"
        def __init__(self):
            super().__init__()
            self.k = torch.nn.Parameter(torch.zeros(1))

        def forward(self, depth, conf, rgb):
            from vidlit.refiner.model import Refined
            d = 5*torch.ones_like(depth)+self.k
            return Refined(d, d.log()-depth.log(), torch.zeros(()), None, None)
    learn = fit(refiner_learner(Still(), loaders(data), valid=data, every=1, cbs=[Seeded(0)]), steps=3)
    assert learn.keep_calmest.best == {} and all(o['error'] > 1 for o in learn.keep_calmest.rows)


@pytest.mark.parametrize('name', losses)
def test_every_loss_trains(name, data):
    learn = fit(refiner_learner(small(), loaders(data), losses[name], cbs=[Seeded(0)]), steps=3)
    assert all(torch.isfinite(p).all() for p in learn.model.parameters())
    assert {k.split('/')[1] for k in learn.watch.rows[0] if k.startswith('loss/')} <= set(losses[name].__dict__)


def test_share_of_truth_reversal_and_disturbance():
    d = torch.rand(400, 3, 1, 4, 4)+1
    path = JitterPath(p=.5, gt=.08, reverse=.2, gen=1)
    (given, conf, rgb), (_, _, clean, _, _, has) = path.draw(d, torch.zeros(400, 3, 3, 4, 4))
    turned = (clean != d).flatten(1).any(1).float().mean()
    touched = (given != clean).flatten(1).any(1).float().mean()
    assert .03 < has.float().mean() < .14 and .13 < turned < .27 and .42 < touched < .58


def test_correlation_is_pearsons():
    a = torch.rand(100)
    assert correlation(a, 3*a-1) == pytest.approx(1, abs=1e-5) and correlation(a, -a) == pytest.approx(-1, abs=1e-5)
    assert correlation(a, torch.ones(100)) == 0


def test_refusals(data):
    for kw in (dict(p=1.5), dict(gt=-.1), dict(reverse=2.)):
        with pytest.raises(ValueError, match='must lie in'): JitterPath(**kw)
    assert KeepCalmest(data).best == {}

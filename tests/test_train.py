"Properties of training: schedules, groups, callbacks in combination, resuming anywhere, loaders and fastai's own paths"
import copy
import math
import sys
import warnings
from functools import partial
from types import SimpleNamespace
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.progress import ProgressCallback
from fastai.callback.schedule import Learner  # noqa: F401 - fit_one_cycle is patched in
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.optimizer import Adam
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.utils.data import DataLoader as TorchLoader
from vidlit.train import callbacks as train
from vidlit.train.callbacks import (
    EMA,
    Accumulate,
    Autocast,
    History,
    InputTarget,
    MaskSampler,
    ModelLoss,
    ParamSchedule,
    Progress,
    ema_update,
    fit,
)
from vidlit.train.checkpoint import Checkpoint, CheckpointError, Seeded, load_state, mix, save_state, share
from vidlit.train.health import Health, NonFinite, effective_rank
from vidlit.train.schedules import adamw, cosine, linear, param_groups, warmup_cosine, wsd
from vidlit.video.clips import clip_dls
from vidlit.worlds.worlds import WorldConfig, WorldDataset

warnings.filterwarnings('ignore', 'torch.jit')
gen = torch.Generator


def data(n=20, seed=1): return [(x, x[:2]) for x in torch.randn(n, 4, generator=gen().manual_seed(seed))]


def net(p=.2, norm=nn.BatchNorm1d): return nn.Sequential(nn.Linear(4, 12), norm(12), nn.Dropout(p), nn.GELU(),
    nn.Linear(12, 2))


def calm(): return net(0., nn.LayerNorm)


def learner(*cbs, bs=4, ds=None, model=None, loader=DataLoader, opt=None, **kw):
    torch.manual_seed(0)
    model, ds = model if isinstance(model, nn.Module) else (model or net)(), ds or data()
    dls = DataLoaders(loader(ds, bs, shuffle=True), loader(ds, bs))
    return Learner(dls, model, loss_func=nn.MSELoss(), opt_func=opt or adamw(model, 1e-2, **kw), cbs=list(cbs))


def flat(model): return torch.cat([v.flatten().double() for v in model.state_dict().values()])


# Schedules

total = st.integers(1, 2000)


@given(total.flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))), st.integers(0, 300)|st.floats(0, .99),
    st.tuples(*[st.floats(-5, 5)]*3))
@settings(max_examples=150, deadline=None)
def test_schedules_stay_between_their_ends(ns, warmup, ends):
    (n, s), (base, final, start) = ns, ends
    lo, hi = min(base, final, start)-1e-9, max(base, final, start)+1e-9
    assert lo<=warmup_cosine(s, n, warmup, base, final, start)<=hi
    assert lo<=wsd(s, n, warmup, base, .2, final, start)<=hi
    for f in (cosine, linear):
        assert f(0, n, base, final)==pytest.approx(base) and f(n, n, base, final)==pytest.approx(final)


@given(st.integers(10, 500), st.floats(0, .5))
@settings(max_examples=50, deadline=None)
def test_schedules_have_no_jumps(n, warmup):
    climb = 1/max(warmup, 1/n)
    cases = (partial(warmup_cosine, warmup=warmup), math.pi/2/(1-warmup)), (partial(wsd, warmup=warmup, decay=.3), 1/.3)
    for f, steepest in cases:
        v = [f(s, n) for s in range(n+1)]
        assert max(abs(a-b) for a, b in zip(v, v[1:]))<=max(steepest, climb)/n*1.01


@pytest.mark.parametrize('bad', [(-1, 10), (11, 10), (0, 0)])
def test_schedules_refuse(bad):
    for f in (warmup_cosine, cosine, linear, wsd):
        with pytest.raises(ValueError, match=f'step {bad[0]} of {bad[1]}'): f(*bad)


# Groups and optimiser

def test_groups_cover_each_parameter_once():
    m = net()
    m.no_weight_decay = lambda: {'4.weight'}
    gs = param_groups(m)
    ids = [id(p) for g in gs for p in g['params']]
    assert sorted(ids)==sorted(map(id, m.parameters()))
    assert id(m[4].weight) in {id(p) for p in gs[1]['params']}
    m[0].weight.requires_grad_(False)
    assert sum(len(g['params']) for g in param_groups(m))==len(ids)-1
    for p in m.parameters(): p.requires_grad_(False)
    with pytest.raises(ValueError, match='Sequential'): param_groups(m)


def test_fastai_paths_keep_the_groups():
    m = net()
    gs = [dict(params=list(m[:1].parameters()), lr_scale=.1, wd_scale=1.),
        dict(params=list(m[1:].parameters()), lr_scale=1., wd_scale=0.)]
    learn = learner(model=m, groups=gs)
    with learn.no_logging(), learn.no_bar():
        learn.fit(1, lr=.01, wd=.3)
        a, b = learn.opt.opt.param_groups
        assert (a['lr'], b['lr'], a['weight_decay'], b['weight_decay'])==pytest.approx((.001, .01, .3, 0.))
        seen = []
        class Look(Callback):
            def before_step(self): seen.append([g['lr'] for g in self.learn.opt.opt.param_groups])
        learn.fit_one_cycle(1, lr_max=.02, cbs=Look())
    assert all(x==pytest.approx(.1*y) for x, y in seen) and max(y for _, y in seen)==pytest.approx(.02, rel=.1)
    state = copy.deepcopy(learn.opt.state_dict())
    learn.opt.load_state_dict(state)
    assert learn.opt.hypers[0]['lr']==learn.opt.hypers[1]['lr']


def test_frozen_vectors_do_not_shrink():
    "With a zero gradient only decay moves a weight"
    m = net()
    learn = learner(model=m, ds=[(torch.zeros(4), torch.zeros(2))]*8, wd=.5)
    learn.loss_func = lambda p, t: (p*0).sum()
    before = {k: v.clone() for k, v in m.named_parameters()}
    fit(learn, steps=3)
    moved = {k for k, v in m.named_parameters() if not torch.equal(v, before[k])}
    assert moved=={'0.weight', '4.weight'}


# Fits

@given(st.integers(1, 23), st.integers(1, 3))
@settings(max_examples=12, deadline=None)
def test_fit_takes_exactly_so_many_steps(steps, acc):
    learn = learner(h := History(), Accumulate(acc), Seeded())
    fit(learn, steps=steps)
    assert [o['step'] for o in h.rows]==list(range(steps)) and learn.opt.state_dict()['state'][0]['step']==steps


def test_a_second_fit_starts_anew_and_plain_fits_work():
    seen = []
    sched = ParamSchedule(lr=lambda s, t: seen.append((s, t)) or .01)
    learn = learner(sched)
    fit(learn, steps=3); train.fit_steps(learn, 2)
    assert seen==[(0, 3), (1, 3), (2, 3), (0, 2), (1, 2)]
    seen.clear()
    with learn.no_logging(), learn.no_bar(): learn.fit(2)
    assert seen==[(i, 10) for i in range(10)]
    seen.clear()
    fit(learn, steps=2)
    assert seen==[(0, 2), (1, 2)]


def test_a_plain_fit_counts_its_first_step():
    "The clock is there before the first step, whichever callback asks for it"
    learn = learner(h := History())
    with learn.no_logging(), learn.no_bar():
        learn.fit(1)
        assert [o['step'] for o in h.rows]==[0, 1, 2, 3, 4]
        learn.fit(1)
    assert [o['step'] for o in h.rows][5:]==[0, 1, 2, 3, 4]


def test_one_loader_is_enough_for_steps():
    learn = learner(h := History())
    learn.dls = DataLoaders(DataLoader(data(), 4))
    fit(learn, steps=7, validate=True)
    assert len(h.rows)==7 and not h.valid


def test_fit_is_silent(capfd):
    learn = fit(learner(), epochs=1)
    # fastai's bar is there, and left out for the length of the fit
    assert any(type(o) is ProgressCallback for o in learn.cbs)
    assert capfd.readouterr()==('', '')


def test_validation_by_epochs_and_steps():
    fit(learner(h := History()), epochs=2)
    assert [o['step'] for o in h.valid]==[5, 10]
    fit(learner(h := History()), steps=7, validate=True)
    assert [o['step'] for o in h.valid]==[5, 7]
    fit(learner(h := History()), steps=7)
    assert not h.valid


class Stop(Callback):
    "An interrupt in the middle"
    order = 98
    def after_step(self):
        if self.steps.done==3: raise KeyboardInterrupt


def test_an_interrupt_leaves_a_usable_learner():
    learn = learner(Seeded(), Autocast(), EMA(.9), h := History())
    with pytest.raises(KeyboardInterrupt): fit(learn, steps=9, cbs=[Stop()])
    learn.remove_cbs([o for o in learn.cbs if isinstance(o, Stop)])
    h.rows.clear()
    fit(learn, steps=4)
    assert len(h.rows)==4 and not torch.is_autocast_enabled('cpu') and 'get_idxs' not in vars(learn.dls.train)
    assert not learn.model._forward_hooks and not learn.model._forward_pre_hooks


# Masks

def hide(b, gen, k=3): return torch.rand(b, 8, generator=gen).argsort(1)<k


class Fill(nn.Module):
    "Guesses hidden numbers"
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(16, 8)
        self.seen = []
    def forward(self, x, mask):
        self.seen.append((self.training, mask))
        pred = self.net(torch.cat([x*~mask, mask.float()], 1))
        return SimpleNamespace(pred=pred, targ=x, loss=(pred-x)[mask].square().mean())


def fill(*cbs):
    torch.manual_seed(0)
    m, ds = Fill(), [(o,) for o in torch.randn(20, 8, generator=gen().manual_seed(2))]
    return Learner(DataLoaders(DataLoader(ds, 4), DataLoader(ds, 4)), m, loss_func=ModelLoss(), opt_func=adamw(m),
        cbs=list(cbs))


def test_masks_differ_in_training_and_repeat_in_validation():
    learn = fit(fill(MaskSampler(hide, 3, k=2)), epochs=2)
    tr, va = ([m for t, m in learn.model.seen if t is o] for o in (True, False))
    assert all((m.sum(1)==2).all() for m in tr+va)
    assert not any(torch.equal(a, b) for i, a in enumerate(tr) for b in tr[:i])
    assert all(torch.equal(a, b) for a, b in zip(va[:5], va[5:]))


def test_mask_sampler_knows_the_grid():
    got = {}
    def spy(b, gen, grid, ratio):
        got.update(grid=tuple(grid), ratio=ratio)
        return torch.zeros(b, grid.n, dtype=torch.bool)
    cb = MaskSampler(spy, gen().manual_seed(1), patch=(2, 8, 8), ratio=.5)
    assert cb.draw(torch.zeros(2, 3, 4, 16, 24), cb.gen).shape==(2, 12) and got==dict(grid=(2, 2, 3), ratio=.5)


def test_validation_does_not_move_the_training_masks():
    one = fit(fill(MaskSampler(hide, 3)), epochs=3)
    two = fit(fill(MaskSampler(hide, 3)), epochs=3, validate=False)
    assert torch.equal(flat(one.model), flat(two.model))


# Half precision

def test_bf16_follows_single_precision():
    def run(*cbs): return fit(learner(Seeded(), h := History(), *cbs, model=calm), steps=40) and h.curve()[1]
    a, b = run(), run(Autocast())
    assert a!=b and max(abs(x-y) for x, y in zip(a, b))<.05*a[0]


def test_scaled_overflow_is_skipped():
    class Blow(Callback):
        "One gradient overflows"
        order = 5
        def after_loss(self):
            if self.training and self.steps.done==2: self.learn.loss_grad = self.learn.loss_grad*float('inf')
    class Look(Callback):
        order = 96
        def before_fit(self): self.w = []
        def after_step(self): self.w.append(flat(self.learn.model[0]))
    auto = Autocast(torch.float16, scale=True)
    auto.scaler = torch.amp.GradScaler('cpu', init_scale=2.**8)  # low enough for every other step
    learn = fit(learner(auto, Blow(), look := Look()), steps=5)
    same = [torch.equal(a, b) for a, b in zip(look.w, look.w[1:])]
    assert same==[False, True, False, False] and auto.scaler.get_scale()==2**7
    assert flat(learn.model).isfinite().all()


# Moving averages

@given(st.floats(0, 1), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_ema_is_the_formula(m, seed):
    torch.manual_seed(seed)
    slow, fast = net(), net()
    fast(torch.randn(6, 4))
    want = [m*a+(1-m)*b for a, b in zip(slow.parameters(), fast.parameters())]
    ema_update(slow, fast, m)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(slow.parameters(), want))
    assert all(torch.equal(a, b) for a, b in zip(slow.buffers(), fast.buffers()))


def test_ema_of_a_part_into_a_part():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.slow = nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(4, 4)
        def forward(self, x): return self.b(self.a(x)+self.slow(x).detach())
    m = Two()
    start = m.slow.weight.clone()
    seen = []
    learn = learner(EMA(lambda s, t: seen.append((s, t)) or .5, 'a', 'slow'), model=m)
    fit(learn, steps=3)
    assert seen==[(0, 3), (1, 3), (2, 3)] and not torch.equal(m.slow.weight, start) and not m.slow.weight.requires_grad
    with pytest.raises(ValueError, match='momentum 1.5'): ema_update(m.slow, m.a, 1.5)


def test_swapped_comes_back_after_an_error():
    learn = fit(learner(ema := EMA(.9)), steps=3)
    fast, slow = flat(learn.model), flat(ema.module)
    with pytest.raises(ZeroDivisionError):
        with ema.swapped():
            assert torch.equal(flat(learn.model), slow)
            raise ZeroDivisionError
    assert torch.equal(flat(learn.model), fast) and torch.equal(flat(ema.module), slow)


# Health

def test_effective_rank_bounds():
    for n, d, r in ((50, 8, 3), (20, 30, 5)):
        z = torch.randn(n, r, generator=gen().manual_seed(n))@torch.randn(r, d, generator=gen().manual_seed(d))
        assert 1<effective_rank(z)<=r+1e-3
        assert effective_rank(z+100)==pytest.approx(effective_rank(z), rel=1e-2)


def test_nan_batch_is_saved_and_training_stops(tmp_path):
    ds = data()
    ds[7] = (torch.full((4,), float('nan')), ds[7][1])
    learn = learner(Seeded(2), Health(1, folder=tmp_path), h := History(), ds=ds, model=calm)
    with pytest.raises(NonFinite, match='nonfinite-'): fit(learn, steps=10)
    f, = tmp_path.glob('nonfinite-*')
    saved = load_state(f)
    assert saved['xb'][0].isnan().any() and saved['step']==len(h.rows)
    assert torch.equal(flat(learn.model), torch.cat([v.flatten().double() for v in saved['model'].values()]))


# Seeds, order, resuming

@given(n=st.integers(0, 60), bs=st.integers(1, 7), world=st.integers(1, 4), data=st.data())
@settings(max_examples=150, deadline=None)
def test_shares_are_a_partition(n, bs, world, data):
    start = data.draw(st.integers(0, n//(bs*world)))
    parts = [share(range(n), bs, start, r, world) for r in range(world)]
    whole = n if world==1 else n//(bs*world)*bs*world
    assert sorted(sum(parts, []))==list(range(start*bs*world, whole))
    assert len({len(o) for o in parts})==1


def test_mix_is_stable_and_spreads():
    assert mix(3, 5)==1546767404864420801
    assert len({mix(a, b) for a in range(30) for b in range(30)})==900


@pytest.mark.parametrize('kind', ['fastai', 'torch', 'clips'])
def test_resume_at_every_step(kind, tmp_path):
    "Wherever it stops, even between epochs, the weights at the end are the same bits"
    def make(folder):
        if kind=='clips':
            torch.manual_seed(0)
            m = nn.Sequential(nn.Flatten(), nn.Dropout(.2), nn.Linear(3*4*256, 1))
            dls = clip_dls(WorldDataset(12, 0, WorldConfig(t=4, h=16, w=16)), bs=4, tfm=lambda x,
                gen: x+.1*torch.rand((), generator=gen))
            learn = Learner(dls, m, loss_func=lambda p, y: (p[:,0]-y).square().mean(), opt_func=adamw(m))
        else:
            learn = learner(loader=DataLoader if kind=='fastai' else TorchLoader)
        return learn.add_cbs([Checkpoint(folder, every=1, keep=99), Seeded(1), History()])
    n = 7 if kind=='clips' else 11
    whole = fit(make(tmp_path/'whole'), steps=n, validate=True)
    for k in range(1, n):
        (tmp_path/str(k)).mkdir()
        name = f'step-{k:08d}.safetensors'
        (tmp_path/str(k)/name).write_bytes((tmp_path/'whole'/name).read_bytes())
        again = fit(make(tmp_path/str(k)), steps=n, validate=True)
        assert torch.equal(flat(whole.model), flat(again.model)), k
        assert whole.history.rows==again.history.rows and whole.history.valid==again.history.valid, k


def test_a_finished_run_does_nothing_more(tmp_path):
    one = fit(learner(Checkpoint(tmp_path), Seeded(), History()), steps=6)
    two = fit(learner(Checkpoint(tmp_path), Seeded(), h := History()), steps=6)
    assert torch.equal(flat(one.model), flat(two.model)) and len(h.rows)==6


def test_workers_do_not_change_the_run():
    def run(workers):
        learn = learner(Seeded(4))
        learn.dls = DataLoaders(TorchLoader(data(), 4, shuffle=True, num_workers=workers,
            multiprocessing_context='fork' if workers else None))
        return flat(fit(learn, steps=7).model)
    assert torch.equal(run(0), run(2))


@pytest.mark.parametrize('what', ['model', 'seed', 'tag', 'callbacks', 'damage'])
def test_refusals(tmp_path, what):
    fit(learner(Checkpoint(tmp_path, tag='a'), Seeded(1), EMA(.9)), steps=2)
    cbs = dict(callbacks=[History()]).get(what, [EMA(.9)])
    if what=='damage':
        for f in tmp_path.iterdir(): f.write_bytes(b'x')
    tag, seed, model = 'b' if what=='tag' else 'a', 2 if what=='seed' else 1, calm if what=='model' else None
    learn = learner(Checkpoint(tmp_path, tag=tag), Seeded(seed), *cbs, model=model)
    words = dict(model='another model', seed='seed 1, not 2', tag="'a', not of 'b'", callbacks='callbacks',
        damage='can be read')
    told = pytest.warns(UserWarning, match='passed over') if what=='damage' else warnings.catch_warnings()
    with told, pytest.raises(CheckpointError, match=words[what]): fit(learn, steps=4)


leaf = st.none()|st.booleans()|st.integers(-2**40, 2**40)|st.floats(allow_nan=False)|st.text(max_size=5)
tree = st.recursive(leaf, lambda s: st.lists(s, max_size=3)|st.dictionaries(st.text(max_size=3)|st.integers(), s,
    max_size=3)|st.tuples(s), max_leaves=8)


@given(tree)
@settings(max_examples=60, deadline=None)
def test_state_round_trip(tmp_path_factory, t):
    f = tmp_path_factory.mktemp('s')/'s.safetensors'
    save_state(f, dict(t=t, x=torch.ones(2)))
    assert repr(load_state(f)['t'])==repr(t)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool, torch.uint8])
def test_state_tensors(tmp_path, dtype):
    x = torch.arange(6).reshape(2, 3).to(dtype)
    save_state(tmp_path/'s', dict(a=x, b=x, c=x.t(), d=x[0,0], e=x[:0], g=nn.Parameter(x)
        if dtype.is_floating_point else x))
    s = load_state(tmp_path/'s')
    for k, v in dict(a=x, b=x, c=x.t(), d=x[0,0], e=x[:0]).items(): assert torch.equal(s[k], v) and s[k].dtype==dtype


def test_no_pickle_is_ever_read(tmp_path):
    f = tmp_path/'step-00000001.safetensors'
    torch.save(dict(a=1), f)
    with pytest.warns(UserWarning, match='damaged'), pytest.raises(CheckpointError): Checkpoint(tmp_path).newest()


def test_progress_tells_rate_and_time_left():
    got = []
    fit(learner(Progress(got.append, every=0)), steps=5)
    assert [o['done'] for o in got]==[1, 2, 3, 4, 5] and got[-1]['left']==0 and all(o['total']==5
        for o in got) and got[-1]['rate']>0


def test_fastai_adam_resumes(tmp_path):
    whole = fit(learner(Checkpoint(tmp_path/'a'), Seeded(), opt=Adam), steps=8)
    fit(learner(Checkpoint(tmp_path/'b'), Seeded(), opt=Adam), steps=5)
    assert torch.equal(flat(whole.model),
        flat(fit(learner(Checkpoint(tmp_path/'b'), Seeded(), opt=Adam), steps=8).model))


def test_tensorboard_missing_says_how(monkeypatch, tmp_path):
    from vidlit.train.health import TensorBoard
    monkeypatch.setitem(sys.modules, 'torch.utils.tensorboard', None)
    with pytest.raises(ImportError, match=r"pip install tensorboard"): fit(learner(TensorBoard(tmp_path)), steps=1)


def test_input_target_drops_labels():
    class Look(Callback):
        order = 90
        def after_pred(self): self.same = len(self.yb)==1 and torch.equal(self.yb[0], self.xb[0])
    m = nn.Linear(4, 4)
    fit(learner(InputTarget(), look := Look(), model=m), steps=1)
    assert look.same


def test_the_tests_can_fail(monkeypatch):
    "A moving average that forgets its momentum, a clock that runs ahead"
    monkeypatch.setattr(train, 'ema_update', lambda slow, fast, m: ema_update(slow, fast, 0.))
    learn = fit(learner(ema := EMA(.9), model=calm), steps=3)
    assert torch.equal(flat(learn.model), flat(ema.module))

"""Kill -9 in the middle of training and of writing a cache, then go on: same weights, no item lost or doubled.

As a script this file is the process that gets killed: it forks one child for each moment at which to die."""
import json
import os
import signal
import subprocess
import sys
import time
import traceback
import warnings
from functools import partial
from pathlib import Path
import torch
from torch import nn

STEPS = 14
deaths = ['in a batch', 'in a step', 'writing a checkpoint', 'after the rename', 'from outside']
cache_deaths = ['half a chunk', 'before the log', 'half a log line', 'from outside']


def die(): os.kill(os.getpid(), signal.SIGKILL)


def learner(folder, *cbs):
    "Masks, dropout, batch statistics, shuffling, accumulation, half precision, an EMA target encoder, three schedules"
    from fastai.data.core import DataLoaders
    from fastai.data.load import DataLoader
    from fastai.learner import Learner
    from vidlit.train.callbacks import (
        EMA,
        Accumulate,
        Autocast,
        GradClip,
        History,
        InputTarget,
        MaskSampler,
        ParamSchedule,
        adamw,
        cosine,
        linear,
        warmup_cosine,
    )
    from vidlit.train.checkpoint import Checkpoint, Seeded
    from vidlit.train.health import Health

    class Fill(nn.Module):
        "Guesses hidden numbers"
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.Dropout(.1), nn.GELU(), nn.Linear(32, 8))
        def forward(self, x, mask): return self.net(torch.cat([x*~mask, mask.float()], 1))

    def hide(b, gen): return torch.rand(b, 8, generator=gen)<.5

    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = Fill()
    ds = [(o,) for o in torch.randn(40, 8, generator=torch.Generator().manual_seed(1))]
    sched = ParamSchedule(lr=partial(warmup_cosine, warmup=3, base=1e-2), wd=partial(linear, base=.01, final=.1))
    every = [Checkpoint(folder, every=3), Seeded(5), MaskSampler(hide, 7), InputTarget(), Autocast(), Accumulate(2),
        GradClip(1.), sched,
        EMA(partial(cosine, base=.8, final=1.)), History(), Health(2)]
    return Learner(DataLoaders(DataLoader(ds, 4, shuffle=True), DataLoader(ds, 4)), net, loss_func=nn.MSELoss(),
        opt_func=adamw(net, 1e-2), cbs=[*every, *cbs])


def train(folder, *cbs):
    from vidlit.train.callbacks import fit
    learn = fit(learner(folder, *cbs), steps=STEPS)
    return dict(model=dict(learn.model.state_dict()), slow=dict(learn.ema.module.state_dict()),
        opt=learn.opt.state_dict(),
        rows=learn.history.rows, health=learn.health.rows, gen=learn.mask_sampler.gen.get_state())


def train_and_die(folder, how):
    from fastai.callback.core import Callback
    from vidlit.train import checkpoint

    class Die(Callback):
        "Ends the process at one moment"
        order = 55
        def after_pred(self):
            if how=='in a batch' and self.steps.done==8 and self.accumulate.k==1: die()
        def after_step(self):
            if how=='in a step' and self.steps.done==10: die()
            if how=='from outside': print(self.steps.done, flush=True); time.sleep(.05)

    replace = os.replace
    def broken(a, b):
        last = str(b).endswith('00000009.safetensors')
        if last and how=='writing a checkpoint': os.truncate(a, 100), die()
        replace(a, b)
        if last and how=='after the rename': die()
    checkpoint.os.replace = broken
    train(folder, Die())


def tokens(n=12): return torch.randn(n, 6, 4, generator=torch.Generator().manual_seed(2)).half()


def fill(path, before=lambda i: None):
    from vidlit.floor.store import TokenCache
    x = tokens()
    cache = TokenCache(path, len(x), x.shape[1:], teacher='none', data=3)
    for i in cache.todo():
        before(i)
        cache.put(i, x[i])
    return cache


def fill_and_die(path, how):
    import zarr.storage._local as local
    from vidlit.floor import store
    put, add = local._put, store._Log.add
    def torn(p, value, exclusive=False):
        if '/c/5' in str(p) and how=='half a chunk':
            p.parent.mkdir(parents=True, exist_ok=True)
            p.with_suffix('.0.partial').write_bytes(bytes(value.as_buffer_like())[:20])
            die()
        return put(p, value, exclusive)
    def half(self, item, value):
        if item==5 and how=='before the log': die()
        if item==5 and how=='half a log line':
            with self.path.open('ab') as f: f.write(store._row(item, value)[:9])
            die()
        add(self, item, value)
    local._put, store._Log.add = torn, half
    def before(i):
        if how=='from outside': print(i, flush=True); time.sleep(.05)
    fill(path, before)


def forked(fn, folder, how):
    "Run in a child; the signal that ended it"
    r, w = os.pipe()
    pid = os.fork()
    if not pid:
        os.dup2(w, 1)
        try: fn(folder, how)
        except BaseException: traceback.print_exc()
        finally: os._exit(7)
    os.close(w)
    if how=='from outside':
        with os.fdopen(r) as f:
            for line in f:
                if int(line)>=7: os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else f'exit {os.WEXITSTATUS(status)}'


def main(root):
    import torch._dynamo  # noqa: F401 - slow, so once, before forking
    import vidlit.floor.store  # noqa: F401 - once, before forking
    warnings.filterwarnings('ignore')
    got = {f'train/{o}': forked(train_and_die, Path(root)/'train'/o, o) for o in deaths}
    got.update({f'cache/{o}': forked(fill_and_die, Path(root)/'cache'/o, o) for o in cache_deaths})
    print(json.dumps(got))


if __name__=='__main__':
    main(sys.argv[1])
    sys.exit()


import pytest  # noqa: E402 - the script above does without


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    "A folder of interrupted runs, and the run without a break, made meanwhile"
    root = tmp_path_factory.mktemp('dead')
    cmd, env = [sys.executable, __file__, str(root)], {**os.environ, 'OMP_NUM_THREADS': '1'}
    with subprocess.Popen(cmd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as p:
        try:
            whole = train(tmp_path_factory.mktemp('whole'))
            out, err = p.communicate(timeout=240)
        finally: p.kill()
    assert p.returncode==0, err[-3000:]
    got = json.loads(out.splitlines()[-1])
    assert set(got.values())=={signal.SIGKILL}, (got, err[-3000:])
    return root, whole


@pytest.fixture(scope='module')
def dead(runs): return runs[0]


@pytest.fixture(scope='module')
def whole(runs): return runs[1]


def same(a, b):
    if isinstance(a, torch.Tensor): return a.dtype==b.dtype and torch.equal(a, b)
    if isinstance(a, dict): return a.keys()==b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)): return len(a)==len(b) and all(map(same, a, b))
    return a==b


@pytest.mark.parametrize('how', deaths)
def test_training_goes_on_bit_for_bit(dead, whole, how):
    folder = dead/'train'/how
    files = [o.name for o in folder.glob('step-*')]
    assert files and 'step-00000014.safetensors' not in files
    again = train(folder)
    off = [k for k in whole if not same(whole[k], again[k])]
    assert not off
    assert [o['step'] for o in again['rows']]==list(range(STEPS))
    assert len(list(folder.iterdir()))==2


@pytest.mark.parametrize('how', cache_deaths)
def test_cache_loses_and_doubles_nothing(dead, how):
    from vidlit.floor.store import TokenCache
    x, path = tokens(), dead/'cache'/how
    cut = TokenCache(path, len(x), x.shape[1:], teacher='none', data=3)
    left = cut.missing()
    assert 0<len(left)<len(x) and cut.verify()==[]
    done = [i for i in range(len(x)) if i not in left]
    assert torch.equal(cut[done], x[done])
    redone = []
    cache = fill(path, redone.append)
    assert redone==left
    assert cache.missing()==[] and cache.verify()==[] and torch.equal(cache[list(range(len(x)))], x)
    rows = [json.loads(o)['item'] for o in (path/'done.jsonl').read_text().splitlines() if o.endswith('}')]
    assert sorted(rows)==list(range(len(x)))


def test_a_torn_checkpoint_is_passed_over(whole, tmp_path):
    train(tmp_path)
    last = sorted(tmp_path.glob('step-*'))[-1]
    last.write_bytes(last.read_bytes()[:-50])
    with pytest.warns(UserWarning, match='damaged'): again = train(tmp_path)
    assert same(whole, again)


def test_the_tests_can_fail(whole, tmp_path, monkeypatch):
    "Break one promise at a time: every one of them is noticed"
    from vidlit.train import checkpoint
    from vidlit.train.checkpoint import Checkpoint, Seeded, load_state, save_state
    def broken(name):
        train(tmp_path/name)
        for f in (tmp_path/name).glob('step-00000014*'): f.unlink()
        return next((tmp_path/name).glob('step-00000012*'))
    def edit(name, fn):
        f = broken(name)
        state = load_state(f)
        fn(state)
        save_state(f, state)
        return same(whole, train(tmp_path/name))
    assert edit('nothing', lambda s: None)
    assert not edit('masks', lambda s: s['gens'].update(
        {'mask_sampler.gen': torch.Generator().manual_seed(7).get_state()}))
    assert not edit('optimiser', lambda s: s['opt'].update(state={}))
    assert not edit('place', lambda s: s.update(at=[s['at'][0], 0]))
    assert not edit('weights', lambda s: s['model']['net.0.weight'].add_(1e-6))
    with monkeypatch.context() as m:
        m.setattr(Seeded, 'before_batch', lambda self: None)  # dropout is no longer a function of the batch
        broken('dropout')
        assert not same(whole, train(tmp_path/'dropout'))
    with monkeypatch.context() as m:
        m.setattr(checkpoint, 'mix', lambda *key: time.time_ns()%2**40)  # the order is another one each time
        broken('order')
        assert not same(whole, train(tmp_path/'order'))
    assert Checkpoint(tmp_path/'nothing').newest()['step']==STEPS

"Properties and races of the store: fingerprints, locks, work lists and token caches"
import contextlib
import multiprocessing as mp
import time
from pathlib import Path
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from vidlit.floor import store
from vidlit.floor.fingerprint import fingerprint
from vidlit.floor.places import lock_of, sweep, temp_path
from vidlit.floor.store import (
    CacheMismatch,
    Manifest,
    StoreBusy,
    StoreError,
    TokenCache,
    WorkList,
    atomic_path,
    read_json,
    write_json,
    writer,
)

fork = mp.get_context('fork')
leaf = st.none()|st.booleans()|st.integers()|st.floats(allow_nan=False)|st.text(max_size=4)|st.binary(max_size=4)
tree = st.recursive(leaf,
    lambda s: st.lists(s, max_size=3)|st.dictionaries(st.text(max_size=3), s, max_size=3)|st.tuples(s, s), max_leaves=8)


def canon(x):
    "A value that is equal exactly where the meaning is"
    if isinstance(x, dict): return 'dict', frozenset((canon(k), canon(v)) for k, v in x.items())
    if isinstance(x, (list, tuple)): return type(x).__name__, tuple(map(canon, x))
    return type(x).__name__, repr(x)


@given(tree, tree)
@settings(max_examples=150, deadline=None)
def test_fingerprints_follow_meaning(a, b): assert (fingerprint(a)==fingerprint(b))==(canon(a)==canon(b))


@given(st.dictionaries(st.text(max_size=3), leaf, min_size=2, max_size=6))
@settings(max_examples=50, deadline=None)
def test_dict_order_does_not_matter(d): assert fingerprint(dict(reversed(d.items())))==fingerprint(d)


def test_tensors_differ_by_bytes_shape_and_type():
    x = torch.arange(6.)
    fps = [fingerprint(o) for o in (x, x.reshape(2, 3), x.double(), x.int(), x+1, x.numpy(), x.bfloat16(), x.bool())]
    assert len(set(fps))==8
    assert fingerprint(x.reshape(2, 3).t())==fingerprint(x.reshape(2, 3).t().contiguous())
    assert fingerprint(torch.zeros(0))!=fingerprint(torch.zeros(0, 1))
    assert fingerprint(torch.tensor(3.))==fingerprint(torch.tensor(3.))


def test_module_settings_count():
    class Scale(nn.Module):
        def __init__(self, by): super().__init__(); self.by = by
    assert fingerprint(Scale(1))!=fingerprint(Scale(2))
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout(.1))
    assert fingerprint(net)==fingerprint(net.train())==fingerprint(net.eval())


def test_folders_by_content(tmp_path):
    for d in 'ab':
        (tmp_path/d/'x').mkdir(parents=True)
        (tmp_path/d/'x'/'f').write_bytes(b'1')
    assert fingerprint(tmp_path/'a')==fingerprint(tmp_path/'b')
    (tmp_path/'b'/'x'/'f').rename(tmp_path/'b'/'x'/'g')
    assert fingerprint(tmp_path/'a')!=fingerprint(tmp_path/'b')


def test_known_fingerprint_never_changes():
    "A change here would make every cache on every disk a stranger"
    assert fingerprint(dict(size=(16, 64), name='vit', rate=.5, none=None, ids=[1, 2],
        x=torch.arange(3)))=='6da8b82657edebe85e544d3c4b13ffce'


@pytest.mark.parametrize('bad', [object(), lambda: 0, iter([]), open])
def test_no_stable_meaning(bad):
    if bad is open: assert fingerprint(bad)
    else:
        with pytest.raises(ValueError, match='no fingerprint'): fingerprint(bad)


def test_atomic_keeps_old_and_cleans_up(tmp_path):
    f = tmp_path/'new'/'a.bin'
    with atomic_path(f) as p:
        assert p.name==f.name and p.parent.parent==f.parent
        p.write_bytes(b'one')
    with pytest.raises(KeyboardInterrupt):
        with atomic_path(f) as p:
            p.write_bytes(b'tw')
            raise KeyboardInterrupt
    assert f.read_bytes()==b'one' and [o.name for o in f.parent.iterdir()]==['a.bin']
    with pytest.raises(FileNotFoundError):
        with atomic_path(f): pass  # nothing was written
    assert f.read_bytes()==b'one'


def test_json_is_stable_and_strict(tmp_path):
    write_json(tmp_path/'a', dict(b=1, a=2)); write_json(tmp_path/'b', dict(a=2, b=1))
    assert (tmp_path/'a').read_bytes()==(tmp_path/'b').read_bytes()
    with pytest.raises(ValueError): write_json(tmp_path/'a', [float('nan')])
    assert read_json(tmp_path/'a')==dict(a=2, b=1)


def _hold(path, ready, go):
    with writer(path):
        ready.set()
        go.wait(20)


def test_lock_is_freed_by_a_kill(tmp_path):
    ready, go = fork.Event(), fork.Event()
    p = fork.Process(target=_hold, args=(tmp_path/'x', ready, go))
    p.start()
    assert ready.wait(20)
    with pytest.raises(StoreBusy, match=str(p.pid)):
        with writer(tmp_path/'x'): pass
    p.kill(); p.join()
    assert lock_of(tmp_path/'x').exists()  # the file of the dead one is no obstacle
    with writer(tmp_path/'x'): pass
    assert not lock_of(tmp_path/'x').exists()


def _count(path, n):
    "Add one, n times, to a number that a lock protects"
    for _ in range(n):
        while True:
            try:
                with writer(path):
                    f = Path(path)
                    f.write_text(str(int(f.read_text())+1))
                break
            except StoreBusy: time.sleep(.001)  # three that never pause can starve the one that writes, for minutes


def test_lock_excludes(tmp_path):
    f = tmp_path/'n'
    f.write_text('0')
    ps = [fork.Process(target=_count, args=(f, 60)) for _ in range(3)]
    for p in ps: p.start()
    for p in ps: p.join()
    assert f.read_text()=='180'


def _work(folder, items, who):
    work = WorkList(folder, items)
    for o in work.todo():
        with open(Path(folder)/f'ran-{who}', 'a') as f: f.write(f'{o}\n')
        work.finish(o, who=who)


def test_many_workers_do_each_item_once(tmp_path):
    items = [str(i) for i in range(40)]
    ps = [fork.Process(target=_work, args=(tmp_path, items, k)) for k in range(4)]
    for p in ps: p.start()
    for p in ps: p.join()
    ran = [o for f in tmp_path.glob('ran-*') for o in f.read_text().split()]
    assert sorted(ran)==sorted(items)
    work = WorkList(tmp_path, items)
    assert work.missing==[] and sorted(work.done)==sorted(items)
    assert len((tmp_path/'done.jsonl').read_text().splitlines())==40


@given(cut=st.integers(1, 200))
@settings(max_examples=40, deadline=None)
def test_a_log_cut_anywhere_loses_only_its_tail(tmp_path_factory, cut):
    d = tmp_path_factory.mktemp('log')
    work = WorkList(d, range(5))
    for i in range(5): work.finish(i, v='x'*i)
    raw = (d/'done.jsonl').read_bytes()
    cut = min(cut, len(raw))
    (d/'done.jsonl').write_bytes(raw[:-cut])
    again = WorkList(d, range(5))
    whole = raw[:-cut].count(b'\n')
    assert list(again.done)==[str(i) for i in range(whole)]
    for o in again.todo(): again.finish(o, v='x'*int(o))
    assert WorkList(d, range(5)).done=={str(i): dict(v='x'*i) for i in range(5)}


def test_manifest_finds_damage(tmp_path):
    for n in 'abc': (tmp_path/n).write_bytes(n.encode()*9)
    man = Manifest(tmp_path)
    man.add('a', 'b', 'c')
    (tmp_path/'a').unlink()
    (tmp_path/'b').write_bytes(b'b')
    (tmp_path/'c').write_bytes(b'ccccccccC')
    assert Manifest(tmp_path).check()=={'a': 'missing', 'b': '1 bytes instead of 9', 'c': 'content changed'}


def half(n, seed=0): return torch.randn(n, 4, 3, generator=torch.Generator().manual_seed(seed)).half()


@given(st.lists(st.floats(-65504, 65504, width=16), min_size=12, max_size=12))
@settings(max_examples=30, deadline=None)
def test_every_half_float_comes_back(tmp_path_factory, xs):
    x = torch.tensor(xs, dtype=torch.float16).reshape(4, 3)
    cache = TokenCache(tmp_path_factory.mktemp('c'), 1, (4, 3))
    cache.put(0, x)
    assert TokenCache(cache.path, 1, (4, 3))[0].view(torch.int16).equal(x.view(torch.int16))


def test_refusals(tmp_path):
    cache = TokenCache(tmp_path/'c', 3, (4, 3), teacher='a', data=[1])
    x = half(3)
    cache.put(1, x[1])
    for bad, why in (((3, x[0]), 'item 3'), ((0, x[0, 0]), 'shape'), ((0, x[0]*float('inf')), 'float16'),
        ((1, x[0]), 'other content')):
        with pytest.raises((ValueError, StoreError), match=why): cache.put(*bad)
    for kw, why in ((dict(teacher='b', data=[1]), 'teacher'), (dict(teacher='a'), 'data'),
        (dict(teacher='a', data=[1], size=3), 'size')):
        with pytest.raises(CacheMismatch, match=why): TokenCache(tmp_path/'c', 3, (4, 3), **kw)
    with pytest.raises(CacheMismatch, match='shape'): TokenCache(tmp_path/'c', 4, (4, 3), teacher='a', data=[1])
    with pytest.raises(StoreError, match='item 0'): cache[0]
    with pytest.raises(IndexError): cache[7]
    assert cache.missing()==[0, 2] and torch.equal(cache[1], x[1])


def _fill(path, x):
    cache = TokenCache(path, len(x), x.shape[1:])
    for i in cache.todo(): cache.put(i, x[i])


def test_several_processes_fill_one_cache(tmp_path):
    "Creation races too: nobody has made the array when they start"
    x = half(24)
    ps = [fork.Process(target=_fill, args=(tmp_path/'c', x)) for _ in range(3)]
    for p in ps: p.start()
    for p in ps: p.join()
    assert [p.exitcode for p in ps]==[0, 0, 0]
    cache = TokenCache(tmp_path/'c', 24, (4, 3))
    assert cache.missing()==[] and cache.verify()==[] and torch.equal(cache[list(range(24))], x)
    assert len((tmp_path/'c'/'done.jsonl').read_text().splitlines())==24


def test_cache_reads_in_workers(tmp_path):
    x = half(8)
    _fill(tmp_path/'c', x)
    dl = torch.utils.data.DataLoader(TokenCache(tmp_path/'c', 8, (4, 3)), batch_size=4, num_workers=1,
        multiprocessing_context='fork')
    assert torch.equal(torch.cat(list(dl)), x)


def _begin(path, ready):
    with temp_path(path) as p:
        p.write_text('half')
        ready.set()
        time.sleep(60)


def test_sweep_spares_the_living(tmp_path):
    ready = fork.Event()
    p = fork.Process(target=_begin, args=(tmp_path/'x', ready))
    p.start()
    assert ready.wait(20) and sweep(tmp_path)==[]
    p.kill(); p.join()
    with temp_path(tmp_path/'x') as mine:
        mine.write_text('')
        assert len(sweep(tmp_path))==1 and mine.exists() and sweep(tmp_path)==[]
    assert list(tmp_path.iterdir())==[]


def test_an_item_finished_meanwhile_is_not_handed_out(tmp_path, monkeypatch):
    work = WorkList(tmp_path, 'ab')
    work.finish('a')
    monkeypatch.setattr(WorkList, 'missing', property(lambda self: ['a', 'b']))  # as seen before 'a' was finished
    assert list(WorkList(tmp_path, 'ab').todo())==['b']


def test_the_tests_can_fail(tmp_path, monkeypatch):
    "Without the lock two workers get the same item; without the log's hash damage goes unseen"
    monkeypatch.setattr(store, 'writer', lambda path: contextlib.nullcontext())
    one, two = WorkList(tmp_path/'w', 'ab').todo(), WorkList(tmp_path/'w', 'ab').todo()
    assert next(one)==next(two)=='a'
    monkeypatch.setattr(store, '_crc', lambda a: 'same')
    x = half(2)
    _fill(tmp_path/'c', x)
    cache = TokenCache(tmp_path/'c', 2, (4, 3))
    cache.arr[0] = x[1].numpy()
    assert cache.verify()==[]

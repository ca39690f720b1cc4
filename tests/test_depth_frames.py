"""Depth on disk: every storage gives back what it promises, survives a kill, and is refused for another video."""
import json
import os
import signal
import subprocess
import sys
import time
from fractions import Fraction
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from vidlit.video import depth_frames
from vidlit.video.depth_frames import DepthError, DepthMeta, DepthReader, DepthWriter, max_error, source_id
from vidlit.video.writing import VideoError

from_stored, to_stored, step16 = depth_frames.from_stored, depth_frames.to_stored, depth_frames.step16
quick = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
WAYS = [('png16', 'uint16'), ('npz', 'float32'), ('npz', 'float16'), ('npz', 'uint16'), ('exr', 'float32'),
    ('exr', 'float16'),
        ('zarr', 'float32'), ('zarr', 'float16'), ('zarr', 'uint16')]
exr = pytest.mark.skipif(not __import__('importlib').util.find_spec('OpenEXR'), reason='no OpenEXR')
ways = pytest.mark.parametrize('storage,dtype', [pytest.param(*w, marks=exr) if w[0] == 'exr' else w for w in WAYS])


def values(n=5, h=7, w=9, hole=True):
    z = torch.rand(n, 1, h, w, generator=torch.Generator().manual_seed(0))*59+.5
    if hole: z[:, :, 2, 3] = torch.nan
    return z


def writer(path, storage='npz', dtype=None, **kw):
    kw = {**dict(kind='depth', size=(7, 9), fps=Fraction(2500, 1001), source='worlds 3', frames=5), **kw}
    if dtype == 'uint16' or storage == 'png16': kw = {**dict(lo=.5, hi=60.), **kw}
    return DepthWriter(path, storage=storage, dtype=dtype, **kw)


@ways
def test_comes_back(tmp_path, storage, dtype):
    z = values()
    with writer(tmp_path/'d', storage, dtype) as w:
        for i in (3, 0, 4, 1, 2): w[i] = z[i] if i % 2 else z[i, 0].numpy()
    r = DepthReader(tmp_path/'d', source='worlds 3', kind='depth')
    got = r[:]
    assert got.shape == z.shape and got.dtype == torch.float32 and torch.equal(got.isnan(), z.isnan())
    bound = torch.tensor([max_error(r.meta, float(v)) for v in z.nan_to_num(1).flatten()]).view_as(z)
    assert ((got-z).nan_to_num().abs() <= bound+z.nan_to_num()*2**-23).all()
    if dtype == 'float32': assert torch.equal(got.nan_to_num(), z.nan_to_num())
    assert r.meta.fps == Fraction(2500, 1001) and r.meta.units == 'm' and len(r) == 5
    assert torch.equal(r[[4, 0, 0]].nan_to_num(), got[[4, 0, 0]].nan_to_num()) and r[-1].shape == (1, 7, 9)
    assert r[5:].shape == (0, 1, 7, 9)
    assert not [p for p in (tmp_path/'d').rglob('.*')], 'no temporary files stay'


@quick
@given(lo=st.floats(-1000, 1000), span=st.floats(1e-3, 1e5), t=st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_sixteen_bits_keep_their_promise(lo, span, t):
    s, o = step16(lo, lo+span)
    meta = DepthMeta('disparity', 1, len(t), 25, 'png16', scale=s, offset=o)
    v = np.float32([[lo+span*a for a in t]])
    v = np.clip(v, np.float32(lo), np.float32(lo+span))
    got = from_stored(to_stored(v, meta), meta)[0].numpy()
    assert (abs(got.astype(float)-v) <= max_error(meta)+np.spacing(abs(v).max()+1e-30)).all()


@quick
@given(v=st.floats(2**-20, 65000, width=32))
def test_half_floats_keep_their_promise(v):
    meta = DepthMeta('radius', 1, 1, 25, 'npz', 'float16')
    assert abs(from_stored(to_stored(np.float32([[v]]), meta), meta).item()-v) <= max_error(meta, v)


def test_what_cannot_be_stored(tmp_path):
    w = writer(tmp_path/'d', 'png16')
    z = values()[0]
    for bad, why in ((z*2, 'outside 0.5..60'), (-z, 'greater than 0'), (z[:, :3], r'\[7, 9\]'),
        (z*0, 'greater than 0')):
        with pytest.raises(ValueError, match=why): w[0] = bad
    with pytest.raises(IndexError, match='has 5'): w[5] = z
    with pytest.raises(ValueError, match='65504'): writer(tmp_path/'h', 'npz', 'float16')[0] = z*1e5
    assert len(w) == 0
    for kw, why in ((dict(kind='height'), 'height'), (dict(storage='tiff'), 'tiff'), (dict(lo=2., hi=1.), 'lo < hi'),
        (dict(fps=0), 'fps'),
                    (dict(size=(0, 3)), '0x3'), (dict(storage='exr', dtype='uint16'), 'uint16')):
        with pytest.raises(ValueError, match=why): writer(tmp_path/'x', **kw)
    assert not (tmp_path/'x').exists(), 'nothing is made of what was refused'


def test_nothing_mixed_up(tmp_path):
    for name in 'ab': (tmp_path/f'{name}.mp4').write_bytes(name.encode()*5000)
    p, a, b = tmp_path/'d', tmp_path/'a.mp4', tmp_path/'b.mp4'
    with writer(p, source=a) as w: w.extend(values())
    for kw, why in ((dict(source=b), 'source'), (dict(source=None), 'source'), (dict(kind='radius'), 'kind'),
        (dict(fps=24), 'fps'),
                    (dict(size=(9, 7)), 'height'),
                    (dict(dtype='float16'), 'dtype'), (dict(storage='zarr'), 'storage'),
                    (dict(frames=6), 'number of frames'),
                    (dict(units='feet'), 'units')):
        with pytest.raises(DepthError, match=f'another {why}'): writer(p, **{**dict(source=a), **kw})
    assert len(writer(p, source=a, frames=None)) == 5
    with pytest.raises(DepthError, match='b.mp4'): DepthReader(p, source=b)
    assert isinstance(DepthError('x'), VideoError)
    b.write_bytes(a.read_bytes())
    assert source_id(a) == source_id(b) == source_id(str(a))  # by content, whatever its name
    (tmp_path/'photos').mkdir()
    (tmp_path/'photos/000000.png').touch()
    with pytest.raises(DepthError, match='other things'): writer(tmp_path/'photos')
    with pytest.raises(VideoError, match='no such file'): writer(tmp_path/'n', source=tmp_path/'typo.mp4')


@ways
def test_damage_is_named(tmp_path, storage, dtype):
    with writer(tmp_path/'d', storage, dtype) as w: w.extend(values())
    f = tmp_path/'d'/('frames.zarr/c/2/0/0' if storage == 'zarr' else f'000002.{storage.replace("16", "")}')
    raw = f.read_bytes()
    f.write_bytes(raw[:len(raw)//2])
    r = DepthReader(tmp_path/'d')
    r[1]
    with pytest.raises(DepthError, match='frame 2 cannot be read'): r[2]
    f.unlink()
    with pytest.raises(DepthError, match='frame 2 is missing; 2 of 5') as e: DepthReader(tmp_path/'d')
    assert e.value.good == 2 and len(DepthReader(tmp_path/'d', partial=True)) == 2
    w = writer(tmp_path/'d', storage, dtype)
    assert w.missing() == [2]
    w[2] = values()[2]
    assert len(DepthReader(tmp_path/'d')) == 5


def test_bad_json(tmp_path):
    with pytest.raises(DepthError, match='sequence.json is missing'): DepthReader(tmp_path)
    with writer(tmp_path/'d') as w: w.extend(values())
    j = tmp_path/'d/sequence.json'
    d = json.loads(j.read_text())
    for bad in ('', '[]', '{}', json.dumps({**d, 'format': 'other'}), json.dumps({**d, 'kind': 'x'}),
        json.dumps({**d, 'more': 1}), j.read_text()[:40]):
        j.write_text(bad)
        with pytest.raises(DepthError, match='cannot be read'): DepthReader(tmp_path/'d')


def test_length_unknown_at_first(tmp_path):
    w = writer(tmp_path/'d', 'zarr', frames=None)
    w.extend(iter(values()[:2]))
    with pytest.raises(DepthError, match='unfinished'): DepthReader(tmp_path/'d')
    with pytest.raises(ValueError, match='not known'): w.missing()
    w.extend(values()[2:])
    w.close()
    assert len(DepthReader(tmp_path/'d')) == 5


def test_openexr_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'OpenEXR', None)
    with pytest.raises(ImportError, match=r"pip install OpenEXR"): writer(tmp_path/'d', 'exr')
    assert not (tmp_path/'d').exists()


KILLED = '''
import sys, time, torch
sys.path.insert(0, sys.argv[2])
from test_depth_frames import long
ws = [long(sys.argv[1], s) for s in ('png16', 'zarr', 'npz')]
print('go', flush=True)
for i in range(50):
    for w in ws: w[i] = torch.full((60, 80), float(i))
    time.sleep(.01)
'''


def long(path, storage):
    kw = dict(lo=0., hi=999.) if storage == 'png16' else {}
    return DepthWriter(f'{path}/{storage}', 'disparity', (60, 80), 25, storage, frames=50, **kw)


def test_kill_and_go_on(tmp_path):
    p = subprocess.Popen([sys.executable, '-c', KILLED, str(tmp_path), os.path.dirname(__file__)],
        stdout=subprocess.PIPE)
    assert p.stdout.readline() == b'go\n'
    time.sleep(.1)
    p.send_signal(signal.SIGKILL)
    p.wait()
    for storage in ('png16', 'zarr', 'npz'):
        part = DepthReader(tmp_path/storage, partial=True)
        assert len(part) < 50
        for i in range(len(part)): assert (part[i]-i).abs().max() < .01
        w = long(tmp_path, storage)
        assert w.missing() == list(range(len(part), 50))
        for i in w.missing(): w[i] = torch.full((60, 80), float(i))
        r = DepthReader(tmp_path/storage)
        assert len(r) == 50 and (r[:]-torch.arange(50.)[:, None, None, None]).abs().max() < .01


class _Items(torch.utils.data.Dataset):
    def __init__(self, r): self.r = r
    def __len__(self): return 5
    def __getitem__(self, i): return self.r[i], os.getpid()


@pytest.mark.timeout(60)
@pytest.mark.parametrize('storage', ['npz', 'zarr'])
def test_forked_workers(tmp_path, storage):
    z = values(hole=False)
    with writer(tmp_path/'d', storage) as w: w.extend(z)
    r = DepthReader(tmp_path/'d')
    r[0]  # open before the fork
    got, pids = zip(*torch.utils.data.DataLoader(_Items(r), num_workers=2, multiprocessing_context='fork', timeout=30))
    assert torch.equal(torch.cat(got), z) and os.getpid() not in torch.cat(pids)

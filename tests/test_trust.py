"""What a folder says is data, and what a user has is the user's: nothing executed, nothing of theirs removed,
truncated or replaced.

Harmless inputs only: a module that leaves a mark when it is imported, files that say `mine`."""
import json
import os
import subprocess
import sys
from pathlib import Path
import numpy as np
import pytest
import torch
import zarr
import vidlit.cli.chunks  # noqa: F401 (its commands)
import vidlit.cli.depth  # noqa: F401
import vidlit.cli.stjepa  # noqa: F401
import vidlit.cli.tracks  # noqa: F401
from vidlit.cli.app import app, run_app
from vidlit.floor.places import sweep
from vidlit.floor.store import Manifest, StoreError, TokenCache, WorkList, atomic_path, read_json, write_json, writer
from vidlit.lab.experiment import load_result, save_result
from vidlit.lab.jobs import Job as Piece, read_result, run_job
from vidlit.pipeline.job import ChunkError, make_job, open_job
from vidlit.pipeline.tracks import enrich_file
from vidlit.pipeline.worker import run, status
from vidlit.train.checkpoint import Checkpoint
from vidlit.video.depth_frames import DepthError, DepthReader, DepthWriter
from vidlit.video.writing import numbered_frame, write_video

ENV = {**os.environ, 'OMP_NUM_THREADS': '1'}


@pytest.fixture(scope='module')
def film(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp('film')/'film.mp4', (numbered_frame(i, 24, 80) for i in range(60)), 25)


def said(capsys, *args):
    "Exit code and the one line of a refusal"
    capsys.readouterr()
    code = run_app(app, list(map(str, args)))
    err = capsys.readouterr().err.strip()
    return code, err


def mine(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('mine')
    return path


def everything(folder):
    return {str(o.relative_to(folder)): o.read_bytes() if o.is_file() else None for o in sorted(folder.rglob('*'))}


# 1. A folder is data

@pytest.fixture
def trap(tmp_path, monkeypatch):
    "A module that leaves a mark when it is imported"
    (tmp_path/'lib').mkdir()
    (tmp_path/'lib'/'trap_of_a_plan.py').write_text(
        f"open({str(tmp_path/'imported')!r}, 'w').close()\ndef load(*_): raise ValueError('loaded')\n")
    monkeypatch.syspath_prepend(str(tmp_path/'lib'))
    monkeypatch.setenv('PYTHONPATH', str(tmp_path/'lib'))
    return tmp_path/'imported'


def test_a_plan_names_code_and_nothing_is_imported(film, tmp_path, trap, capsys):
    job = make_job(tmp_path/'job', film, 2)
    write_json(job.path/'plan.json', dict(model='trap_of_a_plan:load', precision='fp32', max_res=None))
    for args in ((), ('--precision', 'fp32'), ('--model', 'toy'), ('--model', 'another:load')):
        code, err = said(capsys, 'chunks', 'run', job.path, '--workers', 1, '--device', 'cpu', *args)
        assert code==2 and 'trap_of_a_plan:load' in err and err.count('\n')==0, err
    for name in ('pool', 'run', 'ray'):
        do = dict(pool='work_on', run='run_workers', ray='run_on_ray')[name]
        if name=='ray' and not __import__('importlib.util').util.find_spec('ray'): continue
        with pytest.raises(ChunkError, match='names code to be run'):
            getattr(__import__(f'vidlit.pipeline.{name}', fromlist=[do]), do)(job.path)
    assert not trap.exists()
    # typed: so it is loaded
    code, err = said(capsys, 'chunks', 'run', job.path, '--workers', 1, '--device', 'cpu', '--model',
        'trap_of_a_plan:load')
    assert trap.exists() and 'loaded' in err


@pytest.mark.parametrize('change',
    [dict(precision='os:system'), dict(max_res=-1), dict(max_res='big'), dict(model=7), dict(model='../weights'),
    dict(load='a:b'), dict(model='a'*9000)])
def test_a_plan_is_checked(film, tmp_path, capsys, change):
    job = make_job(tmp_path/'job', film, 2)
    write_json(job.path/'plan.json', dict(model='toy', precision='fp32', max_res=None)|change)
    code, err = said(capsys, 'chunks', 'run', job.path, '--workers', 1, '--device', 'cpu')
    assert code==2 and 'plan.json' in err and err.count('\n')==0, err
    assert not (job.path/'workers').exists()


@pytest.mark.parametrize('change',
    [dict(film='film.mp4'), dict(frames=-1), dict(frames=10**30), dict(chunks=[]), dict(chunks=[[0, 70]]),
    dict(chunks=[[5, 60]]),
    dict(chunks=[[0, 'x']]), dict(fps='1/0x'), dict(width=10**9),
    dict(fn='os:system'), dict(overlap=True), dict(source='film')])
def test_a_job_is_checked(film, tmp_path, change):
    job = make_job(tmp_path/'job', film, 1, 0)
    write_json(job.path/'job.json', read_json(job.path/'job.json')|change)
    with pytest.raises(ChunkError, match='job.json'): open_job(job.path)


def test_what_workers_left_is_checked(film, tmp_path):
    job = make_job(tmp_path/'job', film, 1, 0)
    write_json(job.path/'workers'/'a.json',
        dict(host='\x1b]0;title\x07', pid=7, chunk=0, window=0, windows=0, frames=0, seconds=0., state='working'))
    with pytest.raises(StoreError, match='a.json: host must be'): status(job.path)
    (job.path/'workers'/'a.json').unlink()
    (job.path/'failures.jsonl').write_text('{"chunk": "x"}\n[]\nhalf')
    assert status(job.path)['failures']==[]
    write_json(job.path/'model.json', dict(model='m', kind='__class__', units=None, metric=False))
    with pytest.raises(ChunkError, match='model.json: kind must be one of'): run(job.path, None, 'm')


@pytest.mark.parametrize('text, why', [('[' * 5000 + ']' * 5000, 'not JSON|levels'), ('[' * 40 + ']' * 40, 'levels'),
    ('{"a": 1, "a": 2}', 'twice'), ('[1e999]', 'not finite'), ('[NaN]', 'no JSON number'),
    ('[' + '9' * 5000 + ']', 'digits'),
    ('"' + 'x' * (2 << 20) + '"', 'characters')])
def test_limits_of_the_reader(tmp_path, text, why):
    (tmp_path/'a.json').write_text(text)
    with pytest.raises(StoreError, match=why): read_json(tmp_path/'a.json')


def test_a_pipe_is_no_file(tmp_path):
    os.mkfifo(tmp_path/'a.json')
    code = (
        f"from vidlit.floor.store import read_json\ntry: read_json({str(tmp_path/'a.json')!r})\nexcept Exception as "
        f"e: print(type(e).__name__)")
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60,
        env=ENV).stdout=='StoreError\n'


def test_a_result_does_not_say_what_to_run(tmp_path, trap):
    piece = Piece('a', 'operator:mul')
    write_json(tmp_path/'a'/'result.json',
        dict(fn='trap_of_a_plan:load', key='a', stamp=piece.stamp, args={}, seconds=0., result=dict(x=1)))
    assert read_result(piece, tmp_path)==dict(x=1) and not trap.exists()
    write_json(tmp_path/'a'/'result.json', dict(stamp=['x'], result={}))
    with pytest.raises(StoreError, match='result.json: stamp must be'): read_result(piece, tmp_path)


# 2. Zarr folders

def spoil(path, **change):
    f = path/'zarr.json'
    f.write_text(json.dumps({**json.loads(f.read_text()), **change}))


PICKLED = [dict(codecs=[{'name': 'bytes', 'configuration': {'endian': 'little'}},
    {'name': 'numcodecs.pickle', 'configuration': {}}]),
    dict(data_type='variable_length_bytes'),
    dict(data_type={'name': 'structured'}), dict(zarr_format=2),
    dict(storage_transformers=[{'name': 'x'}]), dict(shape=[10**30]),
    dict(codecs=[{'name': 'sharding_indexed', 'configuration': {'codecs': [{'name': 'numcodecs.json2'}]}}])]


@pytest.mark.parametrize('change', PICKLED)
def test_zarr_is_numbers(tmp_path, change, monkeypatch):
    cache = TokenCache(tmp_path/'c', 2, (2, 3))
    cache.put(0, torch.ones(2, 3))
    with DepthWriter(tmp_path/'d', 'depth', (4, 6), 25, 'zarr', frames=1) as w: w[0] = torch.ones(4, 6)
    spoil(tmp_path/'c'/'tokens', **change)
    spoil(tmp_path/'d'/'frames.zarr', **change)
    monkeypatch.setattr(zarr, 'open_array', lambda *a, **kw: pytest.fail('zarr was asked to open it'))
    with pytest.raises(StoreError, match='zarr.json'): TokenCache(tmp_path/'c', 2, (2, 3))
    with pytest.raises(DepthError, match='zarr.json'): DepthReader(tmp_path/'d')[0]


def test_zarr_of_format_2_is_not_opened(tmp_path):
    "Where zarr.json is missing, zarr would take .zarray, whose filters may unpickle"
    with DepthWriter(tmp_path/'d', 'depth', (4, 6), 25, 'zarr', frames=1) as w: w[0] = torch.ones(4, 6)
    (tmp_path/'d'/'frames.zarr'/'zarr.json').unlink()
    meta = dict(zarr_format=2, shape=[1, 4, 6], chunks=[1, 4, 6], dtype='<f4', compressor=None, fill_value=0,
        order='C', filters=None, dimension_separator='/')
    (tmp_path/'d'/'frames.zarr'/'.zarray').write_text(json.dumps(meta))
    with pytest.raises(DepthError, match='format 3'): DepthReader(tmp_path/'d')[0]


def test_codecs_have_a_floor():
    text = (Path(__file__).parents[1]/'settings.ini').read_text()
    assert any(o.startswith('numcodecs>=') for o in text.split())


# 3. The user's files

def test_the_lock_of_uv_is_the_users(tmp_path):
    lock = mine(tmp_path/'uv.lock')
    with writer(tmp_path/'uv'): assert lock.read_text()=='mine'
    assert everything(tmp_path)=={'uv.lock': b'mine'}


def test_temporary_names_are_nobodys(tmp_path):
    "Names that writers used to take beside the file, and names of others: all stay as they are"
    pid = os.getpid()
    names = [f'.film.{pid}.tmp.mp4', f'.000000.{pid}.tmp.npz', f'.tmp-{pid}-0-step-00000001.safetensors',
        '.tmp-1-2-notes',
        '.notes.tmp', f'.tmp-{2**22-1}-ab-x']
    for o in names: mine(tmp_path/'d'/o)
    write_video(tmp_path/'d'/'film.mp4', (numbered_frame(i, 24, 80) for i in range(3)), 25)
    with atomic_path(tmp_path/'d'/'x') as p: p.write_text('x')
    with DepthWriter(tmp_path/'e', 'depth', (4, 6), 25): pass
    assert sweep(tmp_path/'d')==[] and all((tmp_path/'d'/o).read_text()=='mine' for o in names)


def test_no_link_leads_a_log_or_a_lock_out(film, tmp_path):
    other = mine(tmp_path/'theirs'/'notes')
    (tmp_path/'w').mkdir()
    (tmp_path/'w'/'done.jsonl').symlink_to(other)
    with pytest.raises(OSError): WorkList(tmp_path/'w', 'ab').finish('a')
    (tmp_path/'.vidlit').symlink_to(other.parent)
    mine(other.parent/'x.lock')
    with pytest.raises(StoreError, match='link'):
        with writer(tmp_path/'x'): pass
    (tmp_path/'.vidlit').unlink()
    job = make_job(tmp_path/'job', film, 1)
    (job.path/'chunk_000').symlink_to(other.parent)
    with pytest.raises(StoreError, match='leads out'): job.drop(0)
    assert everything(other.parent)=={'notes': b'mine', 'x.lock': b'mine'}


def depth_folder(path, film=None):
    with DepthWriter(path, 'depth', (24, 80), 25, source=film, frames=2) as w: w.extend(torch.ones(2, 1, 24, 80))
    return path


def places(film, box): # Commands, each with an `OUT` that takes something of the user's
    d, t = depth_folder(box/'depth'), box/'tracks.json'
    t.write_text(json.dumps(dict(width=80, height=24, tracks=[dict(frame=0, track_id=1, bbox=[1, 1, 9, 9])])))
    job, cache = make_job(box/'job', film, 1).path, mine(box/'films'/'notes.txt').parent
    tracks = 'tracks', t, '--depth', d, '--fov', 60, '--out'
    drawn = *tracks, box/'new.json', '--picture'
    make, note = ('depth', film, '--device', 'cpu', '--out'), mine(box/'note.txt')
    yield from ((*make, o) for o in ('.', '..', '/', note, film, film.parent))
    yield from ((*make, box/'job', '--model', box/'job'), ('chunks', 'split', film, '.'),
        ('chunks', 'split', film, film.parent))
    yield 'chunks', 'split', film, note
    yield from (('chunks', 'merge', job, o) for o in (job, '.', job/'depth', note, film.parent))
    yield from ((*tracks, o) for o in (t, d, d/'sequence.json', d/'new.json', note, '.', box))
    yield from ((*drawn, o) for o in (t, d, d/'000000.npz', note, box/'new.json'/'..'))
    yield from (('targets', 'build', cache, '--teacher', box/'job', '--out', o) for o in ('.', note, cache, box))
    yield from (('pretrain', 'stjepa', d, '--out', o) for o in ('.', note, d, box, cache))
    yield from (('reproduce', 'planner', '--out', o) for o in ('.', note))


def test_places_that_are_refused(film, tmp_path, capsys, monkeypatch):
    box = tmp_path/'box'
    (box/'here').mkdir(parents=True)
    monkeypatch.chdir(box/'here')
    film = (write_video(box/'film'/'film.mp4', (numbered_frame(i, 24, 80) for i in range(3)), 25)
        if (box/'film').mkdir() is None else None)
    commands = list(places(film, box))
    before = everything(box)
    for args in commands:
        code, err = said(capsys, *args)
        assert code==2 and err.count('\n')==0 and err.startswith('vidlit: '), (args, code, err)
        assert everything(box)==before, args
    assert len(commands)>30


def test_python_is_refused_too(film, tmp_path):
    from vidlit.pipeline.merge import merge
    from vidlit.pipeline.run import depth_in_chunks
    from vidlit.pipeline.video_depth import video_depth
    d, note = depth_folder(tmp_path/'d'), mine(tmp_path/'note.json')
    (tmp_path/'t.json').write_text('[{"frame": 0, "bbox": [1, 1, 9, 9]}]')
    before = everything(tmp_path)
    for do in (lambda: video_depth(film, film.parent), lambda: video_depth(film, film),
        lambda: depth_in_chunks(film, film.parent),
            lambda: make_job(film.parent, film), lambda: make_job('.', film),
            lambda: enrich_file(tmp_path/'t.json', d, d/'sequence.json', relative=True),
            lambda: enrich_file(tmp_path/'t.json', d, note, torch.eye(3)*50)):
        with pytest.raises(ValueError, match='--(out|job)'): do()
    job = make_job(tmp_path/'job', film, 1)
    with pytest.raises(ValueError, match='lies in the input'): merge(job.path, job.path/'out')
    with pytest.raises(ValueError, match='is the input'): job.extract(0, film)
    assert {k: v for k, v in everything(tmp_path).items() if not k.startswith('job')}==before


def test_the_same_command_may_replace_its_own(film, tmp_path, capsys):
    d, t = depth_folder(tmp_path/'d'), tmp_path/'t.json'
    t.write_text('[{"frame": 0, "bbox": [1, 1, 9, 9]}]')
    args = ('tracks', t, '--depth', d, '--fov', 60, '--size', '80x24', '--out', tmp_path/'o.json', '--picture',
        tmp_path/'o.png')
    assert [said(capsys, *args)[0] for _ in range(2)]==[0, 0]


def test_foreign_files_survive_in_our_folders(tmp_path):
    "A note beside windows, checkpoints, parts; a folder that no job has made"
    (tmp_path/'ckpt').mkdir()
    for o in ('step-best.safetensors', 'step-00000001.safetensors', 'step-00000002.safetensors'):
        mine(tmp_path/'ckpt'/o)
    assert [o.name for o in Checkpoint(tmp_path/'ckpt').files]==['step-00000001.safetensors',
        'step-00000002.safetensors']
    mine(tmp_path/'jobs'/'a'/'letter.txt')
    with pytest.raises(StoreError, match='holds other things'): run_job(Piece('a', 'builtins:dict'), tmp_path/'jobs')
    assert (tmp_path/'jobs'/'a'/'letter.txt').read_text()=='mine'
    from vidlit.pipeline.video_depth import _tidy
    for o in ('.work/letter.txt', '.notes.tmp', 'frames.zarr/my.partial', '.work/part_0000000.npy'):
        mine(tmp_path/'out'/o)
    _tidy(tmp_path/'out', True)
    left = sorted(str(o.relative_to(tmp_path/'out')) for o in (tmp_path/'out').rglob('*') if o.is_file())
    assert left==['.notes.tmp', '.work/letter.txt', 'frames.zarr/my.partial']
    from vidlit.pipeline.parts import Point, save_point
    mine(tmp_path/'p'/'state_mine.safetensors')
    save_point(Point(3), tmp_path/'p')
    assert (tmp_path/'p'/'state_mine.safetensors').exists()


def test_names_do_not_leave_their_folder(tmp_path):
    secret = mine(tmp_path/'secret.png')
    entry = dict(size=4, sha256='0'*64)
    for i, name in enumerate(('../secret.png', str(secret), 'a/../../secret.png', 'link/secret.png')):
        box = tmp_path/f'm{i}'
        box.mkdir()
        (box/'link').symlink_to(tmp_path)
        write_json(box/'manifest.json', dict(files={name: entry}))
        with pytest.raises(StoreError, match='leads out'): Manifest(box)
        write_json(tmp_path/'runs'/f'e{i}'/'metrics.json', dict(seeds=1, figures=[dict(file=name, caption='')]))
        with pytest.raises(StoreError): save_result(f'e{i}', tmp_path/'runs', tmp_path/'kept')
        with pytest.raises(StoreError): load_result(f'e{i}', tmp_path/'runs')
    assert not list((tmp_path/'kept').rglob('*.png')) if (tmp_path/'kept').exists() else True


def test_targets_do_not_leave_their_films(tmp_path):
    from vidlit.pretrain.target_cache import TargetCache
    clips = dict(frames=16, size=32, sampling='uniform', stride=4, patch=[2, 16, 16])
    good = dict(version=1, root=str(tmp_path), films=['a.mp4'], labels=[0], vocab=['x'], clips=clips, dim=3,
        teacher='t', projection='p', about={})
    for change in (dict(films=['../a.mp4']), dict(films=['/etc/hosts']), dict(labels=[]), dict(dim=10**9),
        dict(clips=dict(clips, load='a:b'))):
        write_json(tmp_path/'c'/'targets.json', good|change)
        with pytest.raises(StoreError, match='targets.json'): TargetCache(tmp_path/'c')


# 4. Addresses

INSIDE = ['64:ff9b::7f00:1', '64:ff9b::a00:1', '64:ff9b:1::a00:1', '::127.0.0.1', '::ffff:8.8.8.8',
    '::ffff:0:10.0.0.1', 'fec0::1', 'feff::1',
    '2001:0:a00:1::1', '2002:a00:1::1', '2606::5efe:a00:1', '192.88.99.1', '192.0.0.8']


@pytest.mark.parametrize('address', INSIDE)
def test_what_stands_for_an_inner_address_is_inner(address):
    from vidlit.depth.images import FetchError, check_url, fetch_image
    with pytest.raises(FetchError, match='not public'): check_url('http://pictures.example/a.png', lambda *_: [address])
    class Moved:
        status, headers = 302, {'Location': 'http://inner.example/a.png'}
        def close(self): pass
    names = {'pictures.example': ['93.184.216.34'], 'inner.example': ['93.184.216.34', address]}
    asked = []
    def opener(u, *_): return asked.append(u.hostname) or Moved()
    with pytest.raises(FetchError, match='not public'):
        fetch_image('http://pictures.example/', opener=opener, resolve=lambda h, _: names[h])
    assert asked==['pictures.example']


# 5. What sweep removes

def test_sweep_knows_whose_it_is(tmp_path):
    from vidlit.floor.places import is_left
    code = 'from vidlit.floor.places import _mark; print(_mark())'
    gone = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=ENV).stdout.strip()
    boot, ids, pid, began, rand = gone.split('-')[1:]
    foreign = [f'.vidlit-{boot[::-1]}x-{ids}-{pid}-{began}-{rand}', f'.vidlit-{"f"*8}-{ids}-{pid}-{began}-{rand}',
        f'.vidlit-{boot}-{int(ids)+1}-{pid}-{began}-{rand}', '.vidlit-mine', '.vidlit', f'.tmp-{pid}-00-x']
    for o in (gone, *foreign): mine(tmp_path/o/'x')
    assert [o.name for o in sweep(tmp_path)]==[gone] and is_left(gone)
    assert sorted(o.name for o in tmp_path.iterdir())==sorted(foreign)


def test_arrays_of_objects_are_not_loaded(tmp_path):
    "numpy's own door: files of objects need a pickle, and get none"
    from vidlit.pipeline.depth_source import load_depths
    np.save(tmp_path/'a.npy', np.array([None], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError): load_depths(tmp_path/'a.npy')

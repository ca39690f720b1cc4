"""Two writers in one place, sources exchanged under the same name, outputs that are there, pieces that are lost, disks
that are full: one line that names it, and nothing of what was there is touched."""
import errno
import json
import os
import re
import shutil
import signal
import faults
import kills
import pytest
import torch
from vidlit.floor.places import NoRoom, ReadOnly, lock_of, temp_box
from vidlit.floor.store import CacheMismatch, StoreError, TokenCache, making, write_json, writer
from vidlit.lab.jobs import Job, JobError, run_jobs
from vidlit.video.writing import numbered_frame, write_video


@pytest.fixture(scope='module')
def box(tmp_path_factory):
    kills.warm()
    return faults.inputs(tmp_path_factory.mktemp('writers')/'inputs')


def said(capsys): return [o for o in capsys.readouterr().err.splitlines() if o.startswith('vidlit: ')]
def numbered(path, first, n=8, size=24): return write_video(path, (numbered_frame(first+j, size) for j in range(n)), 8)


# a second writer

# several may work on the windows of one job ('chunks', 'depth chunks')
ONE = {k: f for k, f in faults.CASES.items()
    if k not in (*faults.WAITS, 'chunks', 'depth chunks', 'pretrain', 'splat', 'codec')}
ONE['codec encode'] = lambda p, r: kills.vidlit('codec', 'encode', p/'video.mp4', '--out', r/'v.vlc', '--max-len', 2)
ONE['splat train'] = lambda p, r: kills.vidlit('splat', 'train', p/'balls', '--out', r/'out', '--steps', 2, '--quiet')
OUT = {'stereo': 's.mp4', 'tracks': 'o.json', 'codec encode': 'v.vlc'}


@pytest.mark.parametrize('name', ONE)
def test_a_second_writer_is_told_who_has_it(box, tmp_path, capsys, name):
    with writer(tmp_path/OUT.get(name, 'out')): code = ONE[name](box, tmp_path)
    assert code==2 and re.search(rf'is held by process {os.getpid()}$', said(capsys)[-1])
    assert not kills.contents(tmp_path)


def test_stereo_looks_again_when_it_has_the_place(box, tmp_path, capsys, monkeypatch):
    "Another process made the video between the look and the lock"
    from vidlit.floor import store
    out, hold = tmp_path/'s.mp4', store.locked
    def late(path):
        out.write_bytes(b"another's")
        return hold(path)
    monkeypatch.setattr(store, 'locked', late)
    assert faults.CASES['stereo'](box, tmp_path)==2 and 'is there already' in said(capsys)[0]
    assert out.read_bytes()==b"another's"


# who was killed at the very end

def left_behind(out):
    "What a writer leaves that is killed when all of it is written: its lock and a temporary folder; the place of locks"
    if out.is_file(): return lock_of(out).parent.mkdir()
    if pid := os.fork(): return os.waitpid(pid, 0)
    with writer(out), temp_box(out): os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize('name', ['stereo', 'codec', 'depth png16', 'depth chunks', 'refine', 'flow', 'pyramid'])
def test_what_was_killed_at_its_end_is_tidied_by_the_same_command(box, tmp_path, capsys, name):
    assert not faults.CASES[name](box, tmp_path)
    whole = kills.contents(tmp_path)
    left_behind(tmp_path/{**OUT, 'codec': 'v.mkv'}.get(name, 'out'))
    assert kills.left_over(tmp_path)
    faults.CASES[name](box, tmp_path) # done already, or refused since it is there
    assert not kills.left_over(tmp_path) and not kills.unlike(kills.contents(tmp_path), whole)


# what is there already

def test_decoding_does_not_take_the_place_of_the_video_that_was_encoded(box, tmp_path, capsys):
    "video.mkv, encoded to video.vlc, decoded to video.mkv"
    film = shutil.copy(box/'video.mp4', tmp_path/'film.mkv')
    was = film.read_bytes()
    assert kills.vidlit('codec', 'encode', film, '--max-len', 2)==0
    assert kills.vidlit('codec', 'decode', tmp_path/'film.vlc')==2 and 'is there already' in said(capsys)[0]
    assert film.read_bytes()==was
    assert kills.vidlit('codec', 'encode', film, '--max-len', 2)==0 # the same bytes again
    vlc = (tmp_path/'film.vlc').read_bytes()
    assert kills.vidlit('codec', 'encode', film, '--max-len', 3)==2 and 'with other content' in said(capsys)[0]
    assert (tmp_path/'film.vlc').read_bytes()==vlc


@pytest.mark.parametrize('end', ['.ply', '.splat', '.spz', '.html'])
def test_an_export_of_another_scene_is_kept(tmp_path, capsys, end):
    from vidlit.splat.files import write_ply
    from vidlit.splat.gaussians import Gaussians
    def scene(seed):
        gen = torch.Generator().manual_seed(seed)
        def x(*s): return torch.rand(*s, generator=gen)
        return write_ply(tmp_path/f'{seed}.ply', Gaussians(x(5, 3), x(5, 3)-4, x(5, 4), x(5), x(5, 1, 3)))
    a, b, out = scene(0), scene(1), tmp_path/f'out{end}'
    assert kills.vidlit('splat', 'export', a, '--out', out)==0
    was = out.read_bytes()
    assert kills.vidlit('splat', 'export', a, '--out', out)==0 and out.read_bytes()==was
    assert kills.vidlit('splat', 'export', b, '--out', out)==2 and 'with other content' in said(capsys)[0]
    assert out.read_bytes()==was and sorted(o.name for o in tmp_path.iterdir())==['0.ply', '1.ply', f'out{end}']


def test_a_model_of_another_seed_is_kept(tmp_path):
    def make(seed, end=True):
        with making(tmp_path/'m', tmp_path/'work', dict(seed=seed), lr=.1):
            (tmp_path/'m').mkdir(exist_ok=True)
            (tmp_path/'m'/'w').write_text(f'{seed}')
            if not end: raise KeyboardInterrupt
            write_json(tmp_path/'m'/'recipe.json', dict(seed=seed))
    with pytest.raises(KeyboardInterrupt): make(0, end=False)
    with pytest.raises(CacheMismatch, match='seed is 0, not 1'): make(1)
    make(0)
    with pytest.raises(CacheMismatch, match='seed 0, not 1'): make(1)
    assert (tmp_path/'m'/'w').read_text()=='0' and not (tmp_path/'work').exists()
    (tmp_path/'m'/'recipe.json').unlink()
    with pytest.raises(StoreError, match='other things'): make(1)


# another source under the old name

def test_another_video_is_not_gone_on_with(tmp_path):
    "Of the same length and size, begun with a teacher that was stopped"
    from vidlit.refiner.precompute import precompute
    from vidlit.video.reader import VideoReader
    def teacher(rgb): return 1+rgb[:, :1], rgb[:, :1], None
    f, out = tmp_path/'a.mp4', tmp_path/'out'
    def go(report=None):
        with VideoReader(f) as v: return precompute(v, teacher, out, 'x', piece=4, report=report)
    def stop(n): raise InterruptedError
    numbered(f, 0)
    with pytest.raises(InterruptedError): go(stop)
    was = kills.contents(out)
    numbered(f, 100)
    with pytest.raises(StoreError, match='another source'): go()
    assert kills.contents(out)==was
    numbered(f, 0)
    go()
    assert len([*out.glob('*.npz')])==8
    about = json.loads((out/'about.json').read_text())
    write_json(out/'about.json', {k: v for k, v in about.items() if k!='source'}) # as earlier versions wrote it
    go()


@pytest.mark.parametrize('name', ['finetune', 'pretrain videomae'])
def test_a_run_on_other_videos_is_not_gone_on_with(box, tmp_path, capsys, name):
    q = shutil.copytree(box, tmp_path/'inputs')
    (r := tmp_path/'r').mkdir()
    assert faults.CASES[name](q, r)==0
    was = kills.contents(r)
    faults._exchange(name, q)
    assert faults.CASES[name](q, r)==2 and re.search('content|videos is', said(capsys)[-1])
    assert kills.contents(r)==was


def test_jobs_that_are_done_on_a_folder_of_videos_are_of_these_videos(tmp_path):
    from vidlit.lab.experiment import Experiment, run_experiment
    numbered((tmp_path/'data').mkdir() or tmp_path/'data'/'a.mp4', 0)
    def summary(res, root): return dict(rows=[], paired=[], figures=[], headline='', facts=dict(res))
    def jobs(scale, seeds, variants, data): return [Job('s', 'experiment_toys:steps', dict(n=1, seconds=0.))]
    e = Experiment('toy', 'What?', 'none', jobs, summary, dict(toy=.1), takes_data=True)
    def go(): return run_experiment(e, tmp_path/'out', data=str(tmp_path/'data'))
    assert go()['facts']==go()['facts']
    was = kills.contents(tmp_path/'out'/'toy-films'/'jobs')
    numbered(tmp_path/'data'/'a.mp4', 50)
    with pytest.raises(CacheMismatch, match='data is'): go()
    assert kills.contents(tmp_path/'out'/'toy-films'/'jobs')==was


# a piece of a cache

def test_targets_that_were_lost_are_said_and_made_again(box, tmp_path, capsys):
    assert not kills.pretrain(box, tmp_path)
    whole = kills.contents(tmp_path)
    chunk = tmp_path/'cache'/'tokens'/'c'/'2'/'0'/'0'
    chunk.unlink()
    capsys.readouterr()
    train = 'pretrain', 'stjepa', tmp_path/'cache', '--out', tmp_path/'new', '--dim', 16, '--depth', 2, '--heads', 2
    assert kills.vidlit(*train, '--fact', 1, '--bs', 2, '--steps', 2, '--quiet')==2
    assert '1 of 4 videos have lost their targets' in said(capsys)[0] and not (tmp_path/'new').exists()
    assert not kills.pretrain(box, tmp_path) and 'made again' in said(capsys)[0]
    assert chunk.is_file() and not kills.unlike(kills.contents(tmp_path), whole)


def test_an_item_of_zeros_is_not_lost(tmp_path):
    c = TokenCache(tmp_path/'c', 2, (2, 3), t='x')
    c.put(0, torch.zeros(2, 3))
    c.put(1, torch.ones(2, 3))
    assert c.lost()==[] and torch.equal(c[0], torch.zeros(2, 3).half()) and not os.path.exists(c._chunk(0))


def test_an_item_is_compared_again_when_its_file_is_another(tmp_path):
    c = TokenCache(tmp_path/'c', 2, (2, 3), t='x')
    for i in range(2): c.put(i, torch.full((2, 3), i+1.))
    assert c[1].eq(2).all()
    b = bytearray(open(c._chunk(1), 'rb').read())
    os.unlink(c._chunk(1))
    with pytest.raises(StoreError, match='lost or damaged'): c[1] # gone after it was read: zarr gives zeros
    open(c._chunk(1), 'wb').write(b)
    assert c[1].eq(2).all()
    c.arr[1] = torch.ones(2, 3).half().numpy()
    with pytest.raises(StoreError, match='lost or damaged'): c[1]


# a disk that is full, or read-only, found by jobs of the laboratory

def no_room(ctx): raise OSError(errno.ENOSPC, 'No space left on device')
def shut(ctx): raise OSError(errno.EROFS, 'Read-only file system')
def no_room_too(ctx): raise RuntimeError('Error while serializing: No space left on device (os error 28)')
def bug(ctx): raise KeyError('x')
def fine(ctx): return dict(x=1)


@pytest.mark.parametrize('workers', [1, 2])
@pytest.mark.parametrize('one,other,kind', [('no_room', 'no_room_too', NoRoom), ('shut', 'shut', ReadOnly),
    ('no_room', 'bug', JobError)])
def test_jobs_say_what_the_disk_is_to_blame_for(tmp_path, workers, one, other, kind):
    jobs = [Job('fine', 'test_writers:fine'), Job('a', f'test_writers:{one}'), Job('b', f'test_writers:{other}'),
        Job('c', 'test_writers:fine', {}, ('a',))]
    with pytest.raises((NoRoom, ReadOnly, JobError)) as got: run_jobs(jobs, tmp_path/'out', workers)
    assert type(got.value) is kind
    if kind is not JobError: assert str(tmp_path/'out') in str(got.value) and '1 of 4 jobs are kept' in str(got.value)


def test_the_disk_is_named_where_a_lock_or_a_stamp_finds_it(tmp_path, monkeypatch):
    "Not the job, but what is written around it"
    import vidlit.lab.jobs as J
    def full(*a, **kw): raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(J, 'write_json', full)
    with pytest.raises(NoRoom, match='0 of 1 jobs are kept; make room'):
        run_jobs([Job('fine', 'test_writers:fine')], tmp_path/'out')
    monkeypatch.undo()
    monkeypatch.setattr(J, '_free_locks', full)
    with pytest.raises(NoRoom): run_jobs([Job('fine', 'test_writers:fine')], tmp_path/'out')

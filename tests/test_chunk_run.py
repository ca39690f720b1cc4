"""Worker processes: shared, killed, hung up, asked to leave; through the command line and from Python."""
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
import chunk_toys
import pytest
import torch
import vidlit.cli.chunks  # noqa: F401 (puts its commands into the app)
from vidlit.cli.app import app, run_app
from vidlit.depth.windows import n_windows
from vidlit.floor.store import write_json
from vidlit.pipeline import pool as R
from vidlit.pipeline.job import ChunkError, make_job
from vidlit.pipeline.merge import merge
from vidlit.pipeline.pool import Plan, WorkerPool, make_plan, work_on
from vidlit.pipeline.run import depth_in_chunks, run_workers
from vidlit.pipeline.worker import run, status
from vidlit.video.depth_frames import DepthReader
from vidlit.video.writing import numbered_frame, write_video

HERE, VIDLIT = Path(__file__).parent, str(Path(sys.executable).parent/'vidlit')
ENV = {**os.environ, 'OMP_NUM_THREADS': '1', 'MKL_NUM_THREADS': '1',
    'PYTHONPATH': os.pathsep.join([str(HERE), str(HERE.parent)])}


def contents(path):
    return {o.relative_to(path).as_posix(): o.read_bytes() for o in sorted(path.glob('chunk_*/*')) if o.suffix!='.lock'}
def images(path): return {o.name: o.read_bytes() for o in sorted(path.glob('[!.]*.*'))}
def calls(log): return log.stat().st_size if log.exists() else 0
def windows(job): return sum(n_windows(job.length(c)) for c in range(len(job.chunks)))
def done(job): return sum(len(job.work(c).done) for c in range(len(job.chunks)))


def until(f, seconds=120):
    end = time.monotonic()+seconds
    while not (got := f()):
        assert time.monotonic()<end, 'too late'
        time.sleep(.02)
    return got


def command(*args, **env):
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen([VIDLIT, 'chunks', *map(str, args)], env={**ENV, **env}, **pipes)


class Forked:
    "A process with a session of its own, as `Popen` starts it, but a fork: no second import of torch"
    def __init__(self, f, out):
        self.returncode, self.pid = None, os.fork()
        if self.pid: return
        try:
            os.setsid()
            for fd in (1, 2): os.dup2(out.fileno(), fd)
            sys.stdout, sys.stderr = os.fdopen(1, 'w', closefd=False), os.fdopen(2, 'w', closefd=False)
            try: code = f()
            except SystemExit as e:
                if not isinstance(e.code, int): print(e.code, file=sys.stderr)
                code = e.code if isinstance(e.code, int) else 1
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code or 0)
        finally: os._exit(99)

    def poll(self):
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid: self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout=120):
        end = time.monotonic()+timeout
        while self.poll() is None:
            if time.monotonic()>end: raise subprocess.TimeoutExpired('a fork', timeout)
            time.sleep(.01)
        return self.returncode

    def terminate(self): os.kill(self.pid, signal.SIGTERM)
    def kill(self): os.kill(self.pid, signal.SIGKILL)


def fork_worker(code, args, log, threads, **env):
    "In place of `pool._spawn`; one thread whatever is asked, since OpenMP's threads do not live through a fork"
    log.parent.mkdir(parents=True, exist_ok=True)

    def work():
        sys.argv = ['', json.dumps({**json.loads(args), 'threads': 1})]
        R._worker()
    with log.open('ab') as out: return Forked(work, out)


@pytest.fixture
def forks(monkeypatch, tmp_path):
    """Workers are forks, and so is the command: forks(*args) gives the process and the file of what it says.

    New processes, with all their imports, are what `command` starts."""
    monkeypatch.setattr(R, '_spawn', fork_worker)

    def start(*args, **env):
        said = (tmp_path/f'said{len(list(tmp_path.glob("said*")))}').open('w+b')

        def go():
            os.environ.update(env)
            return run_app(app, ['chunks', *map(str, args)])
        return Forked(go, said), said.name
    return start


def pids(job): return [o['pid'] for o in status(job.path)['workers'] if o['state'] in ('working', 'waiting')]


def gone(pid):
    try: return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0]=='Z'
    except OSError: return True


@pytest.fixture(scope='module')
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp('video')/'video.mp4', (numbered_frame(i) for i in range(300)), 25)


@pytest.fixture(scope='module')
def undisturbed(video, tmp_path_factory):
    "A job done in one go by one worker, and its merged video"
    path = tmp_path_factory.mktemp('whole')
    job = make_job(path/'job', video, 6, 12)
    make_plan(job.path, Plan('chunk_toys:drifting'))
    work_on(job.path, threads=1, model='chunk_toys:drifting')
    merge(job.path, path/'out')
    return contents(job.path), images(path/'out')


@pytest.fixture
def job(video, tmp_path):
    job = make_job(tmp_path/'job', video, 6, 12)
    make_plan(job.path, Plan('chunk_toys:drifting'))
    return job


def test_ten_kills_through_the_command_line(job, undisturbed, tmp_path, forks):
    "Workers and those who watch them die at random moments; the same command goes on each time"
    rng, log, kills, killed = random.Random(3), tmp_path/'calls', 0, 0
    def start():
        return forks('run', job.path, '--model', 'chunk_toys:drifting', '--workers', 2, '--device', 'cpu', '--quiet',
            TOY_LOG=str(log), TOY_SLOW='.2')
    def kill(pid):
        nonlocal kills
        with suppress(ProcessLookupError): os.kill(pid, signal.SIGKILL) # who is not watched any more has left
        kills += 1
    for _ in range(3):
        (p, _), before = start(), done(job)
        two = until(lambda b=before: len(o := pids(job))==2 and done(job)>b and o)
        rng.shuffle(two)
        for pid in (two[0], p.pid, two[1]):
            time.sleep(rng.uniform(0, .15))
            kill(pid)
            killed += pid!=p.pid
            if pid==p.pid: p.wait()
        killed += len(pids(job)) # one that came for the first, when the watcher was quick enough
        until(lambda: not pids(job), 10) # with the watcher
    (p, said), before = start(), done(job)
    kill(rng.choice(until(lambda: done(job)>before and pids(job))))
    assert p.wait()==0 and kills==10, Path(said).read_text()
    assert contents(job.path)==undisturbed[0]
    assert windows(job)<=calls(log)<=windows(job)+killed+1, 'done twice beyond the windows in flight'
    assert not list(job.path.rglob('.vidlit-*'))
    merge(job.path, tmp_path/'out')
    assert images(tmp_path/'out')==undisturbed[1]


def test_two_workers_with_a_real_network_are_one(tmp_path, forks):
    import vidlit.depth.video_depth_weights  # noqa: F401 (save_pretrained)
    from vidlit.depth.depth_anything import DepthAnything, DepthAnythingConfig
    from vidlit.depth.dinov2 import dinov2_s
    from vidlit.depth.dpt import DPTConfig
    from vidlit.depth.temporal_head import add_time
    gen = torch.Generator().manual_seed(0)
    small = DepthAnythingConfig(replace(dinov2_s, dim=16, depth=4, heads=2, patch=(1, 8, 8)),
        DPTConfig(16, 8, (8, 8, 8, 8), 8, 4), (0, 1, 2, 3), 2)
    net = add_time(DepthAnything(small, gen, 'xavier'), gen, heads=4, groups=4)
    for m in net.time.values(): torch.nn.init.normal_(m.proj_out.weight, std=.2, generator=gen)
    net.save_pretrained(tmp_path/'net')
    clip = write_video(tmp_path/'clip.mp4', (numbered_frame(i) for i in range(60)), 25)
    threads = torch.get_num_threads()
    got = depth_in_chunks(clip, tmp_path/'two', tmp_path/'net', 2, 8, workers=2, device='cpu')
    one = make_job(tmp_path/'one', clip, 2, 8)
    make_plan(one.path, Plan(str(tmp_path/'net')))
    work_on(one.path, threads=1)
    merge(one.path, tmp_path/'want')
    assert images(tmp_path/'two')==images(tmp_path/'want') and len(got)==60
    assert got[:].std()>0 and not list((tmp_path/'two.chunks').glob('chunk_*'))
    from vidlit.pipeline.video_depth import video_depth
    go = make_job(tmp_path/'go', clip, 1)
    make_plan(go.path, Plan(str(tmp_path/'net')))
    work_on(go.path, threads=1)
    whole = merge(go.path, tmp_path/'whole', storage='npz')
    video_depth(clip, tmp_path/'straight', tmp_path/'net', device='cpu', storage='npz')
    off = (whole[:]-DepthReader(tmp_path/'straight')[:]).abs().max()
    assert off<1e-5*whole[:].max(), f'one chunk is the video in one go, but for {off}'
    torch.set_num_threads(threads)


def test_the_terminal_closes(job, undisturbed, tmp_path):
    "The command runs on a terminal of its own; the terminal goes; the job gets done, and the watcher goes home"
    master, slave = os.openpty()
    typed = ['vidlit', 'chunks', 'run', str(job.path), '--model', 'chunk_toys:drifting', '--workers', '1',
        '--device', 'cpu']
    code = ('import os, fcntl, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0); '
        f'os.execv({VIDLIT!r}, {typed!r})')
    p = subprocess.Popen([sys.executable, '-c', code], stdin=slave, stdout=slave, stderr=slave,
        env={**ENV, 'TOY_SLOW': '.1'})
    os.close(slave)
    until(lambda: done(job)>0)
    was = done(job)
    os.close(master) # the kernel sends SIGHUP to everybody there
    until(lambda: p.poll() is not None)
    assert was<windows(job)==done(job) and contents(job.path)==undisturbed[0]
    assert not pids(job)


def test_asked_to_leave_it_takes_its_workers_along(job, undisturbed):
    p = command('run', job.path, '--model', 'chunk_toys:drifting', '--workers', 2, '--device', 'cpu', TOY_SLOW='.3')
    two = until(lambda: done(job)>0 and pids(job))
    p.terminate()
    err = p.communicate(timeout=60)[1]
    assert p.returncode==130 and 'same command goes on' in err and err.count('\n')==1
    until(lambda: all(gone(o) for o in two), 10)
    assert 0<done(job)<windows(job)
    now = run_workers(job.path, 1, 'cpu', model='chunk_toys:drifting')
    assert now['deaths']==0 and contents(job.path)==undisturbed[0]


@pytest.mark.parametrize('stopped', [False, True])
def test_nobody_goes_on_whom_nobody_watches(job, undisturbed, forks, stopped):
    "Only the watcher is killed: its workers leave, a stopped one too; the same command goes on at once"
    p, _ = forks('run', job.path, '--model', 'chunk_toys:drifting', '--workers', 2, '--device', 'cpu', TOY_SLOW='.2')
    two = until(lambda: done(job)>0 and len(o := pids(job))==2 and o)
    if stopped: os.kill(two[0], signal.SIGSTOP)
    p.kill()
    p.wait()
    until(lambda: all(map(gone, two)), 10)
    began = time.monotonic()
    assert run_workers(job.path, 1, 'cpu', model='chunk_toys:drifting')['deaths']==0 and time.monotonic()-began<30
    assert contents(job.path)==undisturbed[0] and not list(job.path.rglob('.vidlit-*'))


def test_steal(job, undisturbed, forks):
    "A lease of a machine that was switched off: the line says for whom it waits, --steal does not wait"
    elsewhere = dict(host='elsewhere', pid=7, token='x', until=time.time()+600, ttl=600.)
    write_json(job.path/'leases'/'002.json', elsewhere)
    args = 'run', job.path, '--model', 'chunk_toys:drifting', '--workers', 1, '--device', 'cpu'
    p, said = forks(*args)
    until(lambda: 'waits: chunk 2 is held by elsewhere:7 for up to 5' in Path(said).read_text())
    assert done(job)==windows(job)-n_windows(job.length(2)) and Path(said).read_text().count('\n')==1
    p.terminate()
    assert p.wait()==130
    assert forks(*args, '--steal')[0].wait()==0 and contents(job.path)==undisturbed[0]


def test_a_lease_without_end_is_none(job, undisturbed):
    "As a clock that was wrong leaves it"
    write_json(job.path/'leases'/'002.json', dict(host='elsewhere', pid=7, token='x', until=time.time()+1e9, ttl=60.))
    work_on(job.path, threads=1, model='chunk_toys:drifting')
    assert contents(job.path)==undisturbed[0]


def test_detached(job, undisturbed):
    p = command('run', job.path, '--model', 'chunk_toys:drifting', '--workers', 1, '--device', 'cpu', '--detach',
        '--json')
    out, err = p.communicate(timeout=120)
    said = json.loads(out)
    assert p.returncode==0 and Path(said['log']).exists(), err
    until(lambda: done(job)==windows(job))
    until(lambda: gone(said['process']), 60)
    assert contents(job.path)==undisturbed[0]


def test_status_while_it_runs(job, forks):
    w, said = forks('status', job.path, '--watch', '--json', '--every', .1)
    until(lambda: Path(said).read_text().endswith('\n'))
    p, _ = forks('run', job.path, '--model', 'chunk_toys:drifting', '--workers', 1, '--device', 'cpu', '--quiet',
        TOY_SLOW='.1')
    assert w.wait()==0 and p.wait()==0
    lines = [json.loads(o) for o in Path(said).read_text().splitlines()]
    assert lines[0]['done']==0 and lines[0]['left'] is None and lines[-1]['done']==300 and lines[-1]['left']==0
    mid = next(o for o in lines if o['done'] and o['left'] and o['workers'] and o['workers'][0]['state']=='working')
    row = mid['workers'][0]
    assert row['memory']>1e7 and 0<row['busy']<3 and row['device'].startswith('cpu x ')
    assert row['rate']>0 and mid['left']>0


def test_a_part_for_each_task_of_an_array(job, undisturbed, monkeypatch):
    monkeypatch.setenv('SLURM_ARRAY_TASK_COUNT', '2')
    for i in (1, 0):
        monkeypatch.setenv('SLURM_ARRAY_TASK_ID', str(i))
        run_workers(job.path, 1, 'cpu', model='chunk_toys:drifting')
        if i: assert [not job.work(c).missing for c in range(6)]==[False, True]*3
    assert contents(job.path)==undisturbed[0]


def test_a_full_disk_says_so(video, undisturbed, tmp_path, monkeypatch):
    job = make_job(tmp_path/'job', video, 6, 12)
    make_plan(job.path, Plan('chunk_toys:full'))
    with pytest.raises(ChunkError, match=r'6 of 6 chunks are not done, the rest is kept.*No space left.*same command'):
        run_workers(job.path, 1, 'cpu', model='chunk_toys:full')
    assert done(job)==1
    run(job.path, lambda w: chunk_toys.Drifting().infer(w), 'drifting') # the same model, with room
    assert contents(job.path)==undisturbed[0]


def test_who_fails_reads_no_further(video, tmp_path):
    "A thread that decodes while the video is closed, or while Python ends, takes the process with it"
    job, before = make_job(tmp_path/'job', video, 2, 12), threading.active_count()
    with pytest.raises(ChunkError, match='No space left') as held: run(job.path, chunk_toys.Full().infer, 'drifting')
    assert threading.active_count()<=before and done(job)==1 and held.tb


@pytest.mark.parametrize('fits', [2, 1])
def test_as_many_as_fit(job, undisturbed, monkeypatch, forks, fits):
    "The first worker shows what it takes; then the second comes, or the first makes room for one with both cores"
    monkeypatch.setattr(R, 'cores', lambda: 2)
    monkeypatch.setattr('torch.get_num_threads', lambda: 2)
    monkeypatch.setattr(R, 'fitting', lambda peak: fits)
    monkeypatch.setenv('TOY_SLOW', '.3')
    start, begun = WorkerPool.start, []
    monkeypatch.setattr(WorkerPool, 'start', lambda self, i: begun.append((i, self.threads, done(job)>0))
        or start(self, i))
    run_workers(job.path, device='cpu', model='chunk_toys:drifting')
    assert begun==[(0, 1, False), (1, 1, True) if fits==2 else (0, 2, True)] and contents(job.path)==undisturbed[0]


def test_other_depth_is_left_alone(video, tmp_path):
    args = dict(video=video, model='chunk_toys:drifting', chunks=2, workers=1, device='cpu')
    (tmp_path/'full').mkdir()
    (tmp_path/'full'/'letter.txt').write_text('dear')
    with pytest.raises(ChunkError, match='holds other things'): depth_in_chunks(out=tmp_path/'full', **args)
    with pytest.raises(ChunkError, match='no model|not done'):
        depth_in_chunks(out=tmp_path/'out', **{**args, 'model': 'chunk_toys:nobody'})
    with pytest.raises(ChunkError, match="another model: 'chunk_toys:nobody'"):
        depth_in_chunks(out=tmp_path/'out', **args)
    assert [o.name for o in (tmp_path/'full').iterdir()]==['letter.txt']

"""Several experiments in one pool of processes: who waits for whom, what is told when, and what is left when the
caller is killed"""
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from glob import glob
from pathlib import Path
import pytest
from vidlit.lab.experiment import Experiment, run_experiments
from vidlit.lab.jobs import Job, JobError

HERE = Path(__file__).parent


def experiment(name, *jobs):
    def summary(res, root):
        return dict(rows=[], paired=[], figures=[], headline=name, facts={k: v['start'] for k, v in res.items()})
    return Experiment(name, f'What about {name}?', 'none', lambda *a, **kw: list(jobs), summary, dict(toy=.1))


def nap(key, seconds, *needs): return Job(key, 'experiment_toys:nap', dict(seconds=seconds), needs, weight=seconds)


@pytest.fixture(scope='module')
def ran(tmp_path_factory):
    "Two experiments on two workers: the first ends with one long job, which leaves a worker to the second"
    out, told, said = tmp_path_factory.mktemp('out'), [], []
    es = [experiment('first', nap('a', .1), nap('b', 2., 'a')), experiment('second', nap('a', .1), nap('c', .1, 'a'))]
    runs = run_experiments(es, out, workers=2, report=lambda *o: said.append(o),
        each=lambda m: told.append(m['experiment']))
    return out, runs, told, said


def test_nobody_waits_for_the_last_job_of_another(ran):
    out, runs, told, said = ran
    assert told == ['second', 'first'] and [m['experiment'] for m in runs] == ['first', 'second']
    assert all((out/n/'metrics.json').exists() for n in told)


def test_keys_are_told_apart(ran):
    out, runs, told, said = ran
    assert {k for k, f, _ in said if f == 1} == {'first: a', 'first: b', 'second: a', 'second: c'}
    assert set(runs[0]['facts']) == {'a', 'b'} and runs[0]['facts']['b'] >= runs[0]['facts']['a']


def test_workers_are_others_and_the_caller_keeps_its_memory(ran):
    out, *_ = ran
    pids = {int(p.read_text()) for p in out.rglob('pid')}
    assert os.getpid() not in pids and 'GLIBC_TUNABLES' not in os.environ


def test_one_that_breaks_takes_no_other_along(tmp_path):
    bad = experiment('bad', Job('x', 'experiment_toys:fail'), nap('y', .1, 'x'))
    told = []
    with pytest.raises(JobError, match='bad: x: ValueError: no such video .1 more wait') as e:
        run_experiments([bad, experiment('good', nap('a', .1))], tmp_path, workers=2,
            each=lambda m: told.append(m['experiment']))
    assert told == ['good'] and set(e.value.failed) == {'bad: x', 'bad: y'}


def test_more_is_not_asked_than_can_be(tmp_path):
    with pytest.raises(ValueError, match='no scale'):
        run_experiments([experiment('e', nap('a', 9.))], tmp_path, scale='huge')
    assert not list(tmp_path.iterdir())


def test_a_second_run_reads(ran):
    out, runs, *_ = ran
    es = [replace(experiment('first', nap('a', .1), nap('b', 2., 'a')))]
    start = time.time()
    assert run_experiments(es, out, workers=2)[0]['facts'] == runs[0]['facts'] and time.time()-start < 2


def wait_for(what, seconds=60):
    end = time.time()+seconds
    while time.time() < end:
        if what(): return True
        time.sleep(.05)
    return False


def session(sid):
    "Processes of a session that live"
    def field(p):
        try: return (p/'stat').read_text().rpartition(')')[2].split()
        except OSError: return None
    stat = {int(p.name): f for p in Path('/proc').iterdir() if p.name.isdigit() and (f := field(p))}
    return {k for k, f in stat.items() if int(f[3]) == sid and f[0] != 'Z'}


def written(folder):
    "Process numbers that jobs below a folder have written; `rglob` would stumble over a folder that goes meanwhile"
    return {int(t) for o in glob(f'{folder}/**/pid', recursive=True) if (t := Path(o).read_text())}


def heard():
    for o in (signal.SIGINT, signal.SIGHUP): signal.signal(o, signal.SIG_DFL)


def leave(how, p, pids):
    "End the caller `p` of jobs in processes `pids`"
    if how == 'killed, a worker stopped': os.kill(min(pids), signal.SIGSTOP)
    if how == 'terminal closed': return os.killpg(p.pid, signal.SIGHUP)
    p.send_signal(dict(interrupted=signal.SIGINT, ended=signal.SIGTERM).get(how, signal.SIGKILL))


@pytest.mark.skipif(not Path('/proc/self/stat').exists(), reason='no /proc here')
@pytest.mark.parametrize('how, seconds', [('killed', 10), ('killed, a worker stopped', 10), ('interrupted', 5),
    ('ended', 10), ('terminal closed', 10)])
def test_nothing_is_left_of_a_run(tmp_path, how, seconds):
    "Workers, the process of their queue and the fork server leave; nobody goes on with locks and memory"
    toys = [sys.executable, str(HERE/'experiment_toys.py'), str(tmp_path)]
    p = subprocess.Popen(toys, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=heard) # which a shell's background job, and nohup, ignore
    try:
        assert wait_for(lambda: len(written(tmp_path)) == 2)
        pids = written(tmp_path)
        there = session(p.pid)
        assert pids < there and len(there) >= 5, 'the caller, two workers, their queue, the fork server'
        leave(how, p, pids)
        assert wait_for(lambda: not session(p.pid)-{p.pid} and p.poll() is not None, seconds), session(p.pid)
        if how == 'interrupted':
            assert p.stderr.read().strip().splitlines()[-1] == 'KeyboardInterrupt'
            assert not list(tmp_path.rglob('.vidlit*')), 'the jobs have unwound: no lock, no temporary file'
    finally:
        for i in session(p.pid): os.kill(i, signal.SIGKILL)
        p.wait()
        p.stderr.close()


@pytest.mark.skipif(sys.platform != 'linux', reason='by the kernel of Linux')
def test_a_caller_killed_while_its_fork_server_imports(tmp_path):
    toys = [sys.executable, str(HERE/'experiment_toys.py'), str(tmp_path), 'slow']
    p = subprocess.Popen(toys, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        assert wait_for(lambda: (tmp_path/'importing').exists())
        p.kill()
        p.wait()
        assert wait_for(lambda: not session(p.pid), 10), session(p.pid)
    finally:
        for i in session(p.pid): os.kill(i, signal.SIGKILL)
        p.wait()

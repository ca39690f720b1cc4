"""Every long command is ended at moments of its own choosing, and given again: the same bytes, nothing left.

A few moments of each here; all of them with VIDLIT_KILLS=all, or by `python tests/kills.py FOLDER`."""
import os
import signal
import time
import kills
import pytest

SOME = None if os.environ.get('VIDLIT_KILLS')=='all' else 2
SLOW = 'depth chunks', # starts processes of its own, ten seconds a run


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    kills.warm()
    root = tmp_path_factory.mktemp('kills')
    kills.inputs(root/'inputs')
    return root


@pytest.mark.parametrize('name', [o for o in kills.CASES if not SOME or o not in SLOW])
def test_killed_and_given_again(root, name):
    got = kills.run_case(name, root, SOME)
    assert got['calls']>=2 and got['tried'] and not got['wrong'], got


@pytest.mark.parametrize('name', ['depth png16', 'tracks', 'jobs'] if SOME else kills.CASES)
def test_interrupted_and_given_again(root, name):
    got = kills.run_case(name, root, SOME, signal.SIGINT)
    assert got['tried'] and not got['wrong'], got


@pytest.mark.parametrize('name', ['depth png16'] if SOME else ['depth png16', 'depth stream npz', 'depth chunks'])
def test_two_runs_in_one_folder(root, name):
    got = kills.run_together(name, root, 1 if SOME else 10)
    assert got['tried'] and not got['wrong'], got


def test_two_careless_runs_are_seen(root, monkeypatch):
    "Two runs that ask nobody leave the work of neither"
    def careless(p, r):
        with (r/'out.txt').open('a') as f:
            for i in range(3):
                print(i, file=f, flush=True)
                time.sleep(.1)
    monkeypatch.setitem(kills.CASES, 'careless', careless)
    got = kills.run_together('careless', root, 2)
    assert len(got['wrong'])==2 and all('other bytes' in o for o in got['wrong'].values()), got


def test_the_harness_can_fail(root, monkeypatch):
    "A command that is not written as ours are: half a file stands for a whole one"
    def careless(p, r):
        for i in range(3):
            f = r/f'{i}.txt'
            if f.exists(): continue
            f.write_text('half')
            os.replace(f, r/f'{i}.tmp')
            (r/f'{i}.tmp').write_text('whole')
            os.replace(r/f'{i}.tmp', f)
    monkeypatch.setitem(kills.CASES, 'careless', careless)
    got = kills.run_case('careless', root)
    assert got['calls']==6 and set(got['wrong'])=={1, 3, 5} and 'other bytes' in got['wrong'][1], got


def test_points():
    assert kills.points(3, None)==[1, 2, 3] and kills.points(2, 3)==[1, 2] and kills.points(101, 3)==[1, 51, 101]
    assert kills.points(100, 2)==[1, 67]

"""The command line as a shell sees it: help, refusals in one line, JSON alone on stdout."""
import json
import os
import subprocess
import sys
import time
import pytest
from shell import here, vidlit as run


@pytest.fixture(scope='module')
def film(tmp_path_factory):
    import torch
    from vidlit import write_video
    p = tmp_path_factory.mktemp('film')/'film.mp4'
    write_video(p, torch.randint(0, 255, (12, 48, 64, 3), dtype=torch.uint8), fps=24)
    return p


def test_import_is_light():
    code = (
        'import time; t=time.perf_counter(); import vidlit, sys; print(time.perf_counter()-t, "torch" in '
        'sys.modules, "fastai" in sys.modules)')
    # no bytecode that tests kept
    env = {k: v for k, v in os.environ.items() if k != 'PYTHONPYCACHEPREFIX'} | dict(PYTHONDONTWRITEBYTECODE='1')
    runs = (subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=env).stdout.split()
        for _ in range(3))
    t, torch, fastai = min(runs, key=lambda o: float(o[0]))
    assert float(t) < .1 and torch == fastai == 'False'


def test_every_lazy_name_is_there():
    import vidlit
    for name in vidlit.__all__: assert getattr(vidlit, name) is not None
    assert set(vidlit.__all__) <= set(dir(vidlit))
    with pytest.raises(AttributeError, match='no attribute'): _ = vidlit.nothing


def test_help_teaches_and_is_quick():
    t = time.perf_counter()
    out = run('reproduce', '--help').stdout
    assert 'tour' in out and '--dry-run' in out and 'Folder of videos' in out
    assert 'video' in run('--help').stdout
    assert time.perf_counter()-t < 20


def test_info(monkeypatch, capfd):
    i = json.loads(run('info', '--json').stdout)
    assert {'vidlit', 'torch', 'devices', 'extras', 'video backends'} <= set(i) and 'cpu' in i['devices']
    assert 'torch' in here(monkeypatch, capfd, 'info').stdout


def test_film_info(film, monkeypatch, capfd):
    i = json.loads(run('video', 'info', film, '--json').stdout)
    assert i['frames'] == 12 and (i['width'], i['height']) == (64, 48) and i['codec'] == 'h264'
    assert 'h264' in here(monkeypatch, capfd, 'video', 'info', film).stdout
    assert json.loads(here(monkeypatch, capfd, 'video', 'info', film,
        '--json').stdout) == i, 'a command here is what it is in a process of its own'


def refused(r, word):
    assert r.returncode == 2 and word in r.stderr and 'Traceback' not in r.stderr and r.stdout == ''
    assert len([l for l in r.stderr.splitlines() if l.startswith('vidlit:')]) == 1


@pytest.mark.parametrize('args, word',
    [(('video', 'info', 'gone.mp4'), 'gone.mp4'), (('reproduce', 'nothing'), 'videomae'),
    (('reproduce', '--seeds', 'two'), 'two'), (('fly',), 'fly')])
def test_bad_input_is_one_line_and_two(args, word, tmp_path): refused(run(*args, cwd=tmp_path), word)


@pytest.mark.parametrize('args, word',
    [(('reproduce', 'nothing'), 'videomae'), (('reproduce', '--scale', 'huge'), 'huge'),
    (('reproduce', '--data', 'nowhere'), 'nowhere'), (('reproduce', '--seeds', '0'), '0'),
        (('reproduce', '--device', 'tpu'), 'tpu')])
def test_bad_input_to_an_experiment_is_one_line_and_two(args, word, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    refused(here(monkeypatch, capfd, *args), word)


def costs(r):
    assert r.returncode == 0
    return json.loads(r.stdout)


def test_list_and_cost(monkeypatch, capfd):
    rows = json.loads(here(monkeypatch, capfd, 'reproduce', '--list', '--json').stdout)
    assert any(r['name'] == 'videomae' and r['takes_data'] for r in rows)
    cost = costs(here(monkeypatch, capfd, 'reproduce', 'videomae', '--scale', 'paper', '--dry-run', '--json'))
    assert any(abs(c['params']-94.2) < .1 for c in cost), 'ViT-B with its decoder has 94.2 M parameters'


def test_a_bug_is_shown_whole(tmp_path):
    code = 'import vidlit.cli.app as c, sys; c.app.command("bug")(lambda: 1/0); sys.argv[1:] = ["bug"]; c.main()'
    r = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True,
        env={**os.environ, 'PYTHONPATH': ''})
    assert r.returncode == 1 and 'ZeroDivisionError' in r.stderr


def test_version_and_short_help():
    assert run('--version').stdout.strip() == 'vidlit 0.0.1'
    assert run('-h').stdout == run('--help').stdout and '--verbose' in run('-h').stdout
    assert '--dry-run' in run('reproduce', '-h').stdout


def test_verbose_shows_the_whole_error_wherever_it_stands():
    for args in (('--verbose', 'video', 'info', 'gone.mp4'), ('video', 'info', 'gone.mp4', '--verbose')):
        r = run(*args)
        assert r.returncode == 1 and 'Traceback' in r.stderr and 'gone.mp4' in r.stderr


def test_the_shell_completes():
    env = dict(os.environ, _VIDLIT_COMPLETE='complete_bash', COMP_WORDS='vidlit fine', COMP_CWORD='1')
    code = 'import sys; sys.argv[0] = "vidlit"; from vidlit.cli.app import main; main()'
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=env)
    assert r.stdout.split() == ['finetune']


def test_models_are_listed_without_torch(monkeypatch, capfd):
    rows = json.loads(run('models', '--json').stdout)
    assert len(rows) > 30 and {'name', 'params', 'weights', 'licence'} <= set(rows[0])
    assert 'vjepa2_l' in here(monkeypatch, capfd, 'models', '--pattern', 'vjepa2*', '--published').stdout
    refused(here(monkeypatch, capfd, 'models', '--pattern', 'x*'), 'x*')
    code = "import sys, vidlit.cli.app as a; a.run_app(a.app, ['models']); print('torch' in sys.modules)"
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert r.stdout.splitlines()[-1] == 'False'


def test_a_dry_run_has_scales_and_prices(monkeypatch, capfd):
    refused(here(monkeypatch, capfd, 'reproduce', '--scale', 'huge', '--dry-run'), 'toy, small, paper')
    said = here(monkeypatch, capfd, 'reproduce', 'videomae', '--scale', 'paper', '--dry-run').stdout
    assert 'million' in said and 'GB, weights and optimiser' in said and 'H100' in said
    tour = here(monkeypatch, capfd, 'reproduce', '--dry-run').stdout.splitlines() # what it runs when nothing is named
    assert tour[0].split()[:3]==['tour/videomae', '1', 'job'] and tour[-1].startswith('together')
    one = costs(here(monkeypatch, capfd, 'reproduce', 'tour/flow', 'refiner', '--seeds', '5', '--dry-run', '--json'))
    assert [o['experiment'] for o in one]==['tour/flow', 'refiner'] and one[1]['minutes']==10
    refused(here(monkeypatch, capfd, 'reproduce', 'tour/none', '--dry-run'), 'there are: videomae')


@pytest.mark.parametrize('args, option', [(('depth', 'v.mp4', '--out', 'd', '--format', 'tiff'), '--format'),
    (('depth', 'v.mp4', '--out', 'd', '--mode', 'online'), '--mode'),
    (('depth', 'v.mp4', '--out', 'd', '--precision', 'fp8'), '--precision'),
    (('depth', 'v.mp4', '--out', 'd', '--dtype', 'int8'), '--dtype'),
    (('refine', 'v.mp4', '--depth', 'd', '--out', 'r', '--mode', 'w'), '--mode'),
    (('chunks', 'merge', 'job', 'd', '--format', 'tiff'), '--format')])
def test_a_choice_is_refused_by_the_name_of_its_option(monkeypatch, capfd, args, option):
    "Before a file is opened or a model loaded; 'storage must be' says nothing to somebody who typed --format"
    refused(here(monkeypatch, capfd, *args), f'{option} must be one of')


def test_choices_of_the_command_are_those_of_the_library():
    from vidlit.cli import app
    from vidlit.depth import models
    from vidlit.video import depth_frames
    assert app.FORMATS==tuple(depth_frames._dtypes) and app.PRECISIONS==tuple(models._dtypes)
    assert {*app.DTYPES}=={o for v in depth_frames._dtypes.values() for o in v}

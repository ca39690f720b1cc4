"""What is installed works: an sdist and a wheel of it outside the repository, an editable install from a parent
folder; the long ones with VIDLIT_SLOW=1. Imports without what only Unix has."""
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parents[1]
slow = pytest.mark.skipif(not os.environ.get('VIDLIT_SLOW'), reason='minutes; VIDLIT_SLOW=1 runs it')
BUILD = 'from setuptools import build_meta as b; import sys; print(getattr(b, sys.argv[1])(sys.argv[2]))'


def sh(*cmd, cwd=None, **env):
    r = subprocess.run([str(o) for o in cmd], cwd=cwd, capture_output=True, text=True, env={**os.environ, **env})
    assert r.returncode == 0, r.stdout+r.stderr
    return r.stdout.strip()


def copied(to):
    "The files of the repository, as git would hand them out"
    names = sh('git', 'ls-files', '-co', '--exclude-standard', cwd=ROOT).splitlines()
    for n in names:
        if (ROOT/n).is_file():
            (to/n).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT/n, to/n)
    return to


def fresh(at):
    "An environment of its own that borrows the dependencies, not vidlit"
    sh(sys.executable, '-m', 'venv', '--without-pip', at)
    site = next(at.rglob('site-packages'))
    own = next(Path(p) for p in sys.path if (Path(p)/'torch').is_dir())
    # a path only: .pth files in it, such as an editable vidlit's, do nothing
    (site/'zz_borrowed.pth').write_text(f'{own}\n')
    return at/'bin'/'python', site


SAYS = 'import vidlit, sys; print(vidlit.__file__, len(vidlit.list_models())>30)'
RUN = 'from vidlit.cli.app import main; main()'


@slow
def test_sdist_and_wheel_work_outside_the_repository(tmp_path):
    src = copied(tmp_path/'src')
    tar = src/'dist'/sh(sys.executable, '-c', BUILD, 'build_sdist', 'dist', cwd=src).splitlines()[-1]
    with tarfile.open(tar) as f: f.extractall(tmp_path/'sdist', filter='data')
    inner = next((tmp_path/'sdist').iterdir())
    wheel = inner/'dist'/sh(sys.executable, '-c', BUILD, 'build_wheel', 'dist', cwd=inner).splitlines()[-1]
    py, site = fresh(tmp_path/'env')
    shutil.unpack_archive(wheel, site, 'zip')
    away = tmp_path/'away'
    away.mkdir()
    where, many = sh(py, '-c', SAYS, cwd=away).split()
    assert Path(where).is_relative_to(site) and many == 'True' and (site/'vidlit'/'py.typed').is_file()
    assert sh(py, '-c', RUN, '--version', cwd=away) == 'vidlit 0.0.1'
    assert 'videomae' in sh(py, '-c', RUN, 'reproduce', '--list', cwd=away)
    code = ('from vidlit.lab.claims import read_claims, wings; from vidlit.lab.experiment import load_result; '
        "print(sum(len(read_claims(w)) for w in wings())>100, load_result('videomae')['experiment'])")
    assert sh(py, '-c', code, cwd=away) == 'True videomae', 'records travel with the wheel'
    code = "from vidlit.depth.models import toy_folder; print((toy_folder()/'config.json').is_file())"
    assert sh(py, '-c', code, cwd=away) == 'True'


@slow
def test_an_editable_install_is_found_from_a_parent_folder_and_by_type_checkers(tmp_path):
    src = copied(tmp_path/'vidlit') # a folder of the package's name, as a clone is
    code = "from setuptools import build_meta as b; print(b.build_editable('dist'))"
    wheel = src/'dist'/sh(sys.executable, '-c', code, cwd=src).splitlines()[-1]
    py, site = fresh(tmp_path/'env')
    shutil.unpack_archive(wheel, site, 'zip')
    lines = [l for p in site.glob('__editable__*') for l in p.read_text().splitlines()]
    assert lines == [str(src)], 'a path that pyright can follow, no import hook'
    where, _ = sh(py, '-c', SAYS, cwd=tmp_path).split()
    assert where == str(src/'vidlit'/'__init__.py')
    code = "from vidlit.depth.models import toy_folder; print((toy_folder()/'config.json').is_file())"
    assert sh(py, '-c', code, cwd=tmp_path) == 'True'


FOREIGN = '''
import importlib, os, subprocess, sys, av, numpy, torch # theirs to care for
for m in ('fcntl', 'resource', 'termios', 'pwd', 'grp', 'pty', 'tty'): sys.modules[m] = None
for k in ('O_NOFOLLOW', 'O_NONBLOCK', 'O_CLOEXEC', 'pread', 'pwrite', 'sched_getaffinity', 'uname', 'getuid'):
    if hasattr(os, k): delattr(os, k)
class Byte: # Windows' own lock
    LK_NBLCK, held = 2, set()
    @staticmethod
    def locking(fd, how, n):
        i = os.fstat(fd).st_ino
        if i in Byte.held: raise OSError('busy')
        Byte.held.add(i)
import vidlit
for m in sys.argv[1:]: importlib.import_module(f'vidlit.{m}')
sys.modules['msvcrt'] = Byte
from vidlit.floor.places import StoreBusy, locked
with locked('a'):
    try:
        with locked('a'): print('both')
    except StoreBusy as e: print('busy')
'''


def test_no_module_needs_what_only_unix_has(tmp_path):
    "The floor and the command, where no other page can be imported from without them; locks as Windows has them"
    floor = 'floor.store', 'floor.places', 'pipeline.worker', 'cli.app', 'lab.reproduce'
    assert sh(sys.executable, '-W', 'ignore', '-c', FOREIGN, *floor, cwd=tmp_path) == 'busy'


@slow
def test_every_module_imports_without_what_only_unix_has(tmp_path):
    files = sorted((ROOT/'vidlit').rglob('*.py'))
    every = ['.'.join(p.relative_to(ROOT/'vidlit').with_suffix('').parts) for p in files]
    every = [m for m in every if not m.endswith(('__init__', '_modidx'))]
    assert sh(sys.executable, '-W', 'ignore', '-c', FOREIGN, *every, cwd=tmp_path) == 'busy'


def test_hints_name_packages_that_the_extra_has():
    from vidlit.floor.places import get_extra
    assert get_extra('h5') == 'pip install h5py' and get_extra('splat') == 'pip install plyfile viser numba'
    with pytest.raises(ValueError, match='flying'): get_extra('flying')

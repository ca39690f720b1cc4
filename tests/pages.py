"""The pages as the site gets them: nbdev's processing of a notebook, in this process and without Quarto."""
import atexit
import json
import os
import tempfile
from pathlib import Path
import yaml

ROOT = Path(__file__).resolve().parents[1]
NBS = ROOT/'nbs'
HIDDEN = '.', '_'


def text(o): return ''.join(o) if isinstance(o, list) else o


def pages():
    "Every page below nbs/, as a path relative to it"
    found = (p.relative_to(NBS) for p in NBS.rglob('*.ipynb'))
    return sorted(str(p) for p in found if not any(o.startswith(HIDDEN) for o in p.parts))


def put_away(shell):
    "A page's shell, done with: at the end of the process IPython would collect garbage once for each, a minute for all"
    if shell is None: return
    atexit.unregister(shell.atexit_operations)
    if shell.history_manager.save_thread is not None: shell.history_manager.save_thread.stop()


def process(page):
    "A notebook as the site gets it: hidden cells gone, signatures and docs of exported functions in their place"
    from IPython.core.interactiveshell import InteractiveShell
    from nbdev.processors import FilterDefaults
    from nbdev.serve_drv import exec_nb
    here = os.getcwd()
    os.environ['IN_TEST'] = '1'
    os.chdir(ROOT)
    try:
        with tempfile.TemporaryDirectory() as tmp:
            exec_nb(NBS/page, Path(tmp)/'page.ipynb', FilterDefaults)
            return json.loads((Path(tmp)/'page.ipynb').read_text())
    finally:
        os.environ.pop('IN_TEST', None)
        os.chdir(here)
        put_away(InteractiveShell._instance)


def sidebar(contents=None):
    "(title of the section or None, [pages]) in the order in which they are read"
    if contents is None: contents = yaml.safe_load((ROOT/'_quarto.yml').read_text())['website']['sidebar']['contents']
    def href(o): return o if isinstance(o, str) else o['href']
    def one(o):
        if isinstance(o, dict) and 'section' in o: return o['section'], [href(x) for x in o['contents']]
        return None, [href(o)]
    return [one(o) for o in contents]

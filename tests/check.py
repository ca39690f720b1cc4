"""make check: what can be seen in seconds. Export in sync, notebooks clean, chkstyle quiet, walls kept, ruff,
README from index."""
import filecmp
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT, BIN = Path(__file__).resolve().parents[1], Path(sys.executable).parent
SKIP = shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints', '_proc', '_docs')


def sh(*cmd, cwd=ROOT): return subprocess.run([str(c) for c in cmd], cwd=cwd, capture_output=True, text=True)


def copy_again(tmp):
    "A copy of the checkout, exported and cleaned afresh"
    for d in ('nbs', 'vidlit'): shutil.copytree(ROOT/d, tmp/d, symlinks=True, ignore=SKIP)
    for f in ('settings.ini', 'setup.py', 'pyproject.toml', '_quarto.yml', 'README.md'): shutil.copy2(ROOT/f, tmp/f)
    for c in ('nbdev_export', 'nbdev_clean'):
        r = sh(BIN/c, cwd=tmp)
        if r.returncode: return [f'{c} failed:\n{r.stderr[-2000:]}']
    return []


def differing(tmp, folder, pattern):
    made = {'__pycache__', '.ipynb_checkpoints', '_proc'}
    a, b = ({p.relative_to(r/folder) for p in (r/folder).rglob(pattern) if not made & set(p.parts)}
        for r in (ROOT, tmp))
    return sorted(str(p) for p in (a ^ b)
        | {p for p in a & b if not filecmp.cmp(ROOT/folder/p, tmp/folder/p, shallow=False)})


def synced():
    with tempfile.TemporaryDirectory() as t:
        tmp = Path(t)
        said = copy_again(tmp)
        if said: return said
        return ([f'vidlit/{p} is not what the notebooks export: run nbdev_export'
            for p in differing(tmp, 'vidlit', '*.py')]
                + [f'nbs/{p} is not clean: run nbdev_clean' for p in differing(tmp, 'nbs', '*.ipynb')])


def tool(*cmd):
    r = sh(*cmd)
    return [] if r.returncode == 0 else [(r.stdout+r.stderr).strip()[-4000:]]


def quiet():
    joins = 'single-statement-body,inefficient-multiline-expression'  # would join lines up to 140 columns
    r = sh(BIN/'chkstyle', 'nbs', '--ignore', joins, '--skip-path-re', r'.*(_proc|\.ipynb_checkpoints).*')
    return [] if 'found 0 ' in r.stdout else [(r.stdout+r.stderr).strip()[-4000:]]


PLACE = re.compile(r'/(?:work|root|tmp|home|Users)/[\w./-]+')


def placeless():
    "Stored outputs name no folder of the machine they were made on"
    def texts(o): return [o.get('text', ''), *(v for k, v in o.get('data', {}).items() if k.startswith('text/'))]
    def said(p):
        cells = [c for c in json.loads(p.read_text())['cells'] if c['cell_type']=='code']
        return [m.group() for c in cells for o in c['outputs'] for t in texts(o) for m in PLACE.finditer(''.join(t))]
    pages = sorted(p for p in (ROOT/'nbs').rglob('*.ipynb') if not {'_proc', '.ipynb_checkpoints'} & set(p.parts))
    return [f'{p.relative_to(ROOT)}: an output shows {s[0]}' for p in pages if (s := said(p))]


WIDE = 120


def narrow():
    "No line of code is longer than 120: cells, tests, benchmarks"
    def said(name, lines): return [f'{name}: {len(l)} columns: {l.strip()[:70]}' for l in lines if len(l)>WIDE]
    pages = sorted(p for p in (ROOT/'nbs').rglob('*.ipynb') if not {'_proc', '.ipynb_checkpoints'} & set(p.parts))
    out = [s for p in pages for c in json.loads(p.read_text())['cells'] if c['cell_type']=='code'
        for s in said(p.relative_to(ROOT),
        [l for l in ''.join(c['source']).splitlines() if not l.startswith('#| fig-cap')])]
    scripts = [*(ROOT/'tests').glob('*.py'), *(ROOT/'benchmarks').glob('*.py'), ROOT/'setup.py',
        ROOT/'vidlit'/'__init__.py']
    return out + [s for p in sorted(scripts) for s in said(p.relative_to(ROOT), p.read_text().splitlines())]


def readme():
    sys.path.insert(0, str(ROOT/'tests'))
    from readme import made
    return ([] if (ROOT/'README.md').read_text() == made()
        else ['README.md is not what nbs/index.ipynb makes: run python tests/readme.py'])


def main():
    checks = {'export in sync, notebooks clean': synced, 'chkstyle': quiet, 'README from index': readme,
        'lines of at most 120': narrow, 'outputs without places': placeless,
              'walls': lambda: tool(sys.executable, '-m', 'pytest', '-q', '-x', 'tests/test_layers.py'),
              'ruff': lambda: tool(BIN/'ruff', 'check', '-q', 'tests', 'benchmarks', 'setup.py', 'site_procs.py',
            'vidlit/__init__.py')}
    bad = 0
    for name, f in checks.items():
        said = f()
        bad += bool(said)
        print(('ok    ' if not said else 'FAIL  ') + name, *said, sep='\n      ' if said else '')
    sys.exit(bool(bad))


if __name__ == '__main__': main()

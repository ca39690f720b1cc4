"""The walls of the house: core < wings < roof; inside a wing only downwards; wings do not look into one another."""
import ast
import re
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOF, ABOVE = 'roof', {'refiner': {'depth'}}  # refiner also stands on depth


def rooms(nbs=ROOT/'nbs'):
    "Module name -> (wing, order of its notebook within the wing), read from the notebooks themselves"
    import json
    out = {}
    for p in sorted(nbs.rglob('*.ipynb')):
        if any(o.startswith(('.', '_')) for o in p.relative_to(nbs).parts): continue
        src = '\n'.join(''.join(c['source']) for c in json.loads(p.read_text())['cells'] if c['cell_type'] == 'code')
        m = re.search(r'^#\|\s*default_exp\s+(\S+)', src, re.M)
        if m: out[f'vidlit.{m[1]}'] = (p.parent.name if p.parent != nbs else ROOF, p.stem)
    return out


def imports(path, mod):
    "Every vidlit module that a file imports, lazily inside functions too (nbdev makes absolute imports relative)"
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import): yield from (a.name for a in node.names if a.name.startswith('vidlit'))
        elif isinstance(node, ast.ImportFrom):
            base = '.'.join([*mod.split('.')[:-node.level], *filter(None, [node.module])]) if node.level else node.module or ''
            if base.startswith('vidlit'): yield from [base, *(f'{base}.{a.name}' for a in node.names)]


def wrong(mod, dep, where):
    "Why `mod` may not import `dep`, or None"
    (wing, order), (dwing, dorder) = where[mod], where[dep]
    if wing == ROOF: return None
    if dwing == ROOF: return f'{mod} looks up to the roof: {dep}'
    if wing == dwing: return None if dorder < order else f'{mod} ({order}) imports {dep} ({dorder}): not downwards'
    if dwing == 'core' or dwing in ABOVE.get(wing, ()): return None
    return f'{mod} looks sideways into {dep}'


def file_of(mod): return ROOT/(mod.replace('.', '/')+'.py')


def test_every_room_has_a_notebook():
    have = {'vidlit.' + '.'.join(p.relative_to(ROOT/'vidlit').with_suffix('').parts) for p in (ROOT/'vidlit').rglob('*.py')}
    have = {m for m in have if not m.endswith(('__init__', '_modidx'))}
    assert have == set(rooms())


@pytest.mark.parametrize('mod', sorted(rooms()))
def test_imports_go_down(mod):
    where = rooms()
    bad = [w for dep in imports(file_of(mod), mod) if dep in where and dep != mod and (w := wrong(mod, dep, where))]
    assert not bad, '\n'.join(bad)


def test_the_test_can_fail():
    where = {'vidlit.core.a': ('core', '01_a'), 'vidlit.core.b': ('core', '02_b'), 'vidlit.x.c': ('x', '01_c'),
        'vidlit.y.d': ('y', '01_d'), 'vidlit.cli': (ROOF, '92_cli')}
    assert 'not downwards' in wrong('vidlit.core.a', 'vidlit.core.b', where)
    assert 'not downwards' in wrong('vidlit.core.a', 'vidlit.core.a', where)
    assert 'sideways' in wrong('vidlit.x.c', 'vidlit.y.d', where)
    assert 'sideways' in wrong('vidlit.core.b', 'vidlit.x.c', where)
    assert 'roof' in wrong('vidlit.x.c', 'vidlit.cli', where)
    assert wrong('vidlit.core.b', 'vidlit.core.a', where) is None and wrong('vidlit.x.c', 'vidlit.core.b', where) is None

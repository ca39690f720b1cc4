"""The walls of the house: folders import only folders below them; inside a folder a page imports only pages that
stand above it in the sidebar."""
import ast
import json
import re
from pathlib import Path
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
GROUND = 'floor', 'worlds', 'video', 'nn', 'train', 'lab'
BELOW = dict(floor=(), worlds=('floor',), video=('floor',), nn=('floor',), train=('floor', 'video', 'nn'),
    lab=GROUND[:-1],
    pretrain=GROUND, depth=GROUND, refiner=(*GROUND, 'depth'), splat=GROUND, pyramid=GROUND,
    pipeline=(*GROUND, 'depth', 'refiner'),
    studies=(*GROUND, 'pretrain', 'depth', 'refiner', 'splat', 'pyramid', 'pipeline'))
BELOW['cli'] = *BELOW['studies'], 'studies'


def sidebar():
    "Pages in the order in which a reader meets them"
    def walk(o):
        if isinstance(o, str): yield o
        elif isinstance(o, list): yield from (p for x in o for p in walk(x))
        elif isinstance(o, dict): yield from walk(o.get('contents', o.get('href', [])))
    return list(walk(yaml.safe_load((ROOT/'_quarto.yml').read_text())['website']['sidebar']))


def rooms(nbs=ROOT/'nbs'):
    "Module name -> (folder, place in the sidebar), read from the notebooks themselves"
    order, out = sidebar(), {}
    for p in sorted(nbs.rglob('*.ipynb')):
        page = p.relative_to(nbs)
        if any(o.startswith(('.', '_')) for o in page.parts): continue
        src = '\n'.join(''.join(c['source']) for c in json.loads(p.read_text())['cells'] if c['cell_type'] == 'code')
        place = page.parts[0], order.index(page.as_posix())
        for m in re.finditer(r'^#\|\s*default_exp\s+(\S+)', src, re.M): out[f'vidlit.{m[1]}'] = place
        # a second module of the same page
        for m in re.finditer(r'^#\|\s*exports?\s+(\w+\.\w+)', src, re.M): out[f'vidlit.{m[1]}'] = place[0], place[1]+.5
    return out


def imports(path, mod):
    "Every vidlit module that a file imports, lazily inside functions too (nbdev makes absolute imports relative)"
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import): yield from (a.name for a in node.names if a.name.startswith('vidlit'))
        elif isinstance(node, ast.ImportFrom):
            base = ('.'.join([*mod.split('.')[:-node.level], *filter(None, [node.module])]) if node.level
                else node.module or '')
            if base.startswith('vidlit'): yield from [base, *(f'{base}.{a.name}' for a in node.names)]


def wrong(mod, dep, where):
    "Why `mod` may not import `dep`, or None"
    (folder, order), (dfolder, dorder) = where[mod], where[dep]
    if folder == dfolder:
        return None if dorder < order else f'{mod} imports {dep}, which stands below it in the sidebar'
    return (None if dfolder in BELOW[folder]
        else f'{mod} may not look into {dep}: {folder} stands on {", ".join(BELOW[folder]) or "nothing"}')


def file_of(mod): return ROOT/(mod.replace('.', '/')+'.py')


def test_sidebar_holds_every_page_once():
    pages = {p.relative_to(ROOT/'nbs').as_posix() for p in (ROOT/'nbs').rglob('*.ipynb')
        if not any(o.startswith(('.', '_')) for o in p.parts)}
    assert len(set(sidebar())) == len(sidebar()) and set(sidebar()) == pages


def test_numbers_stand_once_and_carry_no_letters():
    for d in {(ROOT/'nbs'/p).parent for p in sidebar()}:
        names = sorted(p.stem for p in d.glob('*.ipynb'))
        numbers = [m[1] for n in names if (m := re.match(r'(\d+)_', n))]
        assert len(set(numbers)) == len(numbers), (d.name, numbers)
        assert not [n for n in names if re.match(r'\d+[a-z]', n)]
        shown = [int(m[1]) for p in sidebar() if (ROOT/'nbs'/p).parent == d
            and (m := re.match(r'(\d+)_', Path(p).name))]
        assert shown == sorted(shown), d.name


def test_every_room_has_a_notebook():
    have = {'vidlit.' + '.'.join(p.relative_to(ROOT/'vidlit').with_suffix('').parts)
        for p in (ROOT/'vidlit').rglob('*.py')}
    have = {m for m in have if not m.endswith(('__init__', '_modidx'))}
    assert have == set(rooms())


@pytest.mark.parametrize('mod', sorted(rooms()))
def test_imports_go_down(mod):
    where = rooms()
    bad = [w for dep in imports(file_of(mod), mod) if dep in where and dep != mod and (w := wrong(mod, dep, where))]
    assert not bad, '\n'.join(bad)


def test_the_test_can_fail():
    where = {'vidlit.nn.a': ('nn', 1), 'vidlit.nn.b': ('nn', 2), 'vidlit.depth.c': ('depth', 3),
        'vidlit.splat.d': ('splat', 4),
        'vidlit.refiner.e': ('refiner', 5), 'vidlit.cli.app': ('cli', 6)}
    assert ('below it' in wrong('vidlit.nn.a', 'vidlit.nn.b', where)
        and 'below it' in wrong('vidlit.nn.a', 'vidlit.nn.a', where))
    for mod, dep in (('depth.c', 'splat.d'), ('splat.d', 'depth.c'), ('nn.b', 'depth.c'), ('depth.c', 'cli.app')):
        assert 'may not look' in wrong(f'vidlit.{mod}', f'vidlit.{dep}', where)
    for mod, dep in (('nn.b', 'nn.a'), ('depth.c', 'nn.b'), ('refiner.e', 'depth.c'), ('cli.app', 'splat.d')):
        assert wrong(f'vidlit.{mod}', f'vidlit.{dep}', where) is None

"""Method pages show their method: a picture before the maths, and whole classes."""
import json
import re
import pytest
from pages import NBS

SECTIONS = 'pretrain', 'depth', 'refiner', 'splat', 'pyramid'
METHODS = sorted(str(p.relative_to(NBS)) for s in SECTIONS for p in (NBS/s).glob('[0-9]*.ipynb'))


def first_picture(nb):
    "Number of the first cell with a picture among its outputs; None when there is none"
    def shown(c): return [k for o in c.get('outputs', []) for k in o.get('data', {}) if k.startswith('image/')]
    return next((i for i, c in enumerate(nb['cells']) if shown(c)), None)


def test_the_pages_are_found(): assert len(METHODS) >= 50 and 'pretrain/02_videomae.ipynb' in METHODS


@pytest.mark.parametrize('page', METHODS)
def test_a_picture_by_cell_8(page):
    "The reader sees what the page promises before its first formula"
    at = first_picture(json.loads((NBS/page).read_text()))
    assert at is not None and at <= 8, f'{page}: first picture at cell {at}'


def test_a_late_picture_is_seen():
    none, image = dict(outputs=[]), dict(outputs=[dict(data={'image/png': 'x'})])
    assert first_picture(dict(cells=[none]*9+[image])) == 9 and first_picture(dict(cells=[none])) is None


def patched_forwards(nb):
    "Classes of a page whose forward pass is not in the class, where a reader looks for it"
    code = ['\n'+''.join(c['source']) for c in nb['cells'] if c['cell_type'] == 'code']
    code = [s for s in code if '#| export' in s]
    own = {m for s in code for m in re.findall(r'\nclass (\w+)', s)}
    return sorted({m for s in code for m in re.findall(r'\ndef (?:forward|__call__|__init__)\(self:(\w+)', s)} & own)


@pytest.mark.parametrize('page', METHODS)
def test_a_class_is_shown_whole(page): assert patched_forwards(json.loads((NBS/page).read_text())) == []


def test_a_class_in_pieces_is_seen():
    def cell(s): return dict(cell_type='code', source=['#| exports\n', s])
    pieces = [cell('class A(nn.Module): pass'), cell('@patch\ndef forward(self:A, x): return x')]
    assert patched_forwards(dict(cells=pieces)) == ['A'] and patched_forwards(dict(cells=pieces[1:])) == []


def promises(cell): return [l for l in ''.join(cell['source']).split('\n') if l.startswith('>')]


@pytest.mark.parametrize('page', sorted(str(p.relative_to(NBS)) for p in NBS.rglob('*.ipynb')
    if not {'_proc', '.ipynb_checkpoints'} & set(p.parts)))
def test_a_promise_is_one_line(page):
    "nbdev takes the first line of a quotation for the description: what stands below would be lost on the site"
    assert len(promises(json.loads((NBS/page).read_text())['cells'][0])) <= 1

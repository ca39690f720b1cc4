"""The field's words in prose, help and public names: no nickname comes back."""
import ast
import io
import json
import re
import subprocess
import sys
import tokenize
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parents[1]
PRIVATE = dict( # What the field says instead
    arm=('variant', r'arms?'), film=('video', r'films?|filmed|filming'), copy=('EMA target encoder', r'slow[ _]cop\w*'),
    twin=('reversed pair', r'twins?'), stills=('images', r'stills'), paint=('rendered, reconstructed', r'paint\w*'),
    mood=('level', r'moods?'), dealt=('shared', r'dealt'),
    look=('snapshot', r'(?:a|an|the|each|every|last|between|at) looks?(?!-| up)|looks? of'))
NAMES = dict(PRIVATE, look=('snapshot', r'looks?'))


def _found(words, text):
    return [(k, m.group()) for k, (_, p) in words.items()
        for m in re.finditer(rf'(?<![A-Za-z])(?:{p})(?![A-Za-z])', text, re.IGNORECASE)]


def comments(code):
    try: yield from (t.string for t in tokenize.generate_tokens(io.StringIO(code).readline) if t.type==tokenize.COMMENT)
    except (tokenize.TokenError, IndentationError): return


def tree(code):
    code = '\n'.join('pass' if re.match(r'\s*[%!]', l) else l for l in code.splitlines())
    try: return ast.parse(code)
    except SyntaxError: return ast.Module([], [])


def sentences(code):
    "What people read in code: comments, docstrings, and texts of more than two words"
    yield from comments(code)
    yield from (n.value for n in ast.walk(tree(code)) if isinstance(n, ast.Constant) and isinstance(n.value, str)
        and len(n.value.split()) > 2)


def words_of(name): return re.sub(r'(?<=[a-z0-9])(?=[A-Z])', ' ', name.replace('_', ' '))


def public(code):
    "Names that a user may write: of functions, classes, fields, arguments and values of a module"
    def open_(*names): return [n for n in names if not n.startswith('_')]
    def of(node, top):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            if node.name.startswith('_') and node.name != '__init__': return []
            a = node.args
            return open_(node.name, *[o.arg for o in (*a.posonlyargs, *a.args, *a.kwonlyargs)])
        if isinstance(node, ast.ClassDef):
            return [] if node.name.startswith('_') else [node.name, *[n for o in node.body for n in of(o, True)]]
        goal = getattr(node, 'targets', None) or [node.target] if isinstance(node, (ast.Assign, ast.AnnAssign)) else []
        return open_(*[n.id for g in goal for n in ast.walk(g) if isinstance(n, ast.Name)])
    return [n for o in tree(code).body for n in of(o, True)]


def pages():
    skip = {'_proc', '.ipynb_checkpoints'}
    return sorted(p for p in (ROOT/'nbs').rglob('*.ipynb') if not skip & set(p.parts))


def said(path):
    "Every private word of a page or file: (cell or line, kind, word, text)"
    if path.suffix != '.ipynb':
        lines = enumerate(path.read_text().splitlines(), 1)
        return [(i, 'text', w, l) for i, l in lines for _, w in _found(PRIVATE, l)]
    out = []
    for i, c in enumerate(json.loads(path.read_text())['cells']):
        text = ''.join(c['source'])
        if c['cell_type'] == 'markdown':
            out += [(i, 'prose', w, l) for l in text.splitlines() for _, w in _found(PRIVATE, l)]
            continue
        out += [(i, 'code', w, s) for s in sentences(text) for _, w in _found(PRIVATE, s)]
        if re.search(r'^#\|\s*exports?\b', text, re.M):
            out += [(i, 'name', w, n) for n in public(text) for _, w in _found(NAMES, words_of(n))]
    return out


# (page, cell, word, why): what stays
ROBOT = "a robot's arm"
ALLOWED = {
    ('pretrain/10_world_model', 'arm'): ROBOT, ('pretrain/11_planner', 'arm'): ROBOT,
    ('pretrain/trajectories', 'arm'): ROBOT,
    ('worlds/01_camera', 'look'): 'look_at is the word of graphics',
    ('depth/12_streaming', 'look'): 'look_back, a verb',
    ('pipeline/04_job', 'film'): 'the key in job.json, a format of version 1',
    ('pretrain/target_cache', 'films'): 'the name of a folder in caches of version 1',
    ('studies/10_video_depth', 'stills'): 'names of recorded facts'}


def counted(allowed=ALLOWED):
    texts = [ROOT/o for o in ('README.md', 'CONTRIBUTING.md', 'settings.ini', '_quarto.yml')]
    out = {}
    for p in [*pages(), *texts]:
        page = str(p.relative_to(ROOT/'nbs').with_suffix('')) if p.suffix == '.ipynb' else p.name
        if f := [o for o in said(p) if (page, o[2].lower()) not in allowed]: out[page] = f
    return out


@pytest.mark.parametrize('text', ['every arm of the study', 'three films', 'the slow copy', 'its twin',
    'a model of stills', 'painted patches', 'moods', 'windows dealt out', 'at each look'])
def test_private_words_are_seen(text): assert _found(PRIVATE, text)


@pytest.mark.parametrize('text', ['warm up', 'it looks at both', 'stands still', 'a look-up table', 'filmstrip'])
def test_plain_words_are_not(text): assert not _found(PRIVATE, text)


def test_names_are_seen():
    code = '#| export\n@dataclass\nclass Setup:\n    films:int = 3 # Videos\n\ndef arm_model(x, stills): return _twin'
    assert [n for n in public(code) if _found(NAMES, words_of(n))] == ['films', 'arm_model', 'stills']


def test_no_private_words(): assert counted() == {}


def test_what_is_allowed_is_needed():
    seen = {(page, o[2].lower()) for page, f in counted({}).items() for o in f}
    assert set(ALLOWED) <= seen, set(ALLOWED)-seen


def test_older_names_work_and_say_the_new_one():
    code = """if True:
    import warnings
    with warnings.catch_warnings(record=True) as w:
        warnings.simplefilter('always')
        from vidlit.lab.experiment import arm_rows, variant_rows
        from vidlit import _renamed
    said = [str(o.message) for o in w]
    assert arm_rows is variant_rows
    assert any('arm_rows is now vidlit.lab.experiment.variant_rows' in o for o in said), said
    import importlib
    warnings.simplefilter('ignore')
    for m, names in _renamed.items():
        module = importlib.import_module('vidlit.'+m)
        for old, new in names.items(): assert getattr(module, old) is getattr(module, new)
    try: module.nothing
    except AttributeError as e: assert 'nothing' in str(e)
    else: raise SystemExit('no error')"""
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert r.returncode == 0, r.stderr


def test_the_library_uses_no_older_name():
    from vidlit import _renamed
    wrong = []
    for p in sorted((ROOT/'vidlit').glob('*/*.py')):
        for n in ast.walk(ast.parse(p.read_text())):
            if not isinstance(n, ast.ImportFrom): continue
            at = (n.module or '').removeprefix('vidlit.')
            at = at if n.level == 0 else '.'.join(o for o in (p.parent.name if n.level == 1 else '', at) if o)
            wrong += [f'{p.name}: {at}.{o.name}' for o in n.names if o.name in _renamed.get(at, {})]
    assert not wrong, wrong


def test_records_are_read_in_todays_words():
    from vidlit.lab.experiment import load_result, results_dir
    for p in sorted(results_dir().glob('*/metrics.json')):
        raw, now = json.loads(p.read_text()), load_result(p.parent.name)
        def numbers(m): return [o for r in m['rows'] for o in r.values() if not isinstance(o, str)]
        assert numbers(now) == numbers(raw), p
        assert all('arm' not in o for o in now['rows']), p
        text = json.dumps([now[k] for k in ('rows', 'paired', 'headline', 'figures') if k in now]
            + [o['text'] for o in now['facts'].values()])
        names = re.compile(r'"file": "[^"]*"')
        assert not [o for o in _found(PRIVATE, names.sub('', text)) if o[0] != 'look'], p


if __name__ == '__main__':
    for p, f in counted().items():
        for i, k, w, t in f: print(f'{p}:{i} {k} [{w}] {" ".join(t.split())[:230]}')

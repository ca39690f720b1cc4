"""The pages, without Quarto: every notebook is processed as nbdev does for the site and parsed by pandoc with
Quarto's extensions."""
import json
import re
import pytest
import yaml
from pages import NBS, ROOT, pages, process, sidebar, text

QUARTO = '+'.join(('ipynb fenced_divs header_attributes citations bracketed_spans link_attributes '
    'raw_attribute pipe_tables grid_tables footnotes fenced_code_attributes inline_code_attributes tex_math_dollars '
    'definition_lists task_lists '
    'implicit_figures smart fancy_lists startnum emoji superscript subscript').split())
PAGES = pages()


def short(o):
    """An output, long plain text cut off: all of it becomes one block of code, for which pandoc takes half a
    minute where a ledger is shown"""
    plain = text(o.get('data', {}).get('text/plain', ''))
    return {**o, 'data': {**o['data'], 'text/plain': plain[:2000]}} if len(plain)>2000 else {**o}


def pandoc(nb):
    "Parse a page (cells that nbdev adds lack what the notebook format asks for)"
    import pypandoc
    cells = [{**dict(metadata={}), **c,
        **({'outputs': [short(o) for o in c['outputs']]} if c.get('outputs') else {})} for c in nb['cells']]
    for c in cells:
        c.update({k: c.get(k, v) for k, v in (('outputs', []), ('execution_count', None))}
            if c['cell_type'] == 'code' else {})
    for o in (o for c in cells for o in c.get('outputs', []) if o.get('output_type') == 'execute_result'):
        o['execution_count'] = o.get('execution_count') or 0
    keep = ('cell_type', 'source', 'metadata', 'outputs', 'execution_count', 'attachments', 'id')
    cells = [{k: v for k, v in c.items() if k in keep} for c in cells]
    whole = json.dumps(dict(cells=cells, metadata=nb.get('metadata', {}), nbformat=4, nbformat_minor=5))
    return json.loads(pypandoc.convert_text(whole, 'json', format=QUARTO))


def walk(o):
    "Every node of a pandoc tree"
    if isinstance(o, dict):
        if 't' in o: yield o
        o = list(o.values())
    if isinstance(o, list):
        for x in o: yield from walk(x)


def words(o):
    return ''.join({'Str': n.get('c'), 'Space': ' ', 'SoftBreak': ' '}.get(n['t'], '') if n['t'] != 'Code'
        else n['c'][1] for n in walk(o))


def labels(nb):
    "What can be referred to: figure labels, equation and section ids"
    src = '\n'.join(text(c['source']) for c in nb['cells'])
    return set(re.findall(r'^#\|\s*label:\s*((?:fig|tbl|lst)-[\w-]+)', src, re.M)) | set(
        re.findall(r'\{#((?:eq|sec|fig|tbl)-[\w-]+)', src))


def fenced(md): return re.findall(r'^```[^\n]*\n(.*?)^```', md, re.M | re.S)
def rendered(c):
    return [text(o['data']['text/markdown']) for o in c.get('outputs', []) if 'text/markdown' in o.get('data', {})]
def defined(src): return re.findall(r'^(?:async )?(?:def|class) (\w+)', src, re.M)


def code_faults(nb):
    "Markup within code, and what is shown twice: the signature by nbdev's `show_doc`, then all of it as source"
    signatures = [(n, b) for c in nb['cells'] for md in rendered(c) for b in fenced(md) for n in defined(b)[:1]]
    own = [b for c in nb['cells'] if c['cell_type'] == 'markdown' for b in fenced(text(c['source']))]
    for b in [b for _, b in signatures]+own:
        if m := re.search(r'\[`[^`]+`\]\([^)]*\)', b): yield f'a link in code: {m.group()}'
    whole = {n for c in nb['cells'] if c['cell_type'] == 'code' for n in defined(text(c['source']))}
    headed = {n for c in nb['cells'] for md in rendered(c) for n in re.findall(r'^### (\w+)$', md, re.M)}
    for n, _ in signatures:
        if n in whole & headed: yield f'shown twice: {n}'


def faults(page, nb, everything, exists):
    "What is wrong with a processed page"
    yield from code_faults(nb)
    tree = pandoc(nb)
    ids = {n['c'][1][0] for n in walk(tree) if n['t'] == 'Header'} | labels(nb)
    for n in walk(tree):
        if n['t'] in ('Para', 'Plain') and re.search(r'(^|\s):::', words(n['c'])):
            yield f'stray ::: in {words(n["c"])[:60]!r}'
        if n['t'] == 'Cite':
            for c in n['c'][0]:
                if c['citationId'] not in everything: yield f'unresolved @{c["citationId"]}'
        if n['t'] in ('Link', 'Image'):
            url = n['c'][2][0]
            stored = (url.startswith(('data:', 'attachment:')) or 'output' in url
                or re.fullmatch(r'[0-9a-f]{40}\.\w+', url))
            if n['t'] == 'Image' and not words(n['c'][1]).strip() and not stored:
                yield f'picture without words: {url}'
            if re.match(r'(https?|mailto|data|attachment):', url) or re.fullmatch(r'[0-9a-f]{40}\.\w+', url): continue
            path, _, anchor = url.partition('#')
            if path and not exists(page, path): yield f'broken link {url}'
            if not path and anchor not in ids: yield f'broken anchor {url}'
    first = nb['cells'][0]
    head = yaml.safe_load(text(first['source']).strip().strip('-')) if first['cell_type'] == 'raw' else {}
    for k in ('title', 'description'):
        if not (head or {}).get(k): yield f'no {k}'
    for c in nb['cells']:
        if c['cell_type'] != 'code': continue
        pictured = any(k.startswith('image/') for o in c.get('outputs', []) for k in o.get('data', {}))
        if pictured and not re.search(r'^#\|\s*fig-(cap|alt|subcap)\s*:\s*\S', text(c['source']), re.M):
            yield f'a figure without caption: {text(c["source"])[:80]!r}'
        if any(o.get('output_type') == 'error' for o in c.get('outputs', [])):
            yield f'an error is stored: {text(c["source"])[:80]!r}'


def there(page, path): return (NBS/page).parent.joinpath(path).exists() or (NBS/path.lstrip('/')).exists()


@pytest.mark.parametrize('page', PAGES)
def test_page(page):
    everything = set().union(*(labels(json.loads((NBS/p).read_text())) for p in PAGES))
    assert not (said := list(faults(page, process(page), everything, there))), '\n'.join(said)


def test_every_picture_can_be_shown():
    "A GIF from IPython has no form that a rendered page shows; `charts.Loop` has"
    def bare(nb): return [o for c in nb['cells'] for o in c.get('outputs', []) if 'image/gif' in o.get('data', {})]
    assert [p for p in PAGES if bare(json.loads((ROOT/'nbs'/p).read_text()))] == []


def test_a_link_is_a_link_once():
    "nbdev makes links of names in backticks: within a link of ours that is a link in a link, which Markdown has not"
    def twice(nb): return [m for c in nb['cells'] if c['cell_type'] == 'markdown'
        for m in re.findall(r'\[[^\]\n]*`[^`\n]+`[^\]\n]*\]\([^)\n]*\.ipynb[^)\n]*\)', text(c['source']))]
    assert twice(dict(cells=[cell('see [`A`](a.ipynb)')])) == ['[`A`](a.ipynb)']
    assert [(p, *o) for p in PAGES if (o := twice(json.loads((NBS/p).read_text())))] == []


def test_a_shown_definition_is_shown_once():
    "Under its name, where links land, stands the source; docments are code: a name in backticks stays one"
    cells = process('pretrain/02_videomae.ipynb')['cells']
    i, src = next((i, text(c['source'])) for i, c in enumerate(cells) if 'def target_ref(' in text(c['source']))
    head = text(cells[i-1]['source'])
    assert cells[i]['cell_type'] == 'code' and not src.startswith('#|') and '# As in `norm_patches`\n' in src
    assert '### hidden_pixels, target_ref {#hidden_pixels}' in head and '[]{#target_ref}' in head
    assert re.search(r'^\[source\]\(https://.*/vidlit/pretrain/videomae\.py#L\d+\)', head)
    docs = '\n'.join(md for c in process('cli/pyramid.ipynb')['cells'] for md in rendered(c))
    assert docs.index('### write_flo') < docs.index('### read_flo'), 'as in the source'
    from fastcore.utils import dict2obj
    from site_procs import link_names
    md = ['```\n', '`ViT`\n', '```\n', '`ViT`\n']
    c = dict2obj(cell('', kind='code', outputs=[dict(data={'text/markdown': md})]))
    link_names(c)
    assert re.fullmatch(r'```\n`ViT`\n```\n\[`ViT`\]\(https://.*#vit\)', rendered(c)[0]), 'prose has its links'


def test_sidebar_is_whole():
    assert sorted(p for _, group in sidebar() for p in group) == PAGES
    assert (NBS/'_quarto.yml').is_symlink() and (NBS/'_quarto.yml').resolve() == ROOT/'_quarto.yml'


def test_preview_of_many_pages_comes_to_an_end():
    "More pages than its processes take before they are replaced"
    from preview import spread
    assert list(spread(abs, [-i for i in range(23)], 2, each=3)) == [*range(23)]


def test_preview(tmp_path):
    "Without Quarto: a page with its title, its formulas, its figures, and a sidebar whose links lead somewhere"
    from preview import render
    page = 'pretrain/02_videomae.ipynb'
    made = render(page, tmp_path).read_text()
    assert '<h1>VideoMAE</h1>' in made and '<math ' in made and made.count('<figcaption>') >= 2
    links = re.findall(r'<nav>.*</nav>', made, re.S)[0]
    assert (links.count('<a ') == len(PAGES) and 'href="02_videomae.html" class=here' in links
        and 'href="../index.html"' in links)


def test_readme_is_made_from_index():
    from readme import made
    assert (ROOT/'README.md').read_text() == made(), 'run python tests/readme.py'


def cell(src, kind='markdown', **kw): return dict(cell_type=kind, source=src, metadata={}, id='x', **kw)


def test_the_test_can_fail():
    head = cell('---\ntitle: A\ndescription: B\n---\n', 'raw')
    png = dict(output_type='display_data', metadata={}, data={'image/png': 'iVBORw0KGgo='})
    def said(*cells):
        nb = dict(cells=list(cells), metadata={}, nbformat=4, nbformat_minor=5)
        return list(faults('x.ipynb', nb, {'fig-a'}, lambda p, u: u == 'there.ipynb'))
    assert said(head, cell('See @fig-a and [it](there.ipynb).')) == []
    assert said(head, cell('::: {.callout-note}\nwell\n:::')) == []
    assert 'stray' in said(head, cell('text\n\n:::\n'))[0]
    assert 'unresolved @fig-b' in said(head, cell('See @fig-b.'))
    assert 'broken link gone.ipynb' in said(head, cell('[it](gone.ipynb)'))
    assert 'broken anchor #no' in said(head, cell('[it](#no)'))
    assert 'without words' in said(head, cell('hello ![](there.ipynb) you'))[0]
    assert set(said(cell('text'))) == {'no title', 'no description'}
    code = dict(kind='code', outputs=[png], execution_count=1)
    assert 'without caption' in said(head, cell('plot()', **code))[0]
    assert said(head, cell('#| fig-cap: "A plot"\nplot()', **code)) == []
    def doc(md): return cell('show_doc(f)', kind='code', outputs=[dict(png, data={'text/markdown': md})])
    signature = '---\n\n### f\n\n```python\ndef f(\n    a, # As %s\n):\n```\n\n*As [`g`](https://a.b)*'
    assert said(head, doc(signature % '`g`')) == []
    assert said(head, doc(signature % '[`g`](https://a.b)')) == ['a link in code: [`g`](https://a.b)']
    assert said(head, doc(signature % '`g`'), cell('def f(a): return a', kind='code')) == ['shown twice: f']
    plain = dict(output_type='display_data', metadata={},
        data={'text/plain': '# No head\n\n[it](gone.ipynb) @fig-b ![](gone.png)\n\n:::\n'})
    tree = pandoc(dict(cells=[cell('it', kind='code', outputs=[plain], execution_count=1)], metadata={}))['blocks']
    assert [n['t'] for n in walk(tree)] == ['Div', 'CodeBlock', 'Div',
        'CodeBlock'], 'plain text holds no markup: what `short` cuts off is not at fault'

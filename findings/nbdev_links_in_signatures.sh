#!/usr/bin/env bash
# nbdev 2.4: on the way to the site a name in backticks becomes a link to its documentation, in prose and in the outputs that are Markdown. The signature that `show_doc`
# shows is such an output: a fenced block of Python with the docments as comments. One would expect that a fenced block is left alone. Seen: a name in backticks in a
# docment is replaced there as well, so that the reader of the rendered page sees the Markdown of a link, brackets and address, inside the code. Of one's own Markdown
# cells, fenced blocks are left alone.
# Installs pinned public packages in a temporary folder; fails when the behaviour changes.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/python" -m pip install -q --disable-pip-version-check 'nbdev==2.4.14' 'execnb<0.2' 'ghapi<2' 'fastcore<2' ipykernel setuptools
mkdir -p "$tmp/p/nbs" "$tmp/p/lib"; cd "$tmp/p"
cat > settings.ini <<'S'
[DEFAULT]
repo = lib
lib_name = lib
user = u
author = a
author_email = a@example.com
description = d
branch = main
version = 0.0.1
min_python = 3.9
license = apache2
lib_path = lib
nbs_path = nbs
doc_path = _docs
title = lib
git_url = https://example.com/u/lib
doc_host = https://example.com
doc_baseurl = /lib
copyright = a
language = English
status = 3
audience = Developers
keywords = k
black_formatting = False
S
"$tmp/v/bin/python" - <<'P'
import json
def cell(s, kind='code'): return dict(cell_type=kind, source=s, metadata={}, **(dict(outputs=[], execution_count=None) if kind=='code' else {}))
cells = [cell('#| default_exp first'), cell('#| export\ndef one(): return 1'),
    cell('#| export\ndef two(\n    a, # As `one` gives it\n): return a'),
    cell('```python\ntwo(1) # As `one` gives it\n```', 'markdown')]
json.dump(dict(cells=cells, metadata=dict(kernelspec=dict(name='python3', display_name='python3', language='python')), nbformat=4, nbformat_minor=5),
    open('nbs/00_first.ipynb', 'w'))
P
: > lib/__init__.py
export PATH="$tmp/v/bin:$PATH" PYTHONPATH="$tmp/p"
nbdev_export
mkdir lib-0.0.1.dist-info # what an installation leaves: nbdev looks names up in installed packages
printf 'Metadata-Version: 2.1\nName: lib\nVersion: 0.0.1\n' > lib-0.0.1.dist-info/METADATA
printf '[nbdev]\nlib = lib._modidx:d\n' > lib-0.0.1.dist-info/entry_points.txt
python - <<'P'
import json, nbdev
from nbdev.processors import FilterDefaults
from nbdev.serve_drv import exec_nb
exec_nb('nbs/00_first.ipynb', 'page.ipynb', FilterDefaults)
text = lambda o: ''.join(o)
cells = json.load(open('page.ipynb'))['cells']
shown = [text(o['data']['text/markdown']) for c in cells for o in c.get('outputs', []) if 'text/markdown' in o.get('data', {})]
two = next(o for o in shown if '### two' in o)
block = two.split('```python')[1].split('```')[0]
own = next(text(c['source']) for c in cells if c['cell_type']=='markdown' and '```python' in text(c['source']))
print('nbdev', nbdev.__version__)
print('signature shown: ', block.strip())
print('own fenced block:', own.strip())
assert '# As [`one`](' in block and '](' not in own
P
echo 'as described'

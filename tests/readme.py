"""README.md is made from nbs/index.ipynb: its visible cells as GitHub markdown. `python tests/readme.py` writes
it, `make check` compares."""
import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def text(o): return ''.join(o) if isinstance(o, list) else o


def outputs(cell):
    for o in cell.get('outputs', []):
        data = o.get('data', {})
        if 'text/markdown' in data: yield text(data['text/markdown']).strip()
        elif 'image/png' in data: continue
        elif o.get('output_type') == 'stream': yield '```\n' + text(o['text']).rstrip() + '\n```'
        elif 'text/plain' in data: yield '```\n' + text(data['text/plain']).rstrip() + '\n```'


def cells(nb):
    for c in nb['cells']:
        src = text(c['source']).strip()
        if c['cell_type'] == 'markdown': yield src
        elif c['cell_type'] == 'code' and src and not re.search(r'^#\|\s*hide|^#\|\s*default_exp', src, re.M):
            code = '\n'.join(l for l in src.splitlines() if not l.startswith('#|')).strip()
            yield f'```python\n{code}\n```'
            yield from outputs(c)


def made():
    nb = json.loads((ROOT/'nbs'/'index.ipynb').read_text())
    body = '\n\n'.join(cells(nb))
    body = re.sub(r'\]\((?!https?:|#|mailto:)([\w./-]+\.ipynb)\)', r'](nbs/\1)', body)
    body = re.sub(r'\]\((?!https?:|#|nbs/)([\w./-]+\.(?:png|gif|svg))\)', r'](nbs/\1)', body)
    return '<!-- made from nbs/index.ipynb by tests/readme.py: edit there -->\n\n' + body + '\n'


if __name__ == '__main__': (ROOT/'README.md').write_text(made())

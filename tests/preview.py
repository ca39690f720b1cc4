"""make preview: every page as HTML, by pandoc alone (no Quarto needed), with the sidebar, formulas and figures of
the site.

python tests/preview.py                          # all pages that changed, into _preview/; open
_preview/index.html
python tests/preview.py pretrain/02_videomae.ipynb --shots shots   # one page, and a picture of it (needs
Chromium)"""
import argparse
import html
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from pathlib import Path
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent))
from pages import NBS, pages, process, sidebar, text  # noqa: E402

FOLD = '```{{=html}}\n<details><summary>Code</summary>\n```\n\n{}\n\n```{{=html}}\n</details>\n```'
CSS = (Path(__file__).parent/'preview.css').read_text()


def outputs(cell, cap):
    "Stored outputs of a code cell as raw HTML or markdown; an image carries the cell's caption"
    for o in cell.get('outputs', []):
        data = o.get('data', {})
        if 'image/png' in data:
            words = html.escape(cap)
            src = 'data:image/png;base64,' + ''.join(text(data['image/png']).split())
            yield f'```{{=html}}\n<figure><img alt="{words}" src="{src}"><figcaption>{words}</figcaption></figure>\n```'
        elif 'text/markdown' in data and 'text/html' not in data: yield text(data['text/markdown'])
        elif 'text/html' in data: yield f'```{{=html}}\n<div class="shown">{text(data["text/html"])}</div>\n```'
        else:
            said = text(o.get('text', data.get('text/plain', '')))
            if said.strip(): yield f'```{{=html}}\n<div class="out"><pre>{html.escape(said)}</pre></div>\n```'


def markdown(nb):
    "A processed notebook as one markdown text, its title and its promise"
    parts, title, promise = [], '', ''
    for c in nb['cells']:
        src = text(c['source'])
        if c['cell_type'] == 'raw':
            head = yaml.safe_load(src.strip().strip('-')) or {}
            title, promise = head.get('title', title), head.get('description', promise)
        elif c['cell_type'] == 'markdown':
            parts.append(re.sub(r'\\tag\{(\w+)\}', r'\\qquad(\1)', src))  # pandoc knows \tag here and there only
        elif src.strip() or c.get('outputs'):
            cap = re.search(r'^#\|\s*fig-cap:\s*"?(.*?)"?\s*$', src, re.M)
            hidden = re.search(r'^#\|\s*echo:\s*false', src, re.M)
            code = '\n'.join(l for l in src.splitlines() if not l.startswith('#|')).strip()
            if code and not hidden:
                folded = re.search(r'^#\|\s*code-fold:\s*true', src, re.M)
                block = f'```python\n{code}\n```'
                parts.append(FOLD.format(block) if folded else block)
            parts += outputs(c, cap[1] if cap else '')
    return '\n\n'.join(parts), title, promise


@cache
def title_of(page):
    "The title of a page, from its first cell"
    first = json.loads((NBS/page).read_text())['cells'][0]
    return text(first['source']).split('\n')[0].lstrip('# ')


def nav(page):
    "The sidebar, seen from one page"
    def link(p):
        there = os.path.relpath(p.replace('.ipynb', '.html'), Path(page).parent)
        number = re.match(r'(\d+)_', Path(p).name)
        name = f'{int(number[1])}. {title_of(p)}' if number else title_of(p)
        return f'<a href="{there}"{" class=here" if p == page else ""}>{html.escape(name)}</a>'
    rows = []
    for title, group in sidebar():
        links = ''.join(map(link, group))
        if title is None: rows.append(links)
        else: rows.append(f'<details{" open" if page in group else ""}><summary>{title}</summary>{links}</details>')
    return '<nav>' + ''.join(rows) + '</nav>'


def render(page, out):
    "Write one page; gives its path"
    import pypandoc
    md, title, promise = markdown(process(page))
    kinds = 'markdown+tex_math_dollars+raw_attribute+pipe_tables+fenced_divs+raw_html-yaml_metadata_block'
    body = pypandoc.convert_text(md, 'html5', format=kinds, extra_args=['--mathml', '--wrap=none'])
    body = re.sub(r'href="([\w./-]+)\.ipynb', r'href="\1.html', body)
    to = Path(out)/page.replace('.ipynb', '.html')
    to.parent.mkdir(parents=True, exist_ok=True)
    promise = re.sub(r'`([^`]+)`', r'<code>\1</code>', html.escape(promise))
    head = f'<h1>{html.escape(title)}</h1><p class="promise">{promise}</p>' if title else ''
    to.write_text(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f'<title>{html.escape(title)} - vidlit</title><style>{CSS}</style><div '
        f'class="page">{nav(page)}<main>{head}{body}</main></div></html>')
    return to


def shoot(htmls, folder, height=2400):
    "A picture of each page by headless Chromium"
    chromium = next((c for c in ('chromium', 'chromium-browser', 'google-chrome') if shutil.which(c)), None)
    if chromium is None: sys.exit('--shots needs Chromium on PATH')
    Path(folder).mkdir(parents=True, exist_ok=True)
    flags = ['--headless', '--no-sandbox', '--disable-gpu', '--hide-scrollbars', '--no-first-run',
        '--disable-background-networking',
        '--disable-component-update', '--disable-sync', f'--window-size=1300,{height}']
    for p in htmls:
        png = Path(folder)/('-'.join(p.parts[-2:])+'.png')
        with tempfile.TemporaryDirectory() as home:
            subprocess.run([chromium, *flags, f'--user-data-dir={home}', f'--screenshot={png.resolve()}',
                p.resolve().as_uri()],
                check=True, capture_output=True, timeout=120)
        print(png)


def stale(page, out):
    "Has a page changed since it was rendered?"
    made = Path(out)/page.replace('.ipynb', '.html')
    return (not made.exists()
        or made.stat().st_mtime < max(o.stat().st_mtime for o in (NBS/page, NBS/'_quarto.yml', Path(__file__))))


def spread(work, todo, jobs, each=8):
    """`work` on each of `todo`, in order, by new processes for every few: a shell is made for each page and keeps its
    memory. (The pool's own max_tasks_per_child stands still after so many tasks in Python 3.11.)"""
    n = max(1, min(jobs, len(todo)))
    for i in range(0, len(todo), n*each):
        with ProcessPoolExecutor(n, multiprocessing.get_context('spawn')) as pool:
            yield from pool.map(work, todo[i:i+n*each])


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('pages', nargs='*', help='pages relative to nbs/; all by default')
    ap.add_argument('--out', default='_preview', help='folder of the HTML')
    ap.add_argument('--shots', help='folder for a picture of each rendered page')
    ap.add_argument('--height', type=int, default=2400, help='of the pictures, pixels')
    ap.add_argument('--jobs', type=int, default=os.cpu_count(), help='processes')
    a = ap.parse_args()
    have = pages()
    if lost := set(a.pages)-set(have): ap.error(f'no page {sorted(lost)[0]!r} below nbs/')
    todo = a.pages or [p for p in have if stale(p, a.out)]
    made = []
    from preview import render as work  # by a name that a fresh process can import, not __main__'s
    for i, (p, to) in enumerate(zip(todo, spread(partial(work, out=a.out), todo, a.jobs)), 1):
        made.append(to)
        print(f'{i:3d}/{len(todo)} {p}', flush=True)
    (Path(a.out)/'pages.json').write_text(json.dumps(have, indent=1)+'\n')
    for p in NBS.glob('*.png'): shutil.copy2(p, a.out)
    print(f'{len(made)} pages: open {a.out}/index.html')
    if a.shots: shoot(made, a.shots, a.height)


if __name__ == '__main__': main()

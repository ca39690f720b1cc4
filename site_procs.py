"""What the site does otherwise than nbdev on the way from a notebook to a page (settings.ini: `procs`, `skip_procs`).

A name in backticks becomes a link in prose, but never within a fenced block: the signature that `show_doc` shows is
one, and its docments are code. Where a whole definition is shown (`#| exports`), it is shown once: a heading with its
name, where links land, then the source itself with its docstring and docments; no signature before it, no fold."""
import ast
import re
from execnb.nbio import mk_cell
from nbdev.doclinks import NbdevLookup
from nbdev.processors import Processor


def link_names(cell):
    "Links to documentation, in prose and in Markdown outputs, not in fenced code (instead of nbdev's `add_links`)"
    nl = NbdevLookup()
    if cell.cell_type == 'markdown': cell.source = nl.linkify(cell.source)
    for o in cell.get('outputs', []):
        data = o.get('data', {})
        md = ''.join(data.get('text/markdown', ''))
        if md: data['text/markdown'] = nl.linkify(md).splitlines(True)


def methods(src):
    "Names of the methods of the classes in a source, as links write them: `Class.method`"
    functions = ast.FunctionDef, ast.AsyncFunctionDef
    classes = [o for o in ast.parse(src).body if isinstance(o, ast.ClassDef)]
    return [f'{c.name}.{m.name}' for c in classes for m in c.body if isinstance(m, functions)]


def heading(docs, src):
    "One heading for what a cell defines; every name is a place where links land"
    outs = [o.get('data', {}) for d in docs for o in d.get('outputs', [])]
    said = [''.join(o['text/markdown']) for o in outs if 'text/markdown' in o]
    names = [m[1] for s in said if (m := re.search(r'^### (.+)$', s, re.M))]
    if not names: return None
    links = [m[0] for s in said if (m := re.search(r'^\[source\]\(.*$', s, re.M))]
    spots = ''.join(f'[]{{#{n.lower()}}}' for n in names[1:]+methods(src))
    parts = [*links[:1], f'### {", ".join(names)} {{#{names[0].lower()}}}', spots]
    return mk_cell('\n\n'.join(filter(None, parts)), 'markdown')


class show_once(Processor):
    "A shown definition: heading, then source (instead of nbdev's `mv_exports` and `add_fold`)"
    def begin(self):
        cells, new = list(self.nb.cells), []
        while cells:
            c, docs = cells.pop(0), []
            if c.cell_type == 'code' and 'exports' in c.directives_:
                while cells and getattr(cells[0], 'has_sd', False): docs.insert(0, cells.pop(0))
            head = heading(docs, c.source) if docs else None
            new += [head, c] if head is not None else [c, *docs]
        self.nb.cells[:] = new

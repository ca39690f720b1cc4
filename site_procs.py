"""What the site does otherwise than nbdev on the way from a notebook to a page (settings.ini: `procs`, `skip_procs`).

A name in backticks becomes a link in prose, but never within a fenced block: the signature that `show_doc` shows is
one, and its docments are code. Where a whole definition is shown (`#| exports`), it is shown once: a heading with its
name, where links land, then the source itself with its docstring and docments; no signature before it, no fold."""
import ast
import re
from itertools import groupby
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


KINDS = ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef


def definitions(nodes): return [o for o in nodes if isinstance(o, KINDS)]


def methods(src):
    "Names of the methods of the classes in a source, as links write them: `Class.method`"
    classes = [o for o in ast.parse(src).body if isinstance(o, ast.ClassDef)]
    return [f'{c.name}.{m.name}' for c in classes for m in definitions(c.body)]


def said(doc, pattern):
    "The first match in what `show_doc` showed, or ''"
    md = ''.join(''.join(o.get('data', {}).get('text/markdown', '')) for o in doc.get('outputs', []))
    found = re.search(pattern, md, re.M)
    return found[1] if found else ''


def name_of(doc): return said(doc, r'^### (.+)$')
def line_of(doc): return int(said(doc, r'^\[source\]\(.*#L(\d+)\)') or 0)


def heading(docs, src):
    "One heading for what a cell defines; every name is a place where links land"
    first, *more = names = [name_of(d) for d in docs]
    spots = ''.join(f'[]{{#{n.lower()}}}' for n in more+methods(src))
    parts = said(docs[0], r'^(\[source\]\(.*)$'), f'### {", ".join(names)} {{#{first.lower()}}}', spots
    return mk_cell('\n\n'.join(filter(None, parts)), 'markdown')


class show_once(Processor):
    """A shown definition: heading, then source (instead of nbdev's `mv_exports` and `add_fold`). Of a cell with several
    definitions nbdev documents the last one first: here they stand as in the source"""
    def begin(self):
        new = []
        for documents, cells in groupby(self.nb.cells, lambda c: getattr(c, 'has_sd', False)):
            cells = sorted(cells, key=line_of) if documents else list(cells)
            if documents and new and 'exports' in getattr(new[-1], 'directives_', {}):
                here = {o.name for o in definitions(ast.parse(new[-1].source).body)}
                mine = [c for c in cells if name_of(c).split('.')[-1] in here]
                if mine: new.insert(-1, heading(mine, new[-1].source))
                cells = [c for c in cells if c not in mine]
            new += cells
        self.nb.cells[:] = new

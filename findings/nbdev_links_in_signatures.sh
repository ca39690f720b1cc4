#!/usr/bin/env bash
# nbdev 2.4: on the rendered site, a name in backticks becomes a link to its documentation. One would expect that of prose only. Seen: the name is also taken within the
# text of a link that is there already, so `[`X`](page.ipynb)` becomes a link inside a link, which Markdown does not have (renderers then show the outer one as plain
# brackets); so a link of one's own to a page must not hold the name in backticks.
# Installs pinned public packages in a temporary folder; fails when the behaviour changes.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/python" -m pip install -q --disable-pip-version-check 'nbdev==2.4.14' 'execnb<0.2' 'ghapi<2' 'fastcore<2' ipykernel setuptools
cd "$tmp"
"$tmp/v/bin/python" - <<'P'
import nbdev
from nbdev.doclinks import NbdevLookup
lookup = NbdevLookup(incl_libs='fastcore')
plain = lookup.linkify('see `L` there')
linked = lookup.linkify('see [`L`](page.ipynb) there')
print('nbdev', nbdev.__version__)
print('prose:         ', plain)
print('within a link: ', linked)
P

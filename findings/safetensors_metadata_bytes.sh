#!/usr/bin/env bash
# safetensors 0.8.0: whoever keeps weights by their hash expects that equal tensors with an equal table of strings make equal files; tensors are sorted by dtype and name for that.
# Seen: with a table of eight strings, twelve saves of the same objects in one process give several files of different bytes (the strings come in a random order); without the table all are equal.
# Installs pinned public packages in a temporary folder; fails when the behaviour changes.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/python" -m pip install -q --disable-pip-version-check 'safetensors==0.8.0' 'numpy<3'
"$tmp/v/bin/python" - <<'P'
import hashlib, numpy as np
from safetensors.numpy import load, save
w = dict(a=np.arange(6, dtype=np.float32), b=np.ones((2, 3), np.float32))
about = {f'key{i}': str(i) for i in range(8)}
def kinds(table):
    files = [save(w, metadata=table) for _ in range(12)]
    assert all(np.array_equal(load(f)['a'], w['a']) for f in files)
    return len({hashlib.sha256(f).digest() for f in files})
plain, told = kinds(None), kinds(about)
print(f'twelve saves: {plain} file without a table, {told} different files with one')
assert plain==1 and told>1
P
echo 'as described'

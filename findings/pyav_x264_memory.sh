#!/usr/bin/env bash
# PyAV 18.1.0 (its libx264): the same frames with the same options on one thread are expected to give the same file; x264 calls itself deterministic, and its option
# `deterministic` is on. Seen: within one process the bytes of the file change from call to call when other things are allocated in between (9 different
# files in 24 calls), on a CPU with AVX-512. With x264's assembly off (no-asm=1), with its AVX2 or SSE4.2 code instead of the AVX-512 one (asm=...), or with mbtree=0
# and aq-mode=0, all 24 are one file. So where files of two runs are to be compared, x264 is asked for code without AVX-512. Installs pinned public packages in a temporary folder; fails when the behaviour changes.
set -euo pipefail
grep -qw avx512bw /proc/cpuinfo || { echo 'a CPU without AVX-512: nothing of it is to be seen here'; exit 0; }
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/python" -m pip install -q --disable-pip-version-check 'av==18.1.0' 'numpy<3'
"$tmp/v/bin/python" - <<'P'
import hashlib, io
import av, numpy as np
tiles = np.kron(np.random.default_rng(0).random((24, 15, 20, 3)), np.ones((1, 16, 16, 1)))
frames = [(np.roll(f, i, 0)*255).astype(np.uint8) for i, f in enumerate(tiles)] # 24 frames of 320x240
def encode(params):
    out = io.BytesIO()
    with av.open(out, 'w', format='mp4') as c:
        s = c.add_stream('libx264', rate=12, options={'x264-params': ':'.join(['weightp=0', *params])})
        s.width, s.height, s.pix_fmt, s.codec_context.thread_count = 320, 240, 'yuv420p', 1
        for i, f in enumerate(frames):
            v = av.VideoFrame.from_ndarray(f, format='rgb24')
            v.pts = i
            c.mux(s.encode(v))
        c.mux(s.encode())
    return hashlib.sha256(out.getvalue()).hexdigest()[:8]
def files(*params):
    keep, got = [], set()
    for i in range(24):
        keep.append(np.random.default_rng(i).integers(0, 255, 10000+977*i*i).astype(np.uint8)) # memory that was used
        got.add(encode(params))
        if i%3==2: keep.clear()
    return len(got)
seen = dict(as_it_is=files(), no_asm=files('no-asm=1'),
    no_lookahead_weights=files('mbtree=0', 'aq-mode=0'),
    avx2=files('asm=MMX2,SSE2Fast,SSSE3,SSE4.2,AVX,FMA3,BMI1,BMI2,AVX2'),
    sse42=files('asm=MMX2,SSE2Fast,SSSE3,SSE4.2'))
print(f'PyAV {av.__version__}: different files of 24: {seen}')
assert seen.pop('as_it_is')>1 and {*seen.values()}=={1}, seen
P
echo 'as described'

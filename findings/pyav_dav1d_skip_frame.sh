#!/usr/bin/env bash
# PyAV 18.1.0 (its libdav1d): `codec_context.skip_frame` is expected to say, packet by packet, which frames need not be decoded, as it does for H.264.
# Seen with AV1: what it says when the first packet is decoded holds for the whole file. 'NONREF' for three packets and 'DEFAULT' from then on gives 32 frames of 60,
# 'NONKEY' and then 'DEFAULT' a single one, and 'NONREF' from the fourth packet on leaves out none; there is no error and no warning.
# H.264 gives 60, 58 and 31. So frames of AV1 can be skipped for a whole file or not at all. Installs pinned public packages in a temporary folder; fails when the
# behaviour changes.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/python" -m pip install -q --disable-pip-version-check 'av==18.1.0' 'numpy<3'
"$tmp/v/bin/python" - 2>/dev/null <<'P'
import io
import av, numpy as np
def video(codec):
    out = io.BytesIO()
    with av.open(out, 'w', format='mp4') as c:
        s = c.add_stream(codec, rate=25)
        s.width, s.height, s.pix_fmt = 64, 64, 'yuv420p'
        for i in range(60):
            f = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 4*i, np.uint8), format='rgb24')
            f.pts = i
            c.mux(s.encode(f))
        c.mux(s.encode())
    return out.getvalue()
def count(data, first, then):
    with av.open(io.BytesIO(data)) as c:
        s = c.streams.video[0]
        s.thread_type, n = 'NONE', 0
        for k, p in enumerate(c.demux(s)):
            s.codec_context.skip_frame = first if k<3 else then
            n += len(p.decode())
        return s.codec_context.codec.name, n
seen = {}
for codec in ('libx264', 'libsvtav1'):
    data = video(codec)
    for first, then in (('DEFAULT', 'DEFAULT'), ('NONREF', 'DEFAULT'), ('NONKEY', 'DEFAULT'), ('DEFAULT', 'NONREF')):
        name, seen[codec, first, then] = count(data, first, then)
        print(f'PyAV {av.__version__}, {name}: {first} for three packets, then {then}: {seen[codec, first, then]} of 60 frames')
av1, h264 = ([v for k, v in seen.items() if k[0]==c] for c in ('libsvtav1', 'libx264'))
assert av1[0]==60 and av1[1]<40 and av1[2]<5 and av1[3]==60, av1
assert h264[0]==60 and h264[1]>=58 and h264[2]>=55 and h264[3]<40, h264
P
echo 'as described'

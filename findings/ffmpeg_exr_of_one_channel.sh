#!/usr/bin/env bash
# FFmpeg 8.1 (in PyAV 18.1): an EXR file of depth has one channel, which OpenEXR's specification and Blender call Z, and Video Depth Anything's --save_exr writes so.
# One would expect FFmpeg to read it as grey, as it reads a file whose one channel is called Y. Seen: Z is refused as not implemented, Y is read to the bit.
# Installs pinned public packages in a temporary folder; fails when the behaviour changes.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/python" -m pip install -q --disable-pip-version-check 'av==18.1.0' 'OpenEXR==3.5.3' 'numpy<3'
cd "$tmp"; "$tmp/v/bin/python" - <<'P'
import av, numpy as np, OpenEXR
z, said = np.linspace(.5, 9, 600, dtype=np.float32).reshape(20, 30), {}
for name in 'ZY':
    with OpenEXR.File({'compression': OpenEXR.ZIP_COMPRESSION, 'type': OpenEXR.scanlineimage}, {name: z}) as f: f.write('a.exr')
    try:
        with av.open('a.exr') as box: frame = next(box.decode(video=0))
        said[name] = f'{frame.format.name}, off by {abs(frame.to_ndarray()-z).max():g}'
    except av.FFmpegError as e: said[name] = f'refused: {e.strerror}'
    print('one channel', name, '->', said[name])
assert said['Z'].startswith('refused: Not yet implemented') and said['Y'] == 'grayf32le, off by 0'
P
echo 'as described'

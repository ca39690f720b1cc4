"""Make libs.gz anew from the published files: npm pack three@0.180.0 @sparkjsdev/spark@2.2.0, unpack both, then
python pack.py THREE_FOLDER SPARK_FOLDER. Nothing in them is changed; the page gives the modules their names."""
import gzip
import hashlib
import json
import struct
import sys
from pathlib import Path

three, spark = map(Path, sys.argv[1:])
files = {'three.core.min.js': three/'build/three.core.min.js', 'three': three/'build/three.module.min.js',
    'three/addons/postprocessing/Pass.js': three/'examples/jsm/postprocessing/Pass.js',
    'three/addons/controls/OrbitControls.js': three/'examples/jsm/controls/OrbitControls.js',
    '@sparkjsdev/spark': spark/'dist/spark.module.min.js'}
head, body = [], b''
for name, path in files.items():
    data = path.read_bytes()
    head.append(dict(name=name, at=len(body), size=len(data), sha256=hashlib.sha256(data).hexdigest()))
    body += data
text = json.dumps(head).encode()
here = Path(__file__).parent
(here/'libs.gz').write_bytes(gzip.compress(struct.pack('<I', len(text)) + text + body, 9, mtime=0))
notes = [('three.js 0.180.0, https://threejs.org', three), ('Spark 2.2.0, https://sparkjs.dev', spark)]
(here/'LICENSES.txt').write_text('\n\n'.join(f'{n}\n\n{(p/"LICENSE").read_text().strip()}' for n, p in notes) + '\n')

"""Damaged files, and what readers make of them: each reading in a process of its own, with 1 GiB of memory and ten
seconds. It may end in one of our errors that names the file, in the undamaged content, or, where the format keeps no
checksum, in other content of the promised form; anything else is wrong."""
import dataclasses
import hashlib
import io
import json
import os
import random
import re
import resource
import select
import signal
import struct
import time
import warnings
import zipfile
import zlib
from pathlib import Path

MEMORY, SECONDS = 1<<30, 10
NASTY = [None, True, [], {}, '', -1, 0, 1, 3, 1.5, -2**31, 2**31, 2**53, 10**30, 1e308, -1e-300, float('nan'),
    float('inf'),
    'x', '../../etc', '/etc/passwd', 'a\0b', 'x'*5000, '\ud800', [[]], [None]*50, {'a': {'b': {'c': []}}}, [1, 'x'],
        '0/0']


# Mutations: (bytes, generator) -> bytes

def flip(b, g):
    b = bytearray(b)
    for _ in range(g.choice((1, 1, 2, 8))):
        if b: b[g.randrange(len(b))] ^= 1<<g.randrange(8)
    return bytes(b)


def put(b, g):
    "An extreme number somewhere, most often near the start"
    v = g.choice((0, 1, 2**8-1, 2**15, 2**16-1, 2**31-1, 2**31, 2**32-1, 2**40, 2**62, 2**63, 2**64-1))
    n = g.choice((1, 2, 4, 8))
    at = g.randrange(max(1, min(len(b), g.choice((64, 512, 1<<30)))))
    return b[:at]+(v%2**(8*n)).to_bytes(n, g.choice(('little', 'big')))+b[at+n:]


def cut(b, g): return b[:g.randrange(len(b)+1)]
def lose(b, g):
    i = g.randrange(len(b)+1)
    return b[:i]+b[i+g.choice((1, 2, 7, 100, 5000)):]
def grow(b, g):
    i = g.randrange(len(b)+1)
    return b[:i]+g.randbytes(g.choice((1, 3, 64, 4096)))+b[i:]
def twice(b, g):
    i, n = g.randrange(len(b)+1), g.choice((1, 8, 200, 4096))
    return b[:i+n]+b[i:]
def zero(b, g):
    i, n = g.randrange(len(b)+1), g.choice((4, 64, 1000, 10**6))
    return b[:i]+bytes(min(n, len(b)-i))+b[i+n:]
def end(b, g): return b+g.choice((b'\0', b'\n', b'x'*99, b[:500], bytes(4096)))
def other(b, g):
    return g.choice((b'', b'\0', bytes(1000), b'<html>not here</html>', b'version https://git-lfs.github.com/spec/v1\n',
        g.randbytes(500), b'\x89PNG\r\n\x1a\n', b'PK\3\4', b'\x80\2.', b'[]', b'{}', b'null'))


BYTES = (flip, flip, put, put, cut, lose, grow, twice, zero, end, other)


def changed_bytes(b, g): return g.choice(BYTES)(b, g)


# Mutations that keep the format whole

def _nodes(o, at=()):
    yield at
    for k in o if isinstance(o, dict) else range(len(o)) if isinstance(o, list) else ():
        yield from _nodes(o[k], (*at, k))


def changed_tree(o, g):
    "One value of a JSON tree lost, doubled, or something else"
    o = json.loads(json.dumps(o))
    at = g.choice(list(_nodes(o)))
    if not at: return g.choice(NASTY)
    box = o
    for k in at[:-1]: box = box[k]
    k, how = at[-1], g.randrange(5)
    if how==0: del box[k]
    elif how==1 and isinstance(box[k], list): box[k] = box[k]*2 if len(box[k]) else [0]
    elif how==2 and isinstance(box, dict): box[g.choice(('', 'zz', '__class__', str(k)+' '))] = box.pop(k)
    elif how==3 and isinstance(box[k], (int, float)): box[k] = g.choice((-box[k], box[k]+1, box[k]*1000, box[k]+.5,
        str(box[k])))
    else: box[k] = g.choice(NASTY)
    return o


def changed_json(b, g):
    if g.random()<.35: return changed_bytes(b, g)
    o = json.loads(b)
    for _ in range(g.choice((1, 1, 1, 2))): o = changed_tree(o, g)
    return json.dumps(o).encode('utf-8', 'surrogatepass')


def changed_jsons(b, g):
    "A file of safetensors: another header"
    if g.random()<.5: return changed_bytes(b, g)
    n = int.from_bytes(b[:8], 'little')
    head = json.dumps(changed_tree(json.loads(b[8:8+n]), g)).encode('utf-8', 'replace')
    return len(head).to_bytes(8, 'little')+head+b[8+n:]


def _members(b):
    with zipfile.ZipFile(io.BytesIO(b)) as z: return [(i, z.read(i)) for i in z.infolist()]


def _npy(shape, dtype, data=b'', order=False):
    head = f"{{'descr': {dtype!r}, 'fortran_order': {order}, 'shape': {shape}, }}".encode()
    head += b' '*(-(len(head)+11)%64)+b'\n'
    return b'\x93NUMPY\1\0'+len(head).to_bytes(2, 'little')+head+data


def strange_npy(b, g):
    "An array of another type, or of more numbers than there are"
    if g.random()<.4: return changed_bytes(b, g)
    return g.choice((_npy((1<<20, 1<<20), '<f4', bytes(64)), _npy((2**62,), '<f4'), _npy((-5, 3), '<f4', bytes(64)),
        _npy((4, 4), '|O', b'\x80\3]q\0.'), _npy((4, 4), '<U9', bytes(576)), _npy((4, 4), '<c8', bytes(128)),
        _npy((0, 0), '<f4'), _npy((), '<f4', bytes(4)), _npy((1<<14, 1<<14), '<f4', bytes(1<<12)),
        _npy((2, 3, 4, 5), '|b1', bytes(120)), _npy("(1,)*40", '<f4', bytes(4)),
            _npy((4, 4), [('a', '<f4')], bytes(64))))


def changed_zip(b, g):
    "A member changed, lost, doubled, renamed or packed so that it grows"
    if g.random()<.4: return changed_bytes(b, g)
    ms, out = _members(b), io.BytesIO()
    k, how = g.randrange(len(ms)), g.randrange(6)
    with zipfile.ZipFile(out, 'w', zipfile.ZIP_DEFLATED) as z, warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for j,(i, data) in enumerate(ms):
            name = i.filename
            if j==k:
                if how==0: continue
                if how==1: name = g.choice(('../x.npy', 'x', '/etc/x'))
                if how==2: data = strange_npy(data, g)
                if how==3: data = changed_bytes(data, g)
                if how==4: data = _npy((1<<15, 1<<15), '|u1',
                    bytes(200<<20)) if g.random()<.1 else _npy((1<<14, 1<<13), '<f4')
                if how==5: z.writestr(name, data)
            z.writestr(name, data)
    return out.getvalue()


def changed_png(b, g):
    "A chunk changed, its checksum right"
    if g.random()<.5: return changed_bytes(b, g)
    chunks, at = [], 8
    while at<len(b):
        n = int.from_bytes(b[at:at+4], 'big')
        chunks.append((b[at+4:at+8], b[at+8:at+8+n]))
        at += 12+n
    k = g.choice((0, 0, g.randrange(len(chunks))))
    kind, data = chunks[k]
    if k==0 and g.random()<.7:
        w, h, bits, colour = struct.unpack('>IIBB', data[:10])
        new = dict(w=w, h=h, bits=bits, colour=colour)
        new[g.choice(list(new))] = g.choice((0, 1, 2, 3, 4, 6, 8, 16, w+1, 10**4, 2**31-1))
        data = struct.pack('>IIBB', new['w'], new['h'], new['bits']%256, new['colour']%256)+data[10:]
    else: data = changed_bytes(data, g)
    chunks[k] = kind, data
    return b[:8]+b''.join(len(d).to_bytes(4, 'big')+c+d+zlib.crc32(c+d).to_bytes(4, 'big') for c,d in chunks)


def changed_pth(b, g):
    "Another thing saved than tensors by name"
    import torch
    if g.random()<.5: return changed_bytes(b, g)
    o = torch.load(io.BytesIO(b), weights_only=True)
    inner = o['model'] if isinstance(o.get('model'), dict) else o
    k = g.choice(list(inner))
    one = torch.ones(1)
    inner[k] = g.choice((None, 3, 'x', [1], {}, inner[k].double(), inner[k].long(), one.expand(1<<40),
        one.expand(1<<14, 1<<15),
        torch.zeros(0), inner[k][..., :0], torch.eye(3).to_sparse(), inner[k]*float('nan'), inner[k].unsqueeze(0)))
    how = g.randrange(8)
    if how==0: inner[3] = inner.pop(k)
    if how==1: inner.pop(k)
    if how==2: o = g.choice(([inner], one, {}, {'model': [1]}, {'model': {}, 'state_dict': {}}, {'a': {'b': inner}}))
    out = io.BytesIO()
    torch.save(o, out, _use_new_zipfile_serialization=g.random()<.7)
    b = out.getvalue()
    return b if g.random()<.8 else changed_bytes(b, g)


def changed_h5(b, g):
    "A dataset of another kind under a name"
    import h5py
    import numpy as np
    if g.random()<.5: return changed_bytes(b, g)
    buf = io.BytesIO(b)
    with h5py.File(buf, 'r+') as f:
        names = []
        f.visititems(lambda k,v: names.append(k) if hasattr(v, 'shape') else None)
        k, how = g.choice(names), g.randrange(10)
        old = f[k][()]
        del f[k]
        if how==0: f[k] = 'text'
        elif how==1: f[k] = np.array([b'a', b'bc'])
        elif how==2: f.create_dataset(k, (3,), dtype=h5py.vlen_dtype(float))
        elif how==3: f.create_dataset(k, (1<<40, *old.shape[1:]), dtype='f8',
            chunks=(1, *old.shape[1:])) # says 8 TiB, holds nothing
        elif how==4: f.create_group(k)
        elif how==5: f[k] = h5py.SoftLink('/nowhere')
        elif how==6: f[k] = h5py.ExternalLink('/etc/passwd', '/')
        elif how==7: f[k] = np.zeros(3, dtype=[('a', 'f4'), ('b', 'S3')])
        elif how==8: f.create_dataset(k, (1<<25, *old.shape[1:]), dtype='f8', compression='gzip',
            chunks=(1<<12, *old.shape[1:]))
        elif how==9: f[k] = old.astype('c16')
    return buf.getvalue()


def changed_text(b, g):
    if g.random()<.5: return changed_bytes(b, g)
    lines = b.split(b'\n')
    k = g.randrange(len(lines))
    words = lines[k].split()
    if words: words[g.randrange(len(words))] = g.choice((b'', b'-1', b'x', b'1e999', b'9'*400, b'nan', b'../../x',
        b'\xff\xfe', b'1 2 3'))
    lines[k] = b' '.join(words)
    return b'\n'.join(lines)


# Readers

@dataclasses.dataclass
class Reader:
    "What is made, which of its files is damaged, who reads it"
    name:str
    make:object # folder -> None: an undamaged example
    target:str # Pattern of the files that are damaged, below the folder
    read:object # folder -> anything
    change:object=changed_bytes # How
    exact:bool=False # Has the format checksums, so that other content is wrong?
    fits:object=None # What was read, what is there undamaged -> is it of the promised form?


def digest(o):
    "Equal for equal content, nan equal to nan"
    import numpy as np
    import torch
    if isinstance(o, torch.nn.Module): o = dict(o.state_dict())
    if dataclasses.is_dataclass(o) and not isinstance(o, type): o = vars(o)
    if isinstance(o, torch.Tensor):
        b = o.detach().contiguous().flatten().view(torch.uint8).numpy()
        return f'tensor {tuple(o.shape)} {o.dtype} '+hashlib.sha256(b).hexdigest()
    if isinstance(o, np.ndarray):
        return f'array {o.shape} {o.dtype} '+hashlib.sha256(np.ascontiguousarray(o).tobytes()).hexdigest()
    if isinstance(o, dict): return '{'+','.join(f'{k!r}:{digest(v)}' for k,v in o.items())+'}'
    if isinstance(o, (list, tuple)): return '['+','.join(map(digest, o))+']'
    return repr(o)


def family():
    from vidlit.floor.reading import FileError
    return FileError, OSError


def _one(reader, folder, was):
    "Read once: 'refused', 'same', 'other', or why it is wrong"
    errors = family()
    try: now = digest(got := reader.read(folder))
    except errors as e:
        text = str(e)
        # the file, or its folder, by name; and no allocation that failed on the way
        if re.search('allocate memory|DefaultCPUAllocator|bad_alloc|MemoryError', text): return f'memory: {text}'
        names = [p.name for p in folder.rglob('*')]+[folder.name]
        if not any(n in text for n in names): return f'no file named: {type(e).__name__}: {text}'
        return 'refused'
    except BaseException as e:
        import traceback
        at = traceback.extract_tb(e.__traceback__)
        ours = [f'{Path(f.filename).name}:{f.lineno}' for f in at if '/vidlit/' in f.filename]
        return f'{type(e).__name__} at {ours[-1:]}: {e}'
    if now==was: return 'same'
    if reader.exact: return 'other content, though the format has checksums'
    if reader.fits and not reader.fits(got): return 'not of the promised form'
    return 'other'


def _limits():
    used = int(re.search(r'VmData:\s+(\d+)', Path('/proc/self/status').read_text())[1])<<10
    resource.setrlimit(resource.RLIMIT_DATA, (used+MEMORY, used+MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _damaged(files, seed, reader):
    g = random.Random(f'{reader.name} {seed}')
    p = g.choice(files)
    return p, reader.change(p.read_bytes(), g)


def _work(reader, folder, files, was, seeds, out):
    "In the child: damage, read, restore, report"
    for fd in (1, 2): os.dup2(os.open(os.devnull, os.O_WRONLY), fd)
    warnings.simplefilter('ignore')
    _limits()
    for seed in seeds:
        os.write(out, f'{seed} start\n'.encode())
        try:
            p, b = _damaged(files, seed, reader)
            old, at = p.read_bytes(), sorted(folder.rglob('*'))
            p.write_bytes(b)
            said = 'same' if b==old else _one(reader, folder, was)
            for o in folder.rglob('*'):
                if o.is_file() and o not in at: o.unlink() # locks and the like
            p.write_bytes(old)
        except BaseException as e: said = f'harness: {type(e).__name__}: {e}'
        os.write(out, f'{seed} {json.dumps(said)}\n'.encode())


def _spent(pid):
    "Processor time of a process, seconds; whatever else the machine does"
    f = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    return (int(f[11])+int(f[12]))/os.sysconf('SC_CLK_TCK')


def _lines(fd, pid):
    "Lines of a pipe; ends with 'late' when the process has worked too long, or only slept for a minute, since the last"
    rest, began, at = b'', _spent(pid), time.time()
    while True:
        if not select.select([fd], [], [], .5)[0]:
            if _spent(pid)-began<SECONDS and time.time()-at<60+2*SECONDS*os.getloadavg()[0]: continue
            yield 'late'
            return
        began, at = _spent(pid), time.time()
        b = os.read(fd, 65536)
        if not b: return
        *lines, rest = (rest+b).split(b'\n')
        yield from (o.decode() for o in lines)


def fuzz(reader, folder, seeds):
    "Counts, and the wrong ones: {seed: why}"
    folder.mkdir(parents=True, exist_ok=True)
    reader.make(folder)
    files = sorted(p for p in folder.glob(reader.target) if p.is_file())
    assert files, f'{reader.name}: nothing like {reader.target}'
    keep, was = {p: p.read_bytes() for p in files}, digest(reader.read(folder))
    assert digest(reader.read(folder))==was, f'{reader.name} reads otherwise the second time'
    said, todo, start, busy = {}, list(seeds), time.process_time(), os.times()
    while todo:
        a, b = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(a)
            try: _work(reader, folder, files, was, todo, b)
            finally: os._exit(0)
        os.close(b)
        now = None
        for line in _lines(a, pid):
            if line=='late':
                os.kill(pid, signal.SIGKILL)
                said[now] = f'more than {SECONDS} seconds'
                break
            seed, _, what = line.partition(' ')
            now = int(seed)
            if what!='start': said[now] = json.loads(what)
        os.close(a)
        status = os.waitpid(pid, 0)[1]
        if now is not None and now not in said: said[now] = f'the process died (status {status})'
        for p,old in keep.items(): p.write_bytes(old)
        todo = [o for o in todo if o not in said]
    right = 'refused', 'same', 'other'
    counts = {k: sum(v==k for v in said.values()) for k in right}
    now = os.times()
    spent = now.children_user+now.children_system-busy.children_user-busy.children_system+time.process_time()-start
    return dict(tries=len(said), **counts, seconds=spent), {k: v for k,v in said.items() if v not in right}

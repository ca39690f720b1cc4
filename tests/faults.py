"""Six things that go wrong, for every command that writes: what was said, what was kept, what the same command makes
of it; and that the other commands write nothing. `python tests/faults.py [--out FILE] [COMMAND...]` records the table
that the page `safety` shows.

A full disk and a read-only one are small disks that only root may mount."""
import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
import kills
from kills import contents, forked, left_over, unlike, vidlit

OUT = Path(__file__).resolve().parents[1]/'benchmarks'/'results'/'faults.json'
FREE = dict(tracks=4, codec=4, stereo=0, pyramid=8, jobs=0, reproduce=0) # KiB, for those that write little


def reproduce(p, r):
    from vidlit.lab.experiment import Experiment, register
    from vidlit.lab.jobs import Job
    job = Job('steps', 'experiment_toys:steps', dict(n=2, seconds=0.))
    def summary(res, root): return dict(rows=[], paired=[], figures=[], headline='', facts=dict(res))
    register(Experiment('toy', 'What?', 'none', lambda *a, **kw: [job], summary, dict(toy=.1)))
    return vidlit('reproduce', 'toy', '--out', r/'out', '--workers', 1, '--device', 'cpu', '--quiet')


CASES = {**kills.CASES, 'reproduce': reproduce}
NO_SOURCE = 'jobs', 'reproduce'
WAITS = 'jobs', 'reproduce' # a second one waits for the first
# not in the record: the moment that is found lies after the jobs, where nothing is held, and both write the same report
OPEN = {('reproduce', 'two writers')}
READS = {'live': lambda p: vidlit('live', p/'video.mp4', '--frames', 3, '--max-res', 42, '--quiet'),
    'models': lambda p: vidlit('models', '--pattern', 'videomae*'), 'info': lambda p: vidlit('info'),
    'video info': lambda p: vidlit('video', 'info', p/'video.mp4'),
    'predict': lambda p: vidlit('predict', p/'classifier', p/'videos'/'a0.mp4', '--device', 'cpu')}


def inputs(root):
    "Those of the other harness, and a classifier"
    from vidlit.pretrain.finetune_videos import video_classifier
    p = kills.inputs(root)
    if not (p/'classifier').is_dir():
        video_classifier('videomae_tiny', ['a', 'b'], (4, 16, 16), 0).save_pretrained(p/'classifier')
    return p
MADE = re.compile(r'.*(\.(png|npz|npy|exr|mp4|mkv|vlc|ply|spz|safetensors|html|flo)|/c/[\d/]+|o\.json|result\.json)')


def said(text, root):
    "The lines of ours, without what is another each time"
    lines = [o.removeprefix('vidlit: ') for o in text.splitlines() if o.startswith('vidlit: ')]
    text = ' '.join(lines).replace(str(root), 'ROOT')
    text = re.sub(r'\(\S+ \S* ?of \S+ \S* ?free\)', '(n of m free)', text)
    return re.sub(r'held by process \d+', 'held by process n', text)[:400]


def run(name, p, r, root, **kw): return forked(lambda: CASES[name](p, r), root/'note', **kw)


def row(name, fault, got, root, kept, again=None, whole=None, r=None):
    "What is to be told"
    out = dict(command=name, fault=fault, code=got.code, said=said(got.said, root), kept=kept)
    if 'Traceback' in got.said: out['traceback'] = got.said[-1500:].replace(str(root), 'ROOT')
    if again is not None:
        off = unlike(contents(r), whole) if again.code in (0, 2) else []
        out |= dict(again=again.code, again_said=said(again.said, root), other=off, left=left_over(r))
        if 'Traceback' in again.said: out['traceback'] = again.said[-1500:].replace(str(root), 'ROOT')
    return out


def _disk(root):
    d = root/'disk'
    d.mkdir()
    done = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', d], capture_output=True)
    if os.geteuid() or done.returncode: raise PermissionError('nobody but root may mount a small disk')
    return d


def _there(r): # Names of what is in a folder, shortened
    names = [*contents(r)] if r.exists() else []
    more = f' and {len(names)-2} more' if len(names)>2 else ''
    return ', '.join(names[:2])+more if names else 'nothing'


def full(name, p, root, whole):
    d = _disk(root)
    try:
        use = os.statvfs(d)
        with open(d/'ballast', 'wb') as f: f.write(bytes(max(0, use.f_bavail*use.f_frsize-FREE.get(name, 24)*1024)))
        (r := d/'r').mkdir()
        got = run(name, p, r, root)
        kept = _there(r)
        (d/'ballast').unlink()
        subprocess.run(['mount', '-o', 'remount,size=64m', d], check=True)
        return row(name, 'full disk', got, root, kept, run(name, p, r, root), whole, r)
    finally: subprocess.run(['umount', '-l', d], check=True)


def read_only(name, p, root, whole):
    d = _disk(root)
    try:
        subprocess.run(['mount', '-o', 'remount,ro', d], check=True)
        return row(name, 'read-only', run(name, p, d/'r', root), root, 'nothing was there')
    finally: subprocess.run(['umount', '-l', d], check=True)


def removed(name, p, root, whole):
    (r := root/'r').mkdir()
    run(name, p, r, root)
    made = [o for o in sorted(contents(r)) if MADE.fullmatch('/'+o) and 'ckpt/' not in o] # not what it goes on from
    gone = made[len(made)//2]
    (r/gone).unlink()
    got = run(name, p, r, root)
    return row(name, 'output removed', got, root, f'all but {gone}', got, whole, r)


def _exchange(name, q):
    "Another source under the same name, of the same size and length"
    from PIL import Image
    from vidlit.video.writing import numbered_frame, write_video
    if name=='tracks':
        o = json.loads((q/'t.json').read_text())
        o['tracks'][1]['bbox'][0] += 1
        (q/'t.json').write_text(json.dumps(o))
    elif name=='splat':
        for f in (q/'balls'/'train').glob('*.png'): Image.open(f).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(f)
    elif name in ('pretrain', 'pretrain videomae', 'finetune'):
        for f in [*(q/'videos').glob('*.mp4'), *(q/'classes').rglob('*.mp4')]:
            write_video(f, (numbered_frame(90+j, 24) for j in range(8)), 8)
    else: write_video(q/'video.mp4', (numbered_frame(200+i, 32) for i in range(34)), 25, crf=18)


def exchanged(name, p, root, whole):
    if name in NO_SOURCE: return None
    q = Path(shutil.copytree(p, root/'inputs'))
    (r := root/'r').mkdir()
    run(name, q, r, root)
    was = contents(r)
    _exchange(name, q)
    got = run(name, q, r, root)
    off = unlike(contents(r), was)
    return row(name, 'other source', got, root, 'all' if not off else f'made anew: {", ".join(off)[:120]}')


def clock(name, p, root, whole):
    "Ended in the middle; what is there is from tomorrow; the clock goes back by a day before the same command"
    (r := root/'r').mkdir()
    first = run(name, p, r, root, at=max(1, len(whole['calls'])//2), how=signal.SIGKILL)
    kept = _there(r)
    for f in r.rglob('*'): os.utime(f, (time.time()+86400,)*2, follow_symlinks=False)
    def back():
        real = time.time
        time.time = lambda: real()-86400
        return CASES[name](p, r)
    again = forked(back, root/'note')
    return row(name, 'clock moved', first, root, kept, again, whole['files'], r)


def _held(r): # Does somebody hold a lock in there?
    from vidlit.floor.places import flock
    for o in r.rglob('*.lock'):
        with o.open('rb') as f:
            try: flock(f.fileno(), False)
            except BlockingIOError: return True
    return False


def _stopped(name, p, root, at):
    "A folder in which a process stands still before its call number `at`"
    (r := root/f'r{at}').mkdir()
    note = root/'first'
    pid = os.fork()
    if not pid:
        try: kills._child(lambda: CASES[name](p, r), note.with_suffix('.log'), note.with_suffix('.calls'), at,
            signal.SIGSTOP)
        finally: os._exit(98)
    os.waitpid(pid, os.WUNTRACED)
    return pid, r, note


def two(name, p, root, whole):
    "One stands still in the middle, at a moment at which it holds a place; another comes; then the first goes on"
    middle = .85 if name=='pretrain' else .5 # targets are built by as many as like to; a run is trained by one
    for at in range(max(1, round(len(whole['calls'])*middle)), 0, -1):
        pid, r, note = _stopped(name, p, root, at)
        if _held(r): break
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    got = run(name, p, r, root, seconds=10 if name in WAITS else 120)
    if got.code==-signal.SIGKILL: got.said += '\nvidlit: (waited, and was ended after a while)'
    kept = _there(r)
    os.kill(pid, signal.SIGCONT)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    first = note.with_suffix('.log').read_text(errors='replace')
    again = run(name, p, r, root)
    out = row(name, 'two writers', got, root, kept, again, whole['files'], r)
    return out | dict(first=code, first_said=said(first, root)) | (
        dict(traceback=first[-1500:].replace(str(root), 'ROOT')) if 'Traceback' in first else {})


FAULTS = {'full disk': full, 'read-only': read_only, 'output removed': removed, 'other source': exchanged,
    'clock moved': clock, 'two writers': two}


def reads(name, p):
    "A command that writes nothing, standing in a read-only folder"
    root = Path(tempfile.mkdtemp())
    d = _disk(root)
    try:
        subprocess.run(['mount', '-o', 'remount,ro', d], check=True)
        def there():
            os.chdir(d)
            return READS[name](p)
        return [row(name, 'writes nothing', forked(there, root/'note'), root, 'nothing was there')]
    finally:
        subprocess.run(['umount', '-l', d], check=True)
        shutil.rmtree(root, ignore_errors=True)


def table(name, p, faults=FAULTS):
    "Rows of a command"
    if name in READS: return reads(name, p)
    with tempfile.TemporaryDirectory() as t:
        (r := Path(t)/'r').mkdir()
        for _ in range(1+(name=='splat')): # the first one compiles
            got = run(name, p, r, Path(t))
            assert got.code==0, got.said[-2000:]
            files = contents(r)
            if name=='splat' and not _: shutil.rmtree(r), r.mkdir()
    whole = dict(calls=got.calls, files=files)
    rows = []
    for k in faults:
        root = Path(tempfile.mkdtemp())
        try: rows.append(FAULTS[k](name, p, root, whole if k in ('clock moved', 'two writers') else files))
        finally: shutil.rmtree(root, ignore_errors=True)
    return [o for o in rows if o]


def main():
    a = argparse.ArgumentParser()
    a.add_argument('names', nargs='*')
    a.add_argument('--out', type=Path, default=OUT)
    a = a.parse_args()
    kills.warm()
    import vidlit.pretrain.finetune_videos  # noqa: F401 - once, before forking
    import vidlit.pretrain.pretrain_videos  # noqa: F401
    p = inputs(Path(tempfile.mkdtemp())/'inputs')
    from vidlit.floor.store import write_json
    def place(o): return [*FAULTS, 'writes nothing'].index(o['fault']), [*CASES, *READS].index(o['command'])
    for name in a.names or [*CASES, *READS]:
        rows = [o for o in (json.loads(a.out.read_text()) if a.out.exists() else []) if o['command']!=name]
        rows += table(name, p)
        for o in rows: o['command']==name and print(json.dumps(o), flush=True)
        write_json(a.out, sorted(rows, key=place))


if __name__=='__main__': main()

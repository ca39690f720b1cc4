"""Every long command, ended at every removal, rename and fsync that it makes, and given again: the same bytes.

What it makes is found by counting the calls of an undisturbed run in a fork; then a fork is ended by a signal at its
1st, 2nd, 3rd... call. `python tests/kills.py FOLDER [CASE...]` does all of them and records rows; the tests do some."""
import argparse
import importlib
import io
import itertools
import json
import os
import platform
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from functools import cache
from pathlib import Path

OUT = Path(__file__).resolve().parents[1]/'benchmarks'/'results'/'kills.json'
LATE = 'vidlit', 'matplotlib', 'scipy', 'torch', 'torchvision', 'zarr'
CALLS = 'replace', 'rename', 'unlink', 'remove', 'rmdir', 'fsync'


def trap(at, how):
    "Count the calls; send the signal `how` before call number `at`"
    seen, count = [], itertools.count(1)
    def counted(f, name):
        def call(*args, **kw):
            seen.append(name)
            if next(count)==at: signal.raise_signal(how) if how==signal.SIGINT else os.kill(os.getpid(), how)
            return f(*args, **kw)
        return call
    for o in CALLS: setattr(os, o, counted(getattr(os, o), o))
    return seen


class Ended:
    "What became of a fork: how it ended, what it said, which calls it made, who of its session is left"
    def __init__(self, code, said, calls, left): self.code, self.said, self.calls, self.left = code, said, calls, left


def session(sid):
    "Processes of a session that live"
    def stat(p):
        try: return (p/'stat').read_text().rpartition(')')[2].split()
        except OSError: return ()
    rows = {int(p.name): stat(p) for p in Path('/proc').iterdir() if p.name.isdigit()}
    return {k for k, f in rows.items() if f and int(f[3])==sid and f[0]!='Z'}


def _child(f, log, made, at, how):
    os.setsid()
    with log.open('wb') as o:
        for fd in (1, 2): os.dup2(o.fileno(), fd)
    sys.stdout, sys.stderr = os.fdopen(1, 'w', closefd=False), os.fdopen(2, 'w', closefd=False)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    import torch
    torch.set_num_threads(1) # in a fork torch makes its pool of threads anew: before threads of ours ask for it at once
    seen, code = trap(at, how), 99
    try: code = f() or 0
    except KeyboardInterrupt: code = 130
    except BaseException: traceback.print_exc()
    made.write_text(' '.join(seen))
    made.with_suffix('.imports').write_text(' '.join(sys.modules))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def begun(f, note, at=0, how=signal.SIGKILL):
    "Call `f` in a fork with a session of its own: its number"
    log, made = note.with_suffix('.log'), note.with_suffix('.calls')
    made.unlink(missing_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if not pid: # nothing of the caller's, its tests and clean-ups, goes on in here
        try: _child(f, log, made, at, how)
        finally: os._exit(98)
    return pid


def ended(pid, note, seconds=300):
    "Wait for a fork and for all of its session"
    log, made, end = note.with_suffix('.log'), note.with_suffix('.calls'), time.monotonic()+seconds
    while not (got := os.waitpid(pid, os.WNOHANG))[0]:
        if time.monotonic()>end: os.kill(pid, signal.SIGKILL)
        time.sleep(.002)
    while (left := session(pid)) and time.monotonic()<end+10: time.sleep(.05)
    calls = made.read_text().split() if made.exists() else []
    return Ended(os.waitstatus_to_exitcode(got[1]), log.read_text(errors='replace'), calls, left)


def forked(f, note, at=0, how=signal.SIGKILL, seconds=300): return ended(begun(f, note, at, how), note, seconds)


# the commands

def vidlit(*args):
    from vidlit.cli.app import app, run_app
    return run_app(app, [*map(str, args)])


def each(*runs):
    "One command after the other, as a shell script that stops at the first error"
    for o in runs:
        if code := o(): return code


@cache
def inputs(root):
    "A short video, its depth, a tracking file, folders of small videos, a teacher, a scene: made once"
    import torch
    from PIL import Image
    import vidlit.cli.finetune  # noqa: F401 - their commands
    import vidlit.cli.pretrain  # noqa: F401
    from vidlit.nn.vit import ViTConfig
    from vidlit.pretrain import videomae_weights  # noqa: F401 (save_pretrained)
    from vidlit.pretrain.videomae import VideoMAE, VideoMAEConfig
    from vidlit.splat.scenes import RigConfig, world_scene
    from vidlit.video.depth_frames import DepthWriter
    from vidlit.video.writing import numbered_frame, write_video
    from vidlit.worlds.worlds import WorldConfig
    for o in (root, root/'videos'): o.mkdir(parents=True, exist_ok=True)
    write_video(root/'video.mp4', (numbered_frame(i, 32) for i in range(34)), 25, crf=18)
    with DepthWriter(root/'depth', 'depth', (32, 80), 25, frames=34, source=str(root/'video.mp4')) as w:
        w.extend(2+torch.rand(32, 80, generator=torch.Generator().manual_seed(i)) for i in range(34))
    rows = [dict(frame=t, id=1, bbox=[8+4*t, 6, 20+4*t, 18]) for t in range(5)]
    (root/'t.json').write_text(json.dumps(dict(fps=25, width=80, height=32, tracks=rows)))
    for i in range(4):
        write_video(root/'videos'/f'{"ab"[i%2]}{i}.mp4', (numbered_frame(i+j, 24) for j in range(8)), 8)
    for i in range(8):
        (root/'classes'/'ab'[i%2]).mkdir(parents=True, exist_ok=True)
        write_video(root/'classes'/'ab'[i%2]/f'{i}.mp4', (numbered_frame(i+j, 24) for j in range(8)), 8)
    small = VideoMAEConfig(ViTConfig(dim=16, depth=2, heads=2, patch=(2, 8, 8)), ViTConfig(dim=8, depth=1, heads=2))
    VideoMAE(small, gen=torch.Generator().manual_seed(0)).save_pretrained(root/'teacher', size=(4, 16, 16))
    rig = RigConfig(WorldConfig(t=3, h=24, w=24, n_obj=1, lit=True), cameras=2)
    for split, s in zip(('train', 'test'), world_scene(0, rig)): _write_scene(root/'balls', s, split, Image)
    return root


def _write_scene(folder, scene, split, Image):
    import torch
    frames = []
    (folder/split).mkdir(parents=True, exist_ok=True)
    for i, x in enumerate(scene.images):
        Image.fromarray((x*255).byte().numpy()).save(folder/split/f'r_{i:03d}.png')
        pose = (scene.pose[i]*torch.tensor([1., -1, -1, 1])).tolist()
        frames.append(dict(file_path=f'./{split}/r_{i:03d}', time=scene.times[i].item(), transform_matrix=pose))
    angle = 2*torch.atan(scene.images.shape[2]/2/scene.K[0, 0, 0]).item()
    (folder/f'transforms_{split}.json').write_text(json.dumps(dict(camera_angle_x=angle, frames=frames)))


def chunks(p, r):
    job = r/'job'
    return each(lambda: vidlit('chunks', 'split', p/'video.mp4', job, '--chunks', 2),
        lambda: _plan(job) and None, lambda: _worker(job),
        lambda: vidlit('chunks', 'merge', job, r/'out', '--format', 'npz'))


def _worker(job):
    from vidlit.pipeline.job import ChunkError
    from vidlit.pipeline.pool import work_on
    try: work_on(job, threads=1)
    except ChunkError as e: # as a worker process says it
        print(f'vidlit: {e}', file=sys.stderr)
        return 2


def _plan(job):
    from vidlit.pipeline.pool import Plan, make_plan
    return make_plan(job, Plan('toy', max_res=42))


def jobs(p, r):
    from vidlit.floor.places import NoRoom, ReadOnly
    from vidlit.lab.experiment import Experiment, run_experiments
    from vidlit.lab.jobs import Job, JobError
    one = [Job(f'steps/{i}', 'experiment_toys:steps', dict(n=2, seconds=0.)) for i in range(2)]
    two = Job('both', 'experiment_toys:both', {}, ('steps/0', 'steps/1'))
    def summary(res, root): return dict(rows=[], paired=[], figures=[], headline='', facts=dict(res))
    e = Experiment('toy', 'What?', 'none', lambda *a, **kw: [*one, two], summary, dict(toy=.1))
    try: run_experiments([e], r/'out')
    except (JobError, NoRoom, ReadOnly) as e: # no other error of the disk: that would be a traceback
        print(f'vidlit: {e}', file=sys.stderr)
        return 1 if isinstance(e, JobError) else 2


def pretrain(p, r):
    small = '--frames', 4, '--size', 16, '--dim', 8, '--device', 'cpu', '--quiet'
    net = '--dim', 16, '--depth', 2, '--heads', 2, '--fact', 1, '--bs', 2, '--ratio', .5, '--steps', 4, '--every', 2
    return each(lambda: vidlit('targets', 'build', p/'videos', '--teacher', p/'teacher', '--out', r/'cache', *small),
        lambda: vidlit('pretrain', 'stjepa', r/'cache', '--out', r/'out', *net, '--device', 'cpu', '--quiet'))


def codec(p, r):
    return each(lambda: vidlit('codec', 'encode', p/'video.mp4', '--out', r/'v.vlc', '--max-len', 3),
        lambda: vidlit('codec', 'decode', r/'v.vlc', '--out', r/'v.mkv', '--lossless'))


def splat(p, r):
    return each(lambda: vidlit('splat', 'train', p/'balls', '--out', r/'out', '--steps', 6, '--cap', 300, '--quiet'),
        lambda: vidlit('splat', 'export', r/'out', '--out', r/'frames', '--frames', 2),
        lambda: vidlit('splat', 'export', r/'out', '--out', r/'one.spz'),
        lambda: vidlit('splat', 'render', r/'out', '--out', r/'v.mp4', '--seconds', .2, '--fps', 10, '--size', '32x32',
            '--quiet'))


SMALL = '--input-max', 42 # costs a third
TINY = '--frames', 4, '--size', 16, '--bs', 2, '--every', 2, '--device', 'cpu', '--quiet'
def depth(*more): return lambda p, r: vidlit('depth', p/'video.mp4', '--out', r/'out', *SMALL, '--quiet', *more)


CASES = {'depth png16': depth('--preview'), 'depth stream npz': depth('--mode', 'stream', '--format', 'npz'),
    'depth zarr': depth('--format', 'zarr'), 'depth exr': depth('--format', 'exr', '--native'), 'chunks': chunks,
    'depth chunks': lambda p, r: vidlit('depth', p/'video.mp4', '--out', r/'out', *SMALL, '--chunks', 2, '--quiet'),
    'refine': lambda p, r: vidlit('refine', p/'video.mp4', '--depth', p/'depth', '--out', r/'out', '--quiet',
        '--warm', 0),
    'stereo': lambda p, r: vidlit('stereo', p/'video.mp4', '--depth', p/'depth', '--out', r/'s.mp4', '--quiet',
        '--max-len', 4),
    'tracks': lambda p, r: vidlit('tracks', p/'t.json', '--depth', p/'depth', '--fov', 60, '--out', r/'o.json',
        '--picture', r/'o.png'),
    'flow': lambda p, r: vidlit('flow', p/'video.mp4', '--out', r/'out', '--max-len', 4, '--quiet'),
    'pyramid': lambda p, r: vidlit('pyramid', p/'video.mp4', '--out', r/'out', '--levels', 3, '--quiet'),
    'codec': codec, 'splat': splat, 'pretrain': pretrain, 'jobs': jobs,
    'finetune': lambda p, r: vidlit('finetune', p/'classes', '--init', 'videomae_tiny', '--out', r/'out', '--epochs', 1,
        '--sampling', 'strided', '--stride', 1, *TINY),
    'pretrain videomae': lambda p, r: vidlit('pretrain', 'videomae', p/'videos', '--out', r/'out', '--steps', 4,
        '--stride', 1, *TINY)}
# which worker did what and how long it took is not the same twice
OTHERWISE = re.compile(r'.*/marks|.*/(workers|logs)/.*|.*report\.json|.*metrics\.json|.*/result\.json')
FINDS, HALF = re.compile(r'\.vidlit|\.partial$|\.tmp$'), re.compile(r'\.vidlit-') # HALF: half written


def contents(r): return {o.relative_to(r).as_posix(): o.read_bytes() for o in sorted(r.rglob('*')) if o.is_file()}
def left_over(r, form=FINDS): return [str(o.relative_to(r)) for o in sorted(r.rglob('*')) if form.search(o.name)]
def compared(d): # the order of the lines of a log says nothing
    return {k: sorted(v.splitlines()) if k.endswith('done.jsonl') else v for k, v in d.items()
        if not OTHERWISE.fullmatch('/'+k)}


def frames_of(data):
    import av
    with av.open(io.BytesIO(data)) as c:
        return [f.to_ndarray(format='rgb24').astype('float32') for f in c.decode(video=0)]


def same_video(a, b):
    "libx264 gives other bytes for the same frames, by where they lie in memory: so frames, to 3 of 255"
    a, b = frames_of(a), frames_of(b)
    return len(a)==len(b) and all(x.shape==y.shape and abs(x-y).mean()<3 for x, y in zip(a, b))


def unlike(now, was):
    "Names of files that are not the same in two runs"
    now, was = compared(now), compared(was)
    off = sorted(k for k in now.keys()|was.keys() if now.get(k)!=was.get(k))
    def video(k): return k.endswith(('.mp4', '.mkv')) and k in now and k in was # Matroska has random names inside
    return [k for k in off if not (video(k) and same_video(now[k], was[k]))]


def undisturbed(name, root):
    "The calls of a run that nobody disturbs, and what it leaves"
    r = root/'whole'/name.replace(' ', '_')
    r.mkdir(parents=True)
    p = inputs(root/'inputs')
    if name=='splat': # the process that compiles the rasterizer rounds otherwise than those that find it compiled
        forked(lambda: CASES[name](p, r/'first'), root/'note')
        shutil.rmtree(r/'first', ignore_errors=True)
    got = forked(lambda: CASES[name](p, r), root/'note')
    assert got.code==0 and not got.left and not left_over(r), (name, got.code, got.said[-2000:], left_over(r))
    for o in (root/'note.imports').read_text().split(): # what it has imported late, so that the next forks need not
        if o not in sys.modules and o.split('.')[0] in LATE:
            with suppress(Exception): importlib.import_module(o)
    return got.calls, contents(r)


def ended_at(name, root, k, how, whole):
    "End a run at call `k` and give it again; what is wrong, or None"
    r = root/f'{name.replace(" ", "_")}-{k}-{how.name}'
    r.mkdir(parents=True)
    p = inputs(root/'inputs')
    first = forked(lambda: CASES[name](p, r), root/'note', k, how)
    if first.code not in (-how, 130): return f'not ended but {first.code}: {first.said[-500:]}'
    if first.left: return f'processes left: {first.left}'
    if how==signal.SIGINT and (o := left_over(r, HALF)): return f'left by an interrupt: {o}'
    again = forked(lambda: CASES[name](p, r), root/'note')
    done = again.code==2 and 'is there already' in again.said # what is made at once, and never written over
    if again.code and not done or again.left: return f'again {again.code}: {again.said[-1500:]}'
    if o := left_over(r): return f'left over: {o}'
    if o := unlike(contents(r), whole): return f'other bytes: {o}'
    shutil.rmtree(r)


def together(name, root, after, whole):
    "A run, and the same command `after` seconds later in the same folder; what is wrong, or None"
    r = root/f'{name.replace(" ", "_")}-{after:.3f}'
    r.mkdir(parents=True)
    p = inputs(root/'inputs')
    notes, pids = [root/'first', root/'second'], []
    for o in notes:
        pids.append(begun(lambda: CASES[name](p, r), o))
        if o is notes[0]: time.sleep(after)
    got = [ended(*o) for o in zip(pids, notes)]
    for o in got: # each does its work, or says in one line that another is at it
        lines = o.said.strip().splitlines()
        if o.left: return f'processes left: {o.left}'
        if o.code and not (o.code==2 and lines and 'Traceback' not in o.said): return f'ended {o.code}: {o.said[-800:]}'
    if all(o.code for o in got): return f'neither did it: {got[0].said[-300:]} {got[1].said[-300:]}'
    if o := left_over(r): return f'left over: {o}'
    if o := unlike(contents(r), whole): return f'other bytes: {o}'
    shutil.rmtree(r)


def run_together(name, root, moments=10, seed=0):
    "Two runs in one folder, the second at so many random moments of the first"
    began = time.monotonic()
    calls, whole = undisturbed(name, root)
    long, dice = time.monotonic()-began, random.Random(seed)
    at = sorted(dice.uniform(0, long) for _ in range(moments))
    wrong = {round(t, 3): said for t in at if (said := together(name, root, t, whole))}
    shutil.rmtree(root/'whole')
    return dict(case=name, how='two runs', calls=len(calls), tried=len(at), wrong=wrong)


def points(n, some):
    "Numbers from 1 to n: all; the first and one two thirds in; or `some`, evenly spread with both ends"
    if some is None or some>=n: return list(range(1, n+1))
    return [1, 1+2*(n-1)//3] if some==2 else sorted({1+round(i*(n-1)/(some-1)) for i in range(some)})


def run_case(name, root, some=None, how=signal.SIGKILL):
    calls, whole = undisturbed(name, root)
    at = points(len(calls), some)
    wrong = {k: said for k in at if (said := ended_at(name, root, k, how, whole))}
    shutil.rmtree(root/'whole')
    return dict(case=name, how=how.name, calls=len(calls), tried=len(at), wrong=wrong)


def warm():
    "Imports, once: forks have them"
    import warnings
    warnings.filterwarnings('ignore')
    import torch
    import torch._dynamo  # noqa: F401 - slow, so once, before forking
    import vidlit.cli.app  # noqa: F401
    torch.set_num_threads(1)
    for o in 'finetune stjepa pretrain depth chunks tracks refine stereo splat pyramid live codec'.split():
        importlib.import_module(f'vidlit.cli.{o}')
    for o in ('pipeline.video_depth', 'pipeline.refine', 'pipeline.stereo', 'pipeline.tracks', 'pipeline.run',
        'splat.run', 'pretrain.stjepa', 'pretrain.target_cache', 'pyramid.codec_file', 'lab.experiment'):
        importlib.import_module(f'vidlit.{o}')


def main():
    """All moments of the commands named, or of all: killed, then interrupted; a row each, put into OUT as it is done.

    A row that is there, of as many moments as the command has, is not made again. `--how two`: a second run of the
    same command in the same folder, begun at random moments of the first."""
    p = argparse.ArgumentParser()
    p.add_argument('root', type=Path)
    p.add_argument('names', nargs='*')
    p.add_argument('--how', nargs='*', default=['SIGKILL', 'SIGINT'])
    p.add_argument('--some', type=int)
    p.add_argument('--out', type=Path, default=OUT)
    a = p.parse_args()
    warm()
    from vidlit.floor.store import write_json
    a.root.mkdir(parents=True, exist_ok=True)
    root = Path(tempfile.mkdtemp(dir=a.root)) # x264 does not write the inputs twice alike
    for name, how in [(n, h) for h in a.how for n in a.names or CASES]:
        rows = {(o['case'], o['how']): o for o in json.loads(a.out.read_text())['rows']} if a.out.exists() else {}
        old = rows.get((name, 'two runs' if how=='two' else how), dict(tried=0, calls=1))
        if old['tried']>=(a.some or old['calls']) and not old['wrong']: continue
        began = time.monotonic()
        row = run_together(name, root, a.some or 10) if how=='two' else run_case(name, root, a.some,
            signal.Signals[how])
        print(json.dumps(row), f'{time.monotonic()-began:.0f} s', flush=True)
        rows[name, row['how']] = {**row, 'wrong': {str(k): v for k, v in row['wrong'].items()}}
        about = dict(cores=os.cpu_count(), cpu=platform.processor() or platform.machine())
        write_json(a.out, dict(machine=about, rows=[rows[k] for n in CASES for h in ('SIGKILL', 'SIGINT', 'two runs')
            if (k := (n, h)) in rows]))


if __name__=='__main__': main()

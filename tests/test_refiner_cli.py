"""`vidlit refine` and `vidlit stereo` as a shell sees them: killed and continued, bad input, memory, streams."""
import json
import os
import random
import signal
import subprocess
import sys
import time
import numpy as np
import pytest
import torch
from shell import here
from vidlit.depth.stability import scale_jitter
from vidlit.refiner.baselines import controls
from vidlit.refiner.evaluation import Truth, scale, scale_drift
from vidlit.refiner.inference import refine
from vidlit.video.depth_frames import DepthReader, DepthWriter
from vidlit.video.reader import VideoReader
from vidlit.video.writing import write_video
from vidlit.worlds.worlds import WorldConfig, make_worlds

MOMENTS = int(os.environ.get('VIDLIT_KILLS', 3))  # the record of ten: VIDLIT_KILLS=10 pytest -k killed


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    p = tmp_path_factory.mktemp('refine')
    world = make_worlds([5], WorldConfig(t=60, h=64, w=96))
    write_video(p/'video.mp4', (world.clip[0].permute(1, 2, 3, 0)*255).byte(), 24)
    write_video(p/'other.mp4', (world.clip[0].permute(1, 2, 3, 0)*255).byte().flip(2), 24)
    depth = scale_jitter(world.depth, .03, torch.Generator().manual_seed(0))[0]
    for name, d, kw in (('depth', depth, {}), ('relative', 1/depth, dict(kind='disparity', units='relative')),
        ('radius', depth, dict(kind='radius'))):
        with DepthWriter(p/name, **dict(dict(kind='depth'), **kw), size=(64, 96), fps=24, frames=60,
            source=p/'video.mp4') as w: w.extend(d)
    np.save(p/'short.npy', depth[:40, 0].numpy())
    np.save(p/'long.npy', torch.cat([depth, depth])[:, 0].numpy())
    np.save(p/'square.npy', depth[:, 0, :, :64].numpy())
    np.save(p/'nothing.npy', torch.full((60, 64, 96), float('nan')).numpy())
    holed = depth.clone()
    holed[:, :, 5:15, 5:25], holed[7] = float('nan'), float('nan')
    np.save(p/'holes.npy', holed[:, 0].numpy())
    return p


def files(p): return {o.relative_to(p).as_posix(): o.read_bytes() for o in sorted(p.rglob('*')) if o.is_file()}


def command(*args, cwd):
    code = ('from vidlit.cli.app import app, run_app; import vidlit.cli.refine, sys; '
        'sys.exit(run_app(app, sys.argv[1:]))')
    return subprocess.Popen([sys.executable, '-c', code, *map(str, args)], cwd=cwd, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE)


def test_killed_at_random_moments_to_identical_bytes(place):
    args = 'refine', 'video.mp4', '--depth', 'depth', '--format', 'npz', '--json', '--out'
    p = command(*args, 'straight', cwd=place)
    assert p.wait(timeout=300) == 0
    rng, kills = random.Random(0), 0
    moments = sorted(rng.sample(range(1, 60), MOMENTS))
    for at in moments:
        p = command(*args, 'torn', cwd=place)
        seen = place/'torn'/f'{at:06d}.npz'
        while p.poll() is None and not seen.exists(): time.sleep(.002)
        if p.poll() is None: kills += 1
        p.send_signal(signal.SIGKILL)
        p.wait()
    p = command(*args, 'torn', cwd=place)
    assert p.wait(timeout=300) == 0
    assert files(place/'torn') == files(place/'straight')
    assert kills >= MOMENTS-1
    print(f'killed {kills} times at frames {moments}: {len(files(place/"torn"))} files equal')


BAD = {
    'another video': (('other.mp4', '--depth', 'depth'), 'not of'),
    'too short': (('video.mp4', '--depth', 'short.npy'), '40 frames of depth for a video of 60'),
    'too long': (('video.mp4', '--depth', 'long.npy'), 'depth of another video'),
    'another shape': (('video.mp4', '--depth', 'square.npy'), 'another shape'),
    'relative': (('video.mp4', '--depth', 'relative'), 'metres are needed'),
    'only holes': (('video.mp4', '--depth', 'nothing.npy'), 'no depth anywhere'),
    'no camera': (('video.mp4', '--depth', 'radius'), 'needs the camera'),
    'no method': (('video.mp4', '--depth', 'depth', '--method', 'magic'), "no method 'magic'"),
    'two methods': (('video.mp4', '--depth', 'depth', '--method', 'scale', '--model', 'm'), 'goes with --method model'),
}


@pytest.mark.parametrize('what', BAD)
def test_bad_input_is_one_line(place, what, monkeypatch, capfd):
    import vidlit.cli.refine  # noqa: F401
    monkeypatch.chdir(place)
    before = files(place)
    args, said = BAD[what]
    r = here(monkeypatch, capfd, 'refine', *args, '--out', 'x')
    assert r.returncode == 2 and r.stdout == '' and said in r.stderr and r.stderr.count('\n') == 1
    assert files(place) == before, 'nothing lost, nothing left'


def test_the_small_refiner_comes_along(monkeypatch, tmp_path):
    "What `--method model` takes without --model; an installation without it says so"
    from vidlit.pipeline.refine_parts import load_op, refiner_folder
    from vidlit.refiner.model import Refiner, RefinerConfig
    monkeypatch.setattr('vidlit.__file__', str(tmp_path/'vidlit'/'__init__.py'))
    with pytest.raises(ValueError, match='needs --model: no refiner came'): load_op('model')
    for place in ('vidlit/refiner_weights', 'data/models/refiner'):
        Refiner(RefinerConfig(width=4)).save_pretrained(tmp_path/place)
        assert refiner_folder() == tmp_path/place and load_op('model')[1] == 'model'
    assert load_op('auto')[1] == 'bilateral'


def test_bad_stereo_is_one_line(place, monkeypatch, capfd):
    import vidlit.cli.stereo  # noqa: F401
    monkeypatch.chdir(place)
    for args, said in ((('--depth', 'depth', '--baseline', '.06'), 'needs the camera'),
        (('--depth', 'short.npy'), '40 frames'), (('--depth', 'nothing.npy'), 'no depth anywhere')):
        r = here(monkeypatch, capfd, 'stereo', 'video.mp4', *args, '--out', 'x.mp4')
        assert r.returncode == 2 and said in r.stderr and r.stderr.count('\n') == 1 and not (place/'x.mp4').exists()


def test_holes_stay_and_are_told(place, monkeypatch, capfd):
    import vidlit.cli.refine
    import vidlit.cli.stereo  # noqa: F401
    monkeypatch.chdir(place)
    row = json.loads(here(monkeypatch, capfd, 'refine', 'video.mp4', '--depth', 'holes.npy', '--out', 'holes',
        '--report', '--json').stdout)
    assert 'kept as holes' in row['holes'] and row['frames'] == 60
    got, was = DepthReader(place/'holes')[:], torch.from_numpy(np.load(place/'holes.npy'))[:, None]
    assert torch.equal(got.isnan(), was.isnan())
    said = json.loads((place/'holes'/'report.json').read_text())
    assert said['after']['flicker'] < .5*said['before']['flicker']
    assert 'src="data:image/png' in (place/'holes'/'report.html').read_text()
    args = 'stereo', 'video.mp4', '--depth', 'holes', '--out', 's.mp4', '--json'
    row = json.loads(here(monkeypatch, capfd, *args).stdout)
    v = VideoReader(place/'s.mp4')
    assert (len(v), str(v.info.fps), row['frames']) == (60, '24', 60)


@pytest.mark.parametrize('name', [k for k, f in controls.items() if hasattr(f, 'step')])
def test_streaming_equals_the_causal_clip(name):
    w = make_worlds([3], WorldConfig(t=30, h=24, w=32, camera='hand'), truth=False)
    d = scale_jitter(w.depth, .03, torch.Generator().manual_seed(0))
    whole = controls[name](d)
    assert (refine(controls[name], d, eta=0.)/whole-1).abs().max() < 1e-5


@pytest.mark.parametrize('name', ['bilateral', 'scale + bilateral'])
def test_no_drift_over_2000_frames(name):
    w = make_worlds([3], WorldConfig(t=2000, h=12, w=16, motion='still', camera='hand'), truth=False)
    d = scale_jitter(w.depth, .03, torch.Generator().manual_seed(0))
    out, truth = refine(controls[name], d), Truth(w.depth)
    assert scale_drift(out, truth).abs().item() < 1e-4
    print(name, scale_drift(out, truth).item(), scale(out, truth).item())


def test_a_model_streams_goes_on_and_is_resumed(place, tmp_path):
    from vidlit.pipeline.refine import refine_video
    from vidlit.refiner.model import Refiner, RefinerConfig
    gen = torch.Generator().manual_seed(0)
    cfg = RefinerConfig(width=8, rgb=True, mid=True, high=True, global_path=True, memory=True)
    model = Refiner(cfg, gen).eval()
    with torch.no_grad():
        for p in model.parameters(): p.add_(.02*torch.randn(p.shape, generator=gen))
    model.save_pretrained(tmp_path/'model')
    d, rgb = DepthReader(place/'depth')[:8][None], torch.rand(1, 8, 3, 64, 96, generator=gen)
    with torch.no_grad(): whole = model(d, torch.ones_like(d), rgb).depth
    assert (whole/d-1).abs().max() > 1e-3
    assert (refine(model, d, rgb=rgb, eta=0.)/whole-1).abs().max() < 1e-5

    class Stop(Exception): pass
    left = [3, 7, 11]

    def report(row):
        if left and row.get('done', 0) >= left[0]: left.pop(0) and (_ for _ in ()).throw(Stop)
    args = place/'video.mp4', place/'depth'
    kw = dict(model=tmp_path/'model', every=3, warm=2, upto=12)
    refine_video(*args, tmp_path/'straight', **kw)
    while True:
        try: refine_video(*args, tmp_path/'torn', report=report, **kw)
        except Stop: continue
        break
    assert not left and files(tmp_path/'torn') == files(tmp_path/'straight')


_mem = '''
import sys, resource, threading, torch
torch.set_num_threads(1)
from vidlit.pipeline.refine import refine_video
at = {}
def report(row):
    if row.get('stage')=='refine': at[row['done']] = int(open('/proc/self/statm').read().split()[1])*4096
refine_video('long.mp4', 'long.npy', 'memory', report=report, warm=48)
late = [v for k, v in at.items() if k>1500]
early = [v for k, v in at.items() if 100<k<=300]
print(max(early), max(late))
'''


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='reads /proc')
def test_memory_is_constant(tmp_path):
    n = 2000
    frame = torch.randint(0, 255, (64, 96, 3), dtype=torch.uint8)
    write_video(tmp_path/'long.mp4', (frame for _ in range(n)), 24)
    z = np.lib.format.open_memmap(tmp_path/'long.npy', mode='w+', dtype=np.float32, shape=(n, 64, 96))
    z[:] = 2+np.linspace(0, 1, 96, dtype=np.float32)
    z.flush()
    r = subprocess.run([sys.executable, '-c', _mem], cwd=tmp_path, capture_output=True, text=True)
    early, late = map(int, r.stdout.split()[-2:])
    assert late < 1.1*early, (early, late)
    print(f'{early/1e6:.0f} MB at 300 frames, {late/1e6:.0f} MB at {n}')

"""`vidlit splat` as its users meet it: a folder to a page, killed and gone on, other programs' files, refusals."""
import json
import signal
import subprocess
import time
from glob import glob
import pytest
import torch
from headless import Browser, chromium
from PIL import Image
from shell import VIDLIT, here
from vidlit.floor.metrics import psnr
from vidlit.splat.files import read_gaussians
from vidlit.splat.run import looked_at, open_scene, parts_of
from vidlit.splat.scenes import RigConfig, world_scene
from vidlit.splat.viewer import render_path, view_hash
from vidlit.video.reader import VideoReader
from vidlit.worlds.camera import look_at
from vidlit.worlds.worlds import WorldConfig

STEPS = '--steps', '60', '--kind', 'hexplane', '--cap', '900'


def vidlit(*args, cwd): # as in shell.py, with more patience: a training takes its time on a busy machine
    return subprocess.run([VIDLIT, *args], capture_output=True, text=True, timeout=280, cwd=cwd)


def write_dnerf(folder, scene, split):
    frames = []
    (folder/split).mkdir(parents=True)
    for i, x in enumerate(scene.images):
        Image.fromarray((x*255).byte().numpy()).save(folder/split/f'r_{i:03d}.png')
        pose = (scene.pose[i]*torch.tensor([1., -1, -1, 1])).tolist()
        frames.append(dict(file_path=f'./{split}/r_{i:03d}', time=scene.times[i].item(), transform_matrix=pose))
    angle = 2*torch.atan(scene.images.shape[2]/2/scene.K[0, 0, 0]).item()
    (folder/f'transforms_{split}.json').write_text(json.dumps(dict(camera_angle_x=angle, frames=frames)))


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    p = tmp_path_factory.mktemp('splat')
    rig = RigConfig(WorldConfig(t=5, h=40, w=48, n_obj=2, grain=.3, lit=True), cameras=4)
    for split, s in zip(('train', 'test'), world_scene(0, rig)): write_dnerf(p/'balls', s, split)
    r = vidlit('splat', 'train', 'balls', '--out', 'a', *STEPS, '--json', cwd=p)
    assert r.returncode==0, r.stderr
    (p/'said.json').write_text(r.stdout)
    return p


def test_one_command_to_a_page(place):
    said = json.loads((place/'said.json').read_text())
    assert {'gaussians', 'train_psnr', 'held_psnr', 'page', 'MB'} <= said.keys() and said['held_psnr'] > 5
    files = sorted(p.name for p in (place/'a').iterdir())
    assert files==['model.safetensors', 'report.json', 'scene.html', 'splat.json']


@pytest.mark.skipif(chromium() is None, reason='no Chromium is installed here')
def test_the_page_is_the_trained_scene(place):
    s = open_scene(place/'a')
    h, w = s.size
    b = Browser(w, h)
    try:
        for i, t in ((0, 0.), (3, s.seconds/2), (5, s.seconds)):
            hash_ = view_hash(t, s.path[i], s.K, s.size, play=False, ui=False)
            b.goto((place/'a'/'scene.html').as_uri()+hash_)
            b.until('window.ready || window.failed')
            want = next(render_path(s.at, s.path[i:i+1], [t], s.K, s.size, background=s.background))
            assert psnr(b.picture()[None, :h, :w], want[None]).item() > 25 # a fog after so few steps
    finally: b.close()


def test_killed_and_gone_on_is_the_same_to_the_bit(place):
    cmd = [VIDLIT, 'splat', 'train', 'balls', '--out', 'b', *STEPS[:1], '450', *STEPS[2:]]
    p = subprocess.Popen(cmd, cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.time()+100
    while not glob(f'{place}/b/state/fine/step-*') and time.time()<end and p.poll() is None: time.sleep(.02)
    p.send_signal(signal.SIGKILL)
    p.wait()
    assert not (place/'b'/'model.safetensors').exists() and list((place/'b').glob('state/fine/step-*'))
    for out in 'bc':
        r = vidlit(*cmd[1:4], '--out', out, *cmd[6:], cwd=place)
        assert r.returncode==0, r.stderr
    assert (place/'b'/'model.safetensors').read_bytes()==(place/'c'/'model.safetensors').read_bytes()
    assert 'PSNR' in r.stderr # the last line of each stage, without a terminal too


@pytest.fixture
def run(place, monkeypatch, capfd):
    "`vidlit splat` in this process, in that folder"
    monkeypatch.chdir(place)
    return lambda *a: here(monkeypatch, capfd, 'splat', *a)


def test_minutes(place, run):
    r = run('train', 'balls', '--out', 'd', '--minutes', '.02', '--kind', 'motion', '--quiet')
    assert (r.returncode, r.stderr)==(0, '') and (place/'d'/'scene.html').is_file()


def test_render_export_and_back(place, run):
    for path in ('orbit', 'spline', 'fixed'):
        how = '--path', path, '--fps', '4', '--seconds', '1', '--size', '64x40'
        r = run('render', 'a', '--out', f'{path}.mp4', *how)
        assert r.returncode==0, r.stderr
        with VideoReader(place/f'{path}.mp4') as v: assert (len(v), v[0].shape)==(4, (40, 64, 3))
    for end in ('ply', 'splat', 'spz'):
        assert run('export', 'a', '--out', f'one.{end}', '--time', '2').returncode==0
        g = read_gaussians(place/f'one.{end}')
        assert len(g)==len(open_scene(place/'a').model.gaussians)
    want = open_scene(place/'a').at(2.)
    got = read_gaussians(place/'one.ply')
    assert torch.equal(got.means, want.means.detach()) and torch.allclose(got.scales, want.scales.detach(), rtol=1e-5)
    assert run('export', 'a', '--out', 'frames', '--frames', '3').returncode==0
    assert run('render', 'frames', '--out', 'seq.mp4', '--fps', '2', '--size', '32x32').returncode==0
    assert run('export', 'one.ply', '--out', 'one.html').returncode==0
    r = run('view', 'frames', '--limit', '.1', '--port', '18950', '--json')
    assert r.returncode==0 and json.loads(r.stdout)['url'].startswith('http://127.0.0.1:'), r.stderr


def refused(run, *args, says):
    r = run(*args)
    assert (r.returncode, r.stdout, r.stderr.count('\n'))==(2, '', 1) and says in r.stderr, r.stderr


def test_bad_input_is_one_line(place, run):
    head = 'ply\nformat binary_little_endian 1.0\nelement vertex 1\nproperty float x\nend_header\n'
    (place/'other.ply').write_bytes(head.encode()+bytes(4))
    (place/'none').mkdir()
    (place/'none'/'transforms.json').write_text(json.dumps(dict(frames=[])))
    d = json.loads((place/'balls'/'transforms_train.json').read_text())
    for name, change in (('late', dict(time=1.5)), ('blind', dict(transform_matrix=[[1]]))):
        (place/name).mkdir()
        frames = [dict(f, file_path='../balls/'+f['file_path']) for f in d['frames']]
        (place/name/'transforms_train.json').write_text(json.dumps(dict(d, frames=[frames[0]|change, *frames[1:]])))
        (place/name/'transforms_test.json').write_text(json.dumps(dict(d, frames=frames)))
    Image.new('RGB', (9, 9)).save(place/'small.png')
    (place/'mixed').mkdir()
    frames = [frames[0], frames[1]|dict(file_path='../small')]
    (place/'mixed'/'transforms_train.json').write_text(json.dumps(dict(d, frames=frames)))
    out = '--out', 'x'
    assert vidlit('splat', 'train', 'none', *out, cwd=place).stderr.count('\n')==1 # as a process of its own, once
    refused(run, 'train', 'none', *out, says='has no frames')
    refused(run, 'train', 'late', *out, says='time 1.5 of frame 0 is outside [0, 1]')
    refused(run, 'train', 'blind', *out, says='transform_matrix of frame 0 must be 4x4')
    refused(run, 'train', 'mixed', *out, says='small.png is 9x9')
    refused(run, 'train', 'balls', says='--out is missing')
    motion = *STEPS[:3], 'motion'
    refused(run, 'train', 'balls', '--out', 'a', *motion, says='was trained with kind hexplane, not motion')
    refused(run, 'train', 'balls', '--out', 'a', '--cap', '0', says='cap must be at least 1, not 0')
    refused(run, 'view', 'other.ply', says='is no file of Gaussians: it lacks y')
    refused(run, 'view', 'a', '--port', '0', says='--port must lie in 1 to 65535, not 0')
    refused(run, 'render', 'nowhere', '--out', 'x.mp4', says='there is no nowhere')
    refused(run, 'render', 'a', '--out', 'x.mp4', '--size', 'big', says="not 'big'")
    assert not (place/'x').exists() and not (place/'x.mp4').exists()


def test_help_teaches(place):
    r = vidlit('splat', 'train', '--help', cwd=place)
    assert r.returncode==0 and 'vidlit splat train bouncingballs --out balls' in r.stdout and '--minutes' in r.stdout


def test_what_cameras_look_at():
    eyes = torch.tensor([[3., 0, 0], [0, 1, -3], [-2, -1, 2]])
    at = torch.tensor([.5, .2, -.1])
    p, r = looked_at(look_at(eyes, at.expand(3, 3)))
    assert torch.allclose(p, at, atol=1e-4) and abs(r-(eyes-at).norm(dim=1).median())<1e-4
    p, _ = looked_at(torch.eye(4).repeat(3, 1, 1)) # all look the same way
    assert torch.allclose(p, torch.tensor([0., 0, 1]))


def test_every_eighth_is_kept_away_without_splits(place):
    d = json.loads((place/'balls'/'transforms_train.json').read_text())
    n, f = len(d['frames']), 24/torch.tan(torch.tensor(d['camera_angle_x']/2)).item()
    frames = [dict(x, file_path='../balls/'+x['file_path']+'.png') for x in d['frames']*2]
    (place/'studio').mkdir()
    d = dict(w=48, h=40, fl_x=f, fl_y=f, cx=24, cy=20, frames=frames)
    (place/'studio'/'transforms.json').write_text(json.dumps(d))
    scene, held = parts_of(place/'studio')
    assert len(held.images)==2*n//8 and len(scene.images)+len(held.images)==2*n and scene.lo is not None

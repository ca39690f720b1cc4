"""The page and the window of a scene, in a Chromium without a window, by their pixels."""
import socket
import subprocess
import sys
import time
import pytest
import torch
from headless import Browser, chromium
from vidlit.floor.metrics import psnr
from vidlit.splat.gaussians import Gaussians, random_gaussians
from vidlit.splat.rasterizer import render_gaussians
from vidlit.splat.viewer import SceneServer, key_scene, scene_orbit, toy_scene, view_hash, write_camera_path, write_page
from vidlit.worlds.camera import inv_pose, look_at, make_K

H, W, SKY = 150, 200, torch.tensor([.1, .15, .25])
K = make_K(55, H, W)
browser = pytest.mark.skipif(chromium() is None, reason='no Chromium is installed here')


@pytest.fixture(scope='module')
def page():
    b = Browser(W, H)
    yield b
    b.close()


def seen(g, pose, K=K, **kw):
    with torch.no_grad():
        return render_gaussians(g, inv_pose(pose)[None], K[None], W, H, background=SKY, **kw).rgb[0].clamp(0, 1)


def db(a, b): return psnr(a[None], b[None]).item()


def shown(page, path, t, pose, K=K):
    page.goto(path.as_uri() + view_hash(t, pose, K, (H, W), play=False, ui=False))
    page.until('window.ready || window.failed')
    assert page.js('window.failed') is None
    return page.picture()[:H, :W]


@browser
def test_page_shows_what_the_rasteriser_renders(page, tmp_path):
    scene = toy_scene()
    keys = key_scene(scene, torch.linspace(0, 2, 21))
    out = write_page(tmp_path/'scene.html', keys, K, (H, W), background=SKY.tolist())
    poses = scene_orbit(keys, 5, K, (H, W))
    rows = [(t, p, shown(page, out, t, p)) for t, p in ((0., poses[0]), (.77, poses[1]), (1.5, poses[3]))]
    assert min(db(im, seen(scene(t), p)) for t, p, im in rows) > 30
    assert db(rows[0][2], seen(scene(1.), poses[0])) < 25 # another time is another picture: the measure can fail
    assert all(u.startswith(('file:', 'blob:', 'data:', 'about:')) for u in page.asked) # nothing is fetched


@browser
def test_page_off_centre_camera_and_harmonics(page, tmp_path):
    gen = torch.Generator().manual_seed(1)
    g = random_gaussians(300, -1, 1, gen, degree=3, opacity=.7)
    sh = .25*torch.randn(300, 16, 3, generator=gen)
    g = Gaussians(g.means, g.log_scales-.3, torch.randn(300, 4, generator=gen), g.logit_opacities, sh)
    K2 = torch.tensor([[260., 0, 70], [0, 230, 95], [0, 0, 1]])
    out = write_page(tmp_path/'scene.html', key_scene(g, [0.]), K, (H, W), background=SKY.tolist())
    for eye in ((0., -1., -4.), (3., 1., 2.5)):
        pose = look_at(torch.tensor(eye), torch.zeros(3))
        assert db(shown(page, out, 0, pose, K2), seen(g, pose, K2)) > 30
    other = Gaussians(g.means, g.log_scales, g.quats, g.logit_opacities, sh[:, :1])
    assert db(seen(other, pose, K2), seen(g, pose, K2)) < 25 # the harmonics matter here


@browser
def test_page_antialiased(page, tmp_path):
    g = random_gaussians(400, -1, 1, torch.Generator().manual_seed(2), degree=0, opacity=.9)
    g = Gaussians(g.means, g.log_scales*0-4.6, g.quats, g.logit_opacities, g.sh)
    pose = look_at(torch.tensor([0., -1., -4.]), torch.zeros(3))
    for aa in (False, True):
        out = write_page(tmp_path/'scene.html', key_scene(g, [0.]), K, (H, W), background=SKY.tolist(), antialiased=aa)
        im = shown(page, out, 0, pose)
        assert db(im, seen(g, pose, antialiased=aa)) > 40 > db(im, seen(g, pose, antialiased=not aa))


@browser
def test_page_plays_stops_and_turns(page, tmp_path):
    out = write_page(tmp_path/'scene.html', key_scene(toy_scene(), torch.linspace(0, 2, 9)), K, (H, W), title='<b>&')
    page.goto(out.as_uri())
    page.until('window.ready || window.failed')
    assert page.js('document.title')=='<b>&' and page.js('viewer.playing')
    t = page.js('viewer.time')
    page.until(f'viewer.time != {t}')
    page.js("document.getElementById('play').click()")
    assert not page.js('viewer.playing')
    page.js("{ const s = document.getElementById('time'); s.value = .25; s.dispatchEvent(new Event('input')) }")
    assert abs(page.js('viewer.time')-.5) < 1e-6
    time.sleep(.5)
    assert abs(page.js('viewer.time')-.5) < 1e-6
    a = page.picture()
    for kind, x in (('mousePressed', 100), ('mouseMoved', 150), ('mouseReleased', 150)):
        page.call('Input.dispatchMouseEvent', type=kind, x=x, y=60, button='left', buttons=1, clickCount=1)
    time.sleep(1)
    assert db(a, page.picture()) < 30 # dragged round
    page.js("document.getElementById('home').click()")
    time.sleep(1)
    assert db(a, page.picture()) > 35 # and back


@browser
def test_window_shows_what_the_rasteriser_renders(page):
    pytest.importorskip('viser')
    scene = toy_scene()
    keys = key_scene(scene, torch.linspace(0, 2, 21))
    pose = scene_orbit(keys, 5, K, (H, W))[1]
    with SceneServer(keys, K, (H, W), pose, SKY.tolist(), port=18700) as s:
        page.goto(s.url)
        end = time.time()+60
        while not s.server.get_clients() and time.time()<end: time.sleep(.1); page.js('1')
        client = next(iter(s.server.get_clients().values()))
        ims = []
        for t in (0., .8):
            s.slider.value = t
            for _ in range(20): time.sleep(.1); page.js('1')
            im = client.get_render(H, W, transport_format='png', timeout=60)
            im = torch.from_numpy(im.copy()).float()/255
            ims.append(im[..., :3]*im[..., 3:]+(1-im[..., 3:])*SKY if im.shape[-1]==4 else im)
        got = [db(im, seen(scene(t), pose)) for im, t in zip(ims, (0., .8))]
        assert min(got) > 25 and db(ims[0], seen(scene(.8), pose)) < 25
        s.playing.value = True
        t = s.t
        end = time.time()+10
        while s.t==t and time.time()<end: time.sleep(.05)
        assert s.t!=t
        port = int(s.url.rpartition(':')[2])
    with socket.socket() as o: assert o.connect_ex(('127.0.0.1', port)) != 0


def test_window_listens_on_loopback_only():
    pytest.importorskip('viser')
    code = ("import torch; from vidlit.splat.viewer import *; from vidlit.worlds.camera import make_K\n"
        "s = SceneServer(key_scene(toy_scene(5), [0., 1.]), make_K(50, 9, 9), (9, 9), port=18800)\n"
        "hexes = [l.split()[1] for f in ('tcp', 'tcp6') for l in open(f'/proc/self/net/{f}').readlines()[1:]\n"
        "    if l.split()[3]=='0A' and int(l.split()[1].rpartition(':')[2], 16)==int(s.url.rpartition(':')[2])]\n"
        "s.close(); s.close(); print(*hexes)")
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120)
    assert r.returncode==0, r.stderr
    assert r.stdout.split(':')[0]=='0100007F' and len(r.stdout.split())==1, r.stdout


def test_film(tmp_path):
    from vidlit.video.reader import VideoReader
    scene = toy_scene(20)
    keys = key_scene(scene, [0., 1.])
    K9 = make_K(50, 31, 41)
    poses = scene_orbit(keys, 3, K9, (31, 41))
    out = write_camera_path(tmp_path/'f.mp4', scene, poses, [0, .5, 1], K9, (31, 41), background=SKY)
    with VideoReader(out) as v: assert len(v)==3 and v[0].shape==(32, 42, 3)


def test_transparent_and_broken_scenes_are_refused():
    g = random_gaussians(5, -1, 1, torch.Generator().manual_seed(0), degree=0)
    none = Gaussians(g.means, g.log_scales, g.quats, g.logit_opacities-20, g.sh)
    with pytest.raises(ValueError, match='all 5 Gaussians are transparent'): key_scene(none, [0.])
    bad = Gaussians(g.means*torch.nan, g.log_scales, g.quats, g.logit_opacities, g.sh)
    with pytest.raises(ValueError, match='means of the scene hold numbers that are not finite'): key_scene(bad, [0.])

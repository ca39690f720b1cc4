"""Scene formats written here and read back, and what is wrong with a folder said in one line."""
import json
import struct
import numpy as np
import pytest
import torch
from PIL import Image
from vidlit.splat import scene_files as sf
from vidlit.splat.scene_files import read_scene
from vidlit.splat.scenes import RigConfig, world_scene
from vidlit.video.depth_frames import DepthWriter
from vidlit.video.writing import write_video
from vidlit.worlds.camera import inv_pose, mat_to_quat
from vidlit.worlds.worlds import WorldConfig, make_worlds

FLIP = torch.tensor([1., -1, -1, 1])


@pytest.fixture(scope='module')
def scene():
    return world_scene(1, RigConfig(WorldConfig(t=5, h=32, w=48, n_obj=2), cameras=3, points=40))[0]


def save(x, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((x*255).round().byte().numpy()).save(path)


def close(got, scene, idx=None, times=True):
    idx = list(range(len(scene.images))) if idx is None else idx
    assert torch.allclose(got.images, scene.images[idx], atol=3e-3)
    assert torch.allclose(got.pose, scene.pose[idx], atol=1e-4)
    assert torch.allclose(got.K, scene.K[idx], atol=1e-3)
    if times: assert torch.allclose(got.times, scene.times[idx], atol=1e-5)


def names(scene):
    "Camera by camera, numbered by time"
    return [f'cam{c:02d}/frame_{round(t*2):05d}.png' for c, t in zip(scene.camera.tolist(), scene.times.tolist())]


def nerfstudio(scene, tmp, **kw):
    fs = []
    for i, n in enumerate(names(scene)):
        save(scene.images[i], tmp/'images'/n)
        K = scene.K[i]
        fs.append(dict(file_path=f'images/{n}', transform_matrix=(scene.pose[i]*FLIP).tolist(),
            time=scene.times[i].item(),
            fl_x=K[0, 0].item(), fl_y=K[1, 1].item(), cx=K[0, 2].item(), cy=K[1, 2].item()))
    d = dict(w=48, h=32, camera_model='OPENCV', k1=0., frames=fs) | kw
    (tmp/'transforms.json').write_text(json.dumps(d))
    return d


def test_nerfstudio(scene, tmp_path):
    d = nerfstudio(scene, tmp_path)
    close(read_scene(tmp_path), scene)
    for change, said in ((dict(k1=.1), 'distortion k1=0.1'), (dict(w=50), 'not 50x32'), (dict(frames=[]), 'no frames')):
        (tmp_path/'transforms.json').write_text(json.dumps(d | change))
        with pytest.raises(ValueError, match=said): sf.read_nerfstudio(tmp_path)
    d['frames'][1]['transform_matrix'] = [[1, 0], [0, 1]]
    (tmp_path/'transforms.json').write_text(json.dumps(d))
    with pytest.raises(ValueError, match='frame 1 must be 4x4'): sf.read_nerfstudio(tmp_path)
    d['frames'][1].pop('transform_matrix')
    (tmp_path/'transforms.json').write_text(json.dumps(d))
    with pytest.raises(ValueError, match='transform_matrix'): sf.read_nerfstudio(tmp_path)
    (tmp_path/'transforms.json').write_text('{')
    with pytest.raises(ValueError, match='transforms.json'): sf.read_nerfstudio(tmp_path)


def colmap(scene, tmp, binary):
    at = tmp/'sparse'/'0'
    at.mkdir(parents=True)
    K, view = scene.K[0], inv_pose(scene.pose)
    q, p = mat_to_quat(view[:, :3, :3]).tolist(), view[:, :3, 3].tolist()
    params = [K[0, 0].item(), K[1, 1].item(), K[0, 2].item(), K[1, 2].item()]
    order = torch.randperm(len(q), generator=torch.Generator().manual_seed(0)).tolist()  # as COLMAP: in no order
    for i, n in enumerate(names(scene)): save(scene.images[i], tmp/'images'/n)
    pts, rgb = scene.points.tolist(), (scene.rgb*255).round().int().tolist()
    if binary:
        (at/'cameras.bin').write_bytes(struct.pack('<QiiQQ4d', 1, 7, 1, 48, 32, *params))
        b = struct.pack('<Q', len(q))
        for i in order: b += struct.pack('<i7di', i+1, *q[i], *p[i], 7)+names(scene)[i].encode()+b'\0'+struct.pack(
            '<Q2dq', 1, .5, .5, -1)
        (at/'images.bin').write_bytes(b)
        b = struct.pack('<Q', len(pts))
        for i, (x, c) in enumerate(zip(pts, rgb)): b += struct.pack('<Q3d3BdQii', i, *x, *c, .1, 1, 1, 0)
        (at/'points3D.bin').write_bytes(b)
        return at
    (at/'cameras.txt').write_text('# cameras\n7 PINHOLE 48 32 '+' '.join(map(str, params))+'\n')
    lines = [f"{i+1} {' '.join(map(str, q[i]+p[i]))} 7 {names(scene)[i]}\n" for i in order]
    lines = [l+('\n' if j % 2 else '1.0 2.0 -1\n') for j, l in enumerate(lines)]
    (at/'images.txt').write_text('# images\n'+''.join(lines))
    rows = [f"{i} {' '.join(map(str, x+c))} 0.1 1 0\n" for i, (x, c) in enumerate(zip(pts, rgb))]
    (at/'points3D.txt').write_text(''.join(rows))
    return at


@pytest.mark.parametrize('binary', [False, True])
def test_colmap(scene, tmp_path, binary):
    at = colmap(scene, tmp_path, binary)
    got = read_scene(tmp_path)
    close(got, scene)
    assert torch.allclose(got.points, scene.points, atol=1e-5) and torch.allclose(got.rgb, scene.rgb, atol=3e-3)
    if binary:
        raw = (at/'images.bin').read_bytes()
        (at/'images.bin').write_bytes(raw[:-30])
        with pytest.raises(ValueError, match='images.bin ends'): sf.read_colmap(tmp_path)
        (at/'images.bin').write_bytes(raw)
        (at/'cameras.bin').write_bytes(struct.pack('<QiiQQ4d', 1, 7, 2, 48, 32, 40, 24, 16, .1))
    else: (at/'cameras.txt').write_text('7 SIMPLE_RADIAL 48 32 40 24 16 .1\n')
    with pytest.raises(ValueError, match='SIMPLE_RADIAL: undistort'): sf.read_colmap(tmp_path)
    (tmp_path/'images'/names(scene)[0]).unlink()
    with pytest.raises(ValueError): sf.read_colmap(tmp_path)


def test_hypernerf(scene, tmp_path):
    ids = [f'{i:06d}' for i in range(len(scene.images))]
    centre, scale = torch.tensor([.1, .2, .3]), .5
    for i, n in enumerate(ids):
        save(scene.images[i], tmp_path/'rgb'/'2x'/f'{n}.png')
        K = scene.K[i]*2
        c = dict(orientation=scene.pose[i, :3, :3].T.tolist(), position=(scene.pose[i, :3, 3]/scale+centre).tolist(),
            focal_length=K[0, 0].item(), principal_point=[K[0, 2].item(), K[1, 2].item()],
            pixel_aspect_ratio=1., skew=0., radial_distortion=[0., 0, 0], tangential_distortion=[0., 0],
            image_size=[96, 64])
        (tmp_path/'camera').mkdir(exist_ok=True)
        (tmp_path/'camera'/f'{n}.json').write_text(json.dumps(c))
    (tmp_path/'scene.json').write_text(json.dumps(dict(scale=scale, center=centre.tolist(), near=.1, far=2.)))
    (tmp_path/'dataset.json').write_text(json.dumps(dict(ids=ids, train_ids=[], val_ids=[], count=len(ids))))
    meta = {n: dict(warp_id=round(t*2), appearance_id=0, camera_id=0) for n, t in zip(ids, scene.times.tolist())}
    (tmp_path/'metadata.json').write_text(json.dumps(meta))
    close(read_scene(tmp_path), scene, range(0, len(ids), 4))
    close(read_scene(tmp_path, 'test'), scene, range(2, len(ids), 4))
    (tmp_path/'camera'/'000004.json').unlink()
    with pytest.raises(ValueError, match='there is no .*000004.json'): sf.read_hypernerf(tmp_path)
    meta.pop('000004')
    (tmp_path/'metadata.json').write_text(json.dumps(meta))
    with pytest.raises(ValueError, match="lacks '000004'"): sf.read_hypernerf(tmp_path)


def test_dynerf(scene, tmp_path):
    rows = []
    for c in range(3):
        i = (scene.camera == c).nonzero()[:, 0]
        write_video(tmp_path/f'cam{c:02d}.mp4', (scene.images[i]*255).round().byte(), 30)
        p, K = scene.pose[i[0]], scene.K[0]
        m = torch.stack((p[:3, 1], p[:3, 0], -p[:3, 2], p[:3, 3], torch.tensor([32., 48, K[0, 0].item()])), 1)
        rows.append([*m.flatten().tolist(), .1, 9.])
    np.save(tmp_path/'poses_bounds.npy', np.array(rows))
    got = read_scene(tmp_path)
    assert torch.allclose(got.pose, scene.pose[scene.camera > 0], atol=1e-5) and len(got.images) == 6
    assert torch.allclose(got.times, scene.times[scene.camera > 0]) and torch.allclose(got.K, scene.K[:6], atol=1e-3)
    assert (got.images-scene.images[scene.camera > 0]).abs().mean() < .05
    small = sf.read_dynerf(tmp_path, 'test', size=(16, 24))
    assert small.images.shape == (3, 16, 24, 3) and torch.allclose(small.K[0, :2], scene.K[0, :2]/2, atol=1e-3)
    np.save(tmp_path/'poses_bounds.npy', np.array(rows[:2]))
    with pytest.raises(ValueError, match='3 videos for 2 cameras'): sf.read_dynerf(tmp_path)
    np.save(tmp_path/'poses_bounds.npy', np.array([dict(a=1)]), allow_pickle=True)
    with pytest.raises(ValueError, match='no plain numbers'): sf.read_dynerf(tmp_path)
    with pytest.raises(ValueError, match='split'): sf.read_dynerf(tmp_path, 'val')


def test_monocular(tmp_path):
    w = make_worlds([2], WorldConfig(t=4, h=32, w=48))
    frames = (w.clip[0].permute(1, 2, 3, 0)*255).round().byte()
    write_video(tmp_path/'v.mp4', frames, 10)
    d = DepthWriter(tmp_path/'depth', 'depth', (32, 48), 10, frames=4)
    d.extend(w.depth[0])
    d.close()
    got = sf.read_monocular(tmp_path/'v.mp4', tmp_path/'depth', K=w.K[0].float(), n=500)
    assert got.images.shape == (4, 32, 48, 3) and got.points.shape == (500, 3)
    lo, hi = w.scene.room[0].float()
    assert ((got.points > lo-.1) & (got.points < hi+.1)).all() and got.point_times.unique().numel() == 4
    with pytest.raises(ValueError, match='pose has 3 frames'):
        sf.read_monocular(tmp_path/'v.mp4', tmp_path/'depth', pose=torch.eye(4).repeat(3, 1, 1))


def test_nothing_there(tmp_path):
    with pytest.raises(ValueError, match='no folder'): read_scene(tmp_path/'x')
    with pytest.raises(ValueError, match='holds none of'): read_scene(tmp_path)

"""Every form of depth, read back by a program that is not ours: numpy, FFmpeg, OpenEXR, Open3D, pycolmap."""
import json
import subprocess
from pathlib import Path
import av
import numpy as np
import pytest
import torch
from vidlit.pipeline.export import save_as, save_exr, save_ffv1, save_log, save_mm, save_npz
from vidlit.pipeline.points import points_of, save_colmap, save_nerfstudio, save_ply
from vidlit.video.depth_frames import DepthReader, DepthWriter
from vidlit.video.log_depth import read_codes
from vidlit.video.reader import VideoReader
from vidlit.video.writing import write_video
from vidlit.worlds.worlds import WorldConfig, make_worlds


@pytest.fixture(scope='module')
def box(tmp_path_factory):
    "A metric folder with one hole, a relative one in integers, their video, a camera and where it was"
    p = tmp_path_factory.mktemp('export')
    w = make_worlds([5], WorldConfig(t=6, h=48, w=64, camera='orbit', lit=True))
    z = w.depth[0].clone()
    z[2, 0, 3, 4] = torch.nan
    with DepthWriter(p/'metric', 'depth', (48, 64), '30000/1001', frames=6) as o: o.extend(z)
    with DepthWriter(p/'relative', 'disparity', (48, 64), 25, 'png16', lo=0., hi=1., units='relative', frames=6) as o:
        o.extend(1/w.depth[0])
    frames = (w.clip[0].permute(1, 2, 3, 0)*255).byte()
    video = VideoReader(write_video(p/'v.mkv', frames, '30000/1001', codec='ffv1', pix_fmt='bgr0'))
    return dict(p=p, z=z[:, 0].numpy(), metric=DepthReader(p/'metric'), relative=DepthReader(p/'relative'), video=video,
        K=w.K[0], pose=w.pose[0])


def test_npz_by_numpy(box, tmp_path):
    d = np.load(save_npz(box['metric'], tmp_path/'d.npz'))['depths']
    assert d.dtype == np.float32 and np.array_equal(d, box['z'], equal_nan=True)


def test_millimetres_by_open3d(box, tmp_path):
    o3d = pytest.importorskip('open3d')
    save_mm(box['metric'], tmp_path/'mm')
    for i in range(6): # as Open3D makes RGB-D images of its own and of TUM's data: integers over a scale of 1000
        image = o3d.io.read_image(str(tmp_path/'mm'/f'{i:06d}.png'))
        colour = o3d.geometry.Image(np.zeros((48, 64, 3), np.uint8))
        z = np.asarray(o3d.geometry.RGBDImage.create_from_color_and_depth(colour, image, 1000., 1e3).depth)
        hole = np.isnan(box['z'][i])
        assert (z[hole] == 0).all() and abs(z-box['z'][i])[~hole].max() <= .00051


def test_times_of_millimetres_as_tum_writes_them(box, tmp_path):
    save_mm(box['metric'], tmp_path/'mm')
    rows = [o.split() for o in (tmp_path/'mm/depth.txt').read_text().splitlines() if o[0] != '#']
    assert np.allclose([float(o[0]) for o in rows], np.arange(6)*1001/30000, atol=1e-6)
    assert all((tmp_path/'mm'/o[1]).is_file() for o in rows)


def test_far_millimetres_are_counted(tmp_path):
    with DepthWriter(tmp_path/'d', 'depth', (2, 2), 25, frames=1) as o: o[0] = torch.tensor([[1., 2.], [70., 65.535]])
    assert save_mm(DepthReader(tmp_path/'d'), tmp_path/'mm')['beyond'] == 1
    assert 'beyond 65.535 m are 0' in save_as(DepthReader(tmp_path/'d'), 'mm')


def test_exr_by_openexr_and_ffmpeg(box, tmp_path):
    exr = pytest.importorskip('OpenEXR')
    save_exr(box['metric'], tmp_path/'exr')
    for i, f in enumerate(sorted((tmp_path/'exr').iterdir())):
        with exr.File(str(f)) as o: assert np.array_equal(o.channels()['Y'].pixels, box['z'][i], equal_nan=True)
        with av.open(str(f)) as o:
            frame = next(o.decode(video=0))
            assert frame.format.name.startswith('grayf32')
            assert np.array_equal(frame.to_ndarray(), box['z'][i], equal_nan=True)


def test_exr_of_the_official_program_is_read(tmp_path):
    "Their one channel is Z, which FFmpeg refuses and we read"
    exr = pytest.importorskip('OpenEXR')
    with DepthWriter(tmp_path/'d', 'depth', (4, 6), 25, 'exr', frames=1) as o: o[0] = torch.full((4, 6), 2.)
    z = np.full((4, 6), 3., np.float32)
    with exr.File({'type': exr.scanlineimage}, {'Z': z}) as f: f.write(str(tmp_path/'d/000000.exr'))
    assert DepthReader(tmp_path/'d')[0].unique().tolist() == [3.]


def raw(path, pix, shape):
    "A video decoded by the ffmpeg program"
    exe = pytest.importorskip('imageio_ffmpeg').get_ffmpeg_exe()
    args = '-v', 'error', '-i', str(path), '-f', 'rawvideo', '-pix_fmt', pix, '-'
    r = subprocess.run([exe, *args], capture_output=True)
    assert r.returncode == 0, r.stderr.decode()
    return np.frombuffer(r.stdout, '<u2').reshape(-1, *shape)


def test_ffv1_by_ffmpeg(box, tmp_path):
    for k in ('relative', 'metric'):
        path = save_ffv1(box[k], tmp_path/f'{k}.mkv')
        about, q = json.loads(Path(f'{path}.json').read_text()), raw(path, 'gray16le', (48, 64))
        if k == 'relative': assert all((q[i] == box[k].stored(i)).all() for i in range(6))  # to the integer
        got = np.where(q == 0, np.nan, about['offset']+about['scale']*q.astype(float))
        want = box[k][:][:, 0].numpy()
        assert (np.isnan(got) == np.isnan(want)).all()
        assert np.nanmax(abs(got-want)) <= about['scale']*.5+1e-6 and str(about['scale']) in about['formula']


def test_log_by_ffmpeg(box, tmp_path):
    path = save_log(box['metric'], tmp_path/'log.mp4')
    q, codes = raw(path, 'gray12le', (48, 64)), read_codes(path)
    got, want = codes.decode(torch.from_numpy(q.astype(np.int32))).numpy(), box['z']
    assert (np.isnan(got) == np.isnan(want)).all()
    assert np.nanmax(abs(got-want)/codes.error(want)) <= 1.001


def test_ply_by_open3d(box, tmp_path):
    o3d = pytest.importorskip('open3d')
    f = save_ply(box['metric'], box['video'], box['K'], tmp_path/'ply', every=2)[1]
    cloud = o3d.io.read_point_cloud(str(f))
    xyz, rgb = points_of(box['metric'][2], box['K'], box['video'][2])
    assert len(xyz) == 48*64-1  # but for the hole
    assert np.allclose(np.asarray(cloud.points), xyz, atol=1e-5)
    assert np.allclose(np.asarray(cloud.colors)*255, rgb, atol=.51)
    # and as Open3D itself makes points of this depth
    fx, fy, cx, cy = (box['K'][i, j].item() for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
    pin = o3d.camera.PinholeCameraIntrinsic(64, 48, fx, fy, cx-.5, cy-.5)  # its first pixel's middle is at 0
    theirs = o3d.geometry.PointCloud.create_from_depth_image(
        o3d.geometry.Image(np.nan_to_num(box['z'][2])), pin, depth_scale=1., depth_trunc=1e3)
    assert np.allclose(np.asarray(theirs.points), xyz, atol=1e-4)


def test_colmap_by_pycolmap(box, tmp_path):
    pycolmap = pytest.importorskip('pycolmap')
    sparse = save_colmap(box['metric'], box['video'], box['K'], tmp_path/'c', every=3, poses=box['pose'])
    r = pycolmap.Reconstruction(str(sparse))
    assert sorted(o.name for o in r.images.values()) == ['000000.png', '000003.png']
    cam = next(iter(r.cameras.values()))
    assert (cam.width, cam.height) == (64, 48) and np.allclose(cam.calibration_matrix(), box['K'])
    image = next(o for o in r.images.values() if o.name == '000003.png')
    pose = image.cam_from_world
    matrix = (pose() if callable(pose) else pose).matrix()
    assert np.allclose(matrix, torch.linalg.inv(box['pose'][3])[:3], atol=1e-9)
    # a point of the first frame is seen where its pixel was
    xyz, _ = points_of(box['metric'][3], box['K'], box['video'][3], box['pose'][3])
    uv = cam.img_from_cam((matrix[:, :3]@xyz[100].double().numpy()+matrix[:, 3])[None])
    assert np.allclose(uv, [[100 % 64+.5, 100//64+.5]], atol=1e-3)
    assert len(r.points3D) == sum(1 for _ in (sparse/'points3D.txt').open())


def test_nerfstudio_by_its_documented_fields(box, tmp_path):
    "https://docs.nerf.studio/quickstart/data_conventions.html"
    path = save_nerfstudio(box['metric'], box['video'], box['K'], tmp_path/'n', every=3, poses=box['pose'])
    row = json.loads(path.read_text())
    assert row['camera_model'] == 'OPENCV' and all(isinstance(row[k], float) for k in ('fl_x', 'fl_y', 'cx', 'cy'))
    assert (row['w'], row['h'], row['k1'], row['p2']) == (64, 48, 0, 0)
    for i, f in zip((0, 3), row['frames']):
        c2w = np.array(f['transform_matrix'])  # OpenGL: -z is ahead
        assert np.allclose(c2w[:3, 2], -box['pose'][i, :3, 2]) and np.allclose(c2w[:3, 3], box['pose'][i, :3, 3])
        assert (tmp_path/'n'/f['file_path']).is_file()
        with av.open(str(tmp_path/'n'/f['depth_file_path'])) as o: mm = next(o.decode(video=0)).to_ndarray()
        assert abs(mm*1e-3-np.nan_to_num(box['z'][i])).max() <= .00051  # its depth_unit_scale_factor
    assert (tmp_path/'n'/row['ply_file_path']).read_bytes()[:3] == b'ply'


def test_what_is_saved_is_not_saved_again(box, tmp_path):
    said = save_as(box['relative'], 'npz')
    at = Path(said).stat().st_mtime_ns
    assert save_as(box['relative'], 'npz') == said and Path(said).stat().st_mtime_ns == at
    with pytest.raises(ValueError, match='take a metric model'): save_as(box['relative'], 'mm')

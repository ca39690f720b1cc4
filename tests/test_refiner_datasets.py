"""Readers of films with depth: what the page does not show"""
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from vidlit.refiner.datasets import (
    DatasetError,
    Hypersim,
    TumRGBD,
    VideoAndDepth,
    associate,
    hypersim_K,
    read_h5,
    tonemapped,
    tum_K,
)


def brute(a, b, most):
    "associate.py of the benchmark, all pairs"
    pairs = sorted((abs(x-y), i, j) for i, x in enumerate(a) for j, y in enumerate(b) if abs(x-y)<most)
    out, left, right = [], set(), set()
    for _, i, j in pairs:
        if i not in left and j not in right: left.add(i), right.add(j), out.append((i, j))
    return sorted(out)


stamps = st.lists(st.integers(0, 60), max_size=25, unique=True).map(lambda o: [k/128 for k in sorted(o)])


@settings(max_examples=80, deadline=None)
@given(stamps, stamps, st.sampled_from([.004, .02, .1]))
def test_matching_is_that_of_all_pairs(a, b, most): assert associate(a, b, most) == brute(a, b, most)


def test_camera_of_a_shifted_lens_projects_where_the_toolkit_does():
    "A point is projected by hand in the toolkit's axes, then by K in ours"
    M, (h, w) = torch.tensor([[.6, .02, .05], [0, .44, -.03], [0, 0, -1.1]]).double(), (48, 64)
    p = torch.tensor([.3, .2, -2.]).double() # y up, z backwards
    u, v, s = torch.linalg.solve(M, p)
    x, y = (u/s+1)*w/2, (1-v/s)*h/2
    q = hypersim_K(M, h, w)@(p*torch.tensor([1., -1, -1]).double())
    assert torch.allclose(q[:2]/q[2], torch.stack((x, y)))
    with pytest.raises(ValueError, match='invertible'): hypersim_K(torch.zeros(3, 3), 4, 4)


def test_tone_curve():
    c = torch.arange(1., 101).index_fill(0, torch.tensor([99]), 1e6).view(10, 10, 1).expand(10, 10, 3)
    out = tonemapped(c)
    assert out.shape == (3, 10, 10) and out.max() == 1 and abs(out.flatten(1)[0, 89]-.8)<1e-4
    assert tonemapped(7*c).sub(out).abs().max()<1e-5 and not tonemapped(0*c).any()
    assert tonemapped(torch.full((2, 2, 3), float('nan'))).isfinite().all()


@pytest.fixture
def scene(tmp_path):
    h5py = pytest.importorskip('h5py')
    root = tmp_path/'ai_002_003'

    def put(name, a):
        (root/name).parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(root/name, 'w') as f: f['dataset'] = a
    for n in (0, 1, 3):
        put(f'images/scene_cam_00_geometry_hdf5/frame.{n:04d}.depth_meters.hdf5', np.full((6, 8), 2+n, 'f2'))
        (root/'images/scene_cam_00_final_preview').mkdir(exist_ok=True)
        Image.new('RGB', (8, 6), (255, 0, 51)).save(
            root/f'images/scene_cam_00_final_preview/frame.{n:04d}.tonemap.jpg', quality=100)
    put('_detail/cam_00/camera_keyframe_orientations.hdf5', np.stack([np.eye(3)]*4))
    put('_detail/cam_00/camera_keyframe_positions.hdf5', np.arange(12.).reshape(4, 3))
    (root/'_detail/metadata_scene.csv').write_text('parameter_name,parameter_value\nmeters_per_asset_unit,0.5\n')
    return root


def test_hypersim_without_the_table_of_cameras(scene):
    video = Hypersim(scene)
    f = video[2]
    assert video.numbers == [0, 1, 3] and video.runs(2) == [(0, 2)]
    assert f.pose[:3, 3].tolist() == [4.5, 5., 5.5] and f.pose.diagonal().tolist() == [1, -1, -1, 1]
    assert abs(f.K[0, 0]-4/np.tan(np.pi/6))<1e-4 and abs(f.rgb[0].mean()-1)<.02 # the preview
    # of all pixels at the same distance, the middle ones are deepest
    assert f.depth.max()<5 and f.depth[0, 2:4, 3:5].min()>f.depth[0, 0, 0] and f.conf.all()
    small = video.clip(0, 2, (3, 4))
    assert small['depth'].shape == (2, 1, 3, 4) and torch.allclose(small['K'][0, 0, 0], f.K[0, 0]/2)


def test_hypersim_says_what_is_missing(scene):
    note = scene/'_detail/metadata_scene.csv'
    note.write_text('parameter_name,parameter_value\nmeters_per_asset_unit,inch\n')
    with pytest.raises(DatasetError, match="meters_per_asset_unit is 'inch'"): Hypersim(scene)
    note.unlink()
    with pytest.raises(DatasetError, match='metadata_scene.csv: cannot be read'): Hypersim(scene)
    note.write_text('meters_per_asset_unit,1\n')
    table = scene/'cameras.csv'
    table.write_text('scene_name,M_cam_from_uv_00\nai_002_003,1\n')
    with pytest.raises(DatasetError, match='lacks the column M_cam_from_uv_01'): Hypersim(scene, cameras=table)
    (scene/'_detail/cam_00/camera_keyframe_positions.hdf5').unlink()
    with pytest.raises(DatasetError, match='camera_keyframe_positions.hdf5: no such file'): Hypersim(scene)


def test_only_plain_numbers_are_read(tmp_path):
    h5py = pytest.importorskip('h5py')
    with h5py.File(tmp_path/'text.h5', 'w') as f: f['dataset'] = [['a', 'b']]
    with h5py.File(tmp_path/'group.h5', 'w') as f: f.create_group('dataset')
    with h5py.File(tmp_path/'soft.h5', 'w') as f: f['x'], f['dataset'] = np.zeros((2, 2)), h5py.SoftLink('/x')
    layout = h5py.VirtualLayout((2, 2), 'f4')
    layout[:] = h5py.VirtualSource(tmp_path/'other.h5', 'x', (2, 2))
    with h5py.File(tmp_path/'virtual.h5', 'w') as f: f.create_virtual_dataset('dataset', layout)
    for name in ('text', 'group', 'soft', 'virtual'):
        with pytest.raises(DatasetError, match='plain array|of its own'): read_h5(tmp_path/f'{name}.h5', 'h w')
    with h5py.File(tmp_path/'huge.h5', 'w') as f: f.create_dataset('dataset', (1<<20, 1<<20), 'f2', chunks=(64, 64))
    with pytest.raises(DatasetError, match='is needed, not'): read_h5(tmp_path/'huge.h5', 'h w')


@pytest.fixture
def desk(tmp_path):
    root = tmp_path/'rgbd_dataset_freiburg3_x'
    root.mkdir()
    Image.new('RGB', (8, 6), 128).save(root/'c.png')
    Image.fromarray(np.full((6, 8), 5000, 'uint16')).save(root/'d.png')
    for k in 'cd': (root/f"{dict(c='rgb', d='depth')[k]}.txt").write_text(f'# x\n1.0 {k}.png\n1.05 {k}.png\n')
    return root


def test_tum_without_poses_other_cameras_and_scales(desk):
    video = TumRGBD(desk)
    assert video[0].pose is None and video[1].depth.unique().tolist() == [1.] and video.runs() == [(0, 2)]
    assert 'pose' not in video.clip() and video.truth().pose is None
    assert torch.equal(TumRGBD(desk, K=tum_K('ros'))[0].K[:2, 2], torch.tensor([320., 240.]))
    assert TumRGBD(desk, scale=1000)[0].depth.max() == 5
    (desk/'groundtruth.txt').write_text('1.049 0 0 2 0 0 0 1\n')
    assert len(TumRGBD(desk)) == 1 and TumRGBD(desk)[0].pose[2, 3] == 2 and len(TumRGBD(desk, poses=False)) == 2


@pytest.mark.parametrize('file,text,said', [('groundtruth.txt', '1.0 0 0 2 0 0 0 0', 'length 0'),
    ('groundtruth.txt', '1.0 0 0 2', '4 words, and 8'), ('depth.txt', '# none', 'no lines'),
    ('depth.txt', '1.0 c.png', '16 bits, not RGB'), ('depth.txt', '1.0 e.png', 'no such file'),
    ('depth.txt', '1.0 /etc/passwd', 'leads out')])
def test_tum_refusals(desk, file, text, said):
    (desk/file).write_text(text+'\n')
    with pytest.raises(DatasetError, match=said): TumRGBD(desk)[0]


def test_a_film_with_depth_of_another_program(tmp_path):
    from vidlit.pipeline.depth_source import DepthSource
    from vidlit.video.writing import write_video
    write_video(tmp_path/'a.mp4', torch.zeros(3, 16, 16, 3, dtype=torch.uint8), 5)
    (tmp_path/'d').mkdir()
    for i in range(3): np.save(tmp_path/'d'/f'{i}.npy', np.full((16, 16), i+1., 'f4'))
    sure = torch.full((3, 1, 16, 16), .5)
    video = VideoAndDepth(tmp_path/'a.mp4', DepthSource(tmp_path/'d'), conf=sure, K=torch.eye(3))
    assert video[2].depth.max() == 3 and video[2].conf.unique().tolist() == [.5] and video.truth().K is not None
    with pytest.raises(ValueError, match='no frames from 3 to 4'): video.clip(3, 4)

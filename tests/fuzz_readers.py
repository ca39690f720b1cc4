"""Every reader of the library with an undamaged example, for `fuzzing`."""
import gzip
import importlib.util
import json
import shutil
from dataclasses import replace
from pathlib import Path
import numpy as np
import torch
from fuzzing import (
    Reader,
    changed_bytes,
    changed_h5,
    changed_json,
    changed_jsons,
    changed_png,
    changed_pth,
    changed_text,
    changed_zip,
    strange_npy,
)
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
H, W, N = 24, 32, 3
gen = lambda s=0: torch.Generator().manual_seed(s)
noise = lambda *shape: torch.rand(*shape, generator=gen())


def depths(n=N, h=H, w=W): return noise(n, 1, h, w)*9+1


def finite_frames(got, n=N): return got.shape==(n, 1, H, W) and got.dtype==torch.float32


def dump(path, obj):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(obj))


# Folders of depth, and depth of others

def depth_folder(storage, dtype=None):
    def make(p):
        from vidlit.video.depth_frames import DepthWriter
        kw = dict(lo=.5, hi=11.) if storage=='png16' or dtype=='uint16' else {}
        with DepthWriter(p/'d', 'depth', (H, W), 25, storage=storage, dtype=dtype, frames=N, source='a video',
            **kw) as w:
            w.extend(depths())
    return make


def read_depth(p):
    from vidlit.video.depth_frames import DepthReader
    return DepthReader(p/'d')[:]


def read_meta(p):
    from vidlit.video.depth_frames import DepthReader
    r = DepthReader(p/'d')
    return dict(frames=r[:], fps=r.meta.fps, made=r.meta.made)


def theirs(name, save):
    "Depth of another program"
    def make(p):
        (p/'t').mkdir()
        for i,d in enumerate(depths()): save(p/'t'/f'{i}.{name}', d[0].numpy())
    return make


def read_theirs(p):
    from vidlit.pipeline.depth_source import DepthSource
    return DepthSource(p/'t', scale=.001)[:]


def all_in_one(p):
    (p/'t').mkdir()
    np.savez(p/'t'/'all.npz', depths=depths()[:, 0].numpy())
    dump(p/'t'/'K.json', {'K': [[30, 0, 16], [0, 30, 12], [0, 0, 1]], 'size': [H, W]})


def read_all_in_one(p):
    from vidlit.pipeline.depth_source import DepthSource
    s = DepthSource(p/'t'/'all.npz', scale=.001)
    return dict(frames=s[:], K=s.K)


def log_depth(p):
    from vidlit.video.log_depth import write_log_depth
    write_log_depth(p/'z.mkv', depths(N, 64, 64), 25)


def read_log(p):
    from vidlit.video.log_depth import read_log_depth
    return list(read_log_depth(p/'z.mkv'))


# Weights and models

def state(): return {'a.weight': noise(8, 8), 'a.bias': noise(8), 'n': torch.tensor([3])}


def pth(p): torch.save({'model': state(), 'epoch': 3}, p/'w.pth')
def safetensors(p):
    from vidlit.nn.weights import write_weights
    write_weights(state(), p/'w.safetensors')
def sharded(p):
    from safetensors.torch import save_file
    for k,v in state().items(): save_file({k: v}, p/f'{k}.safetensors')
    dump(p/'m.safetensors.index.json', dict(metadata={}, weight_map={k: f'{k}.safetensors' for k in state()}))


def weights(name):
    def read(p):
        from vidlit.nn.weights import read_weights
        return read_weights(p/name)
    return read


def checkpoint(p):
    from vidlit.train.checkpoint import save_state
    save_state(p/'step-00000001.safetensors',
        dict(step=3, at=[0, 2], model=state(), opt=[noise(3), None, 'x', 1.5, True], t=(1, 2)))


def read_checkpoint(p):
    from vidlit.train.checkpoint import load_state
    return load_state(p/'step-00000001.safetensors')


def linear(p):
    torch.save(torch.nn.Linear(8, 8).state_dict(), p/'w.pth')


def into_linear(p):
    from vidlit.floor.reading import reads
    from vidlit.nn.weights import WeightsError, load_strict, peel, read_weights
    m = torch.nn.Linear(8, 8)
    with reads(p/'w.pth', WeightsError): load_strict(m, peel(read_weights(p/'w.pth')))
    return m


def toy_folder(name):
    def make(p): shutil.copytree(ROOT/'data'/'models'/name, p/'m')
    return make


def read_toy(p):
    from vidlit.depth.models import load_depth_model
    m = load_depth_model(p/'m')
    return m.model, m.about


def read_toy_codec(p):
    from vidlit.pyramid.codec_file import load_codec
    return load_codec(p/'m')


def small_vit(**kw):
    from vidlit.nn.vit import ViTConfig
    return ViTConfig(**{**dict(dim=16, depth=1, heads=2), **kw})


def official(p): torch.save(build_mae().to_official(), p/'w.pth')


def read_official(p):
    from vidlit.pretrain.token_targets import load_encoder
    return load_encoder(p/'w.pth', 2)[0]


def _pretrained(build, cls):
    "A folder of a small model, and its reading"
    def load():
        mod, name = cls.split(':')
        return getattr(importlib.import_module(mod), name)
    def make(p): build().save_pretrained(p/'m')
    return make, lambda p: load().from_pretrained(p/'m')


def build_mae():
    from vidlit.pretrain.videomae import VideoMAE
    from vidlit.pretrain.videomae_weights import VideoMAEConfig
    return VideoMAE(VideoMAEConfig(small_vit(), small_vit()), gen=gen())


def build_vjepa2():
    import vidlit.pretrain.vjepa2_weights  # noqa: F401
    from vidlit.pretrain.vjepa2 import VJEPA2, VJEPA2Config
    return VJEPA2(VJEPA2Config(small_vit(dim=48, qkv_bias='fused'), small_vit(dim=48, qkv_bias='fused'),
        mask_tokens=2, legacy_tiled=True))


def build_omnimae():
    from vidlit.pretrain.omnimae import OmniMAE, OmniMAEConfig
    return OmniMAE(OmniMAEConfig(small_vit(qkv_bias='fused'), small_vit(qkv_bias='none'), (4, 32, 32)))


def build_timesformer():
    from vidlit.nn.tokens import Grid
    from vidlit.pyramid.divided_attention import TimeSformer, TimeSformerConfig
    return TimeSformer(TimeSformerConfig(small_vit(patch=(1, 16, 16), qkv_bias='fused'), Grid(2, 2, 2), classes=3))


def build_vivit():
    from vidlit.nn.tokens import Grid
    from vidlit.pyramid.vivit import ViViT, ViViTConfig
    return ViViT(ViViTConfig(small_vit(qkv_bias='fused'), Grid(2, 2, 2), classes=3))


def build_refiner():
    from vidlit.refiner.model import Refiner, RefinerConfig
    return Refiner(RefinerConfig(width=8, core='gru'))


def student(p):
    from vidlit.pretrain.stjepa import STJEPA, STJEPAConfig
    STJEPA(STJEPAConfig(small_vit(dim=48, depth=2), 1, 8)).save_pretrained(p/'m', 7, None)


def read_student(p):
    from vidlit.pretrain.classify import open_student
    return open_student(p/'m')


# Jobs, caches, results, labels

def manifest(p):
    from vidlit.floor.store import Manifest
    (p/'a.txt').write_text('a')
    Manifest(p).add('a.txt')


def read_manifest(p):
    from vidlit.floor.store import Manifest
    return Manifest(p).files


def token_cache(p):
    from vidlit.floor.store import TokenCache
    c = TokenCache(p/'c', 3, (4, 8), teacher='t')
    for i in range(3): c.put(i, noise(4, 8)+i)


def read_token_cache(p):
    from vidlit.floor.store import TokenCache
    c = TokenCache(p/'c', 3, (4, 8), teacher='t')
    return c[[0, 1, 2]]


def clip(p, name='a.mp4', n=12, h=48, w=96, **kw):
    from vidlit.video.writing import numbered_frame, write_video
    p.parent.mkdir(parents=True, exist_ok=True)
    return write_video(p/name, (numbered_frame(i, h, w) for i in range(n)), 25, **kw)


def targets(p):
    from vidlit.pretrain.target_cache import ClipSpec, TargetCache
    from vidlit.video.sampling import VideoList
    (p/'v').mkdir()
    files = [clip(p/'v', f'{k}.mp4') for k in 'ab']
    spec = ClipSpec(4, 32)
    c = TargetCache.create(p/'c', VideoList(files, [0, 1], ['a', 'b']), p/'v', spec, 8, 'teacher', 'projection')
    c.fill(lambda x: noise(1, spec.grid.n, 8))


def read_targets(p):
    from vidlit.pretrain.target_cache import CachedPairs
    s = CachedPairs(p/'c')
    return [[s[i] for i in range(len(s))], s.cache.labels]


def job(p):
    from vidlit.pipeline.job import make_job
    make_job(p/'j', clip(p), 2, 1)


def read_job(p):
    from vidlit.pipeline.job import open_job
    return open_job(p/'j')


def result(p): dump(p/'j'/'k'/'result.json',
    dict(fn='a:b', key='k', stamp='s', args={}, seconds=1.5, result=dict(x=[1, 2])))


def read_job_result(p):
    from vidlit.floor.reading import read_json
    from vidlit.lab.jobs import result_form
    return read_json(p/'j'/'k'/'result.json', result_form)


def recorded(p): shutil.copytree(next(o for o in sorted((ROOT/'data'/'results').iterdir())
    if (o/'metrics.json').exists()), p/'r')


def read_recorded(p):
    from vidlit.lab.experiment import load_result
    return load_result('r', p)


def ramp(x): return x.float().mean(-1)/255+torch.linspace(0, 1, x.shape[-2]) # a teacher for labels


def labels(p):
    from vidlit.depth.images import image_folder
    from vidlit.depth.pseudo_labels import Teacher, label_images
    (p/'i').mkdir()
    for i in range(3): Image.fromarray((noise(3, H, W, 3)[i]*255).byte().numpy()).save(p/'i'/f'{i}.png')
    label_images(Teacher(ramp, tag='ramp'), image_folder(p/'i'), p/'l', rules=None, per=2)


def read_labels(p):
    from vidlit.depth.pseudo_labels import Labels
    o = Labels(p/'l')
    return [o.rows, *(o[i] for i in o.kept())]


def precomputed(p):
    from vidlit.refiner.precompute import precompute
    precompute((noise(2, 16, 16, 3)*255).byte(),
        lambda rgb: (1+rgb.mean(1, keepdim=True), torch.ones(len(rgb), 1, 16, 16), None), p/'r', 'teacher')


def read_precomputed(p):
    from vidlit.refiner.precompute import read_frame
    return read_frame(p/'r', 1)


# Images, tracks, lists, trajectories

def picture(name):
    def make(p):
        (p/'i').mkdir()
        Image.fromarray((noise(H, W, 3)*255).byte().numpy()).save(p/'i'/name)
    return make


def read_picture(p):
    from vidlit.depth.images import image_folder
    return image_folder(p/'i')[0]


def tracks(p):
    depth_folder('npz')(p)
    rows = [dict(frame=t, id=k, bbox=[2+t, 3, 12+t, 20], note='x') for t in range(N) for k in (1, 2)]
    dump(p/'t.json', dict(fps=25, width=W, height=H, tracks=rows))


def read_positions(p):
    from vidlit.pipeline.tracks import enrich_file
    from vidlit.worlds.camera import make_K
    return enrich_file(p/'t.json', p/'d', p/'out.json', make_K(60, H, W))


def camera_file(p): dump(p/'K.json', dict(K=[30, 0, 16, 0, 30, 12, 0, 0, 1]))


def read_camera(p):
    from vidlit.cli.tracks import read_K
    return read_K(str(p/'K.json'))


def csv_list(p): (p/'train.csv').write_text(''.join(f'videos/{i}.mp4 {i%2}\n' for i in range(6)))


def read_csv(p):
    from vidlit.video.sampling import list_csv
    o = list_csv(p/'train.csv')
    return o.paths, o.labels


def ssv2_list(p):
    dump(p/'l.json', {'Moving something': '0', 'Turning something': '1'})
    dump(p/'train.json', [dict(id=str(i), template='Moving [something]', label='x') for i in range(4)])


def read_ssv2(p):
    from vidlit.video.sampling import list_ssv2
    return list_ssv2(p/'train.json', p/'l.json', p/'v').labels


def ucf_list(p):
    (p/'classInd.txt').write_text('1 Archery\n2 Biking\n')
    (p/'trainlist01.txt').write_text('Archery/a.avi 1\nBiking/b.avi 2\n')


def read_ucf(p):
    from vidlit.video.sampling import list_ucf
    o = list_ucf(p, p/'v')
    return o.paths, o.labels


def image_list(p): (p/'list.txt').write_text('# some\na.png\nb/c.png\n')


def read_list(p):
    from vidlit.depth.images import image_list
    return image_list(p/'list.txt').names


def trajectory(p):
    from vidlit.pretrain.trajectories import write_trajectory
    write_trajectory(p/'t', (noise(9, 32, 32, 3)*255).byte(), noise(9, 7), noise(9, 6), pix_fmt='yuv420p')


def read_trajectory(p):
    from vidlit.pretrain.trajectories import read_states, video_path
    return [*read_states(p/'t', 'cam'), str(video_path(p/'t'))]


def lerobot(p):
    from vidlit.pretrain.lerobot import write_lerobot
    def one(k): return (noise(9, 32, 32, 3)*255).byte(), noise(9, 7)+k, noise(9, 7)
    write_lerobot(p/'t', [one(0), one(1)], fps=15)


def rlds(p):
    from vidlit.pretrain.rlds import write_rlds
    def one(k): return (noise(9, 32, 32, 3)*255).byte(), noise(9, 7)+k, noise(9, 7)
    write_rlds(p/'t', [one(0), one(1)])


def read_rlds(p):
    from vidlit.pretrain.rlds import RLDSSet
    ds = RLDSSet(p/'t', fps=15, t=3, rate=5., size=16, seed=None)
    return [ds[i] for i in range(len(ds))]


def read_lerobot(p):
    from vidlit.pretrain.lerobot import LeRobotSet
    ds = LeRobotSet(p/'t', t=3, rate=5., size=16, seed=None)
    return [ds[i] for i in range(len(ds))]


# Films with depth, tracking files of others, trajectories

def tum(p):
    root = p/'rgbd_dataset_freiburg1_x'
    for k in ('rgb', 'depth'): (root/k).mkdir(parents=True)
    rows = {k: [] for k in ('rgb', 'depth', 'groundtruth')}
    for i in range(3):
        Image.fromarray((noise(H, W, 3)*255).byte().numpy()).save(root/'rgb'/f'{i}.png')
        Image.fromarray((noise(H, W)*9000).numpy().astype(np.uint16)).save(root/'depth'/f'{i}.png')
        for k in ('rgb', 'depth'): rows[k].append(f'{i/30:.4f} {k}/{i}.png')
        rows['groundtruth'].append(f'{i/30:.4f} 0 0 {i} 0 0 0 1')
    for k, v in rows.items(): (root/f'{k}.txt').write_text('\n'.join(['# some', *v])+'\n')


def read_rgbd(f): return [[*(o for o in f[i] if o is not None)] for i in range(len(f))]


def read_tum(p):
    from vidlit.refiner.datasets import TumRGBD
    return read_rgbd(TumRGBD(p/'rgbd_dataset_freiburg1_x'))


def hypersim(p):
    import h5py
    root = p/'ai_001_002'
    def put(name, a):
        (root/name).parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(root/name, 'w') as f: f['dataset'] = a
    for n in range(2):
        put(f'images/scene_cam_00_geometry_hdf5/frame.{n:04d}.depth_meters.hdf5', noise(6, 8).numpy().astype('f2')+2)
        put(f'images/scene_cam_00_final_hdf5/frame.{n:04d}.color.hdf5', noise(6, 8, 3).numpy())
    put('_detail/cam_00/camera_keyframe_orientations.hdf5', np.stack([np.eye(3)]*2))
    put('_detail/cam_00/camera_keyframe_positions.hdf5', np.arange(6.).reshape(2, 3))
    (root/'_detail/metadata_scene.csv').write_text('parameter_name,parameter_value\nmeters_per_asset_unit,0.5\n')
    names = [f'M_cam_from_uv_{i}{j}' for i in range(3) for j in range(3)]
    (p/'cameras.csv').write_text(f"scene_name,{','.join(names)}\nai_001_002,.6,0,0,0,.44,0,0,0,-1\n")


def read_hypersim(p):
    from vidlit.refiner.datasets import Hypersim
    return read_rgbd(Hypersim(p/'ai_001_002', cameras=p/'cameras.csv'))


def tracks_of_others(kind):
    def make(p):
        if kind=='mot': (p/'t.txt').write_text(''.join(f'{i+1},{i%2},{i}.5,2,9,8,.9\n' for i in range(6)))
        elif kind=='yolo':
            (p/'t').mkdir()
            for i in range(4): (p/'t'/f'v_{i}.txt').write_text(f'0 .5 .25 .1 .2 .{i+1} 3\n1 .1 .1 .1 .1 .9 4\n')
        else: (p/'t.xml').write_text('<annotations><track id="0" label="ball">'+''.join(f'<box frame="{i}" outside="0" '
            f'xtl="{i}.5" ytl="2" xbr="9" ybr="8"/>' for i in range(5))+'</track></annotations>')
    return make


def read_others(p):
    from vidlit.pipeline.tracks import read_tracks
    return read_tracks(next(o for o in p.iterdir() if o.name in ('t', 't.txt', 't.xml')), (H, W))


def poses(p): (p/'poses.txt').write_text('# s\n'+''.join(f'{i/10} {i} 0 1.5 0 0 0 1\n' for i in range(6)))


def read_tum_poses(p):
    from vidlit.pipeline.points import read_poses
    return read_poses(p/'poses.txt', [0, .2, .5])


# More models, jobs, notes

def build_classifier():
    from vidlit.pretrain.videomae import VideoMAEClassifier
    return VideoMAEClassifier(small_vit(), 3, size=(4, 32, 32), labels=['a', 'b', 'c'])


def build_vjepa21():
    import vidlit.pretrain.vjepa2_weights  # noqa: F401
    from vidlit.pretrain.vjepa21 import VJEPA21, VJEPA21Config
    return VJEPA21(VJEPA21Config(small_vit(dim=48, depth=4, qkv_bias='fused'), small_vit(dim=48, qkv_bias='fused'), 2))


def build_world_model():
    from vidlit.pretrain.vjepa2 import VJEPA2Config, rope_encoder
    from vidlit.pretrain.world_model import ACConfig, ACPredictor, WorldModel
    cfg = ACConfig(dim=48, hw=(2, 2), acts=7, blocks=small_vit(dim=48, qkv_bias='fused'))
    return WorldModel(rope_encoder(VJEPA2Config(small_vit(dim=48, qkv_bias='fused'))), ACPredictor(cfg))


def build_depth_anything():
    import vidlit.depth.depth_anything_weights  # noqa: F401
    from vidlit.depth.depth_anything import DepthAnything, DepthAnythingConfig
    from vidlit.depth.dinov2 import dinov2_s
    from vidlit.depth.dpt import DPTConfig
    enc = replace(dinov2_s, dim=24, depth=4, heads=2)
    return DepthAnything(DepthAnythingConfig(enc, DPTConfig(24, 8, (8, 8, 16, 16), 14, 8), (0, 1, 2, 3), 8))


def build_omnimae_classifier():
    from vidlit.pretrain.omnimae import OmniMAEClassifier, OmniMAEConfig
    return OmniMAEClassifier(OmniMAEConfig(small_vit(qkv_bias='fused'), small_vit(qkv_bias='none'), (4, 32, 32)), 3)


def build_vjepa2_classifier():
    from vidlit.pretrain.vjepa2 import VJEPA2Config
    from vidlit.pretrain.vjepa2_weights import VJEPA2Classifier
    return VJEPA2Classifier(VJEPA2Config(small_vit(dim=48, qkv_bias='fused'), small_vit(dim=48, qkv_bias='fused'),
        mask_tokens=2, legacy_tiled=True), 3, 1)


def work_of_a_job(p):
    from vidlit.pipeline.job import make_job
    from vidlit.pipeline.pool import Plan, make_plan, work_on
    make_job(p/'j', clip(p, n=12, h=32, w=80), 1, 0)
    make_plan(p/'j', Plan('toy', max_res=42))
    work_on(p/'j', threads=1)


def read_work(p):
    from vidlit.pipeline.job import load_window, open_job
    from vidlit.pipeline.pool import open_plan
    j = open_job(p/'j')
    w = j.work(0)
    return [vars(open_plan(p/'j')), *(load_window(w, int(k))[0] for k in sorted(w.done, key=int))]


def kept_index(p):
    from vidlit.video.reader import VideoReader
    clip(p, n=12)
    with VideoReader(p/'a.mp4', cache=p/'c'): pass


def read_kept_index(p):
    from vidlit.video.reader import VideoReader
    with VideoReader(p/'a.mp4', cache=p/'c') as r: return [r.frames(range(len(r))), r.times]


def projection(p):
    from vidlit.pretrain.token_targets import orthogonal_projection, save_projection
    save_projection(orthogonal_projection(12, 4), p/'projection.safetensors')


def read_projection(p):
    from vidlit.pretrain.token_targets import load_projection
    return load_projection(p/'projection.safetensors')


def point(p):
    from vidlit.depth.windows import WindowState
    from vidlit.pipeline.parts import Point, save_point
    (p/'w').mkdir()
    save_point(Point(32, 22, 0, WindowState(noise(H, W), noise(H, W), (1., 0.)), (), 32, noise(8, H, W)), p/'w', lo=0.)


def read_point(p):
    from vidlit.pipeline.parts import load_point
    return [*load_point(p/'w', None, None)]


# Splats

def gaussians():
    from vidlit.splat.gaussians import Gaussians
    return Gaussians(noise(9, 3), noise(9, 3)-3, noise(9, 4)+.1, noise(9), noise(9, 4, 3))


def splat_file(end):
    def make(p):
        from vidlit.splat import files
        getattr(files, f'write_{end}')(p/f'a.{end}', gaussians())
    return make


def read_splats(p):
    from vidlit.splat.files import read_gaussians
    return vars(read_gaussians(next(p.glob('a.*'))))


def pictures(p, n=3):
    p.mkdir(parents=True, exist_ok=True)
    for i in range(n): Image.fromarray((noise(n, H, W, 3)[i]*255).byte().numpy()).save(p/f'{i}.png')


def nerfstudio(p):
    pictures(p/'images')
    rows = [dict(file_path=f'images/{i}.png', transform_matrix=torch.eye(4).tolist(), time=i/2) for i in range(3)]
    dump(p/'transforms.json', dict(fl_x=30, fl_y=30, cx=16, cy=12, w=W, h=H, frames=rows))


def dnerf(p):
    pictures(p/'train')
    rows = [dict(file_path=f'./train/{i}', transform_matrix=torch.eye(4).tolist(), time=i/2) for i in range(3)]
    dump(p/'transforms_train.json', dict(camera_angle_x=.7, frames=rows))


def hypernerf(p):
    pictures(p/'rgb'/'2x')
    dump(p/'scene.json', dict(scale=.5, center=[0, 0, 1]))
    dump(p/'dataset.json', dict(ids=['0', '1', '2'], train_ids=['0', '1', '2'], val_ids=['0']))
    dump(p/'metadata.json', {str(i): dict(warp_id=i) for i in range(3)})
    cam = dict(orientation=torch.eye(3).tolist(), position=[0, 0, 1], focal_length=30, principal_point=[16, 12])
    for i in range(3): dump(p/'camera'/f'{i}.json', cam)


def colmap(p):
    import struct
    pictures(p/'images')
    (p/'sparse'/'0').mkdir(parents=True)
    q = p/'sparse'/'0'
    (q/'cameras.bin').write_bytes(struct.pack('<QiiQQ4d', 1, 1, 1, W, H, 30, 30, 16, 12))
    rows = b''.join(struct.pack('<i7di', i, 1, 0, 0, 0, 0, 0, 1, 1)+f'{i}.png'.encode()+b'\0'+struct.pack('<Q', 0)
        for i in range(3))
    (q/'images.bin').write_bytes(struct.pack('<Q', 3)+rows)
    (q/'points3D.bin').write_bytes(struct.pack('<Q', 1)+struct.pack('<Q3d3BdQ', 1, .1, .2, 3, 9, 9, 9, .1, 1)+bytes(8))


def colmap_text(p):
    pictures(p/'images')
    q = p/'sparse'/'0'
    q.mkdir(parents=True)
    (q/'cameras.txt').write_text(f'# c\n1 PINHOLE {W} {H} 30 30 16 12\n')
    (q/'images.txt').write_text(''.join(f'{i} 1 0 0 0 0 0 1 1 {i}.png\n\n' for i in range(3)))
    (q/'points3D.txt').write_text('1 .1 .2 3 9 9 9 .1 0 0\n')


def dynerf(p):
    for i in range(2): clip(p, f'cam0{i}.mp4', 4)
    a = np.zeros((2, 17))
    a[:, :15] = np.concatenate([np.eye(3), np.zeros((3, 1)), [[48], [96], [50]]], 1).reshape(-1)
    np.save(p/'poses_bounds.npy', a)


def read_any_scene(p):
    from vidlit.splat.scene_files import read_scene
    return read_scene(p)


def trained(p):
    from dataclasses import asdict
    from safetensors.torch import save_file
    from vidlit.splat.model import splat_model
    from vidlit.splat.run import Recipe
    from vidlit.splat.scenes import Scene
    pose, K = torch.eye(4), torch.tensor([[30., 0, 16], [0, 30, 12], [0, 0, 1]])
    s = Scene(noise(1, H, W, 3), torch.zeros(1), K[None], pose[None], points=noise(20, 3), rgb=noise(20, 3))
    r = Recipe(kind='static', degree=1)
    m = splat_model(s, 'static', degree=1, gen=gen())
    save_file({k: v.contiguous() for k,v in m.state_dict().items()}, p/'model.safetensors')
    dump(p/'splat.json', dict(recipe=asdict(r), scene='x', K=K.tolist(), size=[H, W], pose=pose.tolist(),
        up=[0, -1, 0], path=[pose.tolist()],
        background=[0, 0, 0], lo=[0, 0, 0], hi=[1, 1, 1], moments=1, seconds=4.))


def read_trained(p):
    from vidlit.splat.run import open_scene
    o = open_scene(p)
    return [o.model, o.K, o.size, o.pose, o.path, o.up, o.background, o.moments]


# Videos, flow, the codec

def read_frames(p):
    from vidlit.video.reader import VideoReader, video_info
    f = next(o for o in p.iterdir() if o.suffix in ('.mp4', '.mkv', '.ts'))
    with VideoReader(f) as r: return [r.frames(range(len(r))), video_info(f).frames]


def flow(p):
    a = noise(2, H, W)
    (p/'a.flo').write_bytes(np.array([202021.25], '<f4').tobytes()+np.array([W, H], '<i4').tobytes()+a.permute(1, 2,
        0).numpy().tobytes())


def read_flow(p):
    from vidlit.cli.pyramid import read_flo
    return read_flo(p/'a.flo')


def coded(p):
    from vidlit.pyramid.codec_file import encode_video
    (p/'a.vlc').write_bytes(encode_video((noise(2, 32, 32, 3)*255).byte().numpy()))


def read_coded(p):
    from vidlit.pyramid.codec_file import read_coded
    return read_coded(p/'a.vlc')[0]


def exr_there(): return importlib.util.find_spec('OpenEXR')
def h5_there(): return importlib.util.find_spec('h5py')


J, T = changed_json, changed_text
mae, vjepa2 = _pretrained(build_mae, 'vidlit.pretrain.videomae:VideoMAE'), _pretrained(build_vjepa2,
    'vidlit.pretrain.vjepa2:VJEPA2')
omnimae = _pretrained(build_omnimae, 'vidlit.pretrain.omnimae:OmniMAE')
timesformer = _pretrained(build_timesformer, 'vidlit.pyramid.divided_attention:TimeSformer')
vivit = _pretrained(build_vivit, 'vidlit.pyramid.vivit:ViViT')
refiner = _pretrained(build_refiner, 'vidlit.refiner.model:Refiner')
classifier = _pretrained(build_classifier, 'vidlit.pretrain.videomae:VideoMAEClassifier')
world_model = _pretrained(build_world_model, 'vidlit.pretrain.world_model:WorldModel')
depth_anything = _pretrained(build_depth_anything, 'vidlit.depth.depth_anything_weights:DepthAnything')
omnimae_c = _pretrained(build_omnimae_classifier, 'vidlit.pretrain.omnimae:OmniMAEClassifier')
vjepa2_c = _pretrained(build_vjepa2_classifier, 'vidlit.pretrain.vjepa2_weights:VJEPA2Classifier')
vjepa21 = _pretrained(build_vjepa21, 'vidlit.pretrain.vjepa21:VJEPA21')

READERS = [
    Reader('depth, png16', depth_folder('png16'), 'd/*.png', read_depth, changed_png, fits=finite_frames),
    Reader('depth, npz', depth_folder('npz'), 'd/*.npz', read_depth, changed_zip, fits=finite_frames),
    Reader('depth, exr', depth_folder('exr'), 'd/*.exr', read_depth, fits=finite_frames),
    Reader('depth, zarr chunks', depth_folder('zarr'), 'd/frames.zarr/c/**/*', read_depth, fits=finite_frames),
    Reader('depth, zarr.json', depth_folder('zarr'), 'd/frames.zarr/zarr.json', read_depth, J, fits=finite_frames),
    Reader('depth, sequence.json', depth_folder('npz'), 'd/sequence.json', read_meta, J),
    Reader('depth of others, npz', theirs('npz', lambda p, a: np.savez(p, depth=a)), 't/*', read_theirs, changed_zip,
        fits=finite_frames),
    Reader('depth of others, npy', theirs('npy', np.save), 't/*', read_theirs, strange_npy, fits=finite_frames),
    Reader('depth of others, png', theirs('png', lambda p, a: Image.fromarray((a*1000).astype(np.uint16)).save(p)),
        't/*', read_theirs, changed_png),
    Reader('depth of others, one npz', all_in_one, 't/all.npz', read_all_in_one, changed_zip),
    Reader('camera, K.json', all_in_one, 't/K.json', read_all_in_one, J),
    Reader('depth as video, mkv', log_depth, 'z.mkv', read_log),
    Reader('depth as video, json', log_depth, 'z.mkv.json', read_log, J),
    Reader('weights, pth', pth, 'w.pth', weights('w.pth'), changed_pth),
    Reader('weights, pth into a model', linear, 'w.pth', into_linear, changed_pth),
    Reader('weights, safetensors', safetensors, 'w.safetensors', weights('w.safetensors'), changed_jsons),
    Reader('weights, shards', sharded, 'm.safetensors.index.json', weights('m.safetensors.index.json'), J),
    Reader('checkpoint', checkpoint, 'step*', read_checkpoint, changed_jsons, exact=True),
    Reader('depth model, config', toy_folder('toy'), 'm/*.json', read_toy, J),
    Reader('depth model, safetensors', toy_folder('toy'), 'm/*.safetensors', read_toy, changed_jsons),
    Reader('VideoMAE, official pth', official, '*.pth', read_official, changed_pth),
    Reader('codec, config', toy_folder('codec'), 'm/*.json', read_toy_codec, J),
    Reader('VideoMAE, config', mae[0], 'm/*.json', mae[1], J),
    Reader('V-JEPA 2, config', vjepa2[0], 'm/*.json', vjepa2[1], J),
    Reader('OmniMAE, config', omnimae[0], 'm/*.json', omnimae[1], J),
    Reader('TimeSformer, config', timesformer[0], 'm/*.json', timesformer[1], J),
    Reader('ViViT, config', vivit[0], 'm/*.json', vivit[1], J),
    Reader('refiner, config', refiner[0], 'm/*.json', refiner[1], J),
    Reader('student, config', student, 'm/*.json', read_student, J),
    Reader('manifest', manifest, 'manifest.json', read_manifest, J),
    Reader('token cache, chunks', token_cache, 'c/tokens/c/**/*', read_token_cache, exact=True),
    Reader('token cache, zarr.json', token_cache, 'c/tokens/zarr.json', read_token_cache, J, exact=True),
    Reader('token cache, log', token_cache, 'c/done.jsonl', read_token_cache, T, exact=True),
    Reader('targets, json', targets, 'c/targets.json', read_targets, J),
    Reader('targets, log', targets, 'c/films/done.jsonl', read_targets, T),
    Reader('job of chunks', job, 'j/job.json', read_job, J),
    Reader('result of a job', result, 'j/k/result.json', read_job_result, J),
    Reader('recorded metrics', recorded, 'r/metrics.json', read_recorded, J),
    Reader('pseudo-labels, json', labels, 'l/labels.json', read_labels, J),
    Reader('pseudo-labels, shards', labels, 'l/shards/*.zip', read_labels, changed_zip),
    Reader('precomputed frames, npz', precomputed, 'r/*.npz', read_precomputed, changed_zip),
    Reader('images, png', picture('a.png'), 'i/*', read_picture, changed_png),
    Reader('images, jpeg', picture('a.jpg'), 'i/*', read_picture),
    Reader('images, tiff', picture('a.tif'), 'i/*', read_picture),
    Reader('images, gif', picture('a.gif'), 'i/*', read_picture),
    Reader('images, webp', picture('a.webp'), 'i/*', read_picture),
    Reader('tracks', tracks, 't.json', read_positions, J),
    Reader('tracks, K.json', camera_file, 'K.json', read_camera, J),
    Reader('list, csv', csv_list, 'train.csv', read_csv, T),
    Reader('list, Something-Something', ssv2_list, '*.json', read_ssv2, J),
    Reader('list, UCF', ucf_list, '*.txt', read_ucf, T),
    Reader('list of images', image_list, 'list.txt', read_list, T),
    Reader('trajectory, h5', trajectory, 't/trajectory.h5', read_trajectory, changed_h5),
    Reader('trajectory, json', trajectory, 't/metadata.json', read_trajectory, J),
    Reader('RLDS, dataset_info.json', rlds, 't/dataset_info.json', read_rlds, J),
    Reader('RLDS, features.json', rlds, 't/features.json', read_rlds, J),
    Reader('RLDS, records', rlds, 't/*.tfrecord*', read_rlds),
    Reader('LeRobot, info.json', lerobot, 't/meta/info.json', read_lerobot, J),
    Reader('LeRobot, episodes', lerobot, 't/meta/episodes/**/*.parquet', read_lerobot),
    Reader('LeRobot, numbers', lerobot, 't/data/**/*.parquet', read_lerobot),
    Reader('LeRobot, video', lerobot, 't/videos/**/*.mp4', read_lerobot),
    Reader('TUM RGB-D, lists', tum, 'rgbd*/*.txt', read_tum, T),
    Reader('TUM RGB-D, images', tum, 'rgbd*/*/*.png', read_tum, changed_png),
    Reader('Hypersim, h5', hypersim, 'ai*/**/*.hdf5', read_hypersim, changed_h5),
    Reader('Hypersim, csv', hypersim, '**/*.csv', read_hypersim, T),
    Reader('tracks, MOT', tracks_of_others('mot'), 't.txt', read_others, T),
    Reader('tracks, YOLO', tracks_of_others('yolo'), 't/*.txt', read_others, T),
    Reader('tracks, CVAT', tracks_of_others('cvat'), 't.xml', read_others, T),
    Reader('trajectory of a camera', poses, 'poses.txt', read_tum_poses, T),
    Reader('plan of a job', work_of_a_job, 'j/plan.json', read_work, J),
    Reader('windows of a job', work_of_a_job, 'j/chunk_000/window*', read_work, exact=True),
    Reader('windows of a job, log', work_of_a_job, 'j/chunk_000/done.jsonl', read_work, T),
    Reader('index of a video', kept_index, 'c/*.idx', read_kept_index, exact=True),
    Reader('projection of targets', projection, '*.safetensors', read_projection, changed_jsons, exact=True),
    Reader('point of a depth run, json', point, 'w/point.json', read_point, J),
    Reader('point of a depth run, state', point, 'w/*.safetensors', read_point, changed_jsons, exact=True),
    Reader('classifier, config', classifier[0], 'm/*.json', classifier[1], J),
    Reader('V-JEPA 2.1, config', vjepa21[0], 'm/*.json', vjepa21[1], J),
    Reader('V-JEPA 2 classifier, config', vjepa2_c[0], 'm/*.json', vjepa2_c[1], J),
    Reader('OmniMAE classifier, config', omnimae_c[0], 'm/*.json', omnimae_c[1], J),
    Reader('world model, config', world_model[0], 'm/*.json', world_model[1], J),
    Reader('Depth Anything, config', depth_anything[0], 'm/*.json', depth_anything[1], J),
    Reader('Gaussians, ply', splat_file('ply'), 'a.ply', read_splats, T),
    Reader('Gaussians, splat', splat_file('splat'), 'a.splat', read_splats),
    Reader('Gaussians, spz', splat_file('spz'), 'a.spz', read_splats, lambda b, g: changed_bytes(b, g) if g.random()<.5
        else gzip.compress(changed_bytes(gzip.decompress(b), g))),
    Reader('scene, nerfstudio', nerfstudio, 'transforms.json', read_any_scene, J),
    Reader('scene, D-NeRF', dnerf, 'transforms_train.json', read_any_scene, J),
    Reader('scene, HyperNeRF', hypernerf, '**/*.json', read_any_scene, J),
    Reader('scene, COLMAP', colmap, 'sparse/0/*', read_any_scene),
    Reader('scene, COLMAP text', colmap_text, 'sparse/0/*', read_any_scene, T),
    Reader('scene, images', nerfstudio, 'images/*', read_any_scene, changed_png),
    Reader('scene, DyNeRF', dynerf, '*.npy', read_any_scene, strange_npy),
    Reader('trained scene, json', trained, 'splat.json', read_trained, J),
    Reader('trained scene, safetensors', trained, 'model.safetensors', read_trained, changed_jsons),
    Reader('video, mp4', lambda p: clip(p, 'a.mp4'), 'a.mp4', read_frames),
    Reader('video, mkv', lambda p: clip(p, 'a.mkv'), 'a.mkv', read_frames),
    Reader('video, ts', lambda p: clip(p, 'a.ts'), 'a.ts', read_frames),
    Reader('flow', flow, 'a.flo', read_flow),
    Reader('video of the neural codec', coded, 'a.vlc', read_coded, exact=True),
]

"""Models, masks and losses start quickly: what trains, draws or compares is imported where it is used."""
import subprocess
import sys
import pytest
from fresh import fresh

HEAVY = 'fastai', 'torchvision', 'transformers', 'timm', 'pandas', 'matplotlib', 'zarr'
LEAN = [
    'nn.tokens', 'nn.vit', 'nn.weights', 'nn.ssm', 'nn.mamba', 'nn.temporal_cores', 'worlds.worlds', 'video.reader',
    'video.writing', 'train.schedules', 'lab.experiment', 'pretrain.tube_masking', 'pretrain.videomae',
    'pretrain.videomae_v2', 'pretrain.block_masking', 'pretrain.vjepa', 'pretrain.vjepa2', 'pretrain.world_model',
    'pretrain.planner', 'pretrain.stjepa', 'depth.measure', 'depth.losses', 'depth.dpt', 'depth.dinov2',
    'depth.depth_anything', 'depth.temporal_head', 'depth.windows', 'depth.streaming', 'depth.models',
    'splat.gaussians', 'splat.rasterizer', 'splat.rasterizer_tiled', 'pyramid.flow', 'refiner.model',
    'refiner.teachers', 'refiner.baselines', 'refiner.windows', 'refiner.losses', 'splat.rasterizer_compiled',
    'splat.viewer', 'pyramid.realtime', 'pyramid.raft', 'pyramid.codec_frames', 'pyramid.pyramid', 'pyramid.mipmap',
    'pyramid.sampling', 'pyramid.divided_attention', 'pyramid.vivit', 'pyramid.token_merging', 'splat.hexplane',
    'splat.deformation', 'splat.scenes', 'splat.scene_files', 'splat.model', 'splat.densify',
    'pyramid.multiscale_attention', 'pyramid.neural_codec']


@pytest.fixture(scope='module')
def heavy():
    "What of HEAVY each module imports, beside torch itself"
    show = f'print(*[m for m in {HEAVY} if m in sys.modules])'
    codes = {m: f'import sys, vidlit.{m}; {show}' for m in LEAN}
    return fresh({'torch alone': f'import sys; {show}', 'a heavy one': f'import sys, timm; {show}', **codes})


@pytest.mark.parametrize('mod', LEAN)
def test_no_heavy_import(mod, heavy): assert heavy[mod].split() == []


def test_a_heavy_import_is_seen(heavy):
    assert heavy['torch alone'].split() == [] and {'timm', 'torchvision'} <= {*heavy['a heavy one'].split()}


def test_listing_needs_no_torch():
    "What experiments there are is known without a tensor library"
    code = (
        "import sys, vidlit.studies.register; print(*{'torch', 'numpy', 'fastai', 'matplotlib', 'zarr'} & "
        "set(sys.modules))")
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.split() == []


def test_no_network_has_a_method_that_fastai_calls():
    "fastai calls a model's `reset` before every fit: one that draws first values would undo a training"
    import importlib
    from torch import nn
    for m in ('nn.mamba', 'nn.temporal_cores', 'refiner.model', 'refiner.baselines', 'splat.model', 'splat.deformation',
            'splat.hexplane', 'pyramid.raft', 'pyramid.vivit', 'pyramid.neural_codec', 'pyramid.multiscale_attention',
            'depth.temporal_head', 'pretrain.vjepa2_weights', 'pretrain.omnimae', 'pretrain.planner'):
        importlib.import_module(f'vidlit.{m}')

    def below(c): return {c, *(o for k in c.__subclasses__() for o in below(k))}
    ours = [c for c in below(nn.Module) if c.__module__.startswith('vidlit.')]
    assert len(ours) > 60 and [c.__name__ for c in ours if hasattr(c, 'reset')] == []

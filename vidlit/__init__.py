"""A literate library of modern video learning: read it, reproduce it, build on it.

The one module kept by hand: names are found lazily (PEP 562), so that `import vidlit` takes milliseconds."""
import importlib
import importlib.machinery
import importlib.util
import sys
import warnings

__version__ = "0.0.1"

_where = {
    'VideoMAE': 'pretrain.videomae', 'VideoMAEClassifier': 'pretrain.videomae',
    'VideoMAEConfig': 'pretrain.videomae_weights',
    'tube_mask': 'pretrain.tube_masking', 'random_mask': 'pretrain.tube_masking',
    'VideoMAE2': 'pretrain.videomae_v2', 'OmniMAE': 'pretrain.omnimae', 'multiblock3d': 'pretrain.block_masking',
    'VJEPA': 'pretrain.vjepa', 'VJEPAConfig': 'pretrain.vjepa_weights', 'VJEPA2': 'pretrain.vjepa2',
    'VJEPA21': 'pretrain.vjepa21', 'WorldModel': 'pretrain.world_model', 'Planner': 'pretrain.planner',
    'CEM': 'pretrain.planner', 'STJEPA': 'pretrain.stjepa',
    'DepthAnything': 'depth.depth_anything', 'VideoDepth': 'depth.temporal_head', 'load_depth_model': 'depth.models',
    'depth_in_chunks': 'pipeline.run', 'DepthMap': 'depth.measure', 'align': 'depth.measure',
    'DepthPipeline': 'pipeline.depth_pipeline', 'VideoView': 'video.view',
    'temporal_report': 'depth.stability',
    'refine': 'refiner.inference', 'refine_video': 'pipeline.refine', 'stereo_video': 'pipeline.stereo',
    'VideoReader': 'video.reader', 'video_info': 'video.index', 'write_video': 'video.writing',
    'VideoError': 'video.writing',
    'DepthReader': 'video.depth_frames', 'DepthWriter': 'video.depth_frames',
    'WorldConfig': 'worlds.worlds', 'World': 'worlds.render', 'WorldDataset': 'worlds.worlds',
    'make_worlds': 'worlds.worlds',
    'make_clips': 'worlds.worlds', 'ControlWorld': 'worlds.control',
    'clip_dls': 'video.clips', 'VideoFolder': 'video.clips', 'normalise': 'video.pixels', 'denormalise': 'video.pixels',
    'Grid': 'nn.tokens', 'patchify': 'nn.tokens', 'unpatchify': 'nn.tokens', 'ViT': 'nn.vit', 'ViTConfig': 'nn.vit',
    'Gaussians': 'splat.gaussians', 'rasterize': 'splat.rasterizer', 'render_gaussians': 'splat.rasterizer',
    'HexPlane': 'splat.hexplane', 'Deformation': 'splat.deformation', 'SplatModel': 'splat.model',
    'splat_model': 'splat.model', 'train_splat': 'splat.training', 'world_scene': 'splat.scenes',
    'read_scene': 'splat.scene_files',
    'Mamba': 'nn.mamba', 'Mamba2': 'nn.mamba', 'scan': 'nn.ssm', 'make_core': 'nn.temporal_cores',
    'Refiner': 'refiner.model', 'RefinerConfig': 'refiner.model',
    'show_clip': 'floor.show', 'show_clips': 'floor.show', 'show_depth': 'floor.show', 'show_flow': 'floor.show',
    'hide': 'floor.show',
    'lucas_kanade': 'pyramid.flow', 'farneback': 'pyramid.flow', 'block_matching': 'pyramid.flow',
    'RAFT': 'pyramid.raft', 'PyramidRAFT': 'pyramid.raft', 'RaftConfig': 'pyramid.raft',
    'frame_table': 'pyramid.codec_frames', 'decode_some': 'pyramid.codec_frames',
    'joint_pyramid': 'pyramid.pyramid', 'StreamingPyramid': 'pyramid.pyramid', 'pyramid_bytes': 'pyramid.pyramid',
    'mipmap': 'pyramid.mipmap', 'by_motion': 'pyramid.sampling',
    'TimeSformer': 'pyramid.divided_attention', 'ViViT': 'pyramid.vivit', 'ToMe': 'pyramid.token_merging',
    'RunLength': 'pyramid.token_merging', 'Codec': 'pyramid.neural_codec', 'load_codec': 'pyramid.codec_file',
    'encode_video': 'pyramid.codec_file', 'decode_video': 'pyramid.codec_file',
    'create_model': 'lab.models', 'list_models': 'lab.models', 'finetune_videos': 'pretrain.finetune_videos',
    'predict_video': 'pretrain.finetune_videos', 'pretrain_videos': 'pretrain.pretrain_videos',
}
# Pages that put more doors on a class (weights of others' layouts, streaming)
_doors = {'VJEPA2': ('pretrain.vjepa2_weights',), 'DepthAnything': ('depth.depth_anything_weights',),
    'VideoDepth': ('depth.video_depth_weights', 'depth.streaming')}
_folders = ('floor', 'worlds', 'video', 'nn', 'train', 'lab', 'pretrain', 'depth', 'refiner', 'splat', 'pyramid',
    'pipeline', 'studies', 'cli')
__all__ = [*_where, *_folders]

# Modules by the name they had in 0.0.1: they work for one more version, with a warning that names the new one
_moved = {
    'claims': 'lab.claims', 'cli': 'cli.app', 'cli_chunks': 'cli.chunks', 'cli_depth': 'cli.depth',
    'cli_stjepa': 'cli.stjepa', 'cli_tracks': 'cli.tracks', 'core.camera': 'worlds.camera',
    'core.checkpoint': 'train.checkpoint', 'core.clips': 'video.clips', 'core.control': 'worlds.control',
    'core.depth_frames': 'video.depth_frames', 'core.experiment': 'lab.experiment', 'core.film': 'video.writing',
    'core.film_index': 'video.index', 'core.finetune': 'train.finetune', 'core.fingerprint': 'floor.fingerprint',
    'core.health': 'train.health', 'core.jobs': 'lab.jobs', 'core.metrics': 'floor.metrics',
    'core.motions': 'worlds.motions', 'core.picture': 'floor.charts', 'core.pixels': 'video.pixels',
    'core.probe': 'train.probe', 'core.raycast': 'worlds.raycast', 'core.render': 'worlds.render',
    'core.sampling': 'video.sampling', 'core.schedule': 'train.schedules', 'core.show': 'floor.show',
    'core.store': 'floor.store', 'core.summary': 'lab.summary', 'core.textures': 'worlds.textures',
    'core.tokens': 'nn.tokens', 'core.train': 'train.callbacks', 'core.transforms': 'video.transforms',
    'core.video': 'video.reader', 'core.vit': 'nn.vit', 'core.warp': 'worlds.warp', 'core.weights': 'nn.weights',
    'core.worlds': 'worlds.worlds', 'depth.box_depth': 'pipeline.box_depth', 'depth.chunk_crew': 'pipeline.pool',
    'depth.chunk_merge': 'pipeline.merge', 'depth.chunk_ray': 'pipeline.ray', 'depth.chunk_run': 'pipeline.run',
    'depth.chunk_worker': 'pipeline.worker', 'depth.chunks': 'pipeline.job', 'depth.chunks_results': 'studies.chunks',
    'depth.chunks_study': 'studies.chunks_jobs', 'depth.comparison': 'studies.streaming',
    'depth.dealt_windows': 'pipeline.shared_windows', 'depth.depth_anything_layout': 'depth.depth_anything_weights',
    'depth.depth_models': 'depth.models', 'depth.depth_parts': 'pipeline.parts', 'depth.lab': 'studies.depth_common',
    'depth.pictures': 'depth.images', 'depth.preview': 'pipeline.preview',
    'depth.pseudo_labels_results': 'studies.pseudo_labels', 'depth.pseudo_labels_study': 'studies.pseudo_labels_jobs',
    'depth.toy_weights': 'studies.toy_weights', 'depth.tracks': 'pipeline.tracks',
    'depth.video_depth': 'pipeline.video_depth', 'depth.video_depth_layout': 'depth.video_depth_weights',
    'depth.video_depth_results': 'studies.video_depth', 'depth.video_depth_study': 'studies.video_depth_jobs',
    'pretrain.lab': 'studies.pretrain_common', 'pretrain.omnimae_results': 'studies.omnimae',
    'pretrain.omnimae_study': 'studies.omnimae_jobs', 'pretrain.planner_results': 'studies.planner',
    'pretrain.planner_study': 'studies.planner_jobs', 'pretrain.stjepa_results': 'studies.stjepa',
    'pretrain.stjepa_study': 'studies.stjepa_jobs', 'pretrain.videomae_layout': 'pretrain.videomae_weights',
    'pretrain.videomae_results': 'studies.videomae', 'pretrain.videomae_study': 'studies.videomae_jobs',
    'pretrain.videomae_v2_recipes': 'pretrain.videomae_v2_scaling',
    'pretrain.videomae_v2_results': 'studies.videomae_v2', 'pretrain.videomae_v2_study': 'studies.videomae_v2_jobs',
    'pretrain.vjepa2_layout': 'pretrain.vjepa2_weights', 'pretrain.vjepa2_results': 'studies.vjepa2',
    'pretrain.vjepa2_study': 'studies.vjepa2_jobs', 'pretrain.vjepa_layout': 'pretrain.vjepa_weights',
    'pretrain.vjepa_results': 'studies.vjepa', 'pretrain.vjepa_study': 'studies.vjepa_jobs',
    'pretrain.world_model_results': 'studies.world_model', 'pretrain.world_model_study': 'studies.world_model_jobs',
    'reproduce': 'lab.reproduce',
}


# Names inside of modules, likewise: module -> old name -> new name
_renamed = {
    'lab.experiment': {'arm_rows': 'variant_rows'},
    'train.probe': {'Arm': 'Variant', 'with_random_arm': 'with_random_variant', 'feature_arms': 'feature_variants'},
    'refiner.datasets': {'FilmDepth': 'VideoAndDepth'}, 'splat.viewer': {'write_film': 'write_camera_path'},
    'studies.omnimae': {'by_arm': 'by_variant'}, 'studies.pseudo_labels': {'here_arms': 'here_variants'},
    'studies.video_depth': {'here_arms': 'here_variants'}, 'studies.vjepa2': {'arms_of': 'variants_of'},
    'studies.vjepa2_jobs': {'films_of': 'videos_of'}, 'studies.videomae_jobs': {'arm_model': 'start_model'},
    'studies.vjepa_jobs': {'train_arm': 'train_variant', 'probe_arm': 'probe_variant', 'arms': 'main_variants',
        'painters': 'pixel_models'},
    'studies.video_depth_jobs': {'arms': 'main_variants'}, 'studies.videomae_v2_jobs': {'arms': 'variants'},
    'studies.chunks_jobs': {'dealt': 'shared'}, 'studies.stjepa_jobs': {'paint': 'recolour'},
    'studies.pseudo_labels_jobs': {'Painter': 'MaskedImages', 'arms': 'main_variants'},
    'studies.toy_places': {'stills': 'image_shapes'},
}


def _warn(old, new): warnings.warn(f'vidlit.{old} is now vidlit.{new}', FutureWarning, stacklevel=3)


class _Moved:
    "Finds modules by their old names"
    @staticmethod
    def find_spec(name, path=None, target=None):
        old = name.removeprefix('vidlit.')
        if not name.startswith('vidlit.') or old not in _moved and old != 'core': return None
        return importlib.util.spec_from_loader(name, _Moved, is_package=old == 'core')

    @staticmethod
    def create_module(spec):
        old = spec.name.removeprefix('vidlit.')
        if old == 'core': return None  # an empty package
        _warn(old, _moved[old])
        module = importlib.import_module(f'vidlit.{_moved[old]}')
        spec.loader_state = module.__spec__
        return module

    @staticmethod
    def exec_module(module): # what moved is imported already, and keeps its own spec
        if module.__spec__.loader_state is not None: module.__spec__ = module.__spec__.loader_state


sys.meta_path.append(_Moved)


class _Renamed:
    "Lets a module answer to the older names of what it holds"
    @staticmethod
    def find_spec(name, path=None, target=None):
        module = name.removeprefix('vidlit.')
        names = _renamed.get(module) if name.startswith('vidlit.') else None
        spec = importlib.machinery.PathFinder.find_spec(name, path) if names else None
        if spec is None: return None
        run = spec.loader.exec_module

        def exec_module(made):
            def older(old):
                if old not in names: raise AttributeError(f"module {name!r} has no attribute {old!r}")
                _warn(f'{module}.{old}', f'{module}.{names[old]}')
                return getattr(made, names[old])
            run(made)
            made.__getattr__ = older
        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, _Renamed)


def __getattr__(name):
    if name in _where:
        for page in _doors.get(name, ()): importlib.import_module(f'vidlit.{page}')
        return getattr(importlib.import_module(f'vidlit.{_where[name]}'), name)
    if name in _folders or name in ('core', 'claims', 'reproduce'): return importlib.import_module(f'vidlit.{name}')
    raise AttributeError(f"module 'vidlit' has no attribute {name!r}")


def __dir__(): return sorted([*globals(), *__all__])

"""A literate library of modern video learning: read it, reproduce it, build on it.

The one module kept by hand: names are found lazily (PEP 562), so that `import vidlit` takes milliseconds."""
__version__ = "0.0.1"

_where = {
    'VideoMAE': 'pretrain.videomae', 'VideoMAEClassifier': 'pretrain.videomae', 'VideoMAEConfig': 'pretrain.videomae_layout',
    'tube_mask': 'pretrain.tube_masking', 'random_mask': 'pretrain.tube_masking',
    'VideoMAE2': 'pretrain.videomae_v2', 'OmniMAE': 'pretrain.omnimae', 'multiblock3d': 'pretrain.block_masking',
    'VJEPA': 'pretrain.vjepa', 'VJEPAConfig': 'pretrain.vjepa_layout', 'VJEPA2': 'pretrain.vjepa2',
    'WorldModel': 'pretrain.world_model', 'Planner': 'pretrain.planner', 'CEM': 'pretrain.planner', 'STJEPA': 'pretrain.stjepa',
    'DepthAnything': 'depth.depth_anything', 'VideoDepth': 'depth.temporal_head', 'load_depth_model': 'depth.depth_models',
    'depth_in_chunks': 'depth.chunk_run', 'DepthMap': 'depth.measure', 'align': 'depth.measure', 'temporal_report': 'depth.stability',
    'VideoReader': 'core.video', 'video_info': 'core.film_index', 'write_video': 'core.film', 'VideoError': 'core.film',
    'DepthReader': 'core.depth_frames', 'DepthWriter': 'core.depth_frames',
    'WorldConfig': 'core.worlds', 'World': 'core.render', 'WorldDataset': 'core.worlds', 'make_worlds': 'core.worlds',
    'make_clips': 'core.worlds', 'ControlWorld': 'core.control',
    'clip_dls': 'core.clips', 'VideoFolder': 'core.clips', 'normalise': 'core.clips', 'denormalise': 'core.clips',
    'Grid': 'core.tokens', 'patchify': 'core.tokens', 'unpatchify': 'core.tokens', 'ViT': 'core.vit', 'ViTConfig': 'core.vit',
    'show_clip': 'core.show', 'show_clips': 'core.show', 'show_depth': 'core.show', 'show_flow': 'core.show', 'hide': 'core.show',
}
_wings = ('core', 'pretrain', 'depth', 'claims', 'reproduce', 'cli')
__all__ = [*_where, *_wings]


def __getattr__(name):
    from importlib import import_module
    if name in _where: return getattr(import_module(f'vidlit.{_where[name]}'), name)
    if name in _wings: return import_module(f'vidlit.{name}')
    raise AttributeError(f"module 'vidlit' has no attribute {name!r}")


def __dir__(): return sorted([*globals(), *__all__])

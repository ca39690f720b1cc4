"""Every public model through every door, on toys. `python tests/loading.py` records
benchmarks/results/loading.json, which
the page `nn/weights` shows. A cell is 'equal' (outputs to 1e-5), 'refused: ...' (the error says what to do), or '' (no
such door)."""
import sys
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
import torch
import vidlit
from vidlit.depth.depth_anything import DepthAnythingConfig
from vidlit.depth.dpt import DPTConfig
from vidlit.depth.temporal_head import add_time
from vidlit.floor.store import write_json
from vidlit.nn.tokens import Grid
from vidlit.nn.vit import ViTConfig
from vidlit.pretrain.omnimae import OmniMAEConfig
from vidlit.pretrain.stjepa import STJEPAConfig
from vidlit.pretrain.videomae_weights import VideoMAEConfig
from vidlit.pretrain.vjepa2 import VJEPA2Config, rope_encoder
from vidlit.pretrain.vjepa21 import VJEPA21Config
from vidlit.pretrain.world_model import ACConfig, ACPredictor
from vidlit.pyramid.divided_attention import TimeSformerConfig
from vidlit.pyramid.vivit import ViViTConfig
from vidlit.refiner.model import RefinerConfig

OUT = Path(__file__).resolve().parents[1]/'benchmarks'/'results'/'loading.json'
V = ViTConfig(dim=48, depth=4, heads=2, patch=(2, 8, 8), qkv_bias='fused')
SQUARE = ViTConfig(dim=64, depth=1, heads=1)


def gen(seed=0): return torch.Generator().manual_seed(seed)


def stir(model):
    "No weight stays at a value that a constructor gives"
    g = gen(1)
    with torch.no_grad():
        for p in model.parameters(): p.add_(.05*torch.randn(p.shape, generator=g))
    if hasattr(model, 'target_encoder'): model.target_encoder.load_state_dict(model.encoder.state_dict())
    return model.eval()


def clip(t=4, s=32, n=1): return torch.rand(n, 3, t, s, s, generator=gen(2))


def depth():
    e = ViTConfig(dim=64, depth=12, heads=1, patch=(1, 14, 14), qkv_bias='fused', layer_scale=1.)
    return vidlit.DepthAnything(DepthAnythingConfig(e, DPTConfig(64, 16, (8, 8, 16, 16)), taps=(2, 5, 8, 11), side=4),
        gen())


def world():
    cfg = ACConfig(48, (2, 2), 7, ViTConfig(dim=48, depth=2, heads=2, qkv_bias='fused'), legacy_tiled=True)
    return vidlit.WorldModel(rope_encoder(VJEPA2Config(V, legacy_tiled=True)), ACPredictor(cfg, gen()))


def see_world(m):
    g = gen(3)
    return m(torch.rand(1, 3, 3, 16, 16, generator=g), torch.rand(1, 2, 7, generator=g),
        torch.rand(1, 3, 7, generator=g)).loss


def see_pair(m): return torch.cat([m.encoder(clip(4, 16)).flatten(), m.target_encoder(clip(4, 16)).flatten(),
    *[p.flatten() for p in m.predictor.parameters()]])


def see_mae(m): return torch.cat([m.features(clip()).flatten(), *[p.flatten() for n, p in m.named_parameters()
    if 'dec' in n]])


@dataclass
class Toy:
    "A model small enough to be built, and how to look at all of it"
    name:str
    make:object # () -> model
    see:object # model -> tensor
    official:dict = field(default_factory=dict) # What an official file of so small a model does not tell
    hf:str = '' # transformers' class
    save:dict = field(default_factory=dict)
    load:dict = field(default_factory=dict)

    @property
    def cls(self): return getattr(vidlit, self.name)

    def model(self):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return stir(self.make())


def timesformer_cfg(): return TimeSformerConfig(ViTConfig(dim=48, depth=2, heads=4, patch=(1, 8, 8), qkv_bias='fused'),
    Grid(4, 4, 4), classes=5)


def toys():
    pair = dict(heads=2, pred_heads=2)
    small = dict(enc=replace(V, depth=1, patch=(2, 16, 16)), dec=ViTConfig(dim=32, depth=1, heads=16, qkv_bias='fused'))
    yield Toy('VideoMAE', lambda: vidlit.VideoMAE(VideoMAEConfig(SQUARE, SQUARE), gen=gen()), see_mae, {},
        'VideoMAEForPreTraining', dict(size=(4, 32, 32)))
    yield Toy('VideoMAEClassifier', lambda: vidlit.VideoMAEClassifier(SQUARE, 3, init_scale=1., size=(4, 32, 32),
        gen=gen()), lambda m: m(clip()), {}, 'VideoMAEForVideoClassification')
    yield Toy('VideoMAE2', lambda: vidlit.VideoMAE2(VideoMAEConfig(SQUARE, SQUARE), gen=gen()), see_mae)
    yield Toy('OmniMAE', lambda: vidlit.OmniMAE(OmniMAEConfig(small['enc'], small['dec'], (4, 32, 32)), gen=gen()),
        see_mae, dict(heads=2, frames=4))
    yield Toy('VJEPA', lambda: vidlit.VJEPA(vidlit.VJEPAConfig(V, V, Grid(8, 2, 2)), gen=gen()), see_pair, pair)
    yield Toy('VJEPA2', lambda: vidlit.VJEPA2(VJEPA2Config(V, V, legacy_tiled=True), gen=gen()), see_pair, pair,
        'VJEPA2Model', dict(size=(4, 16, 16)))
    yield Toy('VJEPA21', lambda: vidlit.VJEPA21(VJEPA21Config(V, V, 2), gen=gen()), see_pair, pair)
    yield Toy('WorldModel', world, see_world, dict(size=(16, 16), **pair))
    yield Toy('STJEPA', lambda: vidlit.STJEPA(STJEPAConfig(ViTConfig(dim=32, depth=3, heads=2, patch=(2, 4, 4)), fact=2,
        out=12), gen=gen()), lambda m: torch.cat([p.flatten() for p in m.parameters()]),
        save=dict(step=1))
    yield Toy('DepthAnything', depth, lambda m: m(torch.rand(1, 3, 56, 56, generator=gen())), dict(version=2),
        'DepthAnythingForDepthEstimation')
    yield Toy('VideoDepth', lambda: add_time(depth(), gen(), heads=2, groups=4),
        lambda m: m(torch.rand(1, 3, 3, 56, 56, generator=gen())), dict(heads=2, groups=4))
    yield Toy('TimeSformer', lambda: vidlit.TimeSformer(timesformer_cfg(), gen()), lambda m: m(clip()),
        dict(cfg=timesformer_cfg()), 'TimesformerForVideoClassification')
    yield Toy('ViViT', lambda: vidlit.ViViT(ViViTConfig(ViTConfig(48, 2, 4, 2., (2, 8, 8), qkv_bias='fused'),
        Grid(2, 4, 4), classes=3)), lambda m: m(clip()), {}, 'VivitForVideoClassification')
    yield Toy('Refiner', lambda: vidlit.Refiner(RefinerConfig(width=8), gen()),
        lambda m: torch.cat([p.flatten() for p in m.parameters()]))
    for name in ('Mamba', 'Mamba2'):
        yield Toy(name, lambda c=name: getattr(vidlit, c)(32, d_state=16, **(dict(headdim=16) if c=='Mamba2' else {})),
            lambda m: m(torch.rand(1, 7, 32, generator=gen()))[0])


def prefixed(p):
    "Every name of every network under `p`"
    def wrap(state):
        if all(isinstance(v, dict) for v in state.values()): return {k: wrap(v) for k, v in state.items()}
        return {p+k: v for k, v in state.items()}
    return wrap


WRAPS = {**{p: prefixed(p) for p in ('module.', '_orig_mod.', 'model.', 'backbone.', 'encoder.')},
    'state_dict': lambda s: {'state_dict': s, 'epoch': 3}, 'EMA copy': lambda s: {'model_ema': s, 'epoch': 3}}
TELLS = 'say ', 'pass ', 'read_weights(', 'from_official', 'from_pretrained', 'part='


def cell(door, want, see):
    "What came through a door"
    try: got = door()
    except ValueError as e:
        if any(o in str(e) for o in TELLS): return 'refused: '+str(e).split(': ', 1)[-1]
        return 'WRONG: a refusal that does not say what to do: '+str(e)
    with torch.no_grad(): far = (see(got.eval())-want).abs().max()
    return 'equal' if far < 1e-5 else f'WRONG: other outputs, by {far:.2g}'


def row(toy, d):
    "Door -> cell"
    m, cls, out = toy.model(), toy.cls, {}
    with torch.no_grad(): want = toy.see(m)
    if hasattr(cls, 'from_official'):
        state = m.to_official() if hasattr(m, 'to_official') else m.state_dict()
        if set(state)=={'model'}: state = state['model']
        for name, wrap in {'official': lambda s: s, **WRAPS}.items():
            torch.save(wrap(state), d/'a.pth')
            out[name] = cell(lambda: cls.from_official(d/'a.pth', **toy.official), want, toy.see)
    if toy.hf:
        import transformers
        m.save_pretrained(d/'ours', **toy.save)
        theirs = getattr(transformers, toy.hf).from_pretrained(d/'ours').eval()
        theirs.save_pretrained(d/'theirs')
        out['transformers'] = cell(lambda: cls.from_pretrained(d/'theirs', **toy.load), want, toy.see)
    if hasattr(cls, 'save_pretrained'):
        m.save_pretrained(d/'own', **toy.save)
        out['own folder'] = cell(lambda: cls.from_pretrained(d/'own', **toy.load), want, toy.see)
    return out


def main():
    torch.set_num_threads(1)
    rows = []
    for toy in toys():
        with tempfile.TemporaryDirectory() as d: rows.append(dict(model=toy.name, **row(toy, Path(d))))
        print(toy.name, *[f'{k}: {v[:200]}' for k, v in rows[-1].items() if k!='model'], sep='\n    ', flush=True)
    write_json(Path(sys.argv[1]) if sys.argv[1:] else OUT, dict(rows=rows))


if __name__=='__main__': main()

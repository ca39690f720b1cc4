"""ST-JEPA's student: shapes, finite values, hidden pixels stay hidden, no teacher, resume to the last bit."""
import ast
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
import pytest
import torch
from fastai.data.core import DataLoaders
from hypothesis import given, settings, strategies as st
from torch.utils.data import DataLoader, TensorDataset
from vidlit.nn.tokens import grid_of, split_mask, take
from vidlit.nn.vit import ViTConfig, count_params
from vidlit.pretrain.stjepa import STJEPA, FlipPairs, STJEPAConfig, cosine_loss, flip_targets, pretrainer, stjepa_s
from vidlit.pretrain.tube_masking import tube_mask
from vidlit.train.callbacks import fit
from vidlit.train.checkpoint import Checkpoint, Seeded

CFG = STJEPAConfig(ViTConfig(dim=32, depth=3, heads=2, patch=(2,4,4)), fact=2, out=12)
PKG = Path(sys.modules['vidlit'].__file__).parent


def gen(seed=0): return torch.Generator().manual_seed(seed)


def loaders(n=12, bs=4):
    clips, targ = torch.randn(n, 3, 4, 16, 24, generator=gen()), torch.randn(n, 48, 12, generator=gen(1)).half()
    dl = DataLoader(TensorDataset(clips, targ), bs, shuffle=True, generator=gen())
    return DataLoaders(dl, dl)


@pytest.mark.parametrize('late', [False, True])
@given(b=st.integers(1, 3), t=st.integers(1, 3), h=st.integers(2, 4), w=st.integers(2, 4), ratio=st.floats(.3, .7),
    seed=st.integers(0, 99))
@settings(max_examples=12, deadline=None)
def test_shapes_and_finite_values(late, b, t, h, w, ratio, seed):
    net = STJEPA(replace(CFG, late=late), gen=gen())
    clip = torch.randn(b, 3, 2*t, 4*h, 4*w, generator=gen(seed))
    grid = grid_of(clip, (2,4,4))
    if int(ratio*grid.h*grid.w)<1: return
    mask = tube_mask(b, grid, ratio, gen(seed))
    pred = net(clip, mask)
    assert pred.shape == (b, int(mask[0].sum()), 12) and pred.isfinite().all()
    assert net.features(clip).shape == (b, grid.n, 32)


@pytest.mark.parametrize('late', [False, True])
def test_hidden_pixels_stay_hidden(late):
    net = STJEPA(replace(CFG, late=late), gen=gen())
    clip = torch.randn(2, 3, 4, 16, 16, generator=gen())
    grid = grid_of(clip, (2,4,4))
    mask = tube_mask(2, grid, .5, gen())
    other = torch.where(mask.view(2, 1, *grid).repeat_interleave(2, 2).repeat_interleave(4, 3).repeat_interleave(4, 4),
        torch.rand(1), clip)
    assert torch.equal(net(clip, mask), net(other, mask))
    assert not torch.equal(net(clip, mask), net(other+.1, mask))


def test_published_size():
    with torch.device('meta'): assert count_params(STJEPA(stjepa_s)) == 26_762_112
    assert (stjepa_s.vit.dim, stjepa_s.vit.depth, stjepa_s.fact, stjepa_s.out) == (384, 12, 8, 384)


def test_gradients_reach_every_weight():
    net = STJEPA(CFG, gen=gen())
    clip = torch.randn(2, 3, 4, 16, 16, generator=gen())
    mask = tube_mask(2, grid_of(clip, (2,4,4)), .5, gen())
    cosine_loss(net(clip, mask), torch.randn(2, int(mask[0].sum()), 12, generator=gen())).backward()
    idle = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert not idle


def test_loss_is_on_hidden_tokens_only():
    learn = pretrainer(loaders(), STJEPA(CFG, gen=gen()), ratio=.5, gen=3)
    clip, targ = next(iter(loaders().train))
    mask = tube_mask(4, grid_of(clip, (2,4,4)), .5, gen(3))
    with torch.no_grad(): pred = learn.model(clip, mask)
    want = 1-torch.nn.functional.cosine_similarity(pred, take(targ.float(), split_mask(mask)[1]), dim=-1).mean()
    assert abs(cosine_loss(pred, take(targ, split_mask(mask)[1]))-want) < 1e-6
    wrong = DataLoader(TensorDataset(torch.randn(4, 3, 4, 16, 24), torch.randn(4, 47, 12)), 4)
    with pytest.raises(ValueError, match='48 tokens'):
        fit(pretrainer(DataLoaders(wrong, wrong), STJEPA(CFG), ratio=.5), steps=1)


@given(seed=st.integers(0, 50), b=st.integers(1, 4))
@settings(max_examples=20, deadline=None)
def test_flipping_twice_is_nothing(seed, b):
    targ = torch.randn(b, 2*3*5, 4, generator=gen(seed))
    assert torch.equal(flip_targets(flip_targets(targ, (2,3,5)), (2,3,5)), targ)
    assert not torch.equal(flip_targets(targ, (2,3,5)), targ)


def test_pairs_are_flipped_together():
    # column number of the token as its colour
    clips = torch.arange(4.).repeat_interleave(4).repeat(3, 4, 16, 1)[None].repeat(8, 1, 1, 1, 1)
    targ = clips[:, :1, ::2, ::4, ::4].flatten(1)[..., None]
    dl = DataLoader(TensorDataset(clips, targ), 8)
    seen = []

    class Look(FlipPairs):
        def before_batch(self):
            super().before_batch()
            seen.append((self.xb[0], self.yb[0]))

    net = STJEPA(replace(CFG, out=1))
    fit(pretrainer(DataLoaders(dl, dl), net, ratio=.5, cbs=[Look((2,4,4), .5, 1)]), steps=1)
    x, y = seen[0]
    assert torch.equal(x[:, :1, ::2, ::4, ::4].flatten(1)[..., None], y)
    assert 0 < (y[:, 0] != 0).sum() < 8


def test_resume_is_exact(tmp_path):
    def run(folder, steps, total=6):
        from functools import partial
        from vidlit.train.schedules import warmup_cosine
        learn = pretrainer(loaders(), STJEPA(CFG, gen=gen()), ratio=.5, flip=.5,
            cbs=[Seeded(0), Checkpoint(folder, every=2)])
        learn.param_schedule.fns['lr'] = lambda s, t: partial(warmup_cosine, warmup=1, base=1e-3)(s, total)
        return fit(learn, steps=steps, validate=False).model.state_dict()
    whole = run(tmp_path/'a', 6)
    run(tmp_path/'b', 4)
    again = run(tmp_path/'b', 6)
    assert all(torch.equal(v, again[k]) for k, v in whole.items())


def imports_of(path):
    "Modules a file names in import statements, inside functions too"
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import): yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom): yield (node.module or '')


@pytest.mark.parametrize('room', ['stjepa', 'target_cache'])
def test_student_and_cache_name_no_teacher(room):
    named = ' '.join(imports_of(PKG/f'pretrain/{room}.py'))
    assert 'videomae' not in named and 'token_targets' not in named and 'transformers' not in named


def test_training_imports_no_teacher():
    "With the teacher's modules forbidden the student trains from tensors; nor does any start pay for torchvision"
    code = '''
import sys
class Forbid:
    def find_spec(self, name, *a):
        if name in ("vidlit.pretrain.videomae", "vidlit.pretrain.token_targets", "vidlit.pretrain.videomae_weights"):
            raise AssertionError(name)
sys.meta_path.insert(0, Forbid())
import torch
from fastai.data.core import DataLoaders
from torch.utils.data import DataLoader, TensorDataset
from vidlit.train.callbacks import fit
from vidlit.nn.vit import ViTConfig
from vidlit.pretrain.stjepa import STJEPA, STJEPAConfig, pretrainer
import vidlit.pretrain.target_cache, vidlit.video.clips, vidlit.video.transforms
dl = DataLoader(TensorDataset(torch.randn(8, 3, 4, 16, 16), torch.randn(8, 32, 12).half()), 4)
fit(pretrainer(DataLoaders(dl, dl), STJEPA(STJEPAConfig(ViTConfig(dim=32, depth=3, heads=2, patch=(2,4,4)), 2, 12)),
    ratio=.5), steps=2)
print("trained", [m for m in ("transformers", "torchvision") if m in sys.modules])
'''
    r = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True)
    assert r.returncode == 0 and r.stdout.rstrip().endswith('trained []'), (r.stdout, r.stderr[-2000:])

"TimeSformer and ViViT against transformers on the same weights; layouts, variants and randomness"
import copy
from dataclasses import replace
import pytest
import torch
from vidlit.nn.tokens import Grid
from vidlit.nn.vit import ViTConfig
from vidlit.nn.weights import WeightsError
from vidlit.pyramid.divided_attention import DividedBlock, TimeSformer, TimeSformerConfig, divided_ref
from vidlit.pyramid.vivit import ViViT, ViViTConfig

transformers = pytest.importorskip('transformers')
transformers.logging.set_verbosity_error()
TINY = ViTConfig(dim=48, depth=2, heads=4, patch=(1,8,8), qkv_bias='fused')


@pytest.fixture
def gen(): return torch.Generator().manual_seed(0)


def stir(model, gen, std=.05):
    with torch.no_grad():
        for p in model.parameters(): p.add_(std*torch.randn(p.shape, generator=gen))
    return model.eval()


def time_major(x, t):
    "transformers' tokens (place, then time) in our order"
    return torch.cat((x[:,:1], x[:,1:].unflatten(1, (-1,t)).transpose(1, 2).flatten(1, 2)), 1)


@pytest.mark.parametrize('kind', ['divided', 'joint', 'space'])
@pytest.mark.parametrize('classes', [0, 5])
def test_timesformer_equals_transformers(kind, classes, gen, tmp_path):
    model = stir(TimeSformer(TimeSformerConfig(TINY, Grid(4,4,4), kind, classes), gen), gen)
    cls = transformers.TimesformerForVideoClassification if classes else transformers.TimesformerModel
    theirs = cls.from_pretrained(model.save_pretrained(tmp_path)).eval()
    clip = torch.randn(2, 3, 4, 32, 32, generator=gen)
    with torch.no_grad():
        out = theirs(clip.transpose(1, 2))
        if classes:
            want = out.logits
            if kind == 'space':
                assert len(want) == 8  # scores of each frame: no mean over the clip
                return
            torch.testing.assert_close(model(clip), want, atol=1e-5, rtol=0)
        else:
            want = out.last_hidden_state if kind == 'space' else time_major(out.last_hidden_state, 4)
            torch.testing.assert_close(model.tokens(clip), want, atol=1e-5, rtol=0)


@pytest.mark.parametrize('prefix', ['model', 'classifier'])
def test_timesformer_reads_transformers(prefix, gen, tmp_path):
    cfg = transformers.TimesformerConfig(image_size=32, patch_size=8, num_frames=4, hidden_size=48, num_hidden_layers=2,
        num_attention_heads=4, intermediate_size=96, num_labels=3)
    kinds = dict(model=transformers.TimesformerModel, classifier=transformers.TimesformerForVideoClassification)
    theirs = kinds[prefix](cfg)
    stir(theirs, gen).save_pretrained(tmp_path)
    model, clip = TimeSformer.from_pretrained(tmp_path), torch.randn(1, 3, 4, 32, 32, generator=gen)
    with torch.no_grad():
        out = theirs(clip.transpose(1, 2))
        if prefix == 'classifier': torch.testing.assert_close(model(clip), out.logits, atol=1e-5, rtol=0)
        else: torch.testing.assert_close(model.tokens(clip), time_major(out.last_hidden_state, 4), atol=1e-5, rtol=0)
    assert model.cfg.enc.hidden == 96 and model.cfg.classes == (0 if prefix == 'model' else 3)


def test_official_file(gen, tmp_path):
    model = stir(TimeSformer(TimeSformerConfig(TINY, Grid(4,4,4), classes=5), gen), gen)
    torch.save({'model_state': model.to_official(), 'epoch': 3}, tmp_path/'a.pyth')
    again = TimeSformer.from_official(tmp_path/'a.pyth', replace(model.cfg, grid=Grid(8,4,4), classes=400))
    clip = torch.randn(1, 3, 4, 32, 32, generator=gen)
    with torch.no_grad(): assert torch.equal(again(clip), model(clip))
    with pytest.raises(WeightsError, match='left over'):
        TimeSformer.from_official(model.to_official()|{'model.extra': torch.zeros(1)}, model.cfg)


def test_fused_block_in_training(gen):
    "Gradients of the block in use and of the one as written"
    blk = stir(DividedBlock(TINY), gen).double()
    tok = torch.randn(2, 1+3*4, 48, generator=gen, dtype=torch.float64, requires_grad=True)
    a, = torch.autograd.grad(blk(tok, 3).pow(3).sum(), tok)
    b, = torch.autograd.grad(divided_ref(blk, tok, 3).pow(3).sum(), tok)
    torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


def test_drop_path_skips(gen):
    "With all but certain drop path a block is the identity for skipped samples, and gen makes it repeatable"
    model = stir(TimeSformer(TimeSformerConfig(replace(TINY, drop_path=.5), Grid(4,4,4), classes=5), gen), gen).train()
    clip = torch.randn(4, 3, 4, 32, 32, generator=gen)
    runs = [model(clip, torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])
    blk, tok = model.blocks[1], torch.randn(1, 1+16, 48, generator=gen)
    zero = torch.zeros(1, 1, 1)
    out = blk(tok, 4, (zero, zero, zero))  # the last matrix's bias of the time branch stays, as in the authors' code
    torch.testing.assert_close(out[:,1:], tok[:,1:]+blk.fc_t.bias)


def test_space_first_is_another_model(gen):
    blk = stir(DividedBlock(TINY), gen)
    other = copy.deepcopy(blk)
    other.space_first = True
    tok = torch.randn(2, 1+3*4, 48, generator=gen)
    assert (blk(tok, 3)-other(tok, 3)).abs().max() > 1e-3


@pytest.mark.parametrize('classes', [0, 5])
@pytest.mark.parametrize('act', ['gelu_fast', 'gelu'])
def test_vivit_equals_transformers(classes, act, gen, tmp_path):
    cfg = transformers.VivitConfig(image_size=32, num_frames=4, tubelet_size=(2,8,8), hidden_size=48,
        num_hidden_layers=2, num_attention_heads=4, intermediate_size=96, hidden_act=act, num_labels=classes or 2)
    theirs = (transformers.VivitForVideoClassification if classes else transformers.VivitModel)(cfg)
    stir(theirs, gen).save_pretrained(tmp_path/'a')
    model, clip = ViViT.from_pretrained(tmp_path/'a'), torch.randn(2, 3, 4, 32, 32, generator=gen)
    back = type(theirs).from_pretrained(model.save_pretrained(tmp_path/'b'), **({} if classes else
        dict(add_pooling_layer=False))).eval()
    with torch.no_grad():
        for m in (theirs, back):
            out = m(clip.transpose(1, 2))
            want, got = (out.logits, model(clip)) if classes else (out.last_hidden_state, model.tokens(clip))
            torch.testing.assert_close(got, want, atol=1e-5, rtol=0)


def test_vivit_state_of_modules(gen):
    "Names inside transformers 5 differ from those of its files; both load"
    from vidlit.nn.weights import load_strict
    from vidlit.pyramid import vivit
    cfg = transformers.VivitConfig(image_size=32, num_frames=4, tubelet_size=(2,8,8), hidden_size=48,
        num_hidden_layers=2, num_attention_heads=4, intermediate_size=96)
    theirs = stir(transformers.VivitModel(cfg), gen)
    ours = ViViT(ViViTConfig(ViTConfig(48, 2, 4, 2., (2,8,8), qkv_bias='fused'), Grid(2,4,4), classes=0))
    report = load_strict(ours, theirs.state_dict(), vivit._body)
    assert len(report.ignored) == 2  # the pooler

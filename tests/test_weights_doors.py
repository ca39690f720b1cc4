"""The doors through which published weights come in: wrappers' prefixes, names that tell and names that do not,
files that are no weights, copies of what was loaded, doors in a fresh process."""
from copy import deepcopy
import pytest
import torch
from fresh import fresh
from vidlit.depth.depth_anything import DepthAnythingConfig
from vidlit.depth.depth_anything_weights import DepthAnything
from vidlit.depth.dpt import DPTConfig
from vidlit.depth.models import load_depth_model
from vidlit.depth.temporal_head import add_time
from vidlit.depth.video_depth_weights import VideoDepth
from vidlit.nn.tokens import Grid
from vidlit.nn.vit import ViTConfig
from vidlit.nn.weights import WeightsError, peel, read_weights
from vidlit.pretrain.omnimae import OmniMAE, OmniMAEConfig
from vidlit.pretrain.videomae import VideoMAE, VideoMAEClassifier
from vidlit.pretrain.videomae_weights import VideoMAEConfig
from vidlit.pretrain.vjepa import VJEPA
from vidlit.pretrain.vjepa2 import VJEPA2Config
from vidlit.pretrain.vjepa2_weights import VJEPA2
from vidlit.pretrain.vjepa_weights import VJEPAConfig

WRAPPERS = '', 'module.', '_orig_mod.', 'model.', 'module._orig_mod.', 'net.', '_forward_module.module.'


def gen(): return torch.Generator().manual_seed(0)


def under(p, state): return {p+k: v for k, v in state.items()}


def depth():
    e = ViTConfig(dim=64, depth=12, heads=1, patch=(1, 14, 14), qkv_bias='fused', layer_scale=1.)
    return DepthAnything(DepthAnythingConfig(e, DPTConfig(64, 16, (8, 8, 16, 16)), taps=(2, 5, 8, 11), side=4), gen())


def same(a, b):
    x, y = a.state_dict(), b.state_dict()
    assert x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)


@pytest.mark.parametrize('p', WRAPPERS)
def test_wrappers_of_single_networks(tmp_path, p):
    mae = VideoMAE(VideoMAEConfig(ViTConfig(dim=64, depth=1, heads=1), ViTConfig(dim=64, depth=1, heads=1)), gen=gen())
    torch.save({'model': under(p, mae.state_dict())}, tmp_path/'a.pth')
    same(VideoMAE.from_official(tmp_path/'a.pth'), mae)
    image = depth()
    torch.save({'model': under(p, image.to_official()), 'epoch': 1}, tmp_path/'depth_anything_v2.pth')
    same(load_depth_model(tmp_path/'depth_anything_v2.pth', 'cpu').model.image, image)
    video = add_time(image, gen(), heads=2, groups=4)
    same(VideoDepth.from_official(under(p, video.to_official()), heads=2, groups=4), video)
    e, d = ViTConfig(dim=48, depth=1, heads=2, qkv_bias='fused'), ViTConfig(dim=32, depth=1, heads=16, qkv_bias='fused')
    omni = OmniMAE(OmniMAEConfig(e, d, (4, 32, 32)), gen=gen())
    same(OmniMAE.from_official(under(p, omni.to_official()['model'] if 'model' in omni.to_official()
        else omni.to_official()), heads=2, frames=4), omni)


@pytest.mark.parametrize('p', [*WRAPPERS, 'backbone.', 'module.backbone.'])
def test_wrappers_of_pairs(p):
    v = ViTConfig(dim=48, depth=1, heads=2, qkv_bias='fused')
    for cls, model in ((VJEPA, VJEPA(VJEPAConfig(v, v, Grid(8, 2, 2)), gen=gen())),
            (VJEPA2, VJEPA2(VJEPA2Config(v, v), gen=gen()))):
        bare = {k: under(p, peel(s)) for k, s in model.to_official().items()}
        same(cls.from_official(bare, heads=2, pred_heads=2), model)


def test_peel_takes_only_what_stands_before_every_name():
    assert peel({'module.a': 1, 'b': 2}) == {'module.a': 1, 'b': 2}
    assert peel({'encoder.a': 1}) == {'encoder.a': 1} and peel({}) == {}


def test_what_the_name_does_not_tell_is_asked_for(tmp_path):
    torch.save({'model': depth().to_official()}, tmp_path/'latest.pth')
    with pytest.raises(WeightsError, match='version=1 or version=2'): load_depth_model(tmp_path/'latest.pth', 'cpu')
    assert 'version 2 as said' in load_depth_model(tmp_path/'latest.pth', 'cpu', version=2).about
    far = load_depth_model(tmp_path/'latest.pth', 'cpu', version=2, metric=True, max_depth=20.)
    assert far.metric and not load_depth_model(tmp_path/'latest.pth', 'cpu', version=2).metric
    with pytest.raises(WeightsError, match='how many metres'):
        load_depth_model(tmp_path/'latest.pth', 'cpu', version=2, metric=True)
    from vidlit.depth.models import _file
    torch.save(add_time(depth(), gen(), heads=2, groups=4).to_official(), tmp_path/'geometric.pth')
    with pytest.raises(WeightsError, match='metres or relative'): _file(tmp_path/'geometric.pth', heads=2, groups=4)
    for m in (True, False): assert _file(tmp_path/'geometric.pth', metric=m, heads=2, groups=4)[0].cfg.metric is m


def test_files_that_are_no_weights(tmp_path):
    (tmp_path/'a.pth').write_text('version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n')
    with pytest.raises(WeightsError, match='Git LFS'): read_weights(tmp_path/'a.pth')
    (tmp_path/'b.safetensors').write_text('<!DOCTYPE html><html>not found</html>')
    with pytest.raises(WeightsError, match='web page'): read_weights(tmp_path/'b.safetensors')


@pytest.mark.parametrize('pool', [True, False])
def test_final_norm_of_transformers(tmp_path, pool):
    from transformers import VideoMAEConfig as HFConfig, VideoMAEForPreTraining, VideoMAEForVideoClassification
    c = HFConfig(image_size=32, patch_size=16, num_frames=4, hidden_size=64, num_hidden_layers=1,
        num_attention_heads=1, intermediate_size=64, decoder_hidden_size=64, decoder_num_hidden_layers=1,
        decoder_num_attention_heads=1, decoder_intermediate_size=64, use_mean_pooling=pool)
    clip = torch.randn(2, 3, 4, 32, 32, generator=gen())
    hf = VideoMAEForVideoClassification(c).eval()
    with torch.no_grad():
        for q in hf.parameters(): q.add_(torch.randn(q.shape, generator=gen())*.1)
    hf.save_pretrained(tmp_path/'c')
    ours = VideoMAEClassifier.from_pretrained(tmp_path/'c').eval()
    with torch.no_grad(): a, b = hf(clip.transpose(1, 2)).logits, ours(clip)
    assert (a-b).abs().max() < 1e-5
    ours.save_pretrained(tmp_path/'d', size=(4, 32, 32))
    again = VideoMAEForVideoClassification.from_pretrained(tmp_path/'d').eval()
    with torch.no_grad(): assert (again(clip.transpose(1, 2)).logits-a).abs().max() < 1e-5
    pre = VideoMAEForPreTraining(c).eval()
    pre.save_pretrained(tmp_path/'p')
    with torch.no_grad():
        feats = VideoMAE.from_pretrained(tmp_path/'p').eval().features(clip)
        assert (pre.videomae(clip.transpose(1, 2)).last_hidden_state-feats).abs().max() < 1e-4


def test_a_copy_is_whole(tmp_path):
    "Parts that nothing uses aside (the deepest fusion stage has no finer map to add), every part of a copy learns"
    torch.save(depth().to_official(), tmp_path/'depth_anything_v2.pth')
    loaded = load_depth_model(tmp_path/'depth_anything_v2.pth', 'cpu').model.image
    fresh, copy = depth().train().requires_grad_(True), deepcopy(loaded).train().requires_grad_(True)
    for m in (fresh, copy): m(torch.rand(1, 3, 56, 56, generator=gen())).sum().backward()
    grads = [{n: p.grad for n, p in m.named_parameters()} for m in (fresh, copy)]
    assert [n for n, g in grads[0].items() if g is None] == [n for n, g in grads[1].items() if g is None]
    for n, g in grads[0].items(): assert g is None or torch.allclose(g, grads[1][n], atol=1e-5), n
    assert all(p.grad is None for p in loaded.parameters())


DOORS = {'VideoMAE': 'from_official from_pretrained save_pretrained to_official', 'VideoMAE2': 'from_official',
    'VideoMAEClassifier': 'from_official from_pretrained save_pretrained to_official',
    'OmniMAE': 'from_official to_official', 'VJEPA': 'from_official to_official',
    'VJEPA2': 'from_official from_pretrained save_pretrained to_official classifier',
    'DepthAnything': 'from_official from_pretrained save_pretrained to_official',
    'VideoDepth': 'from_official from_pretrained save_pretrained to_official init_state step'}


@pytest.fixture(scope='module')
def doors():
    "What each class lacks, and which doors it only inherits, where nothing else of ours was imported"
    def code(name): return (
        f"import vidlit; c = vidlit.{name}; print(*[m for m in '{DOORS[name]}'.split() if not hasattr(c, m)]); "
        "own = getattr(c.from_official, '__func__', None); "
        "theirs = [getattr(getattr(b, 'from_official', None), '__func__', 0) for b in c.__mro__[1:]]; "
        "print(*[f for f in theirs if f is own])")
    return fresh({k: code(k) for k in DOORS})


@pytest.mark.parametrize('name', DOORS)
def test_doors_in_a_fresh_process(name, doors): assert doors[name].split() == []


def small_classifier(n=3, **kw):
    torch.manual_seed(0)
    return VideoMAEClassifier(ViTConfig(dim=48, depth=1, heads=2), n, init_scale=1., size=(4, 32, 32), gen=gen(), **kw)


def pipeline(folder, monkeypatch):
    "transformers' own; its decoder is torchcodec, or PyAV (as transformers drives it) where FFmpeg's libraries lack"
    from transformers import pipeline, video_processing_utils as u
    if not u.is_torchcodec_usable(decode='video'):
        def fetch(self, urls, sample_indices_fn=None):
            return zip(*[u.load_video(o, backend='pyav', sample_indices_fn=sample_indices_fn) for o in urls])
        monkeypatch.setattr(u.BaseVideoProcessor, 'fetch_videos', fetch)
    return pipeline('video-classification', model=str(folder))


def test_transformers_pipeline_gives_our_labels(tmp_path, monkeypatch):
    "Decoded, prepared and scored by transformers alone, from the folder we write"
    from transformers import AutoImageProcessor, AutoVideoProcessor
    from vidlit.video.pixels import imagenet_mean, normalise
    from vidlit.video.writing import write_video
    clip = torch.nn.functional.interpolate(torch.rand(1, 3, 4, 4, 4, generator=gen()), (4, 32, 32))[0].mul(255).byte()
    write_video(tmp_path/'a.mp4', clip.permute(1, 2, 3, 0), codec='libx264rgb', crf=0, pix_fmt='rgb24')
    model = small_classifier(labels=['open the drawer', 'shut it', 'leave it']).eval()
    folder = model.save_pretrained(tmp_path/'m')
    said = pipeline(folder, monkeypatch)(str(tmp_path/'a.mp4'))
    with torch.no_grad(): p = model(normalise(clip[None]/255)).softmax(-1)[0]
    assert [o['label'] for o in said] == [model.labels[i] for i in p.argsort(descending=True)]
    assert [o['score'] for o in said] == pytest.approx(p.sort(descending=True)[0].tolist(), abs=2e-3)
    assert model.labels == VideoMAEClassifier.from_pretrained(folder).labels
    for kind in (AutoImageProcessor, AutoVideoProcessor):
        assert list(kind.from_pretrained(folder).image_mean) == pytest.approx(imagenet_mean)


def test_new_heads_are_asked_for(tmp_path):
    from transformers import VideoMAEConfig as HFConfig, VideoMAEForPreTraining, VideoMAEModel
    folder = small_classifier(labels=['a', 'b', 'c']).save_pretrained(tmp_path/'three')
    with pytest.raises(WeightsError, match='3 classes, asked for are 2: pass ignore_mismatched_sizes=True'):
        VideoMAEClassifier.from_pretrained(folder, num_labels=2)
    two = VideoMAEClassifier.from_pretrained(folder, num_labels=2, ignore_mismatched_sizes=True, revision='main')
    old = VideoMAEClassifier.from_pretrained(folder)
    assert two.head.out_features == 2 and two.labels is None and two.size == (4, 32, 32)
    x, y = two.state_dict(), old.state_dict()
    assert all(torch.equal(x[k], y[k]) for k in x if not k.startswith('head.'))
    named = VideoMAEClassifier.from_pretrained(folder, label2id={'up': 1, 'down': 0}, ignore_mismatched_sizes=True)
    assert named.labels == ('down', 'up')
    with pytest.raises(ValueError, match='2 labels for 3 classes'):
        VideoMAEClassifier.from_pretrained(folder, num_labels=3, labels=['a', 'b'])
    c = HFConfig(image_size=32, num_frames=4, hidden_size=48, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=192, decoder_hidden_size=48, decoder_num_hidden_layers=1, decoder_num_attention_heads=2,
        decoder_intermediate_size=64, use_mean_pooling=False)
    for name, kind in (('pre', VideoMAEForPreTraining), ('bare', VideoMAEModel)):
        hf = kind(c)
        hf.save_pretrained(tmp_path/name)
        with pytest.raises(WeightsError, match='say num_labels=N'): VideoMAEClassifier.from_pretrained(tmp_path/name)
        got = VideoMAEClassifier.from_pretrained(tmp_path/name, num_labels=2)
        w = getattr(hf, 'videomae', hf).encoder.layer[0].intermediate.dense.weight
        assert torch.equal(got.blocks[0].mlp.fc1.weight, w) and got.pool == 'mean' and got.size == (4, 32, 32)
    mae = VideoMAE(VideoMAEConfig(ViTConfig(dim=64, depth=1, heads=1), ViTConfig(dim=64, depth=1, heads=1)), gen=gen())
    got = VideoMAEClassifier.from_official(mae.to_official(), num_labels=5)
    assert torch.equal(got.blocks[0].mlp.fc1.weight, mae.encoder.blocks[0].mlp.fc1.weight)
    with pytest.raises(WeightsError, match='say num_labels=N'): VideoMAEClassifier.from_official(mae.to_official())
    got = VideoMAEClassifier.from_official(two.to_official(), heads=2, num_labels=7, ignore_mismatched_sizes=True)
    assert got.head.out_features == 7

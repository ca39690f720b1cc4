"Clip transforms: one draw for all frames, nothing from the global state, the pixels of the usual libraries."
import pickle
from functools import partial
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image, ImageEnhance, ImageOps
from vidlit.video.transforms import (
    colour_jitter,
    compose,
    crop_box,
    cutmix,
    denormalise,
    draw_beta,
    eval_tfm,
    finetune_tfm,
    flip,
    grayscale,
    jepa_tfm,
    mix,
    mixup,
    multi_scale_crop,
    normalise,
    pretrain_tfm,
    rand_augment,
    rand_ops,
    random_erase,
    random_resized_crop,
    soft_targets,
    three_crop,
)

quick = settings(max_examples=25, deadline=None)
TFMS = dict(multi=partial(multi_scale_crop, size=16), rrc=partial(random_resized_crop, size=16), flip=flip,
    grey=partial(grayscale, p=.5), jitter=colour_jitter,
    rand=rand_augment, erase=partial(random_erase, p=.8, fill=.5), three=partial(three_crop, size=16))


def seeded(s=0): return torch.Generator().manual_seed(s)


def clip_of(h=24, w=33, t=3, seed=0): return torch.rand(3, 1, h, w, generator=seeded(seed)).expand(-1, t, -1, -1)


@pytest.mark.parametrize('name', TFMS)
@quick
@given(st.integers(0, 10**6), st.integers(17, 40), st.integers(17, 40))
def test_still_stays_still_and_in_range(name, seed, h, w):
    clip = clip_of(h, w)
    was, state = clip.clone(), torch.get_rng_state()
    a, b = TFMS[name](clip, seeded(seed)), TFMS[name](clip, seeded(seed))
    assert torch.equal(a, b) and torch.equal(clip, was) and torch.equal(torch.get_rng_state(), state)
    assert torch.allclose(a, a[..., :1, :, :].expand_as(a), atol=1e-6)
    assert a.min() >= -1e-5 and a.max() <= 1+1e-5 and a.isfinite().all()


@quick
@given(st.integers(0, 10**6), st.integers(4, 64), st.integers(4, 64))
def test_boxes_fit(seed, h, w):
    for scale, ratio in (((.08, 1.), (3/4, 4/3)), ((.3, 1.), (.75, 1.35)), ((.02, 1/3), (.3, 1/.3))):
        y, x, ch, cw = crop_box(h, w, seeded(seed), scale, ratio)
        assert 0 <= y and 0 <= x and ch > 0 and cw > 0 and y+ch <= h and x+cw <= w


def test_multi_scale_takes_sides_at_most_a_step_apart_at_thirteen_places():
    y, x = torch.meshgrid(torch.arange(100.)/100, torch.arange(100.)/100, indexing='ij')
    clip = torch.stack([y, x, y*0])[:, None]
    seen = set()
    for s in range(400):
        out = multi_scale_crop(clip, seeded(s), size=100)
        hw = [round(((out[i].amax()-out[i].amin())*100+1).item()) for i in (0, 1)]
        seen.add(tuple(hw))
    sides = [100, 87, 75, 66]
    assert seen == {(a, b) for i, a in enumerate(sides) for j, b in enumerate(sides) if abs(i-j) <= 1}


PIL = dict(
    auto_contrast=lambda im, m, s: ImageOps.autocontrast(im), equalise=lambda im, m, s: ImageOps.equalize(im),
        invert=lambda im, m, s: ImageOps.invert(im),
    posterise=lambda im, m, s: ImageOps.posterize(im, 4-int(4*m)), solarise=lambda im, m,
        s: ImageOps.solarize(im, round(256*(1-m))),
    colour=lambda im, m, s: ImageEnhance.Color(im).enhance(1+s*.9*m), contrast=lambda im, m,
        s: ImageEnhance.Contrast(im).enhance(1+s*.9*m),
    brightness=lambda im, m, s: ImageEnhance.Brightness(im).enhance(1+s*.9*m), sharpness=lambda im, m,
        s: ImageEnhance.Sharpness(im).enhance(1+s*.9*m))


@pytest.mark.parametrize('name', PIL)
@pytest.mark.parametrize('sign', [-1, 1])
def test_operations_equal_the_image_library(name, sign):
    y, x = np.mgrid[:40, :56]
    im = np.stack([40+3*x, 200-2*y, 60+(x*y) % 120], -1).clip(0, 255).astype(np.uint8)
    ref = np.asarray(PIL[name](Image.fromarray(im), .7, sign)).astype(int)
    out = rand_ops[name](torch.from_numpy(im).permute(2, 0, 1)[None].float()/255, .7, sign).clamp(0,
        1)[0].permute(1, 2, 0)
    diff = np.abs((out.numpy()*255).round().astype(int)-ref)
    assert np.percentile(diff, 99) <= 2, (diff.max(), diff.mean())


def test_normalise_is_torchvision_s():
    from torchvision.transforms.functional import normalize
    clip = torch.rand(2, 3, 4, 5, 6, generator=seeded())
    ref = normalize(clip.transpose(1, 2), (.485, .456, .406), (.229, .224, .225)).transpose(1, 2)
    assert torch.allclose(normalise(clip), ref, atol=1e-6) and torch.allclose(denormalise(normalise(clip)),
        clip, atol=1e-6)
    assert normalise(clip.half()).dtype == torch.float16 and normalise(clip.double()).dtype == torch.float64


@pytest.mark.parametrize('f', [mixup, cutmix, partial(mix, smoothing=.1)])
@quick
@given(st.integers(0, 10**6))
def test_mixtures_are_distributions_and_say_what_is_there(f, seed):
    gen = seeded(seed)
    clip = torch.zeros(4, 3, 2, 12, 16)
    clip[:2] = 1
    out, y = f(clip, torch.tensor([1, 1, 0, 0]), gen, classes=2)
    assert torch.allclose(y.sum(1), torch.ones(4)) and (y >= 0).all()
    share = out.mean((1, 2, 3, 4))
    if f in (mixup, cutmix): assert torch.allclose(share, y[:, 1], atol=1e-5)
    assert torch.equal(f(clip, torch.tensor([1, 1, 0, 0]), seeded(seed), classes=2)[1], y)


@pytest.mark.parametrize('alpha', [.2, .8, 1., 4.])
def test_beta(alpha):
    gen = seeded(1)
    x = torch.tensor([draw_beta(alpha, gen) for _ in range(4000)])
    assert abs(x.mean()-.5) < .02 and abs(x.var()-1/(4*(2*alpha+1))) < .01


def test_probabilities_hold():
    clip = clip_of()
    assert abs(sum(not torch.equal(flip(clip, seeded(s)), clip) for s in range(1000))/1000-.5) < .06
    assert abs(sum(not torch.equal(random_erase(clip, seeded(s)), clip) for s in range(1000))/1000-.25) < .06


@pytest.mark.parametrize('make', [pretrain_tfm, jepa_tfm, finetune_tfm, eval_tfm])
def test_recipes_pickle_and_give_squares(make):
    f = make(16)
    a, b = f(clip_of(), seeded(4)), pickle.loads(pickle.dumps(f))(clip_of(), seeded(4))
    assert a.shape == (3, 3, 16, 16) and torch.equal(a, b)


def test_compose_goes_left_to_right():
    f = compose(lambda c, g: c+1, lambda c, g: c*2)
    assert f(torch.zeros(1), None).item() == 2


@pytest.mark.parametrize('call, says', [
    (lambda c: multi_scale_crop(c, seeded(), scales=(0, 1)), r'\(0, 1\)'),
        (lambda c: random_resized_crop(c, seeded(), ratio=(2, 1)), r'\(2, 1\)'),
    (lambda c: flip(c, seeded(), p=-1), '-1'), (lambda c: colour_jitter(c, seeded(), hue=.6), '0.6'),
        (lambda c: rand_augment(c, seeded(), m=-1), '-1'),
    (lambda c: random_erase(c, seeded(), p=1., area=(.5, .1)), '0.5'),
        (lambda c: soft_targets(torch.tensor([3]), 3), '3 classes'),
    (lambda c: soft_targets(torch.tensor([0]), 3, 1.), '1.0'), (lambda c: three_crop(c, n=0), '0'),
        (lambda c: draw_beta(0, seeded()), '0')])
def test_refusals_name_the_value(call, says):
    with pytest.raises(ValueError, match=says): call(clip_of())

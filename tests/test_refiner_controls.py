"""Controls, teachers and losses of the refiner: what must hold for any input"""
import math
from types import SimpleNamespace
import pytest
import torch
from vidlit.refiner.baselines import Bilateral, Chain, Ema, ScaleShift, TwoNumberGRU, controls, fit_log
from vidlit.refiner.losses import losses
from vidlit.refiner.teachers import DA3Teacher, MoGeTeacher, jittered, rank_confidence, spearman
from vidlit.worlds.worlds import WorldConfig, make_worlds


@pytest.fixture(scope='module')
def world(): return make_worlds(range(50, 54), WorldConfig(t=9, h=24, w=32))


FILTERS = {**{k: v for k, v in controls.items() if k != 'raw'},
    'gru': TwoNumberGRU(gen=torch.Generator().manual_seed(0))}


@pytest.mark.parametrize('name', FILTERS)
def test_a_unit_of_length_changes_nothing(name, world):
    "In centimetres or metres, the filter does the same: depth is taken in logarithms"
    f, d = FILTERS[name], jittered(world, torch.Generator().manual_seed(0)).depth
    with torch.no_grad(): assert torch.allclose(f(100*d)/100, f(d), rtol=2e-4)


@pytest.mark.parametrize('name', FILTERS)
def test_stream_is_causal_and_equal_to_the_clip(name, world):
    f, d = FILTERS[name], jittered(world, torch.Generator().manual_seed(0)).depth
    with torch.no_grad():
        whole, state, out = f(d), f.init_state(4, 24, 32), []
        for o in d.unbind(1):
            y, state = f.step(o, None, None, state)
            out.append(y)
        later = d.clone()
        later[:, 5:] *= 2
        assert torch.equal(torch.stack(out, 1), whole) and torch.equal(f(later)[:, :5], whole[:, :5])


@pytest.mark.parametrize('name', FILTERS)
def test_a_still_clean_video_stays(name, world):
    d = world.depth[:, :1].expand(-1, 9, -1, -1, -1)
    with torch.no_grad(): assert torch.allclose(FILTERS[name](d), d, rtol=1e-4)


def test_state_of_a_stream_does_not_grow():
    d, f = torch.rand(1, 1, 8, 8)+1, Chain(ScaleShift(), Bilateral(frames=4))
    state = f.init_state()
    for _ in range(30): _, state = f.step(d, state=state)
    assert len(state[1]['past']) == 4


def test_fit_recovers_scale_and_shift_with_outliers():
    g = torch.Generator().manual_seed(1)
    for a, b in ((1., .05), (.95, -.03), (1.04, 0.)):
        l = 1+torch.rand(3, 1, 20, 30, generator=g)
        ref = a*l+b
        ref[:, :, :6] -= .7
        k, off, mean = fit_log(l, ref, tol=.2)
        assert torch.allclose((k*(l-mean)+mean+off)[:, :, 6:], ref[:, :, 6:], atol=3e-3)


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('name', losses)
def test_trivial_answers_lose(name, seed):
    w = make_worlds(range(1000*seed, 1000*seed+4), WorldConfig(t=10, h=24, w=32))
    truth, rgb = w.depth, w.clip.transpose(1, 2)
    given, conf, _ = jittered(w, torch.Generator().manual_seed(seed))
    blur = torch.nn.functional.avg_pool2d(given.log().flatten(0, 1), 5, 1, 2, count_include_pad=False)
    trivial = dict(zero=given, constant=given.log().mean(1, keepdim=True).exp().expand_as(given),
        blur=blur.exp().view_as(given))
    has = torch.tensor([True]+[False]*3)

    def total(d): return losses[name](d, given, conf, truth, rgb, truth, has).item()
    good, perfect = total(Bilateral()(given)), total(truth)
    assert perfect < good < min(map(total, trivial.values()))


def test_jitter_is_per_frame_and_noise_follows_distrust(world):
    o = jittered(world, torch.Generator().manual_seed(3), noise=0.)
    s = (o.depth/world.depth).flatten(2)
    assert torch.allclose(s.amin(-1), s.amax(-1), atol=1e-5) and (s[:, :, 0]-1).abs().max() <= .03
    assert s[:, :, 0].std(1).min() > .005
    o = jittered(world, torch.Generator().manual_seed(3), scale=0.)
    e = (o.depth/world.depth-1).abs().flatten()
    assert spearman(e, 1-o.conf.flatten()) > .3


def test_rank_confidence_knows_no_unit():
    e = torch.rand(2, 1, 9, 11)
    assert torch.allclose(rank_confidence(e), rank_confidence(5*e+3)) and rank_confidence(e).max() == 1


class MoGe:
    def infer(self, image, fov_x=None):
        b, _, h, w = image.shape
        return dict(depth=torch.full((b, h, w), 2.), mask=torch.ones(b, h, w, dtype=torch.bool),
            intrinsics=torch.tensor([[1., 0, .5], [0, 1, .5], [0, 0, 1]]).expand(b, 3, 3))


class DA3:
    "Output at another size than the frames, as the released one"
    def infer(self, images):
        n = len(images)
        return SimpleNamespace(depth=torch.ones(n, 14, 28).numpy(), conf=torch.rand(n, 14, 28).numpy(),
            sky=torch.zeros(n, 14, 28).numpy(), intrinsics=None)


def test_da3_metres_do_not_depend_on_the_size_of_the_frames():
    for k in (1, 2, 3):
        K = torch.tensor([[30.*k, 0, 20*k], [0, 30.*k, 10*k], [0, 0, 1]])
        o = DA3Teacher(DA3())(torch.rand(2, 3, 20*k, 40*k), K)
        assert torch.allclose(o.depth, torch.full_like(o.depth, 30*28/40/300), atol=1e-5)
        assert o.conf.min() >= 0 and o.conf.max() <= 1


def test_moge_intrinsics_become_pixels():
    o = MoGeTeacher(MoGe())(torch.rand(5, 3, 20, 40))
    assert o.K.tolist() == [[40., 0, 20], [0, 20, 10], [0, 0, 1]] and o.depth.shape == (5, 1, 20, 40)


def test_an_alternating_frame_is_calmed_and_a_jump_kept():
    d = torch.ones(1, 20, 1, 4, 4)
    d[:, 1::2] *= 1.04
    y = Bilateral()(d).log()
    assert y[:, 10:].diff(dim=1).abs().max() < .5*math.log(1.04)
    d = torch.ones(1, 20, 1, 4, 4)
    d[:, 10:] = 3.
    assert torch.allclose(Bilateral()(d), d) and not torch.allclose(Ema(.5)(d), d)

"""RAFT beside torchvision, odd sizes, gradients, and the pyramid that streams beside the one that sees all"""
import pytest
import torch
import torchvision.models.optical_flow as tv
from vidlit.nn.weights import load_strict
from vidlit.pyramid.flow import coarse_to_fine, epe, lucas_kanade
from vidlit.pyramid.pyramid import StreamingPyramid, joint_pyramid, pyramid_bytes
from vidlit.pyramid.raft import RAFT, OnDemand, PyramidRAFT, Warped, predict_flow, raft_large, raft_small, raft_toy


@pytest.mark.parametrize('cfg, theirs', [(raft_small, tv.raft_small), (raft_large, tv.raft_large)])
def test_torchvision(cfg, theirs):
    theirs = theirs().eval()
    ours = RAFT(cfg).eval()
    load_strict(ours, theirs.state_dict())
    a, b = torch.rand(2, 1, 3, 128, 136, generator=torch.Generator().manual_seed(0)).unbind(0)
    with torch.no_grad(): pairs = [*zip(ours(a, b, 2), theirs(2*a-1, 2*b-1, 2))]
    assert len(pairs) == 2 and max((x-y).abs().max() for x, y in pairs) < 1e-4
    theirs.load_state_dict(ours.state_dict())


def test_on_demand_is_the_same_model():
    g = torch.Generator().manual_seed(0)
    one, two = RAFT(raft_toy).eval(), RAFT(raft_toy, OnDemand).eval()
    two.load_state_dict(one.state_dict())
    a, b = torch.rand(2, 1, 3, 40, 52, generator=g).unbind(0)
    assert torch.allclose(predict_flow(one, a, b, 3), predict_flow(two, a, b, 3), atol=1e-4)


MAKERS = (lambda: RAFT(raft_toy)), (lambda: RAFT(raft_toy, Warped)), (lambda: PyramidRAFT(raft_toy))


@pytest.mark.parametrize('make', MAKERS)
def test_any_size_and_every_weight_learns(make):
    model = make()
    a, b = torch.rand(2, 2, 3, 35, 50).unbind(0)
    flows = model(a, b, 4)
    assert len(flows) == 4 and all(f.shape == (2, 2, 35, 50) for f in flows)
    sum(f.square().mean() for f in flows).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_guess_is_used():
    a = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    guess = torch.full((1, 2, 64, 64), 3.)
    assert torch.allclose(coarse_to_fine(lambda a, b, f: f, a, a, 3, guess)[..., 8:-8, 8:-8], guess[..., 8:-8, 8:-8])
    assert epe(lucas_kanade(a, a), torch.zeros(1, 2, 64, 64)) < 1e-3


def test_estimate_is_what_is_allocated():
    for t, h, w in ((1, 9, 9), (8, 32, 48), (11, 37, 23)):
        for dtype in (torch.float32, torch.float16):
            pyr = joint_pyramid(torch.zeros(1, 3, t, h, w, dtype=dtype), 3)
            got = sum(v.clip.untyped_storage().nbytes() for v in pyr)
            assert got == sum(pyramid_bytes(t, h, w, 3, dtype=dtype))


def test_stream_holds_little():
    s, held = StreamingPyramid(5, 'binomial3'), []
    for _ in range(500):
        for _ in s.push(torch.zeros(1, 8, 8)): pass
        held.append(s.held())
    assert max(held[100:]) == max(held[:100])

"""Two processes with half of every weight each take the steps that one takes with all of them.

As a script, under torchrun or alone, this file trains a VideoMAE V2 and writes what happened."""
import sys
import torch

STEPS = 3

def model(**kw):
    from vidlit.nn.vit import ViTConfig
    from vidlit.pretrain.videomae import VideoMAEConfig
    from vidlit.pretrain.videomae_v2 import VideoMAE2
    cfg = VideoMAEConfig(ViTConfig(dim=32, depth=3, heads=2, patch=(2,4,4)), ViTConfig(dim=24, depth=2, heads=2))
    return VideoMAE2(cfg, gen=torch.Generator().manual_seed(0), **kw)

def train(bs, ckpt=False, half=False):
    "Losses, weights at the end, and how many numbers this process held"
    from fastai.data.core import DataLoaders
    from vidlit.pretrain.dual_masking import dual_mask
    from vidlit.pretrain.videomae import pretrainer
    from vidlit.pretrain.videomae_v2_scaling import load_whole, shard, whole_state
    from vidlit.train.callbacks import fit, world_size
    from vidlit.train.checkpoint import Seeded
    torch.set_num_threads(1)
    # four slots: then every sample is judged by equally many tokens, and the mean of two means is the joint mean
    clips = torch.randn(16, 3, 8, 16, 16, generator=torch.Generator().manual_seed(1))
    dl = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(clips), bs, shuffle=True, drop_last=True)
    net = model(ckpt=ckpt)
    if world_size()>1:
        if half:  # built without memory, weights handed out
            with torch.device('meta'): empty = model(ckpt=ckpt)
            net = load_whole(shard(empty), net.state_dict())
        else: net = shard(net)
    learn = pretrainer(DataLoaders(dl), net, dual_mask, .75, lr=1e-2, warmup=.1, gen=5, cbs=[Seeded(3)])
    fit(learn, steps=STEPS, validate=False)
    own = sum((p.to_local() if hasattr(p, 'to_local') else p).numel() for p in net.parameters())
    adam = sum((v.to_local() if hasattr(v, 'to_local') else v).numel() for s in learn.opt.opt.state.values()
        for v in s.values() if v.ndim)
    return dict(loss=[o['loss'] for o in learn.history.rows], weights=whole_state(net), own=own, adam=adam)

def main(out):
    from vidlit.train.checkpoint import process_group
    with process_group('gloo') as (rank, world):
        got = dict(plain=train(8//world), ckpt=train(8//world, ckpt=True), meta=train(8//world, half=True))
        torch.save(got, f'{out}/{world}-{rank}.pt')

if __name__=='__main__':
    main(sys.argv[1])
    sys.exit()

import pytest  # noqa: E402 - the script above does without
from torchrun import two_and_one  # noqa: E402


@pytest.fixture(scope='module')
def ran(tmp_path_factory):
    "The same script under torchrun and alone"
    out, alone = tmp_path_factory.mktemp('shard'), tmp_path_factory.mktemp('alone')
    two_and_one(__file__, main, out, alone)
    return [torch.load(o, weights_only=True) for o in (out/'2-0.pt', out/'2-1.pt', alone/'1-0.pt')]

@pytest.mark.parametrize('how', ['plain', 'ckpt', 'meta'])
def test_training_is_that_of_one_process(ran, how):
    a, b, one = (o[how] for o in ran)
    assert len(one['loss'])==STEPS and a['loss']==b['loss']
    assert a['loss']==pytest.approx(one['loss'], abs=1e-4)
    assert a['weights'].keys()==one['weights'].keys()
    for k, v in one['weights'].items():
        assert torch.equal(a['weights'][k], b['weights'][k])
        torch.testing.assert_close(a['weights'][k], v, atol=2e-3, rtol=1e-2, msg=lambda m, k=k: f'{k}: {m}')

def test_each_holds_half(ran):
    a, b, one = (o['plain'] for o in ran)
    for k in ('own', 'adam'):
        assert a[k]+b[k]>=one[k] and max(a[k], b[k])<.6*one[k]

def test_whole_state_loads_anywhere(ran):
    net = model()
    net.load_state_dict(ran[0]['plain']['weights'])
    from vidlit.pretrain.videomae_v2 import VideoMAE2
    assert VideoMAE2.from_official(net.to_official(), heads=2, dec_heads=2).cfg==net.cfg

def test_the_test_can_fail(ran):
    "Training moved the weights, and far more than the tolerance"
    start = model().state_dict()
    assert max((v-start[k]).abs().max().item() for k, v in ran[2]['plain']['weights'].items())>.01

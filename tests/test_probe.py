"Probes and fine-tuning against other libraries; tuning that is equal and looks at the test split once."
import math
from functools import partial
import numpy as np
import pytest
import torch
from torch import nn
from vidlit.train.finetune import Classifier, decay_groups, finetune, model_accuracy, multi_view
from vidlit.train.probe import (
    AttentiveProbe,
    CrossAttention,
    Feats,
    Variant,
    accuracy,
    attentive_probe,
    extract,
    feature_variants,
    knn_probe,
    linear_probe,
    logistic_probe,
    ridge_probe,
    standardise,
    tune,
    tune_table,
    with_random_variant,
)
from vidlit.video.clips import clip_dls
from vidlit.video.transforms import mix


def blobs(n=120, d=10, k=3, seed=0, tokens=None):
    gen = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % k
    x = torch.randn(k, d, generator=torch.Generator().manual_seed(99))[y]*1.5+torch.randn(n, d, generator=gen)
    if tokens: x = x[:, None]+.1*torch.randn(n, tokens, d, generator=gen)
    return Feats(x, y)


def test_logistic_and_ridge_equal_sklearn():
    lin = pytest.importorskip('sklearn.linear_model')
    tr, te = blobs(), blobs(seed=1)
    ref = lin.LogisticRegression(C=1/(1e-2*120), tol=1e-8, max_iter=2000).fit(tr.x.numpy(),
        tr.y.numpy()).predict_proba(te.x.numpy())
    assert np.abs(logistic_probe(tr, wd=1e-2)(te.x).numpy()-ref).max() < 1e-3
    ref = lin.Ridge(alpha=.1*120).fit(tr.x.numpy(), np.eye(3)[tr.y.numpy()]).predict(te.x.numpy())
    assert np.abs(ridge_probe(tr, wd=.1)(te.x).numpy()-ref).max() < 1e-4


def test_ridge_primal_is_dual():
    wide = blobs(n=30, d=30)
    more = Feats(torch.cat([wide.x, torch.zeros(30, 5)], 1), wide.y)  # 35 features of 30 clips: the dual
    a, b = ridge_probe(wide, .1)(wide.x), ridge_probe(more, .1)(more.x)
    assert torch.allclose(a, b, atol=1e-5)


def test_knn_equals_a_plain_loop():
    tr, te = blobs(), blobs(n=9, seed=2)
    got = knn_probe(tr, k=7, temp=.1)(te.x)
    for q, row in zip(te.x, got):
        s = torch.tensor([torch.cosine_similarity(q, o, dim=0) for o in tr.x])
        near = s.argsort(descending=True)[:7]
        votes = torch.zeros(3).index_add(0, tr.y[near], (s[near]/.1).exp())
        assert torch.allclose(row, votes/votes.sum(), atol=1e-4)


def test_attention_equals_torch_s():
    a, ref = CrossAttention(12, 3), nn.MultiheadAttention(12, 3, batch_first=True)
    with torch.no_grad():
        ref.in_proj_weight.copy_(torch.cat([a.q.weight, a.kv.weight]))
        ref.in_proj_bias.copy_(torch.cat([a.q.bias, a.kv.bias]))
        ref.out_proj.weight.copy_(torch.eye(12))
        ref.out_proj.bias.zero_()
    q, z = torch.randn(2, 1, 12), torch.randn(2, 5, 12)
    assert torch.allclose(a(q, z), ref(q, z, z)[0], atol=1e-6)
    assert sum(p.numel() for p in AttentiveProbe(12, 4, 3, depth=3).parameters()) > sum(p.numel()
        for p in AttentiveProbe(12, 4, 3).parameters())


@pytest.mark.parametrize('fit', [knn_probe, linear_probe, partial(linear_probe, kind='ridge'),
    partial(attentive_probe, epochs=20, lr=1e-2, heads=2)])
def test_probes_learn_and_leave_the_global_state(fit):
    state = torch.get_rng_state()
    tr, te = standardise(blobs(tokens=3), blobs(seed=1, tokens=3))
    p, q = fit(tr), fit(tr)
    assert accuracy(p, te) > .7 and torch.equal(p(te.x), q(te.x))
    assert torch.equal(torch.get_rng_state(), state)


def test_standardise_uses_the_training_set_and_survives_constants():
    tr, te = blobs(), blobs(seed=1)
    tr.x[:, 0], te.x[:, 0] = 5., 5.
    a, b = standardise(tr, te)
    assert a.x.isfinite().all() and b.x[:, 0].abs().max() < 1e-3
    assert torch.allclose(b.x[:, 1], (te.x[:, 1]-tr.x[:, 1].mean())/tr.x[:, 1].std(correction=0), atol=1e-4)


# tuning

def test_tuning_is_equal_and_tests_the_pick_only():
    log = []

    def fit(train, lr, wd): log.append((train, lr, wd)); return (train, lr, wd)

    def score(p, split):
        log.append((split, p))
        if split[0] == 'test': return .5
        return {1: .2, 2: .9, 3: math.nan}[p[1]]+(0 if p[2] else .05)
    variants = {k: Variant(k, ('valid', k), ('test', k)) for k in ('random', 'mae')}
    res = tune(variants, fit, dict(lr=[1, 2, 3], wd=[0, 1]), score)
    for k in variants:
        assert res[k].point == dict(lr=2, wd=0) and len(res[k].tried) == 6
        assert [o[1:] for o in log if o[0] == k] == [(lr, wd) for lr in (1, 2, 3) for wd in (0, 1)]
        assert [o[1] for o in log if o[0] == ('test', k)] == [(k, 2, 0)]
    assert tune_table(res)[1]['over_random'] == 0


def test_tuning_refuses():
    with pytest.raises(ValueError, match='random'): tune(dict(mae=None), None, dict(lr=[1]))
    with pytest.raises(ValueError, match='lr'): tune(dict(random=None), None, dict(lr=[]))
    with pytest.raises(ValueError, match='random'): with_random_variant(dict(random=1), lambda: 2)


def test_random_arm_is_fresh_seeded_and_leaves_the_global_state():
    state = torch.get_rng_state()
    a, b, c = [with_random_variant({'x': 1}, lambda: nn.Linear(3, 3), seed=s)['random'] for s in (0, 0, 1)]
    assert torch.equal(a.weight, b.weight) and not torch.equal(a.weight,
        c.weight) and torch.equal(torch.get_rng_state(), state)


# extraction and views

class Mode(nn.Module):
    "Two tokens per clip; doubles in training mode; fails on demand"
    def __init__(self, fail=False):
        super().__init__()
        self.p, self.fail, self.drop = nn.Parameter(torch.ones(1)), fail, nn.Dropout().eval()

    def forward(self, clip):
        if self.fail: raise RuntimeError('no')
        return clip.flatten(2).mean(2)[:, None].expand(-1, 2, -1)*(2. if self.training else 1.)


def test_extract_evaluates_and_restores_each_module():
    m, dl = Mode().train(), [(torch.ones(2, 3, 2, 4, 4), torch.tensor([0, 1]))]
    m.drop.eval()
    f = extract(m, dl)
    assert f.x.shape == (2, 2, 3) and f.x.max() == 1 and m.training and not m.drop.training and not f.x.requires_grad
    bad = Mode(True).train()
    with pytest.raises(RuntimeError): extract(bad, dl)
    assert bad.training
    with pytest.raises(ValueError, match='no batch'): extract(m, [])
    with pytest.raises(ValueError, match='sum'): extract(m, dl, views='sum')


def test_views_average_softmax_not_scores():
    clip = torch.randn(4, 5, 3, 2, 2, 2)
    def model(c): return c.flatten(2).mean(2)*8
    p = multi_view(model, [(clip, torch.arange(4))], chunk=3)
    ref = torch.stack([model(clip[:, i]).softmax(-1) for i in range(5)]).mean(0)
    assert torch.allclose(p.x, ref, atol=1e-6) and p.y.tolist() == [0, 1, 2, 3]


def test_feature_arms_standardise_each_with_its_own_statistics():
    dl = [(torch.rand(6, 3, 2, 4, 4), torch.arange(6) % 2)]
    variants = feature_variants(dict(a=Mode(), b=lambda c: c.flatten(1)*100+7), dl, dl, dl)
    assert all(abs(o.train.x.mean()) < 1e-4 for o in variants.values())


# fine-tuning

class Body(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch_embed, self.bn = nn.Linear(24, 8), nn.BatchNorm1d(8)
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))

    def forward(self, clip):
        x = self.bn(self.patch_embed(clip.flatten(1)))
        for b in self.blocks: x = x+b(x).relu()
        return x


def toy(frozen=False):
    torch.manual_seed(0)
    return Classifier(Body(), 8, 2, frozen)


def data(n=64):
    y = torch.arange(n) % 2
    return torch.rand(n, 3, 2, 2, 2, generator=torch.Generator().manual_seed(0))+y.view(-1, 1, 1, 1, 1)*.3, y


def test_finetuning_learns_repeats_and_leaves_the_global_state():
    dls, models = clip_dls(data(), bs=16), []
    for _ in range(2):
        m, state = toy(), torch.get_rng_state()
        finetune(m, dls, epochs=10, lr=1e-2)
        assert torch.equal(torch.get_rng_state(), state)
        models.append(m)
    assert model_accuracy(models[0], dls.valid) > .9
    assert all(torch.equal(a, b) for a, b in zip(*[o.state_dict().values() for o in models]))


def test_frozen_body_does_not_move_not_even_its_statistics():
    m = toy(True)
    before = {k: v.clone() for k, v in m.body.state_dict().items()}
    head = m.head.weight.clone()
    finetune(m, clip_dls(data(), bs=16), steps=5, lr=1e-2)
    assert all(torch.equal(v, before[k])
        for k, v in m.body.state_dict().items()) and not torch.equal(m.head.weight, head)


def test_finetuning_on_mixtures():
    dls = clip_dls(data(), bs=16, batch_tfm=partial(mix, classes=2))
    assert dls.one_batch()[1].shape == (16, 2)
    finetune(toy(), dls, steps=3, layer_decay=.5)


def test_decay_groups_cover_every_parameter_once():
    m = toy()
    for decay in (1., .75):
        ps = [p for g in decay_groups(m, decay) for p in g['params']]
        assert len(ps) == len({id(p) for p in ps}) == len(list(m.parameters()))
    with pytest.raises(ValueError, match='1.5'): decay_groups(m, 1.5)

"The student beyond its lessons: gradients, augmentations, resumption, and the study's jobs from end to end"
import json
import math
from dataclasses import replace
import pytest
import torch
from fastai.data.core import DataLoaders
from hypothesis import given, settings, strategies as st
from safetensors.torch import load_file
from torch.utils.data import DataLoader, TensorDataset
from vidlit.depth.depth_anything import DepthAnythingConfig
from vidlit.depth.dinov2 import dinov2_s
from vidlit.depth.dpt import DPTConfig
from vidlit.depth.losses import affine_loss, cutmix_loss
from vidlit.depth.student import (
    Pseudo,
    Student,
    StudentLoss,
    Unlabelled,
    paste,
    region_loss,
    strong_colour,
    student_from,
    student_learner,
    two_regions,
)
from vidlit.lab.jobs import Context, plan, run_jobs
from vidlit.studies import depth_common as L, pseudo_labels_jobs as S
from vidlit.studies.pseudo_labels import study, summary
from vidlit.studies.register import depth_anything
from vidlit.train.callbacks import fit

TINY = DepthAnythingConfig(replace(dinov2_s, dim=16, depth=4, heads=2, patch=(1, 8, 8)),
    DPTConfig(16, 8, (8, 8, 8, 8), 8, 8), (0, 1, 2, 3), 2)
MINI = replace(S.setups['toy'], dim=16, wide=24, features=8, out=(8, 8, 8, 8), labelled=12, pool=20, n_test=8,
    prior_steps=6, prior_bs=4, steps=6, bs=2)


def gen(s=0): return torch.Generator().manual_seed(s)
def rand(*shape, s=0): return torch.rand(*shape, generator=gen(s))
def model(s=0): return student_from(TINY, gen=gen(s))


def learner(s=0, **kw):
    x, z = rand(8, 3, 16, 16), 1+rand(8, 1, 16, 16, s=1)
    pairs = TensorDataset(rand(10, 3, 16, 16, s=2), rand(10, 1, 16, 16, s=3))
    dls = DataLoaders(DataLoader(TensorDataset(x, z), 4, shuffle=True, generator=gen(s)))
    return student_learner(model(), dls, pairs, **{**dict(frozen=model(9).encoder, lr=1e-3), **kw})


# losses

@given(st.integers(0, 10**6), st.floats(.1, 9), st.floats(-5, 5))
@settings(max_examples=30, deadline=None)
def test_regions_have_their_own_scale(seed, a, b):
    p, t = rand(3, 8, 8, s=seed), rand(3, 1, 8, 8, s=seed+1)
    r = two_regions(3, 8, 8, gen(seed), p=1., area=(.2, .6))
    o = Pseudo(t, t, t, t.roll(-1, 0), r)
    q = torch.where(r[:, 0], a*p+b, p)
    torch.testing.assert_close(region_loss(q, o), region_loss(p, o), atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(region_loss(p, o), cutmix_loss(p[:, None], o.targ_a, o.targ_b, r), atol=1e-5, rtol=1e-5)


def test_whole_pictures_are_the_plain_loss():
    p, t = rand(3, 8, 8), rand(3, 1, 8, 8, s=1)
    o = Pseudo(t, t, t, t.roll(-1, 0)*math.nan, torch.ones(3, 1, 8, 8, dtype=torch.bool))
    torch.testing.assert_close(region_loss(p, o), affine_loss(p[:, None], t))


def test_no_gradient_where_nothing_is_said():
    "Pixels without a label, and the other region, do not move a region"
    p, t = rand(2, 8, 8).requires_grad_(), rand(2, 1, 8, 8, s=1)
    hole = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    hole[:, :, :3] = True
    o = Pseudo(t, t, torch.where(hole, math.nan, t), t, torch.ones_like(hole))
    g, = torch.autograd.grad(region_loss(p, o), p)
    assert (g[:, :3] == 0).all() and (g[:, 3:] != 0).any() and g.isfinite().all()
    empty = region_loss(p, replace(o, targ_a=t*math.nan))
    assert empty == 0 and torch.autograd.grad(empty, p)[0].isfinite().all()


def test_all_parts_reach_the_student_and_none_the_frozen():
    net = Student(model(), model(9).encoder)
    x = rand(6, 3, 16, 16)
    t = rand(4, 1, 16, 16, s=2)
    o = Pseudo(x[2:], x[2:], t, t.roll(-1, 0), two_regions(4, 16, 16, gen(), 1.))
    loss = StudentLoss()(net(x, x[2:]), 1+rand(2, 1, 16, 16, s=3), o)
    loss.backward()
    assert all(p.grad is None for p in net.frozen.parameters())
    assert sum(p.grad is not None and bool((p.grad != 0).any()) for p in net.model.encoder.blocks.parameters()) > 20
    out = net(x, x[2:])
    alone = StudentLoss((0., 0., 1.))(replace(out, pred=out.pred.detach()), 1+rand(2, 1, 16, 16, s=3), o)
    assert (torch.autograd.grad(alone, net.model.encoder.blocks[0].mlp.fc1.weight)[0] != 0).any()


def test_own_features_are_the_students():
    net = Student(model(), own=True)
    x = rand(2, 3, 16, 16)
    out = net(x, x)
    torch.testing.assert_close(out.feat, out.frozen)
    assert out.feat.requires_grad and not out.frozen.requires_grad


# augmentations

@given(st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_storm_is_of_its_own_seed(seed):
    x = rand(3, 3, 12, 12, s=seed)
    torch.manual_seed(0)
    a = strong_colour(x, gen(seed))
    torch.manual_seed(1)
    assert torch.equal(a, strong_colour(x, gen(seed))) and a.min() >= 0 and a.max() <= 1 and a.isfinite().all()


def test_share_of_boxes():
    r = two_regions(400, 32, 32, gen(), p=.5)
    boxed = (~r).any(-1).any(-1)[:, 0]
    assert .4 < boxed.float().mean() < .6
    area = (~r[boxed]).float().mean((1, 2, 3))
    assert area.min() > .01 and area.max() < .42


def test_paste_keeps_pairs_together():
    "Picture and label are mixed by the same box from the same neighbour"
    x = torch.arange(5.).view(5, 1, 1, 1).expand(5, 3, 16, 16)
    r = two_regions(5, 16, 16, gen(), 1.)
    label = torch.where(r, x[:, :1], x[:, :1].roll(-1, 0))
    assert torch.equal(paste(x, r)[:, :1], label)


# training

def test_ratio_and_passes():
    learn = learner(ratio=3)
    fit(learn, steps=4)
    u = learn.unlabelled
    assert len(learn.pseudo.image) == 12 and len(u.queue) == (10*5-48)
    first = Unlabelled(u.pairs, gen=5)
    a = torch.cat([first.take(5)[0] for _ in range(4)]).flatten(1)
    assert len({tuple(o) for o in a[:10].tolist()}) == len({tuple(o) for o in a[10:].tolist()}) == 10


def test_same_seed_same_student():
    ws = [[p.detach().clone() for p in fit(learner(gen=s), steps=3).model.model.parameters()] for s in (1, 1, 2)]
    assert all(torch.equal(a, b) for a, b in zip(ws[0], ws[1])) and not all(torch.equal(a, b)
        for a, b in zip(ws[0], ws[2]))


def test_validation_sees_plain_pictures():
    "Nothing is added or distorted in validation, and the loss is that of the labels"
    learn = learner()
    learn.dls.loaders.append(DataLoader(TensorDataset(rand(4, 3, 16, 16), 1+rand(4, 1, 16, 16, s=1)), 4))
    fit(learn, epochs=1)
    assert len(learn.history.valid) == 1 and set(learn.loss_func.parts) == {'labelled'}


def test_student_starts_without_labels():
    teacher, prior = model(1), model(2).encoder
    s = student_from(TINY, prior, gen(3))
    assert all(torch.equal(a, b) for a, b in zip(s.encoder.parameters(), prior.parameters()))
    assert all(a.data_ptr() != b.data_ptr() for a, b in zip(s.encoder.parameters(), prior.parameters()))
    assert not all(torch.equal(a, b) for a, b in zip(s.head.parameters(), teacher.head.parameters()))


# the study

@pytest.fixture(scope='module')
def done(tmp_path_factory):
    root = tmp_path_factory.mktemp('pseudo')
    jobs = [*S._headline(MINI, 0), *S._variants(MINI, 0)]
    return root, jobs, run_jobs(jobs, root/'jobs')


def test_jobs_from_end_to_end(done):
    root, jobs, res = done
    out = summary(res, root)
    assert {'student', 'teacher', 'storm', 'cutmix', 'features', 'document', 'agreement', 'confidence_plain',
        'confidence_document'} <= set(out['facts'])
    # one seed decides nothing
    assert all(o['supports'] is None for k, o in out['facts'].items() if 'confidence' not in k)
    variants = 'student', 'labelled only', 'teacher', 'document teacher', *S.variants
    assert {r['variant'] for r in out['rows']} == {f'{a}, {w}' for a in variants for w in ('home', 'away')}
    assert all(math.isfinite(r['AbsRel']) for r in out['rows'])
    assert all((root/f['file']).stat().st_size < 100_000 for f in out['figures'])
    json.dumps(out)


def test_second_run_does_nothing(done):
    root, jobs, res = done
    before = {j.key: (root/'jobs'/j.key/'result.json').stat().st_mtime_ns for j in jobs}
    assert run_jobs(jobs, root/'jobs') == json.loads(json.dumps(res))
    assert before == {j.key: (root/'jobs'/j.key/'result.json').stat().st_mtime_ns for j in jobs}


def test_interrupted(done, tmp_path, monkeypatch):
    "A student stopped in the middle ends with the same weights and the same curve"
    root, jobs, res = done
    class Stop(Exception): pass
    real = L.Checkpoint
    monkeypatch.setattr(L, 'Checkpoint', lambda folder, every, keep: real(folder, every=2, keep=keep))
    d, at = load_file(root/'jobs/data/seed0/data.safetensors'), root/'jobs'
    def run(stop=None):
        def report(key, share, text):
            if stop and share >= stop: raise Stop('now')
        job = next(j for j in jobs if j.key == 'train/student/seed0')
        return S.train_student(Context(tmp_path, at, job, report=report), MINI, d, 0, 'student',
            at/'prior/slim/seed0', at/'labels/plain/seed0/labels')
    monkeypatch.setattr(L, 'Progress', lambda report: real_progress(report, every=0.))
    with pytest.raises(Stop): run(.6)
    assert [*(tmp_path/'ckpt').glob('*')]
    said, model = run()
    for k, v in load_file(at/'train/student/seed0/model.safetensors').items():
        torch.testing.assert_close(model.state_dict()[k], v, rtol=1e-5, atol=1e-6)
    for k, (steps, v) in res['train/student/seed0']['parts'].items():
        assert said['parts'][k][0] == steps
        torch.testing.assert_close(torch.tensor(said['parts'][k][1]), torch.tensor(v), rtol=1e-4, atol=1e-5)


real_progress = L.Progress


def test_truth_of_the_pool_is_not_trained_on(done, monkeypatch):
    "Students and teachers never touch pool_z; only the report on labels does"
    root, jobs, res = done
    class Guard(dict):
        def __getitem__(self, k):
            assert k not in ('pool_z', 'home', 'away', 'home_z', 'away_z'), k
            return super().__getitem__(k)
    d, at = Guard(load_file(root/'jobs/data/seed0/data.safetensors')), root/'jobs'
    job = next(j for j in jobs if j.key == 'train/student/seed0')
    ctx = Context(root/'guarded', at, job)
    S.train_student(ctx, replace(MINI, steps=1), d, 0, 'student', at/'prior/slim/seed0', at/'labels/plain/seed0/labels')
    S.labelled_training(Context(root/'guarded2', at, job), replace(MINI, steps=1), d, 0, False, at/'prior/slim/seed0')


def test_jobs():
    jobs = plan(depth_anything.jobs('toy', range(3), variants=True))
    assert len({j.key for j in jobs}) == len(jobs)
    assert not any(f'/{v}/' in j.key for v in S.variants for j in depth_anything.jobs('toy', range(3)))
    ours = {j.key: j for j in jobs}
    assert ours['train/student/seed1'].needs == ('data/seed1', 'prior/slim/seed1', 'labels/plain/seed1')
    first, *others = (ours[f'train/{k}/seed1'].args['prior'] for k in ('labelled only', 'student', 'no storm'))
    assert all(o == first for o in others)


def test_equal_arithmetic():
    "The rival sees as many pictures in a step as the student"
    r = S.setups['toy']
    assert 3*r.bs == r.bs+2*r.bs and r.pool >= 10*r.labelled
    d = dict(labelled=torch.zeros(30, 3, 32, 32, dtype=torch.uint8), labelled_z=torch.ones(30, 1, 32, 32))
    dls = S.loaders('cpu', 3*r.bs, S.unit(d['labelled']), d['labelled_z'])
    seen = [len(x) for x, _ in dls.train]
    assert seen == [24]


def test_nothing_above_the_filter(done, tmp_path):
    "A filter that refuses every label is recorded, and the labelled worlds are what is left"
    root, jobs, res = done
    from vidlit.depth.pseudo_labels import Labels
    labels = Labels(root/'jobs/labels/plain/seed0/labels')
    with pytest.raises(ValueError, match='has a confidence above 2'):
        S.pairs_of(labels, S.Pool(load_file(root/'jobs/data/seed0/data.safetensors')['pool']), 2.)


def test_facts_can_go_both_ways():
    def one(v): return dict(home=dict(abs_rel=v), away=dict(abs_rel=v))
    def made(a, b):
        return {f'train/{k}/seed{s}': one(v+.001*s*(k == 'student'))
            for k, v in (('student', a), ('labelled only', b)) for s in range(3)}
    def said(a, b): return study().summary(made(a, b))['facts']['student']['supports']
    assert [said(.1, .2), said(.2, .1)] == [True, False]


def test_fog_hides_the_far():
    x, z = S.place(MINI, 'away', 3, 4)
    y, _ = S.place(replace(MINI, fog=0.), 'away', 3, 4)
    off = (x.float()-y.float()).abs().mean(1, keepdim=True)
    near, far = z < z.median(), z >= z.median()
    assert off[far].mean() > off[near].mean() > 0
    home, _ = S.place(MINI, 'home', 3, 4)
    assert torch.equal(home, S.place(replace(MINI, fog=0.), 'home', 3, 4)[0])

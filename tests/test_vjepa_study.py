"The study of V-JEPA: tiny jobs from end to end, interrupted and gone on with, and what its numbers rest on"
import json
from dataclasses import replace
import pytest
import torch
from safetensors.torch import load_file
from vidlit.lab.jobs import plan, run_jobs
from vidlit.studies import vjepa_jobs as S
from vidlit.studies.register import vjepa
from vidlit.studies.vjepa import along, first_reach, summary
from vidlit.worlds.worlds import WorldConfig, make_scene

MINI = replace(S.setups['toy'], size=16, frames=4, dim=32, depth=1, heads=2, pred_dim=32, pred_heads=2, clips=64,
    steps=20, snapshots=(10,),
    labels=(8, 16), more=(32,), draws=2, probe_steps=3, n_valid=16, n_test=32)


@pytest.fixture(scope='module')
def done(tmp_path_factory):
    "All jobs of a tiny seed, variants too"
    root = tmp_path_factory.mktemp('vjepa')
    jobs = [*S._headline(MINI, 0), *S._variants(MINI, 0)]
    return root, jobs, run_jobs(jobs, root/'jobs')


def test_summary(done):
    root, jobs, res = done
    out = summary(res, root)
    assert {'random', 'pixels', 'plain', 'ema', 'healthy', 'own', 'nostop', 'sooner', 'labels'} <= set(out['facts'])
    assert all((root/f['file']).stat().st_size<100_000 for f in out['figures'])
    assert {p['a'] for p in out['paired'][:2]} == {'V-JEPA, attentive, 16 labels'}
    assert all(0<=o['accuracy']<=1 for o in out['rows'])


def test_summary_of_the_headline_alone(done):
    """Without --variants: three trained variants and the untrained network, each comparison still made; nothing said
    of what did not run"""
    root, jobs, res = done
    plain = {j.key for j in S._headline(MINI, 0)}
    out = summary({k: v for k,v in res.items() if k in plain}, root)
    assert {o['variant'].split(',')[0] for o in out['rows']} == {'untrained', 'V-JEPA', 'VideoMAE', 'plain pixels'}
    assert ({'random', 'pixels', 'plain', 'healthy', 'labels'} <= set(out['facts'])
        and not {'own', 'nostop', 'sooner'} & set(out['facts']))
    assert (len(out['paired'])==12  # three rivals, two probes, the most and the fewest labels
        and {p['b'].split(',')[0] for p in out['paired']} == {'untrained', 'VideoMAE', 'plain pixels'})


def test_second_run_does_nothing(done):
    root, jobs, res = done
    before = {j.key: (root/'jobs'/j.key/'result.json').stat().st_mtime_ns for j in jobs}
    assert run_jobs(jobs, root/'jobs') == json.loads(json.dumps(res))
    assert before == {j.key: (root/'jobs'/j.key/'result.json').stat().st_mtime_ns for j in jobs}


@pytest.mark.parametrize('variant', ['V-JEPA', 'no stop', 'VideoMAE'])
def test_interrupted(done, tmp_path, monkeypatch, variant):
    "A training stopped in the middle gives the same weights, and the same monitor's rows"
    root, jobs, res = done
    clips = load_file(root/'jobs/data/seed0/data.safetensors')['clips']
    n = MINI.steps if variant!='VideoMAE' else S.equal_steps(MINI)
    class Stop(Exception): pass
    real = S.Checkpoint
    monkeypatch.setattr(S, 'Checkpoint', lambda folder, every, keep: real(folder, every=5, keep=1))
    def fall(info):
        if info['done']>=n//2: raise Stop('now')
    with pytest.raises(Stop): S.train_variant(MINI, clips, 0, variant, tmp_path, report=fall)
    learn, keep = S.train_variant(MINI, clips, 0, variant, tmp_path)
    assert keep.n==n
    whole = load_file(root/f'jobs/train/{variant}/seed0/encoder.safetensors')
    for k,v in getattr(learn.model, S.asked(variant)).state_dict().items():
        torch.testing.assert_close(v, whole[k], rtol=1e-5, atol=1e-6)
    assert (tmp_path/f'snapshot{min(keep.at)}.safetensors').exists()


def test_same_start():
    "Every variant starts from the same encoder; the EMA target encoder equals it"
    want = S.fresh(MINI, 3).encoder.state_dict()
    for m in (S.fresh(MINI, 3, S.NoStop).encoder, S.fresh(MINI, 3).target_encoder):
        for k,v in m.state_dict().items(): assert torch.equal(v, want[k])
    for k,v in S.fresh_mae(MINI, 3).encoder.state_dict().items(): assert torch.equal(v, want[k])


def test_jobs():
    jobs = plan(vjepa.jobs('toy', range(3), variants=True))
    assert len({j.key for j in jobs})==len(jobs)
    assert not any(v in j.key for j in vjepa.jobs('toy', range(3)) for v in S.variants)
    a, b = S.step_flops(MINI)
    assert abs(S.equal_steps(MINI)*b-MINI.steps*a)<=b/2+1


def test_walls():
    "The family read off the scene is the one that was drawn"
    from vidlit.worlds import worlds
    drawn, real = [], worlds.draw_textures
    worlds.draw_textures = lambda dice, family, *a: drawn.append(family) or real(dice, family, *a)
    try: scene = make_scene(range(40), WorldConfig(t=2, h=16, w=16, n_obj=1, split='test', grain=.6))[0]
    finally: worlds.draw_textures = real
    assert torch.equal(S.wall(scene), drawn[0][:, 0])


def test_reach():
    assert first_reach({0: [.1], 4: [.5]}, [.6]) == [None]
    res = {f'probe/{k}/seed0': {'8': {'linear': .5}} for k in ('end/untrained', 'snapshot5/V-JEPA', 'end/V-JEPA')}
    assert along(res, 'V-JEPA', 8, 'linear', (5,), 9) == {0: [.5], 5: [.5], 9: [.5]}
    del res['probe/snapshot5/V-JEPA/seed0']
    assert list(along(res, 'V-JEPA', 8, 'linear', (5,), 9)) == [0, 9] # a snapshot not taken is not on the curve

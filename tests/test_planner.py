"What is not a lesson of the planner: properties, an independent cross-entropy method, a real world model, jobs"
import pytest
import torch
from hypothesis import given, settings, strategies as st
from vidlit.lab.jobs import run_jobs
from vidlit.pretrain.planner import CEM, ActionSpace, Descent, Obs, Planner, Shooting, droid, l1_energy
from vidlit.studies.planner_jobs import (
    PlanSetup,
    arenas,
    at_random,
    make_tasks,
    oracle,
    planned,
    planner_jobs,
    ride,
    score,
)
from vidlit.studies.world_model_jobs import new_world

GOAL = torch.tensor([[.03, -.02, .01, 0, 0, 0, .6], [-.04, .04, 0, 0, 0, 0, -.1]])

def bowl(a): return (a.sum(2)-GOAL[:, None]).abs().mean(-1)  # energy of plans [b, s, h, 7]

def slow_cem(noise, maxnorm, momenta, elites, energy):
    "One task at a time, one number at a time: the method as its description says it"
    iters,samples,h,_ = noise.shape
    mean,std = torch.zeros(h, 7),torch.tensor([maxnorm]*3+[0.]*3+[1.]).repeat(h, 1)
    for it in range(iters):
        plans = torch.zeros(samples, h, 7)
        for s in range(samples):
            for k in range(h):
                for j in (0, 1, 2, 6):
                    top = .75 if j == 6 else maxnorm
                    plans[s, k, j] = min(max(float(noise[it, s, k, j]*std[k, j]+mean[k, j]), -top), top)
        order = sorted(range(samples), key=lambda s: float(energy(plans[s])))[:elites]
        best = plans[order]
        for j in (0, 1, 2, 6):
            m,v = momenta[2:] if j == 6 else momenta[:2]
            mean[:, j] = (1-m)*best[:, :, j].mean(0)+m*mean[:, j]
            std[:, j] = (1-v)*best[:, :, j].std(0)+v*std[:, j]
    out = mean.clone()
    out[:, 6] = torch.where(out[:, 6].abs() < .25, 0., out[:, 6])
    return out

def test_cem_equals_a_slow_one():
    noise = torch.randn(4, 2, 12, 2, 7, generator=torch.Generator().manual_seed(0))
    cem = CEM(12, 4, 4, 2, .2, .3, .4, .5)
    found = cem(bowl, droid, 2, noise=noise)
    for i in range(2):
        want = slow_cem(noise[:, i], .05, (.2, .3, .4, .5), 4, lambda p, i=i: (p.sum(0)-GOAL[i]).abs().mean())
        torch.testing.assert_close(found.actions[i], want, atol=1e-6, rtol=1e-5)

@pytest.mark.parametrize('search', [CEM(10, 3, 3, 2), Shooting(10, 2), Descent(3, 4, 2)])
def test_a_task_does_not_see_its_neighbours(search):
    rounds = 3 if isinstance(search, CEM) else 1
    shape = rounds,2,(3 if isinstance(search, Descent) else 10),2,7
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    both = search(bowl, droid, 2, noise=noise)
    one = search(lambda a: (a.sum(2)-GOAL[1:, None]).abs().mean(-1), droid, 1, noise=noise[:, 1:])
    torch.testing.assert_close(both.actions[1:], one.actions)
    assert (both.best.diff(dim=1) <= 0).all() and both.path.shape[:1] == (2,)

@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 2), st.floats(0, 2)), min_size=1, max_size=7), st.integers(0, 2**31))
def test_nothing_leaves_its_limits(pairs, seed):
    space = ActionSpace(*(tuple(v) for v in zip(*pairs)))
    gen = torch.Generator().manual_seed(seed)
    def energy(a):
        assert (a.abs() <= torch.tensor(space.most)+1e-6).all()
        return (a-1).square().sum((-1, -2))
    for search in (CEM(6, 2, 2, 2), Shooting(5, 2), Descent(2, 3, 2)):
        found = search(energy, space, 2, gen)
        assert found.actions.isfinite().all() and (found.actions.abs() <= torch.tensor(space.most)+1e-6).all()
        assert found.action.shape == (2, len(pairs))

def test_dtype_follows_the_tokens():
    found = CEM(6, 2, 2, 1)(lambda a: a.square().sum((-1, -2)), droid, 1, torch.Generator().manual_seed(0),
        like=torch.zeros((), dtype=torch.float64))
    assert found.actions.dtype == torch.float64

@pytest.fixture(scope='module')
def small():
    r = PlanSetup(dict(eye='random', size=24, patch=12, dim=32, heads=2, n_train=32, n_test=8, steps=2, eye_steps=2),
        goals=3, steps=2, samples=8, elites=2, iters=2,
        budgets=(8, 32), curve_goals=2, states=4)
    return r,new_world(r.worlds(2), 0).eval(),make_tasks(arenas(r, 2, range(3)), torch.Generator().manual_seed(0))

def test_planner_on_a_world_model(small):
    r,wm,tasks = small
    obs = Obs(tasks.here(tasks.start), tasks.world.numbers(tasks.start).float()[:, None])
    a = Planner(wm, r.space(2), CEM(20, 4, 2, 2), chunk=7).plan(obs, tasks.image)
    b = Planner(wm, r.space(2), CEM(20, 4, 2, 2)).plan(obs, tasks.image)
    torch.testing.assert_close(a.actions, b.actions, atol=1e-5, rtol=1e-4)
    tok = wm.encode(obs.frames)[:, 0]
    want = l1_energy(wm.rollout(tok, obs.states[:, 0], b.actions)[:, -1], wm.encode(tasks.image[:, :, None])[:, 0])
    got = Planner(wm, r.space(2)).scorer(obs, tasks.image)(b.actions[:, None])[:, 0]
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)

def test_descent_goes_through_the_model_and_leaves_it_alone(small):
    r,wm,tasks = small
    obs = Obs(tasks.here(tasks.start), tasks.world.numbers(tasks.start).float()[:, None])
    before = {k: v.clone() for k,v in wm.state_dict().items()}
    found = Planner(wm, r.space(2), Descent(2, 6, 1)).plan(obs, tasks.image)
    assert found.best[:, -1].lt(found.best[:, 0]).any()
    assert all(torch.equal(v, before[k]) for k,v in wm.state_dict().items())
    assert all(p.grad is None for p in wm.parameters())

def test_the_judge_is_right(small):
    r,wm,tasks = small
    far = ride(tasks, at_random(r.space(2), torch.Generator().manual_seed(0)), 2)
    assert score(ride(tasks, oracle(tasks, r.space(2)), 8))['success'] == 1
    assert score(far, radius=0.)['success'] == 0 and score(far, radius=9.)['steps'] == 0

def test_same_ride_twice(small):
    r,wm,tasks = small
    rides = [ride(tasks, planned(Planner(wm, r.space(2), r.search(2)), tasks.image,
        torch.Generator().manual_seed(3)), 2)
        for _ in range(2)]
    assert torch.equal(rides[0].actions, rides[1].actions)

def test_jobs_run_from_nothing_to_a_summary(small, tmp_path, monkeypatch):
    from vidlit.studies import planner as planner_results, planner_jobs as planner_page
    monkeypatch.setitem(planner_page.plan_setups, 'toy', small[0])
    jobs = [j for j in planner_jobs('toy', range(1), variants=True) if not j.key.startswith('variant')]
    res = run_jobs(jobs, tmp_path/'jobs')
    s = planner_results.summary(res, tmp_path)
    assert {'planner, 2 numbers', 'random, 6 numbers'} <= {o['variant'] for o in s['rows']}
    assert all((tmp_path/f['file']).exists() for f in s['figures']) and 'reach6' in s['facts']
    again = run_jobs(jobs, tmp_path/'jobs')  # read back, not run again
    assert all(again[f'ride/{d}d/seed0'] == (res[f'ride/{d}d/seed0'] | dict(setup=again[f'ride/{d}d/seed0']['setup']))
        for d in (2, 6))
    plain = {j.key for j in planner_jobs('toy', range(1))}
    alone = planner_results.summary({k: v for k,v in res.items() if k in plain}, tmp_path)  # as without --variants
    assert [o['variant'] for o in alone['rows']] == [o['variant'] for o in s['rows'] if ', 2 numbers' in o['variant']]
    assert plain < set(res) and 'reach6' not in alone['facts']

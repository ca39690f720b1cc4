"""Older results are kept when other arguments share their place."""
import json
import pytest
from vidlit.lab.experiment import Experiment, load_result, run_experiment, save_result
from vidlit.lab.jobs import Job, read_result, run_job


def steps(n): return Job('steps', 'experiment_toys:steps', dict(n=n, seconds=0.))


def test_a_job_with_other_arguments_moves_the_older_one_aside_and_back(tmp_path):
    few, many = steps(2), steps(5)
    run_job(few, tmp_path)
    marks = (tmp_path/'steps'/'marks').read_bytes()
    was = (tmp_path/'steps'/'result.json').read_bytes()
    assert run_job(many, tmp_path)==dict(done=5) and read_result(few, tmp_path) is None
    aside = tmp_path/f'steps.was-{few.stamp}'
    assert (aside/'marks').read_bytes()==marks and (aside/'result.json').read_bytes()==was
    assert run_job(few, tmp_path)==dict(done=2) and not aside.exists()
    assert (tmp_path/'steps'/'marks').read_bytes()==marks and (tmp_path/'steps'/'result.json').read_bytes()==was
    assert (tmp_path/f'steps.was-{many.stamp}'/'result.json').exists()


def test_half_a_job_comes_back_as_well(tmp_path):
    few = steps(2)
    run_job(few, tmp_path)
    (tmp_path/'steps'/'result.json').unlink() # killed before its end
    (tmp_path/'steps'/'marks').write_text('1:0\n')
    run_job(steps(5), tmp_path)
    assert run_job(few, tmp_path)==dict(done=2)
    assert (tmp_path/'steps'/'marks').read_text().startswith('1:0\n') # it went on


def experiment(**more):
    def jobs(scale, seeds, variants=False, data=None):
        return [Job(f'steps/{i}', 'experiment_toys:steps', dict(n=2+i, seconds=0.)) for i in seeds]
    def summary(res, root):
        (root/'a.png').write_text(f'{len(res)} jobs')
        return dict(rows=[], paired=[], figures=[dict(file='a.png', caption='')], headline='', facts={})
    return Experiment('toy', 'What?', 'none', jobs, summary, dict(toy=.1), **more)


def test_an_experiment_of_other_seeds_keeps_the_older_answer(tmp_path):
    e = experiment()
    three = run_experiment(e, tmp_path, seeds=3)
    one = run_experiment(e, tmp_path, seeds=1)
    box = tmp_path/'toy'/f"was-{three['stamp']}"
    assert json.loads((box/'metrics.json').read_text())==three and (box/'a.png').read_text()=='3 jobs'
    assert json.loads((tmp_path/'toy'/'metrics.json').read_text())==one and one['stamp']!=three['stamp']
    again = run_experiment(e, tmp_path, seeds=1) # the same question: nothing is moved
    assert again['stamp']==one['stamp'] and len([*(tmp_path/'toy').glob('was-*')])==1
    run_experiment(e, tmp_path, seeds=3)
    assert len([*(tmp_path/'toy').glob('was-*')])==2 # each question has one folder, however often one asks


def test_a_damaged_answer_stops_nobody(tmp_path):
    e = experiment()
    run_experiment(e, tmp_path, seeds=1)
    (tmp_path/'toy'/'metrics.json').write_text('{"seeds": ')
    assert run_experiment(e, tmp_path, seeds=1)['seeds']==1


@pytest.mark.parametrize('k,v', [('variants', True), ('scale', 'small'), ('data', True)])
def test_a_record_of_another_question_is_kept(tmp_path, k, v):
    run_experiment(experiment(), tmp_path/'runs', seeds=1)
    save_result('toy', tmp_path/'runs', tmp_path/'kept')
    old = load_result('toy', tmp_path/'kept')
    m = tmp_path/'runs'/'toy'/'metrics.json'
    m.write_text(json.dumps({**old, k: v}))
    save_result('toy', tmp_path/'runs', tmp_path/'kept')
    assert load_result('toy', tmp_path/'kept')[k]==v
    assert json.loads((tmp_path/'kept'/'toy'/f"was-{old['stamp']}"/'metrics.json').read_text())==old
    save_result('toy', tmp_path/'runs', tmp_path/'kept') # the same again replaces its own
    assert len([*(tmp_path/'kept'/'toy').glob('was-*')])==1

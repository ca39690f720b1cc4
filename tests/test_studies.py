"""Pages of results: the answer on top agrees with the record, intervals keep to their range, and what reads
results is tried on invented ones"""
import inspect
import json
import re
from dataclasses import replace
from pathlib import Path
import pytest
import vidlit.studies.register  # noqa: F401 - the studies
from vidlit.lab.experiment import load_result, registered
from vidlit.lab.study import ends, the_metric

ROOT = Path(__file__).resolve().parents[1]
PAGES = [p for p in sorted((ROOT/'nbs'/'studies').glob('[0-9]*.ipynb'))]
RECORDS = sorted(p.parent.name for p in (ROOT/'data'/'results').glob('*/metrics.json'))
# Page without its number -> its record, where the answer on top is the record's headline
ANSWERS = dict(videomae='videomae')


def cells(page): return [(c['cell_type'], ''.join(c['source'])) for c in json.loads(page.read_text())['cells']]


@pytest.mark.parametrize('page', PAGES, ids=lambda p: p.stem)
def test_a_page_begins_with_its_answer(page):
    "A title and at most three sentences; the record, as dots or a table, in the next cells"
    (kind, top), *rest = cells(page)
    title, _, answer = top.partition('\n> ')
    assert kind == 'markdown' and title.startswith('# ') and answer and '\n' not in answer.strip()
    assert 1 <= len(re.findall(r'[.?!](?:\s|$)', answer)) <= 3, answer
    early = [s for k, s in rest[:5] if k == 'code']
    assert any('load_result(' in s for s in early) and any('show_dots(' in s or 'table(' in s for s in early)


@pytest.mark.parametrize('page', PAGES, ids=lambda p: p.stem)
def test_numbers_on_top_are_recorded(page):
    "A percentage or decimal of the answer stands in a record of the page (headline, facts or rounded rows)"
    name = page.stem.partition('_')[2]
    own = dict(pseudo_labels='depth_anything').get(name, name)
    shown = re.findall(r"load_result\('(\w+)'\)", ' '.join(s for k, s in cells(page) if k == 'code'))
    recs = {k: load_result(k) for k in (own, *shown)}
    answer = cells(page)[0][1].partition('\n> ')[2].strip()
    if name in ANSWERS:
        assert answer == recs[own]['headline']
        return
    said = ' '.join(s for r in recs.values() for s in (r['headline'], *(f['text'] for f in r['facts'].values())))
    rows = [v for rec in recs.values() for r in rec['rows'] for v in r.values()]
    values = [v for v in rows if isinstance(v, (int, float)) and not isinstance(v, bool)]
    for number, unit in re.findall(r'(?<![\w.])(\d+(?:\.\d+)?)( %)?', answer):
        digits = len(number.partition('.')[2])
        rounded = {f'{100*v if unit else v:.{digits}f}' for v in values}
        assert number in rounded or re.search(rf'(?<![\d.]){re.escape(number)}(?![\d.])', said), (number, answer)


@pytest.mark.parametrize('name', RECORDS)
def test_recorded_intervals_keep_to_their_range(name):
    rec = load_result(name)
    for r in rec['rows']:
        if ' to ' not in r.get('95 % interval', ''): continue
        (low, high), mean = ends(r), r[the_metric(r)]
        share = {'accuracy', 'test accuracy', 'recall', 'success'} & set(r)
        assert low-.001 <= mean <= high+.001 and low >= 0 and (high <= 1 or not share), r
    for p in rec['paired']:
        share = re.search('accuracy|recall|success', p['metric'])
        assert p['low'] is None or not share or -1 <= p['low'] <= p['high'] <= 1, p


def declared():
    "Every declared study, by name"
    from vidlit.studies import flow, omnimae, pseudo_labels, refiner, splat, stjepa, videomae, vjepa, vjepa2
    from vidlit.studies.videomae_jobs import setups
    from vidlit.studies.vjepa_jobs import setups as jepa_setups
    views = [f'{n}: {v}' for n in ('faithful', 'untrained', 'past/future') for v in ('encoder', 'encoder + predictor')]
    nets = ['student', 'random student', 'teacher', 'student from pixels']
    yield 'videomae', videomae.study(setups['toy'])
    for p in ('attentive', 'linear'):
        yield f'vjepa {p}', vjepa.study(jepa_setups['toy'], p)
        yield f'vjepa2 {p}', vjepa2.study(views, p)
        yield f'stjepa {p}', stjepa.study(nets, p)
    yield 'vjepa few', vjepa.study(jepa_setups['toy'], few=True)
    yield 'vjepa2 three guesses', vjepa2.study(views, measure='recall@3')
    for task in ('place', 'motion'):
        for how in omnimae.hows: yield f'omnimae {task} {how}', omnimae.study(task, how)
    for kind in ('image', 'video'): yield f'omnimae {kind}', omnimae.loss_study(kind)
    for where in ('away', 'home'): yield f'pseudo_labels {where}', pseudo_labels.study(where)
    yield 'flow', flow._study('epe', 'all motions', '')
    for kinds in (('hexplane', 'static'), ('moment', 'hexplane', 'static')):
        yield f'splat {len(kinds)}', splat._study('psnr', '_whole', 'whole image', kinds)
    for what in ('flicker', 'error'): yield f'refiner {what}', refiner.study(what, 'still')


DECLARED = dict(declared())


@pytest.mark.parametrize('name', DECLARED)
def test_declared_studies_keep_to_their_range(name):
    "Scores that scatter at both ends of the range: no interval leaves it; what is at chance says so"
    s = DECLARED[name]
    m = s.metric
    def found(scores): return replace(s, variants={k: lambda res: scores for k in s.variants}).summary({})
    edges = [[0., .01, .5], [1., .99, .4], [0., 0., 0.], [1., 1., 1.]] if m.tries else [[0., .01, 3.], [0., 0., 0.]]
    for scores in edges:
        out = found(scores)
        for r in out['rows']: assert ends(r)[0] >= 0 and (not m.tries or ends(r)[1] <= 1), (scores, r)
        for p in out['paired']: assert not m.tries or -1 <= p['low'] <= p['high'] <= 1, p
    if m.chance is None: return
    assert m.tries
    guess = found([m.chance-.01, m.chance, m.chance+.01])
    assert all(r['at chance'] for r in guess['rows'])
    for f in guess['facts'].values(): assert f['at_chance'] and '(at chance)' in f['text'], f
    sure = found([.97, .98, .99])
    assert not any(r['at chance'] for r in sure['rows']) and not any(f['at_chance'] for f in sure['facts'].values())
    assert not s.told or f'chance {100*m.chance:.3g} %' in guess['headline']


def invented(**variants):
    "Results of three seeds that differ by a point"
    one = {(a, n): t for a, v in variants.items() for n, t in v.items()}
    return {f'finetune/{a}/{n}/seed{s}': dict(test=t+.01*s, pairs=[int(50*t), 50]) for (a, n),
        t in one.items() for s in range(3)}


class TestVideoMAE:
    def study(self):
        from vidlit.studies.videomae import study
        from vidlit.studies.videomae_jobs import setups
        return study(setups['toy'])

    def results(self):
        res = invented(pretrained={64: .65, 256: .7}, scratch={64: .3, 256: .1})
        for s in range(3):
            for k, v in list(res.items()):
                if k.endswith(f'seed{s}'): v['curve'] = [[10, .9*v['test']], [20, v['test']]]
            res[f'finetune/document mask/256/seed{s}'] = dict(test=.5+.01*s)
            long = dict(pretrained=.8+.03*s, scratch=.85-.03*s)
            res |= {f'finetune/{a}, 3x steps/256/seed{s}': dict(test=t) for a, t in long.items()}
        return res

    def test_what_is_said(self):
        found = self.study().summary(self.results())
        assert found['headline'] == ('Pretraining saves fine-tuning steps; final accuracy is undecided. '
            'With 256 labels and 500 steps: pretrained 71 %, scratch 11 % (chance 12.5 %).')
        facts = {k: (f['supports'], f['at_chance']) for k, f in found['facts'].items()}
        assert facts == dict(labels=(True, True), patience=(None, False), frames=(False, False))
        assert 'from scratch 11 % (at chance)' in found['facts']['labels']['text']
        rows = {r['variant']: r for r in found['rows']}
        assert rows['scratch, 256 labels']['scores'] == [.1, .11, .12] and rows['scratch, 256 labels']['at chance']
        assert {(p['a'], p['b']) for p in found['paired']} >= {('pretrained, 64 labels', 'scratch, 64 labels')}

    def test_labels_saved(self):
        from vidlit.studies.videomae import _saved
        got = {'scratch, 64 labels': [.3], 'scratch, 256 labels': [.6]}
        got |= {'pretrained, 64 labels': [.65], 'pretrained, 256 labels': [.7]}
        assert 'with 64 labels the pretrained network has what 256 labels give' in _saved(got)['saved']['text']
        assert 'no number of labels' in _saved(got | {'scratch, 256 labels': [.9]})['saved']['text']

    def test_steps_saved(self):
        from vidlit.studies.videomae import _steps
        res = self.results()
        assert _steps(res, 256, True)['steps'] | dict(text='') == dict(text='', supports=True, at_chance=True)
        assert '(at chance)' in _steps(res, 256, True)['steps']['text']
        same = res | {f'finetune/pretrained/256/seed{s}': res[f'finetune/scratch/256/seed{s}'] for s in range(3)}
        assert _steps(same, 256, False)['steps']['supports'] is False  # not sooner than scratch itself

    def test_controls(self):
        from vidlit.studies.videomae import _controls
        coin = dict(test=.2, pairs=[25, 50])
        res = self.results() | {f'finetune/{v}/256/seed{s}': coin for s in range(3) for v in ('one frame', 'shuffled')}
        assert [(o['accuracy'], len(o['scores'])) for o in _controls(res, 256)] == [(.7, 3), (.5, 3), (.5, 3)]

    def test_other_sizes(self):
        from vidlit.studies.videomae import study
        from vidlit.studies.videomae_jobs import setups
        assert study(replace(setups['toy'], ft_steps=6)).setting == 'With 256 labels and 6 steps'


@pytest.mark.parametrize('name', sorted(registered()))
def test_the_arguments_of_every_job_are_those_of_its_function(name):
    "A renamed argument would be seen only when the job runs, after hours of others"
    e = registered(name)
    for j in e.jobs('toy', range(1), variants=True, data='videos' if e.takes_data else None):
        inspect.signature(j.load()).bind(None, **json.loads(json.dumps(j.args)))

"What reads the results of each study, tried on invented ones (pages of results show recorded numbers alone)"
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
import PIL.Image
import torch
from fastcore import test as check
from safetensors.torch import save_file
from vidlit.depth.windows import n_windows
from vidlit.studies.chunks_jobs import measure_video


def test_videomae_v2():
    from vidlit.studies.videomae_v2 import _clock_facts, loss_study, study
    from vidlit.studies.videomae_v2_jobs import setups2
    fake = {f'finetune/{k}/seed{s}': dict(test=a+.01*s) for k,
        a in dict(V2=.7, VideoMAE=.6, scratch=.2).items() for s in range(3)}
    asked = study(setups2['toy'])
    probed = {'probe/V2/seed0': dict(linear=dict(test=.3), attentive=dict(test=.4))}
    check.test_eq(list(asked.scores(fake | probed)), ['V2, fine-tuned', 'VideoMAE, fine-tuned', 'scratch, fine-tuned',
        'V2, frozen, linear probe', 'V2, frozen, attentive probe'])
    fake |= {f'pretrain/{k}/seed{s}': dict(held=v+.001*s, seconds=20*v) for k,
        v in dict(V2=.9, VideoMAE=.92).items()
        for s in range(3)} | {'clock/headline': dict(time=dict(V2=.8), kept=dict(V2=.7))}
    def facts(res): return asked.summary(res)['facts'] | loss_study().summary(res)['facts'] | _clock_facts(res)
    found = facts(fake)
    check.test_eq([found[k]['supports'] for k in ('equal', 'scratch', 'step', 'loss', 'time')], [True]*5)
    slow = fake | {f'pretrain/V2/seed{s}': dict(held=.9, seconds=30.) for s in range(3)}
    check.test_eq(facts(slow)['time']['supports'], False) # not the same time
    level = fake | {f'finetune/scratch/seed{s}': dict(test=.125) for s in range(3)}
    assert 'scratch 12 % (at chance)' in facts(level)['scratch']['text']


def test_omnimae():
    from vidlit.studies.omnimae import _over, loss_study, study
    fake = {f'probe/place/{a}/seed{s}': dict(linear=dict(test=.4+.3*i+.01*s)) for i,
        a in enumerate(('untrained', 'joint')) for s in range(3)}
    fake |= {f'pretrain/{a}/seed{s}': dict(held=dict(image=v+.001*s)) for a,v in dict(joint=.9, images=.8).items()
        for s in range(3)}
    found = study('place', 'linear').summary(fake)
    check.test_eq({k: o['supports'] for k,o in found['facts'].items()}, dict(place_pretrained_linear=True))
    check.test_eq([o['at chance'] for o in found['rows']], [False, False])
    lost = loss_study('image').summary(fake)['facts']
    check.test_eq({k: o['supports'] for k,o in lost.items()}, dict(loss_stills_specialist=False))
    xs,mean,lo,hi = _over([[[1., 3., 5.], [.9, .8, .7]], [[2., 4.], [.8, .6]]])
    check.test_eq(xs, [1., 3.])
    check.test_close(mean, [.85, .7])


def test_vjepa():
    from vidlit.studies.vjepa import first_reach, main_variants, pixel_models, probed, setups, summary
    fake = {f'probe/{w}/{a}/seed{s}': {'9': {'linear': .3+.1*s, 'attentive': .4}} for w in ('end', 'snapshot5')
        for a in ('V-JEPA', 'untrained') for s in range(2)}
    check.test_eq(probed(fake, 'V-JEPA', 9, 'linear'), [.3, .4])
    check.test_eq(probed(fake, 'V-JEPA', 9, at=5), [.4, .4])
    check.test_eq(first_reach({0: [.3, .3], 10: [.5, .3], 20: [.6, .4]}, [.45, .5]), [10, None])
    r = replace(setups['toy'], snapshots=(2,), steps=4)
    level = dict(zip(('untrained', *main_variants, *pixel_models), (.35, .42, .40, .39, .35, .40, .43)))
    res = {f'train/{a}/seed{s}': dict(steps=4, seconds=8., flagged=3 if a=='no stop' else None, setup=asdict(r),
        health=[dict(step=i, feature_std=.5, effective_rank=9.) for i in range(3)]) for a in level for s in range(3)}
    res |= {f'probe/{w}/{a}/seed{s}': {str(n): dict(linear=v, attentive=v+.01*s) for n in r.labels}
        for w in ('end', 'snapshot2') for a,v in level.items() for s in range(3)}
    out = summary(res, Path(tempfile.mkdtemp()))
    check.test_eq([out['facts'][k]['supports'] for k in ('pixels', 'plain', 'healthy', 'nostop')],
        [True, False, True, True])


def test_vjepa2():
    from vidlit.studies.vjepa2 import shape_studies, study, variants_of
    toy = {f'probe/{n}/seed{s}': {
        v: dict(attentive={'recall@1': x+s/100, 'recall@3': .5}, linear={'recall@1': .1, 'recall@3': .3})
        for v in ('encoder', 'encoder + predictor')}
        for n,x in (('faithful', .4), ('untrained', .3)) for s in (0, 1)}
    check.test_eq(list(variants_of(toy)),
        ['faithful: encoder', 'faithful: encoder + predictor', 'untrained: encoder', 'untrained: encoder + predictor'])
    found = study(variants_of(toy)).summary(toy)
    check.test_eq((found['facts']['untrained']['supports'], found['facts']['untrained']['at_chance']), (True, False))
    linear = study(variants_of(toy), 'linear').summary(toy)
    check.test_eq((linear['facts'], {r['at chance'] for r in linear['rows']}), ({}, {True}))
    errors = {(p, s): [v, v+.01] for p,d in (('rotation', .1), ('fixed positions', .3)) for s,
        v in (('as trained', .5), ('twice as wide', .5+d))}
    check.test_eq(shape_studies(errors)[0].summary({})['facts']['rope_wide']['supports'], True)


def test_world_model():
    from vidlit.studies.world_model import readings, study
    fake = dict(forced=.5, still=1., rolled=[.5, .8], still_rolled=[1., 1.], where=[.1, .2], where_still=[.2, .4],
        where_true=[.1, .1],
        action=dict(chosen=.1, nearest=.05, random=.4))
    res = {f'score/{a}/2d/seed{s}': dict(held=fake | dict(forced=.5+.1*(a == 'blind')+.01*s), test=fake)
        for a in ('told', 'blind') for s in range(3)}
    one = study('one step ahead, features').summary(res)
    check.test_eq([c['b'] for c in one['paired']], ['blind', 'nothing changes'])
    check.test_eq({k: o['supports'] for k,o in one['facts'].items()}, dict(action=True, still=True))
    assert one['facts']['action']['text'].startswith('one step ahead, features: told against blind (difference -0.100')
    last = study('action of least energy, metres from the true one').summary(res)
    check.test_eq((last['paired'][1]['b'], last['facts']['energy']['supports']), ('an action at random', True))
    other = [study(k, 'test').summary(res) for k in readings]
    check.test_eq([o['paired'] for o in other], [[]]*5)
    check.test_eq(other[0]['rows'][0]['variant'], 'told, other textures')


def test_planner():
    from vidlit.studies.planner import _curves, _facts, _film, _pm, _row, _winner, study
    check.test_eq(_pm([.5]), '0.50')
    def made_up(k, n=8): # k of n tasks reached
        return dict(hits=(k, n), success=k/n, ever=1., final=1-k/n, steps=3., turned=.1, seconds=.02, off=[1., 1-k/n])
    variants = {a: [made_up(k), made_up(k+1)] for a,
        k in {'planner': 6, 'random': 0, 'document': 3, 'new textures': 4, 'horizon 1': 7}.items()}
    rides = {f'ride/2d/seed{s}': {k: v[s] for k,v in variants.items() if k!='horizon 1'} for s in range(2)}
    rides |= {f'variant horizon 1/2d/seed{s}': v for s,v in enumerate(variants['horizon 1'])}
    found = study(list(variants), 2).summary(rides)['paired']
    check.test_eq([(c['a'].split(',')[0], c['b'].split(',')[0]) for c in found],
        [('planner', 'random'), ('planner', 'document'), ('planner', 'new textures'), ('horizon 1', 'planner')])
    check.test_eq([c['difference'] > 0 for c in found], [True]*4)
    row = _row('planner', 2, variants['planner'])
    check.test_eq((row['success'], row['tasks'], row['ms a plan'][:4]), (.812, 16, '20.0'))
    def tried(last): # Success at the largest budget, by search and seed
        return {f'curve/2d/seed{s}': dict(budgets=[8, 128],
            curves={k: [dict(success=.1), dict(success=v[s])] for k,v in last.items()}) for s in range(2)}
    clear,open_ = tried({'cross-entropy': (.8, .9), 'shooting': (.5, .6),
        'gradient': (.4, .5)}),tried({'cross-entropy': (.8, .3), 'shooting': (.5, .5), 'gradient': (.4, .5)})
    check.test_eq([_winner(o, 2)['text'].split('second: ')[1] for o in (clear, open_)],
        ['cross-entropy is higher', 'undecided'])
    check.test_eq(_curves(clear, 2)['gradient'][:2], ([8, 128], [.1, .45]))
    with tempfile.TemporaryDirectory() as tmp:
        at = Path(tmp)/'jobs/ride/2d/seed0'
        at.mkdir(parents=True)
        # brighter with every action
        film = (80*torch.arange(3, dtype=torch.uint8))[:, None, None].expand(2, 3, 3, 8, 8).contiguous()
        save_file(dict(film=film, goal=film[:, :, 0].contiguous()), at/'film.safetensors')
        gif = PIL.Image.open(Path(tmp)/_film(tmp, 2, [True, False])['file'])
        first = gif.convert('RGB')
        gif.seek(2)
    edge = [max(range(3), key=lambda k: first.getpixel((x, 0))[k]) for x in (4, first.width-4)]
    # rests at the end; the first ride has a green border, the second a red one
    check.test_eq((gif.n_frames, gif.info['duration'], edge), (3, 5*500, [1, 0]))
    def found(variants): # Results of two seeds in which these variants drove
        rides = {f'ride/2d/seed{s}': {k: v[s] for k,v in variants.items()} | dict(alone=.05) for s in range(2)}
        return rides | {f'land/2d/seed{s}': dict(median=.1, chance=.4, n=5) for s in range(2)}
    facts = _facts(found(variants), 2)
    check.test_eq({k: o['supports'] for k,o in facts.items()},
        dict(reach2=True, document2=True, landscape2=True, time2=None, textures2=None) | {'horizon 12': None})
    lazy = variants | {'planner': variants['document']}
    check.test_eq([_facts(found(o), 2)['reach2']['supports']
        for o in (lazy, variants | {'random': variants['document']})],
        [False, False])
    check.test_eq(_facts(found(lazy), 2)['document2']['supports'], None) # as good as each other


def test_stjepa():
    from vidlit.studies.stjepa import _names, study
    check.test_eq(_names({'probe/a/seed0': 1, 'probe/a/seed1': 1, 'probe/b/seed0': 1, 'clock/seed0': 2}), ['a', 'b'])
    fake = {f'probe/{n}/seed{s}': dict(linear=dict(test=t+.02*s)) for s in range(2) for n,
        t in {'student': .6, 'random student': .2, 'student, orthogonal': .6}.items()}
    found = study(_names(fake)).summary(fake)
    check.test_eq({k: o['supports'] for k,o in found['facts'].items()}, dict(learns=True, projection=None))
    check.test_eq({p['b']: p['difference'] for p in found['paired']}['random student, linear probe'], .4)


def test_pseudo_labels():
    from vidlit.studies.pseudo_labels import errors, here_variants, summary
    def pretend(level, n=3):
        "Results with the errors of `level` away, a third of them at home"
        def one(v, s): return dict(home=dict(abs_rel=v/3), away=dict(abs_rel=v+.001*s), loss=[[10, 20], [1., .5+.1*s]])
        res = {f'train/{a}/seed{s}': one(v, s) for a,v in level.items() for s in range(n)}
        conf = {'plain': dict(rank=-.2, above=5), 'document': dict(rank=.1, above=0)}
        return res | {f'labels/{k}/seed{s}': dict(kept=16, conf=.5, error=.1, **o) for k,
            o in conf.items() for s in range(n)}
    fake = pretend({'student': .15, 'labelled only': .2, 'teacher': .15, 'no storm': .18, 'document': .3})
    check.test_eq(errors(fake, 'student'), [.15, .151, .152])
    check.test_eq(here_variants(fake), ['student', 'labelled only', 'teacher', 'no storm', 'document'])
    root = Path(tempfile.mkdtemp())
    out = summary(fake, root)
    f = out['facts']
    check.test_eq({k: f[k]['supports']
        for k in ('student', 'teacher', 'storm', 'document', 'confidence_plain', 'confidence_document')},
        dict(student=True, teacher=None, storm=True, document=False, confidence_plain=True, confidence_document=False))
    check.test_eq('cutmix' in f, False)
    check.test_eq([(root/o['file']).exists() for o in out['figures']], [True, True])
    check.test_eq(out['paired'][0]['verdict'], 'labelled only is higher')
    check.test_eq(len(summary(pretend({'student': .1, 'labelled only': .2, 'teacher': .1}, 1), root)['figures']), 1)


def test_video_depth():
    from vidlit.studies.video_depth import averages, facts_of, rival, summary, values, variants
    _own = {*variants, 'head alone'} # Judged by their own jobs
    def pretend(level, n=3):
        "Results with (AbsRel, TAE, flicker) of `level`"
        def kinds(e, t, f, s):
            both = dict(abs_rel=e+.001*s, tae=t, tae_published=t+3, delta1=.5)
            return dict(still=both | dict(flicker=f/100), moving=both)
        res = {f'test/seed{s}': dict(variants={a: kinds(*v, s) for a,v in level.items() if a not in _own}, slices=None)
            for s in range(n)}
        loss = dict(loss=[[10, 20], [3., 2.]])
        return res | {f'train/{a}/seed{s}': loss | {k: kinds(*v, s) for k in ('offline', 'stream')} for a,
            v in level.items() if a in _own for s in range(n)} | {
            f'{k}/seed{s}': loss for k in ('images', 'train/video') for s in range(n)}
    fake = pretend({'image model': (.2, 2., 4.), 'smoothed': (.2, 1.9, 4.), 'average 0.5': (.2, 1.5, 3.),
        'average 0.9': (.23, .4, 1.), 'average level 0.5': (.21, 1.4, 2.8),
        'video': (.2, 1., 2.), 'stream': (.22, 1.2, 2.5), 'no TGM': (.2, 1.6, 3.), 'modules alone': (.19, .9, 1.9),
        'head alone': (.19, 1.8, 3.5)})
    check.test_eq((averages(fake, False), averages(fake, True)),
        (['average 0.5', 'average 0.9'], ['average level 0.5']))
    check.test_close(rival(fake, 'flicker'), [3.]*3)
    check.test_close(rival(pretend({'image model': (.2, 2., 4.), 'average 0.5': (.21, 1., 1.), 'video': (.19, 1., 2.)}),
        'flicker'), [4.]*3)
    check.test_close(values(fake, 'modules alone', 'tae'), [.9]*3)
    f = facts_of(fake)
    check.test_eq({k: f[k]['supports']
        for k in ('stills_flicker', 'average_flicker', 'average_tae', 'stream_abs_rel', 'tgm_tae', 'bar_flicker',
        'bar_abs_rel')},
        dict(stills_flicker=True, average_flicker=True, average_tae=True, stream_abs_rel=False, tgm_tae=True,
        bar_flicker=True, bar_abs_rel=True))
    check.test_eq(facts_of(pretend({'image model': (.2, 2., 4.), 'video': (.21, 1.5, 2.9)}))['bar_flicker']['supports'],
        False)
    check.test_eq('rotary_tae' in f, False)
    root = Path(tempfile.mkdtemp())
    out = summary(fake, root)
    check.test_eq([(root/o['file']).exists() for o in out['figures']], [True]*4)
    check.test_eq({p['b']: p['verdict'] for p in out['paired'] if p['metric']=='flicker, %'}['best average'],
        'best average is higher')
    check.test_eq(len(summary(pretend({'image model': (.2, 2., 4.), 'average 0.5': (.2, 1., 2.),
        'average level 0.5': (.2, 1., 2.), 'video': (.2, 1., 2.)}, 1), root)['figures']), 4)


def test_chunks():
    from vidlit.studies.chunks import facts_of, summary
    class Silent:
        def tick(self, *a): pass
    res = {f'scale drift/seed{s}': measure_video(Silent(), 'scale drift', s, 80, 2, 16, 28) for s in range(2)}
    f = facts_of(res)
    check.test_eq(tuple(f[k]['supports'] for k in ('frames','dealt_moods','seam_moods','smooth_moods')),
        (True, True, True, False))
    one = res['scale drift/seed0']
    check.test_eq((one['twice'], one['windows'], one['windows_one']),
        (16, 2*n_windows(48), n_windows(80)))
    root = Path(tempfile.mkdtemp())
    out = summary(res, root)
    check.test_eq([(root/o['file']).exists() for o in out['figures']], [True]*2)

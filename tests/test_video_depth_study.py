"""The study of depth over time beyond its lessons: the whole command at a size of seconds, fair rivals, kills, and
the kept toy model"""
import json
import multiprocessing as mp
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
import pytest
import torch
from safetensors.torch import load_file
from vidlit.depth.temporal_head import VideoDepth
from vidlit.depth.video_depth_weights import config_from_json
from vidlit.lab.jobs import read_result, run_job
from vidlit.studies import video_depth as R, video_depth_jobs as S
from vidlit.video.pixels import normalise

ROOT = Path(__file__).resolve().parents[1]
TOY = ROOT/'data'/'models'/'toy'
TINY = replace(S.setups['toy'], size=16, patch=4, dim=24, features=8, out=(8, 8, 16, 16), heads=2, groups=4,
    length=34, images=12, videos=4, n_test=3,
    image_steps=3, image_bs=4, time_steps=3, time_bs=2, keeps=(.5, .9))
fork = mp.get_context('fork')


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "All jobs of one seed, variants too, by the command"
    from vidlit.lab.reproduce import reproduce
    out, was = tmp_path_factory.mktemp('study'), S.setups['toy']
    S.setups['toy'] = TINY
    try: m, = reproduce(['video_depth'], out, seeds=1, device='cpu', workers=1, variants=True, quiet=True)
    finally: S.setups['toy'] = was
    return out/'video_depth', m


def weights(run, key): return load_file(run[0]/'jobs'/key/'seed0'/'model.safetensors')


def test_the_command_writes_everything(run):
    root, m = run
    variants = [r['variant'] for r in m['rows']]
    assert {'image model', 'video', 'stream', 'smoothed', 'head alone'} <= set(variants)
    assert {'average 0.5', 'average level 0.9'} <= set(variants)
    assert {'modules alone', 'document, stream', 'no noise, video'} <= set(variants)
    assert (all((root/f['file']).stat().st_size > 500 for f in m['figures'])
        and {'flicker.png', 'tae.png', 'slices.png'} <= {f['file'] for f in m['figures']})
    assert {'bar_flicker', 'fair_bar_tae', 'average_tae', 'stream_abs_rel', 'tgm_tae', 'clear_flicker',
        'document_abs_rel'} <= set(m['facts'])
    assert all(f['supports'] is None for f in m['facts'].values())  # one seed decides nothing
    json.dumps(m, allow_nan=False)


def test_the_rival_is_the_model_that_the_modules_stand_on(run):
    still, video = weights(run, 'images'), weights(run, 'train/modules alone')
    assert all(video[f'image.{k}'].equal(v) for k, v in still.items())
    assert any(not v.equal(torch.zeros_like(v)) for k, v in video.items() if 'proj_out.weight' in k)


def test_what_learns_in_each_variant(run):
    still = weights(run, 'images')
    what = {'video': (True, True), 'head alone': (False, True), 'modules alone': (True, False),
        'no TGM': (True, True), 'document': (True, True)}
    for variant, (time_learns, head_learns) in what.items():
        w = weights(run, f'train/{variant}')
        assert any(bool(v.any()) for k, v in w.items() if k.endswith('proj_out.weight')) == time_learns, variant
        moved = any(not w[f'image.{k}'].equal(v) for k, v in still.items() if k.startswith('head.'))
        assert moved == head_learns, variant
        assert all(w[f'image.{k}'].equal(v) for k, v in still.items() if k.startswith('encoder.')), variant
    assert not any(k.endswith('.pe') for k in weights(run, 'train/rotary'))


def test_silent_modules_are_the_image_model(run):
    model = S.video_model(TINY, run[0]/'jobs'/'train/head alone'/'seed0')
    film = normalise(S.test_videos(TINY, 7)['moving'][0][1])
    alone = S.one_by_one(model.image, film)
    assert (S.streamed(model, film)-alone).abs().max() < 1e-5
    again = S.offline(model, film)  # windows are brought to one scale by a fit, which does nothing here
    assert (again-alone).abs().max() < 1e-4*alone.abs().max().clamp(min=1)


def test_seeds_share_no_world():
    a, b = S.video_data(TINY, 0), S.video_data(TINY, 1)
    assert not {o.numpy().tobytes() for o in a['images']} & {o.numpy().tobytes() for o in b['images']}
    clips = lambda s: {c.numpy().tobytes() for v in S.test_videos(TINY, s).values() for w, _ in v for c in w.clip}
    assert len(clips(0)) == 6 and not clips(0) & clips(1)
    assert S.test_videos(TINY, 3)['still'][0][1].equal(S.test_videos(TINY, 3)['still'][0][1])


def _train(root, setup, jobs):
    torch.set_num_threads(1)
    for j in jobs: run_job(j, root)


def test_a_killed_training_goes_on_to_the_same_bits(tmp_path):
    setup = replace(TINY, time_steps=64)  # a checkpoint after 50
    # the last, and what it needs
    jobs = [j for j in S._headline(setup, 5) if j.key.startswith(('data/', 'images/', 'train/video/'))]
    assert len(jobs) == 3 and jobs[-1].key.startswith('train/video/')
    _train(tmp_path/'whole', setup, jobs)
    p = fork.Process(target=_train, args=(tmp_path/'killed', setup, jobs))
    p.start()
    at = tmp_path/'killed'/'train/video'/'seed5'/'ckpt'
    for _ in range(3000):
        if list(at.glob('step-*')): break
        time.sleep(.02)
    os.kill(p.pid, signal.SIGKILL)
    p.join()
    assert read_result(jobs[-1], tmp_path/'killed') is None and list(at.glob('step-*'))
    _train(tmp_path/'killed', setup, jobs)
    one, two = (load_file(tmp_path/o/'train/video'/'seed5'/'model.safetensors') for o in ('whole', 'killed'))
    assert all(v.equal(two[k]) for k, v in one.items())


def test_averages_of_one_decay_are_filters():
    x = torch.rand(2, 9, 4, 4, generator=torch.Generator().manual_seed(0))
    y = S.average(x, .7)
    slow = torch.stack([sum(.3*.7**(i-j)*x[:, j] for j in range(1, i+1))+.7**i*x[:, 0] for i in range(9)], 1)
    assert (y-slow).abs().max() < 1e-6
    assert not S.average(x, .7, level=True).allclose(y)


def test_the_rival_may_not_be_worse():
    def res(**variants):
        kinds = lambda e, t: dict(still=dict(abs_rel=e, tae=t, flicker=t/100), moving=dict(abs_rel=e, tae=t))
        return {'test/seed0': dict(variants={k: kinds(*v) for k, v in variants.items()})}
    wrong = res(**{'image model': (.2, 4.), 'average 0.5': (.2, 3.), 'average 0.9': (.3, .1), 'video': (.2, 2.)})
    assert R.rival(wrong, 'tae') == [3.] and R.rival(wrong, 'flicker') == [3.]
    assert R.facts_of(wrong)['average_tae']['supports'] is None
    assert R.facts_of(res(**{'image model': (.2, 4.)}, video=(.2, 2.)))['bar_tae']['text'].count('0.500') == 1


@pytest.mark.skipif(not (TOY/'recipe.json').exists(), reason='no toy weights here')
def test_the_kept_toy():
    recipe = json.loads((TOY/'recipe.json').read_text())
    assert {'about', 'command', 'seed', 'steps', 'results', 'size'} <= set(recipe)
    assert (TOY/'model.safetensors').stat().st_size < 5e6
    cfg = config_from_json(json.loads((TOY/'config.json').read_text()))
    assert (cfg.slots, cfg.metric, cfg.image.head.patch) == (32, False, 14)
    model = VideoDepth.from_pretrained(TOY).eval()
    x = torch.rand(1, 3, 3, 56, 70, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(): d = model(normalise(x))
    assert (d.shape == (1, 3, 56, 70) and d.dtype == torch.float32 and d.isfinite().all() and d.min() >= 0
        and d.std() > 0)

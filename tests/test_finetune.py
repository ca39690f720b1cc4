"""Fine-tuning as a newcomer does it: the lines of the first page on forty clips, splits, refusals, going on."""
import contextlib
import inspect
import json
import re
from pathlib import Path
import pytest
import torch
from shell import here
from vidlit.pretrain.finetune_videos import finetune_videos, predict_video, scores, video_classifier, video_splits
from vidlit.pretrain.videomae import VideoMAEClassifier
from vidlit.video.clips import item_gen
from vidlit.video.writing import write_video

README = Path(__file__).resolve().parents[1]/'README.md'
named = pytest.mark.skipif('labels' not in inspect.signature(VideoMAEClassifier.__init__).parameters,
    reason='classifiers have no names for their classes yet')
TINY = dict(init='videomae_tiny', size=(4, 16, 16), bs=4, lr=3e-3, layer_decay=1., sampling='strided', stride=1)


def crossing(path, right, seed, n=24, size=40):
    "A bright square that crosses a noisy scene"
    gen = item_gen(seed)
    frames = torch.rand(1, size, size, 3, generator=gen).expand(n, -1, -1, -1)*.4
    x, y = (torch.rand(2, generator=gen)*(size-14)).long().tolist()
    frames = frames.clone()
    for i in range(n):
        at = (x+2*i*(1 if right else -1)) % (size-10)
        frames[i, y:y+10, at:at+10] = .9
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, (frames*255).byte(), fps=12)


def plain(path, level, n=8):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = torch.rand(n, 24, 32, 3, generator=item_gen(level))*30
    write_video(path, (noise+level).byte(), fps=8)
    return path


@pytest.fixture(scope='module')
def videos(tmp_path_factory):
    d = tmp_path_factory.mktemp('finetune')/'videos'
    for i in range(16): plain(d/('dark', 'light')[i % 2]/f'{i:02}.mp4', (30, 180)[i % 2]+i)
    return d


@named
def test_the_lines_of_the_first_page_on_forty_clips(tmp_path, capsys, monkeypatch):
    from transformers import pipeline, video_processing_utils as u
    if not u.is_torchcodec_usable(decode='video'): # its decoder; PyAV, as transformers itself drives it
        monkeypatch.setattr(u.BaseVideoProcessor, 'fetch_videos', lambda self, urls, sample_indices_fn=None: zip(*[
            u.load_video(o, backend='pyav', sample_indices_fn=sample_indices_fn) for o in urls]))
    block = next(b for b in re.findall(r'```python\n(.*?)```', README.read_text(), re.S) if 'finetune_videos' in b)
    assert len([l for l in block.splitlines() if l.strip()]) <= 10
    for i in range(40): crossing(tmp_path/'videos'/('left', 'right')[i % 2]/f'{i:02}.mp4', i % 2, i)
    crossing(tmp_path/'new.mp4', True, 99)
    small = "init='videomae_tiny', size=(8, 32, 32), lr=2e-3, layer_decay=1."
    block, n = re.subn(r"init='[^']*'(.*)epochs=20", small+r'\1epochs=16', block)
    assert n == 1
    out = {}
    with contextlib.chdir(tmp_path): exec(block, out)
    assert out['run'].best['accuracy'] >= .9 and out['run'].labels == ['left', 'right']
    assert pipeline('video-classification', str(tmp_path/'mine'))(str(tmp_path/'new.mp4'))[0]['label'] == 'right'
    assert predict_video(out['model'], tmp_path/'new.mp4')[0]['label'] == 'right'
    assert "'right'" in capsys.readouterr().out


@named
def test_stopped_it_goes_on_to_the_same_weights(videos, tmp_path):
    whole = finetune_videos(videos, out=tmp_path/'whole', epochs=3, every=2, **TINY)
    def stop(row):
        if row['epoch'] == 2: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        finetune_videos(videos, out=tmp_path/'twice', epochs=3, every=2, report=stop, **TINY)
    assert not (tmp_path/'twice'/'metrics.json').exists()
    again = finetune_videos(videos, out=tmp_path/'twice', epochs=3, every=2, **TINY)
    assert again.rows == whole.rows and again.best == whole.best
    a, b = (VideoMAEClassifier.from_pretrained(r.model).state_dict() for r in (whole, again))
    assert all(torch.equal(a[k], b[k]) for k in a)
    with pytest.raises(ValueError, match='holds a run with epochs 3, not 4'):
        finetune_videos(videos, out=tmp_path/'twice', epochs=4, every=2, **TINY)


@named
def test_the_command_trains_tests_and_predicts(videos, tmp_path, monkeypatch, capfd):
    for s in ('train', 'val', 'test'):
        for i in range(4): plain(tmp_path/'own'/s/('dark', 'light')[i % 2]/f'{i}.mp4', (30, 180)[i % 2]+i)
    monkeypatch.chdir(tmp_path)
    small = '--init videomae_tiny --frames 4 --size 16 --bs 2 --epochs 2 --lr .003 --layer-decay 1'.split()
    r = json.loads(here(monkeypatch, capfd, 'finetune', 'own', '--out', 'run', *small, '--json').stdout)
    assert r['classes'] == ['dark', 'light'] and 'test accuracy' in r and r['unreadable'] == []
    p = here(monkeypatch, capfd, 'predict', 'run/best', 'own/test/dark/0.mp4', '--json')
    answers = json.loads(p.stdout)[0]['answers']
    assert {o['label'] for o in answers} == {'dark', 'light'} and abs(sum(o['score'] for o in answers)-1) < 1e-3
    bad = here(monkeypatch, capfd, 'finetune', 'own', '--out', 'run2', *small, '--augment', 'heavy')
    assert bad.returncode == 2 and "'heavy'" in bad.stderr


def test_splits_are_the_folders_own(tmp_path):
    for s in ('train', 'val', 'test'):
        for k in ('a', 'b'): plain(tmp_path/'own'/s/k/f'{s}.mp4', 50)
    got = video_splits(tmp_path/'own')
    names = {k: {Path(p).stem for p in v.paths} for k, v in got.items()}
    assert names == dict(train={'train'}, valid={'val'}, test={'test'})
    assert {tuple(v.vocab) for v in got.values()} == {('a', 'b')}


def test_lists_as_videomae_reads_them(tmp_path):
    for n in 'pqrs': plain(tmp_path/f'{n}.mp4', 50)
    (tmp_path/'train.csv').write_text('p.mp4 0\nq.mp4 1\n')
    (tmp_path/'val.csv').write_text('r.mp4 1\n')
    (tmp_path/'labels.txt').write_text('walk\nrun\n')
    got = video_splits(tmp_path)
    assert (got['valid'].vocab, got['valid'].labels) == (['walk', 'run'], [1])
    (tmp_path/'labels.txt').write_text('walk\n')
    with pytest.raises(ValueError, match='names 1 classes, the lists have 2'): video_splits(tmp_path)
    (tmp_path/'labels.txt').write_text('walk\nrun\n')
    (tmp_path/'val.csv').write_text('r.mp4 -1\n')
    with pytest.raises(ValueError, match='no label'): video_splits(tmp_path)


def test_a_test_split_is_not_trained_on_nor_chosen_by(tmp_path):
    for i in range(10): plain(tmp_path/'v'/'train'/('a', 'b')[i % 2]/f'{i}.mp4', 50+i)
    for k in ('a', 'b'): plain(tmp_path/'v'/'test'/k/'t.mp4', 50)
    got = video_splits(tmp_path/'v')
    sets = [{str(p) for p in v.paths} for v in got.values()]
    assert set(got) == {'train', 'valid', 'test'} and len(set.union(*sets)) == sum(map(len, sets)) == 12
    assert {Path(p).stem for p in got['test'].paths} == {'t'}


def test_what_cannot_be_trained_is_refused(videos, tmp_path):
    plain(tmp_path/'one'/'a'/'0.mp4', 50)
    with pytest.raises(ValueError): video_splits(tmp_path/'one')
    plain(tmp_path/'loose'/'0.mp4', 50)
    with pytest.raises(ValueError): video_splits(tmp_path/'loose')
    (tmp_path/'mine').mkdir()
    (tmp_path/'mine'/'thesis.txt').write_text('x')
    with pytest.raises(ValueError, match='holds other things'): finetune_videos(videos, out=tmp_path/'mine', **TINY)
    with pytest.raises(ValueError, match='epochs must be'): finetune_videos(videos, out=tmp_path/'o', epochs=0, **TINY)
    with pytest.raises(ValueError, match='videomae_tiny'): video_classifier('nobody-there', ['a', 'b'])


def test_scores_of_many_classes():
    logit = torch.eye(8)[[0, 1, 2, 3]]*5
    got = scores(logit, torch.tensor([0, 1, 2, 4]))
    assert got['accuracy'] == .75 and got['top5'] >= .75
    assert got['class_accuracy'] == .75

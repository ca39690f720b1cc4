"""Targets: teachers of every layout, maps, byte-exact caches, kills, damaged videos, the three commands end to end."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
import pytest
import torch
from hypothesis import given, settings, strategies as st
import vidlit.cli.stjepa  # noqa: F401 (puts its commands into the app)
from vidlit.cli.app import app, run_app
from vidlit.floor.store import CacheMismatch, StoreError
from vidlit.nn.vit import ViT, ViTConfig
from vidlit.pretrain import token_targets as tt
from vidlit.pretrain.ssv2 import cache_bytes, estimate, find_videos, present, ssv2
from vidlit.pretrain.target_cache import CachedPairs, ClipSpec, TargetCache, pair_dls, read_clip
from vidlit.pretrain.videomae import VideoMAE, VideoMAEConfig
from vidlit.video.reader import write_video

SPEC = ClipSpec(4, 16, patch=(2,8,8))
CFG = VideoMAEConfig(ViTConfig(dim=24, depth=2, heads=1, patch=(2,8,8)), ViTConfig(dim=16, depth=1, heads=1))
SHARED = Path(os.environ.get('VIDLIT_SHARED', Path(__file__).resolve().parents[2]/'shared'))/'videos'


def gen(seed=0): return torch.Generator().manual_seed(seed)
def mae(): return VideoMAE(CFG, gen=gen())


def write(path, seed, n=8):
    path.parent.mkdir(parents=True, exist_ok=True)
    codec = 'libvpx-vp9' if path.suffix == '.webm' else 'libx264'
    return write_video(path, torch.randint(0, 255, (n, 24, 32, 3), dtype=torch.uint8, generator=gen(seed)), fps=8,
        codec=codec)


@pytest.fixture(scope='module')
def box(tmp_path_factory):
    box = tmp_path_factory.mktemp('targets')
    for i in range(8): write(box/f"ucf/UCF-101/{('Archery', 'Bowling')[i%2]}/v_{i}.avi", i)
    lists = box/'ucf/ucfTrainTestlist'
    lists.mkdir()
    names = [f"{('Archery', 'Bowling')[i%2]}/v_{i}.avi" for i in range(8)]
    (lists/'classInd.txt').write_text('1 Archery\n2 Bowling\n')
    (lists/'trainlist01.txt').write_text('\n'.join(f'{n} {i%2+1}' for i, n in enumerate(names[:6])))
    (lists/'testlist01.txt').write_text('\n'.join(names[6:]))
    for i in range(5): write(box/f'ssv2/{i}.webm', 20+i)
    (box/'ssv2/3.webm').write_bytes(b'not a video')
    # video 5 is missing
    rows = [dict(id=str(i), template=('Pushing [something]', 'Lifting [something]')[i%2]) for i in range(6)]
    (box/'ssv2/train.json').write_text(json.dumps(rows))
    (box/'ssv2/validation.json').write_text(json.dumps(rows[:2]))
    mae().save_pretrained(box/'teacher', size=(4,16,16))
    mae().classifier(2, gen=gen()).save_pretrained(box/'tuned', size=(4,16,16))
    return box


def listed(box): return find_videos(box/'ucf/UCF-101', 'all')
def built(box, out, **kw): return tt.build_targets(listed(box), box/'ucf/UCF-101', mae().encoder, out, SPEC, 12, **kw)


def test_tokens_are_those_of_transformers(box):
    "The fine-tuned model's last hidden state: not normed, one row for each token, no CLS"
    import transformers
    transformers.logging.set_verbosity_error()
    theirs = transformers.VideoMAEForVideoClassification.from_pretrained(box/'tuned').eval().videomae
    enc, kind = tt.load_encoder(box/'tuned')
    clip = torch.randn(2, 3, 4, 16, 16, generator=gen())
    with torch.no_grad(): a, b = theirs(clip.transpose(1, 2)).last_hidden_state, ViT.forward(enc, clip)
    assert kind == 'finetuned' and a.shape[1] == SPEC.grid.n == 8
    assert (a-b).abs().max() < 1e-5
    assert (b.mean(-1).abs().max() > 1e-3) and tt.Teacher(enc).tokens(clip).mean(-1).abs().max() < 1e-5


@given(d=st.integers(4, 24), share=st.floats(.2, 1.), seed=st.integers(0, 20))
@settings(max_examples=20, deadline=None)
def test_maps_are_orthonormal_and_repeatable(d, share, seed):
    k = max(1, int(share*d))
    tok = torch.randn(3, 20, d, generator=gen(seed))
    for p, q in ((tt.orthogonal_projection(d, k, seed), tt.orthogonal_projection(d, k, seed)),
        (tt.pca_projection(tok, k), tt.pca_projection(tok, k))):
        assert torch.equal(p.weight, q.weight)
        assert (p.weight.T@p.weight-torch.eye(k)).abs().max() < 1e-4
    assert tt.kept_variance(tt.pca_projection(tok, k), tok) >= tt.kept_variance(tt.orthogonal_projection(d, k, seed),
        tok)-1e-4


def test_round_trip_is_byte_exact(box, tmp_path):
    words = torch.randint(-2**15, 2**15, (8, 8, 12), dtype=torch.int16, generator=gen()).view(torch.float16)
    words = torch.where(words.isfinite(), words, torch.zeros_like(words))  # every finite half there is
    cache = TargetCache.create(tmp_path/'c', listed(box), box/'ucf/UCF-101', SPEC, 12, teacher='t', projection='p')
    turn = iter(words)
    cache.fill(lambda clip: next(turn)[None])
    again = TargetCache(tmp_path/'c')
    assert all(torch.equal(again.tokens[i].view(torch.int16), words[i].view(torch.int16)) for i in range(8))
    assert again.tokens.arr.dtype == 'float16' and again.tokens.verify() == []


def test_frames_and_crop_come_from_the_cache(box, tmp_path):
    cache = built(box, tmp_path/'c')
    t = tt.Teacher(mae().encoder, tt.load_projection(tmp_path/'c/projection.safetensors'))
    for clip, targ in CachedPairs(tmp_path/'c'): assert torch.equal(t(clip[None])[0].half(), targ)
    with pytest.raises(CacheMismatch, match='clips'):
        tt.build_targets(listed(box), box/'ucf/UCF-101', mae().encoder, tmp_path/'c', ClipSpec(4, 24, patch=(2,8,8)),
            12)
    with pytest.raises(CacheMismatch, match='projection'):
        TargetCache.create(tmp_path/'c', listed(box), box/'ucf/UCF-101', SPEC, 12, teacher=cache.meta['teacher'],
            projection='other')


def test_teacher_never_runs_in_training(box, tmp_path, monkeypatch):
    from vidlit.pretrain.stjepa import STJEPA, STJEPAConfig, pretrainer
    from vidlit.train.callbacks import fit
    built(box, tmp_path/'c')

    def never(*args, **kw): raise AssertionError('the teacher was asked')
    for where, name in ((tt.Teacher, 'forward'), (tt.Teacher, 'tokens'), (ViT, 'forward'), (VideoMAE, 'forward')):
        monkeypatch.setattr(where, name, never)
    with pytest.raises(AssertionError): tt.Teacher(mae().encoder)(torch.randn(1, 3, 4, 16, 16))
    net = STJEPA(STJEPAConfig(ViTConfig(dim=16, depth=2, heads=2, patch=(2,8,8)), 1, 12), gen=gen())
    learn = fit(pretrainer(pair_dls(tmp_path/'c', bs=3), net, ratio=.5), steps=4)
    assert len(learn.history.rows) == 4


def test_workers_read_the_same(box, tmp_path):
    built(box, tmp_path/'c')
    one, two = ([y for _, y in pair_dls(tmp_path/'c', bs=2, workers=w).valid] for w in (0, 2))
    assert all(torch.equal(a, b) for a, b in zip(one, two))


KILLED = '''
import os, sys, signal, torch
from test_targets import SPEC, listed, mae
from vidlit.pretrain import token_targets as tt
from pathlib import Path
box, out = map(Path, sys.argv[1:])
n = [0]
def report(*a):
    n[0] += 1
    if n[0]==3: os.kill(os.getpid(), signal.SIGKILL)
tt.build_targets(listed(box), box/'ucf/UCF-101', mae().encoder, out, SPEC, 12, report=report)
'''


def test_killed_and_continued_gives_the_same_bytes(box, tmp_path):
    r = subprocess.run([sys.executable, '-W', 'ignore', '-c', KILLED, box, tmp_path/'b'], cwd=Path(__file__).parent,
        capture_output=True, text=True)
    assert r.returncode == -signal.SIGKILL, r.stderr[-1000:]
    half = TargetCache(tmp_path/'b')
    assert len(half.ready()) == 3
    whole, again = built(box, tmp_path/'a'), built(box, tmp_path/'b')
    assert whole.tokens.done() == again.tokens.done() and again.tokens.verify() == []


def test_official_splits_missing_and_broken(box, tmp_path):
    v = ssv2(box/'ssv2')
    assert v.labels == [1, 0]*3 and [p.name for p in present(v)[1]] == ['5.webm']
    with pytest.raises(StoreError, match='2 of 6 videos'):  # over the limit of a quarter
        tt.build_targets(v, box/'ssv2', mae().encoder, tmp_path/'c', SPEC, 12)
    cache = TargetCache(tmp_path/'c')
    assert {o['video'] for o in cache.bad()} == {'3.webm', '5.webm'} and 'no such file' in str(cache.bad())
    assert torch.equal(read_clip(v.paths[0], SPEC)[0], read_clip(v.paths[0], SPEC)[0])


@given(n=st.integers(1, 10**6), dim=st.integers(1, 2000))
@settings(max_examples=20, deadline=None)
def test_price_is_arithmetic(n, dim):
    assert cache_bytes(n, dim=dim) == n*1568*dim*2
    row = estimate(n, ViTConfig(dim=2000, heads=1), dim=dim, rate=1e12)
    assert row['size (GB)'] == round(n*1568*dim*2/1e9, 3)


def call(capsys, *args):
    "A command in this process: exit code, what it printed"
    capsys.readouterr()
    code = run_app(app, [*map(str, args)])
    return code, capsys.readouterr()


def test_from_videos_to_classes(box, tmp_path, capsys):
    small = ('--frames', 4, '--size', 16, '--dim', 12, '--device', 'cpu', '--json')
    code, out = call(capsys, 'targets', 'build', box/'ucf', '--teacher', 'videomae-huge-finetuned-kinetics',
        '--dry-run', '--device', 'cpu', '--json')
    row = json.loads(out.out)
    assert code == 0 and row['videos'] == 6 and row['tokens per video'] == 1568
    assert row['size (GB)'] == round(6*1568*384*2/1e9, 3) and 'ucf101' == row['data']
    assert not (tmp_path/'c').exists()
    args = ('targets', 'build', box/'ucf', '--teacher', box/'tuned', '--out', tmp_path/'c', *small)
    assert json.loads(call(capsys, *args, '--n', 4)[1].out)['ready'] == 4
    done = json.loads(call(capsys, *args)[1].out)
    assert done['ready'] == 6 and done['unreadable'] == 0 and 'finetuned' in done['teacher']
    net = ('--dim', 16, '--depth', 2, '--heads', 2, '--fact', 1, '--bs', 2, '--ratio', .5, '--device', 'cpu', '--json')
    train = ('pretrain', 'stjepa', tmp_path/'c', '--out', tmp_path/'run', *net)
    first = json.loads(call(capsys, *train, '--epochs', 2)[1].out)
    assert first['steps'] == 4 and first['held-out videos'] == 1
    assert json.loads(call(capsys, *train, '--epochs', 2)[1].out) == first  # finished: nothing is done again
    code, out = call(capsys, *train, '--epochs', 3)
    assert code != 0 or 'run of' in out.err  # another recipe does not go on with this run
    named = json.loads(call(capsys, 'classify', box/'ucf', tmp_path/'run', '--device', 'cpu', '--json')[1].out)
    assert named['test'] == 2 and named['train'] == 6 and {r['answer'] for r in named['rows']} <= {'Archery',
        'Bowling'} and named['step'] == 4
    code, out = call(capsys, 'classify', box/'ucf', tmp_path/'run', '--method', 'linear', '--device', 'cpu')
    assert code == 0 and 'accuracy' in out.out


@pytest.mark.parametrize('args, word', [
    (('targets', 'build', 'gone', '--teacher', 'base'), 'gone'), (('pretrain', 'stjepa', 'gone'), 'gone'),
    (('classify', 'gone', 'checkpoint_step0.pt'), 'step 0'), (('classify', 'gone', 'gone'), 'gone')])
def test_bad_input_is_one_line_and_two(args, word, capsys):
    code, out = call(capsys, *args)
    assert code == 2 and word in out.err and len(out.err.strip().splitlines()) == 1 and out.out == ''


def test_shell_refuses_step_0(tmp_path):
    from vidlit.pretrain.stjepa import STJEPA, STJEPAConfig
    STJEPA(STJEPAConfig(ViTConfig(dim=16, depth=2, heads=2, patch=(2,8,8)), 1, 12)).save_pretrained(tmp_path/'student',
        0)
    r = subprocess.run([Path(sys.executable).parent/'vidlit', 'classify', tmp_path, tmp_path], capture_output=True,
        text=True)
    assert r.returncode == 2 and 'step 0' in r.stderr and 'Traceback' not in r.stderr


@pytest.mark.skipif(not SHARED.is_dir(), reason='no shared videos here')
def test_real_videos(box, tmp_path, capsys):
    start = time.time()
    end = ('--device', 'cpu', '--json')
    code, out = call(capsys, 'targets', 'build', SHARED, '--teacher', box/'teacher', '--out', tmp_path/'c', '--frames',
        4, '--size', 32, '--dim', 12, *end)
    assert code == 0, out.err
    row = json.loads(out.out)
    assert row['ready']+row['unreadable'] == row['videos'] and row['ready'] >= 8
    net = ('--steps', 2, '--bs', 2, '--dim', 16, '--depth', 2, '--heads', 2, '--fact', 1, '--ratio', .5)
    code, out = call(capsys, 'pretrain', 'stjepa', tmp_path/'c', '--out', tmp_path/'run', *net, *end)
    assert code == 0 and json.loads(out.out)['steps'] == 2, out.err
    assert time.time()-start < 300

"""Reproductions end to end at a size of seconds: killed and resumed to the same results, real videos in, a report that
opens in a browser."""
import json
import multiprocessing as mp
import os
import re
import shutil
import subprocess
import time
from dataclasses import replace
from functools import partial
from glob import glob
from pathlib import Path
import pytest
import torch

HERE = Path(__file__).resolve()
fork = mp.get_context('fork')
SHARED = Path(os.environ.get('VIDLIT_SHARED', HERE.parents[2]/'shared'))/'videos'
SMALL = dict(clips=48, steps=24, bs=8, labels=(8, 16), more=(), ft_steps=6, ft_bs=8, ft_lrs=(1e-3,), n_valid=8,
    n_test=16, snapshots=())


def shrink():
    "The registered study, at a size of seconds"
    import vidlit.studies.videomae_jobs as st
    from vidlit.studies.pretrain_common import probe_frozen
    st.setups['toy'] = replace(st.setups['toy'], **SMALL)
    st.probe_frozen = partial(probe_frozen, epochs=10)  # of 16 clips; by itself it would take 300
    tiny = dict(size=32, dim=32, depth=1, heads=2, dec_dim=32, dec_heads=2, steps=12, bs=4)
    st.videos_setup = replace(st.videos_setup, **tiny)
    torch.set_num_threads(1)


def tensors(root):
    from safetensors.torch import load_file
    return {str(p.relative_to(root)): load_file(p) for p in sorted(Path(root).rglob('model.safetensors'))}


def metrics(root):
    m = json.loads((Path(root)/'videomae'/'metrics.json').read_text())
    return {k: m[k] for k in ('rows', 'paired', 'facts', 'headline', 'seeds')}


def go(out, **kw):
    from vidlit.lab.reproduce import reproduce
    shrink()
    return reproduce(['videomae'], out, device='cpu', workers=1, quiet=True, **kw)


@pytest.fixture(scope='module', autouse=True)
def as_it_was():
    "Tests of other files in this process find the study at its own size again"
    import vidlit.studies.videomae_jobs as st
    was = st.setups['toy'], st.videos_setup, st.probe_frozen
    yield
    st.setups['toy'], st.videos_setup, st.probe_frozen = was


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp('whole')
    go(out, seeds=2)
    return out


def test_report_stands_alone(whole):
    page = (whole/'report.html').read_text()
    assert re.findall(r'(?:src|href)="(?!data:|#)', page) == [] and '<script' not in page
    assert page.count('<img') >= 3 and 'What the documents claim' in page and 'Paired comparisons' in page
    assert not re.search(r'/(?:home|root|tmp|work)/', re.sub(r'base64,[^"]*', '', page))


def test_report_opens_with_a_table(whole):
    "What was run, what it showed, whether it agrees with the record: before anything else"
    page = (whole/'report.html').read_text()
    first = page[page.index('<table'):page.index('</table>')]
    heads = re.findall(r'<th(?:\s[^>]*)?>(.*?)</th>', first)
    assert heads == ['what was run', 'what it showed', 'recorded', 'agrees']
    assert page.index('<table') < page.index('<h2>')
    word = re.search('<td class="v v-([a-z]+)">', first)
    assert 'videomae' in first and word[1] == 'nothing', 'tiny runs have labels that no record has'


def test_a_second_run_works_no_second_time(whole):
    before = {p: p.stat().st_mtime_ns for p in whole.rglob('result.json')}
    go(whole, seeds=2)
    assert before and {p: p.stat().st_mtime_ns for p in whole.rglob('result.json')} == before


def test_kill_and_resume_gives_the_same(whole, tmp_path):
    "kill -9 at several moments, within pretraining too; the resumed run ends with the same weights and numbers"
    for marks in ('pretrain/seed0/ckpt/step-*', 'finetune/*/*/seed0/stamp', 'pretrain/seed1/ckpt/step-*'):
        p = fork.Process(target=go, args=(tmp_path,), kwargs=dict(seeds=2))
        p.start()
        try:
            end = time.time()+90
            jobs = tmp_path/'videomae'/'jobs'
            while not glob(f'{jobs}/{marks}') and p.is_alive() and time.time() < end: time.sleep(.01)
            assert p.is_alive(), f'the run was over before {marks} was seen'
        finally:
            p.kill()
            p.join()
    go(tmp_path, seeds=2)
    a, b = tensors(whole/'videomae'), tensors(tmp_path/'videomae')
    assert set(a) == set(b) and all(torch.equal(a[k][n], b[k][n]) for k in a for n in a[k])
    assert metrics(whole) == metrics(tmp_path)


def videos(folder):
    "Three good videos of moving squares, one cut off"
    from vidlit import write_video
    folder.mkdir()
    for i in range(3):
        x = torch.full((60, 48, 64, 3), 40*i, dtype=torch.uint8)
        for t in range(60): x[t, 10:30, t % 40:t % 40+12] = torch.tensor([250, 120, 30], dtype=torch.uint8)
        write_video(folder/f'video{i}.mp4', x, fps=25)
    data = (folder/'video0.mp4').read_bytes()
    (folder/'torn.mp4').write_bytes(data[:len(data)//2])


def test_real_videos(tmp_path):
    videos(tmp_path/'videos')
    m, = go(tmp_path/'out', seeds=1, data=str(tmp_path/'videos'))
    notes = {r['video']: r['note'] for r in m['rows']}
    assert set(notes) == {'video0.mp4', 'video1.mp4', 'video2.mp4', 'torn.mp4'}
    assert 'left out' in notes['torn.mp4'] and notes['video1.mp4'] == ''
    assert {f['file'] for f in m['figures']} == {'held_out.png', 'loss.png'} and str(tmp_path) not in json.dumps(m)


def test_too_many_bad_videos_fail_loudly(tmp_path):
    videos(tmp_path/'videos')
    for i in (1, 2): (tmp_path/'videos'/f'video{i}.mp4').write_bytes(b'no video at all')
    from vidlit.lab.jobs import JobError
    with pytest.raises(JobError, match='3 of 4 (films|videos)'):
        go(tmp_path/'out', seeds=1, data=str(tmp_path/'videos'))


@pytest.mark.skipif(not SHARED.is_dir(), reason='the shared videos are not here')
def test_shared_videos(tmp_path):
    m, = go(tmp_path, seeds=1, data=str(SHARED))
    left_out = [r['video'] for r in m['rows'] if r['note']]
    assert 'corrupted.mp4' in left_out and len(m['rows']) >= 10


@pytest.mark.skipif(not (shutil.which('chromium') or shutil.which('google-chrome')), reason='no browser here')
def test_report_opens_in_a_browser(whole, tmp_path):
    chrome = shutil.which('chromium') or shutil.which('google-chrome')
    quiet = 'no-first-run disable-background-networking disable-component-update disable-sync hide-scrollbars'.split()
    flags = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', f'--user-data-dir={tmp_path}/profile',
        *(f'--{o}' for o in quiet)]
    url, shot = (whole/'report.html').as_uri(), tmp_path/'shot.png'
    dom = subprocess.run([chrome, *flags, '--dump-dom', url], capture_output=True, text=True, timeout=90).stdout
    assert '<img' in dom and 'Paired comparisons' in dom
    size = ['--window-size=1000,3000', f'--screenshot={shot}']
    subprocess.run([chrome, *flags, *size, url], capture_output=True, timeout=90)
    from PIL import Image
    im = Image.open(shot).convert('L')
    assert im.size == (1000, 3000) and len(im.getcolors(256*256) or []) > 20, 'the page is blank'

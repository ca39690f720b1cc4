"The tour at a size of seconds: every demonstration runs, leaves pictures, and stands in the report beside its record"
import json
import re
from dataclasses import replace
import pytest
import vidlit.lab.demos as demos
import vidlit.lab.reproduce as rep
from vidlit.lab.experiment import load_result
from vidlit.lab.jobs import JobError

TINY = dict(videomae=dict(clips=64, steps=8, ft_steps=4, n_test=8), vjepa=dict(clips=64, steps=12),
    planner=dict(n_train=64, steps=8, goals=6), stjepa=dict(clips=64, pre=4, ft=4, steps=4, n_test=8),
    depth_anything=dict(images=32, steps=3, n_test=8), video_depth=dict(n=1, side=56, frames=8),
    chunks=dict(frames=40, size=(56, 56)), refiner=dict(clips=16, steps=4, n_test=4),
    splat=dict(seconds=1., side=32, points=150), flow=dict(seconds=1., worlds=4, test=2))


@pytest.fixture(scope='module')
def tour(tmp_path_factory):
    "All of it, one after the other in this process"
    import torch
    was, threads = demos.demonstrations, torch.get_num_threads()
    small = [replace(d, args=TINY[d.name]) for d in was()]
    rep.demonstrations = lambda names=None: [d for d in small if not names or d.name in names]
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp('tour')
    try: yield out, rep.reproduce(None, out, device='cpu', workers=1, quiet=True)
    finally:
        rep.demonstrations = was
        torch.set_num_threads(threads)


def test_every_section_is_shown(tour):
    out, runs = tour
    assert [m['experiment'] for m in runs] == [f'tour/{k}' for k in TINY]
    for m in runs:
        assert m['headline'] and m['figures'], m['experiment']
        assert m['agrees'] in ('agrees in direction', 'differs', 'undecided', 'another question')
        assert all((out/m['folder']/f['file']).stat().st_size > 1000 for f in m['figures'])


def test_each_stands_beside_a_recorded_fact():
    for d in demos.demonstrations():
        name, _, fact = d.record.partition(':')
        assert fact in load_result(name)['facts'], d.name


def test_the_report_is_whole(tour):
    out, runs = tour
    page = (out/'report.html').read_text()
    assert re.findall(r'(?:src|href)="(?!data:|#)', page) == [] and '<script' not in page
    assert page.count('<img') == sum(len(m['figures']) for m in runs)
    assert page.count('<strong>Recorded</strong>') == len(runs)
    first = page[page.index('<table'):page.index('</table>')]
    assert first.count('<tr>') == len(runs)+1 and '<pre>vidlit reproduce</pre>' in page


def test_a_second_tour_works_no_second_time(tour):
    out, runs = tour
    before = {p: p.stat().st_mtime_ns for p in out.rglob('result.json')}
    again = rep.reproduce(['tour/vjepa', 'tour/planner'], out, device='cpu', workers=1, quiet=True)
    assert [m['headline'] for m in again] == [runs[1]['headline'], runs[2]['headline']]
    assert before and {p: p.stat().st_mtime_ns for p in out.rglob('result.json')} == before


def test_looking_at_the_list_loads_no_network():
    import subprocess
    import sys
    code = ("import sys; from vidlit.lab.demos import demonstrations; demonstrations(); "
        "print([m for m in ('torch', 'fastai', 'torchvision') if m in sys.modules])")
    said = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert 'fastai' not in said.stdout and 'torchvision' not in said.stdout and not said.returncode, said.stderr


def broken(ctx): raise ValueError('nothing works')


def test_one_that_fails_takes_no_other_along(tmp_path, monkeypatch):
    two = [demos.Demo('bad', 'None', 'Fails', 'test_tour:broken', 1.),
        demos.Demo('good', 'None', 'Works', 'test_tour:works', 1.)]
    monkeypatch.setattr(rep, 'demonstrations', lambda names=None: two)
    with pytest.raises(JobError, match='bad: ValueError: nothing works'):
        rep.reproduce(['tour'], tmp_path, device='cpu', workers=1, quiet=True)
    assert 'it works' in (tmp_path/'report.html').read_text()
    assert json.loads((tmp_path/'tour'/'good'/'result.json').read_text())['result']['supports'] is None


def works(ctx): return dict(text='it works', supports=None, figures=[])

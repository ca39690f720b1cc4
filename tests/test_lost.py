"""Outputs removed, at work and afterwards: said, and mended by the same command; a folder never refuses for ever."""
import json
import shutil
import kills
import pytest
from vidlit.pipeline import video_depth as V
from vidlit.pipeline.merge import merge
from vidlit.pipeline.pool import work_on
from vidlit.pipeline.run import run_workers
from vidlit.pipeline.worker import mend, status


@pytest.fixture(scope='module')
def box(tmp_path_factory):
    kills.warm()
    return kills.inputs(tmp_path_factory.mktemp('lost'))


def depth(box, out, *more): return kills.vidlit('depth', box/'video.mp4', '--out', out, *kills.SMALL, '--json', *more)
def some(out): return sorted(o for o in out.rglob('*') if o.suffix in ('.png', '.npz') or o.parts[-4:-3]==('c',))


@pytest.mark.parametrize('more', [(), ('--format', 'npz', '--mode', 'stream'), ('--format', 'zarr')])
def test_frames_of_a_finished_folder(box, tmp_path, capsys, more):
    out = tmp_path/'out'
    assert depth(box, out, *more)==0
    whole = kills.contents(out)
    for gone in ([0], [3, 33]):
        files = some(out)
        for i in gone: files[i].unlink()
        assert depth(box, out, *more)==0, capsys.readouterr().err
        assert kills.contents(out)==whole and not (out/'.work').exists()


@pytest.mark.parametrize('what', ['frames', 'folder', 'parts'])
@pytest.mark.parametrize('form', ['png16', 'npz'])
def test_removed_while_it_is_written(box, tmp_path, capsys, monkeypatch, what, form):
    "By somebody who tidies up after the first part was put on disk: one line, and the same command makes it whole"
    out, save = tmp_path/'out', V.save_point
    def tidy(*args, **kw):
        save(*args, **kw)
        gone = dict(frames=some(out)[:5], folder=[out], parts=sorted((out/'.work').glob('part_*')))[what]
        for o in gone: shutil.rmtree(o) if o.is_dir() else o.unlink()
    monkeypatch.setattr(V, 'save_point', tidy)
    code, err = depth(box, out, '--format', form), capsys.readouterr().err
    said = [o for o in err.splitlines() if o.startswith('vidlit: ')]
    if code: assert code==2 and len(said)==1 and 'same command makes' in said[0] and str(tmp_path) in said[0]
    assert 'Traceback' not in err
    monkeypatch.undo()
    assert depth(box, out, '--format', form)==0, capsys.readouterr().err
    assert depth(box, tmp_path/'want', '--format', form)==0
    assert kills.contents(out)==kills.contents(tmp_path/'want')


def test_refined_frames(box, tmp_path, capsys):
    args = 'refine', box/'video.mp4', '--depth', box/'depth', '--out', tmp_path/'out', '--warm', 0, '--json'
    assert kills.vidlit(*args)==0
    whole = kills.contents(tmp_path/'out')
    some(tmp_path/'out')[7].unlink()
    assert kills.vidlit(*args)==0 and kills.contents(tmp_path/'out')==whole


def test_levels_of_a_pyramid(box, tmp_path, capsys):
    args = 'pyramid', box/'video.mp4', '--out', tmp_path/'out', '--levels', 3, '--json'
    assert kills.vidlit(*args)==0
    whole = kills.contents(tmp_path/'out')
    (tmp_path/'out'/'level2.mp4').unlink()
    capsys.readouterr()
    assert kills.vidlit(*args)==0 and json.loads(capsys.readouterr().out)['lost, made again']==['level2.mp4']
    assert not kills.unlike(kills.contents(tmp_path/'out'), whole)


def test_windows_of_a_job(box, tmp_path):
    assert kills.vidlit('chunks', 'split', box/'video.mp4', tmp_path/'job', '--chunks', 2)==0
    kills._plan(tmp_path/'job')
    work_on(tmp_path/'job', threads=1)
    whole = {k: v for k, v in kills.contents(tmp_path/'job').items() if 'chunk_' in k}
    (tmp_path/'job'/'chunk_001'/'window_00000.npy').unlink()
    assert mend(tmp_path/'job')==[(1, 1)] and status(tmp_path/'job')['chunks'][1]['state']=='open'
    assert 'windows were lost' in status(tmp_path/'job')['failures'][0]['message']
    work_on(tmp_path/'job', threads=1)
    assert {k: v for k, v in kills.contents(tmp_path/'job').items() if 'chunk_' in k}==whole
    assert run_workers(tmp_path/'job', 1, 'cpu')['deaths']==0 # nothing to do
    merge(tmp_path/'job', tmp_path/'out')
    frames = kills.contents(tmp_path/'out')
    (tmp_path/'out'/'000011.png').unlink()
    merge(tmp_path/'job', tmp_path/'out')
    assert kills.contents(tmp_path/'out')==frames

"""vidlit flow and vidlit pyramid: refusals in one line, going on after a kill, files that are whole"""
import json
import shutil
import pytest
import torch
from shell import here
from vidlit.cli.pyramid import flow_file, flow_video, pyramid_video, read_flo
from vidlit.pyramid.pyramid import joint_pyramid
from vidlit.video.reader import VideoReader
from vidlit.video.writing import write_video
from vidlit.worlds.worlds import WorldConfig, make_clips


@pytest.fixture(scope='module')
def film(tmp_path_factory):
    clip = make_clips([5], WorldConfig(t=9, h=48, w=64, n_obj=2))[0][0]
    return write_video(tmp_path_factory.mktemp('p')/'film.mp4', (clip.permute(1, 2, 3, 0)*255).round().byte(), fps=24)


def test_flow_goes_on(film, tmp_path):
    out = tmp_path/'flow'
    assert flow_video(film, out)['made_now'] == 8
    before = read_flo(flow_file(out, 3))
    flow_file(out, 3).unlink()
    assert flow_video(film, out)['made_now'] == 1
    assert torch.equal(read_flo(flow_file(out, 3)), before)
    assert flow_video(film, out)['made_now'] == 0


def test_flow_dies_and_goes_on(film, tmp_path):
    def die(i, n):
        if i == 5: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): flow_video(film, tmp_path/'f', report=die)
    assert flow_video(film, tmp_path/'f')['made_now'] == 4


def test_pyramid_is_all_or_nothing(film, tmp_path):
    def die(i, n):
        if i == 5: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): pyramid_video(film, tmp_path/'p', report=die)
    assert not list((tmp_path/'p').glob('**/*.mp4'))
    assert pyramid_video(film, tmp_path/'p')['made now'] and not pyramid_video(film, tmp_path/'p')['made now']


def test_films_are_the_levels(film, tmp_path):
    pyramid_video(film, tmp_path/'p', levels=3, crf=1)
    clip = VideoReader(film)[:].permute(3, 0, 1, 2)[None].float()/255
    for lev, l in zip(joint_pyramid(clip, 3)[1:], (1, 2)):
        r = VideoReader(tmp_path/'p'/f'level{l}.mp4')
        assert len(r) == lev.clip.shape[2] and r.info.fps == 24/2**l
        assert (r[:].permute(3, 0, 1, 2)/255-lev.clip[0]).abs().mean() < .02
    note = json.loads((tmp_path/'p'/'pyramid.json').read_text())
    assert note['times'][1] == [0, 4, 8]


@pytest.mark.parametrize('args, said', [
    (['flow', '{film}'], '--out is missing'), (['flow', 'no.mp4', '--out', '{t}/a'], 'no such file'),
    (['flow', '{film}', '--out', '{t}/b', '--method', 'x'], "not 'x'"),
    (['flow', '{film}', '--out', '{t}/c', '--method', 'raft_small'], 'needs --weights'),
    (['flow', '{film}', '--out', '{t}/d', '--max-res', '3'], '--max-res is too small: 3'),
    (['pyramid', '{film}', '--out', '{t}/e', '--levels', '1'], 'not 1'),
    (['pyramid', '{film}', '--out', '{t}/f', '--filter', 'sinc'], "not 'sinc'")])
def test_refusals(film, tmp_path, monkeypatch, capfd, args, said):
    r = here(monkeypatch, capfd, *(a.format(film=film, t=tmp_path) for a in args))
    assert r.returncode == 2 and said in r.stderr and r.stderr.count('\n') == 1


def test_a_folder_of_something_else(film, tmp_path):
    (tmp_path/'x').mkdir()
    (tmp_path/'x'/'mine.txt').write_text('keep')
    with pytest.raises(ValueError, match='not empty'): flow_video(film, tmp_path/'x')
    flow_video(film, tmp_path/'y')
    with pytest.raises(ValueError, match='another run'): flow_video(film, tmp_path/'y', method='farneback')
    other = shutil.copy(film, tmp_path/film.name)
    with open(other, 'ab') as f: f.write(bytes(9))
    with pytest.raises(ValueError, match='other content'): flow_video(other, tmp_path/'y')
    (tmp_path/'z').mkdir()
    (tmp_path/'z'/'sequence.json').write_text('{"fps": "25", "kind": "depth", "format": "vidlit-depth-1"}')
    with pytest.raises(ValueError, match='what another command made'): flow_video(film, tmp_path/'z')

"""Tracks in space: bad input is one line and exit code 2, the rest of the file comes back to the character."""
import json
import math
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
import vidlit.cli.tracks  # noqa: F401 (puts its command into the app)
from vidlit.cli.app import app, run_app
from vidlit.pipeline import tracks
from vidlit.pipeline.box_depth import front_peak, sample, sample_frame, valleys, window
from vidlit.pipeline.tracks import TrackError, enrich, enrich_file, find_entries, read_tracks, to_json, to_xyxy
from vidlit.video.depth_frames import DepthReader, DepthWriter
from vidlit.worlds.camera import make_K, project

H, W, N = 48, 64, 6
K = make_K(60, H, W)


def scene(t):
    "A wall at 5 m and a square at 2 m that walks to the right"
    z = torch.full((H, W), 5.)
    z[16:32, 8+4*t:24+4*t] = 2.
    return z


@pytest.fixture(scope='module')
def box(tmp_path_factory):
    p = tmp_path_factory.mktemp('tracks')
    frames = torch.stack([scene(t) for t in range(N)])
    with DepthWriter(p/'depth', 'depth', (H, W), 25, frames=N, source='video A') as w: w.extend(frames)
    with DepthWriter(p/'relative', 'disparity', (H, W), 25, units='relative', frames=N) as w: w.extend(2/frames+1)
    with DepthWriter(p/'short', 'depth', (H, W), 25, frames=N) as w: w.extend(frames[:3])
    holes = frames.clone()
    holes[1] = math.nan
    holes[2, 16:24] = math.nan
    with DepthWriter(p/'holes', 'depth', (H, W), 25, frames=N) as w: w.extend(holes)
    rows = [dict(frame=t, id=1, bbox=[8+4*t, 16, 24+4*t, 32], note='říká') for t in range(N)]
    (p/'t.json').write_text(json.dumps(dict(fps=25, width=W, height=H, tracks=rows)))
    return p


def write(p, obj, name='bad.json'):
    (p/name).write_text(obj if isinstance(obj, str) else json.dumps(obj))
    return p/name


def cli(*args): return run_app(app, ['tracks', *map(str, args)])


def one(**kw): return dict(tracks=[dict(dict(frame=0, id=1, bbox=[1, 2, 5, 8]), **kw)])


BAD = {'not json': ('{"tracks": [', 'cannot be read as JSON'), 'nan': ('[{"frame": 0, "bbox": [1, 2, NaN, 4]}]', 'NaN'),
    'empty': ({}, 'no entry'),
    'negative width': (one(bbox=[9, 2, 5, 8]), 'tracks[0] (track 1, frame 0): bbox has a width of -4'),
    'no height': (one(bbox=[1, 2, 5, 2]), 'height of 0'),
    'words': (one(bbox=['a', 2, 5, 8]), 'bbox must be 4 finite numbers'),
    'three': (one(bbox=[1, 2, 5]), 'bbox must be 4'),
    'half a frame': (one(frame=.5), 'whole number'),
    'beyond the end': (one(frame=N), f'track 1, frame {N}): the depth in'),
    'before the start': (one(frame=-1), 'before the first'),
    'no frame': (dict(tracks=[dict(bbox=[1, 2, 5, 8])]), 'no frame number'),
    'other rate': (dict(fps=30, **one()), '30 frames a second'),
    'other size': (dict(width=2*W, height=2*H, **one()), 'say size'),
    'other length': (dict(num_frames=N+1, **one()), f'of {N+1} frames'),
    'taken': (one(position_3d=[1, 2, 3]), 'another name'),
    'yolo or coco': (dict(tracks=[dict(frame=0, xywh=[1, 2, 5, 8])]), 'boxes')}


@pytest.mark.parametrize('what', BAD)
def test_bad_files(what, box, tmp_path, capsys):
    obj, word = BAD[what]
    assert cli(write(tmp_path, obj), '--depth', box/'depth', '--out', tmp_path/'o.json', '--K', '50,50,32,24') == 2
    err = capsys.readouterr().err
    assert word in err and len(err.strip().splitlines()) == 1 and not (tmp_path/'o.json').exists()


def test_told_size_lets_other_sizes_in(box, tmp_path):
    bad = write(tmp_path, BAD['other size'][0])
    assert cli(bad, '--depth', box/'depth', '--out', tmp_path/'o.json', '--fov', 60, '--size', f'{2*W}x{2*H}') == 0


FLAGS = [(('--depth', 'gone'), 'sequence.json is missing'), (('--depth', 'short'), 'frame 3 is missing'),
    (('--depth', 'relative'), 'no metres in it'),
    (('--depth', 'relative', '--scale', '-1'), 'scale=-1'), (('--depth', 'depth', '--scale', '2'), 'in m already'),
    (('--depth', 'depth', '--relative'), 'in m already'),
    (('--depth', 'depth', '--video', 'video B'), 'video A'), (('--depth', 'depth', '--how', 'best'), 'best'),
    (('--depth', 'depth', '--boxes', 'yxyx'), 'yxyx'),
    (('--depth', 'depth', '--K', '1,2'), '--K must be'), (('--depth', 'depth', '--fov', '190'), '190'),
    (('--depth', 'depth', '--size', '64'), '--size must be'),
    (('--depth', 'depth', '--size', '64x64'), '64x64'), (('--depth', 'depth', '--near', '3', '--far', '2'), 'near'),
    ((), '--depth is missing')]


@pytest.mark.parametrize('flags, word', FLAGS, ids=lambda o: o if isinstance(o, str) else None)
def test_bad_flags(flags, word, box, tmp_path, capsys):
    args = [box/a if a in ('gone', 'short', 'relative', 'depth') else a for a in flags]
    camera = [] if {'--K', '--fov'} & set(flags) else ['--fov', 60]
    assert cli(box/'t.json', *args, *camera, '--out', tmp_path/'o.json') == 2
    err = capsys.readouterr().err
    assert word in err and len(err.strip().splitlines()) == 1 and not list(tmp_path.iterdir())


def test_missing_file_no_out_no_camera(box, tmp_path, capsys):
    assert cli(tmp_path/'gone.json', '--depth', box/'depth', '--out', tmp_path/'o.json', '--fov', 60) == 2
    assert 'no such file' in capsys.readouterr().err
    assert cli(box/'t.json', '--depth', box/'depth', '--fov', 60) == 2 and '--out is missing' in capsys.readouterr().err
    assert cli(box/'t.json', '--depth', box/'depth', '--out', tmp_path/'o.json') == 2
    assert '--K fx,fy,cx,cy' in capsys.readouterr().err
    assert cli(box/'t.json', '--depth', box/'depth', '--out', box/'t.json', '--fov', 60) == 2
    assert 'is the input' in capsys.readouterr().err


def test_metres_and_places(box, tmp_path, capsys):
    assert cli(box/'t.json', '--depth', box/'depth', '--out', tmp_path/'o.json', '--fov', 60, '--video', 'video A',
        '--json', '--picture', tmp_path/'a.png') == 0
    said = json.loads(capsys.readouterr().out)
    assert (said['entries'], said['enriched'], said['ok'], said['share']) == (N, N, N, 1.)
    assert len(said['positions']['1']) == N
    rows = json.loads((tmp_path/'o.json').read_text())['tracks']
    for t, r in enumerate(rows):
        p = r['position_3d']
        uv, z = project(torch.tensor([p['x'], p['y'], p['z']]), K)
        assert uv.tolist() == pytest.approx([16+4*t, 24], abs=.01) and float(z) == 2 and r['note'] == 'říká'
    assert (tmp_path/'a.png').read_bytes()[:4] == b'\x89PNG'


def test_relative_needs_to_be_told(box, tmp_path):
    def z(**kw):
        return [e.item['position_3d'] for e in enrich(read_tracks(box/'t.json'), DepthReader(box/'relative'), **kw)]
    with pytest.raises(TrackError, match='no metres'): z(K=K)
    assert [p['z'] for p in z(K=K, scale=.5, shift=-.5)] == pytest.approx([2.]*N, abs=1e-3)
    assert [p['disparity'] for p in z(relative=True)] == pytest.approx([2.]*N, abs=1e-4)
    assert all('x' not in p for p in z(relative=True))


def test_every_loss_has_a_reason(box):
    rows = [dict(frame=0, bbox=None), dict(frame=0, bbox=[70, 0, 80, 9]), dict(frame=1, bbox=[8, 16, 24, 32]),
        dict(frame=0, bbox=[40, 2, 60, 12]),
        dict(frame=2, bbox=[16, 16, 32, 32]), dict(frame=0, bbox=[-30, 16, 24, 32]), dict(frame=0, point=[9., 17.]),
        dict(frame=0, point=[200., 17.])]
    got = [e.item['position_3d'] for e in enrich(rows, DepthReader(box/'holes'), K, far=4.)]
    assert [p['status'] for p in got] == ['no_place', 'out_of_frame', 'no_depth', 'out_of_range', 'ok', 'cut', 'ok',
        'out_of_frame']
    assert [p['z'] for p in got if 'z' in p] == [2.]*3


def test_zero_and_infinite_depth_are_no_readings():
    for hole in (0., math.nan, math.inf, -1.):
        v = np.full((10, 10), 3.)
        v[:, :7] = hole
        assert sample(v, (0, 0, 10, 10)).value == 3 and math.isnan(sample(v, (0, 0, 6, 9)).value)


def test_idempotent_and_untouched(box, tmp_path):
    text = ('{"fps": 25.0, "meta": {"x": 1e-05, "who": "Žofie \\ud83d\\ude00", "n": -0.0},'
        ' "tracks": [{"score": 0.10, "frame": 1, "bbox": [12.50, 16, 28, 32.000]}]}')
    a = write(tmp_path, text, 'a.json')
    enrich_file(a, box/'depth', tmp_path/'b.json', K)
    enrich_file(tmp_path/'b.json', box/'depth', tmp_path/'c.json', K)
    assert (tmp_path/'b.json').read_bytes() == (tmp_path/'c.json').read_bytes() and a.read_text() == text
    got = (tmp_path/'b.json').read_text()
    for part in ('1e-05', '0.10', '12.50', '32.000', '25.0', '-0.0', 'Žofie 😀'): assert part in got
    kept = json.loads(got)
    kept.pop('position_3d_about')
    kept['tracks'][0].pop('position_3d')
    assert list(kept) == ['fps', 'meta', 'tracks'] and list(kept['tracks'][0]) == ['score', 'frame', 'bbox']
    assert kept == json.loads(text)


def test_old_answer_stays_when_writing_fails(box, tmp_path, monkeypatch):
    out = tmp_path/'o.json'
    enrich_file(box/'t.json', box/'depth', out, K)
    before = out.read_bytes()
    def full(*a, **kw): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(tracks.Path, 'write_text', full)
    with pytest.raises(OSError): enrich_file(box/'t.json', box/'depth', out, K)
    assert out.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ['o.json']


def test_scaled_boxes_are_the_same_places(box):
    def run(by, **kw):
        rows = [dict(frame=t, bbox=[by*(8+4*t), by*16, by*(24+4*t), by*32]) for t in range(N)]
        return [[e.item['position_3d'][k] for k in 'xyz']
            for e in enrich(rows, DepthReader(box/'depth'), make_K(60, by*H, by*W), **kw)]
    assert np.allclose(run(1), run(3, size=(3*H, 3*W)), atol=2e-4)


def test_first_and_prefer(box):
    rows = dict(tracks=[dict(frame=1, bbox=[8, 16, 24, 32], x=40, y=40)])
    assert [e.frame for e in find_entries(rows, first=1)] == [0] and find_entries(rows)[0].box == (8, 16, 24, 32)
    assert find_entries(rows, prefer='point')[0].box == (38, 38, 42, 42)


simple = st.recursive(st.none() | st.booleans() | st.integers(-10**20,
    10**20) | st.text(max_size=8) | st.floats(allow_nan=False, allow_infinity=False),
    lambda o: st.lists(o, max_size=4) | st.dictionaries(st.text(max_size=5), o, max_size=4), max_leaves=20)


@given(simple, st.integers(1, 60))
@settings(max_examples=60, deadline=None)
def test_json_keeps_everything(tmp_path_factory, obj, wide):
    p = tmp_path_factory.getbasetemp()/'h.json'
    p.write_text(json.dumps(obj), encoding='utf-8')
    text = to_json(read_tracks(p), wide)
    p.write_text(text, encoding='utf-8')
    assert json.loads(text) == obj and to_json(read_tracks(p), wide) == text


@given(st.floats(-50, 90), st.floats(-50, 90), st.floats(.01, 80), st.floats(.01, 80))
@settings(max_examples=150, deadline=None)
def test_window_weights(x, y, w, h):
    rows, cols, k = window((x, y, x+w, y+h), H, W)
    assert k.shape == (rows.stop-rows.start, cols.stop-cols.start) and k.sum() <= 1+1e-9 and (k >= 0).all()
    assert k.size == 0 or (0 <= rows.start and rows.stop <= H and 0 <= cols.start and cols.stop <= W)
    if x >= 0 and y >= 0 and x+w <= W and y+h <= H: assert abs(k.sum()-1) < 1e-9


@given(st.lists(st.floats(.5, 20), min_size=1, max_size=60), st.integers(0, 2**20))
@settings(max_examples=100, deadline=None)
def test_front_is_a_surface_of_the_box(z, seed):
    w = np.random.default_rng(seed).random(len(z))+.01
    peak = front_peak(-np.log(np.array(z)), w/w.sum())
    assert peak.members.any() and peak.core.any() and (peak.core <= peak.members).all()
    others = np.array(z)[~peak.members]
    mine = np.array(z)[peak.members]
    assert not ((others > mine.min()) & (others < mine.max())).any()


def test_valleys_and_order_of_entries():
    assert valleys(np.array([0, 1., 0, 1., 0])/2) == [2]
    assert to_xyxy([5, 5, 4, 2], 'cxcywh') == (3, 4, 7, 6)
    z = np.full((20, 40), 9.)
    z[4:16, 10:30], z[2:18, 8:20] = 5., 3.
    boxes = [(9.5, 4, 30, 16), (8, 2, 20, 18)]
    assert [s.value for s in sample_frame(z, boxes)] == [s.value for s in sample_frame(z, boxes[::-1])][::-1] == [5.,
        3.]

"""68 lossless cuts, 40 damaged videos, 12 habits of cameras: every frame is right by its painted number or refused by
name. `VIDLIT_LONG=1` runs all of them and prints the table; otherwise a few of each kind."""
import os
import random
from fractions import Fraction
import numpy as np
import pytest
import torch
from video_toys import FPS, N, camera_table, cut_table, damage_table, film, remux, report, source
from vidlit.video.depth_frames import source_id
from vidlit.video.packets import _scan, decode, hear, open_video
from vidlit.video.reader import CorruptVideoError, TruncatedVideoError, VideoError, VideoReader
from vidlit.video.writing import numbered_frame, read_number

LONG = bool(os.environ.get('VIDLIT_LONG'))


@pytest.fixture(scope='module')
def folder(tmp_path_factory): return tmp_path_factory.mktemp('films')


def show(capsys, table):
    if LONG:
        with capsys.disabled():
            for k, v in table.items(): print(f'{k:48}', v)
    assert all(v['right']+v['refused'] for v in table.values())
    assert not any(v['wrong'] for v in table.values()), {k: v for k, v in table.items() if v['wrong']}


def test_lossless_cuts(folder, tmp_path, capsys):
    table = cut_table(folder, tmp_path, LONG)
    show(capsys, table)
    assert all(v['right'] for v in table.values())


def test_damage(folder, tmp_path, capsys):
    table = damage_table(folder, tmp_path, LONG)
    show(capsys, table)
    assert any(v['refused'] for v in table.values())


def test_cameras(tmp_path, capsys): show(capsys, camera_table(tmp_path, LONG))


def test_a_vp9_packet_lost_on_the_way(folder, tmp_path):
    "FFmpeg's own decoder says nothing; a gap that a recorder left is no damage"
    import av
    def but(s, packets): return (o for j, o in enumerate(packets) if j != 16)
    p = remux(film(folder, 'vp9.webm'), tmp_path/'a.webm', but)
    assert report(p)['wrong'] == 0 and report(p, partial='skip')['wrong'] == 0
    with pytest.raises(CorruptVideoError, match='packet before it is missing'): VideoReader(p)[16]
    with av.open(str(tmp_path/'b.webm'), 'w') as c:
        s = c.add_stream('libvpx-vp9', rate=FPS, options={'g': '12', 'deadline': 'realtime', 'cpu-used': '8'})
        s.width, s.height, s.pix_fmt = 80, 48, 'yuv420p'
        for i in [*range(16), *range(17, 40)]:
            f = av.VideoFrame.from_ndarray(numbered_frame(i).numpy(), format='rgb24')
            f.pts, f.time_base = i, Fraction(1, FPS)
            c.mux(s.encode(f))
        c.mux(s.encode())
    got = report(tmp_path/'b.webm')
    assert got == dict(right=39+8, refused=0, wrong=0)


@pytest.mark.parametrize('kind', ['h264-open', 'hevc-open'])
def test_an_open_group_is_entered_once(folder, monkeypatch, kind):
    "No packet is decoded twice, and no more than the group, what is asked for and the decoder's delay"
    import vidlit.video.index as index
    path, seen = source(folder, kind), []
    monkeypatch.setattr(index, 'decode', lambda p, *a: seen.append(p.pts) or decode(p, *a))
    r = VideoReader(path)
    k = [k for k in r.info.keys if k][1]
    assert r.index.lead[k-3:k].any() and int(read_number(r[k+5])) == k+5
    seen = [p for p in seen if p is not None]
    assert len(set(seen)) == len(seen) <= 6+4+8


# ---- what FFmpeg says, and what the file knows itself

def flip(src, dst, k, at=.5, n=1):
    "Change bytes inside packet `k`"
    import av
    with av.open(str(src)) as c: pos, size = [(p.pos, p.size) for p in c.demux(video=0) if p.size][k]
    b, i = bytearray(src.read_bytes()), pos+int(size*at)
    b[i:i+n] = bytes(o ^ 1 for o in b[i:i+n])
    dst.write_bytes(b)
    return dst


def test_a_checksum_that_only_the_log_knows(folder, tmp_path):
    "FFV1 shows a slice with a wrong checksum, without a flag"
    p = flip(film(folder, 'ffv1.mkv'), tmp_path/'a.mkv', 9)
    whole = p.read_bytes()
    r = VideoReader(p)
    with pytest.raises(CorruptVideoError, match='frame 9'): r[9]
    assert int(read_number(r[50])) == 50 and p.read_bytes() == whole
    c, s = open_video(p)
    with c: told = [why for q in c.demux(s) if q.size for _, why in [decode(q)]]
    assert [k for k, why in enumerate(told) if why] == [9] and 'CRC' in told[9]


def test_a_packet_that_was_lost_on_the_way(folder, tmp_path):
    "The frames that refer to it decode, and are wrong: H.264 says so in its log only"
    def but(k): return lambda s, packets: (p for j, p in enumerate(packets) if j != k)
    p = remux(film(folder, 'h264.mp4'), tmp_path/'a.mp4', but(17))
    r, clean = VideoReader(p), VideoReader(film(folder, 'h264.mp4'))
    assert len(r) == N-1
    at = np.rint(r.times*FPS).astype(int)
    refused = 0
    for i in random.Random(0).sample(range(len(r)), len(r)):
        try: assert torch.equal(r[i], clean[int(at[i])]), i
        except VideoError as e:
            refused += 1
            assert 'a.mp4' in str(e)
    assert 0 < refused < 12


def test_a_cluster_that_does_not_match_its_sum(folder, tmp_path):
    src = film(folder, 'hevc.mkv')
    assert not _scan(src).hurt
    p = flip(src, tmp_path/'a.mkv', 20, .9)
    assert 20 in _scan(p).hurt
    with pytest.raises(CorruptVideoError, match='checksum'): VideoReader(p)[20]


def test_a_hole_of_zeros(folder, tmp_path):
    import av
    for name in ('hevc.mp4', 'vp9.webm'):
        src = film(folder, name)
        with av.open(str(src)) as c: pos, size = [(p.pos, p.size) for p in c.demux(video=0) if p.size][24]
        b = bytearray(src.read_bytes())
        b[pos+size//3:pos+size//3+80] = bytes(80)
        (tmp_path/name).write_bytes(b)
        assert 24 in _scan(tmp_path/name).hurt and not _scan(src).hurt
        with pytest.raises(CorruptVideoError, match='zeros'): VideoReader(tmp_path/name)[:]


@pytest.mark.parametrize('name', ['h264.ts', 'hevc.ts'])
def test_transport_streams_cut_in_the_middle(folder, tmp_path, name):
    "Wherever the last picture is torn, the cut is told; cut between two pictures, all that is there is right"
    src = film(folder, name)
    b, rng, told = src.read_bytes(), random.Random(1), 0
    whole = VideoReader(src)[:]
    assert len(whole) == N
    for _ in range(40 if LONG else 12):
        (tmp_path/name).write_bytes(b[:rng.randrange(len(b)//4, len(b))//188*188])
        try: r = VideoReader(tmp_path/name)
        except TruncatedVideoError as e:
            told += 1
            assert 'ends early' in str(e)
            first = read_number(VideoReader(tmp_path/name, partial=True)[:]).tolist()
            assert first == list(range(len(first)))
            continue
        assert torch.equal(r[:], whole[:len(r)]) # nothing is torn: the cut fell between two frames
    assert told > 3 # the other cuts, which is chance: frames are small


def test_hearing_leaves_the_log_as_it_was():
    import av.logging as log
    was = log.get_level(), log.get_skip_repeated()
    with hear() as said:
        with hear() as inner: log.log(log.ERROR, 'x', 'hurt')
        assert len(inner) == 1 and log.get_level() == log.WARNING
    assert (log.get_level(), log.get_skip_repeated()) == was and said == []


def test_a_source_is_its_content(tmp_path):
    rng = random.Random(0)
    b = bytearray(rng.randbytes(20_000_000))
    (tmp_path/'a.mp4').write_bytes(b)
    a = source_id(tmp_path/'a.mp4')
    b[9_000_000:9_300_000] = bytes(300_000)
    (tmp_path/'b.mp4').write_bytes(b)
    assert source_id(tmp_path/'b.mp4') != a, 'same size, same ends'
    (tmp_path/'a.mp4').rename(tmp_path/'c.mp4')
    assert source_id(tmp_path/'c.mp4') == a and dict(a) == source_id(tmp_path/'c.mp4'), 'a name is no identity'
    import hashlib
    h = hashlib.sha256(b[:1 << 20]+b[-(1 << 20):]).hexdigest()
    old = dict(name='old.mp4', bytes=len(b), sha256_ends=h)
    assert old == source_id(tmp_path/'b.mp4') and old != source_id('a label'), 'folders of before are known'

"""Streams under a deadline: exact in virtual time; files, pipes and FFmpeg's own source as live inputs."""
import os
import threading
import pytest
import torch
import torch.nn.functional as F
from vidlit.pyramid.realtime import (
    CoarseFine,
    EveryFrame,
    KeyFrames,
    LiveVideo,
    Paced,
    Regions,
    VirtualClock,
    Window,
    carry,
    run_live,
)
from vidlit.video.writing import write_video

FRAMES = [torch.full((1, 3, 56, 56), i/100) for i in range(90)]


def pool(x): return F.avg_pool2d(x, 14)


def live(cost, drop=True, fps=30, engine=None, **kw):
    return run_live(Paced(FRAMES, fps), engine or EveryFrame(pool), clock=VirtualClock(cost), drop=drop, **kw)


@pytest.mark.parametrize('ms, missed', ((10, 0), (33, 0), (34, 90)))
def test_fast_enough_or_not(ms, missed):
    r = live(lambda n: ms/1e3, drop=False)
    assert (r.dropped, len(r.done), r.missed)==(0, 90, missed)
    assert abs(r.at(.5)-ms/1e3)<1e-9 or ms>33


def test_spikes_of_key_frames_make_waits_and_drops():
    cost = lambda n: .12 if n%8==0 else .005
    r = live(cost)
    assert r.numbers[:3]==[0, 3, 4] # 0.12 s later frame 3 is the newest
    assert r.dropped>0 and r.at(.5)<1/30<r.at(.99)
    steady = live(lambda n: (.12+7*.005)/8)
    assert steady.dropped==0 and steady.at(.99)<r.at(.99)


def test_latency_is_from_arrival():
    r = live(lambda n: .1, limit=3)
    assert r.numbers==[0, 3, 6] and r.sent==7
    assert torch.allclose(r.latency, torch.full((3,), .1, dtype=torch.float64))


def test_each_result_is_of_its_frame():
    seen = []
    live(lambda n: .05, each=lambda i, f: seen.append((i, round(f.mean().item()*100))))
    assert all(i==v for i, v in seen) and 59<len(seen)<62


def test_carry_moves_by_whole_cells_between_grids():
    f = torch.randn(1, 4, 10, 10)
    flow = torch.zeros(1, 2, 20, 20)
    flow[:, 0] = 4
    assert torch.allclose(carry(f, flow)[..., :8], f[..., 2:], atol=1e-6)


def test_still_stream_costs_no_accuracy():
    gen = torch.Generator().manual_seed(0)
    x = torch.rand(1, 3, 112, 112, generator=gen)
    engines = (KeyFrames(pool, 3), KeyFrames(pool, 3, motion=None), Regions(pool, halo=0), Regions(pool, rule='turns'),
        Regions(pool, rule='document'), Window(EveryFrame(pool), 4), CoarseFine(pool, lambda y: F.avg_pool2d(y, 14)))
    for e in engines:
        for _ in range(6): out = e(x)
        assert torch.allclose(out, pool(x), atol=1e-5), e


def test_key_frames_come_when_the_picture_changes():
    gen = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 1, 3, 112, 112, generator=gen)
    e, did = KeyFrames(pool, 100, worst=.02), []
    for x in (a, a, a, b, b):
        e(x)
        did.append(e.did)
    assert did==['key', 'carry', 'carry', 'key', 'carry']


def test_every_tile_has_its_turn():
    calls = []
    def spy(x):
        calls.append(x.shape[-2:])
        return pool(x)
    gen = torch.Generator().manual_seed(0)
    e = Regions(spy, tiles=4, per_frame=2, halo=14, rule='error')
    for _ in range(9): e(torch.rand(1, 3, 112, 112, generator=gen))
    assert len(calls)==1+8*2 and max(max(s) for s in calls[1:])<=56


def test_fine_level_in_its_own_thread():
    gate = threading.Event()
    def fine(x):
        if x.mean()>.05: gate.wait(5)
        return pool(x)+1
    e = CoarseFine(fine, lambda y: F.avg_pool2d(y, 14), every=2, wait=False)
    outs = [e(FRAMES[i]).mean().item() for i in (0, 1)]
    for i in (10, 11, 12): outs.append(e(FRAMES[i]).mean().item()) # the fine level still works on frame 10
    gate.set()
    e.job[0].result(5)
    outs.append(e(FRAMES[13]).mean().item())
    e.close()
    assert e.job is None and all(abs(o-1-i/100)<.2 for o, i in zip(outs, (0, 1, 10, 11, 12, 13)))


def test_devices_are_used():
    if not torch.cuda.is_available(): pytest.skip('one device here: needs a GPU beside the CPU')
    where = []
    def net(x):
        where.append(x.device.type)
        return pool(x)
    out = CoarseFine(net, net, devices=('cpu', 'cuda'))(FRAMES[0])
    assert where==['cpu', 'cuda'] and out.device.type=='cpu'


@pytest.fixture(scope='module')
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp('live')/'v.ts'
    write_video(path, torch.arange(0, 250, 10, dtype=torch.uint8)[:, None, None, None].expand(25, 48, 64, 3), 25)
    return path


def test_file_is_paced_and_the_newest_frame_wins(video):
    with LiveVideo(video) as s: r = run_live(s, EveryFrame(pool))
    assert r.sent==25 and .8<r.done[-1]-r.arrived[0]<3
    with LiveVideo(video, pace=False) as s: assert run_live(s, EveryFrame(pool)).dropped>=0
    with LiveVideo(video, pace=False) as s: assert run_live(s, EveryFrame(pool), limit=1).numbers[0]<25


def test_a_pipe_is_a_live_stream(video, tmp_path):
    fifo = tmp_path/'camera'
    os.mkfifo(fifo)
    t = threading.Thread(target=lambda: fifo.write_bytes(video.read_bytes()))
    t.start()
    with LiveVideo(fifo, format='mpegts') as s: r = run_live(s, EveryFrame(pool))
    t.join(5)
    assert r.sent==25 and r.numbers[-1]==24


def test_ffmpegs_own_source():
    try: s = LiveVideo('testsrc=size=64x48:rate=30', format='lavfi', pace=True)
    except ValueError as e: pytest.skip(f'this FFmpeg has no lavfi: {e}')
    with s: r = run_live(s, EveryFrame(pool), limit=5)
    assert len(r.done)==5


def test_no_video_no_file(tmp_path):
    bad = tmp_path/'x.mp4'
    bad.write_bytes(b'nothing')
    with pytest.raises(ValueError, match='cannot open'): LiveVideo(bad)
    with pytest.raises(ValueError, match='cannot open'): LiveVideo(tmp_path/'none.mp4')

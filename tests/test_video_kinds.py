"""Videos as people have them: cut without re-encoding, entered in the middle, without stamps, damaged...

Every frame that is handed out carries its number; it is the right one, or the file or the frame is refused by name."""
import random
import warnings
from fractions import Fraction
import av
import numpy as np
import pytest
import torch
from vidlit.pretrain.ssv2 import find_videos
from vidlit.video.index import make_index, spoilt, video_info
from vidlit.video.reader import VideoError, VideoReader, write_video
from vidlit.video.sampling import list_csv, list_folder, list_ucf
from vidlit.video.writing import numbered_frame, read_number

N = 60
X264 = 'open-gop=1:keyint=12:min-keyint=12:bframes=3:b-adapt=0:scenecut=0'
SOURCES = {
    'h264-closed': ('libx264', {'g': 12, 'bf': 2}), 'h264-open': ('libx264', {'x264-params': X264}),
    'hevc-closed': ('libx265', {'x265-params': 'keyint=12:min-keyint=12:open-gop=0:bframes=3'}),
    'hevc-open': ('libx265', {'x265-params': 'keyint=12:min-keyint=12:open-gop=1:bframes=3'})}


@pytest.fixture(scope='module')
def sources(tmp_path_factory):
    d = tmp_path_factory.mktemp('sources')
    return {k: write_video(d/f'{k}.mp4', [numbered_frame(i) for i in range(N)], 10, codec=c, options=o)
        for k, (c, o) in SOURCES.items()}


def cut(src, dst, at, every=None):
    "Copy packets from the key frame at or before `at` seconds; what is shown earlier gets a negative stamp"
    with av.open(str(src)) as a, av.open(str(dst), 'w') as b:
        s = a.streams.video[0]
        out, t = b.add_stream_from_template(s), int(at/s.time_base)
        a.seek(t, stream=s)
        for p in a.demux(s):
            if p.dts is None: continue
            p.pts, p.dts, p.stream = p.pts-t, p.dts-t, out
            b.mux(p)
    return dst


def right(r, first=None):
    "In order and scattered: the numbers are consecutive up to the last frame"
    n = read_number(r[:]).tolist()
    assert n == list(range(n[0], N)) and n[0] >= (first or 0)
    for i in np.random.default_rng(0).permutation(len(r))[:5]: assert int(read_number(r[int(i)])) == n[i]


@pytest.mark.parametrize('ext', ['mp4', 'mov', 'mkv', 'ts'])
@pytest.mark.parametrize('kind', SOURCES)
def test_lossless_cuts(sources, tmp_path, kind, ext):
    for at in (.05, .98, 2.22, 4.39):
        path = cut(sources[kind], tmp_path/f'{at}.{ext}', at)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            try: r = VideoReader(path)
            except VideoError as e:
                # x264 repeats its parameters before closed groups only: nobody can enter the stream here
                assert (kind, ext) == ('h264-open', 'ts') and 'no frame can be decoded' in str(e)
                continue
        right(r, int(np.ceil(at*10-1e-6)) if ext in ('mp4', 'mov') else None)


def test_entering_between_key_frames_is_said_once(sources, tmp_path):
    with av.open(str(sources['h264-closed'])) as a, av.open(str(tmp_path/'a.ts'), 'w') as b:
        s = a.streams.video[0]
        o = b.add_stream_from_template(s)
        for k, p in enumerate(a.demux(s)):
            if p.dts is None or k < 8: continue
            p.stream = o
            b.mux(p)
    with pytest.warns(UserWarning, match='frames at the start cannot be shown') as w: r = VideoReader(tmp_path/'a.ts')
    assert len(w) == 1
    right(r)


def test_elementary_streams(tmp_path):
    for codec, ext in (('libx264', 'h264'), ('libx265', 'hevc'), ('mpeg2video', 'm2v')):
        p = write_video(tmp_path/f'a.{ext}', [numbered_frame(i) for i in range(N)], 25, codec=codec)
        r = VideoReader(p)
        assert read_number(r[[40, 3, 59]]).tolist() == [40, 3, 59] and len(r) == N


def test_a_torn_packet_in_the_middle(sources, tmp_path):
    with av.open(str(sources['h264-closed'])) as a, av.open(str(tmp_path/'a.ts'), 'w') as b:
        s = a.streams.video[0]
        o = b.add_stream_from_template(s)
        for p in a.demux(s):
            if p.dts is not None:
                p.stream = o
                b.mux(p)
    raw = (tmp_path/'a.ts').read_bytes()
    seen = 0
    for at in range(len(raw)//188//4*188, len(raw)//2, 188*3):
        (tmp_path/'b.ts').write_bytes(raw[:at]+raw[at+188:])
        try: VideoReader(tmp_path/'b.ts')
        except VideoError as e:
            if 'damaged at' not in str(e): continue
        else: continue
        seen += 1
        first, rest = (VideoReader(tmp_path/'b.ts', partial=k) for k in (True, 'skip'))
        n = read_number(rest[:]).tolist()
        assert read_number(first[:]).tolist() == list(range(len(first))) == n[:len(first)]
        assert n == sorted(n) and n[-1] == N-1 and len(first) < len(rest) < N
    assert seen > 3


@pytest.mark.parametrize('codec,ext,opts', [('libx264', 'mp4', {'g': 12, 'bf': 3}), ('libx265', 'mp4',
    {'x265-params': 'keyint=12:bframes=3'}), ('libx264', 'mkv', {'x264-params': X264})])
def test_no_order_of_asking_hands_out_a_frame_that_leans_on_damage(tmp_path, codec, ext, opts):
    "A packet is emptied: the decoder notices, and nothing that leans on it is shown"
    src = write_video(tmp_path/f'a.{ext}', [numbered_frame(i) for i in range(N)], 10, codec=codec, options=opts)
    with av.open(str(src)) as c: spots = [(p.pos, p.size) for p in c.demux(video=0) if p.size]
    rng, refused = random.Random(0), 0
    for k in (17, 29, 40):
        b = bytearray(src.read_bytes())
        pos, size = spots[k]
        b[pos+4:pos+size] = bytes(size-4)
        (tmp_path/f'b.{ext}').write_bytes(b)
        r = VideoReader(tmp_path/f'b.{ext}')
        for i in rng.sample(range(N), N):
            try: assert int(read_number(r[i])) == i, (k, i)
            except VideoError: refused += 1
    assert refused


def test_spoilt_is_the_definition(sources):
    x = make_index(sources['h264-open'])
    for d in range(0, N, 7):
        brute = [g <= d <= r or bool(lead) and b <= d < g
            for r, g, b, lead in zip(x.rank, x.group, x.before, x.lead)]
        assert spoilt(x, [d]).tolist() == brute
    assert not spoilt(x, []).any()


def test_rates_come_from_stamps(tmp_path):
    def at(path, stamps, rate):
        with av.open(str(path), 'w') as c:
            s = c.add_stream('libx264', rate=rate, options={'bf': '0'})
            s.width, s.height, s.pix_fmt = 80, 48, 'yuv420p'
            s.codec_context.time_base = Fraction(1, 1000)
            for i, t in enumerate(stamps):
                f = av.VideoFrame.from_ndarray(numbered_frame(i).numpy(), format='rgb24')
                f.pts, f.time_base = t, Fraction(1, 1000)
                c.mux(s.encode(f))
            c.mux(s.encode())
        return video_info(path)
    i = at(tmp_path/'a.mkv', range(0, 3000, 100), 30)
    assert abs(float(i.fps)-10) < .01 and not i.vfr
    i = at(tmp_path/'b.mkv', [0, 100, 200, 1200, 1300], 30)
    assert i.vfr and float(i.fps) < 5
    ntsc = write_video(tmp_path/'c.mkv', [numbered_frame(i) for i in range(9)], '30000/1001')
    assert video_info(ntsc).fps == Fraction(30000, 1001)


def test_names_are_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('12:30.mp4', '-i.mp4', '50%d.mp4', 'a b?.mp4', 'http:x.mp4'):
        write_video(name, [numbered_frame(i) for i in range(3)], 10)
        assert read_number(VideoReader(name)[:]).tolist() == [0, 1, 2]
    from PIL import Image
    Image.fromarray(numbered_frame(5).numpy()).save('50%d.png')
    assert int(read_number(VideoReader('50%d.png')[0])) == 5


def test_pixels_that_are_not_square_and_deep_ones(tmp_path):
    with av.open(str(tmp_path/'a.mp4'), 'w') as c:
        s = c.add_stream('libx264', rate=10)
        s.width, s.height, s.pix_fmt = 80, 48, 'yuv420p'
        s.codec_context.sample_aspect_ratio = Fraction(2)
        for i in range(3): c.mux(s.encode(av.VideoFrame.from_ndarray(numbered_frame(i).numpy(), format='rgb24')))
        c.mux(s.encode())
    i = video_info(tmp_path/'a.mp4')
    assert i.pixel_aspect == 2 and i.dict()['pixel_aspect'] == '2' and i.width == 80
    assert VideoReader(tmp_path/'a.mp4')[0].shape == (48, 80, 3)
    assert VideoReader(tmp_path/'a.mp4', square=True)[:].shape == (3, 48, 160, 3)
    deep = write_video(tmp_path/'b.mkv', [numbered_frame(i) for i in range(3)], 10, codec='ffv1', pix_fmt='gbrp10le')
    assert video_info(deep).bits == 10
    x = VideoReader(deep, dtype=torch.uint16)[0]
    assert x.dtype == torch.uint16 and x.int().max() > 255
    assert ((x.float()/257-VideoReader(deep)[0].float()).abs() < 1.5).all()
    with pytest.raises(ValueError, match='float32'): VideoReader(deep, dtype=torch.float32)


def test_of_several_streams_ffmpegs_choice_is_the_default(tmp_path):
    with av.open(str(tmp_path/'a.mkv'), 'w') as c:
        ss = []
        for w in (80, 160):
            s = c.add_stream('libx264', rate=10)
            s.width, s.height, s.pix_fmt = w, 48, 'yuv420p'
            ss.append(s)
        for i in range(3):
            for s in ss:
                c.mux(s.encode(av.VideoFrame.from_ndarray(numbered_frame(i, 48, s.width).numpy(), format='rgb24')))
        for s in ss: c.mux(s.encode())
    with av.open(str(tmp_path/'a.mkv')) as c: best = c.streams.best('video').width
    r = VideoReader(tmp_path/'a.mkv')
    assert r.info.streams == 2 and r.info.width == best
    assert [VideoReader(tmp_path/'a.mkv', stream=k)[0].shape[1] for k in (0, 1)] == [80, 160]
    with pytest.raises(VideoError, match='no stream 2'): VideoReader(tmp_path/'a.mkv', stream=2)


def test_pictures_with_exif(tmp_path):
    from PIL import Image
    im = Image.fromarray(numbered_frame(9).numpy())
    for o, shape in ((1, (48, 80)), (6, (80, 48)), (3, (48, 80)), (2, (48, 80))):
        e = Image.Exif()
        e[274], e[271] = o, 'camera'
        im.save(tmp_path/f'{o}.jpg', exif=e, quality=95)
        assert VideoReader(tmp_path/f'{o}.jpg')[0].shape[:2] == shape
    assert int(read_number(VideoReader(tmp_path/'2.jpg')[0].flip(1))) == 9
    assert int(read_number(VideoReader(tmp_path/'6.jpg')[0].rot90(1))) == 9


# ---- lists

def touch(root, *names):
    for n in names:
        (root/n).parent.mkdir(parents=True, exist_ok=True)
        (root/n).write_bytes(b'x')


def test_folders_of_splits(tmp_path):
    touch(tmp_path, 'train/run/1.mp4', 'train/walk/2.mp4', 'val/walk/3.mp4', 'test/run/4.mp4', 'notes/5.mp4',
        'train/.hidden/6.mp4', 'train/run/._1.mp4', '__MACOSX/train/run/1.mp4')
    v = list_folder(tmp_path)
    assert v.vocab == ['run', 'walk'] and [p.name for p in v.paths] == ['4.mp4', '1.mp4', '2.mp4', '3.mp4']
    assert [p.name for p in list_folder(tmp_path, split='train').paths] == ['1.mp4', '2.mp4']
    assert list_folder(tmp_path, split='valid').labels == [1] and list_folder(tmp_path, split='test').labels == [0]
    for split, want in (('train', ['1.mp4', '2.mp4']), ('test', ['4.mp4'])):
        assert [p.name for p in find_videos(tmp_path, split).paths] == want, 'nothing is scored that was trained on'
    touch(tmp_path, 'test/fly/7.mp4')
    with pytest.raises(ValueError, match="'fly' is not among those of train"): list_folder(tmp_path)
    with pytest.raises(ValueError, match='dev'): list_folder(tmp_path, split='dev')


def test_equal_names_below_the_classes(tmp_path):
    touch(tmp_path, 'walk/front/1.mp4', 'run/front/1.mp4', 'walk/side/1.mp4')
    v = list_folder(tmp_path)
    assert v.vocab == ['run', 'walk'] and v.labels == [0, 1, 1]
    touch(tmp_path/'b', 'all/x/cam/1.mp4', 'all/y/cam/1.mp4')
    with pytest.raises(ValueError, match="'cam' is a folder in several places"): list_folder(tmp_path/'b')


def test_lists_of_any_editor(tmp_path):
    touch(tmp_path, 'a b.mp4', 'c,d.mp4')
    (tmp_path/'l.csv').write_bytes('\ufeff"a b.mp4",3\r\nc,d.mp4 4\r\n\r\n'.encode())
    v = list_csv(tmp_path/'l.csv')
    assert [p.name for p in v.paths] == ['a b.mp4', 'c,d.mp4'] and v.labels == [3, 4]
    (tmp_path/'l.csv').write_text('a b.mp4 300 4\n')
    with pytest.raises(ValueError, match='three columns'): list_csv(tmp_path/'l.csv')
    (tmp_path/'classInd.txt').write_bytes('\ufeff1 Jump Rope\n2 Run\n'.encode())
    (tmp_path/'trainlist01.txt').write_text('Jump Rope/v a.avi 1\nRun/b.avi 2\n')
    (tmp_path/'testlist01.txt').write_text('Jump Rope/c d.avi\n')
    v = list_ucf(tmp_path, tmp_path)
    assert v.labels == [0, 1] and v.paths[0] == tmp_path/'Jump Rope'/'v a.avi'
    assert list_ucf(tmp_path, tmp_path, train=False).paths == [tmp_path/'Jump Rope'/'c d.avi']


def test_whatever_a_frame_raises_names_the_file(sources, monkeypatch):
    r = VideoReader(sources['h264-closed'])
    def broken(self, n, f, hurt): raise RuntimeError('a kind of side data from next year')
    monkeypatch.setattr(VideoReader, '_judged', broken)
    with pytest.raises(VideoError, match='h264-closed.mp4.*from next year'): r[3]
    with pytest.raises(ValueError, match="partial must be True, False or 'skip', got 'all'"):
        VideoReader(sources['h264-closed'], partial='all')


def test_a_torn_packet_at_the_end_is_a_cut(tmp_path):
    "Wherever the file is cut, it 'ends early'; a torn last packet is not damage in the middle"
    frames = [numbered_frame(i) for i in range(N)]
    raw = write_video(tmp_path/'a.flv', frames, 10, options={'g': 12}).read_bytes()
    for k in range(6, 20):
        (tmp_path/'b.flv').write_bytes(raw[:len(raw)*k//20-k])
        with pytest.raises(VideoError, match='ends early'): VideoReader(tmp_path/'b.flv')
        first = read_number(VideoReader(tmp_path/'b.flv', partial=True)[:]).tolist()
        assert first == list(range(len(first))) and len(first) > 5

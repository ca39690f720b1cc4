"The pseudo-label engine beyond its lessons: refused addresses, a real server, kills, several processes, damaged stores"
import http.server
import io
import multiprocessing as mp
import os
import signal
import threading
import time
from collections import Counter
from functools import partial
from types import SimpleNamespace
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from vidlit.depth import images as P
from vidlit.depth.measure import Kind
from vidlit.depth.pseudo_labels import (
    Labels,
    LabelSet,
    Teacher,
    consistency,
    document_score,
    in_batches,
    label_images,
    pack,
    unpack,
)
from vidlit.floor.store import CacheMismatch, Manifest, StoreError

fork = mp.get_context('fork')


def noise(seed, h=40, w=48):
    return torch.randint(256, (h, w, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def png(x):
    out = io.BytesIO()
    Image.fromarray(x.numpy()).save(out, 'PNG')
    return out.getvalue()


class Noise:
    "Pictures that need no disk"
    def __init__(self, n, sizes=((40, 48),)): self.names, self.sizes = [f'noise/{i}' for i in range(n)], sizes
    def __len__(self): return len(self.names)
    def __getitem__(self, i): return noise(i, *self.sizes[i % len(self.sizes)])


def brightness(frames): return frames.float().mean(-1)+torch.arange(frames.shape[1])[:, None]  # a teacher that is quick


def slow(frames, log, wait=.02):
    "The same, which writes down what it was asked"
    with open(log, 'a') as f: f.writelines(f'{int(o.long().sum())}\n' for o in frames)
    time.sleep(wait)
    return brightness(frames)


TEACHER = Teacher(brightness)


def content(d):
    return {o.relative_to(d).as_posix(): o.read_bytes() for o in d.rglob('*') if o.is_file() and '.work' not in o.parts}


# addresses

class Handler(http.server.BaseHTTPRequestHandler):
    answers = {}
    asked = []
    def log_message(self, *_): pass
    def do_GET(self):
        self.asked.append((self.path, self.headers['Host']))
        status, headers, body, drip = self.answers.get(self.path, (404, {}, b'', 0))
        self.send_response(status)
        for k, v in headers.items(): self.send_header(k, v)
        self.end_headers()
        try:
            for i in range(0, len(body), 50 if drip else len(body) or 1):
                self.wfile.write(body[i:i+(50 if drip else len(body))])
                self.wfile.flush()
                time.sleep(drip)
        except OSError: pass


@pytest.fixture
def server():
    "A real server on this machine; Handler.answers says what it has"
    Handler.answers, Handler.asked = {}, []
    s = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=s.serve_forever, daemon=True).start()
    yield s.server_port
    s.shutdown()
    s.server_close()


def tunnel(port):
    "The real connection, led to the server on this machine whatever public address was checked"
    return lambda u, p, address, seconds: P.Opened(u, port, '127.0.0.1', seconds)


def outside(host, port): return [host] if host[0].isdigit() else ['93.184.216.34']


PNG = {'Content-Type': 'image/png'}


def test_local_server_is_refused(server):
    "Nothing is sent to it, by number, by name, by IPv6, by other spellings"
    Handler.answers = {'/a.png': (200, PNG, png(noise(0)), 0)}
    for host in ('127.0.0.1', 'localhost', '[::1]', '[::ffff:127.0.0.1]', '0.0.0.0', '2130706433', '127.1'):
        with pytest.raises(P.FetchError, match='not public|no address'): P.fetch_image(f'http://{host}:{server}/a.png')
    with pytest.raises(P.FetchError, match='is 127.0.0.1'):
        P.fetch_image(f'http://innocent.example:{server}/a.png', resolve=lambda h, p: ['127.0.0.1'])
    assert Handler.asked == []


def test_real_connection(server):
    "Through a real socket: the host's own name is sent, redirects are followed and checked"
    data = png(noise(0))
    Handler.answers = {'/a.png?x=1': (200, {**PNG, 'Content-Length': str(len(data))}, data, 0),
        '/go': (302, {'Location': 'http://b.example/a.png?x=1'}, b'', 0),
        '/in': (302, {'Location': f'http://127.0.0.1:{server}/a.png'}, b'', 0),
        '/meta': (307, {'Location': 'http://169.254.169.254/latest'}, b'', 0)}
    get = partial(P.fetch_image, opener=tunnel(server), resolve=outside)
    assert get('http://a.example/go') == data
    assert [o[1].split(':')[0] for o in Handler.asked] == ['a.example', 'b.example']
    for path in ('/in', '/meta'):
        with pytest.raises(P.FetchError, match='not public'): get(f'http://a.example{path}')
    assert len(Handler.asked) == 4


def test_name_is_looked_up_once(server):
    "A second answer of the name server is never asked for: the checked address is the one connected to"
    answers = iter([['93.184.216.34'], ['127.0.0.1']])
    seen = []
    def opener(u, port, address, seconds):
        seen.append(address)
        return SimpleNamespace(status=404, headers={}, close=lambda: None)
    with pytest.raises(P.FetchError, match='answered 404'):
        P.fetch_image('http://a.example/x', opener=opener, resolve=lambda h, p: next(answers))
    assert seen == ['93.184.216.34'] and next(answers) == ['127.0.0.1']


def test_limits_on_a_real_connection(server):
    Handler.answers = {'/big': (200, PNG, b'x'*5000, 0), '/drip': (200, PNG, b'x'*50_000, .1),
        '/html': (200, {'Content-Type': 'text/html'}, b'', 0)}
    get = partial(P.fetch_image, opener=tunnel(server), resolve=outside, max_bytes=1000)
    with pytest.raises(P.FetchError, match='more than 1000'): get('http://a.example/big')
    with pytest.raises(P.FetchError, match='text/html'): get('http://a.example/html')
    with pytest.raises(P.FetchError, match='SSL'): get('https://a.example/big')
    with pytest.raises(P.FetchError): get('http://a.example/drip', max_bytes=10**6, seconds=1.)
    assert not [o for o in threading.enumerate() if isinstance(o, threading.Timer) and not o.finished.is_set()]


@pytest.mark.parametrize('url', ['', 'a.png', 'javascript:1', 'data:image/png;base64,AA', 'gopher://a.example/',
    'http://', 'http://a b/',
    'http://a.example:x/', 'http://[::1/'])
def test_no_addresses(url):
    with pytest.raises(P.FetchError): P.check_url(url, outside)


@given(st.integers(0, 2**32-1))
@settings(max_examples=300, deadline=None)
def test_public_is_global(n):
    import ipaddress
    ip = ipaddress.IPv4Address(n)
    assert P.public(str(ip)) == (ip.is_global and not ip.is_multicast)
    if not ip.is_global: assert not P.public(f'::ffff:{ip}') and not P.public(f'2002:{n >> 16:x}:{n & 0xffff:x}::')


def test_list_is_resumed(tmp_path):
    "Killed in the middle: what is there is not asked again"
    asked, data = [], png(noise(1))
    class Stop(BaseException): pass
    def opener(u, *a):
        asked.append(u.path)
        if len(asked) == 3: raise Stop
        return SimpleNamespace(status=200, headers=PNG, read=io.BytesIO(data).read, close=lambda: None)
    urls = [f'http://a.example/{i}' for i in range(5)]
    with pytest.raises(Stop): P.fetch_list(urls, tmp_path, opener=opener, resolve=outside)
    got = P.fetch_list(urls, tmp_path, opener=opener, resolve=outside)
    assert Counter(asked) == {'/0': 1, '/1': 1, '/2': 2, '/3': 1, '/4': 1}
    assert len(P.fetched(tmp_path, got)) == 5 and not [*tmp_path.glob('.tmp*')]


# images

@pytest.mark.parametrize('mode', ['L', 'RGBA', 'P', 'I;16', '1', 'CMYK'])
def test_modes(tmp_path, mode):
    im = Image.fromarray(noise(0)[...,
        0].numpy()).convert('I').convert('I;16') if mode == 'I;16' else Image.fromarray(noise(0).numpy()).convert(mode)
    im.save(tmp_path/('x.tif' if mode == 'CMYK' else 'x.png'))
    x = P.image_folder(tmp_path)[0]
    assert x.shape == (40, 48, 3) and x.dtype == torch.uint8


@given(st.binary(max_size=300), st.integers(0, 200))
@settings(max_examples=80, deadline=None)
def test_rubbish(data, at):
    "Any bytes are an image or a BadImage"
    good = png(noise(0, 8, 8))
    for b in (data, good[:at], good[:at]+data):
        try: assert P.decode_image(b).dtype == torch.uint8
        except P.BadImage: pass


# labels

@given(st.integers(0, 2**31), st.sampled_from(['png16', 'float16']), st.floats(-1e4, 1e4), st.floats(1e-3, 1e4))
@settings(max_examples=60, deadline=None)
def test_round_trip(seed, storage, lo, reach):
    x = torch.rand(5, 7, generator=torch.Generator().manual_seed(seed))*reach+lo
    x[0, 0] = float('nan')
    y = unpack(*pack(x, storage))[0]
    span = (x[1:].max()-x[1:].min()).item()
    assert y[0, 0].isnan()
    assert (y-x)[1:].abs().max() <= span*(1/65534*.51 if storage == 'png16' else 2**-11)+1e-6*(abs(lo)+reach)


def test_batches_do_not_depend_on_the_past():
    "A shard's batches are the same however the run came to it, and labels of mixed sizes are right"
    sizes = [(40, 48), (40, 48), (48, 40)]
    src = Noise(11, sizes)
    good = {i: src[i] for i in range(11)}
    assert [i for b in in_batches(good, 4) for i in b] == [*range(11)]
    assert all(len({good[i].shape for i in b}) == 1 and len(b) <= 4 for b in in_batches(good, 4))


def test_bad_images_have_reasons(tmp_path):
    for i in range(3): (tmp_path/f'{i}.png').write_bytes(png(noise(i)))
    (tmp_path/'3.png').write_bytes(png(torch.full((40, 40, 3), 9).byte()))
    (tmp_path/'4.png').write_bytes(b'no image')
    src = P.image_folder(tmp_path)
    out = label_images(TEACHER, src, tmp_path/'labels', per=2)
    labels = Labels(tmp_path/'labels')
    assert out['kept'] == 3 and labels.kept() == [0, 1, 2]
    assert labels.why() == {'nearly constant': 1, 'cannot be decoded': 1}
    with pytest.raises(StoreError, match='4.png has no label: cannot be decoded'): labels[4]
    with pytest.raises(ValueError, match='without a confidence'): labels.kept(.5)
    torch.testing.assert_close(labels[1][0], brightness(noise(1)[None])[0], atol=.01, rtol=0)
    (tmp_path/'1.png').write_bytes(png(noise(77)))
    with pytest.raises(CacheMismatch, match='1.png has changed'): LabelSet(labels, src)[1]


def _label(folder, log, wait):
    label_images(Teacher(partial(slow, log=str(log), wait=wait), tag='slow'), Noise(60), folder, per=6, batch=2)


def test_killed_and_resumed(tmp_path):
    "kill -9 at several moments: the same bytes as an undisturbed run, nothing asked twice but the shards in flight"
    log, kills = tmp_path/'log', 0
    for wait in (.25, .4, .3):
        p = fork.Process(target=_label, args=(tmp_path/'killed', log, .03))
        p.start()
        time.sleep(wait)
        if p.is_alive():
            os.kill(p.pid, signal.SIGKILL)
            kills += 1
        p.join()
    _label(tmp_path/'killed', log, 0)
    _label(tmp_path/'whole', tmp_path/'log2', 0)
    assert kills and content(tmp_path/'killed') == content(tmp_path/'whole')
    twice = sum(k-1 for k in Counter(log.read_text().split()).values())
    assert twice <= 6*kills
    assert Manifest(tmp_path/'killed').check() == {} and len(Manifest(tmp_path/'killed').files) == 10


def test_two_processes_share(tmp_path):
    "Every image is asked about once; the result is that of one process"
    ps = [fork.Process(target=_label, args=(tmp_path/'two', tmp_path/'log', .01)) for _ in range(2)]
    for p in ps: p.start()
    for p in ps: p.join()
    _label(tmp_path/'two', tmp_path/'log', 0)  # whoever finished last may have found the other still writing
    _label(tmp_path/'one', tmp_path/'log2', 0)
    assert set(Counter((tmp_path/'log').read_text().split()).values()) == {1}
    assert content(tmp_path/'two') == content(tmp_path/'one')


def test_strangers_are_refused(tmp_path):
    src = Noise(4)
    label_images(TEACHER, src, tmp_path, per=2)
    news = dict(teacher=Teacher(brightness, tag='other'), source=Noise(5), storage='float16', per=3,
        confidence=consistency, rules=None, batch=3)
    for what, new in ((k, {k: v}) for k, v in news.items()):
        with pytest.raises(CacheMismatch, match=what):
            label_images(**{**dict(teacher=TEACHER, source=src, folder=tmp_path, per=2), **new})
    with pytest.raises(ValueError, match='png16'): label_images(TEACHER, src, tmp_path, storage='exr')


def test_damage_is_seen(tmp_path):
    label_images(TEACHER, Noise(4), tmp_path, per=2)
    f = tmp_path/'shards/000001.zip'
    whole = f.read_bytes()
    f.write_bytes(whole[:-40])
    assert Manifest(tmp_path).check()['shards/000001.zip'] == f'{len(whole)-40} bytes instead of {len(whole)}'
    with pytest.raises(StoreError, match='000001.zip cannot be read'): Labels(tmp_path)
    f.unlink()
    with pytest.raises(StoreError, match='1 shards are missing'): Labels(tmp_path)
    assert Labels(tmp_path, partial=True).kept() == [0, 1]


def test_shard_written_but_not_logged(tmp_path):
    "A kill between the rename and the log line: the shard is taken as it is"
    log = tmp_path/'log'
    _label(tmp_path/'a', log, 0)
    rows = (tmp_path/'a/.work/done.jsonl').read_bytes().splitlines(keepends=True)
    (tmp_path/'a/.work/done.jsonl').write_bytes(b''.join(rows[:-1]))
    before = log.read_text()
    _label(tmp_path/'a', log, 0)
    assert log.read_text() == before and (tmp_path/'a/.work/done.jsonl').read_bytes() == b''.join(rows)


def test_report_tells_the_truth(tmp_path):
    seen = []
    label_images(TEACHER, Noise(10), tmp_path, per=4, batch=3, report=seen.append)
    assert [o['done'] for o in seen] == [3, 4, 7, 8, 10] and [o['kept'] for o in seen] == [3, 4, 7, 8, 10]
    for o in seen: assert o['left'] == pytest.approx((10-o['done'])/o['rate'])


def test_metric_teacher():
    t = Teacher(lambda x: 2.+brightness(x)/100, tag='m')
    t.kind = Kind.depth
    x = noise(0)[None]
    torch.testing.assert_close(t(x), 1/(2+brightness(x)/100))


def test_confidences():
    "One depends on the unit and not on a shift; agreement on neither; a tilted map does not agree with its mirror"
    z = torch.rand(3, 12, 12, generator=torch.Generator().manual_seed(0))*3
    torch.testing.assert_close(document_score(z+5), document_score(z), atol=1e-4, rtol=1e-4)
    assert (document_score(z*.01) == 0).all() and (document_score(z*50) == 0).all()
    x = torch.stack([noise(i) for i in range(2)])
    lean = Teacher(lambda f: brightness(f)*0+torch.arange(f.shape[2]).float(), tag='leans to the right')
    a, b = (consistency(t, x, t(x), scales=()) for t in (lean, Teacher(brightness, tag='y')))
    assert a.mean() < .2 and b.mean() > .99  # a map turned inside out is no agreement
    blind = Teacher(lambda f: torch.rand(f.shape[:3], generator=torch.Generator().manual_seed(int(f[0, 0, 0, 0]))),
        tag='z')
    assert consistency(blind, x, blind(x)).mean() < .5


def test_names_are_stable(tmp_path):
    for o in ('b/2.png', 'a/1.PNG', 'a/.hidden.png', 'c.txt'):
        (tmp_path/o).parent.mkdir(exist_ok=True)
        (tmp_path/o).write_bytes(png(noise(0)))
    assert P.image_folder(tmp_path).names == ['a/1.PNG', 'b/2.png']
    with pytest.raises(ValueError, match='no image'): P.image_folder(tmp_path, ends=['.webp'])
    with pytest.raises(ValueError, match='not a folder'): P.image_folder(tmp_path/'gone')
    assert P.image_folder(tmp_path)[0].shape == (40, 48, 3)


def test_videos_are_labelled(tmp_path):
    "A folder of videos, through video.sampling; a broken one costs a row, not the run"
    from vidlit.video.reader import write_video
    from vidlit.video.sampling import list_folder
    write_video(tmp_path/'a.mp4', torch.stack([noise(i) for i in range(6)]), 10)
    (tmp_path/'b.mp4').write_bytes(b'no video')
    videos = P.VideoImages(list_folder(tmp_path).paths, every=2, root=tmp_path)
    out = label_images(TEACHER, videos, tmp_path/'labels', per=2)
    rows = Labels(tmp_path/'labels').rows
    assert out['kept'] == 3 and [r['name'] for r in rows.values()] == ['a.mp4#0', 'a.mp4#2', 'a.mp4#4',
        'b.mp4#0'] and 'b.mp4' in rows[3]['why']
    x, d = LabelSet(Labels(tmp_path/'labels'), videos)[1]
    torch.testing.assert_close(d[0], brightness((x*255).round().byte().permute(1, 2, 0)[None])[0], atol=.01, rtol=0)

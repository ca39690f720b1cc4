"The codec's files: the same bits in other processes, damage refused with the place, the command"
import json
import os
import random
import subprocess
import sys
import zlib
import numpy as np
import pytest
import torch
from vidlit.cli.app import app, run_app
from vidlit.pyramid.neural_codec import (
    Codec,
    CodecConfig,
    Frozen,
    IntConv,
    codec_clips,
    counts,
    fold,
    normal_counts,
    unfold,
)

pytest.importorskip('constriction')
import vidlit.cli.codec  # noqa: E402, F401
from vidlit.pyramid import codec_file as cf  # noqa: E402

CODE = """
import sys, hashlib, torch
torch.set_num_threads(int(sys.argv[2]))
from vidlit.pyramid.codec_file import decode_video
clip, _ = decode_video(open(sys.argv[1], 'rb').read())
print(hashlib.sha256(clip.tobytes()).hexdigest(), torch.backends.cpu.get_cpu_capability())
"""


@pytest.fixture(scope='module')
def clip(): return codec_clips([9001], t=5, side=112)[0].permute(0, 2, 3, 1).numpy()[:,:104]  # no multiple of 16


@pytest.fixture(scope='module')
def data(clip): return cf.encode_video(clip, step=12, levels=3, fps=30000/1001)


def test_same_bits_on_other_instruction_sets_and_threads(data, tmp_path):
    "Encoded here; decoded in other processes"
    import hashlib
    (tmp_path/'a.vlc').write_bytes(data)
    want = hashlib.sha256(cf.decode_video(data)[0].tobytes()).hexdigest()
    seen = set()
    for cap, threads in (('default', 2), ('avx2', 1), (None, 3)):
        env = {k: v for k, v in os.environ.items() if k not in ('ATEN_CPU_CAPABILITY', 'OMP_NUM_THREADS')}
        if cap: env['ATEN_CPU_CAPABILITY'] = cap
        args = [sys.executable, '-c', CODE, str(tmp_path/'a.vlc'), str(threads)]
        r = subprocess.run(args, env=env, capture_output=True, text=True)
        assert r.returncode == 0, r.stderr[-1500:]
        got, name = r.stdout.split()[:2]
        assert got == want, (cap, threads)
        seen.add(name)
    assert len(seen) > 1 or 'DEFAULT' in seen  # the variable does choose another instruction set


def test_encoder_closes_the_loop(clip, data):
    "What the decoder gives is what the encoder used as reference: checksums of frames are the encoder's"
    back, head = cf.decode_video(data)
    assert back.shape == clip.shape and head.levels == 3 and float(head.fps) == pytest.approx(29.97, abs=.001)
    assert np.square(back.astype(float)-clip).mean() < 200


def test_double_precision_gives_the_same(data):
    "The decoder in float64 throughout: the same picture"
    codec = cf.load_codec()
    want, real = cf.decode_video(data, codec)[0], cf.freeze
    try:
        cf.freeze = lambda net: {n: Frozen(m, force64=True) for n, m in net.named_modules() if isinstance(m, IntConv)}
        assert np.array_equal(cf.decode_video(data, codec)[0], want)
    finally: cf.freeze = real


def test_every_layer_is_provably_exact():
    for name, m in cf.load_codec().named_modules():
        if isinstance(m, IntConv): assert m.bound() < 2**24, name


def test_random_damage_is_refused(data):
    dice = random.Random(0)
    codec = cf.load_codec()
    for _ in range(25):
        bad = bytearray(data)
        at = dice.randrange(len(bad))
        bad[at] ^= 1 << dice.randrange(8)
        with pytest.raises(cf.CodecError): cf.decode_video(bytes(bad), codec)
    for cut in (0, 3, 20, 40, 60, len(data)-1):
        with pytest.raises(cf.CodecError, match='ends|hold at most'): cf.decode_video(data[:cut], codec)


def test_place_is_named(data):
    first = int.from_bytes(data[36:40], 'little')
    bad = bytearray(data)
    bad[36+12+first+12+5] ^= 8  # in the body of the second record, which is frame 4
    with pytest.raises(cf.CodecError, match=rf'frame 4 \(record 1, byte {36+12+first}\): its \d+ bytes are damaged'):
        cf.decode_video(bytes(bad))


def test_coarse_levels_need_no_more_bytes(data, clip):
    "The first level decodes from the first bytes alone"
    coarse = cf.decode_video(data, level=0)[0]
    at, n = 36, 2  # frames 0 and 4
    for _ in range(n): at += 12+int.from_bytes(data[at:at+4], 'little')
    assert np.array_equal(cf.decode_video(data[:at], level=0)[0], coarse) and len(coarse) == n
    assert np.array_equal(cf.decode_video(data)[0][[0, 4]], coarse)


def test_header_fields_cannot_be_forged(data):
    h = bytearray(data[:36])
    h[4] ^= 1
    h[32:36] = zlib.crc32(bytes(h[:32])).to_bytes(4, 'little')
    with pytest.raises(cf.CodecError): cf.decode_video(bytes(h)+data[36:])


def test_counts_are_whole_and_positive():
    c = counts(torch.rand(7, 31, dtype=torch.float64, generator=torch.Generator().manual_seed(0))**9)
    assert (c.sum(-1) == 2**16).all() and c.min() >= 1 and (normal_counts().sum(-1) == 2**16).all()


def test_fold_and_refusals(clip):
    x = torch.randint(0, 256, (2, 3, 32, 16)).float()
    assert torch.equal(unfold(fold(x)), x)
    with pytest.raises(ValueError, match='no frames'): cf.encode_video([])
    with pytest.raises(ValueError, match='levels must be'): cf.encode_video(clip, levels=0)
    with pytest.raises(ValueError, match='not exact'): Frozen(IntConv(3, 2, top=2**60))


def test_weights_are_small_and_strict(tmp_path):
    assert (cf.codec_folder()/'model.safetensors').stat().st_size < 400_000
    codec = cf.finish(Codec(CodecConfig(width=16, m=12, mz=4), torch.Generator().manual_seed(0)))
    cf.save_codec(codec, tmp_path)
    again = cf.load_codec(tmp_path)
    assert cf.decoder_sum(again) == cf.decoder_sum(codec)


def test_command(tmp_path, clip, capsys):
    from vidlit.video.writing import write_video
    write_video(tmp_path/'a.mp4', clip)
    run = lambda *a: run_app(app, ['codec', *map(str, a)])
    assert run('encode', tmp_path/'a.mp4', '--step', 24, '--json') == 0
    said = json.loads(capsys.readouterr().out)
    assert said['bytes'] == (tmp_path/'a.vlc').stat().st_size
    assert run('decode', tmp_path/'a.vlc', '--lossless', '--json') == 0
    assert json.loads(capsys.readouterr().out)['frames'] == 5
    assert run('decode', tmp_path/'a.mp4') == 2 and 'is there already' in capsys.readouterr().err
    assert run('decode', tmp_path/'a.mp4', '--out', tmp_path/'b.mkv') == 2
    assert 'not a file of this codec' in capsys.readouterr().err and not (tmp_path/'b.mkv').exists()
    assert run('decode', tmp_path/'gone.vlc') == 2
    assert run('encode', tmp_path/'a.mp4', '--step', 1) == 2 and 'step must be' in capsys.readouterr().err

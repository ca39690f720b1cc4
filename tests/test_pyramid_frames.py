"""Frames of codecs: layers of any order, damaged files, other codecs"""
import numpy as np
import pytest
import torch
from vidlit.pyramid.codec_frames import decode_some, frame_table, motion_vectors, temporal_layers, vector_flow
from vidlit.video.reader import MissingVideoError, VideoError, VideoReader
from vidlit.video.writing import numbered_frame, read_number, write_video


@pytest.fixture(scope='module')
def film(tmp_path_factory):
    f = torch.stack([numbered_frame(i) for i in range(40)])
    gop = {'g': 20, 'bf': 3, 'x264-params': 'b-pyramid=strict:b-adapt=0:scenecut=0'}
    return write_video(tmp_path_factory.mktemp('f')/'a.mp4', f, options=gop)


def test_layers_of_a_binary_hierarchy():
    "Stored as 0 8 4 2 1 3 6 5 7: layers are how often eight can be halved"
    order = [0, 8, 4, 2, 1, 3, 6, 5, 7]
    dts = np.argsort(order)
    assert temporal_layers(np.arange(9), dts).tolist() == [0, 3, 2, 3, 1, 3, 2, 3, 0]


def test_numbers_of_what_is_decoded(film):
    for keep in (None, 'key', 0, 1):
        assert all(read_number(f) == i for i, f in decode_some(film, keep))


def test_what_is_kept_is_bit_equal(film):
    r = VideoReader(film)
    assert all(torch.equal(r[i], f) for i, f in decode_some(film, 1))


def test_any_container(tmp_path):
    f = torch.stack([numbered_frame(i) for i in range(12)])
    for name, codec in (('a.mkv', 'libx264'), ('a.webm', 'libvpx-vp9'), ('a.mov', 'mpeg4')):
        p = write_video(tmp_path/name, f, codec=codec, options={'g': 6})
        assert len(frame_table(p)) == 12 and [i for i, _ in decode_some(p)] == list(range(12))


def test_faults(film, tmp_path):
    with pytest.raises(MissingVideoError): frame_table(tmp_path/'no.mp4')
    bad = tmp_path/'bad.mp4'
    bad.write_bytes(film.read_bytes()[:3000])
    with pytest.raises(VideoError): frame_table(bad)


def test_vectors_of_a_shifted_picture(tmp_path):
    "A picture that moves three pixels to the right comes from three pixels to the left"
    g = torch.Generator().manual_seed(0)
    big = torch.nn.functional.interpolate(torch.rand(1, 3, 24, 48, generator=g), (96, 192), mode='bicubic')
    big = big.clamp(0, 1)[0]
    f = torch.stack([(big[:, :64, 60-3*i:60-3*i+96]*255).byte().permute(1, 2, 0) for i in range(6)])
    p = write_video(tmp_path/'m.mp4', f, crf=12, options={'bf': 0, 'refs': 1})
    flow, there = [vector_flow(v, 64, 96) for _, k, v in motion_vectors(p) if k == 'P'][2]
    got = flow[:, 16:48, 32:80].median(-1).values.median(-1).values
    assert there.float().mean() > .8 and got[0].item() == pytest.approx(-3, abs=.3) and abs(got[1].item()) < .3

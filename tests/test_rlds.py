"""RLDS folders: steps belong to frames, every byte is under a checksum, what is wrong is said with file and column."""
import json
from functools import cache
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from vidlit.pretrain.rlds import (
    RLDSSet,
    masked_crc,
    read_example,
    read_record,
    record_places,
    rlds_info,
    write_rlds,
)
from vidlit.pretrain.trajectories import TrajectoryError


def episode(n, first):
    light = first+2*torch.arange(n)
    frames = light.byte()[:, None, None, None].expand(n, 24, 32, 3).clone()
    return frames, light[:, None].repeat(1, 7)/255, light[:, None].repeat(1, 3)/10


@pytest.fixture
def root(tmp_path):
    return write_rlds(tmp_path/'arm'/'1.0.0', [episode(40, 10), episode(30, 120), episode(20, 60)], 'arm')


def shard(root): return next(root.glob('*.tfrecord*'))


def test_frames_states_and_actions_belong_together(root):
    ds = RLDSSet(root, fps=15, t=4, rate=5, size=24)
    for i in range(3):
        clip, act, state = ds[i]
        assert clip.shape == (3, 4, 24, 24) and act.shape == (3, 3) and state.shape == (4, 7)
        assert torch.allclose(clip.mean((0, 2, 3)), state[:, 0], atol=1e-3)
        assert torch.allclose(act[:, 0], state[:-1, 0]*25.5, atol=1e-4)
        assert torch.allclose(state.diff(dim=0)[:, 0]*255, torch.tensor(6.), atol=1e-3), 'three steps of two'
    assert torch.equal(ds.get(1, 5)[2], ds.get(1, 5)[2]) and len(ds) == 3
    assert torch.equal(ds[-1][2], RLDSSet(root, fps=15, t=4, rate=5, size=24)[2][2])
    with pytest.raises(IndexError): ds[3]
    assert RLDSSet(root, fps=15, t=4, rate=5, size=24, actions='pose', seed=None)[0][1].shape == (3, 7)


def test_several_shards_and_a_lost_one(root):
    first, rest = shard(root), json.loads((root/'dataset_info.json').read_text())
    data, places = first.read_bytes(), record_places(first)
    cut = places[1][0]-12
    for k, part in enumerate((data[:cut], b'', data[cut:])):
        (root/f'arm-train.tfrecord-{k:05d}-of-00003').write_bytes(part)
    whole = RLDSSet(root, fps=15, t=4, rate=5, size=24, seed=None)
    kept = [whole[i][2] for i in range(3)]
    rest['splits'][0]['shardLengths'] = ['1', '0', '2']
    (root/'dataset_info.json').write_text(json.dumps(rest))
    parts = RLDSSet(root, fps=15, t=4, rate=5, size=24, seed=None)
    assert all(torch.equal(parts[i][2], kept[i]) for i in range(3))
    (root/'arm-train.tfrecord-00002-of-00003').unlink()
    with pytest.raises(TrajectoryError, match='00002-of-00003: no such file'):
        RLDSSet(root, fps=15, t=4, rate=5, size=24)[2]
    rest['splits'][0]['shardLengths'] = ['2', '0', '1']
    (root/'dataset_info.json').write_text(json.dumps(rest))
    with pytest.raises(TrajectoryError, match='holds 1 episodes, dataset_info.json says 2'):
        RLDSSet(root, fps=15, t=4, rate=5, size=24)[0]


@settings(max_examples=60, deadline=None)
@given(at=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_every_bit_of_a_file_is_checked(tmp_path_factory, at, bit):
    path = tmp_path_factory.mktemp('x')/'a.tfrecord'
    records = [b'', b'abc', bytes(range(200))]
    good = b''.join(b+masked_crc(b).to_bytes(4, 'little') for r in records for b in (len(r).to_bytes(8, 'little'), r))
    path.write_bytes(good)
    assert [read_record(path, *p) for p in record_places(path)] == records
    bad = bytearray(good)
    bad[int(at*len(bad))] ^= 1 << bit
    path.write_bytes(bad)
    with pytest.raises(TrajectoryError, match='a.tfrecord'):
        for p in record_places(path): read_record(path, *p)
    path.write_bytes(good[:int(at*len(good))])
    try: got = [read_record(path, *p) for p in record_places(path)]
    except TrajectoryError as e: assert 'ends inside record' in str(e)
    else: assert got == records[:len(got)] and len(got) < 3, 'cut between two records'


@cache
def proto():
    "The Example of TensorFlow's own definition, made by the protobuf package"
    pytest.importorskip('google.protobuf')
    from google.protobuf import descriptor_pb2 as d, descriptor_pool, message_factory
    f = d.FileDescriptorProto(name='example.proto', package='tensorflow', syntax='proto3')
    F = d.FieldDescriptorProto
    def message(name, *fields, into=None):
        m = (into or f).__getattribute__('nested_type' if into else 'message_type').add(name=name)
        for number, (key, kind, label, of) in enumerate(fields, 1):
            m.field.add(name=key, number=number, type=kind, label=label, type_name=of and f'.tensorflow.{of}')
        return m
    one, many = F.LABEL_OPTIONAL, F.LABEL_REPEATED
    message('BytesList', ('value', F.TYPE_BYTES, many, None))
    message('FloatList', ('value', F.TYPE_FLOAT, many, None))
    message('Int64List', ('value', F.TYPE_INT64, many, None))
    feature = message('Feature', *[(k, F.TYPE_MESSAGE, one, o) for k, o in (('bytes_list', 'BytesList'),
        ('float_list', 'FloatList'), ('int64_list', 'Int64List'))])
    feature.oneof_decl.add(name='kind')
    for o in feature.field: o.oneof_index = 0
    features = message('Features', ('feature', F.TYPE_MESSAGE, many, 'Features.FeatureEntry'))
    entry = message('FeatureEntry', ('key', F.TYPE_STRING, one, None), ('value', F.TYPE_MESSAGE, one, 'Feature'),
        into=features)
    entry.options.map_entry = True
    message('Example', ('features', F.TYPE_MESSAGE, one, 'Features'))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(f)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName('tensorflow.Example'))


numbers = st.lists(st.integers(-2**63, 2**63-1), max_size=9)
columns = st.dictionaries(st.text(max_size=8), st.one_of(st.lists(st.binary(max_size=9), min_size=1, max_size=5),
    st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=9), numbers.filter(len)), max_size=5)


@settings(max_examples=80, deadline=None)
@given(columns)
def test_examples_are_those_of_protobuf(row):
    e = proto()()
    for k, v in row.items():
        to = e.features.feature[k]
        {bytes: to.bytes_list, float: to.float_list, int: to.int64_list}[type(v[0])].value.extend(v)
    got = read_example(e.SerializeToString())
    assert set(got) == set(row)
    for k, v in row.items():
        if isinstance(v[0], bytes): assert got[k] == v
        else: assert np.array_equal(got[k], np.array(v, np.float32 if isinstance(v[0], float) else np.int64))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_an_example_or_refused(b):
    try: read_example(b)
    except ValueError: pass


def test_refusals(root):
    about, shapes = root/'dataset_info.json', root/'features.json'
    good = json.loads(about.read_text()), json.loads(shapes.read_text())
    for kw, said in ((dict(fps=0), 'fps must be'), (dict(fps=15, actions='both'), "'both'"),
        (dict(fps=15, state='observation/q'), "no 'observation/q', but action, observation/state"),
        (dict(fps=15, action='move'), "action: there is no 'move'")):
        with pytest.raises(ValueError, match=said): RLDSSet(root, **kw)
    for info in (dict(fileFormat='array_record'), dict(name='../x'), dict(splits={}),
        *(dict(splits=[dict(name='train', shardLengths=[n])]) for n in ('a', '-1', '1'*30))):
        about.write_text(json.dumps({**good[0], **info}))
        with pytest.raises(TrajectoryError, match='1.0.0'): rlds_info(root)
    about.write_text(json.dumps(good[0]))
    for tree in ({}, {'featuresDict': 3}, {'featuresDict': {'features': {'steps': {'sequence': {}}}}}, []):
        shapes.write_text(json.dumps(tree))
        with pytest.raises(TrajectoryError, match='1.0.0'): rlds_info(root)
    with pytest.raises(TrajectoryError, match='no RLDS data set'): rlds_info(root.parent)


def test_columns_that_do_not_fit(tmp_path):
    frames, states, acts = episode(30, 10)
    root = write_rlds(tmp_path/'a', [(frames, states, acts)])
    tree = json.loads((root/'features.json').read_text())
    step = tree['featuresDict']['features']['steps']['sequence']['feature']['featuresDict']['features']
    step['observation']['featuresDict']['features']['state']['tensor']['shape']['dimensions'] = ['6']
    (root/'features.json').write_text(json.dumps(tree))
    with pytest.raises(TrajectoryError, match='observation/state has 210 entries; 30 steps of 6 need 180'):
        RLDSSet(root, fps=15, t=4, rate=5)[0]

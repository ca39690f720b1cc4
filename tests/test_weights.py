"Weights: hostile and damaged files, shards, the Hub, maps there and back"
import argparse
import builtins
import json
import os
import pickle
from dataclasses import replace
import huggingface_hub
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from vidlit.nn.vit import ViT, vit_s
from vidlit.nn.weights import (
    KeyMap,
    Rule,
    WeightsError,
    hf_videomae,
    load_strict,
    read_hub,
    read_weights,
    save_hub,
    write_weights,
)

tiny = replace(vit_s, dim=48, depth=2, heads=4)

@pytest.fixture
def model(): return ViT(tiny)

def same(a, b): return set(a)==set(b) and all(torch.equal(a[k], b[k]) for k in a)

class Runs:
    def __init__(self, fn, *args): self.fn,self.args = fn,args
    def __reduce__(self): return self.fn, self.args

# hostile and damaged files

@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('fn', ['system','eval','open'])
def test_programs_in_pickles_do_not_run(tmp_path, fn, zipped):
    mark = tmp_path/'mark'
    trap = dict(system=Runs(os.system, f'touch {mark}'), eval=Runs(builtins.eval, f'open({str(mark)!r}, "w")'),
        open=Runs(builtins.open, str(mark), 'w'))[fn]
    torch.save({'model':{'w':torch.zeros(2)}, 'args':trap}, tmp_path/'w.pth', _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match='w.pth'): read_weights(tmp_path/'w.pth')
    assert not mark.exists()

@pytest.mark.filterwarnings('ignore:Detected pickle protocol')
def test_plain_pickles_do_not_run(tmp_path):
    (tmp_path/'w.bin').write_bytes(pickle.dumps(Runs(os.system, f'touch {tmp_path}/mark')))
    with pytest.raises(WeightsError, match='w.bin'): read_weights(tmp_path/'w.bin')
    assert not (tmp_path/'mark').exists()

def test_whole_modules_are_refused(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path/'m.pt')
    with pytest.raises(WeightsError, match='refused.*Linear'): read_weights(tmp_path/'m.pt')

@pytest.mark.parametrize('name', ['w.safetensors','w.pth'])
@pytest.mark.parametrize('part', [0, 1, 9, 200, .5, .99])
def test_truncated_files_are_named(tmp_path, model, name, part):
    whole = write_weights(model, tmp_path/name).read_bytes()
    (tmp_path/name).write_bytes(whole[:part if isinstance(part, int) else int(part*len(whole))])
    with pytest.raises(WeightsError, match=name): read_weights(tmp_path/name)

def test_noise_is_not_a_checkpoint(tmp_path):
    for name in ('n.pth','n.safetensors','n.safetensors.index.json'):
        (tmp_path/name).write_bytes(bytes(range(256))*40)
        with pytest.raises(WeightsError, match=name): read_weights(tmp_path/name)

def test_what_training_scripts_leave_behind(tmp_path, model):
    args = argparse.Namespace(lr=1., opt_betas=[.9,.95], output_dir='x')
    rest = dict(optimizer=dict(state={0:torch.ones(1)}), epoch=3, args=args, best=np.float64(.5), n=np.int64(2))
    torch.save(dict(model=model.state_dict(), **rest), tmp_path/'a.pth')
    assert same(read_weights(tmp_path/'a.pth'), model.state_dict())
    torch.save(dict(module=model.state_dict(), lr_scheduler=None), tmp_path/'b.pt')
    assert same(read_weights(tmp_path/'b.pt'), model.state_dict())
    torch.save([torch.ones(1)], tmp_path/'c.pt')
    with pytest.raises(WeightsError, match='holds a list'): read_weights(tmp_path/'c.pt')
    torch.save(dict(encoder=model.state_dict(), predictor={}), tmp_path/'d.pt')
    with pytest.raises(WeightsError, match="no part 'decoder'; it has encoder, predictor"): read_weights(
        tmp_path/'d.pt', 'decoder')

# writing

def test_an_interrupted_write_leaves_the_old_file(tmp_path, model, monkeypatch):
    path = write_weights(model, tmp_path/'w.safetensors')
    was = path.read_bytes()
    def half(state, file, **kw):
        open(file, 'wb').write(b'half')
        raise KeyboardInterrupt
    monkeypatch.setattr('safetensors.torch.save_file', half)
    with pytest.raises(KeyboardInterrupt): write_weights(ViT(tiny), path)
    assert path.read_bytes()==was and os.listdir(tmp_path)==['w.safetensors']

def test_tied_and_strided_tensors(tmp_path):
    w = torch.arange(12.).view(3, 4)
    state = dict(a=w, b=w, c=w.T, d=w[:,::2])
    for name in ('s.safetensors','s.pt'): assert same(read_weights(write_weights(state, tmp_path/name)), state)

def test_equal_weights_give_equal_bytes(tmp_path, model):
    a,b = (write_weights(model, tmp_path/f'{o}.safetensors').read_bytes() for o in 'ab')
    assert a==b

# strictness

def test_nothing_is_loaded_unless_everything_fits(model):
    was = {k:v.clone() for k,v in model.state_dict().items()}
    bad = {k:v+1 for k,v in was.items()}
    bad['norm.weight'] = torch.zeros(3)
    bad['extra'] = bad.pop('blocks.0.mlp.fc1.bias')
    with pytest.raises(WeightsError) as e: load_strict(model, bad)
    for word in ('missing: blocks.0.mlp.fc1.bias','left over: extra',
        'norm.weight (3,), the model has (48,)'): assert word in str(e.value)
    assert same(model.state_dict(), was)

def test_not_a_tensor(model):
    with pytest.raises(WeightsError, match='not a tensor: norm.bias'): load_strict(model,
        {**model.state_dict(), 'norm.bias':[0.]*48})

def test_half_precision_files_are_reported(model):
    report = load_strict(model, {k:v.half() for k,v in model.state_dict().items()})
    assert report.dtypes=={'float16':report.tensors} and model.norm.weight.dtype==torch.float32 and 'float16' in str(
        report)

def test_long_lists_are_cut(model):
    with pytest.raises(WeightsError, match=r'missing: .* and \d+ more'): load_strict(model, {})

# maps

def test_hf_map_there_and_back(model):
    theirs = hf_videomae.to_theirs(model.state_dict())
    assert same(hf_videomae.to_ours(theirs), model.state_dict())
    assert theirs['encoder.layer.1.attention.attention.key.weight'].shape==(48,48)
    inside = hf_videomae.under('encoder.', 'videomae.')
    state = {f'encoder.{k}':v for k,v in model.state_dict().items()}
    assert same(inside.to_ours(inside.to_theirs(state)), state)
    assert all(k.startswith('videomae.') for k in inside.to_theirs(state))

@settings(max_examples=25, deadline=None)
@given(depth=st.integers(1, 12), pieces=st.integers(2, 4), rows=st.integers(1, 3), seed=st.integers(0, 99))
def test_any_map_is_two_way(depth, pieces, rows, seed):
    gen = torch.Generator().manual_seed(seed)
    fused = 'b.{i}.fused',tuple('l.{i}.'+f'p{n}' for n in range(pieces))
    rules = KeyMap([fused, ('b.{i}.turned', 'l.{i}.x', lambda w: w.T, lambda w: w.T), ('{rest}', 'other.{rest}')])
    mine = {f'b.{i}.{o}':torch.rand(rows*pieces, 2, generator=gen) for i in range(depth)
        for o in ('fused','turned','plain')}
    theirs = rules.to_theirs(mine)
    assert len(theirs)==depth*(pieces+2) and same(rules.to_ours(theirs), mine)
    order = torch.randperm(len(theirs), generator=gen).tolist()
    assert same(rules.to_ours({k:theirs[k] for k in (list(theirs)[n] for n in order)}), mine)

def test_maps_refuse():
    rules = KeyMap([('a', ('x','y')), ('b', 'z'), ('b', 'old_z'), (None, 'junk.{rest}'), ('mine', None)])
    one = torch.ones(2)
    with pytest.raises(WeightsError, match='no rule for what'): rules.to_ours({'what':one})
    with pytest.raises(WeightsError, match='missing: y'): rules.to_ours({'x':one})
    with pytest.raises(WeightsError, match='both give b'): rules.to_ours({'z':one, 'old_z':one})
    with pytest.raises(WeightsError, match='3 rows do not part into 2'): rules.to_theirs({'a':torch.ones(3)})
    assert rules.ignored({'junk.1.2':one, 'z':one})==['junk.1.2'] and set(
        rules.to_ours({'junk.1.2':one, 'z':one}))=={'b'}
    assert rules.to_theirs({'mine':one, 'b':one}).keys()=={'z'}
    with pytest.raises(ValueError, match='one side'): Rule(None, None)

def test_dots_in_patterns_are_dots():
    assert KeyMap([('a', 'x.y')]).find('xzy') is None and KeyMap([('a.{i}', 'x.{i}')]).find('x.1b') is None

# the Hub

def test_shards(tmp_path, model):
    state = model.state_dict()
    keys = list(state)
    write_weights({k:state[k] for k in keys[:9]}, tmp_path/'model-1.safetensors')
    write_weights({k:state[k] for k in keys[9:]}, tmp_path/'model-2.safetensors')
    where = {k:f'model-{1 if n<9 else 2}.safetensors' for n,k in enumerate(keys)}
    (tmp_path/'model.safetensors.index.json').write_text(json.dumps(dict(metadata={}, weight_map=where)))
    (tmp_path/'config.json').write_text('{"dim": 48}')
    config,back = read_hub(tmp_path)
    assert same(back, state) and config=={'dim':48}
    (tmp_path/'model-2.safetensors').unlink()
    with pytest.raises(WeightsError, match='model-2'): read_hub(tmp_path)

def test_shard_names_cannot_leave_the_folder(tmp_path):
    write_weights({'a':torch.ones(1)}, tmp_path/'secret.safetensors')
    (tmp_path/'in').mkdir()
    (tmp_path/'in'/'model.safetensors.index.json').write_text(
        json.dumps(dict(weight_map={'a':'../secret.safetensors'})))
    with pytest.raises(WeightsError, match='secret'): read_weights(tmp_path/'in'/'model.safetensors.index.json')

def test_hub_names(tmp_path, model, monkeypatch):
    home,asked = save_hub(model, tmp_path/'cache', tiny),{}
    def fetch(name, **kw):
        asked.update(kw, name=name)
        return str(home)
    monkeypatch.setattr(huggingface_hub, 'snapshot_download', fetch)
    config,state = read_hub('owner/name', revision='v1')
    assert same(state, model.state_dict()) and asked['name']=='owner/name' and asked[
        'revision']=='v1' and config['heads']==4
    def down(name, **kw): raise ConnectionError('no route to host')
    monkeypatch.setattr(huggingface_hub, 'snapshot_download', down)
    with pytest.raises(WeightsError, match='owner/name: no such folder here.*no route to host'): read_hub('owner/name')
    with pytest.raises(WeightsError, match='no name of a Hub repository'): read_hub(tmp_path/'gone')

def test_offline_is_a_clear_error(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path))
    with pytest.raises(WeightsError, match='Hugging Face Hub did not give it'): read_hub('nobody-here/nothing-here')

def test_damaged_config(tmp_path, model):
    (save_hub(model, tmp_path, {})/'config.json').write_text('{"dim": ')
    with pytest.raises(WeightsError, match='config.json'): read_hub(tmp_path)

def test_folder_without_weights(tmp_path):
    (tmp_path/'config.json').write_text('{}')
    with pytest.raises(WeightsError, match='none of model.safetensors'): read_hub(tmp_path)

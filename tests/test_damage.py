"""What is damaged or changed is noticed when it is read: checkpoints, weights, token caches and their builders."""
import shutil
import pytest
import torch
from vidlit.floor.reading import FileError
from vidlit.floor.store import CacheMismatch, StoreError, TokenCache, atomic_path, bind_settings
from vidlit.nn.weights import WeightsError, read_weights, write_weights
from vidlit.train.checkpoint import Checkpoint, CheckpointError, load_state, save_state


def gen(): return torch.Generator().manual_seed(0)


def flips(path, step):
    "The file with one bit turned, again and again"
    b = path.read_bytes()
    for k in range(0, 8*len(b), step):
        c = bytearray(b)
        c[k//8] ^= 1<<k%8
        path.write_bytes(c)
        yield k
    path.write_bytes(b)


def test_no_bit_of_a_checkpoint_turns_unnoticed(tmp_path):
    f = tmp_path/'step-00000001.safetensors'
    save_state(f, dict(a=torch.randn(20, generator=gen()), at=[0, 2.5], opt=[torch.tensor(3), None]))
    good, told = load_state(f), 0
    for _ in flips(f, 13):
        try: now = load_state(f)
        except CheckpointError as e:
            told += 1
            assert f.name in str(e)
        else: assert torch.equal(now['a'], good['a']) and now['at']==good['at'] and now['opt']==good['opt']
    assert told>100


def test_the_good_checkpoint_before_a_damaged_one_is_taken(tmp_path):
    for i in (1, 2): save_state(tmp_path/f'step-0000000{i}.safetensors', dict(step=i, a=torch.full((99,), float(i))))
    f = tmp_path/'step-00000002.safetensors'
    b = bytearray(f.read_bytes())
    b[-7] ^= 1 # one bit of a number: without the hash it would be another student
    f.write_bytes(b)
    with pytest.warns(UserWarning, match='step-00000002.safetensors is damaged.*hash'):
        assert Checkpoint(tmp_path).newest()['step']==1


def test_checkpoints_of_before_the_hash_are_read(tmp_path):
    from safetensors.torch import save_file
    save_file({'0': torch.ones(2)}, tmp_path/'old.safetensors', metadata=dict(tree='{"dict": [["a", {"tensor": 0}]]}'))
    assert load_state(tmp_path/'old.safetensors')['a'].sum()==2


def test_no_bit_of_our_weights_turns_unnoticed(tmp_path):
    f = write_weights({'a': torch.randn(20, generator=gen()), 'b': torch.ones(3, dtype=torch.bfloat16)},
        tmp_path/'w.safetensors')
    good = read_weights(f)
    for _ in flips(f, 11):
        try: now = read_weights(f)
        except WeightsError as e: assert f.name in str(e)
        else: assert now.keys()==good.keys() and all(torch.equal(now[k], good[k]) for k in good)


def test_a_lost_chunk_is_noticed_and_made_again(tmp_path):
    c = TokenCache(tmp_path/'c', 3, (4, 8), teacher='t')
    feats = torch.randn(3, 4, 8, generator=gen()).half()
    for i in range(3): c.put(i, feats[i])
    shutil.rmtree(tmp_path/'c'/'tokens'/'c'/'1') # zarr would answer zeros
    c = TokenCache(tmp_path/'c', 3, (4, 8), teacher='t')
    with pytest.raises(StoreError, match='item 1 of .* is lost or damaged'): c[1]
    with pytest.raises(StoreError): c[[0, 1, 2]]
    assert c.verify()==[1]
    c.forget(*c.verify())
    for i in c.todo(): c.put(i, feats[i])
    assert torch.equal(c[[0, 1, 2]], feats) and c.verify()==[]


def test_builders_with_other_settings_refuse_each_other(tmp_path):
    f = tmp_path/'c'/'settings.json'
    bind_settings(f, dict(dim=8, projection='pca'))
    bind_settings(f, dict(dim=8, projection='pca'))
    with pytest.raises(CacheMismatch, match="dim is 8, not 16"): bind_settings(f, dict(dim=16, projection='pca'))
    with atomic_path(f, first=True) as p: p.write_text('later') # a second first one
    bind_settings(f, dict(dim=8, projection='pca'))


def test_settings_that_differ_from_the_caches_are_said(tmp_path):
    from vidlit.nn.vit import ViT, ViTConfig
    from vidlit.pretrain.target_cache import ClipSpec
    from vidlit.pretrain.token_targets import build_targets
    from vidlit.video.sampling import VideoList
    from vidlit.video.writing import numbered_frame, write_video
    (tmp_path/'v').mkdir()
    files = [write_video(tmp_path/'v'/f'{k}.mp4', (numbered_frame(i, 32, 80) for i in range(6)), 25) for k in 'ab']
    videos, enc = VideoList(files, [0, 1], ['a', 'b']), ViT(ViTConfig(dim=48, depth=1, heads=2))
    def build(**kw): return build_targets(videos, tmp_path/'v', enc, tmp_path/'c', ClipSpec(2, 32), **dict(dim=8,
        kind='orthogonal', n=1) | kw)
    build()
    for kw,said in ((dict(kind='pca'), "projection is 'orthogonal', not 'pca'"), (dict(dim=16), 'dim is 8, not 16')):
        with pytest.raises(CacheMismatch, match=said): build(**kw)
    assert len(build(n=None).ready())==2


def test_one_family():
    from vidlit.depth.images import BadImage
    from vidlit.pipeline.tracks import TrackError
    from vidlit.pretrain.trajectories import TrajectoryError
    from vidlit.pyramid.codec_file import CodecError
    from vidlit.splat.files import SceneError
    from vidlit.video.depth_frames import DepthError
    from vidlit.video.writing import VideoError
    for o in (StoreError, WeightsError, CheckpointError, VideoError, DepthError, BadImage, TrackError, TrajectoryError,
        CodecError, SceneError): assert issubclass(o, FileError) and issubclass(o, ValueError)


def run_of(tmp_path, lr, steps, after=None):
    "A small training with checkpoints of every step"
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner
    from fastai.optimizer import Adam
    from torch.utils.data import DataLoader, TensorDataset
    from vidlit.train.callbacks import fit
    from vidlit.train.checkpoint import Seeded
    data = TensorDataset(torch.randn(32, 4, generator=gen()), torch.randn(32, 1, generator=gen()))
    torch.manual_seed(0)
    net = torch.nn.Linear(4, 1)
    learn = Learner(DataLoaders(DataLoader(data, 4), DataLoader(data, 4)), net, loss_func=torch.nn.functional.mse_loss,
        opt_func=Adam, lr=lr, cbs=[Seeded(0), Checkpoint(tmp_path/'ckpt', every=1, keep=1), *(after or [])])
    return fit(learn, steps=steps, validate=False)


@pytest.mark.parametrize('what', ['loss', 'weights'])
def test_training_to_nan_stops_and_keeps_the_last_good_checkpoint(tmp_path, what):
    from fastai.callback.core import Callback
    from vidlit.train.callbacks import NonFinite
    class Break(Callback):
        order = 10 if what=='loss' else 40
        def after_pred(self):
            if what=='loss' and self.learn.iter==3: self.learn.pred = self.learn.pred*float('nan')
        def after_backward(self):
            if what=='weights' and self.learn.iter==3: self.learn.model.weight.grad.fill_(float('nan'))
    with pytest.raises(NonFinite, match='last good checkpoint is .*step-00000003'): run_of(tmp_path, 1e-3, 6, [Break()])
    files = Checkpoint(tmp_path/'ckpt').files
    assert [o.name for o in files]==['step-00000003.safetensors']
    assert load_state(files[0])['model']['weight'].isfinite().all()


def test_nan_is_exit_code_1_in_one_line(tmp_path, capsys):
    import typer
    from vidlit.cli.app import command, run_app
    from vidlit.train.callbacks import NonFinite
    some = typer.Typer()
    @command(some)
    def train(out:str=None): # Anything
        raise NonFinite('the loss is nan at step 3')
    assert run_app(some, [])==1 and capsys.readouterr().err.strip()=='vidlit: the loss is nan at step 3'

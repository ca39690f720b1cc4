"""Models by name: the table says what is true, and is read without torch."""
import importlib
import subprocess
import sys
import pytest
import torch
from vidlit.lab.models import create_model, list_models, model_info


@pytest.mark.parametrize('name', list_models())
def test_every_line_is_true(name):
    net, info = create_model(name, device='meta'), model_info(name)
    assert round(sum(p.numel() for p in net.parameters())/1e6, 2) == info.params
    assert bool(info.weights) == bool(info.licence)
    import vidlit
    cls = getattr(vidlit, type(net).__name__)
    if info.hub: assert hasattr(cls, 'from_pretrained')
    if any('.pth' in o for o in info.weights): assert hasattr(cls, 'from_official')


def test_the_same_seed_is_the_same_model_and_leaves_torch_alone():
    was = torch.get_rng_state()
    a, b, c = (create_model('raft_small', seed=s).state_dict() for s in (1, 1, 2))
    assert all(torch.equal(a[k], b[k]) for k in a) and not all(torch.equal(a[k], c[k]) for k in a)
    assert torch.equal(torch.get_rng_state(), was)


def test_refusals_name_what_there_is(tmp_path):
    with pytest.raises(ValueError, match='vjepa2_l'): model_info('vjepa2_L')
    with pytest.raises(ValueError, match='weights=PATH'): create_model('video_depth_s', True)
    with pytest.raises(ValueError, match='no such folder|gone'): create_model('videomae_s', str(tmp_path/'gone'))


def test_the_table_needs_no_torch():
    code = "import sys, vidlit; vidlit.list_models(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout == 'False\n'
    assert importlib.import_module('vidlit').create_model is create_model

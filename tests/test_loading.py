"""Every public model through every door: outputs equal to 1e-5, or a refusal that says what to do."""
import json
import pytest
from loading import OUT, row, toys
import vidlit

TOYS = {o.name: o for o in toys()}


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('name', TOYS)
def test_doors(name, tmp_path):
    got = row(TOYS[name], tmp_path)
    assert got and not {k: v for k, v in got.items() if v.startswith('WRONG')}
    assert all(got[k] == 'equal' for k in ('official', 'transformers', 'own folder') if k in got)
    stored = {o['model']: o for o in json.loads(OUT.read_text())['rows']}[name]
    assert {k: v.split(':')[0] for k, v in got.items()} == {k: v.split(':')[0] for k, v in stored.items() if k!='model'}


def test_no_model_is_forgotten():
    doors = 'from_official', 'from_pretrained'
    classes = [k for k in vidlit._where if k[0].isupper()]
    assert {k for k in classes if any(hasattr(getattr(vidlit, k), d) for d in doors)} == set(TOYS)

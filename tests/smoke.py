"""What must work with the newest runtime packages and none of the dev pins: import, train one step, read and write a film, the command line."""
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def run(*cmd): return subprocess.run(cmd, capture_output=True, text=True, check=True).stdout


t = run(sys.executable, '-c', 'import time; t=time.perf_counter(); import vidlit, sys; print(time.perf_counter()-t, "torch" in sys.modules)').split()
assert float(t[0]) < 1 and t[1] == 'False', t

import fastai  # noqa: E402
import fastcore  # noqa: E402
import torch  # noqa: E402
from fastai.data.core import DataLoaders  # noqa: E402
from fastai.learner import Learner  # noqa: E402
from vidlit import VideoMAE, VideoMAEConfig, VideoReader, tube_mask, write_video  # noqa: E402
from vidlit.core.clips import normalise  # noqa: E402
from vidlit.core.tokens import Grid  # noqa: E402
from vidlit.core.worlds import WorldConfig, make_worlds  # noqa: E402

start = time.time()
gen = torch.Generator().manual_seed(0)
clip = make_worlds(range(4), WorldConfig(t=8, h=32, w=32)).clip
from vidlit.pretrain.videomae import tiny  # noqa: E402
model, mask = VideoMAE(tiny), tube_mask(4, Grid(4, 4, 4), .75, gen)
out = model(normalise(clip), mask)
out.loss.backward()
assert out.loss.isfinite() and isinstance(model.cfg, VideoMAEConfig)

dl = torch.utils.data.DataLoader(list(normalise(clip)), batch_size=2)
assert Learner(DataLoaders(dl, dl), model, loss_func=lambda *a: 0) is not None

with tempfile.TemporaryDirectory() as tmp:
    film = Path(tmp)/'film.mp4'
    write_video(film, (clip[0].permute(1, 2, 3, 0)*255).byte(), fps=8)
    assert len(VideoReader(film)) == 8
    cli = str(Path(sys.executable).parent/'vidlit')
    assert json.loads(run(cli, 'video', 'info', str(film), '--json'))['frames'] == 8
    assert 'videomae' in run(cli, 'reproduce', '--list', '--json')
print(f'smoke test passed in {time.time()-start:.0f} s with torch {torch.__version__}, fastai {fastai.__version__}, fastcore {fastcore.__version__}')
print('1 passed, 0 failed')

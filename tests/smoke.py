"""What must work with the newest runtime packages and none of the dev pins: import, train one step, read and write
a film, the command line."""
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def run(*cmd): return subprocess.run(cmd, capture_output=True, text=True, check=True).stdout


t = run(sys.executable, '-c',
    'import time; t=time.perf_counter(); import vidlit, sys; '
    'print(time.perf_counter()-t, "torch" in sys.modules)').split()
assert float(t[0]) < 1 and t[1] == 'False', t

import fastai  # noqa: E402
import fastcore  # noqa: E402
import torch  # noqa: E402
from vidlit import (  # noqa: E402
    Grid,
    VideoMAE,
    VideoReader,
    WorldConfig,
    clip_dls,
    make_worlds,
    normalise,
    tube_mask,
    write_video,
)
from vidlit.pretrain.videomae import pretrainer  # noqa: E402
from vidlit.studies.videomae_jobs import fresh, setups  # noqa: E402
from vidlit.train.callbacks import fit  # noqa: E402

start = time.time()
gen = torch.Generator().manual_seed(0)
clip = make_worlds(range(4), WorldConfig(t=8, h=24, w=24)).clip
model, mask = fresh(setups['toy'], 0), tube_mask(4, Grid(4, 6, 6), .75, gen)
out = model(normalise(clip), mask)
out.loss.backward()
assert out.loss.isfinite() and isinstance(model, VideoMAE)
learn = fit(pretrainer(clip_dls(clip, bs=2, tfm=lambda c, g: normalise(c)), model, ratio=.75), steps=3)
assert len(learn.history.rows) == 3

with tempfile.TemporaryDirectory() as tmp:
    film = Path(tmp)/'film.mp4'
    write_video(film, (clip[0].permute(1, 2, 3, 0)*255).byte(), fps=8)
    assert len(VideoReader(film)) == 8
    cli = str(Path(sys.executable).parent/'vidlit')
    assert json.loads(run(cli, 'video', 'info', str(film), '--json'))['frames'] == 8
    assert 'videomae' in run(cli, 'reproduce', '--list', '--json')
print(
    f'smoke test passed in {time.time()-start:.0f} s with torch {torch.__version__}, fastai {fastai.__version__}, '
    f'fastcore {fastcore.__version__}')
print('1 passed, 0 failed')

"""What safety costs: depth of a video, reading a cache of tokens, training with checkpoints, now and before.

    git worktree add /tmp/before dde6577    # the last commit before hashes, counts, locks and checked reading
    python benchmarks/safety.py /tmp/before [--rounds 9] [--out benchmarks/results/safety.json]

One process for each side, asked in turns on one thread: the median of the ratios of a round and the half in the middle
of them, the least processor time of each side, and a product of matrices of the same process. Depth and training are of
models that cost next to nothing, so that what is around them shows."""
import argparse
import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

HERE = Path(__file__).resolve()
TASKS = 'depth', 'cache', 'training', 'product'


def video(box):
    from vidlit.video.writing import numbered_frame, write_video
    return write_video(box/'v.mp4', (numbered_frame(i, 180, 320) for i in range(96)), 25)


def depth(box, k, state):
    "A video of 96 frames, whose green is its depth"
    import torch
    from vidlit.depth.models import load_depth_model
    from vidlit.pipeline import video_depth as V
    if 'model' not in state:
        toy = load_depth_model('toy', 'cpu')
        class Null(type(toy)):
            def inside(self, hw): return tuple(hw)
            def prep(self, frame): return torch.as_tensor(frame).movedim(-1, 0)
            def encode(self, frames):
                return [self.prep(f) for f in frames] if isinstance(frames, list) else self.prep(frames)
            def mix(self, x): return x[0, :, 1].float()
            def infer(self, x): return x[:, :, 1].float()
        state['model'] = Null(**{f.name: getattr(toy, f.name) for f in dataclasses.fields(toy)})
        state['video'] = video(box)
    V.video_depth(state['video'], box/f'd{k}', state['model'])


def cache(box, k, state):
    "256 items of 64 KB, written once, read four times"
    import torch
    from vidlit.floor.store import TokenCache
    kw = dict(teacher='t')
    if 'cache' not in state:
        c = TokenCache(box/'c', 256, (128, 256), **kw)
        for i in range(256): c.put(i, torch.randn(128, 256, generator=torch.Generator().manual_seed(i)))
        state['cache'] = c
    c = TokenCache(box/'c', 256, (128, 256), **kw)
    for _ in range(4):
        for i in range(0, 256, 16): c[list(range(i, i+16))]


def training(box, k, state):
    "200 steps of a small network, a checkpoint after every 100"
    import torch
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner
    from torch import nn
    from torch.utils.data import DataLoader
    from vidlit.train.callbacks import fit
    from vidlit.train.checkpoint import Checkpoint, Seeded
    torch.manual_seed(0)
    x = torch.randn(2048, 256)
    dl = DataLoader(list(zip(x, x)), batch_size=128)
    net = nn.Sequential(nn.Linear(256, 1024), nn.GELU(), nn.Linear(1024, 256))
    learn = Learner(DataLoaders(dl, dl), net, nn.functional.mse_loss, cbs=[Seeded(0), Checkpoint(box/f't{k}', 100)])
    learn.remove_cbs([o for o in learn.cbs if type(o).__name__ in ('ProgressCallback', 'Recorder')][:1])
    fit(learn, steps=200, validate=False)


def product(box, k, state):
    import torch
    a = torch.randn(768, 768)
    for _ in range(20): a @ a


def side():
    "One side: does a task for each line that comes, and answers with its processor time"
    import torch
    warnings.filterwarnings('ignore')
    torch.set_num_threads(1)
    state, out = {}, os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)
    with tempfile.TemporaryDirectory() as t:
        for k, line in enumerate(sys.stdin):
            at = time.process_time()
            globals()[line.strip()](Path(t), k, state)
            print(time.process_time()-at, file=out, flush=True)


def main():
    p = argparse.ArgumentParser()
    p.add_argument('before', type=Path)
    p.add_argument('--rounds', type=int, default=9)
    p.add_argument('--out', type=Path, default=HERE.parent/'results'/'safety.json')
    a = p.parse_args()
    sides = {}
    for k, root in dict(before=a.before, now=HERE.parents[1]).items():
        env = {**os.environ, 'PYTHONPATH': str(root.resolve()), 'OMP_NUM_THREADS': '1'}
        sides[k] = subprocess.Popen([sys.executable, str(HERE), 'side'], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True, env=env, cwd=root)
    def ask(k, task):
        sides[k].stdin.write(task+'\n')
        sides[k].stdin.flush()
        return float(sides[k].stdout.readline() or 'nan')
    rows = {}
    for task in TASKS:
        times = {k: [] for k in sides if ask(k, task) is not None} # the first one imports
        for i in range(a.rounds):
            for k in (list(sides) if i%2 else list(sides)[::-1]): times[k].append(ask(k, task))
        least, pairs = {k: min(v) for k, v in times.items()}, sorted(n/b for n, b in zip(times['now'], times['before']))
        rows[task] = dict(seconds={k: round(v, 4) for k, v in least.items()},
            least=round(least['now']/least['before'], 4), ratio=round(statistics.median(pairs), 4),
            half=[round(pairs[len(pairs)//4], 3), round(pairs[-1-len(pairs)//4], 3)])
        print(task, rows[task], flush=True)
    for o in sides.values(): o.stdin.close()
    head = ['git', 'rev-parse', '--short', 'HEAD']
    commit = subprocess.run(head, cwd=a.before, capture_output=True, text=True).stdout
    import torch
    about = dict(cpu=platform.processor() or platform.machine(), torch=torch.__version__)
    a.out.write_text(json.dumps(dict(before=commit.strip(), rounds=a.rounds, rows=rows, machine=about), indent=1)+'\n')


if __name__=='__main__': side() if sys.argv[1:]==['side'] else main()

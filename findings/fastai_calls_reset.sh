#!/usr/bin/env bash
# fastai 2.8: a Learner is expected to leave a model's weights to the optimiser. Seen: if the model has a method named `reset`, every fit calls it first, with any model
# and without any callback being asked for. In networks whose `reset` draws first values (a common name for it), a second `fit` starts from nothing, a loaded
# checkpoint is thrown away, and nothing is said. (The method is meant for the hidden state of recurrent text models.)
# Installs pinned public packages in a temporary folder; fails when the behaviour changes.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/python" -m pip install -q --disable-pip-version-check uv
"$tmp/v/bin/python" -m uv pip install -q --python "$tmp/v/bin/python" 'fastai==2.8.12' 'torch==2.15.0'
"$tmp/v/bin/python" -W ignore - <<'P'
import torch, fastai
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from fastai.data.core import DataLoaders
from fastai.learner import Learner
import fastai.callback.progress
class Net(nn.Module):
    def __init__(self, with_reset):
        super().__init__()
        self.line, self.calls = nn.Linear(2, 1), 0
        if with_reset: self.reset = self.first_values
    def first_values(self):
        self.calls += 1
        with torch.no_grad(): self.line.weight.fill_(5.)
    def forward(self, x): return self.line(x)
data = DataLoader(TensorDataset(torch.randn(8, 2), torch.randn(8, 1)), 4)
for with_reset in (False, True):
    net = Net(with_reset)
    with torch.no_grad(): net.line.weight.fill_(7.) # as a checkpoint would
    learn = Learner(DataLoaders(data, data), net, loss_func=nn.MSELoss(), lr=0.)
    with learn.no_bar(), learn.no_logging(): # without its progress bar
        learn.fit(1)
        learn.fit(1)
    print(f'fastai {fastai.__version__}: method reset: {with_reset}; called {net.calls} times in two fits; weight 7 became {net.line.weight[0, 0].item():g}')
    assert (net.calls, net.line.weight[0, 0].item()) == ((2, 5.) if with_reset else (0, 7.))
P
echo 'as described'

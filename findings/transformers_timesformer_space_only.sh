#!/usr/bin/env bash
# transformers 5.24: TimeSformer has three kinds of attention, and the classifier is expected to give one row of scores for each video with each of them. Seen: with
# attention_type='space_only' it gives one row for each *frame* ([batch*frames, labels]); the mean over frames, by which a video would get one answer,
# is not taken, and a loss against one label for each video cannot be computed. With 'divided_space_time' and 'joint_space_time' there is one row for each video.
# Installs pinned public packages in a temporary folder; fails when the behaviour changes.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/python" -m pip install -q --disable-pip-version-check uv
"$tmp/v/bin/python" -m uv pip install -q --python "$tmp/v/bin/python" 'transformers==5.24.0' 'torch==2.15.0' 'numpy<3'
"$tmp/v/bin/python" - <<'P'
import torch, transformers
from transformers import TimesformerConfig, TimesformerForVideoClassification
sizes = dict(image_size=32, patch_size=16, num_frames=4, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
    intermediate_size=32, num_labels=5)
videos, seen = torch.randn(2, 4, 3, 32, 32), {}
for kind in ('divided_space_time', 'joint_space_time', 'space_only'):
    model = TimesformerForVideoClassification(TimesformerConfig(attention_type=kind, **sizes)).eval()
    with torch.no_grad(): seen[kind] = tuple(model(videos).logits.shape)
    print(f'transformers {transformers.__version__}: {kind}: 2 videos of 4 frames, 5 labels: logits {seen[kind]}')
assert seen == dict(divided_space_time=(2, 5), joint_space_time=(2, 5), space_only=(8, 5)), seen
P
echo 'as described'

#!/usr/bin/env bash
# transformers 5.24: TimeSformer was trained with stochastic depth 0.1, and `drop_path_rate` is the field of its configuration for it. One would expect a rate between
# 0 and 1 to be taken. Seen: configurations are typed strictly now, the field is declared a whole number, and 0.1 is refused; of the rates only 0 and 1 can be set.
# The sister model ViViT and VideoMAE take fractions for their dropout rates.
# Installs pinned public packages in a temporary folder; fails when the behaviour changes.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/python" -m pip install -q --disable-pip-version-check uv
"$tmp/v/bin/python" -m uv pip install -q --python "$tmp/v/bin/python" 'transformers==5.24.0' 'torch==2.15.0' 'numpy<3'
"$tmp/v/bin/python" - <<'P'
import transformers
from transformers import TimesformerConfig, VideoMAEConfig, VivitConfig
print('transformers', transformers.__version__)
try: TimesformerConfig(drop_path_rate=.1)
except Exception as e: said = str(e)
else: said = 'accepted'
print('TimesformerConfig(drop_path_rate=.1):', ' '.join(said.split()))
print('TimesformerConfig(drop_path_rate=0):', TimesformerConfig(drop_path_rate=0).drop_path_rate)
for cls in (VideoMAEConfig, VivitConfig): print(cls.__name__, 'hidden_dropout_prob=.1:', cls(hidden_dropout_prob=.1).hidden_dropout_prob)
assert 'drop_path_rate' in said and 'expected int' in said
P
echo 'as described'

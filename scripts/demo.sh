#!/usr/bin/env bash
# Install lmix, and run reinforcement learning with logit averaging on the bundled sandbox. Arguments go to `lmix fit`.
source "$(dirname "${BASH_SOURCE[0]}")/install.sh" ""
exec .venv/bin/python -m lmix fit --config configs/demo.yaml "$@"

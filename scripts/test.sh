#!/usr/bin/env bash
# Install, and run every check that CI runs. Arguments go to pytest.
source "$(dirname "${BASH_SOURCE[0]}")/install.sh" "dev"
export HF_HUB_OFFLINE=1
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/pyright
exec .venv/bin/python -m pytest "$@"

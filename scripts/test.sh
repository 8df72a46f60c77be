#!/usr/bin/env bash
# Install lmix, and run every check that CI runs. Arguments go to pytest.
source "$(dirname "${BASH_SOURCE[0]}")/install.sh" "dev,docs"
export HF_HUB_OFFLINE=1
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/pyright
.venv/bin/lint-imports --no-cache
# without --quiet: it drops warnings before mkdocs counts them, so `strict` would not stop the build
NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --site-dir "$(mktemp -d)"
# two processes with one thread each: most test time is spent in Python, not in matrix products
exec .venv/bin/python -m pytest -n 2 --dist loadfile "$@"

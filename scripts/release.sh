#!/usr/bin/env bash
# Build and check a release, then leave wheel and sdist in dist/ and the docs in site/: bash scripts/release.sh v0.2.0
# It publishes nothing. .github/workflows/release.yml runs it, and publishes what it left.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
tag=${1:?usage: bash scripts/release.sh TAG}
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
install() { "$work/$1/bin/python" -m pip install --quiet --disable-pip-version-check "${@:2}"; }

# the commit, not the folder: untracked files and old builds stay out
mkdir "$work/source"
git archive HEAD | tar -x -C "$work/source"
version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' "$work/source/lmix/__init__.py")
if [ "$tag" != "v$version" ]; then
  echo "release.sh: the tag is $tag and lmix.__version__ is $version, so the tag must be v$version" >&2
  exit 1
fi

echo "== build"
rm -rf dist site
"$python" -m venv "$work/tools"
install tools build twine
"$work/tools/bin/python" -m build --outdir dist "$work/source" > "$work/build.log" || { cat "$work/build.log" >&2; exit 1; }
"$work/tools/bin/python" -m twine check --strict dist/*

echo "== one step from the wheel, in a new environment"
wheel=$(echo dist/lmix-*.whl)
"$python" -m venv "$work/user"
# as in install.sh: torch first and by its exact version
install user "$(grep '^torch==' "$work/source/constraints.txt")"
install user --constraint "$work/source/constraints.txt" "$wheel"
# from another folder, so that the wheel is imported and not this checkout
(cd "$work" && env -u PYTHONPATH HF_HUB_OFFLINE=1 user/bin/lmix fit --config lmix:demo --trainer.max_steps=1)

echo "== docs"
install user --constraint "$work/source/constraints.txt" "${wheel}[docs]"
# without --quiet, as in test.sh: it would turn `strict` off
NO_MKDOCS_2_WARNING=1 "$work/user/bin/mkdocs" build --config-file "$work/source/mkdocs.yml" --site-dir "$PWD/site"
ls -l dist

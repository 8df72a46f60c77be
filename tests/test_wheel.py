"""What a wheel holds. Slow, as building one fetches setuptools."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_a_wheel_holds_all_that_a_run_needs(tmp_path):
    line = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, ROOT]
    subprocess.run(line, check=True)
    (wheel,) = tmp_path.glob("lmix-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        for path in sorted((ROOT / "configs").rglob("*.yaml")):
            name = f"lmix/configs/{path.relative_to(ROOT / 'configs').as_posix()}"
            assert archive.read(name) == path.read_bytes()
        for path in sorted((ROOT / "lmix").rglob("*.py")):
            assert path.relative_to(ROOT).as_posix() in names
        for path in sorted((ROOT / "lmix/assets").rglob("*.*")):
            assert path.relative_to(ROOT).as_posix() in names
    assert "lmix/py.typed" in names
    assert not [name for name in names if name.startswith(("tests", "scripts", "configs"))]

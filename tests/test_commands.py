"""Every command that README and docs show parses; those of the embedded model run (slow)."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lmix import cli
from tests.commands import PAGES, ROOT, lmix_arguments, recorded, snippets

OWN_CLASSES = "mine."
"""Of docs/extending.md; tests/test_extending.py runs its examples."""


def commands(folder: Path) -> list[list[str]]:
    found = [command for page in PAGES for snippet in snippets(page) for command in recorded(snippet, folder)]
    return [command for number, command in enumerate(found) if command not in found[:number]]


def test_the_shell_s_reading_of_a_snippet(tmp_path):
    snippet = """
export SAME="--a=1 --b=2"  # a comment
for name in x y; do
  python -m lmix fit --config ... --config=$name.yaml $SAME \\
    "--task.system=Two words."
done
torchrun --nproc_per_node=8 -m lmix plan --config $LMIX_MODEL ...
python scripts/readme.py --out=x
"""
    found = recorded(snippet, tmp_path)
    assert [lmix_arguments(command) for command in found] == [
        ["fit", "--config=x.yaml", "--a=1", "--b=2", "--task.system=Two words."],
        ["fit", "--config=y.yaml", "--a=1", "--b=2", "--task.system=Two words."],
        ["plan", "--config", "/model"],
        None,
    ]
    assert found[-1] == ["python", "scripts/readme.py", "--out=x"]


def test_every_command_parses(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    checked = 0
    for command in commands(tmp_path):
        arguments = lmix_arguments(command)
        if arguments is None or any(OWN_CLASSES in argument for argument in arguments):
            continue
        checked += 1
        if arguments[0] == "report":
            cli.report_parser().parse_args(arguments[1:])
            continue
        status = None
        try:
            status = cli.main([*arguments, "--print_config"])
        except SystemExit as stop:
            status = stop.code
        assert status in (0, None), (command, capsys.readouterr().err)
    assert checked > 25


def test_every_script_and_its_flags_exist(tmp_path):
    checked = 0
    for command in commands(tmp_path):
        if len(command) < 2 or not command[1].startswith("scripts/"):
            continue
        checked += 1
        assert (ROOT / command[1]).is_file(), command
        own = command[2 : command.index("fit") if "fit" in command else None]  # kill_campaign hands the rest to lmix
        for flag in (argument.partition("=")[0] for argument in own if argument.startswith("--")):
            assert f'"{flag}"' in (ROOT / command[1]).read_text(encoding="utf-8"), command
    assert checked > 6


RUNS = re.compile(r"lmix (generate|export|evaluate|sweep|compare|report|plan) ")


@pytest.mark.slow
def test_the_embedded_model_s_commands_run(tmp_path):
    """What `scripts/demo.sh` ends in, then the blocks of docs/index.md and the first of docs/evidence.md."""
    for name in ("configs", "scripts", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "README.md", tmp_path)
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "python").symlink_to(sys.executable)
    # a link to a virtual environment's python does not know its environment
    packages = os.pathsep.join([str(ROOT), *(path for path in sys.path if path)])
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": packages}

    def run(snippet: str) -> None:
        done = subprocess.run(
            ["bash", "-ec", snippet],
            cwd=tmp_path,
            env=environment,
            input="",
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, (snippet, done.stderr[-2000:])
        assert "Traceback" not in done.stderr

    run("python -m lmix fit --config configs/demo.yaml")
    quickstart, evaluation = (snippets(ROOT / "docs" / name) for name in ("index.md", "evidence.md"))
    blocks = [block for block in (*quickstart, evaluation[0]) if RUNS.search(block) and "\n" in block]
    assert len(blocks) == 3
    for block in blocks:
        run(block)
    assert (tmp_path / "report" / "report.md").is_file()
    assert (tmp_path / "tokens.html").is_file()

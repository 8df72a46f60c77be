"""The commands that README and docs show, as the shell reads them."""

import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"```(?:bash|sh)\n(.*?)```", re.DOTALL)
INLINE = re.compile(r"`((?:python -m lmix|lmix|python scripts/|bash scripts/)[^`]*)`")
PROGRAMS = ("python", "lmix", "bash", "torchrun", "srun", "scontrol")
RECORDER = """#!/bin/sh
printf '%s\\0' "$0" "$@" >> "$COMMANDS"
printf '\\n' >> "$COMMANDS"
"""
SETTINGS = {"LMIX_MODEL": "/model", "LMIX_MODEL_15": "/model15", "LMIX_DATA": "/data", "N": "2", "HEAD": "head"}


def snippets(page: Path) -> list[str]:
    """Code blocks and commands in running text. A command that is a name alone, such as `lmix generate`, is none."""
    text = page.read_text(encoding="utf-8")
    inline = [code for code in INLINE.findall(BLOCK.sub("", text)) if "-" in code.removeprefix("python -m ")]
    return BLOCK.findall(text) + inline


def recorded(snippet: str, folder: Path) -> list[list[str]]:
    """What a snippet would run, program by program with its arguments: bash runs it with stand-ins that note theirs."""
    for name in PROGRAMS:
        program = folder / name
        program.write_text(RECORDER)
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    noted = folder / "commands"
    noted.write_text("")
    environment = {"PATH": str(folder), "COMMANDS": str(noted), **SETTINGS}
    bash = shutil.which("bash") or "/bin/bash"
    subprocess.run([bash, "-c", snippet], env=environment, cwd=ROOT, stderr=subprocess.DEVNULL, check=False)
    lines = noted.read_text().split("\0\n")
    return [[os.path.basename(line.split("\0")[0]), *line.split("\0")[1:]] for line in lines if line]


def lmix_arguments(command: list[str]) -> list[str] | None:
    """The arguments that lmix itself gets, `...` left out; None where it is another program's command."""
    if command[0] == "lmix":
        rest = command[1:]
    elif "-m" in command and command[command.index("-m") + 1] == "lmix":
        rest = command[command.index("-m") + 2 :]
    else:
        return None
    while "..." in rest:
        place = rest.index("...")
        del rest[place - 1 if rest[place - 1] == "--config" else place : place + 1]
    return rest

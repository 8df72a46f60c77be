"""Workflows, issue forms, citation and the SLURM script: what no run of lmix would notice."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from lmix import cli

ROOT = Path(__file__).parent.parent
FORMS = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
RECORDER = """#!/bin/sh
printf '%s\\n' "$(basename "$0")" "$@" >> "$COMMANDS"
[ "$(basename "$0")" = scontrol ] || exit "$STATUS"
"""


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_calls_scripts_that_exist(path):
    workflow = yaml.safe_load(path.read_text())
    jobs = workflow["jobs"].values()
    runs = [step["run"] for job in jobs for step in job.get("steps", []) if "run" in step]
    assert runs
    for line in runs:
        script = ROOT / re.fullmatch(r"bash (scripts/\S+\.sh)(?: \S+)?", line)[1]  # pyright: ignore[reportOptionalSubscript]
        assert os.access(script, os.X_OK)
    for job in jobs:
        if job.get("uses", "").startswith("./"):
            assert "workflow_call" in yaml.safe_load((ROOT / job["uses"]).read_text())[True]  # YAML reads `on` as true


def test_issue_forms_ask_for_what_an_answer_needs():
    forms = {path.stem: yaml.safe_load(path.read_text()) for path in FORMS}
    asked = {name: {field.get("id") for field in form.get("body", [])} for name, form in forms.items()}
    assert asked["bug"] >= {"command", "config", "versions"}
    assert asked["question"] >= {"command", "config", "plan", "versions"}
    assert set(forms) == {"bug", "question", "config"}


def test_the_citation_names_the_licence_and_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert f'license = "{citation["license"]}"' in (ROOT / "pyproject.toml").read_text()
    (paper,) = citation["references"]
    assert paper["url"] in (ROOT / "README.md").read_text()


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="a release is built from a commit")
def test_a_tag_that_is_not_the_version_is_refused():
    done = subprocess.run(["bash", "scripts/release.sh", "v0"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "the tag is v0 and lmix.__version__ is" in done.stderr


def slurm(folder: Path, status: int) -> tuple[int, list[list[str]]]:
    """Exit status of scripts/slurm.sh where srun ends with that status, and the programs that it called."""
    for name in ("srun", "scontrol"):
        (folder / name).write_text(RECORDER)
        (folder / name).chmod(0o755)
    noted = folder / "commands"
    noted.write_text("")
    settings = {"SLURM_JOB_NAME": "mine", "SLURM_JOB_ID": "7", "SLURM_NNODES": "2", "SLURM_CPUS_PER_TASK": "8"}
    settings |= {"SLURM_NTASKS_PER_NODE": "4", "STATUS": str(status), "COMMANDS": str(noted)}
    line = ["bash", ROOT / "scripts/slurm.sh", "--config", "lmix:demo", "--config", "lmix:strategies/ddp"]
    path = {"PATH": f"{folder}:{os.environ['PATH']}"}
    done = subprocess.run(line, cwd=folder, env=settings | path, check=False)
    return done.returncode, [part.splitlines() for part in re.split(r"(?m)^(?=srun$|scontrol$)", noted.read_text())[1:]]


def test_a_slurm_job_goes_on_after_a_preemption_only(tmp_path, capsys):
    status, ((srun, *arguments),) = slurm(tmp_path, 1)
    assert (status, srun) == (1, "srun")
    assert not [argument for argument in arguments if "ckpt_path" in argument]
    checkpoints = tmp_path / "runs/lmix/mine/checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / "step=0001.ckpt").touch()
    status, (started, requeued) = slurm(tmp_path, 143)
    assert status == 143
    assert started[-1] == "--ckpt_path=runs/lmix/mine"
    assert requeued == ["scontrol", "requeue", "7"]
    fit = started[started.index("fit") : -1]
    with pytest.raises(SystemExit) as stop:
        cli.main([*fit, "--print_config"])
    assert stop.value.code in (0, None)
    trainer = yaml.safe_load(capsys.readouterr().out)["trainer"]
    assert (trainer["num_nodes"], int(trainer["devices"])) == (2, 4)
    assert trainer["logger"]["init_args"]["version"] == "mine"

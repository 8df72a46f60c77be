"""Run a whole study: choose learning rates and alpha, run SFT and every method with every seed, and write the report.

    python scripts/study.py scripts/studies/qwen2.5-0.5b.yaml --out runs/study
    python scripts/study.py scripts/studies/qwen2.5-0.5b.yaml --out runs/study --plan    # the stages, without running
    python scripts/study.py scripts/studies/qwen2.5-0.5b.yaml --out runs/study --keep results    # what a report needs

Run the command again to resume a stopped study. Finished stages are skipped, and an unfinished stage resumes from its
newest checkpoint. OUT/TASK/choices.json records what was chosen. `--set` changes fields of the file, such as
--set 'model={model.backbone.path: /models/qwen}'. `--jobs 4` runs up to four independent stages at the same time on
one device, each with its output in a file beside its folder.
"""

import argparse
import json
import sys
from pathlib import Path

import yaml
from reproduction.execution import execute
from studies.config import read_study
from studies.keep import keep
from studies.runs import TaskStudy, report

sys.path[:0] = [str(Path(__file__).parent.parent)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="a YAML file such as scripts/studies/qwen2.5-0.5b.yaml")
    parser.add_argument("--out", type=Path, required=True, help="folder for all output")
    parser.add_argument("--tasks", help="tasks of the study to run, separated by commas (default: all)")
    parser.add_argument(
        "--set", action="append", default=[], help="FIELD={name: value, ...}: add to a field of the file"
    )
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time, where they are independent")
    parser.add_argument(
        "--keep", type=Path, help="copy what `lmix report` needs of finished runs here, and run nothing"
    )
    parser.add_argument("--plan", action="store_true", help="print the stages that are left, and run nothing")
    settings = parser.parse_args()
    try:
        changes = {name: yaml.safe_load(value) for name, _, value in (text.partition("=") for text in settings.set)}
        study = read_study(settings.study, changes)
        names = settings.tasks.split(",") if settings.tasks else list(study.tasks)
        if unknown := set(names) - set(study.tasks):
            raise ValueError(f"--tasks names {sorted(unknown)}: use some of {', '.join(study.tasks)}")
    except (ValueError, yaml.YAMLError) as error:
        parser.error(" ".join(str(error).split()))
    parts = [TaskStudy(study, name, settings.out) for name in names]
    if settings.keep:
        print(f"{keep(parts, settings.keep)} runs copied to {settings.keep}")
        return 0
    for part in parts:
        stages = list(part.stages())
        waiting = [stage for stage in stages if not stage.done]
        print(f"{part.task}: {len(stages) - len(waiting)} of {len(stages)} stages are done", flush=True)
        if settings.plan:
            print(*(f"  {stage.name}" for stage in waiting), sep="\n")
            continue
        if status := execute(waiting, plan_only=False, jobs=settings.jobs):
            return status
        (settings.out / part.task / "choices.json").write_text(json.dumps(part.choices(), indent=2) + "\n")
    return 0 if settings.plan else execute([report(parts, settings.out)], plan_only=False)


if __name__ == "__main__":
    sys.exit(main())

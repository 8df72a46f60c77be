"""Configuration files named on the command line: lmix's own by name, and each checked by itself."""

from pathlib import Path

import yaml

FLAGS = ("--config", "-c")
CONFIGS = Path(__file__).parent.parent / "configs"
"""lmix's own, in a checkout and in an installed package."""


def with_config_files(args: list[str]) -> list[str]:
    """Check the files of `--config` and `-c`, and put the path where one of lmix's own is named: `lmix:demo`.

    Raises:
        ValueError: there is no such config of lmix, or a file that is not a YAML mapping.
    """
    resolved = list(args)
    for place, (before, arg) in enumerate(zip(["", *args], args, strict=False)):
        flag, equals, value = ("", "", arg) if before in FLAGS else arg.partition("=")
        if not value or flag not in ("", *FLAGS):
            continue
        if value.startswith("lmix:"):
            resolved[place] = f"{flag}{equals}{own_config(value)}"
        elif (before in FLAGS or flag in FLAGS) and Path(value).is_file():
            check_yaml(value)
    return resolved


def own_config(name: str) -> Path:
    """The file of a config such as `lmix:methods/fixed`. Raises ValueError where there is none."""
    files = (path.relative_to(CONFIGS).with_suffix("") for path in sorted(CONFIGS.rglob("*.yaml")))
    names = [file.as_posix() for file in files if file.parts[0] != "presets"]  # those are of scripts/reproduce.py
    if (known := name.removeprefix("lmix:").removesuffix(".yaml")) not in names:
        raise ValueError(f"config {name!r} is unknown: use one of {', '.join(names)}")
    return CONFIGS / f"{known}.yaml"


def check_yaml(path: str) -> None:
    """Raise ValueError, with file and line, unless a file is text that YAML reads as settings by name."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"config {path!r} is not a text file: give a YAML file with settings by name") from error
    except yaml.MarkedYAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(f"config {path!r} is not valid YAML{line}: {error.problem}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"config {path!r} is not valid YAML: {' '.join(str(error).split())}") from error
    if content is not None and not isinstance(content, dict):
        raise ValueError(f"config {path!r} holds a {type(content).__name__}: give a YAML file with settings by name")

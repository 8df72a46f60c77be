"""Configuration files on the command line: resolves names of lmix's own files, and checks each file."""

from pathlib import Path

import yaml

FLAGS = ("--config", "-c")
CONFIGS = Path(__file__).parent.parent / "configs"
"""The folder of lmix's own configs, in a checkout and in an installed package."""


def with_config_files(args: list[str]) -> list[str]:
    """Check the files of `--config` and `-c`, and replace names of lmix's own configs (`lmix:demo`) by their paths.

    Raises:
        ValueError: lmix has no config of that name, or a file is not a YAML mapping.
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
    """The file of a config such as `lmix:methods/fixed`. Raises ValueError if there is none."""
    files = (path.relative_to(CONFIGS).with_suffix("") for path in sorted(CONFIGS.rglob("*.yaml")))
    names = [file.as_posix() for file in files if file.parts[0] != "presets"]  # presets are for scripts/reproduce.py
    if (known := name.removeprefix("lmix:").removesuffix(".yaml")) not in names:
        raise ValueError(f"config {name!r} is unknown: use one of {', '.join(names)}")
    return CONFIGS / f"{known}.yaml"


def check_yaml(path: str) -> None:
    """Raise ValueError, with file and line, unless a file is a YAML mapping."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"config {path!r} is not a text file: give a YAML file of settings and values") from error
    except yaml.MarkedYAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(f"config {path!r} is not valid YAML{line}: {error.problem}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"config {path!r} is not valid YAML: {' '.join(str(error).split())}") from error
    if content is not None and not isinstance(content, dict):
        raise ValueError(
            f"config {path!r} contains a {type(content).__name__}, not a mapping: give a YAML file of settings and "
            "values"
        )

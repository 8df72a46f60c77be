"""Conversion of settings to command-line arguments, and back."""

import json
from collections.abc import Iterable, Mapping

from .preset import Setting, Settings


def flags(settings: Mapping[str, Setting], prefix: str = "") -> list[str]:
    """Settings as arguments of a command. Text is not changed; other values are written as YAML."""
    texts = {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        for name, value in settings.items()
    }
    return [f"--{prefix}{name}={text}" for name, text in texts.items()]


def parse(arguments: Iterable[str]) -> Settings:
    """The settings in a command's arguments, given as `--name=value` or `--name value`. The last of a name is used."""
    settings: Settings = {}
    name = None
    for argument in arguments:
        if argument.startswith("--"):
            name, equals, value = argument.removeprefix("--").partition("=")
            settings[name] = value
            name = None if equals else name
        elif name is not None:
            settings[name], name = argument, None
    return settings


def below(prefix: str, settings: Mapping[str, Setting]) -> Settings:
    """The settings whose names start with a prefix, with the prefix removed."""
    return {name.removeprefix(prefix): value for name, value in settings.items() if name.startswith(prefix)}

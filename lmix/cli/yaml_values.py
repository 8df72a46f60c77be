"""How the parsers read values: as YAML, except for two texts that jsonargparse's own loader gets wrong."""

from collections.abc import Callable
from functools import cache
from typing import Any


@cache  # once a process, so that the loader is not wrapped again
def set_value_loader() -> None:
    """Make the parsers of all commands read values with `load_yaml`."""
    import yaml
    from jsonargparse import get_loader, set_loader

    own = get_loader("yaml")

    def load(text: str) -> Any:
        return load_yaml(text, own)

    set_loader("yaml", load, (yaml.YAMLError,))


def load_yaml(text: str, own: Callable[[str], Any]) -> Any:
    """Load a value or a configuration file.

    Args:
        text: the YAML.
        own: jsonargparse's loader.

    Returns:
        The value. `None` is null: jsonargparse turns the null of a flag such as `--model.optimizer.max_grad_norm=null`
        into this text. Words in braces without values, such as the prompt `{problem}`, stay text, also with line ends
        around them. jsonargparse's loader keeps them as text only without line ends.
    """
    bare = text.strip()
    if bare == "None":
        return None
    if bare.startswith("{") and bare.endswith("}"):
        value = own(bare)
        return text if value == bare else value
    return own(text)

"""A standalone HTML page: tokens coloured by the stream that favoured them, with the candidates at each position."""

import html
import json
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from lmix.files import write_lines
from lmix.inspection.trace import TokenTrace


def write_page(path: Path, prompt: str, traces: Sequence[TokenTrace], settings: dict[str, str]) -> None:
    """Write the page of one completion.

    Args:
        path: the HTML file.
        prompt: the prompt as the model read it.
        traces: the trace of the completion.
        settings: name -> value, shown at the top.
    """
    template = (files("lmix") / "assets" / "trace.html").read_text(encoding="utf-8")
    # escape "<", because "</" and "<!" have a meaning inside a script element
    data = json.dumps([trace.as_dict() for trace in traces]).replace("<", "\\u003c")
    shown = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in settings.items())
    parts = {"SETTINGS": shown, "PROMPT": html.escape(prompt), "DATA": data}
    write_lines(path, [re.sub("@@([A-Z]+)@@", lambda mark: parts[mark[1]], template)])

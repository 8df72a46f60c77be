"""One HTML file, without a server: tokens coloured by the stream that favoured them, the candidates at each."""

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
        prompt: as the model read it.
        traces: of its tokens.
        settings: shown at the top, name -> value.
    """
    template = (files("lmix") / "assets" / "trace.html").read_text(encoding="utf-8")
    # in a script element only "</" and "<!" end or open something, and JSON may write "<" as \u003c
    data = json.dumps([trace.as_dict() for trace in traces]).replace("<", "\\u003c")
    shown = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in settings.items())
    parts = {"SETTINGS": shown, "PROMPT": html.escape(prompt), "DATA": data}
    write_lines(path, [re.sub("@@([A-Z]+)@@", lambda mark: parts[mark[1]], template)])

"""Completions on the terminal: streamed from the mixture, or from policy, reference and mixture in columns."""

from collections.abc import Sequence

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text
from torch import Tensor
from transformers import TextStreamer

from lmix.inspection.completer import Completer
from lmix.inspection.trace import MIXTURE, TokenTrace, disputed, trace
from lmix.model.mixture import POLICY, REFERENCE, Mixture
from lmix.rollout.types import Prompt

MOST_DISPUTED = 12
"""Number of tokens listed below a side-by-side view."""


def show(completer: Completer, console: Console, prompt: Prompt, side_by_side: bool) -> list[int]:
    """Sample and show a completion. Returns the mixture's tokens."""
    if side_by_side:
        return show_side_by_side(completer, console, prompt)
    if completer.sampler is not None:  # other samplers do not stream tokens
        (rollout,) = completer.complete([prompt])
        console.print(completer.text(rollout.completion_ids), markup=False)
        return rollout.completion_ids
    streamer = TextStreamer(completer.tokenizer, skip_special_tokens=True)  # pyright: ignore[reportArgumentType]
    (rollout,) = completer.complete([prompt], on_tokens=lambda tokens: streamer.put(tokens.cpu()))
    streamer.end()
    return rollout.completion_ids


def show_side_by_side(completer: Completer, console: Console, prompt: Prompt) -> list[int]:
    """Stream policy, reference and mixture in columns, and list the tokens on which the streams differ most.

    All three use the same random numbers, which are also those that each would use alone.

    Returns:
        The mixture's tokens.
    """
    kind = completer.mixture.kind
    mixtures = {
        POLICY: Mixture.alone(POLICY, kind),
        REFERENCE: Mixture.alone(REFERENCE, kind),
        MIXTURE: completer.mixture,
    }
    texts = dict.fromkeys(mixtures, "")
    completion: list[int] = []
    with Live(columns(texts), console=console, refresh_per_second=8) as live:
        for name, mixture in mixtures.items():
            drawn: list[int] = []

            def fill(tokens: Tensor, name: str = name, drawn: list[int] = drawn) -> None:
                drawn.extend(tokens.flatten().tolist())
                texts[name] = completer.text(drawn)
                live.update(columns(texts))

            (rollout,) = completer.complete([prompt], mixture, fill)
            completion = rollout.completion_ids
    if not console.is_terminal:  # there, Live does not end its last line
        console.line()
    traces = trace(completer.policy, completer.mixture, completer.tokenizer, prompt.ids, completion)
    console.print(disputed_table(traces))
    return completion


def columns(texts: dict[str, str]) -> Table:
    """A table with a column for each text."""
    table = Table(expand=True)
    for name in texts:
        table.add_column(name, ratio=1)
    table.add_row(*map(Text, texts.values()))
    return table


def disputed_table(traces: Sequence[TokenTrace]) -> Table:
    """A table of the mixture's tokens on which the streams differ most."""
    table = Table(title="tokens on which the streams differ most, in order: probability of the mixture's token")
    names = list(traces[0].probabilities) if traces else []
    for column in ("token", *names):
        table.add_column(column, justify="left" if column == "token" else "right")
    order = sorted(range(len(traces)), key=lambda place: -disputed(traces[place]))
    for place in sorted(order[:MOST_DISPUTED]):
        cells = [f"{traces[place].probabilities[name]:.3f}" for name in names]
        table.add_row(Text(repr(traces[place].token)), *cells)
    return table

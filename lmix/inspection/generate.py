"""The command `generate`: complete one prompt or a file of prompts, or hold a conversation on the terminal."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from lmix.evaluation.output import new_console
from lmix.files import json_lines, write_lines
from lmix.inspection.completer import Completer
from lmix.inspection.config import MixedPolicyChoice
from lmix.inspection.figure import candidates
from lmix.inspection.page import write_page
from lmix.inspection.side_by_side import show
from lmix.inspection.trace import trace
from lmix.report.style import save
from lmix.rollout.limits import check_limits
from lmix.rollout.samplers import SamplerChoice
from lmix.tasks.cells import read_cell
from lmix.tasks.rows import file_kind, read_file


def generate(
    prompt: str | None = None,
    file: str | None = None,
    out: str | None = None,
    page: str | None = None,
    figure: str | None = None,
    side_by_side: bool = False,
    greedy: bool = False,
    max_new_tokens: int | None = None,
    stop: Sequence[str] = (),
    system: str | None = None,
    chat_template: bool = True,
    chat_template_args: dict[str, Any] | None = None,
    seed: int = 0,
    sampler: SamplerChoice | None = None,
    **kwargs: Any,
) -> None:
    """Complete a prompt, or each prompt of a file. Without `prompt` and `file`, hold a conversation on the terminal.

    Args:
        prompt: a single prompt. Its completion is streamed to the terminal.
        file: prompts: a .jsonl file with a column `prompt` or `problem`, or a text file with one prompt per line.
        out: jsonl file for the completions of `file`.
        figure: path without extension for a PNG and an SVG figure of the tokens on which the streams differ most.
        page: HTML file that shows, for one prompt, the probability of each token under the streams and the mixture.
        side_by_side: show the completions of policy, reference and mixture, and the tokens on which the streams differ
            most.
        greedy: decode greedily; otherwise sample at temperature 1. Random numbers depend on the seed, the prompt and
            how often it was completed before, so `prompt`, `file` and each column of `side_by_side` give the same
            completion.
        max_new_tokens: length limit in tokens, after which a completion is cut; null uses the rest of the backbone's
            context, at most 512.
        stop: list of strings that end a completion, in addition to the end-of-sequence tokens. They stay in the text.
        system: the system message of the chat template.
        chat_template: put prompts into the tokenizer's chat template, if it has one.
        chat_template_args: other variables of the chat template, such as {enable_thinking: false}.
        seed: random seed.
        sampler: the sampler: lmix.rollout.VLLM or VLLMServers (docs/serve.md); null is lmix's own engine.
        kwargs: see `MixedPolicyChoice`.

    Raises:
        ValueError: a setting, the backbone or an adapter is wrong, or settings can't be combined.
    """
    if max_new_tokens is not None and max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, not {max_new_tokens}")
    check_limits("", max_new_tokens, stop)
    if prompt is not None and file is not None:
        raise ValueError("prompt and file are both given: give only one of them")
    if (file is None) != (out is None):
        raise ValueError("file and out must be given together: the prompts' file and the completions' file")
    if (page or figure) and prompt is None:
        raise ValueError("page and figure show one completion: give a prompt")
    prompts = read_prompts(file) if file is not None else []
    choice = MixedPolicyChoice(**kwargs)
    if sampler is not None and choice.folder is None:
        sampler.check(choice.backbone, choice.adapters)
    model, console = choice.load(), new_console()
    completer = Completer(model, system, chat_template, greedy, max_new_tokens, seed, chat_template_args, stop=stop)
    if sampler is not None:
        completer.use(sampler)
    if file is not None and out is not None:
        complete_file(completer, console, prompts, Path(out))
    elif prompt is None:
        converse(completer, console, side_by_side)
    else:
        asked = completer.prompt([{"role": "user", "content": prompt}])
        completion = show(completer, console, asked, side_by_side)
        if page or figure:
            show_tokens(completer, console, asked.ids, completion, page, figure)


def show_tokens(
    completer: Completer,
    console: Console,
    prompt_ids: Sequence[int],
    completion_ids: Sequence[int],
    page: str | None,
    figure: str | None,
) -> None:
    """Write the page and the figure of one completion's tokens, as far as their paths are given."""
    traces = trace(completer.policy, completer.mixture, completer.tokenizer, prompt_ids, completion_ids)
    for path in filter(None, (figure, page)):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    if figure is not None:
        console.print(", ".join(map(str, save(candidates(traces), Path(figure)))))
    if page is not None:
        draw, mixture = completer.draw, completer.mixture
        settings = {name: f"{weight:g}" for name, weight in mixture.by_name().items()}
        settings |= {"mixture": mixture.kind, "drawn": "greedily" if draw.greedy else f"at random, seed {draw.seed}"}
        write_page(Path(page), str(completer.tokenizer.decode(list(prompt_ids))), traces, settings)
        console.print(f"{page} shows each token")


def read_prompts(file: str) -> list[str]:
    """Read the prompts of a file. Raises ValueError, in one line, if it can't be read or contains none."""
    path = Path(file)
    if not path.is_file():
        raise ValueError(f"file {file!r} does not exist: give a file of prompts")
    try:
        if file_kind(path) is not None:
            columns, rows = read_file(path)
            column = next((name for name in ("prompt", "problem") if name in columns), None)
            lines = [read_cell(number, row, column) for number, row in enumerate(rows)] if column else [""]
            if not all(line.strip() for line in lines):
                raise ValueError("each row needs a column `prompt` or `problem`")
        else:
            lines = [line for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    except ValueError as error:
        raise ValueError(f"file {file!r} can't be read: {error}") from error
    if not lines:
        raise ValueError(f"file {file!r} contains no prompts")
    return lines


def converse(completer: Completer, console: Console, side_by_side: bool) -> None:
    """Read messages from the terminal and answer each, until the input ends."""
    messages: list[dict[str, str]] = []
    console.print("Type a message and press Enter. /new starts a new conversation. An empty line or Ctrl-D quits.")
    for line in lines_asked():
        if line == "/new":
            messages = []
            continue
        messages.append({"role": "user", "content": line})
        try:
            prompt = completer.prompt(messages)
        except ValueError as error:  # the conversation no longer fits the backbone's context
            console.print(f"{error}; /new starts a new conversation")
            messages.pop()
            continue
        completion = show(completer, console, prompt, side_by_side)
        messages.append({"role": "assistant", "content": completer.text(completion)})


def lines_asked() -> Iterator[str]:
    """Yield lines from the terminal until one is empty."""
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except (EOFError, KeyboardInterrupt):
            return
        if not line:
            return
        yield line


def complete_file(completer: Completer, console: Console, prompts: Sequence[str], out: Path) -> None:
    """Complete many prompts at once, and write the completions to a file."""
    asked = [completer.prompt([{"role": "user", "content": prompt}]) for prompt in prompts]
    rows = [
        {
            "prompt": prompt,
            "completion": rollout.text,
            "ended": rollout.ended,
            "log_prob": float(rollout.log_probs.sum()),
        }
        for prompt, rollout in zip(prompts, completer.complete(asked), strict=True)
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    write_lines(out, json_lines(rows))
    console.print(f"{out}: {len(rows)} completions")

"""Completions on the terminal: of one prompt, of a file's, or in a conversation; of all streams side by side."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.live import Live
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerBase, TextStreamer

from lmix.evaluation.output import new_console
from lmix.files import json_lines, write_lines
from lmix.inspection.config import MixedPolicyChoice
from lmix.inspection.figure import candidates
from lmix.inspection.page import write_page
from lmix.inspection.trace import MIXTURE, TokenTrace, disputed, trace
from lmix.model.causal_lm import MixedPolicyForCausalLM
from lmix.model.streams import POLICY, REFERENCE
from lmix.model.tokenizer import check_places, end_tokens, load_tokenizer
from lmix.report.style import save
from lmix.rollout.engine import Draw, RolloutEngine
from lmix.rollout.rollout import decode_texts
from lmix.tasks.rows import read_json
from lmix.tasks.task import chat_ids

MOST_NEW_TOKENS = 512
"""Of a completion where `max_new_tokens` is null and the backbone has room for more."""

MOST_DISPUTED = 12
"""Tokens that are listed below a side-by-side view."""


def generate(
    prompt: str | None = None,
    file: str | None = None,
    out: str | None = None,
    page: str | None = None,
    figure: str | None = None,
    side_by_side: bool = False,
    greedy: bool = False,
    max_new_tokens: int | None = None,
    system: str | None = None,
    chat_template: bool = True,
    seed: int = 0,
    **kwargs: Any,
) -> None:
    """Complete a prompt, each prompt of a file, or hold a conversation on the terminal (neither is given).

    Args:
        prompt: one prompt; its completion is shown as it is drawn.
        file: prompts: a .jsonl file with a column `prompt` or `problem`, or a text file with one in each line.
        out: jsonl for the file's completions.
        figure: file without its ending, for a PNG and an SVG of the tokens that the streams dispute most.
        page: HTML file that shows, for one prompt, how the streams and the mixture saw each token.
        side_by_side: show what policy, reference and mixture complete, each alone, and the tokens that they dispute.
        greedy: take the most probable token; otherwise draw at temperature 1.
        max_new_tokens: a completion that has not ended by then is cut; null is what the backbone has room for after
            the prompt, at most 512.
        system: the system message of a chat template.
        chat_template: put prompts into the tokenizer's chat template, where it has one.
        seed: of the draws.
        kwargs: see `MixedPolicyChoice`.

    Raises:
        ValueError: a setting, the backbone or an adapter is wrong, or settings that do not go together.
    """
    if max_new_tokens is not None and max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, not {max_new_tokens}")
    if prompt is not None and file is not None:
        raise ValueError("prompt and file are both given: leave one of them out")
    if (file is None) != (out is None):
        raise ValueError("file and out go together: prompts in one, completions in the other")
    if (page or figure) and prompt is None:
        raise ValueError("page and figure show one completion: give its prompt")
    prompts = read_prompts(file) if file is not None else []
    choice = MixedPolicyChoice(**kwargs)
    model = choice.load()
    speaker = Speaker(model, system, chat_template, greedy, max_new_tokens)
    torch.manual_seed(seed)
    if file is not None and out is not None:
        complete_file(speaker, prompts, Path(out), seed)
    elif prompt is None:
        converse(speaker, side_by_side)
    else:
        ids = speaker.ids([{"role": "user", "content": prompt}])
        completion = speaker.show(ids, side_by_side)
        if page or figure:
            traces = trace(model.policy, speaker.tokenizer, ids, completion)
        for path in filter(None, (figure, page)):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        if figure is not None:
            speaker.console.print(", ".join(map(str, save(candidates(traces), Path(figure)))))
        if page is not None:
            settings = {name: f"{weight:g}" for name, weight in model.policy.weights.items()}
            settings |= {"mixture": model.policy.mixture, "drawn": "greedily" if greedy else f"at random, seed {seed}"}
            write_page(Path(page), str(speaker.tokenizer.decode(ids)), traces, settings)
            speaker.console.print(f"{page} shows each token")


def read_prompts(file: str) -> list[str]:
    """Raises ValueError where there is none, in one line."""
    path = Path(file)
    if not path.is_file():
        raise ValueError(f"file {file!r} does not exist")
    if path.suffix in (".jsonl", ".json"):
        try:
            columns, rows = read_json(path)
        except ValueError as error:
            raise ValueError(f"file {file!r} can't be read: {error}") from error
        column = next((name for name in ("prompt", "problem") if name in columns), None)
        if column is None or any(row[column] is None for row in rows):
            raise ValueError(f"file {file!r} needs `prompt` or `problem` in each row")
        lines = [str(row[column]) for row in rows]
    else:
        lines = [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    if not lines:
        raise ValueError(f"file {file!r} holds no prompt")
    return lines


class Speaker:
    """A mixed policy that completes and shows."""

    def __init__(
        self, model: MixedPolicyForCausalLM, system: str | None, chat: bool, greedy: bool, max_new_tokens: int | None
    ) -> None:
        self.model, self.policy = model, model.policy
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(model.config.backbone["path"])
        self.chat = chat and bool(self.tokenizer.chat_template)
        self.system, self.greedy, self.max_new_tokens = system, greedy, max_new_tokens
        self.console = new_console()
        self.ends = end_tokens(self.policy, self.tokenizer)

    def ids(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """A conversation as the model reads it; without a chat template, its last message."""
        if not self.chat:
            return self.checked(self.tokenizer(messages[-1]["content"])["input_ids"])  # pyright: ignore
        return self.checked(chat_ids(self.tokenizer, messages, self.system or None))

    def checked(self, ids: list[int]) -> list[int]:
        """Raises ValueError where a prompt is empty, or too long for the backbone."""
        if not ids:
            raise ValueError("the prompt is empty")
        check_places(self.model.config.backbone["path"], len(ids), self.max_new_tokens or 1)
        return ids

    def new_tokens(self, longest_prompt: int) -> int:
        """How many tokens to draw at most after prompts of at most this many tokens."""
        if self.max_new_tokens is not None:
            return self.max_new_tokens
        places = getattr(self.policy.backbone.config, "max_position_embeddings", None)
        return MOST_NEW_TOKENS if places is None else min(MOST_NEW_TOKENS, places - longest_prompt)

    def text(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode([token for token in ids if token not in self.ends]))

    def complete(self, ids: Sequence[int], streamer: Any = None) -> list[int]:
        """Draw a completion at the policy's weights of the moment."""
        model: Any = self.model  # its mixin asks for more attributes in its types than it uses
        rows = model.generate(
            torch.tensor([ids], device=self.policy.device),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long, device=self.policy.device),
            max_new_tokens=self.new_tokens(len(ids)),
            do_sample=not self.greedy,
            eos_token_id=self.ends,
            pad_token_id=self.ends[0],
            streamer=streamer,
        )
        return rows[0, len(ids) :].tolist()  # pyright: ignore

    def show(self, ids: Sequence[int], side_by_side: bool) -> list[int]:
        """Draw and show; gives the mixture's completion."""
        if side_by_side:
            return self.show_side_by_side(ids)
        return self.complete(ids, TextStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True))  # pyright: ignore

    def show_side_by_side(self, ids: Sequence[int]) -> list[int]:
        """Policy and reference alone, and the mixture, in columns that fill as tokens are drawn."""
        mixed = self.policy.weights
        parts = {POLICY: {POLICY: 1.0}, REFERENCE: {REFERENCE: 1.0}, MIXTURE: mixed}
        texts = dict.fromkeys(parts, "")
        completion: list[int] = []
        with Live(columns(texts), console=self.console, refresh_per_second=8) as live:
            state = torch.get_rng_state()  # each draws as it would alone
            for name, weights in parts.items():
                self.policy.weights = weights
                torch.set_rng_state(state)
                try:
                    completion = self.complete(ids, Column(self, texts, name, live))
                finally:
                    self.policy.weights = mixed
        self.show_disputed(trace(self.policy, self.tokenizer, ids, completion))
        return completion

    def show_disputed(self, traces: Sequence[TokenTrace]) -> None:
        """The mixture's tokens, those that the streams see most differently in a table."""
        table = Table(title="tokens that the streams dispute most, in order: probability of the mixture's token")
        names = list(traces[0].probabilities) if traces else []
        for column in ("token", *names):
            table.add_column(column, justify="left" if column == "token" else "right")
        order = sorted(range(len(traces)), key=lambda place: -disputed(traces[place]))
        for place in sorted(order[:MOST_DISPUTED]):
            cells = [f"{traces[place].probabilities[name]:.3f}" for name in names]
            table.add_row(Text(repr(traces[place].token)), *cells)
        self.console.print(table)


class Column:
    """A streamer that writes into one column."""

    def __init__(self, speaker: Speaker, texts: dict[str, str], name: str, live: Live) -> None:
        self.speaker, self.texts, self.name, self.live = speaker, texts, name, live
        self.tokens: list[int] | None = None

    def put(self, value: torch.Tensor) -> None:
        if self.tokens is None:  # the prompt
            self.tokens = []
            return
        self.tokens += value.flatten().tolist()
        self.texts[self.name] = self.speaker.text(self.tokens)
        self.live.update(columns(self.texts))

    def end(self) -> None:
        self.live.refresh()


def columns(texts: dict[str, str]) -> Table:
    table = Table(expand=True)
    for name in texts:
        table.add_column(name, ratio=1)
    table.add_row(*map(Text, texts.values()))
    return table


def converse(speaker: Speaker, side_by_side: bool) -> None:
    """Read lines from the terminal until it ends, and answer each."""
    messages: list[dict[str, str]] = []
    speaker.console.print("A line is a message; /new starts anew; an empty line or Ctrl-D ends.")
    for line in asked():
        if line == "/new":
            messages = []
            continue
        messages.append({"role": "user", "content": line})
        try:
            ids = speaker.ids(messages)
        except ValueError as error:  # the conversation has outgrown the backbone
            speaker.console.print(f"{error}; /new starts anew")
            messages.pop()
            continue
        completion = speaker.show(ids, side_by_side)
        messages.append({"role": "assistant", "content": speaker.text(completion)})


def asked() -> Iterator[str]:
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except (EOFError, KeyboardInterrupt):
            return
        if not line:
            return
        yield line


def complete_file(speaker: Speaker, prompts: Sequence[str], out: Path, seed: int) -> None:
    """Complete many prompts in one go, and write them down."""
    engine = RolloutEngine(speaker.policy, speaker.ends)
    ids = [speaker.ids([{"role": "user", "content": prompt}]) for prompt in prompts]
    most = speaker.new_tokens(max(map(len, ids)))
    rollouts = engine.generate(ids, most, Draw(seed, greedy=speaker.greedy))
    decode_texts(rollouts, speaker.tokenizer)
    rows = [
        {
            "prompt": prompt,
            "completion": rollout.text,
            "ended": rollout.ended,
            "log_prob": float(rollout.log_probs.sum()),
        }
        for prompt, rollout in zip(prompts, rollouts, strict=True)
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    write_lines(out, json_lines(rows))
    speaker.console.print(f"{out}: {len(rows)} completions")

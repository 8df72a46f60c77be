"""What a run shows, on a terminal and in a log file."""

import io
from pathlib import Path

from rich.console import Console

from lmix.model.tokenizer import load_tokenizer
from lmix.progress import Pace, StatusLine
from lmix.training.checkpoints import PolicyCheckpoint
from lmix.training.config import SamplingConfig
from lmix.training.console import StepConsole
from lmix.training.objectives import GRPO
from tests.training.helpers import data, module, trainer


class Shown(StatusLine):
    """Keeps what is shown."""

    def __init__(self, console):
        super().__init__(console)
        self.said = []

    def show(self, name, done, total, text):
        self.said.append(f"{name}: {text}")
        super().show(name, done, total, text)

    def hide(self):
        self.said.append("")
        super().hide()


def by_sample(groups):
    """A reward by which no group is dead."""
    return [[float(rollout.sample) for rollout in group.rollouts] for group in groups]


def run(tmp_path, prompts=2, interval=2, checkpoints=False, **console_arguments):
    """Two steps with an evaluation before and after; each reading of the clock is a minute after the last."""
    ticks = iter(range(0, 10**6, 60))
    console = StepConsole()
    console.console = Console(
        file=(out := io.StringIO()), width=200, highlight=False, soft_wrap=True, **console_arguments
    )
    console.status, console.pace = (status := Shown(console.console)), Pace(clock=lambda: next(ticks))
    sampling = SamplingConfig(samples_per_prompt=4, max_new_tokens=8, slots=16, seed=0)
    objective = GRPO(mini_batches=2, inner_updates=2)
    m = module(sampling=sampling, rewards={f"{__name__}.by_sample": 1.0}, objective=objective)
    callbacks = [console, PolicyCheckpoint()] if checkpoints else [console]
    arguments = {"num_sanity_val_steps": -1, "val_check_interval": interval, "limit_val_batches": None}
    trainer(tmp_path, 2, callbacks=callbacks, enable_progress_bar=True, **arguments).fit(m, data(prompts=prompts))
    return status, out.getvalue()


def test_a_log_file_has_a_line_a_step_with_the_time_left(tmp_path):
    status, text = run(tmp_path)
    steps = [line for line in text.splitlines() if line.startswith("step ")]
    assert [line.split("  reward")[0].split("  loss")[0] for line in steps] == ["step   1/2", "step   2/2"]
    assert steps[0].endswith(" left")
    assert " left" not in steps[1]
    assert "completions," not in text
    assert "micro-batches" not in text
    said = [line for line in status.said if line]
    assert any(line.startswith("evaluation after step 0: ") for line in said)
    assert any(line.startswith("evaluation after step 2: ") for line in said)
    first = [line for line in said if line.startswith("step   1/2 ")]
    assert first[0].startswith("step   1/2 rollouts: ")
    assert first[-4:] == [f"step   1/2 update: {done}/4 micro-batches" for done in (1, 2, 3, 4)]
    assert not any(" left" in line for line in first)
    second = [line for line in said if line.startswith("step   2/2 ")]
    assert second[-1].startswith("step   2/2 update: 4/4 micro-batches, about ")
    assert all(line.endswith(" left") for line in second)
    assert status.said[-1] == ""


def test_a_run_begins_with_the_sizes_and_a_prompt_as_the_model_reads_it(tmp_path):
    problems = data(prompts=2)
    problems.tokenizer = load_tokenizer("lmix:tiny-arithmetic")
    train = problems.read(["train"])["train"]
    text = run(tmp_path)[1]
    before, _, _ = text.partition("held-out problems, step 0:")
    assert f"training problems: {len(train)}, held-out problems: " in before
    shown = str(problems.tokenizer.decode(train[0].ids))
    assert f"prompt of problem {train[0].problem.id} ({len(train[0].ids)} tokens, gold answer" in before
    assert before.split("):\n", 1)[1].startswith("".join(f"  | {line}\n" for line in shown.split("\n")))


def test_a_run_ends_with_its_adapter_and_says_what_was_not_evaluated(tmp_path):
    text = run(tmp_path, checkpoints=True)[1]
    *_, adapter, after = text.splitlines()
    folder = adapter.removeprefix("policy adapter: ")
    assert (Path(folder) / "adapter_model.safetensors").is_file()
    assert folder.endswith("step=0002")
    assert after == f"next: lmix generate, evaluate or export with --adapters.policy={folder}"
    assert "not evaluated" not in text
    assert "data.prompts_per_step" not in text


def test_a_last_step_without_an_evaluation_and_fewer_problems_than_a_step_takes(tmp_path):
    text = run(tmp_path, prompts=1000, interval=3)[1]
    assert "not evaluated after step 0: --trainer.val_check_interval=2 evaluates step 2" in text
    assert " training problems: a step has " in text
    assert " prompts, not the 1000 of data.prompts_per_step" in text


def test_a_terminal_has_a_bar_and_whole_lines(tmp_path):
    status, text = run(tmp_path, force_terminal=True)
    assert status.bar is None
    assert "micro-batches" in text
    assert "completions" in text
    assert text.count("step   2/2  ") == 1

"""`sampling.slots: auto` is the planner's arithmetic turned round."""

from dataclasses import replace

import pytest

from lmix import cli
from lmix.model.adapters import AdapterConfig
from lmix.model.mixture import Mixture
from lmix.planning.estimates import memory, peak
from lmix.planning.shape import model_shape
from lmix.training.config import SamplingConfig
from lmix.training.slots import USED, automatic_slots
from tests.conftest import MIXED, PROBS, make_policy, tiny_model
from tests.planning.runs import RUN as PLANNED

SAMPLING = SamplingConfig(samples_per_prompt=4, max_new_tokens=50, slots="auto")
RUN = replace(PLANNED, prompts=64, samples=4, slots=4, prompt_tokens=30, tokens=50, pass_tokens=1)


@pytest.mark.parametrize("name", ["qwen2", "gemma2"])
@pytest.mark.parametrize("mixture", [MIXED, PROBS])
def test_one_group_more_would_not_fit(name, mixture, folders):
    policy, free = make_policy(name, folders), 4e7
    slots = automatic_slots(policy, mixture, SAMPLING, 30, 256, free)
    assert slots % 4 == 0
    assert 4 < slots < 256
    adapters = AdapterConfig(reference=str(folders[f"{name}-sft"]), rank=4)
    model = model_shape(tiny_model(name).config, adapters)
    run = replace(RUN, mixes_logits=mixture is PROBS or name == "gemma2")

    def needed(slots: int) -> float:
        parts = memory(model, replace(run, slots=slots))
        # the weights are no part of what is free; a prefill of all prompts is what `auto` allows for
        rollout = sum(size for part, size in parts.items() if part.startswith("rollout: ") and "prefill" not in part)
        prefill = memory(model, replace(run, slots=64))["rollout: prefill"]  # its planner has a prompt a row
        return rollout + prefill + parts["gradient and optimiser"]

    assert needed(slots) <= USED * free < needed(slots + 4)
    assert peak(memory(model, run)) > 0


def test_never_less_than_a_group_nor_more_than_a_step(folders):
    policy = make_policy("qwen2", folders)
    assert automatic_slots(policy, MIXED, SAMPLING, 30, 256, 1.0) == 4
    assert automatic_slots(policy, MIXED, SAMPLING, 30, 24, 1e12) == 24


def test_what_stays_during_the_update_leaves_room_for_it_and_one_stream_needs_less(folders):
    policy = make_policy("qwen2", folders)
    plain = automatic_slots(policy, MIXED, SAMPLING, 30, 4000, 2e8)
    assert automatic_slots(policy, MIXED, replace(SAMPLING, compile=True), 30, 4000, 2e8) < 0.6 * plain
    assert automatic_slots(policy, Mixture.at(0.0), SAMPLING, 30, 4000, 2e8) > plain


def test_zero_slots_are_refused():
    with pytest.raises(ValueError, match=r"sampling\.slots must be at least 1, not 0"):
        SamplingConfig(slots=0)


def test_the_setting_by_the_command_line():
    def made(*flags: str) -> SamplingConfig:
        line = ["fit", "--config=lmix:demo", "--trainer.accelerator=cpu", *flags]
        return cli.run_trainer(line, start=False).model.sampling

    assert made("--model.sampling.slots=auto", "--model.sampling.compile=true").slots == "auto"
    assert made("--model.sampling.slots=auto", "--model.sampling.compile=true").compile
    assert made("--model.sampling.slots=12").slots == 12

"""A run to plan with."""

from lmix.planning.shape import RunShape

RUN = RunShape(
    nf4=False,
    double_quantization=True,
    width=4,
    dense_rollouts=False,
    checkpointing=False,
    streams=2,
    prompts=4,
    samples=8,
    slots=16,
    prompt_tokens=10,
    tokens=20,
    keep_frozen=True,
    pass_tokens=100,
)

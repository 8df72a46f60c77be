"""The output of `lmix` without a command: a list of all commands, with one line for each."""

from lmix import __version__

GROUPS = {
    "Train": {
        "fit": "train by reinforcement learning, SFT or distillation",
        "validate": "evaluate a checkpoint on the run's held-out problems",
        "test": "like validate, but logged as test/",
        "predict": "draw completions of the held-out problems",
        "plan": "estimate memory and time of a run before starting it",
    },
    "Evaluate": {
        "evaluate": "solve and format rates of the mixture, the policy or the reference, with intervals",
        "sweep": "solve and format rates at alpha 0 to 1",
        "compare": "compare two policies problem by problem",
        "report": "tables and figures of runs, sweeps and comparisons",
        "power": "how large a study must be to detect a difference",
        "audit": "how many problems the model completes from their beginning",
        "rewards": "why a run's rewards are zero",
    },
    "Use": {
        "generate": "talk to the mixture, or complete a file of prompts",
        "export": "write the mixture as one folder for transformers and vLLM",
        "merge": "average the adapters, or fold them into the base",
        "delta": "turn a full checkpoint's difference from its base into a LoRA",
    },
}


def overview() -> str:
    """The help of the command line as a whole."""
    lines = ["usage: lmix COMMAND [--config FILE ...] [--setting=value ...]", ""]
    lines += ["Reinforcement learning with logit averaging. Start with: lmix fit --config lmix:demo", ""]
    for title, commands in GROUPS.items():
        lines += [f"{title}:", *(f"  {name:<9} {text}" for name, text in commands.items()), ""]
    lines += ["lmix COMMAND --help lists a command's settings, and --version prints lmix's version."]
    lines += [
        "Settings of a class: lmix fit --model.help=lmix.GRPOModule, lmix fit --data.task.help=lmix.tasks.MathTask."
    ]
    return "\n".join(lines)


def asked(args: list[str]) -> str | None:
    """The text to print for a command line without a command; None if there is a command.

    Raises:
        ValueError: the command is unknown.
    """
    if not args or args[0] in ("-h", "--help"):
        return overview()
    if args[0] == "--version":
        return f"lmix {__version__}"
    known = [name for commands in GROUPS.values() for name in commands]
    if not args[0].startswith("-") and args[0] not in known:
        raise ValueError(f"there is no command {args[0]!r}: use one of {', '.join(known)}")
    return None

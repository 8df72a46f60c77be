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


def information(args: list[str]) -> str | None:
    """The text to print for a command line that asks for help or the version only; None for all others."""
    if not args or args[0] in ("-h", "--help"):
        return overview()
    return f"lmix {__version__}" if args[0] == "--version" else None


def check_command(command: str) -> None:
    """Check the first argument. Raises ValueError if it is neither an option nor the name of a command."""
    known = [name for commands in GROUPS.values() for name in commands]
    if not command.startswith("-") and command not in known:
        raise ValueError(f"there is no command {command!r}: use one of {', '.join(known)}")

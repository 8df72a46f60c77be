"""A stage: one command of a preset, its output folder and its cost."""

from dataclasses import dataclass
from pathlib import Path

DONE = ".done"
"""File in a stage's folder that marks the stage as finished."""


@dataclass(frozen=True)
class Stage:
    """One command, which is run to its end or resumed."""

    name: str
    command: list[str]
    folder: Path
    """Output folder. A file `.done` in it marks the stage as finished."""
    completions: int = 0
    """Number of completions that it decodes."""
    always: bool = False
    """Whether to run it every time, because it is short or skips finished work itself."""
    last: Path | None = None
    """The checkpoint of its last step; None if it does not train."""
    wave: int = 0
    """A stage depends only on stages of earlier waves, so the stages of one wave can run at the same time."""

    @property
    def done(self) -> bool:
        return (self.folder / DONE).exists() and not self.always

    def line(self) -> list[str]:
        """The command, which resumes from the newest checkpoint before that of the last step, if there is one.

        The checkpoint of the last step is not used, because the run may have been stopped after it.
        """
        if self.last is None:
            return self.command
        before = sorted(path for path in self.last.parent.glob("step=*.ckpt") if path.name != self.last.name)
        return [*self.command, *(f"--ckpt_path={path}" for path in before[-1:])]

"""A stage: one command of a preset, its output folder and its cost."""

from dataclasses import dataclass
from pathlib import Path

DONE = ".done"
"""Written into a stage's folder when the stage has succeeded."""


@dataclass(frozen=True)
class Stage:
    """One command that is run to its end, or resumed."""

    name: str
    command: list[str]
    folder: Path
    """Output folder. A file `.done` in it says that the stage has succeeded."""
    completions: int = 0
    """Completions that it decodes."""
    always: bool = False
    """Run again each time: it is short, or skips by itself what is done."""
    last: Path | None = None
    """The checkpoint of its last step."""

    @property
    def done(self) -> bool:
        return (self.folder / DONE).exists() and not self.always

    def line(self) -> list[str]:
        """The command; it resumes from the newest checkpoint before the last one, if there is one.

        The last one does not count: the run may have been stopped in what follows its last step.
        """
        if self.last is None:
            return self.command
        before = sorted(path for path in self.last.parent.glob("step=*.ckpt") if path.name != self.last.name)
        return [*self.command, *(f"--ckpt_path={path}" for path in before[-1:])]

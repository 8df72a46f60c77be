r"""A process that judges answers with algebra: `python -m lmix.verifier.worker MEMORY_MB DEADLINE`.

It reads JSON lines `[answer, gold]` on stdin and writes one word per line on stdout: `ready` after the warm-up, then an
outcome for each pair (`right`, `wrong`, `unparsable`). The parent (`lmix.verifier.pool`) kills it when it takes too
long, so Math-Verify's own timeouts, which need signals, are turned off. Completions are untrusted input to a large
parser. The limits and the ban on files and network below are a second line of defence, not a sandbox.
"""

import json
import logging
import os
import resource
import signal
import sys
from typing import Any

from lmix.verifier.comparison import compare
from lmix.verifier.plain_numbers import plain_number
from lmix.verifier.units import split_unit

_WARM_UP = (
    (r"\frac{1}{2}+x", r"x+\frac12"), (r"\sqrt{8}", r"2\sqrt{2}"), (r"(x+1)^2", "x^2+2x+1"), ("2i+3", "3+2i"),
    ("y=2x+1", "2x-y+1=0"), (r"1\le x\le 2", "[1,2]"), (r"x<2\pi", r"(-\infty,2\pi)"),
    (r"\log_2 3", r"\frac{\ln 3}{\ln 2}"),
    (r"\begin{pmatrix}1&x\\3&4\end{pmatrix}", r"\begin{pmatrix}x&1\\3&4\end{pmatrix}"), (r"\sin 2x", r"2\sin x\cos x"),
    (r"(-\infty,0)\cup(0,\infty)", r"\mathbb{R}\setminus\{0\}"), (r"1.5\pi", r"\frac{3\pi}{2}"),
    ("5!", r"\binom{9}{3}+36"),
    (r"\cos 15^\circ", r"\frac{\sqrt6+\sqrt2}{4}"), (r"|x|+\lfloor 2.5\rfloor", "2+|x|"), ("x^3-1=0", "x=1"),
)  # fmt: skip
_REFUSED_EVENTS = (
    "socket.", "subprocess.", "os.exec", "os.posix_spawn", "os.fork", "os.system", "os.remove", "os.rename", "os.mkdir",
    "os.rmdir", "os.truncate", "os.chmod", "os.chown", "os.utime", "os.kill", "os.link", "os.symlink", "ctypes.dlopen",
    "shutil.", "ftplib.", "urllib.",
)  # fmt: skip
_RECURSION_LIMIT = 3000
_OPEN_FILES = 16
_ORPHAN_GRACE = 5.0


class UnparsableError(Exception):
    """The answer is not mathematics that the parser can read."""


def algebra(answer: str, gold: str) -> bool:
    """Judge two normalised answers with Math-Verify.

    Raises:
        UnparsableError: the answer can't be parsed.
    """
    from math_verify import verify

    from lmix.verifier.equality import is_rounding

    (answer, _), (gold, _) = split_unit(answer), split_unit(gold)
    parsed = _parse(answer)
    if not parsed:
        raise UnparsableError(answer)
    parsed_gold = _parse(gold)
    if not parsed_gold:
        return False
    if verify(parsed_gold, parsed, allow_set_relation_comp=True, timeout_seconds=None):
        return not _only_solutions_missing(parsed[0], parsed_gold[0])
    decimals = ((plain_number(answer), parsed_gold[0]), (plain_number(gold), parsed[0]))
    try:
        return any(decimal is not None and is_rounding(decimal, number) for decimal, number in decimals)
    except MemoryError:
        raise
    except Exception:  # like Math-Verify, treat what sympy can't evaluate as unequal
        return False


def _only_solutions_missing(answer: Any, gold: Any) -> bool:
    """Whether Math-Verify takes two equations for equal only because neither has a solution: x^2 = -1 and x^2 = -2."""
    from sympy import Eq, Expr, simplify, solve

    if not isinstance(answer, Eq) or not isinstance(gold, Eq):
        return False
    sides: list[Any] = [*answer.args, *gold.args]
    if not all(isinstance(side, Expr) for side in sides):
        return False
    difference, gold_difference = sides[0] - sides[1], sides[2] - sides[3]
    if any(simplify(difference - sign * gold_difference) == 0 for sign in (1, -1)):
        return False
    try:
        return not solve(gold, gold.free_symbols)
    except NotImplementedError:  # then Math-Verify's verdict did not come from solutions either
        return False


def _parse(text: str) -> list[Any]:
    from latex2sympy2_extended.latex2sympy2 import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse

    # Units have already been split off, and Math-Verify would read the m of 3m as metres.
    spelling = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="last")
    config = LatexExtractionConfig(boxed_match_priority=0, normalization_config=spelling)
    # "first_match": if the whole answer can't be parsed, do not fall back to a part of it.
    return parse(
        rf"\boxed{{{text}}}",
        [config],
        fallback_mode="no_fallback",
        extraction_mode="first_match",
        parsing_timeout=None,  # pyright: ignore[reportArgumentType]
    )


def outcome(answer: str, gold: str) -> str:
    """Judge an answer: `right`, `wrong` or `unparsable`.

    Raises:
        MemoryError: the process is out of memory and should exit.
    """
    try:
        return "right" if compare(answer, gold, algebra) else "wrong"
    except (UnparsableError, RecursionError):
        return "unparsable"


def main(memory_mb: int, deadline: float) -> None:
    """Serve the parent until stdin closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    replies = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # keep output of libraries out of the replies
    logging.disable(logging.CRITICAL)
    sys.setrecursionlimit(_RECURSION_LIMIT)
    for answer, gold in _WARM_UP:
        outcome(answer, gold)
    _confine(memory_mb)
    print("ready", file=replies, flush=True)
    for line in sys.stdin.buffer:
        answer, gold = json.loads(line)
        # SIGALRM's default action ends a worker whose parent died during an answer that never finishes.
        signal.setitimer(signal.ITIMER_REAL, deadline + _ORPHAN_GRACE)
        try:
            reply = outcome(answer, gold)
        except MemoryError:
            os._exit(1)
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(reply, file=replies, flush=True)


def _confine(memory_mb: int) -> None:
    """Limit memory, files and processes, and forbid everything that algebra does not need. This can't be undone."""
    memory = memory_mb * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_OPEN_FILES, _OPEN_FILES))
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.dont_write_bytecode = True
    library = tuple({os.path.realpath(prefix) + os.sep for prefix in (sys.prefix, sys.base_prefix)})

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            reads = (mode is None or set(mode) <= set("rbt")) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) == 0
            named = isinstance(path, str | bytes)
            # sympy imports modules lazily, so reading the library stays allowed.
            if not (reads and named and os.path.realpath(os.fsdecode(path)).startswith(library)):
                raise PermissionError(f"a verifier worker may not open {path!r}")
        elif event.startswith(_REFUSED_EVENTS):
            raise PermissionError(f"a verifier worker may not use {event}")

    sys.addaudithook(refuse)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))

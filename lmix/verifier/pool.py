"""Verification of answers. Those that need algebra are judged by Math-Verify in worker processes that can be killed.

A worker is a new interpreter (`lmix.verifier.worker`), because forking is unsafe with torch's threads, and
multiprocessing's spawn would import the user's `__main__` again.
"""

import atexit
import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from multiprocessing.connection import wait
from pathlib import Path
from types import TracebackType
from typing import Literal, NamedTuple, Self, cast

from lmix.verifier.comparison import compare
from lmix.verifier.costly import is_costly

logger = logging.getLogger(__name__)

MAX_ANSWER_CHARS = 2000
"""Longer answers are `unparsable` without parsing."""
_WORKER_MODULE = "lmix.verifier.worker"
_START_DEADLINE = 120.0
_MAX_FAILED_STARTS = 3

Outcome = Literal["right", "wrong", "unparsable", "timeout", "crash"]
Pair = tuple[str, str]


class Verdict(NamedTuple):
    """The verdict on one answer; `correct` is `outcome == "right"`."""

    correct: bool
    outcome: Outcome


def judge_by_text(answer: str | None, gold: str) -> Outcome | None:
    """The outcome if the texts decide it; None if algebra is needed. Uses no worker and takes linear time."""
    if answer is None:
        return "wrong"
    if answer.strip() == gold.strip():
        return "right"
    if max(len(answer), len(gold)) > MAX_ANSWER_CHARS or is_costly(answer):
        return "unparsable"
    verdict = compare(answer, gold)
    return None if verdict is None else "right" if verdict else "wrong"


class Verifier:
    """A pool of worker processes that judge answers.

    If a worker hangs, crashes, runs out of memory or is killed, only its current answer is lost, and the worker is
    replaced. Workers start when an answer first needs them. Use the pool as a context manager, or call `close`. Calls
    from several threads are serialised.
    """

    def __init__(self, workers: int = 2, deadline: float = 5.0, memory_mb: int = 1024) -> None:
        """Create the pool, without starting workers yet.

        Args:
            workers: number of answers judged at the same time.
            deadline: time limit for one answer in seconds, from when a started worker receives it.
            memory_mb: limit of a worker's address space in MB; about 100 are needed to start.

        Raises:
            ValueError: a number is not positive.
        """
        if workers < 1 or deadline <= 0 or memory_mb < 1:
            raise ValueError(f"workers={workers}, deadline={deadline}, memory_mb={memory_mb}: all must be positive")
        self.deadline = deadline
        self.memory_mb = memory_mb
        self.counts: Counter[Outcome] = Counter()
        """Answers judged so far, by outcome."""
        self._size = workers
        self._workers: list[_Worker] = []
        self._lock = threading.Lock()

    def verify(self, answers: Sequence[str | None], golds: Sequence[str]) -> list[Verdict]:
        """Judge each answer against the gold answer at the same position. An answer of None is wrong.

        Identical pairs are judged once.

        Raises:
            ValueError: the two sequences differ in length.
            RuntimeError: workers can't be started.
        """
        if len(answers) != len(golds):
            raise ValueError(f"{len(answers)} answers for {len(golds)} gold answers: give one for each")
        outcomes = {pair: judge_by_text(*pair) for pair in dict.fromkeys(zip(answers, golds, strict=True))}
        hard = [(answer, gold) for (answer, gold), known in outcomes.items() if answer is not None and known is None]
        with self._lock:
            decided = {**outcomes, **self.judge_by_algebra(hard)}
            verdicts = []
            for pair in zip(answers, golds, strict=True):
                outcome = decided[pair]
                assert outcome is not None
                self.counts[outcome] += 1
                verdicts.append(Verdict(outcome == "right", outcome))
        return verdicts

    def judge_by_algebra(self, pairs: Sequence[Pair]) -> dict[Pair, Outcome]:
        """Judge (answer, gold) pairs in the workers, without comparing texts first. Not thread-safe."""
        waiting = deque(dict.fromkeys(pairs))
        outcomes: dict[Pair, Outcome] = {}
        total, failed_starts = len(waiting), 0
        try:
            while len(outcomes) < total:
                self._feed(waiting)
                active = [worker for worker in self._workers if worker.expires is not None]
                nearest = min(worker.expires or 0.0 for worker in active)
                readable = wait([worker.replies_fd for worker in active], max(0.0, nearest - time.monotonic()))
                for worker in active:
                    pair, expires = worker.pair, worker.expires or 0.0
                    reply = worker.read() if worker.replies_fd in readable else None
                    if reply == "ready" or (reply is None and expires > time.monotonic()):
                        continue
                    if pair is None:
                        self._drop(worker)
                        failed_starts += 1
                        self._check_starts(failed_starts)
                    elif reply:
                        outcomes[pair] = cast("Outcome", reply)
                    else:
                        self._drop(worker)
                        outcomes[pair] = "timeout" if reply is None else "crash"
                        logger.warning("verifier: %s on the answer %r", outcomes[pair], pair[0][:200])
        except BaseException:
            self._close()  # otherwise a late reply would be taken as the reply to the next question
            raise
        return outcomes

    def _check_starts(self, failed: int) -> None:
        """Raise RuntimeError after repeated failures to start; a single worker may be killed by accident."""
        if failed == _MAX_FAILED_STARTS:
            raise RuntimeError(
                f"verifier workers do not start (memory_mb={self.memory_mb}): "
                f"`python -m {_WORKER_MODULE} {self.memory_mb} {self.deadline}` shows why"
            )

    def _feed(self, waiting: deque[Pair]) -> None:
        """Send waiting pairs to idle workers, and start more workers if needed."""
        for worker in [worker for worker in self._workers if worker.expires is None and not worker.is_alive()]:
            self._drop(worker)
        for worker in self._workers:
            if worker.expires is None and waiting:
                worker.send(waiting.popleft(), self.deadline)
        starting = sum(worker.pair is None and worker.expires is not None for worker in self._workers)
        for _ in range(min(self._size - len(self._workers), len(waiting) - starting)):
            self._workers.append(_Worker(self.memory_mb, self.deadline))

    def _drop(self, worker: "_Worker") -> None:
        self._workers.remove(worker)
        worker.kill()

    def _close(self) -> None:
        while self._workers:
            self._drop(self._workers[-1])

    def close(self) -> None:
        """Stop the workers. A later call of `verify` starts new ones."""
        with self._lock:
            self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class _Worker:
    """A worker process and its state: starting (`expires` is set), idle (not set), or judging (`pair` is set too)."""

    def __init__(self, memory_mb: int, deadline: float) -> None:
        package_parent = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, (package_parent, os.environ.get("PYTHONPATH"))))
        self.process = subprocess.Popen(
            [sys.executable, "-m", _WORKER_MODULE, str(memory_mb), str(deadline)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            # PYTHONSAFEPATH: do not import, for example, a random.py from the user's current folder.
            env={**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"},
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._questions = self.process.stdin
        self._replies = self.process.stdout
        self.replies_fd = self._replies.fileno()
        self._received = b""
        self.pair: Pair | None = None
        self.expires: float | None = time.monotonic() + _START_DEADLINE

    def is_alive(self) -> bool:
        return self.process.poll() is None

    def send(self, pair: Pair, deadline: float) -> None:
        """Send a pair to an idle worker. It fits into the pipe, so this can't block. `read` notices a dead worker."""
        self.pair, self.expires = pair, time.monotonic() + deadline
        with contextlib.suppress(BrokenPipeError):
            self._questions.write(json.dumps(pair).encode("ascii") + b"\n")

    def read(self) -> str | None:
        """Read the reply of a readable worker and make it idle; "" if it has died, None if the line is incomplete."""
        data = os.read(self.replies_fd, 4096)
        self._received += data
        if data and not self._received.endswith(b"\n"):
            return None
        reply, self._received = self._received.decode("ascii").strip() if data else "", b""
        self.pair, self.expires = None, None
        return reply

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._questions.close()
        self._replies.close()


_shared: Verifier | None = None
_shared_lock = threading.Lock()


def verify_answer(answer: str, gold: str) -> bool:
    """Whether an answer equals the gold answer. All calls in a process share one worker."""
    global _shared
    with _shared_lock:
        if _shared is None:
            _shared = Verifier(workers=1)
            atexit.register(_shared.close)
        verifier = _shared
    return verifier.verify([answer], [gold])[0].correct


def _forget_shared() -> None:
    """Reset the shared verifier in a forked child, which must not use its parent's pipes or stop its worker."""
    global _shared, _shared_lock
    if _shared is not None:
        atexit.unregister(_shared.close)
    _shared, _shared_lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forget_shared)

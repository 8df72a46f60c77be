"""Answers judged right and wrong, and workers that hang, die and eat memory."""

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lmix.tasks import Verdict, Verifier, normalise_answer, verify_answer
from lmix.verifier import pool as verifier_pool
from lmix.verifier.costly import is_costly

HANG_GUARD = 100.0
ENDLESS = r"9^{\binom{99}{9}}"  # an integer of 10^12 digits; passes `is_costly`

RIGHT = [  # gold, answer
    # numbers
    ("1000", "1,000"), ("5,\\!040", "5040"), ("31,250", "31250"), ("0.5", ".5"), ("5.00", "5"), ("-3", "\u22123"),
    ("5", "5."),
    ("$5$", "\\(5\\)"), ("\\frac12", "0.5"), ("\\frac{1}{2}", "\\dfrac{1}{2}"), ("\\frac12", "1/2"),
    ("\\frac12", "\\frac24"),
    ("-\\frac{1}{2}", "\\frac{-1}{2}"), ("\\frac{1}{3}", "0.333333"), ("\\frac13", "0.\\overline{3}"),
    ("\\frac{3}{2}", "1\\frac12"),
    ("137 \\frac{1}{2}", "137.5"), ("1\\frac12", "1 1/2"), ("1024", "2^{10}"), ("4500000", "4.5 \\times 10^6"),
    ("2007+\\frac\\pi 2", "2007+\\frac{\\pi}{2}"),
    # roots, constants, complex numbers
    ("2\\sqrt{2}", "\\sqrt8"), ("\\frac{\\sqrt{2}}{2}", "\\frac{1}{\\sqrt2}"), ("\\frac{3\\pi}{4}", "0.75\\pi"),
    ("2+3i", "3i + 2"),
    ("\\log_2 3", "\\frac{\\ln 3}{\\ln 2}"), ("\\cos 15^\\circ", "\\cos(15^\\circ)"),
    # units, money, percent, degrees
    ("5\\text{ cm}", "5"), ("5", "5\\text{ cm}"), ("5\\text{ cm}", "5 centimeters"),
    ("2400 \\mbox{ cm}^2", "2400\\text{ square cm}"),
    ("18\\text{ units}", "18"), ("1599 \\text{ dollars}", "\\$1599"), ("\\$5.50", "5.5"),
    ("\\$32,\\!348", "$32,348$"),
    ("50\\%", "50"), ("50", "50\\%"), ("90^\\circ", "90"), ("90^{\\circ}", "90 degrees"), ("90", "90°"),
    ("3:30\\text{ p.m.}", "3:30"),
    # words and choices
    ("\\text{Evelyn}", "Evelyn"), ("\\text{Evelyn}", "\\textbf{evelyn}"), ("\\text{June 20}", "June 20"),
    ("even", "\\text{even}"),
    ("\\text{(B)}", "B"), ("B", "\\text{B}"), ("\\text{B}", "(B)"), ("\\text{(B)}", "(B) 12"), ("A", "A: 1-i"),
    ("B: 18", "B"), ("A", "A. 78"), ("D", "D. Learning and memory"), ("A", "A. 750 million years."),
    ("A", "A. Who will get how much of each good and service?"), ("B", "\\textbf{(B) 3, 4}"), ("C: 3, 4", "(C)"),
    ("D", "**D**. Vermont"),
    ("\\text{A,C}", "C, A"), ("\\text{1:03 PM}", "1:03 p.m."),
    # intervals, tuples, sets, lists
    ("[0,\\infty)", "\\left[0, \\infty\\right)"), ("[1,2]", "1 \\le x \\le 2"), ("[1,2]", "x \\in [1,2]"),
    ("(-\\infty,2)", "x<2"),
    ("(-\\infty,1)\\cup(2,3)", "(2,3) \\cup (-\\infty,1)"),
    ("(-\\infty,-1)\\cup(1,\\infty)", "x<-1 \\text{ or } x>1"),
    ("[1,3]", "\\{x \\mid 1 \\leq x \\leq 3\\}"), ("(0.5,3)", "\\left(\\frac12,3\\right)"),
    ("(3,\\frac{\\pi}{2})", "(3,\\pi/2)"),
    ("1,2", "2, 1"), ("\\{1,2\\}", "2,1"), ("12\\text{ and }13", "13, 12"), ("2, 3, \\text{ and } 4", "4,3,2"),
    ("3", "\\{3\\}"),
    ("(1,2),(3,4)", "(3,4),(1,2)"), ("\\{\\sqrt8, x+1\\}", "1+x, 2\\sqrt2"), ("\\emptyset", "\\{\\}"),
    ("1\\pm\\sqrt{2}", "1+\\sqrt2, 1-\\sqrt2"), ("3,-3", "\\pm 3"), ("x=2, x=-2", "x=\\pm2"),
    ("(6,235^\\circ)", "(6, 235)"),
    # expressions and equations
    ("x^2+1", "1+x^{2}"), ("(x+1)^2", "x^2+2x+1"), ("\\frac{x+1}{x}", "1+\\frac1x"), ("-3(x+2)(x-1)", "-3x^2-3x+6"),
    ("x=5", "5"),
    ("5", "x = 5"), ("y=2x+1", "y=1+2x"), ("y=2x+1", "2x-y+1=0"), ("y=2x+1", "2x+1"), ("x+1", "f(x) = 1+x"),
    ("x<5", "5>x"),
    ("2x+z-5=0", "4x+2z-10=0"), ("a=1,b=2", "b=2,a=1"),
    # matrices and bases
    ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{bmatrix} 1 \\\\ 2 \\end{bmatrix}"),
    ("\\begin{pmatrix} 1/2 & 0 \\\\ 3 & -7 \\end{pmatrix}", "\\begin{pmatrix} 0.5 & 0 \\\\ 3 & -7 \\end{pmatrix}"),
    ("1101_2", "1101_{2}"), ("204_5", "204"), ("\\text{A5}_{11}", "A5_{11}"),
]  # fmt: skip

WRONG = [  # gold, answer
    ("5", "6"), ("5", "-5"), ("5", "5.0000001"), ("1000", "1,001"), ("\\frac12", "2"), ("\\frac{1}{3}", "0.3333"),
    ("\\pi", "3.14159"),
    ("\\frac{3}{2}", "\\frac{2}{3}"), ("1\\frac12", "\\frac12"), ("2\\sqrt{2}", "\\sqrt{10}"), ("2+3i", "2-3i"),
    ("\\ln 2", "\\ln 3"),
    ("0.5", "50\\%"), ("50\\%", "0.5"), ("5\\text{ cm}", "5\\text{ m}"), ("5\\text{ cm}", "5\\text{ cm}^2"),
    ("\\$5", "5\\text{ cents}"),
    ("90^\\circ", "89"), ("9\\text{ a.m.}", "9\\text{ p.m.}"), ("3m", "3"), ("10", "10m"),
    ("\\text{Evelyn}", "\\text{Carla}"), ("\\text{east}", "seat"), ("\\text{(B)}", "C"), ("\\text{(B)}", "(C) B"),
    ("A", "B: 1-i"), ("A", "B. 78"), ("A", "A. 3, B. 4"), ("A", "A, B"), ("A", "A and B"), ("A", "BA. 3"),
    ("A", "(A) or B"), ("A", "(A), B"), ("A", "A. and B"), ("A", "(A) B, C, D"), ("A", "A. 3; B"), ("A", "A. 78 or C"),
    ("A", "A. no, it is B"), ("I", "I. and II."), ("\\text{(A)}", "(A) and \\text{B}"), ("(A) or B", "A"),
    ("\\text{A,C}", "A"), ("\\text{A,C}", "A,B"),
    ("(1,2)", "[1,2]"), ("[1,2]", "(1,2]"), ("[0,\\infty)", "(0,\\infty)"), ("[1,2]", "1 < x < 2"),
    ("(-\\infty,2)", "x \\le 2"),
    ("(-\\infty,1)\\cup(2,3)", "(-\\infty,1]\\cup(2,3)"), ("(-\\infty,1)\\cup(2,3)", "(-\\infty,1)"),
    ("(1,2)", "(2,1)"), ("(1,2,3)", "(1,3,2)"),
    ("(1,2)", "1,2"), ("1,2", "1,3"), ("1,2", "1"), ("1,2", "1,2,3"), ("4", "4,5"), ("1\\pm\\sqrt2", "1+\\sqrt2"),
    ("a=1,b=2", "2,1"),
    ("x^2+1", "x^2-1"), ("y=2x+1", "y=2x-1"), ("x=5", "y=5"), ("x<5", "x\\le5"), ("x<5", "x>5"), ("5x", "5"),
    ("x", "1"),
    ("x^2+1=0", "x^2+2=0"), ("e=\\frac{\\sqrt5}{2}", "1=2"), ("e=\\frac{\\sqrt5}{3}", "e=\\frac{\\sqrt5}{2}"),
    ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{pmatrix}2\\\\1\\end{pmatrix}"),
    ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{pmatrix}1&2\\end{pmatrix}"), ("10_2", "10_3"),
    ("1101_2", "1001_2"),
    ("0", "\\frac00"), ("5", ""), ("5", "?"), ("\\frac12", "???\\frac12"), ("\\frac12", "\\frac{1"),
]  # fmt: skip


@pytest.fixture(scope="module")
def pool() -> Iterator[Verifier]:
    with Verifier(workers=1, deadline=HANG_GUARD) as shared:
        yield shared


@pytest.mark.parametrize(("gold", "answer"), RIGHT, ids=[f"{g}-is-{a}" for g, a in RIGHT])
def test_right(pool: Verifier, gold: str, answer: str) -> None:
    assert pool.verify([answer], [gold]) == [Verdict(True, "right")]


@pytest.mark.parametrize(("gold", "answer"), WRONG, ids=[f"{g}-is-not-{a}" for g, a in WRONG])
def test_wrong(pool: Verifier, gold: str, answer: str) -> None:
    assert not pool.verify([answer], [gold])[0].correct


@pytest.mark.parametrize("gold", list(dict.fromkeys(gold for gold, _ in RIGHT)))
def test_algebra_agrees_that_a_gold_is_itself(pool: Verifier, gold: str) -> None:
    """Without the cheap path: what the comparison of texts leaves to Math-Verify, it must parse."""
    assert pool.judge_by_algebra([(gold, gold)]) == {(gold, gold): "right"}


def test_verify_answer() -> None:
    assert verify_answer("1+x", "x+1")
    assert not verify_answer("1-x", "x+1")


def test_normalise_answer_is_idempotent() -> None:
    for pair in RIGHT + WRONG:
        for text in pair:
            assert normalise_answer(normalise_answer(text)) == normalise_answer(text)


def test_order_and_counts() -> None:
    answers = [None, "1+x", "6", "x+1", "\\frac{", None, "y", "1+x"]
    with Verifier(workers=2, deadline=HANG_GUARD) as pool:
        verdicts = pool.verify(answers, ["x+1"] * len(answers))
        assert [verdict.outcome for verdict in verdicts] == [
            "wrong", "right", "wrong", "right", "unparsable", "wrong", "wrong", "right",
        ]  # fmt: skip
        assert pool.counts == {"right": 3, "wrong": 4, "unparsable": 1}
        assert pool.verify([], []) == []
        with pytest.raises(ValueError, match="1 answers for 2 gold answers"):
            pool.verify(["1"], ["1", "2"])


@pytest.mark.parametrize(
    "answer",
    [
        "{" * 10**5 + "1" + "}" * 10**5,
        "{" * 60 + "1" + "}" * 60,
        "(" * 1000,
        "9^{9^{9^{9}}}",
        "9^{9^{9^9}}",
        "9^9^9^9",
        "2^{12345678}",
        "123456!",
        "((9!)!)!",
        "1" * 10**6,
        "\\frac{" * 10**5,
    ],
    ids=lambda answer: answer[:20],
)
def test_bombs_need_no_worker(answer: str) -> None:
    with Verifier(workers=1) as pool:
        assert pool.verify([answer], ["5"]) == [Verdict(False, "unparsable")]
        assert not pool._workers


@pytest.mark.parametrize(
    "text", ["x^{2^{n}}", "e^{-x^{2}}", "2^{100}", "10!", "\\frac{(2n)!}{n!n!}", "\\sqrt{2}^{\\sqrt{2}}"]
)
def test_harmless_powers_are_not_costly(text: str) -> None:
    assert not is_costly(text)


@pytest.mark.parametrize("answer", ["\ud800", "x\0+1", "x\n+1", '"x", ', "x\u2028+1", "\U0001d538+1"], ids=ascii)
def test_any_text_survives_the_pipe(pool: Verifier, answer: str) -> None:
    assert pool.verify([answer], ["y^2+1"])[0].outcome in ("wrong", "unparsable")
    assert pool.verify(["1+x"], ["x+1"])[0].correct


def test_an_endless_answer_costs_itself(caplog: pytest.LogCaptureFixture) -> None:
    with Verifier(workers=1, deadline=1.0) as pool, caplog.at_level(logging.WARNING):
        verdicts = pool.verify(["1+x", ENDLESS, "2+x"], ["x+1", "x+1", "x+2"])
        assert [verdict.outcome for verdict in verdicts] == ["right", "timeout", "right"]
        assert pool.counts["timeout"] == 1
    assert f"timeout on the answer {ENDLESS!r}" in caplog.text


def test_a_killed_worker_costs_its_answer(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Killed in the middle of an answer, and once more while it starts and while it is idle, which cost nothing."""
    kills = iter(["starting", "answering"])
    send, start = verifier_pool._Worker.send, verifier_pool._Worker.__init__

    def kill(worker: verifier_pool._Worker) -> None:
        os.kill(worker.process.pid, signal.SIGKILL)

    def start_then_kill(worker: verifier_pool._Worker, memory_mb: int, deadline: float) -> None:
        start(worker, memory_mb, deadline)
        if next(kills, None) == "starting":
            kill(worker)

    def send_then_kill(worker: verifier_pool._Worker, pair: tuple[str, str], deadline: float) -> None:
        send(worker, pair, deadline)
        if pair[0] == ENDLESS:
            kill(worker)

    monkeypatch.setattr(verifier_pool._Worker, "__init__", start_then_kill)
    monkeypatch.setattr(verifier_pool._Worker, "send", send_then_kill)
    with Verifier(workers=1, deadline=HANG_GUARD) as pool:
        verdicts = pool.verify(["1+x", ENDLESS, "2+x"], ["x+1", "x+1", "x+2"])
        assert [verdict.outcome for verdict in verdicts] == ["right", "crash", "right"]
        assert f"crash on the answer {ENDLESS!r}" in caplog.text
        kill(pool._workers[0])
        pool._workers[0].process.wait()
        assert pool.verify(["3+x"], ["x+3"])[0].correct


def test_a_memory_eater_is_stopped() -> None:
    with Verifier(workers=1, deadline=HANG_GUARD, memory_mb=150) as pool:
        assert not pool.verify(["(x+y+z)^{999}"], ["x+1"])[0].correct
        assert pool.verify(["1+x"], ["x+1"])[0].correct


def test_a_worker_that_can_not_start_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with Verifier(workers=2) as pool, pytest.raises(RuntimeError, match="verifier workers do not start"):
        pool.verify(["1+x"], ["x+1"])


def test_threads_share_a_verifier(pool: Verifier) -> None:
    verdicts: dict[int, Verdict] = {}

    def judge(number: int) -> None:
        verdicts[number] = pool.verify([f"{number}+x"], [f"x+{number % 3}"])[0]

    threads = [threading.Thread(target=judge, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG_GUARD)
    assert [verdicts[number].correct for number in range(6)] == [True, True, True, False, False, False]


def test_close_ends_the_workers() -> None:
    pool = Verifier(workers=1, deadline=HANG_GUARD)
    pool.verify(["1+x"], ["x+1"])
    process = pool._workers[0].process
    pool.close()
    assert process.returncode == -signal.SIGKILL
    pool.close()


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match="workers=0"):
        Verifier(workers=0)


def test_import_is_light_and_a_worker_starts_from_any_folder(tmp_path: Path) -> None:
    """Also with a module in that folder that would hide one of the standard library."""
    root = str(Path(__file__).resolve().parents[2])
    (tmp_path / "fractions.py").write_text("raise ImportError\n")
    script = (
        f"import sys; sys.path = [{root!r}] + [p for p in sys.path if p]; import lmix.tasks; "
        "assert not {'torch', 'sympy', 'math_verify'} & set(sys.modules); "
        "print(lmix.tasks.verify_answer('1+x', 'x+1'))"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=HANG_GUARD, check=False
    )
    assert (run.stdout, run.stderr) == ("True\n", "")


@pytest.mark.parametrize(
    "attempt",
    ["open('/etc/passwd')", "open('/tmp/x', 'w')", "socket.socket()", "subprocess.run(['true'])", "os.fork()"],
)
def test_a_confined_worker_touches_nothing(attempt: str) -> None:
    script = (
        "import os, socket, subprocess\nfrom lmix.verifier.worker import _confine\n_confine(1024)\n"
        f"try:\n    {attempt}\nexcept PermissionError as error:\n    print(error)"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=HANG_GUARD, check=False
    )
    assert run.stdout.startswith("a verifier worker may not"), run.stderr

"""The HTML page as Chromium shows it, where a Chromium is installed."""

import html
import re
import shutil
import subprocess

import pytest
from matplotlib.image import imread

from lmix.inspection.page import write_page
from lmix.inspection.trace import MIXTURE, TokenTrace

BROWSER = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), "")
pytestmark = pytest.mark.skipif(not BROWSER, reason="no Chromium is installed")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync", "--window-size=900,600", "--virtual-time-budget=2000"]


def token(text: str, policy: float, reference: float) -> TokenTrace:
    tops = {name: [(text, p), ("</script>", 1 - p)] for name, p in (("policy", policy), ("reference", reference))}
    return TokenTrace(text, {"policy": policy, "reference": reference, MIXTURE: 0.5}, tops | {MIXTURE: [(text, 0.5)]})


TRACES = [token("So", 0.5, 0.5), token(" <b>four", 0.9, 0.001), token("\n\\boxed{", 0.02, 0.9)]


def browse(tmp_path, *what: str, traces=TRACES) -> str:
    write_page(tmp_path / "page.html", "2 + 2 & <i>", traces, {"alpha": "0.5"})
    line = [BROWSER, *FLAGS, f"--user-data-dir={tmp_path}/browser", *what, (tmp_path / "page.html").as_uri()]
    return subprocess.run(line, capture_output=True, text=True, timeout=120, check=True).stdout


def test_tokens_are_coloured_by_the_stream_that_favoured_them(tmp_path):
    page = browse(tmp_path, "--dump-dom")
    buttons = re.findall(r"<button([^>]*)>(.*?)</button>", page, re.DOTALL)
    assert [html.unescape(text) for _, text in buttons] == ["So", " <b>four", "⏎\n\\boxed{"]
    neutral, policy, reference = (re.findall(r'style="background: ([^"]*);"', given)[0] for given, _ in buttons)
    assert re.fullmatch(r"rgba\(var\(--policy\),\s*0\)", neutral)
    assert policy == "rgba(var(--policy), 0.75)"  # a factor of more than 100
    assert re.fullmatch(r"rgba\(var\(--reference\), 0\.6\d*\)", reference)
    assert "policy 90.0 %, reference 0.1 %" in buttons[1][0]
    # the token that they dispute most is chosen, with each one's candidates
    assert "Token 2 of 3" in page
    assert re.findall(r"<caption>(\w+): ([\d.]+ %)</caption>", page) == [
        ("policy", "90.0 %"),
        ("reference", "0.1 %"),
        (MIXTURE, "50.0 %"),
    ]


def test_both_colours_are_on_the_screen(tmp_path):
    plain = [token(t.token, 0.5, 0.5) for t in TRACES]
    shown, neutral = (pixels(tmp_path, traces) for traces in (TRACES, plain))  # the legend has both colours too
    assert all(with_colour > without + 100 for with_colour, without in zip(shown, neutral, strict=True))


def pixels(tmp_path, traces) -> tuple[int, int]:
    """How many are blue, and how many red."""
    browse(tmp_path, f"--screenshot={tmp_path}/page.png", traces=traces)
    red, _, blue = imread(tmp_path / "page.png")[..., :3].reshape(-1, 3).T
    return int(((blue - red) > 0.3).sum()), int(((red - blue) > 0.3).sum())

"""Relative links and repository paths in the pages exist. mkdocs checks anchors in docs, but no files outside."""

import re
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml

from tests.commands import ROOT

TOP = sorted(ROOT.glob("*.md"))
DOCS = sorted((ROOT / "docs").rglob("*.md"))
FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`[^`\n]*`")
LINK = re.compile(r"\]\(\s*<?([^)\s>]+)>?[^)]*\)|(?:src|href)=\"([^\"]+)\"")
HEADING = re.compile(r"^#{1,6} +(.+?) *#*$", re.MULTILINE)
NAMED = re.compile(r"<a (?:id|name)=\"([^\"]+)\"")
FOLDERS = ("benchmarks", "configs", "docs", "lmix", "scripts", "tests", ".github")
PATH = re.compile(rf"(?<![\w/.-])((?:{'|'.join(map(re.escape, FOLDERS))})/[\w./-]*)(?![\w./*{{<-])")


def links(text: str) -> list[str]:
    """Targets of a page's links and images, without those on other sites."""
    targets = [one or other for one, other in LINK.findall(CODE.sub("", FENCE.sub("", text)))]
    return [target for target in targets if not re.match(r"[a-z][a-z+.-]*:", target)]


def anchors(text: str) -> set[str]:
    """Anchors of a page: those that GitHub makes from its headings, and those set by hand."""
    names: set[str] = set()
    plain = FENCE.sub("", text)
    for heading in HEADING.findall(plain):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", words).strip().replace(" ", "-")
        count = 0
        while (name := f"{slug}-{count}" if count else slug) in names:
            count += 1
        names.add(name)
    return names | set(NAMED.findall(plain))


def broken(page: Path, text: str, root: Path = ROOT, headings: bool = True) -> list[str]:
    """Links of a page to files or headings that do not exist."""
    wrong = []
    for target in links(text):
        path, _, anchor = unquote(target).partition("#")
        file = page.parent / path if path else page
        if not file.exists() or root not in (file.resolve(), *file.resolve().parents):
            wrong.append(target)
        elif headings and anchor and file.suffix == ".md":
            own = text if file == page else file.read_text(encoding="utf-8")
            if anchor not in anchors(own):
                wrong.append(target)
    return wrong


def missing_paths(text: str) -> list[str]:
    """Files and folders of the repository that a page names outside of commands, but that do not exist."""
    return [path for path in PATH.findall(FENCE.sub("", text)) if not (ROOT / path.rstrip(".")).exists()]


def test_what_is_found(tmp_path):
    (tmp_path / "b.md").write_text("# One, two: `three`\n## Twice\n## Twice\n```\n# no heading\n```\n")
    text = """# Here
[a](b.md#one-two-three) [b](b.md#twice-1) [c](#here) ![d](https://x.org/y.png) [![badge](none.svg)](b.md)
`[code](nowhere.md)` [e](nowhere.md) [f](b.md#no-heading) [g](#there) <img src="none.png">
"""
    (tmp_path / "a.md").write_text(text)
    wrong = broken(tmp_path / "a.md", text, tmp_path)
    assert sorted(set(wrong)) == ["#there", "b.md#no-heading", "none.png", "none.svg", "nowhere.md"]
    assert missing_paths("`scripts/none.py`, scripts/study.py. In configs/ and my/configs/x, lmix/no_such.") == [
        "scripts/none.py",
        "lmix/no_such.",
    ]


@pytest.mark.parametrize("page", [*TOP, *DOCS], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page):
    assert broken(page, page.read_text(encoding="utf-8"), headings=page in TOP) == []


@pytest.mark.parametrize("page", [p for p in (*TOP, *DOCS) if p.name != "CHANGELOG.md"], ids=lambda page: page.name)
def test_files_of_the_repository_that_are_named_exist(page):
    """The changelog is left out, because it names files that were removed."""
    assert missing_paths(page.read_text(encoding="utf-8")) == []


def test_the_checks_of_mkdocs_are_on():
    """`--quiet` would drop warnings before mkdocs counts them, and so turn `strict` off."""
    settings = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), yaml.BaseLoader)
    assert settings["strict"] == "true"
    assert settings["validation"]["anchors"] == settings["validation"]["absolute_links"] == "warn"
    for script in ("test.sh", "release.sh"):
        lines = (ROOT / "scripts" / script).read_text().splitlines()
        (build,) = [line for line in lines if re.search(r"mkdocs\"? build", line)]
        assert "quiet" not in build

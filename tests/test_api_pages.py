"""docs/api lists what the packages say is public. That each name is in the code is checked by `mkdocs build`."""

import ast
import re
from collections import Counter

import pytest
import yaml

from tests.commands import ROOT

PAGES = sorted((ROOT / "docs" / "api").glob("*.md"))
LISTED = Counter(name for page in PAGES for name in re.findall(r"^::: (\S+)$", page.read_text("utf-8"), re.MULTILINE))
PACKAGES = (
    "lmix",
    "lmix.evaluation.statistics",
    "lmix.functional",
    "lmix.planning",
    "lmix.report",
    "lmix.rewards",
    "lmix.tasks",
    "lmix.training.objectives",
)


def public_names(package: str) -> list[str]:
    """`__all__`, read and not imported."""
    tree = ast.parse((ROOT / package.replace(".", "/") / "__init__.py").read_text(encoding="utf-8"))
    (names,) = [
        node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    return ast.literal_eval(names)


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_are_listed(package):
    assert [name for name in public_names(package) if f"{package}.{name}" not in LISTED] == []


def test_nothing_is_listed_twice():
    assert [name for name, count in LISTED.items() if count > 1] == []


def test_each_page_is_in_the_navigation():
    settings = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), yaml.BaseLoader)
    (section,) = [entry["API reference"] for entry in settings["nav"] if "API reference" in entry]
    inside = [page if isinstance(page, str) else next(iter(page.values())) for page in section]
    assert sorted(inside) == [f"api/{page.name}" for page in PAGES]

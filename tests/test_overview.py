"""`lmix` without a command, and with one that does not exist."""

import pytest

from lmix import __version__, cli
from lmix.cli.overview import GROUPS
from lmix.cli.trainer import COMMANDS


@pytest.mark.parametrize("args", [[], ["--help"], ["-h"]])
def test_every_command_is_listed(args, capsys):
    assert cli.main(args) == 0
    shown = capsys.readouterr().out
    for name in (*COMMANDS, *cli.FUNCTIONS, "report", "plan"):
        assert f"\n  {name} " in shown


def test_nothing_is_listed_that_is_no_command():
    listed = {name for commands in GROUPS.values() for name in commands}
    assert listed == {*COMMANDS, *cli.FUNCTIONS, "report", "plan"}


def test_the_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"lmix {__version__}\n"


def test_an_unknown_command_is_one_line(capsys):
    assert cli.main(["evalute", "--out=x"]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("lmix: error: there is no command 'evalute': use one of fit, validate,")
    assert shown.err.count("\n") == 1

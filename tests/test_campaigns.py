"""The campaigns that docs/reliability.md reports, in short."""

import json

import kill_campaign
import pytest
import verifier_campaign

from tests.test_cli import DEMO, SMALL


@pytest.mark.slow
def test_a_run_that_is_killed_ends_as_one_that_is_not(tmp_path, capsys):
    small = [*SMALL, "--trainer.max_steps=2", "--trainer.val_check_interval=2", "--data.validation_size=6"]
    plans = [kill_campaign.Plan("save", 2, 0.5)]  # so it goes on from the first
    assert kill_campaign.campaign(tmp_path / "kills", [*DEMO, *small], plans)["kills"] == 1
    result = json.loads(capsys.readouterr().out)
    assert result["differing"] == []
    assert result["steps"] == 2


def test_differences_are_seen():
    import torch

    a = {"x": [torch.zeros(2), 1], "y": {"z": "w"}}
    b = {"x": [torch.tensor([0.0, 1e-45]), 2], "y": {}}
    assert kill_campaign.differences(a, a) == []
    assert kill_campaign.differences(a, b) == [".x.0", ".x.1", ".y.z"]


def test_hostile_answers_cost_themselves():
    golds = ["\\frac{1}{2}", "x+1", "(1,2)", "5"]
    found = verifier_campaign.fuzz(golds, 80, deadline=1.0)
    assert found["answers"] == sum(found["outcomes"].values()) == 80
    assert len(found["by_kind"]) > 5
    assert not any("right" in kind for name, kind in found["by_kind"].items() if name != "harmless")


def test_agreement_is_counted():
    golds = ["\\frac{1}{2}", "x+1", "(1,2)", "5", "\\sqrt{2}"] * 2
    found = verifier_campaign.agreement(golds, 4, deadline=20.0)
    assert (found["golds"], found["wrong_pairs"]) == (10, found["distinct_pairs"] - 5)
    assert found["lmix_false_negatives"] == found["lmix_false_positives"] == 0

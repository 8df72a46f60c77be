"""docs/reference.md is what the code says."""

import config_reference


def test_the_page_is_up_to_date():
    """`python scripts/config_reference.py` writes it."""
    assert config_reference.TARGET.read_text() == config_reference.reference()


def test_every_setting_has_its_text():
    assert "| `samples_per_prompt` | `8` | G, the completions of one prompt. |" in config_reference.reference()
    assert "|  |\n" not in config_reference.reference()


def test_objective_and_rewards_are_listed_as_configurations_name_them():
    page = config_reference.reference()
    assert "### lmix.training.objectives.GRPO\n" in page
    assert "### lmix.tasks.MathTask\n" in page
    assert "| `objective` | `GRPO()` |" in page
    assert "| `rewards` | `{'verifier': 1.0}` |" in page
    for setting in ("`beta` | `0.0`", "`sampler_weight_cap` | `null`", "`mu_peak` | `0.5`"):
        assert page.count(f"| {setting} |") == 1
    assert "### lmix.training.objectives.CHORD\n" in page

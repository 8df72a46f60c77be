"""docs/reference.md is what the code says."""

import config_reference


def test_the_page_is_up_to_date():
    """`python scripts/config_reference.py` writes it."""
    assert config_reference.TARGET.read_text() == config_reference.reference()


def test_every_setting_has_its_text():
    assert "| `samples_per_prompt` | `8` | G, the completions of one prompt. |" in config_reference.reference()
    assert "|  |\n" not in config_reference.reference()

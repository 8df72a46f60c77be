"""The parts of scripts/reproduce.py: `preset` reads YAML, `cell` and `stages` plan commands, `execution` runs them."""

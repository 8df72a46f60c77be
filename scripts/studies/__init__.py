"""The parts of scripts/study.py: `config` reads YAML, `runs` says what is run and what is chosen from what was run."""

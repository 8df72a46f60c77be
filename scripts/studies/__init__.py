"""The parts of scripts/study.py: `config` reads YAML, `runs` defines the stages and the choices between them."""

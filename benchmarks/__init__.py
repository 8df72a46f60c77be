"""Speed and memory of lmix compared with other implementations of the same step: `python -m benchmarks --help`."""

"""Speed and memory of lmix beside other implementations of the same step: `python -m benchmarks --help`."""

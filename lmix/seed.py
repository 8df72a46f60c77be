"""The run's seed."""

import os


def run_seed(seed: int | None = None) -> int:
    """`seed` itself, or if it is None the last seed given to `seed_everything` in this process (0 without one)."""
    # Lightning keeps the seed in the environment, where other ranks find it
    return int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed

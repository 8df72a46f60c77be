"""The run's seed."""

import os


def run_seed(seed: int | None = None) -> int:
    """`seed` itself, or else what `seed_everything` was given last in this process (0 where it never was)."""
    # Lightning keeps it in the environment, so that other ranks find it
    return int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed

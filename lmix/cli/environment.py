"""Environment variables to set before heavy imports, and suppression of libraries' messages."""

import logging
import os
import sys
import warnings

# do not report downloads to the hub
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# for torch: large CPU tensors in huge pages (Linux), which saves 4 to 7 % of a step
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
# for OpenMP (GNU): threads that wait for each other soon sleep. By default they spin for milliseconds, so that a second
# busy program on the same cores makes a step many times slower
os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def quieten() -> None:
    """Suppress messages about things that lmix handles and users can't change."""
    import lightning.pytorch  # noqa: F401  # sets its own log level on import
    import transformers.utils.logging

    if not sys.stderr.isatty():  # no progress bars in log files
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        transformers.utils.logging.disable_progress_bar()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*is_leaf.*")
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric.strategies.launchers").setLevel(logging.INFO)  # reports which rank has died
    known = (
        ".*in eval mode at the start of training.*",  # the backbone has no dropout, so its mode does not matter
        ".*does not have many workers.*",  # batches are already in memory
        ".*is_gradient_checkpointing.*",
        ".*args parameter is intended.*",
    )
    for message in known:
        warnings.filterwarnings("ignore", message)

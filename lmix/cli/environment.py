"""What is set before anything heavy is imported, and which of the libraries' messages are left out."""

import logging
import os
import sys
import warnings

# a run needs no hub: what it fetches it asks for by name, and counts of downloads are nobody's business
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# torch's: large tensors of a CPU in huge pages (Linux), which saves 4 to 7 % of a step there
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def quieten() -> None:
    """Leave out what lmix knows and users can't change."""
    import lightning.pytorch  # noqa: F401  # it sets its own log level when it is imported
    import transformers.utils.logging

    if not sys.stderr.isatty():  # bars are for people; a log wants lines
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        transformers.utils.logging.disable_progress_bar()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*is_leaf.*")
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric.strategies.launchers").setLevel(logging.INFO)  # says which rank has died
    known = (
        ".*in eval mode at the start of training.*",  # the backbone has no dropout, so it has no training mode
        ".*does not have many workers.*",  # batches are lists that are in memory already
        ".*is_gradient_checkpointing.*",
        ".*args parameter is intended.*",
    )
    for message in known:
        warnings.filterwarnings("ignore", message)

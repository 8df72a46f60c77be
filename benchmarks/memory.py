"""Peak memory of a phase."""

import ctypes
import gc
from pathlib import Path

import torch


def memory() -> float:
    """Peak memory in GB since `reset_memory`: of the GPU if there is one, otherwise of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) * 1024 / 1e9


def reset_memory() -> None:
    """Reset the peak to the memory currently in use."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return
    ctypes.CDLL(None).malloc_trim(0)  # return freed memory to the system, so that all contenders fit into memory
    Path("/proc/self/clear_refs").write_text("5")  # Linux: resets VmHWM

"""The backbone, its adapters, and the streams that they make."""

import logging

EXPECTED = {
    # an optional inference kernel; lmix uses its own forward pass instead
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward from kernels-community",
    # logged at every matmul of an 8-bit checkpoint
    "bitsandbytes.autograd._functions": "MatMul8bitLt: inputs will be cast",
}
"""Harmless warnings of bitsandbytes to hide, by logger name. The first is logged when bitsandbytes is imported."""

for _name, _start in EXPECTED.items():
    logging.getLogger(_name).addFilter(lambda record, start=_start: not record.getMessage().startswith(start))

import lmix.model.auto  # noqa: E402, F401  # registers with transformers, once warnings are filtered

"""The backbone, its adapters, and the streams that they make."""

import logging

EXPECTED = {
    # an optional kernel for inference, which lmix never calls: its own forward pass takes its place
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward from kernels-community",
    # at every product of an 8-bit checkpoint
    "bitsandbytes.autograd._functions": "MatMul8bitLt: inputs will be cast",
}
"""Warnings of bitsandbytes on a start that is in order, by their logger: the first is written when it is imported."""

for _name, _start in EXPECTED.items():
    logging.getLogger(_name).addFilter(lambda record, start=_start: not record.getMessage().startswith(start))

"""A checksum of the weights in a model's files, of a sample of them: it takes seconds for the largest models."""

import hashlib
import json
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from transformers.utils.hub import cached_file

SAMPLE = 1024
"""Elements of each tensor in the sample, evenly spaced."""
CHUNKS, CHUNK_BYTES = 4096, 64
"""Number and size of a .gguf file's pieces in the sample, evenly spaced."""


def weights_digest(where: str, gguf_file: str | None) -> str | None:
    """Digest of the weights in a folder, a downloaded hub repository or a .gguf file; None if they are pickled.

    It depends neither on how safetensors files split the tensors, nor on whether they store float32 or bfloat16.
    """
    if gguf_file is not None:
        return gguf_digest(Path(where) / gguf_file)
    digests: dict[str, bytes] = {}
    for path in safetensors_files(where):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  # not a mapping
                digests[name] = tensor_digest(file.get_tensor(name))
    if not digests:
        return None
    return hashlib.sha256(b"".join(name.encode() + digests[name] for name in sorted(digests))).hexdigest()[:16]


def safetensors_files(where: str) -> list[Path]:
    """The weight files that transformers reads for a model, found without a request to the hub."""
    index, single = (
        cached_file(where, name, local_files_only=True, _raise_exceptions_for_missing_entries=False)
        for name in ("model.safetensors.index.json", "model.safetensors")
    )
    if single:
        return [Path(single)]
    if not index:
        return []
    names = set(json.loads(Path(index).read_text())["weight_map"].values())
    return [Path(index).parent / name for name in sorted(names)]


def tensor_digest(tensor: Tensor) -> bytes:
    """Bytes of a tensor's shape and of a sample of its elements; floats of 16 bits or more are rounded to bfloat16."""
    flat = tensor.flatten()
    sample = flat[:: max(1, len(flat) // SAMPLE)].contiguous()
    if sample.is_floating_point() and sample.itemsize > 1:
        sample = sample.to(torch.bfloat16)
    return repr(tuple(tensor.shape)).encode() + sample.view(torch.uint8).numpy().tobytes()


def gguf_digest(path: Path) -> str:
    """Digest of a file's size and of pieces of it."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for i in range(CHUNKS):
            file.seek(i * size // CHUNKS)
            digest.update(file.read(CHUNK_BYTES))
    return digest.hexdigest()[:16]

"""The products table: the rate of each matrix product of a decode step, in plain torch, transposed, and packed.

`lmix.model.packed.can_pack` and `lmix.model.linear.NARROW` follow from this table on the machines of
docs/performance.md.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.work import Work
from lmix.model.backbone import compute_dtype
from lmix.model.packed import ROWS
from lmix.model.sources import load_config

COLD, MOST = 2**27, 64
"""Total bytes of the weights that are used in turn, so that they are read from memory as in a model, and the maximum
number of weights."""


class Products:
    """The contender for the products table, with the single order `products`."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.dtype = compute_dtype(work.dtype, "cpu")
        config = load_config(work.model)
        hidden, inner = config.hidden_size, config.intermediate_size
        rows = 2 * work.rows
        self.shapes = [(rows, hidden, hidden), (rows, hidden, inner), (rows, inner, hidden)]
        self.shapes += [(work.rows, hidden, config.vocab_size)]

    @torch.no_grad()
    def products(self) -> dict[str, Any]:
        """The table's rows: the shape, GFLOP/s of each kind, and GFLOP/s of a large product."""
        large = 2.0 * 512 * self.shapes[1][1] * self.shapes[1][2]
        a, b = self.random(512, self.shapes[1][1]), self.random(*self.shapes[1][1:])
        rate = large / seconds(lambda: torch.matmul(a, b)) / 1e9
        return {"rows": [self.row(*shape) | {"large": rate} for shape in self.shapes]}

    def row(self, rows: int, width: int, outputs: int) -> dict[str, float | str]:
        """GFLOP/s of one shape."""
        copies = max(1, min(MOST, COLD // (width * outputs * self.dtype.itemsize)))
        weights = [self.random(outputs, width) for _ in range(copies)]
        x = self.random(rows, width)
        packed = [torch.ops.mkldnn._reorder_linear_weight(weight, ROWS) for weight in weights]
        pointwise = torch.ops.mkldnn._linear_pointwise
        kinds: dict[str, Callable[[int], Any]] = {
            "plain": lambda i: torch.nn.functional.linear(x, weights[i]),
            "other_side": lambda i: torch.mm(weights[i], x.t()).t().contiguous(),
            "packed": lambda i: pointwise(x, packed[i], None, "none", [], ""),
        }
        found: dict[str, float | str] = {"product": f"{rows} x {width} x {outputs}"}
        for kind, product in kinds.items():
            every = seconds(lambda product=product: [product(i) for i in range(copies)]) / copies
            found[kind] = 2.0 * rows * width * outputs / every / 1e9
        return found

    def random(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape).to(self.dtype)


def seconds(work: Callable[[], Any]) -> float:
    """Median seconds of a few calls, after a warm-up call."""
    times = []
    for _ in range(8):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])

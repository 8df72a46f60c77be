"""A contender's process: `python -m benchmarks.serve NAME WORK`, started by `protocol.Worker`.

ours, naive     see these modules
trl, trl_kl     TRL without a KL term, and with beta 0.01
growth          lmix at several sizes
products        rates of the matrix products of a decode step
"""

import json
import sys
from collections.abc import Sequence

import torch

from benchmarks.growth import Growth
from benchmarks.naive import Naive
from benchmarks.ours import Ours
from benchmarks.products import Products
from benchmarks.protocol import serve
from benchmarks.work import Work

CONTENDERS = {"ours": Ours, "naive": Naive, "growth": Growth, "products": Products}
TRL_BETAS = {"trl": 0.0, "trl_kl": 0.01}


def main(arguments: Sequence[str]) -> None:
    name, settings = arguments
    work = Work(**json.loads(settings))
    torch.set_num_threads(work.threads)
    if name in TRL_BETAS:
        from benchmarks.trl_grpo import serve_trl  # TRL need not be installed

        serve_trl(work, TRL_BETAS[name])
    else:
        serve(CONTENDERS[name](work))


if __name__ == "__main__":
    main(sys.argv[1:])

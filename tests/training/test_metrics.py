import torch

from lmix.tasks import Judgement
from lmix.training.metrics import FormatRate, SolveRate

RIGHT, WRONG, BARE = Judgement("4", True, 1.0), Judgement("5", False, 0.0), Judgement(None, False, 0.0)


def test_rates_over_batches():
    form, solve = FormatRate(), SolveRate()
    for batch in ([RIGHT, WRONG, BARE], [RIGHT]):
        form.update(batch)
        solve.update(batch)
    assert form.compute().item() == 0.75
    assert solve.compute().item() == 0.5


def test_states_of_ranks_add_up():
    ranks = [SolveRate(), SolveRate()]
    ranks[0].update([RIGHT, RIGHT])
    ranks[1].update([WRONG, BARE, BARE])
    ranks[0].count += ranks[1].count
    ranks[0].total += ranks[1].total
    assert torch.isclose(ranks[0].compute(), torch.tensor(0.4))

"""Steps for which the memory does not suffice are taken in pieces, with the same result."""

import pytest
import torch
from torch import nn

from core.unlearners import unlearners
from tests.core import cases
from tests.core.unlearners.test_contract import config
from tests.core.unlearners.test_descent import NORMED, PLAN, descend, on_both, problem, replace

DESCENDING = (
    *("bad_teacher", "ce_ft", "delete", "eupmu", "famo", "gradient_ascent", "ice_ft", "kl_ft"),
    *("linear_weighting", "munba", "neggrad_plus", "pcgrad", "random_label", "rbm", "salun"),
    *("scrub", "ungrad"),
)


def short(model, room, since=1):
    """Have the last layer fail when it is to learn from more than ``room`` records at once.

    Passes before the one numbered ``since`` find room enough.
    """
    seen = []
    layer = [each for each in model.modules() if isinstance(each, nn.Linear)][-1]

    def look(module, inputs):
        # A copy of the model, as a teacher, has the hook, too.
        if module is not layer or not (torch.is_grad_enabled() and model.training):
            return
        seen.append(len(inputs[0]))
        if len(inputs[0]) > room and len(seen) >= since:
            raise torch.OutOfMemoryError("CUDA out of memory")

    layer.register_forward_pre_hook(look)
    return seen


def values(model):
    return torch.cat([value.detach().flatten() for value in model.state_dict().values()])


@pytest.mark.parametrize("name", DESCENDING)
def test_halved_batches_give_the_same_model(name):
    options = config(name).model_copy(update={"epochs": 2})
    usual, tight = (cases.small_problem(name, batch_size=32) for _ in range(2))
    parent = values(usual.model)
    expected = values(unlearners[name].run(usual, options))
    seen = short(tight.model, 10)
    found = values(unlearners[name].run(tight, options))
    failed = [size for size in seen if size > 10]
    assert failed
    assert max(seen[seen.index(failed[-1]) + 1 :]) <= 10, "what was too large once stays so"
    assert (expected - parent).norm() > 100 * (found - expected).norm()


def test_the_fast_multiplier_counts_a_step_that_is_taken_twice_once():
    options = unlearners["eupmu"].config(fast=True, epochs=2)
    usual, tight = (cases.small_problem("eupmu", batch_size=32) for _ in range(2))
    unlearners["eupmu"].run(usual, options)
    short(tight.model, 10, since=4)  # on the forget batch of a step whose retain batch passed
    unlearners["eupmu"].run(tight, options)
    assert tight.tried[-1] == pytest.approx(usual.tried[-1], rel=1e-3)


def test_a_step_is_halved_four_times_at_most():
    given = problem(count=64, batch_size=64)
    seen = short(given.model, 3)
    with pytest.raises(torch.OutOfMemoryError):
        descend(given, on_both(given), PLAN, retain=given.retain.take([]))
    assert seen == [64, 32, 16, 8, 4]
    assert "forward" not in vars(given.model)


def test_frozen_statistics_do_not_keep_batches_together():
    usual, tight = (problem(NORMED) for _ in range(2))
    short(tight.model, 10)
    expected, found = (values(descend(each, on_both(each), PLAN)) for each in (usual, tight))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_batches_that_batch_norm_normalises_by_are_not_split():
    given = problem(NORMED)
    seen = short(given.model, 10)
    with pytest.raises(torch.OutOfMemoryError):
        descend(given, on_both(given), replace(PLAN, batch_statistics=True))
    assert len(seen) == 1

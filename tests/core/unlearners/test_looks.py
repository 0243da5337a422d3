"""When paired steps stop: on what would be handed back."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from core.data import Records
from core.unlearners._guard import ALLOWANCE, Guard
from core.unlearners.gradient_ascent import GradientAscentConfig, gradient_ascent
from core.unlearners.kl_ft import KLFTConfig, kl_ft
from tests.core import cases
from tests.core.unlearners import steps
from tests.worlds import accuracy


@pytest.mark.parametrize("policy", ["recalibrate", "frozen"])
def test_the_last_look_sees_what_is_handed_back(policy):
    problem = steps.digits_class(bn_policy=policy)
    model = kl_ft(problem, KLFTConfig())
    assert problem.tried[-1]["forgot"]
    assert problem.tried[-1]["forget_accuracy"] == pytest.approx(accuracy(model, problem.forget))


@pytest.mark.parametrize(("epochs", "looks"), [(2, [1, 2]), (5, [1, 3, 5]), (7, [1, 3, 7])])
def test_the_last_step_is_looked_at_however_few_there_are(epochs, looks):
    problem = cases.problem(cases.small_world(), cases.first(cases.small_world(), 20))
    gradient_ascent(problem, GradientAscentConfig(epochs=epochs, lr=1e-6))
    assert [each["steps"] for each in problem.tried if "steps" in each] == looks


class Told(nn.Module):
    """Says of each record what its value says."""

    def forward(self, x):
        return F.one_hot(x[:, 0].long(), 4).float()


def told(labels, said):
    values = torch.tensor(said, dtype=torch.float32)[:, None]
    return Records(images=values, labels=torch.tensor(labels), rows=torch.arange(len(labels)))


@pytest.mark.parametrize(("remembered", "forgot"), [(8, False), (4, True)])
def test_forget_records_of_a_class_without_tuning_records_count_as_well(remembered, forgot):
    world = cases.small_world()
    problem = replace(
        cases.problem(world, cases.first(world, 1)),
        model=Told(),
        # class 0 has no tuning record; half of the tuning records are recognised
        forget=told([0] * 8 + [1] * 2, [0] * remembered + [2] * (8 - remembered) + [1, 2]),
        tuning=told([1, 1, 2, 2], [1, 3, 2, 3]),
    )
    trial = Guard(problem, 1.0).measure(problem.model)
    assert trial.forget_accuracy == pytest.approx((remembered + 1) / 10)
    assert trial.target == pytest.approx(0.5 + ALLOWANCE)
    assert trial.forgot is forgot

"""Odd evidence: gates and audits say something about it, whatever it is, and never end the job.

Few records or none, one class, records that are all alike, models that know everything, nothing or
the opposite, and any mix of request and policy. The seed of a case is in the name of the test.
"""

from __future__ import annotations

import copy
import json
import random
import time

import pytest
import torch
from torch import nn

from core.audits import audits, run_chosen
from core.data import Records
from core.findings import Rung
from core.recipe import Recipe
from core.rungs import Case, _judge, gather_evidence

EVERYDAY, FULL = 16, 600
BATCH = 8
FEATURES = 6
SIZES = (1, 2, 3, 5, 8, 20, 60, 200)


def some_records(draw: random.Random, classes: int, start: int) -> Records:
    count, kind = draw.choice(SIZES), draw.choice(("mixed", "mixed", "one class", "alike"))
    last = 0 if kind == "one class" else classes - 1
    labels = torch.tensor([draw.randint(0, last) for _ in range(count)])
    known = nn.functional.one_hot(labels, max(classes, FEATURES))[:, :FEATURES]
    images = known + 0.1 * torch.randn(count, FEATURES)
    if kind == "alike":
        images[:] = images[:1]
    return Records(images=images, labels=labels, rows=torch.arange(start, start + count))


def a_network(draw: random.Random, classes: int) -> nn.Module:
    network = nn.Sequential(nn.Linear(FEATURES, classes))
    kind = draw.choice(("random", "random", "zero", "huge", "all-knowing", "contrary"))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_({"random": 1.0, "huge": 1e6}.get(kind, 0.0))
        if kind in ("all-knowing", "contrary"):
            same = torch.arange(min(classes, FEATURES))
            network[0].weight[same, same] = 10.0 if kind == "all-knowing" else -10.0
    return network.eval()


def a_case(draw: random.Random) -> Case:
    classes = draw.choice((1, 2, 2, 3, 5, 10))
    forget = some_records(draw, classes, 0)
    rest = [some_records(draw, classes, start) for start in (1000, 2000, 3000, 4000)]
    retain, judging, tuning, earlier = (each if draw.random() < 0.8 else None for each in rest)
    parent = a_network(draw, classes)
    rows = forget.rows.tolist()
    cut = draw.randint(1, len(rows))
    raw = {"epochs": 1, "batch_size": 4, "optimizer": {"name": "sgd", "lr": 0.1}, "seed": 1}
    by_class = draw.random() < 0.5
    return Case(
        parent=parent,
        fresh=lambda _: copy.deepcopy(parent),
        forget=forget,
        retain=retain,
        tuning=tuning,
        judging=judging,
        recipe=Recipe.model_validate(raw) if draw.random() < 0.3 else None,
        importance=None,
        requests={"first": rows[:cut], **({"second": rows[cut:]} if rows[cut:] else {})},
        selector="class" if by_class else "records",
        forget_classes=frozenset(forget.labels.tolist()) if by_class else frozenset(),
        num_classes=classes,
        policy=draw.choice(("fast", "standard", "strict", "exact")),
        seed=0,
        batch_size=draw.choice((1, 7, 256)),
        bn_policy="recalibrate",
        device=torch.device("cpu"),
        deadline=time.monotonic() + 600,
        report=lambda *_: None,
        purpose=draw.choice(("erasure", "erasure", "poison_removal")),
        earlier={} if earlier is None else {"earlier": earlier},
        oracles=tuple(a_network(draw, classes) for _ in range(draw.choice((0, 0, 1, 2)))),
    )


def judge(seed: int) -> None:
    torch.manual_seed(seed)
    draw = random.Random(seed)
    case = a_case(draw)
    child = a_network(draw, case.num_classes)
    evidence = gather_evidence(case, child, None)
    exact = draw.random() < 0.3
    rung = Rung(index=0, unlearner={}, exact=exact, status="skipped", reason="")
    judged = _judge(case, evidence, rung)
    named = [entry for entry in audits if entry.name != "backdoor"]  # it needs a trigger
    found = run_chosen(
        evidence, [each.config.model_validate({"name": each.name}) for each in named]
    )
    # As a runner says it: JSON knows neither NaN nor infinity.
    told = [each.model_dump(mode="json") for each in (judged, *found)]
    json.dumps(told, allow_nan=False)


@pytest.mark.parametrize("first", range(0, EVERYDAY, BATCH))
def test_a_few(first: int) -> None:
    for seed in range(first, first + BATCH):
        judge(seed)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(EVERYDAY, FULL, BATCH))
def test_many(first: int) -> None:
    for seed in range(first, first + BATCH):
        judge(seed)

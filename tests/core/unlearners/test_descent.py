"""The loop of paired batches: batches, steps, what stays, and when it ends."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from core.errors import Diverged, InvalidInput, MissingEvidence, OutOfTime
from core.recipe import AdamW
from core.unlearners import _descent
from core.unlearners._descent import Plan, descend
from core.unlearners._guard import Trial
from tests.core import cases
from tests.worlds import trained

PLAN = Plan(epochs=2, lr=0.05, stop=False)
NORMED = cases.noise_world(num_train=200, num_holdout=200, noise_dims=5, batch_norm=True)


def problem(world=None, count=40, **changes):
    world = cases.small_world() if world is None else world
    return cases.problem(world, cases.first(world, count), **{"batch_size": 32, **changes})


def on_both(given):
    def gradients(pair):
        losses = [
            F.cross_entropy(given.model(x), y) for x, y in (pair.forget, pair.retain) if len(y)
        ]
        loss = torch.stack(losses).sum()
        loss.backward()
        return loss

    return gradients


def pairs_of(given, plan, **changes):
    seen = []
    gradients = on_both(given)

    def spy(pair):
        seen.append(pair)
        return gradients(pair)

    descend(given, spy, plan, **changes)
    return seen


def sorted_rows(x):
    return x[x[:, 0].argsort()]


@pytest.mark.parametrize(("pace", "steps"), [("forget", 2), ("retain", 7)])
def test_an_epoch_is_a_pass_over_the_pacing_set(pace, steps):
    given = problem()
    seen = pairs_of(given, replace(PLAN, pace=pace))
    assert [pair.step for pair in seen] == list(range(2 * steps))
    assert {pair.of for pair in seen} == {2 * steps}
    records = getattr(given, pace)
    for epoch in (seen[:steps], seen[steps:]):
        values = torch.cat([getattr(pair, pace)[0] for pair in epoch])
        assert torch.equal(sorted_rows(values), sorted_rows(records.images))
    assert all(len(pair.forget[1]) and len(pair.retain[1]) for pair in seen)


def test_with_turns_a_forget_pass_is_followed_by_a_retain_pass():
    given = problem()
    seen = pairs_of(given, replace(PLAN, pace="turns"))
    turns = [(len(pair.forget[1]) > 0, len(pair.retain[1]) > 0) for pair in seen]
    assert turns == ([(True, False)] * 2 + [(False, True)] * 7) * 2
    for role, epoch in (("forget", seen[9:11]), ("retain", seen[11:])):
        values = torch.cat([getattr(pair, role)[0] for pair in epoch])
        assert torch.equal(sorted_rows(values), sorted_rows(getattr(given, role).images))


def test_a_forget_set_smaller_than_a_batch_is_in_every_step():
    seen = pairs_of(problem(count=3), replace(PLAN, epochs=1, pace="retain"))
    assert len(seen) == 8
    assert all(len(pair.forget[1]) == 3 for pair in seen)


def test_a_single_forget_record_passes_batch_norm():
    given = problem(NORMED, count=1)
    model = descend(given, on_both(given), PLAN)
    assert all(bool(p.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize("retained", [None, 1])
def test_statistics_that_can_not_be_measured_anew_stay_and_that_is_said(retained):
    given = problem(NORMED)
    given = replace(given, retain=None if retained is None else given.retain.take([0]))
    before = {name: value.clone() for name, value in given.model.named_buffers()}
    model = descend(given, on_both(given), PLAN)
    assert all(torch.equal(model.get_buffer(name), value) for name, value in before.items())
    assert given.tried == [{"batch_norm": "running statistics are the parent's"}]
    for usual in (problem(NORMED), problem(NORMED, retain=None, bn_policy="frozen")):
        descend(usual, on_both(usual), PLAN)
        assert usual.tried == []


@pytest.mark.parametrize(
    ("retained", "batch_size", "code"), [(1, 32, "retain_set_too_small"), (40, 1, "recipe_invalid")]
)
def test_batch_norm_does_not_follow_batches_of_one_record(retained, batch_size, code):
    given = problem(NORMED, batch_size=batch_size)
    given = replace(given, retain=given.retain.take(range(retained)))
    plan = replace(PLAN, pace="retain", batch_statistics=True)
    with pytest.raises(InvalidInput) as refused:
        descend(given, on_both(given), plan, forget=given.forget.take([]))
    assert refused.value.code == code
    small = replace(problem(batch_size=batch_size), retain=problem().retain.take(range(retained)))
    descend(small, on_both(small), plan, forget=small.forget.take([]))


@pytest.mark.parametrize("pace", ["retain", "turns"])
def test_a_missing_retain_set_is_missed_where_it_sets_the_pace(pace):
    given = problem(retain=None)
    with pytest.raises(MissingEvidence):
        descend(given, on_both(given), replace(PLAN, pace=pace))


def test_without_a_retain_set_its_batches_are_empty():
    assert all(len(pair.retain[1]) == 0 for pair in pairs_of(problem(retain=None), PLAN))


def test_weights_that_may_not_move_keep_their_bits():
    parent = trained(cases.small_world())
    name = next(n for n, p in parent.named_parameters() if p.ndim == 2)
    draw = torch.Generator().manual_seed(0)
    may = torch.rand(parent.get_parameter(name).shape, generator=draw) < 0.5
    given = problem()
    model = descend(given, on_both(given), replace(PLAN, movable={name: may}, weight_decay=0.1))
    before, after = parent.get_parameter(name), model.get_parameter(name)
    assert torch.equal(after[~may], before[~may])
    assert float((after != before)[may].float().mean()) > 0.9
    others = [n for n, _ in model.named_parameters() if n != name]
    assert all(not torch.equal(model.get_parameter(n), parent.get_parameter(n)) for n in others)


@pytest.mark.parametrize("adamw", [False, True])
def test_pruned_weights_stay_zero_after_every_step(adamw):
    world = cases.small_world()
    recipe = world.recipe
    if adamw:
        recipe = recipe.model_copy(update={"optimizer": AdamW(lr=0.01, weight_decay=0.1)})
    given = problem(recipe=recipe)
    name, weight = next((n, p) for n, p in given.model.named_parameters() if p.ndim == 2)
    masks = {name: torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) < 0.5}
    given = replace(given, masks=masks)
    given.keep_masks(given.model)
    left = []

    def look(pair):
        left.append(int(given.model.get_parameter(name)[~masks[name]].count_nonzero()))

    model = descend(given, on_both(given), PLAN, after_step=look)
    assert left == [0] * 4
    assert bool(model.get_parameter(name)[masks[name]].all())


def test_the_gradient_is_cut_after_the_backward_pass():
    given = problem()
    plan = replace(PLAN, epochs=1, lr=1.0, momentum=0.0, weight_decay=0.0, clip=1e-3)
    before = [p.detach().clone() for p in given.model.parameters()]
    moved = []

    def look(pair):
        after = [p.detach().clone() for p in given.model.parameters()]
        pairs = zip(after, before, strict=True)
        moved.append(sum(float((a - b).square().sum()) for a, b in pairs) ** 0.5)
        before[:] = after

    descend(given, lambda pair: 100 * on_both(given)(pair), plan, after_step=look)
    assert moved == pytest.approx([1e-3] * 2, rel=1e-2)


def test_pruned_weights_do_not_count_when_gradients_are_clipped():
    given = problem()
    name, weight = next(iter(given.model.named_parameters()))
    mask = torch.arange(weight.numel()).reshape(weight.shape) % 2 == 0
    given = replace(given, masks={name: mask})
    given.keep_masks(given.model)
    before = [p.detach().clone() for p in given.model.parameters()]
    plan = Plan(epochs=1, lr=1.0, momentum=0.0, weight_decay=0.0, clip=1e-3, stop=False)
    given = replace(given, batch_size=1000)
    model = descend(given, lambda pair: 100 * on_both(given)(pair), plan)
    moved = [a.detach() - b for a, b in zip(model.parameters(), before, strict=True)]
    assert sum(float(m.square().sum()) for m in moved) ** 0.5 == pytest.approx(1e-3, rel=1e-2)


def statistics(model):
    return {name: value.clone() for name, value in model.named_buffers()}


def test_running_statistics_are_untouched_when_frozen():
    given = problem(NORMED, bn_policy="frozen")
    before = statistics(given.model)
    after = statistics(descend(given, on_both(given), PLAN))
    assert before
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_the_policy_tracked_keeps_what_forget_batches_would_move_and_says_so():
    given = problem(NORMED, bn_policy="tracked")
    before = statistics(given.model)
    after = statistics(descend(given, on_both(given), PLAN))
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert "as frozen" in given.tried[0]["batch_norm"]


def test_eu_4_batch_statistics_are_tracked_once_per_forward_pass():
    given = problem(NORMED, bn_policy="tracked")
    name = next(n for n, _ in given.model.named_buffers() if n.endswith("num_batches_tracked"))
    before = int(given.model.get_buffer(name))
    plan = replace(PLAN, batch_statistics=True)
    model = descend(given, on_both(given), plan, retain=given.retain.take([]))
    assert int(model.get_buffer(name)) == before + 4


def test_the_model_comes_back_in_eval_mode_with_progress_at_one():
    told = []
    given = problem(progress=lambda share, _: told.append(share))
    model = descend(given, on_both(given), PLAN)
    assert model is given.model
    assert not any(module.training for module in model.modules())
    assert told == sorted(told)
    assert told[-1] == 1


class Script:
    """A guard that measures what it is told: of the parent first, and then at every look.

    Args:
        measured: accuracy on the forget records, and on never-seen ones.
    """

    def __init__(self, *measured):
        self.measured = iter(measured)

    def __call__(self, given, max_drop):
        return self

    def measure(self, model):
        forget, never_seen = next(self.measured)
        return Trial(forget, never_seen, 0.0, forget <= never_seen, True)


def test_it_stops_at_the_first_look_that_finds_enough_forgotten(monkeypatch):
    monkeypatch.setattr(_descent, "Guard", Script((1.0, 0.5), (0.6, 0.5), (0.5, 0.5)))
    given = problem()
    seen = pairs_of(given, replace(PLAN, epochs=10, stop=True))
    assert len(seen) == 2
    looks = [entry for entry in given.tried if "steps" in entry]
    assert [entry["forgot"] for entry in looks] == [False, True]


@pytest.mark.parametrize(
    ("falling", "looks"),
    [
        ([1.0, 1.0, 1.0, 1.0, 1.0, 0.4], [1, 3, 7, 12, 17, 20]),
        ([0.9, 0.7, 0.65, 0.5], [1, 3, 4, 5]),
    ],
)
def test_looks_are_rare_where_little_happens_and_close_near_the_target(monkeypatch, falling, looks):
    monkeypatch.setattr(_descent, "Guard", Script((1.0, 0.5), *((each, 0.5) for each in falling)))
    given = problem()
    pairs_of(given, replace(PLAN, epochs=10, stop=True))
    assert [entry["steps"] for entry in given.tried if "steps" in entry] == looks


def test_where_roles_take_turns_it_stops_when_both_had_theirs(monkeypatch):
    monkeypatch.setattr(_descent, "Guard", Script((1.0, 0.5), (0.6, 0.5), (0.4, 0.5)))
    given = problem()
    seen = pairs_of(given, replace(PLAN, epochs=10, stop=True, pace="turns"))
    assert len(seen) == 2 * (2 + 7)


@pytest.mark.parametrize("never_seen", [0.4, 0.9])
def test_a_model_that_falls_apart_is_not_followed_down(monkeypatch, never_seen):
    """What counts is never-seen records as the parent knew them, or better."""
    monkeypatch.setattr(_descent, "Guard", Script((1.0, 0.8), (0.75, never_seen)))
    given = problem()
    seen = pairs_of(given, replace(PLAN, epochs=10, stop=True))
    assert len(seen) == 1
    [look] = [entry for entry in given.tried if "steps" in entry]
    assert look["target"] == max(0.8, never_seen)
    assert look["forgot"]


def test_with_stop_off_nobody_looks(monkeypatch):
    monkeypatch.setattr(_descent, "Guard", None)
    given = problem()
    assert len(pairs_of(given, replace(PLAN, epochs=10))) == 20
    assert given.tried == []


def test_without_tuning_records_it_says_that_it_never_stops():
    given = problem(tuning=None)
    pairs_of(given, replace(PLAN, stop=True))
    assert given.tried == [{"stop": "never: there are no tuning records"}]


def test_a_loss_that_is_not_finite_ends_it():
    given = problem()

    def broken(pair):
        return on_both(given)(pair) * float("nan")

    with pytest.raises(Diverged):
        descend(given, broken, PLAN)


def test_a_loss_that_explodes_ends_it_though_it_is_finite():
    given = problem()
    with pytest.raises(Diverged, match="exploded"):
        descend(given, on_both(given), replace(PLAN, epochs=5, lr=20.0))


def test_the_time_limit_is_looked_at_before_each_step():
    given = problem(deadline=0.0)
    with pytest.raises(OutOfTime):
        descend(given, on_both(given), PLAN)


def test_the_same_seed_gives_the_same_batches_and_another_seed_others():
    first, again, other = (
        torch.cat([pair.forget[0] for pair in pairs_of(problem(seed=seed), PLAN)])
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)

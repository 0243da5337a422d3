"""Sharded training: touched members never saw the forget set, the others keep their bits."""

from dataclasses import replace

import pytest
import torch

from core import sisa as sharding
from core import weights
from core.errors import InvalidInput
from core.training import fit
from core.unlearners.fine_tune import FineTuneConfig, fine_tune
from core.unlearners.sisa import SISAConfig, sisa
from tests.core import cases
from tests.worlds import CPU, accuracy, gaussian_world, trained

WORLD = cases.suited("sisa", cases.small_world())
KEY = WORLD.architecture["shard_key"]
OF_SHARD = sharding.shards(WORLD.train.rows, 4, KEY)


def in_shards(*wanted, count=12):
    """Mask of the first records of these shards."""
    mask = torch.zeros(len(WORLD.train), dtype=torch.bool)
    for shard in wanted:
        mask[(shard == OF_SHARD).nonzero().flatten()[:count]] = True
    return mask


def test_untouched_members_are_bit_identical_and_touched_ones_are_trained_from_scratch():
    forget = in_shards(1, 3)
    given = cases.problem(WORLD, forget)
    model = sisa(given, SISAConfig())
    parent = trained(WORLD)
    scratch = sharding.train(WORLD.architecture, WORLD.train.take(~forget), WORLD.recipe, seed=7)
    for shard in range(4):
        is_touched = shard in {1, 3}
        assert weights.equal(model.members[shard], parent.members[shard]) is not is_touched
        assert weights.equal(model.members[shard], scratch.members[shard]) is is_touched
    assert given.tried == [{"shards": 4, "touched": [1, 3]}]


def test_with_the_first_seed_it_is_bitwise_the_ensemble_that_never_saw_the_forget_set():
    forget = in_shards(0, 2)
    scratch = sharding.train(WORLD.architecture, WORLD.train.take(~forget), WORLD.recipe, seed=0)
    assert weights.equal(sisa(cases.problem(WORLD, forget, seed=0), SISAConfig()), scratch)


def test_it_forgets_as_much_as_an_oracle():
    world = cases.suited("sisa", gaussian_world(spread=2.0, hidden=32, epochs=40))
    given = cases.problem(world, cases.first(world, 80))
    before = accuracy(given.model, given.forget)
    scratch = sharding.train(world.architecture, given.retain, world.recipe, seed=5)
    oracle = accuracy(scratch, given.forget)
    after = accuracy(sisa(given, SISAConfig()), given.forget)
    assert before - oracle > 0.1
    assert abs(after - oracle) < (before - oracle) / 2


def test_what_a_forget_record_holds_does_not_matter():
    forget = in_shards(2)
    given = cases.problem(WORLD, forget)
    others = replace(given.forget, images=given.forget.images + 100)
    strange = replace(cases.problem(WORLD, forget), forget=others)
    assert weights.equal(sisa(given, SISAConfig()), sisa(strange, SISAConfig()))


@pytest.mark.parametrize("what", ["fine-tuned", "trained as one", "one weight"])
def test_members_that_another_hand_changed_are_refused(what):
    forget = in_shards(1)
    given = cases.problem(WORLD, forget)
    if what == "fine-tuned":
        fine_tune(given, FineTuneConfig(epochs=1))
    elif what == "trained as one":
        given = replace(
            given, model=fit(WORLD.fresh(), WORLD.train, WORLD.recipe, seed=0, device=CPU, epochs=1)
        )
    else:
        with torch.no_grad():
            next(given.model.members[0].parameters()).view(-1)[0] += 1e-3
    with pytest.raises(InvalidInput) as caught:
        sisa(given, SISAConfig())
    assert caught.value.code == "shards_broken"
    assert "core.sisa.train" in str(caught.value)


def test_the_result_can_be_asked_again():
    given = cases.problem(WORLD, in_shards(1))
    again = cases.problem(
        WORLD,
        in_shards(2),
        model=sisa(given, SISAConfig()),
        retain=WORLD.train.take(~in_shards(1, 2)),
    )
    first = weights.frozen_copy(again.model)
    model = sisa(again, SISAConfig())
    assert weights.equal(model.members[1], first.members[1])
    assert sharding.broken_seals(model) == []


def test_the_seal_survives_a_file(tmp_path):
    weights.save(trained(WORLD), tmp_path / "model.safetensors")
    loaded = WORLD.fresh(9)
    assert sharding.broken_seals(loaded) == [0, 1, 2, 3]
    weights.load(tmp_path / "model.safetensors", loaded)
    assert sharding.broken_seals(loaded) == []


def test_a_mask_over_all_members_is_refused():
    name, value = next(iter(trained(WORLD).named_parameters()))
    given = cases.problem(WORLD, in_shards(1), masks={name: torch.ones_like(value).bool()})
    with pytest.raises(InvalidInput, match="mask"):
        sisa(given, SISAConfig())


def test_a_shard_without_records_is_refused():
    with pytest.raises(InvalidInput) as caught:
        sisa(cases.problem(WORLD, OF_SHARD == 1), SISAConfig())
    assert caught.value.code == "retain_set_too_small"


def test_a_forget_record_in_the_retain_set_is_our_own_mistake():
    given = cases.problem(WORLD, in_shards(1), retain=WORLD.train)
    with pytest.raises(AssertionError):
        sisa(given, SISAConfig())


def test_the_map_is_fixed_keyed_and_even():
    rows = torch.arange(10_000)
    found = sharding.shards(rows, 8, KEY)
    assert found[:8].tolist() == [7, 5, 2, 3, 7, 4, 0, 2]
    assert torch.equal(sharding.shards(rows.flip(0), 8, KEY).flip(0), found)
    assert not torch.equal(sharding.shards(rows, 8, KEY + "!"), found)
    counts = torch.bincount(found, minlength=8).double()
    assert bool(((counts - 1250).abs() < 5 * (10_000 * 1 / 8 * 7 / 8) ** 0.5).all())


def test_members_start_apart():
    seeds = {sharding.member_seed(seed, shard) for seed in range(5) for shard in range(5)}
    assert len(seeds) == 25
    first, second = (member for member in list(trained(WORLD).members)[:2])
    assert not weights.equal(first, second)

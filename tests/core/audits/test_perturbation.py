"""Changed copies: what they are, and that only remembered records stand out."""

import dataclasses

import pytest
import torch

from core.audits import audits
from core.audits.perturbation import noisy, recompressed
from core.data import Preprocessing, Records
from core.errors import MissingEvidence
from tests.core import cases
from tests.worlds import digits_world, gaussian_world, trained


def pictures(channels=3):
    draw = torch.Generator().manual_seed(0)
    smooth = torch.rand(6, channels, 4, 4, generator=draw) * 255
    images = torch.nn.functional.interpolate(smooth, size=(16, 16), mode="bilinear").to(torch.uint8)
    return Records(images=images, labels=torch.zeros(6).long(), rows=torch.arange(6),
                   preprocessing=Preprocessing(height=16, width=16, channels=channels))  # fmt: skip


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_changes_pixels_a_little(channels):
    records = pictures(channels)
    again = recompressed(records, 90)
    apart = (again.images.float() - records.images.float()).abs()
    assert again.images.shape == records.images.shape
    assert again.images.dtype == torch.uint8
    assert 0 < apart.mean() < 12
    worse = (recompressed(records, 5).images.float() - records.images.float()).abs()
    assert worse.mean() > apart.mean()


def test_noise_has_its_spread_and_pixels_stay_in_range():
    grey = dataclasses.replace(
        pictures(), images=torch.full((40, 3, 16, 16), 128, dtype=torch.uint8)
    )
    changed = noisy(grey, torch.tensor(0.05 * 255), torch.Generator().manual_seed(0)).images
    assert (changed.double() - 128).std().item() == pytest.approx(0.05 * 255, rel=0.05)
    black = dataclasses.replace(grey, images=torch.zeros_like(grey.images))
    changed = noisy(black, torch.tensor(50.0), torch.Generator().manual_seed(0)).images
    assert changed.max() < 255
    assert (changed == 0).double().mean() > 0.4


def found(evidence, **options):
    audit = audits["perturbation"]
    return {f.measure: f for f in audit.run(evidence, audit.config(**options))}


def test_images_are_flipped_compressed_and_made_noisy_and_features_made_noisy():
    world = digits_world(num_records=120, epochs=1)
    findings = found(cases.evidence(world, world.fresh(), cases.first(world, 20)), copies=2)
    assert set(findings) == {"residual_flip", "residual_noise", "residual_jpeg"}
    world = gaussian_world()
    assert set(found(cases.evidence(world, world.fresh(), cases.first(world, 20)))) == {
        "residual_noise"
    }


def test_copies_of_remembered_records_are_known_and_those_of_forgotten_ones_are_not():
    world = gaussian_world()
    forget = cases.first(world, 120)
    ideal = cases.oracle(world, forget)
    parent = found(cases.evidence(world, trained(world), forget, oracles=(ideal,)))
    assert parent["residual_noise"].interval[0] > 0.05
    assert parent["residual_noise"].value == parent["residual_noise"].reference
    assert parent["residual_ratio_noise"].value > 1.1
    oracle = found(cases.evidence(world, ideal, forget, oracles=(ideal,)))
    low, high = oracle["residual_noise"].interval
    assert low < 0 < high
    assert oracle["residual_ratio_noise"].value == 1.0


def test_both_sides_have_as_many_records_of_each_class():
    world = gaussian_world()
    findings = found(cases.evidence(world, world.fresh(), cases.first(world, 120)), most_records=40)
    assert 36 <= findings["residual_noise"].examples <= 44


def test_the_spread_of_features_takes_two_records():
    world = gaussian_world()
    given = cases.evidence(world, world.fresh(), cases.first(world, 20))
    label = int(given.forget.labels[0])
    same = (given.holdout.labels == label).nonzero().flatten()
    for count in (1, 2):
        few = dataclasses.replace(given, holdout=given.holdout.take(same[:count]))
        if count == 1:
            with pytest.raises(MissingEvidence, match="at least two"):
                found(few)
        else:
            assert set(found(few)) == {"residual_noise"}

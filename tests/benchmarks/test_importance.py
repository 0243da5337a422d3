"""The target of the importance pass follows the CPU, not what came out."""

import pytest

from benchmarks.importance import OURS, REFERENCE, rows


def row(*, fp32, bf16, agrees, has_units):
    """Return the row that something is asked of, at these rates over the reference's."""
    rates = {REFERENCE: 1.0} | {arm: bf16 if "bf16" in arm else fp32 for arm in OURS}
    seconds = {arm: [1 / rate] for arm, rate in rates.items()}
    share = {"0.01": 1.0 if agrees else 0.9}
    agreements = dict.fromkeys(("fisher_batch", "fisher_persample"), share)
    made = rows(seconds, dict.fromkeys(rates, 0), agreements, has_units=has_units)
    [asked] = [each for each in made if "v. reference" in each.what and each.asked]
    return asked


@pytest.mark.parametrize(
    ("case", "what", "asked", "verdict"),
    [
        ({"fp32": 1.3, "bf16": 2.1, "agrees": True, "has_units": True}, "bf16", "2", "met"),
        ({"fp32": 1.3, "bf16": 1.9, "agrees": True, "has_units": True}, "bf16", "2", "**missed**"),
        ({"fp32": 1.3, "bf16": 2.1, "agrees": False, "has_units": False}, "fp32", "1.2", "met"),
        ({"fp32": 2.0, "bf16": 4.0, "agrees": False, "has_units": True}, "fp32", "2", "met"),
    ],
)
def test_twice_the_rate_is_asked_where_there_are_matrix_units(case, what, asked, verdict):
    found = row(**case)
    assert found.what.startswith(f"fisher_batch {what} ")
    assert (found.asked, found.verdict) == (f">= {asked}x", verdict)
    assert found.measured.endswith("0x")


def test_what_is_missed_says_what_bounds_it():
    found = row(fp32=1.3, bf16=2.1, agrees=False, has_units=True)
    assert found.verdict == "**missed**"
    assert found.measured == "1.30x in fp32; bf16 (2.10x) is not used: it selects other weights"

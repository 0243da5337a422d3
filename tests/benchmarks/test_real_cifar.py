"""The page says which cases were measured with an earlier ladder."""

import pytest

from benchmarks import real_cifar
from core.ladder import parse
from core.policies import ladder


@pytest.fixture
def result():
    """A case that climbed the first rung of the ladder that there is."""
    case = {"selector": {"type": "record_ids"}, "num_records": 500, "job": {"result": {}}}
    first = parse(ladder(real_cifar._situation(case))[0]).model_dump(mode="json")
    case["job"]["result"]["rungs_tried"] = [{"unlearner": first}]
    return case


def lines(result, case="records_500"):
    return "".join(real_cifar._of_another_ladder(case, result))


def test_the_ladder_that_there_is_needs_no_word(result):
    assert lines(result) == ""


def test_other_rungs_or_other_options_are_told(result):
    rungs = result["job"]["result"]["rungs_tried"]
    rungs[0] = {"unlearner": {"name": "fine_tune", "epochs": 5, "lr": 0.02}}
    assert "`records_500` was measured with an earlier ladder" in lines(result)
    assert "schedule one_cycle" in lines(result)
    assert lines(result, "class_truck_ssd_only") == ""


def test_the_page_in_the_repository_says_so():
    assert real_cifar.TABLE.read_text() == real_cifar.table()

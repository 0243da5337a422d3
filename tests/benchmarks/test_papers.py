"""The study of the papers: order of the cells, verdicts, and a page from what is there."""

import json
from itertools import product

import numpy as np
import pytest
import torch

from benchmarks import hardware, study
from benchmarks.papers import cells as measured
from benchmarks.papers.cells import BEFORE, METHODS, RETRAIN, SPECIAL, Job, mia_efficacy, read
from benchmarks.papers.claims import CLAIMS, Claim, Reading, gap, judged, step_cost
from benchmarks.papers.page import page, results
from benchmarks.papers.pictures import draw
from benchmarks.papers.plan import EXTRAS, PAPERS, SEEDS, jobs, shown
from benchmarks.papers.scenarios import SCENARIOS
from benchmarks.papers.transfers import harmful
from core.data import Records
from core.ladder import parse
from core.recipe import Recipe
from core.transfer import Influence

GOLD = {"UA": 1.0, "RA": 1.0, "TA": 0.7, "MIA": 1.0, "AUC": 0.5}


def cell(cpu=10.0, **figures):
    return GOLD | {"ASR": 0.9, "cpu_seconds": cpu, "failure": None} | figures


def transferred(**figures):
    base = {"before": 0.7, "unlearned": 0.7, "retrained": 0.7, "dropped": [1], "failure": None}
    spent = {"ranking": 20.0, "unlearned": 4.0, "retrained": 10.0}
    return base | {f"{name} cpu_seconds": value for name, value in spent.items()} | figures


def everything(seeds=(1,)):
    """Return a cell for every key; all are equal to the oracle."""
    keys = {(job.scenario, job.method) for job in jobs()}
    return {
        (*key, seed): (transferred() if key[0] == "transfer" else cell())
        | {"seed": seed, "hardware": "one core"}
        for key, seed in product(keys, seeds)
    }


def verdict(start, scenario, changed, seeds=(1,)):
    part = f", {scenario} (rule" if scenario else ""
    [claim] = [each for each in CLAIMS if each.says.startswith(start) and part in each.says]
    cells = {(*key, 1): value for key, value in changed.items()}
    return judged(claim, everything() | cells, seeds).verdict == "reproduced"


def problem(scenario):
    numbers = torch.arange(8)
    records = Records(images=torch.zeros(8, 2), labels=numbers % 2, rows=numbers)
    recipe = Recipe.model_validate(
        {"epochs": 1, "batch_size": 4, "optimizer": {"name": "sgd", "lr": 0.1}}
    )
    world = study.World("tiny", records, records, records, recipe)
    return measured._problem(SCENARIOS[scenario], world, numbers < 4, torch.nn.Linear(2, 2), 1)


def test_a_gap_is_the_mean_of_four_distances_in_points():
    found = {("class", RETRAIN): GOLD, ("class", "FT"): cell(UA=0.2, TA=0.8, MIA=0.9)}
    assert gap(found, "class", "FT") == pytest.approx((80 + 0 + 10 + 10) / 4)


def test_what_is_not_measured_is_said_with_its_number():
    found = judged(CLAIMS[0], {}, SEEDS)
    assert (found.verdict, found.line) == ("not measured yet", "9 cells are missing")


def test_a_claim_has_to_hold_for_every_measured_seed():
    key = ("class", "FT")
    claim = Claim("p", "s", (key,), lambda f: Reading(f[key]["UA"] > 0, {"UA": f[key]["UA"]}))
    cells = {(*key, seed): cell(UA=ua) for seed, ua in ((1, 0.5), (2, 0.0))}
    partly = judged(claim, cells, SEEDS)
    assert partly.verdict == "not reproduced"
    assert partly.line == "holds for 1 of 2 seeds: UA 0.2 +- 0.4; 1 cells are missing"
    assert judged(claim, cells, (1, 3)).verdict == "holds so far (1 of 2 seeds)"
    assert judged(claim, cells, (1,)).verdict == "reproduced"


def test_poison_is_forgotten_for_its_purpose():
    assert problem("backdoor").purpose == "poison_removal"
    assert problem("random").purpose == "erasure"


def test_no_method_measured_on_poison_stops_early():
    """So that no figure depends on the purpose."""
    poisoned = {name for name, scenario in SCENARIOS.items() if scenario.poisoned}
    of_poison = {(job.scenario, job.method) for job in jobs() if job.scenario in poisoned}
    for key in of_poison - {(s, m) for s in poisoned for m in (BEFORE, RETRAIN)}:
        options = parse(METHODS[key[1]] | SPECIAL.get(key, {}))
        assert options.name in ("fine_tune", "l1_sparse") or options.stop is False


def test_gaps_are_to_the_mean_oracle():
    [claim] = [c for c in CLAIMS if c.says.startswith("EUPMU") and ", random (rule" in c.says]
    cells = {("random", RETRAIN, seed): cell(UA=ua) for seed, ua in ((1, 0.2), (2, 0.4))}
    cells |= {("random", "linear", 1): cell(UA=0.2), ("random", "EUPMU", 1): cell(UA=0.3)}
    found = judged(claim, cells, (1,))
    assert found.verdict == "reproduced"
    assert "gap linear 2.5, gap EUPMU 0.0" in found.line


@pytest.mark.parametrize(
    ("ua", "ta", "expected"), [(0.8, 0.68, True), (0.7, 0.7, False), (1.0, 0.6, False)]
)
def test_the_lift_is_as_large_as_published_and_keeps_utility(ua, ta, expected):
    changed = {("class", "FT"): cell(UA=0.0), ("class", "l1-sparse"): cell(UA=ua, TA=ta)}
    assert verdict("l1-sparse", None, changed) == expected


@pytest.mark.parametrize("scenario", ["class", "random"])
def test_sparsity_is_judged_by_the_mean_over_methods(scenario):
    changed = {(scenario, "FT"): cell(UA=0.0), (f"{scenario}-sparse", "GA"): cell(UA=0.5)}
    assert verdict("Sparsity", scenario, changed)
    changed |= {(f"{scenario}-sparse", "IU"): cell(UA=0.5)}
    assert not verdict("Sparsity", scenario, changed)


@pytest.mark.parametrize(("method", "words"), [("SSD", "SSD is"), ("SSD guarded", "SSD (")])
def test_dampening_competes_with_the_middle_of_three(method, words):
    others = {("vit-class", "FT"): cell(UA=0.0), ("vit-class", "amnesiac"): cell(UA=0.5)}
    assert verdict(words, "vit-class", others | {("vit-class", method): cell(UA=0.5)})
    assert not verdict(words, "vit-class", others | {("vit-class", method): cell(UA=0.4)})


@pytest.mark.parametrize(("ua", "expected"), [(0.03, True), (0.06, False)])
def test_untouched_is_a_tenth_of_the_way(ua, expected):
    changed = {("random", RETRAIN): cell(UA=0.41), ("random", BEFORE): cell(UA=0.01)}
    assert verdict("Naive", "random", changed | {("random", "FT"): cell(UA=ua)}) == expected


def test_both_forms_of_the_regulariser_have_to_halve_the_gap():
    changed = {("class", "FT"): cell(UA=0.0), ("class", "KL-FT"): cell(UA=0.6)}
    assert verdict("The discriminative", "class", changed)
    assert not verdict("The discriminative", "class", changed | {("class", "ICE-FT"): cell(UA=0.4)})


def test_surgery_has_to_be_nearer_to_the_oracle_than_the_weighted_sum():
    assert not verdict("EUPMU: implicit surgery gives", "class", {})
    assert verdict("EUPMU: implicit surgery gives", "class", {("class", "linear"): cell(TA=0.6)})


def test_surgery_is_judged_again_with_the_forget_loss_of_its_authors():
    [claim] = [claim for claim in CLAIMS if ("class", "EUPMU RL") in claim.needs]
    worse = {("class", "linear RL", 1): cell(TA=0.6)}
    assert judged(claim, everything(), (1,)).verdict == "not reproduced"
    assert judged(claim, everything() | worse, (1,)).verdict == "reproduced"


def test_a_sparse_model_is_cleansed_where_attacks_fail_and_accuracy_stays():
    clean = {("backdoor-sparse", method): cell(ASR=0.1) for method in ("FT", "GA")}
    assert verdict("Unlearning poisoned", None, clean)
    assert not verdict("Unlearning poisoned", None, {})
    broken = clean | {("backdoor-sparse", "GA"): cell(ASR=0.1, TA=0.6)}
    assert not verdict("Unlearning poisoned", None, broken)


@pytest.mark.parametrize(
    ("figures", "expected"),
    [
        ({}, True),
        ({"retrained": 0.72}, False),
        ({"before": 0.71}, False),
        ({"unlearned cpu_seconds": 6.0}, False),
    ],
)
def test_transfer_has_to_be_as_good_in_half_the_time(figures, expected):
    changed = {("transfer", "l1-sparse"): transferred(**figures)}
    assert verdict("Unlearning harmful", None, changed) == expected


def test_the_cost_of_a_step_is_judged_on_every_network():
    def surgery(slow):
        rounds = {"plain": [1.0, 2.0, 1.0], "implicit": [1.2, slow, 1.2]}
        return {"raw": {"a": {"seconds_per_step": rounds}}}

    assert step_cost(None).verdict == "not measured yet"
    assert step_cost(surgery(9.0)).verdict == "reproduced"
    slow = surgery(9.0)
    slow["raw"]["b"] = {"seconds_per_step": {"plain": [1.0], "implicit": [1.4]}}
    assert step_cost(slow).verdict == "not reproduced"


def test_claims_of_the_first_seed_come_first_and_the_rest_last():
    planned = jobs()
    assert len({job.path for job in planned}) == len(planned)
    needed = {key for claim in CLAIMS for key in claim.needs}
    phases = [
        job.seed if (job.scenario, job.method) in needed else len(SEEDS) + job.seed
        for job in planned
    ]
    assert phases == sorted(phases)
    assert set(phases) == set(range(1, 2 * len(SEEDS) + 1))
    assert {job.seed for job in jobs((1,))} == {1}


def test_every_cell_can_be_run_and_is_shown():
    on_show = {(s, m) for paper in PAPERS.values() for s, methods in shown(paper) for m in methods}
    for job in jobs((1,)):
        if job.scenario == "transfer":
            continue
        assert job.scenario in SCENARIOS
        assert (job.scenario, job.method) in on_show
        if job.method not in (BEFORE, RETRAIN):
            parse(METHODS[job.method] | SPECIAL.get((job.scenario, job.method), {}))
    assert set(EXTRAS).isdisjoint(key for claim in CLAIMS for key in claim.needs)


def test_harmful_classes_are_those_whose_loss_helps():
    assert harmful([Influence(4, 0.3), Influence(1, 0.2), Influence(0, 0.1)]) == [1, 4]
    assert harmful([Influence(4, 0.3), Influence(1, -0.2)]) == [4]
    assert harmful([Influence(4, -0.1), Influence(1, -0.2)]) == [4]


def test_mia_efficacy_is_the_share_taken_for_never_seen():
    def margins(forget):
        known = np.full(40, 6.0)
        return {"retain_margin": known, "judging_margin": -known, "forget_margin": forget}

    forget = np.concatenate([np.full(10, 6.0), np.full(30, -6.0)])
    assert mia_efficacy(margins(forget)) == 0.75


def test_finished_cells_are_read_and_others_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(hardware, "RESULTS", tmp_path)
    (tmp_path / "papers").mkdir()
    here, plus, missing = (
        Job("random", "NegGrad+", 2),
        Job("random", "FT", 2),
        Job("class", "FT", 1),
    )
    for job in (here, plus):
        job.path.write_text(json.dumps({"method": job.method}))
    found = read([here, plus, missing])
    assert found == {("random", m, 2): {"method": m} for m in ("NegGrad+", "FT")}


def test_a_page_without_cells_says_what_is_missing(tmp_path):
    assert draw({}, tmp_path) == {}
    text = page({}, results({}, None), {}, jobs()[:7])
    assert text.count("**not measured yet**") == len(CLAIMS) + 1
    assert "Missing cells: 7" in text


def test_pictures_are_drawn_from_what_is_there_and_linked(tmp_path):
    full = everything((1, 2))
    order = torch.randperm(len(full), generator=torch.Generator().manual_seed(0))[:60]
    part = {key: full[key] for key in (list(full)[at] for at in order.tolist())}
    drawn = draw(part, tmp_path)
    assert len(drawn) > 2
    text = page(part, results(part, None), drawn, [])
    for name in drawn.values():
        assert f"]({name})" in text
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_tables_show_means_failures_and_other_options():
    cells = everything(SEEDS)
    cells["class", "SSD guarded", 1] |= {"failure": "infeasible: nothing found"}
    cells["vit-class", "SSD", 2] |= {"UA": 0.7, "cpu_seconds": 1.0}
    text = page(cells, results(cells, None), {}, [])
    assert "| SSD guarded (infeasible: nothing found) | 3 | 100.0 +- 0.0 |" in text
    row = next(line for line in text.splitlines() if line.startswith("| SSD (alpha 5.0) "))
    assert row == (
        "| SSD (alpha 5.0) | 3 | 90.0 +- 17.3 | 100.0 +- 0.0 | 70.0 +- 0.0 | 100.0 +- 0.0 | "
        "2.5 +- 4.3 | 50.0 +- 0.0 | 7 | 0.70 |"
    )
    assert "| 3 | 1 | 70.0 | 70.0 | 70.0 | 20 | 4 | 10 |" in text


def test_a_page_names_every_machine_that_measured():
    cells = everything()
    cells["class", "FT", 1] |= {"hardware": "another core"}
    assert "Hardware: another core; or one core." in page(cells, results(cells, None), {}, [])


def test_a_known_oracle_was_measured_where_it_was_trained(tmp_path, monkeypatch):
    roles = {"forget": 4, "retain": 8, "judging": 8}
    arrays = {f"{role}_label": np.arange(n, dtype=np.uint8) % 2 for role, n in roles.items()}
    arrays |= {f"{role}_margin": np.linspace(-1, 1, n) for role, n in roles.items()}
    arrays |= {f"{role}_right": np.ones(n, dtype=bool) for role, n in roles.items()}
    arrays |= {"seconds": np.asarray(1.0), "cpu_seconds": np.asarray(1.0)}
    np.savez(tmp_path / "oracle.npz", **arrays, hardware=np.asarray("another core"))
    monkeypatch.setattr(measured.oracles, "path", lambda *_: tmp_path / "oracle.npz")
    job = Job("random", RETRAIN, 1)
    kept = study.cell(tmp_path / "cell.json", lambda: job.run(tmp_path))
    assert kept["hardware"] == "another core"

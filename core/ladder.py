"""Try rung after rung on copies of the parent; publish the first one that may be published."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, cast

from torch import nn

from . import importance, networks, roles, stored, weights
from .bank import load as load_bank
from .checkpoints import Keeper
from .data import Preprocessing, Records
from .determinism import fresh_seed
from .device import choose
from .errors import InvalidInput
from .findings import Outcome, Rung
from .networks.ensemble import Ensemble
from .policies import Policy, Purpose, Selector
from .problem import BatchNormPolicy
from .recipe import Recipe
from .registry import Config
from .report import Report, no_report
from .rungs import Case, attempt, reason_to_skip
from .team import team_size
from .unlearners import UnlearnerOptions, unlearners

WEIGHTS_FILE = "model.safetensors"
IMPORTANCE_FILE = "importance.safetensors"

Refusal = Literal["ladder_exhausted", "evidence_insufficient"]


def unlearn(
    *,
    out: Path,
    weights: Path,
    architecture: dict[str, Any],
    preprocessing: dict[str, Any],
    dataset: Path | None,
    holdout: Path | None,
    recipe: dict[str, Any] | None,
    excluded: list[int],
    split_key: str,
    importance: Path | None,
    bank: Path | None = None,
    requests: dict[str, list[int]],
    earlier: dict[str, list[int]] | None = None,
    selector: Selector,
    forget_classes: list[int],
    policy: Policy,
    ladder: list[dict[str, Any]],
    seed: int,
    batch_size: int,
    bn_policy: BatchNormPolicy,
    time_limit_seconds: float,
    purpose: Purpose = "erasure",
    forget_samples: Path | None = None,
    device: str = "auto",
    processes: int = 1,
    report: Report = no_report,
    keeper: Keeper | None = None,
) -> dict[str, Any]:
    """Climb the ladder for one job.

    Args:
        out: folder for ``model.safetensors``, written only if a rung may be published.
        weights: of the parent.
        architecture: name and options of the network.
        preprocessing: how stored values become network input.
        dataset: canonical file of the training data.
        holdout: canonical file of never-seen data; where it is ``dataset``, its holdout split.
        recipe: how the parent was trained.
        excluded: training rows that were forgotten before; they take no part.
        split_key: halves the holdout into tuning and judging.
        importance: stored importance; used only if it was made for these weights.
        bank: margins of reference models, which attacks on single records compare with.
        requests: request id -> training rows to forget.
        earlier: id of an applied request -> training rows it had forgotten, part of ``excluded``;
            the published rung tells how they fare.
        selector: whether the requests name a class or records.
        forget_classes: classes that they name.
        policy: decides which verdicts a publication needs.
        ladder: configurations of unlearners, in the order in which to try them.
        seed: of everything random.
        batch_size: records per batch outside of recipes.
        bn_policy: what becomes of running statistics.
        time_limit_seconds: wall-clock limit of the job; a rung that exceeds it fails.
        purpose: of the requests; decides when enough is forgotten.
        forget_samples: canonical file of the records to forget, where there is no ``dataset``; the
            rows of ``requests`` are then its rows, and nothing is retained.
        device: where to compute.
        processes: how many may share a training; 0 is one for each accelerator.
        report: told about progress.
        keeper: keeps the state of long trainings and the rungs before them, and has what an
            interrupted attempt at the same job left.

    Returns:
        outcome, index of the published rung or None, all rungs as JSON, file name and digest of
        the new weights or None, the reason, and where nothing was published its code; with
        ``forget_samples`` also the file name of the importance that is left, and its summary, both
        None where none is; the reason then says so.

    Raises:
        InvalidInput: if weights, data, recipe or ladder can't be used.
        Interrupted: if ``keeper`` was asked to end, and has the state.
    """
    start = time.monotonic()
    report("resolving", 0.0, None, None, {})
    network = networks.parse(architecture)
    parent = networks.build(network, seed)
    load_finite(weights, parent)
    known = roles.read(
        dataset=dataset,
        holdout=holdout,
        preprocessing=Preprocessing.model_validate(preprocessing),
        excluded=excluded,
        split_key=split_key,
        forgotten=earlier,
        samples=forget_samples,
    )
    forget, retain = known.split(row for rows in requests.values() for row in rows)
    if forget_samples is not None:
        _check_samples(forget, known.tuning or known.judging, networks.num_classes(network))
    case = Case(
        parent=parent.eval(),
        fresh=_fresh(network, parent),
        forget=forget,
        retain=retain,
        tuning=known.tuning,
        judging=known.judging,
        recipe=None if recipe is None else Recipe.model_validate(recipe),
        importance=_matching(importance, parent),
        requests=requests,
        selector=selector,
        forget_classes=frozenset(forget_classes),
        num_classes=networks.num_classes(network),
        policy=policy,
        seed=seed,
        batch_size=batch_size,
        bn_policy=bn_policy,
        device=choose(device),
        network=network.name,
        purpose=purpose,
        deadline=start + time_limit_seconds,
        report=report,
        bank=None if bank is None else load_bank(bank),
        keeper=keeper,
        earlier=known.earlier,
        processes=team_size(processes, choose(device)),
        description=network,
    )
    rungs, model = climb(case, [parse(raw) for raw in ladder])
    result = _result(case, rungs, model, out)
    if forget_samples is not None:
        result |= {"importance": None, "importance_summary": None}
        if model is not None:
            result |= _keep_importance(case, model, out, result["reason"])
    return result


def climb(case: Case, ladder: list[UnlearnerOptions]) -> tuple[list[Rung], nn.Module | None]:
    """Try the rungs in order until one may be published; return all that were tried."""
    tried = _tried_before(case, ladder)
    for index, config in enumerate(ladder[len(tried) :], len(tried)):
        if case.keeper is not None:
            case.keeper.turn_to(f"{case.keeper.notes['job']} rung {index}")
        exact = [later for later in ladder[index + 1 :] if later.is_exact]
        follows = any(reason_to_skip(case, later) is None for later in exact)
        rung, model = attempt(case, config, index, len(ladder), exact_follows=follows)
        tried.append(rung)
        if model is not None:
            return tried, model
        if case.keeper is not None:
            case.keeper.notes = _notes(case, ladder, tried)
    return tried, None


def _tried_before(case: Case, ladder: list[UnlearnerOptions]) -> list[Rung]:
    """Return the rungs that an interrupted attempt at the same job has behind it."""
    if case.keeper is None:
        return []
    found = case.keeper.notes
    if found.get("job") != _notes(case, ladder, [])["job"]:
        case.keeper.notes = _notes(case, ladder, [])
        return []
    return [Rung.model_validate(raw) for raw in found["rungs"]]


def _notes(case: Case, ladder: list[UnlearnerOptions], tried: list[Rung]) -> dict[str, Any]:
    """The rungs behind it, and a digest of all that decided about them."""
    judging = None if case.judging is None else case.judging.rows.tolist()
    retain = None if case.retain is None else case.retain.rows.tolist()
    deciding: list[Any] = [
        weights.digest(case.parent),
        case.forget.rows.tolist(),
        retain,
        judging,
        [config.model_dump(mode="json") for config in ladder],
        case.requests,
        None if case.recipe is None else case.recipe.model_dump(mode="json"),
        case.policy,
        case.purpose,
        case.seed,
        case.batch_size,
        case.bn_policy,
    ]
    digest = hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()
    return {"job": digest, "rungs": [rung.model_dump(mode="json") for rung in tried]}


def parse(raw: dict[str, Any]) -> UnlearnerOptions:
    """Read the configuration of an unlearner, with its defaults."""
    return cast("UnlearnerOptions", unlearners.parse(raw))


def load_finite(path: Path, model: nn.Module) -> None:
    """Load weights and refuse NaN and infinity.

    Raises:
        InvalidInput: ``model_non_finite``, or what ``weights.load`` raises.
    """
    weights.load(path, model)
    if broken := weights.non_finite(model):
        raise InvalidInput(
            "model_non_finite", f"{len(broken)} tensors hold NaN or infinity, such as {broken[0]}"
        )


def _fresh(network: Config, parent: nn.Module) -> Callable[[int], nn.Module]:
    """Build new networks that share nothing with the parent, even if that was retrained likewise.

    What a training never moves, such as a part without use, would be as it was otherwise. Members
    of an ensemble begin as in ``sisa.train`` with the same seed: they can be compared bit by bit.
    """
    if isinstance(parent, Ensemble):
        return lambda seed: networks.build(network, seed)
    origin = weights.digest(parent)
    return lambda seed: networks.build(network, fresh_seed(seed, origin))


def _matching(path: Path | None, parent: nn.Module) -> importance.Importance | None:
    """Stored importance, if it was made for these weights; unlearners note what they used."""
    if path is None:
        return None
    found = importance.load(path)
    return found if found.weights == weights.digest(parent) else None


def _check_samples(forget: Records, others: Records | None, num_classes: int) -> None:
    """Refuse samples that can't be of the model's kind; training records were checked before."""
    if int(forget.labels.max()) >= num_classes:
        raise InvalidInput("dataset_values_invalid", "a sample has a label the network has not")
    if others is not None and forget.images.shape[1:] != others.images.shape[1:]:
        raise InvalidInput("dataset_values_invalid", "samples have another shape than the holdout")


def _keep_importance(case: Case, model: nn.Module, out: Path, reason: str) -> dict[str, Any]:
    """Write the importance of the records that stay; without them it can't be measured again.

    What can't be subtracted from would go on telling of the records that were forgotten, so that
    none is left then.
    """
    full = case.importance
    left = None if full is None else _left_of(case, full, model)
    if left is None:
        said = "no stored importance is left for later requests"
        if full is not None:
            said = f"the records can't be taken out of {full.estimator}: {said}"
        return {"reason": f"{reason}; {said}"}
    importance.save(left, out / IMPORTANCE_FILE)
    return {"importance": IMPORTANCE_FILE, "importance_summary": left.summary()}


def _left_of(
    case: Case, full: importance.Importance, model: nn.Module
) -> importance.Importance | None:
    """The importance of the records that stay; None where it can't be told."""
    if not stored.is_separable(full):
        return None
    of_forget = importance.estimate(
        case.parent,
        case.forget,
        full.estimator,
        batch_size=case.batch_size,
        device=case.device,
        precision=full.precision,
    )
    return stored.without(full, of_forget, model)


def _result(case: Case, rungs: list[Rung], model: nn.Module | None, out: Path) -> dict[str, Any]:
    case.report("publishing", 0.0, None, None, {})
    digest = None if model is None else weights.save(model.cpu(), out / WEIGHTS_FILE)
    case.report("publishing", 1.0, 0.0, None, {})
    outcome: Outcome = "not_erased"
    if model is not None:
        outcome = "erased_exact" if rungs[-1].exact else "erased_approximate"
    code = None if model is not None else _refusal(rungs)
    return {
        "outcome": outcome,
        "published": rungs[-1].index if model is not None else None,
        "rungs": [rung.model_dump(mode="json") for rung in rungs],
        "weights": None if model is None else WEIGHTS_FILE,
        "digest": digest,
        "code": code,
        "reason": rungs[-1].reason if model is not None else _why_not(rungs),
    }


def _refusal(rungs: list[Rung]) -> Refusal:
    """Whether rungs failed, or evidence was missing for all that could be tried."""
    failed = any(
        rung.status == "errored"
        or any(gate.verdict == "failed" and gate.role != "reported" for gate in rung.gates)
        for rung in rungs
    )
    return "ladder_exhausted" if failed else "evidence_insufficient"


def _why_not(rungs: list[Rung]) -> str:
    if not rungs:
        return "the policy leaves no rung to try for this model"
    return "; ".join(f"{rung.unlearner['name']} {rung.status}: {rung.reason}" for rung in rungs)

"""Real input through the public API: a memorised ResNet-18 on CIFAR-10, three deletion requests.

Each case ends in a new version or an honest refusal. ``class_truck`` and ``records_500`` start from
the checkpoint as it is; ``records_3`` is the second request on the model of ``class_truck``, where
that runs too. One JSON per case under ``benchmarks/results/real_cifar/``; a case whose file is
there is skipped, so an interrupted run goes on where it stopped. The table is rebuilt from them.
``class_truck_ssd_only`` asks for one approximate unlearner, so nothing is retrained after it.

    python -m benchmarks.real_cifar [--data FOLDER] [--only CASE ...] [--table]
"""

from __future__ import annotations

import json
import secrets
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from app.settings import Settings
from benchmarks.hardware import RESULTS, describe, need, parser
from core.ladder import parse
from core.policies import Situation, ladder
from worker.demo.service import Json, Service, embedded

FOLDER = RESULTS / "real_cifar"
TABLE = RESULTS / "real_cifar.md"
CLASSES = [
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
]
PREPROCESSING = {
    "height": 32,
    "width": 32,
    "channels": 3,
    "scale": 1 / 255,
    "mean": [0.4914, 0.4822, 0.4465],
    "std": [0.2470, 0.2435, 0.2616],
}
RECIPE = {
    "epochs": 15,
    "batch_size": 256,
    "optimizer": {
        "name": "sgd",
        "lr": 0.1,
        "momentum": 0.9,
        "nesterov": True,
        "weight_decay": 5e-4,
    },
    "schedule": {"name": "one_cycle", "warmup": 0.2},
    "precision": "bf16",
    "seed": 1,
}
CASES = ("class_truck", "records_3", "records_500", "class_truck_ssd_only")


def main() -> None:
    """Run the missing cases, then rebuild the table."""
    arguments = parser(__doc__)
    arguments.add_argument("--only", nargs="*", choices=CASES, default=list(CASES))
    arguments.add_argument("--table", action="store_true", help="only rebuild the table")
    options = arguments.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    missing = [case for case in options.only if not (FOLDER / f"{case}.json").exists()]
    if missing and not options.table:
        run(options.data, missing)
    TABLE.write_text(table())
    print(TABLE.read_text())


def run(data: Path, cases: list[str]) -> None:
    """Start the embedded service in a fresh folder and run ``cases`` one after the other."""
    weights, train, test = need(
        data, "resnet18-cifar10.safetensors", "cifar10-train.parquet", "cifar10-test.parquet"
    )
    ids: list[str] = pq.read_table(train, columns=["id"])["id"].to_pylist()
    drawn = np.random.default_rng(0).permutation(len(ids))
    selectors: dict[str, Json] = {
        "class_truck": {"type": "class", "class": "truck"},
        "records_500": _records(ids, drawn[:500]),
        "records_3": _records(ids, drawn[500:503]),
        "class_truck_ssd_only": {"type": "class", "class": "truck"},
    }
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(data_dir=Path(folder) / "service")
        with embedded(settings) as service:
            datasets = _datasets(service, train, test)
            models: dict[str, str] = {}
            for case in cases:
                before = "class_truck" if case == "records_3" else None
                model = models.get(before or "") or _model(service, weights, datasets)
                models[case] = model
                unlearner = {"name": "ssd"} if case == "class_truck_ssd_only" else "auto"
                result = _case(service, model, selectors[case], unlearner)
                (FOLDER / f"{case}.json").write_text(json.dumps(result, indent=1))


def _records(ids: list[str], rows: np.ndarray) -> Json:
    return {"type": "record_ids", "record_ids": [ids[row] for row in rows]}


def _datasets(service: Service, train: Path, test: Path) -> tuple[str, str]:
    """Upload both splits; the test file as a dataset of its own, used as holdout."""
    made = []
    for path, name in ((train, "cifar10-train"), (test, "cifar10-test")):
        start = time.monotonic()
        body = service.upload("/datasets", path, {"name": name, "class_names": CLASSES})
        service.wait_ready(f"/datasets/{body['id']}", lambda found: str(found["status"]))
        print(f"{name}: uploaded and indexed in {time.monotonic() - start:.1f} s", flush=True)
        made.append(str(body["id"]))
    return made[0], made[1]


def _model(service: Service, weights: Path, datasets: tuple[str, str]) -> str:
    """Register the checkpoint as it is and wait until it is prepared."""
    start = time.monotonic()
    metadata = {
        "name": "resnet18-cifar10",
        "architecture": {"name": "torchvision/resnet18", "num_classes": 10},
        "preprocessing": PREPROCESSING,
        "recipe": RECIPE,
        "dataset": datasets[0],
        "holdout": datasets[1],
    }
    model = str(service.upload("/models", weights, metadata)["id"])
    service.wait_ready(f"/models/{model}", lambda body: str(body["latest_version"]["status"]))
    print(f"{model}: uploaded and prepared in {time.monotonic() - start:.1f} s", flush=True)
    return model


def _case(service: Service, model: str, selector: Json, unlearner: Json | str) -> Json:
    """Send the request, follow the job, and keep everything that was measured."""
    start = time.monotonic()
    body = {"model": model, "forget": selector, "policy": "standard", "unlearner": unlearner}
    request = service.forget(secrets.token_hex(8), body)
    phase = ""
    job: Json = {}
    for job in service.follow(request["job_id"], interval=2.0):
        at = f"{job['rung'] and job['rung']['method']} {job['phase']}"
        if at != phase:
            print(f"{request['id']} {at} {job['progress']:.2f}", flush=True)
            phase = at
    kept = {key: value for key, value in selector.items() if key != "record_ids"}
    return {
        "hardware": describe(),
        "selector": kept,
        "num_records": request["counts"]["num_records"],
        "seconds": time.monotonic() - start,
        "job": job,
        "version": service.get(f"/models/{model}/versions/@serving")["number"],
        "versions": [
            {key: version[key] for key in ("number", "status", "outcome", "digest")}
            for version in service.get(f"/models/{model}/versions")["data"]
        ],
    }


def table() -> str:
    """Return the Markdown table of all cases that were run; name the missing ones."""
    lines = [
        "# ResNet-18 on CIFAR-10, memorised, through the public API",
        "",
        "`python -m benchmarks.real_cifar`; policy `standard`; never-seen data is the judging half",
        "of the 10 000 test images. AUC is the membership attack on margins: 0.5 means nothing.",
        "",
    ]
    found = {case: FOLDER / f"{case}.json" for case in CASES}
    results = {case: json.loads(path.read_text()) for case, path in found.items() if path.exists()}
    if results:
        lines += [f"Hardware: {next(iter(results.values()))['hardware']}", ""]
    lines += [line for case, result in results.items() for line in _of_another_ladder(case, result)]
    lines += [
        "| case | records | rung | status | seconds | forget acc. | holdout acc. | AUC | gates |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for case, result in results.items():
        for row in _rows(result):
            lines.append(f"| {case} | {result['num_records']} | {' | '.join(row)} |")
    lines += ["", "Outcomes:", ""]
    for case, result in results.items():
        lines.append(f"- `{case}`: {_outcome(result)}")
    missing = [case for case in CASES if case not in results]
    if missing:
        lines += ["", f"Not run yet: {', '.join(missing)}."]
    return "\n".join(lines) + "\n"


def _of_another_ladder(case: str, result: Json) -> Iterator[str]:
    """Say that a case climbed other rungs than it would with the ladder that there is."""
    if case == "class_truck_ssd_only":
        return
    there = [parse(raw).model_dump(mode="json") for raw in ladder(_situation(result))]
    tried = [rung["unlearner"] for rung in (result["job"]["result"] or {}).get("rungs_tried", [])]
    for index, rung in enumerate(tried):
        expected = there[index] if index < len(there) else {}
        if any(expected.get(option) != value for option, value in rung.items()):
            rungs = ", ".join(config["name"] for config in there)
            first = ", ".join(f"{key} {value}" for key, value in there[0].items() if value)
            yield (
                f"**`{case}` was measured with an earlier ladder** and says nothing about the one "
                f"that there is: {rungs} (first rung: {first})."
            )
            yield ""
            return


def _situation(result: Json) -> Situation:
    is_class = result["selector"]["type"] == "class"
    return Situation(
        policy="standard",
        selector="class" if is_class else "records",
        num_forget=result["num_records"],
        num_train=50_000,
        has_recipe=True,
        has_holdout=True,
        has_importance=True,
        has_batchnorm=True,
        modality="image",
        architecture="torchvision/resnet18",
        epochs=RECIPE["epochs"],
    )


def _rows(result: Json) -> Iterator[list[str]]:
    """One row per rung: what changed, and what the gates said."""
    for rung in (result["job"]["result"] or {}).get("rungs_tried", []):
        gates = "; ".join(f"{gate['name']} {gate['verdict']}" for gate in rung["gates"])
        yield [
            f"{rung['index'] + 1} {rung['unlearner']['name']}",
            rung["status"],
            f"{rung['seconds']:.0f} + {rung['audit_seconds']:.0f}",
            _pair(rung, "accuracy", "forget"),
            _pair(rung, "accuracy", "holdout"),
            _pair(rung, "auc_margin", "forget"),
            gates or rung["reason"],
        ]


def _pair(rung: Json, measure: str, scope: str) -> str:
    """``before -> after`` of one measure, or a dash."""
    for finding in rung["findings"]:
        if (finding["measure"], finding["scope"]) == (measure, scope):
            before: Any = finding["reference"]
            after: Any = finding["value"]
            parts = ["?" if value is None else f"{value:.3f}" for value in (before, after)]
            return " -> ".join(parts)
    return "-"


def _outcome(result: Json) -> str:
    """Outcome, reason and versions of one case, in a sentence."""
    job = result["job"]
    ending = (job["result"] or {}).get("outcome") or job["error"]
    reasons = "; ".join(
        f"{rung['unlearner']['name']}: {rung['reason']}"
        for rung in (job["result"] or {}).get("rungs_tried", [])
    )
    chain = ", ".join(f"v{v['number']} {v['status']}" for v in result["versions"])
    return f"**{ending}** in {result['seconds']:.0f} s ({reasons}). Versions: {chain}."


if __name__ == "__main__":
    main()

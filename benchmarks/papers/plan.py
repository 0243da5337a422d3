"""What is measured in which order, and which of it each paper's tables and picture show."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.papers.cells import BEFORE, RETRAIN, Job
from benchmarks.papers.claims import CLAIMS

SEEDS = (1, 2, 3)


@dataclass(frozen=True)
class Paper:
    """What is shown under one heading."""

    title: str
    scenarios: tuple[str, ...]
    methods: tuple[str, ...]


PAPERS = {
    "sparsity": Paper(
        "Model sparsity can simplify machine unlearning (arXiv:2304.04934)",
        ("class", "class-sparse", "random", "random-sparse"),
        ("FT", "GA", "IU", "FF", "l1-sparse"),
    ),
    "dampening": Paper(
        "Selective synaptic dampening (arXiv:2308.07707)",
        ("class", "subclass", "vit-class", "vit-subclass"),
        ("FT", "bad teacher", "amnesiac", "UNSIR", "SSD", "SSD adaptive", "SSD guarded"),
    ),
    "fine-tuning": Paper(
        "Why fine-tuning struggles with forgetting (arXiv:2410.03833)",
        ("class", "random"),
        ("FT", "CE-FT", "ICE-FT", "KL-FT", "RBM erase"),
    ),
    "surgery": Paper(
        "Utility-preserving unlearning by implicit gradient surgery (arXiv:2510.22124)",
        ("class", "random"),
        ("linear", "PCGrad", "FAMO", "UNGrad", "EUPMU", "linear RL", "EUPMU RL"),
    ),
    "baselines": Paper(
        "Further baselines",
        ("random",),
        ("MUNBa", "SalUn", "NegGrad+", "SCRUB", "MSG", "DELETE"),
    ),
    "applications": Paper(
        "Two applications of sparsity: trojan cleanse and transfer (arXiv:2304.04934)",
        ("backdoor", "backdoor-sparse"),
        ("FT", "GA", "l1-sparse"),
    ),
}
EXTRAS = (
    ("class-sparse", BEFORE),
    ("random-sparse", BEFORE),
    ("backdoor", "l1-sparse"),
    ("random", "l1-sparse"),
    ("class", "FF"),
    ("class", "UNSIR"),
    ("class", "SSD adaptive"),
    ("random", "RBM erase"),
    ("random", "CE-FT"),
    ("random", "UNGrad"),
    ("random", "PCGrad"),
    ("random", "FAMO"),
    *(("random", method) for method in PAPERS["baselines"].methods),
)
"""What no claim needs; measured after all seeds of what they do."""


def jobs(seeds: tuple[int, ...] = SEEDS) -> list[Job]:
    """Every cell once: the claims of the first seed, of the others, and then the rest."""
    claims = [key for claim in CLAIMS for key in claim.needs]
    every = [Job(*key, seed) for keys in (claims, EXTRAS) for seed in seeds for key in keys]
    return list(dict.fromkeys(every))


def shown(paper: Paper) -> list[tuple[str, list[str]]]:
    """Scenarios of a paper with those methods that are measured there, oracle and parent first."""
    measured = {(job.scenario, job.method) for job in jobs()}
    methods = (RETRAIN, BEFORE, *paper.methods)
    return [(s, [m for m in methods if (s, m) in measured]) for s in paper.scenarios]

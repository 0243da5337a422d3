"""Everything that can happen to jobs, in any order: the promises hold after every step.

The store's own functions on SQLite, a clock that the test moves, and a broker that loses, doubles,
reorders and forges. ``make chaos-full`` plays 100 000 schedules instead of a few, most of them
short; in the end every schedule is healed, and everything must come to an end.

P1 an acknowledged request is never lost. P2 none is applied twice, and versions form one chain.
P3 terminal states never change.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import event, select, update
from sqlalchemy.orm import Session

from app.store import clock, jobs, models, references, requests, tables
from app.store import session as sessions
from app.store.errors import Conflict, ServiceError, Unacceptable
from app.store.resolution import Rows
from app.store.session import reading, transaction
from app.store.status import JOB_MOVES, JOB_TERMINAL, REQUEST_TERMINAL
from tests import factories
from tests.chaos.sizes import first, is_full, measured, strikes
from tests.store.conftest import settings_of

ROWS = factories.index(8, 2)
PLACES = st.integers(0, 30)


End = Callable[[Session, jobs.Claim], object]


def _bank_of(excluded: Rows) -> str:
    """The name of a bank that tells what it was trained without."""
    return f"bank/{'-'.join(map(str, excluded))}"


def _finish(session: Session, claim: jobs.Claim) -> None:
    if claim.job.kind == "prepare":
        jobs.finish_prepare(session, claim, num_parameters=1, findings=[], importance_blob=None)
    elif claim.job.kind == "audit":
        jobs.finish_audit(session, claim, findings=[])
    elif claim.job.kind == "oracle":
        name = f"{claim.job.id}/{claim.epoch}"
        jobs.finish_oracle(session, claim, blob=name, digest="2" * 64, size_bytes=1)
    elif claim.job.kind == "bank":
        jobs.finish_bank(session, claim, blob=_bank_of(claim.excluded), num_models=4)
    elif claim.nothing_left:
        jobs.finish_without_influence(session, claim)
    else:
        factories.publish(session, claim)


ENDS: list[End] = [
    _finish,
    lambda session, claim: jobs.fail(session, claim, "bad", "-", False),
    lambda session, claim: jobs.fail(session, claim, "runner_died", "-", True),
    jobs.release,
]
STEPS = [
    *["ask", "finish_one"] * 4,
    *["work", "freeze_one", "end", "report", "study", "ring", "hear", "wait", "keep"] * 2,
    *["restart", "take_back", "cancel", "retry"],
]
ANSWERS = ("completed", "cancelled", "needs_attention")
"""What may have become of a request in the end."""
FORGED = "job_forged"
EVERYDAY = 2
"""Schedules of the everyday suite."""
LONG, SHORT = 40, 10
"""Steps of a schedule; most of what could go wrong takes few."""
LONG_PORTIONS = 10
"""Of the full number every so many-th portion is long."""
PORTION = 500
WAITS = (1.0, 30.0, 70.0, 1000.0)
"""Within a lease, within the next, beyond it, beyond every back-off."""
RAM = Path("/dev/shm")
DAY = 86_400.0
START = 1_800_000_000.0
EPOCH = 2_440_587.5
"""Julian day of the first second of 1970."""


class Clock:
    """The database's, moved by the test."""

    def __init__(self) -> None:
        self.now = START

    def put_into(self, connection: Any, _: Any) -> None:
        """Put it in the place of SQLite's."""
        connection.create_function("julianday", 1, lambda _: self.now / DAY + EPOCH)


@dataclass
class Stage:
    """Where all schedules play: one engine, whose statements are compiled once, and its file."""

    file: Path
    clock: Clock
    tenant: str = ""
    models: tuple[str, ...] = ()
    counts: Counter[str] = field(default_factory=Counter)
    """Of all schedules that were played to their end."""

    @property
    def template(self) -> Path:
        """The file as every schedule finds it."""
        return self.file.with_name("template.db")

    def keep(self) -> None:
        """Have every schedule begin with what is there now."""
        sessions.engine().dispose()
        shutil.copy(self.file, self.template)

    def reset(self) -> None:
        """Begin again."""
        sessions.engine().dispose()
        shutil.copy(self.template, self.file)
        self.clock.now = START


@contextlib.contextmanager
def a_stage(migrated: Path) -> Iterator[Stage]:
    """A stage with a tenant and two models that are ready."""
    with tempfile.TemporaryDirectory(dir=RAM if RAM.is_dir() else None) as folder:
        stage = Stage(Path(folder, "lethe.db"), Clock())
        shutil.copy(migrated, stage.file)
        sessions.configure(settings_of(Path(folder), max_lost_leases=4))
        try:
            event.listen(sessions.engine(), "connect", stage.clock.put_into)
            with transaction() as session:
                stage.tenant = factories.a_tenant(session)
                dataset = factories.a_dataset(session, stage.tenant, ROWS).id
                made = [
                    factories.a_model(session, stage.tenant, dataset_id=dataset) for _ in range(2)
                ]
                stage.models = tuple(model.id for model in made)
            stage.keep()
            yield stage
        finally:
            sessions.configure(None)


class Simulation(RuleBasedStateMachine):
    """Callers, workers, crashes and clocks, on SQLite."""

    stage: Stage

    def __init__(self) -> None:
        super().__init__()
        self.stage.reset()
        self.clock, self.tenant = self.stage.clock, self.stage.tenant
        self.models = self.stage.models
        self.bells: list[str] = []
        self.seen_jobs: dict[str, tuple[str, int]] = {}
        self.seen_requests: dict[str, str] = {}
        self.acknowledged: set[str] = set()
        self.claims: list[jobs.Claim] = []
        self.steps = 0

    def teardown(self) -> None:
        """Nothing fails any more: every job ends, and no request is left without an answer."""
        for _ in range(200):
            self.clock.now += WAITS[-1]
            with transaction() as session:
                jobs.sweep(session)
                held = jobs.claim_next(session, "healer", ("cpu", "gpu"))
                if held is not None:
                    _finish(session, held)
                open_jobs = select(tables.Job.id).where(tables.Job.status.not_in(JOB_TERMINAL))
                if session.scalars(open_jobs.limit(1)).first() is None:
                    break
        self.promises_hold()
        with reading() as session:
            assert not session.scalars(open_jobs).all(), "a job never ends"
        self._count()

    def _count(self) -> None:
        with reading() as session:
            asked = [*session.scalars(select(tables.Request))]
            chain = tables.Version.role == "chain"
            versions = len(session.scalars(select(tables.Version.id).where(chain)).all())
            num_jobs = len(session.scalars(select(tables.Job.id)).all())
        answered = {each.id for each in asked if each.status in ANSWERS}
        applied = {
            (each.model_id, row, each.applied_version_id)
            for each in asked
            if each.outcome == "erased_exact"
            for row in each.rows.tolist()
        }
        lost = len(self.acknowledged - answered)
        twice = len(applied) - len({place[:2] for place in applied})
        self.stage.counts.update(
            schedules=1,
            steps=self.steps,
            requests=len(self.acknowledged),
            jobs=num_jobs,
            versions=versions - len(self.models),
            lost=lost,
            applied_twice=twice,
        )
        assert (lost, twice) == (0, 0)

    @rule(what=st.sampled_from(STEPS), place=PLACES, other=st.integers(0, 3))
    def happen(self, what: str, place: int, other: int) -> None:
        """One rule for all: as rules of their own, most would be switched off in most runs."""
        self.steps += 1
        getattr(self, what)(place, other)

    def ask(self, place: int, row: int) -> None:
        over = {"record_ids": [f"r{row}"], "options": {"seed": place % 2}}
        model_id = self.models[place // 2 % 2]
        with contextlib.suppress(Unacceptable), transaction() as session:  # too little would stay
            made = factories.a_request(session, self.tenant, model_id, **over)
            self.acknowledged.add(made.id)

    def study(self, place: int, kind: int) -> None:
        """Somebody asks for evidence; what it needs may be missing."""
        model_id = self.models[place % 2]
        with contextlib.suppress(ServiceError), transaction() as session:
            if kind == 0:
                options = {"models": 4, "seed": 0, "batch_size": 1}
                references.queue_bank(session, self.tenant, model_id, options)
            elif kind == 1:
                options = {"seed": place, "time_limit_seconds": 1.0}
                references.queue_oracle(session, self.tenant, model_id, "@serving", options)
            else:
                asked = sorted(self.acknowledged)
                request = asked[place % len(asked)] if asked and kind == 2 else None
                factories.an_audit(session, self.tenant, model_id, request=request)

    def work(self, place: int, _: int) -> jobs.Claim | None:
        """A worker takes a job that is due."""
        with transaction() as session:
            waiting = jobs.due(session)
            held = jobs.claim(session, waiting[place % len(waiting)], "w") if waiting else None
            if held is None:
                return None
            done = {*models.excluded_rows(session, self.tenant, held.job.model_id or "")}
        left = {row for rows in held.requests.values() for row in rows}
        assert not left & done, "would be applied twice"
        self.claims.append(held)
        return held

    def ring(self, place: int, how: int) -> None:
        """The dispatcher rings, and the broker loses, doubles or forges."""
        with transaction() as session:
            due = jobs.due(session)
            jobs.stamp_dispatched(session, due)
        self.bells += {0: [], 1: due * 2, 2: [*due, FORGED], 3: due}[how]
        if self.bells:
            self.bells = self.bells[place % len(self.bells) :]

    def hear(self, place: int, how: int) -> None:
        """A worker hears any of the bells, whenever it was rung."""
        if not self.bells:
            return
        job_id = self.bells.pop(place % len(self.bells))
        with transaction() as session:
            held = (
                jobs.claim(session, job_id, "w")
                if how
                else jobs.claim_next(session, "w", ("cpu", "gpu"))
            )
        assert held is None or job_id != FORGED or not how
        if held is not None:
            self.claims.append(held)

    def wait(self, _: int, how: int) -> None:
        """Time goes by, and the sweeper comes."""
        self.clock.now += WAITS[how]
        with transaction() as session:
            jobs.sweep(session)

    def keep(self, place: int, how: int) -> None:
        """A training keeps its state."""
        if not self.claims:
            return
        claim = self.claims[place % len(self.claims)]
        blob = f"{claim.job.id}/{claim.epoch}/{place}-{how}"

        def act(session: Session, held: jobs.Claim) -> None:
            jobs.keep_checkpoint(session, held, blob=blob, digest="3" * 64)

        self._ends_only_if_mine(claim, act)

    def retry(self, place: int, _: int) -> None:
        """Somebody wants a job tried again that may not have failed."""
        with transaction() as session:
            known = [*session.scalars(select(tables.Job.id).order_by(tables.Job.id))]
            with contextlib.suppress(Conflict):
                jobs.retry(session, self.tenant, known[place % len(known)])

    def finish_one(self, place: int, other: int) -> None:
        held = self.work(place, other)
        if held is not None:
            self._ends_only_if_mine(held, _finish)

    def freeze_one(self, place: int, other: int) -> None:
        """A worker stands still past its lease, another takes the job, and the first goes on."""
        held = self.work(place, other)
        if held is None:
            return
        with transaction() as session:
            session.execute(
                update(tables.Job)
                .where(tables.Job.status == "running")
                .values(lease_until=clock.now() - 1)
            )
            jobs.sweep(session)
        with transaction() as session:
            again = jobs.claim(session, held.job.id, "w2")
        self._ends_only_if_mine(held, _finish)
        if again is not None:
            self.claims.append(again)

    def report(self, place: int, progress: int) -> None:
        if not self.claims:
            return
        claim = self.claims[place % len(self.claims)]
        with transaction() as session:
            alive = jobs.renew(session, claim, progress=progress / 4).alive
        assert alive == self._is_mine(claim)

    def end(self, place: int, how: int) -> None:
        """Also by zombies: a claim stays usable, as it would in a worker that was frozen."""
        if self.claims:
            self._ends_only_if_mine(self.claims[place % len(self.claims)], ENDS[how])

    def restart(self, _: int, __: int) -> None:
        """The whole service dies and comes back; waits are over by then."""
        with transaction() as session:
            jobs.free_all(session)
            session.execute(update(tables.Job).values(run_after=0.0))

    def take_back(self, place: int, _: int) -> None:
        if not self.acknowledged:
            return
        request_id = sorted(self.acknowledged)[place % len(self.acknowledged)]
        with transaction() as session:
            before = requests.get(session, self.tenant, request_id).status
        try:
            with transaction() as session:
                after = requests.cancel(session, self.tenant, request_id).status
        except Conflict:
            assert before == "completed"
        else:
            assert after == "cancelled"

    def cancel(self, place: int, _: int) -> None:
        with transaction() as session:
            all_jobs = [*session.scalars(select(tables.Job.id).order_by(tables.Job.id))]
            with contextlib.suppress(Conflict):
                jobs.cancel(session, self.tenant, all_jobs[place % len(all_jobs)])

    @invariant()
    def promises_hold(self) -> None:
        with reading() as session:
            found = {each.id: each for each in session.scalars(select(tables.Job))}
            asked = {each.id: each for each in session.scalars(select(tables.Request))}
            versions = [*session.scalars(select(tables.Version))]
            serving = {each.id: each for each in session.scalars(select(tables.Model))}
        self._jobs_move_as_allowed(found)
        self._requests_are_kept(asked, found)
        self._versions_form_chains([v for v in versions if v.role == "chain"], serving)
        self._evidence_never_saw_what_was_forgotten(versions, serving)

    def _evidence_never_saw_what_was_forgotten(
        self, versions: list[tables.Version], serving: dict[str, tables.Model]
    ) -> None:
        for version in versions:
            if version.role == "oracle" and version.status == "ready":
                assert version.oracle_of_id == serving[version.model_id].current_version_id
            elif version.role == "oracle":
                assert (version.status, version.blob) == ("withdrawn", None)
        with_bank = [model for model in serving.values() if model.bank_blob is not None]
        with reading() as session:
            for model in with_bank:
                forgotten = models.excluded_rows(session, self.tenant, model.id)
                assert model.bank_blob == _bank_of(forgotten)

    def _jobs_move_as_allowed(self, found: dict[str, tables.Job]) -> None:
        for job_id, (status, epoch) in self.seen_jobs.items():
            job = found[job_id]
            assert job.checkpoint_blob is None or job.status not in JOB_TERMINAL
            assert job.status == status or job.status in JOB_MOVES[status]
            assert job.epoch >= epoch
            assert status not in JOB_TERMINAL or job.status == status
        running = [job.model_id for job in found.values() if job.status == "running"]
        assert len(running) == len(set(running))
        self.seen_jobs = {job.id: (job.status, job.epoch) for job in found.values()}

    def _requests_are_kept(
        self, asked: dict[str, tables.Request], found: dict[str, tables.Job]
    ) -> None:
        assert self.acknowledged <= asked.keys()
        for request in asked.values():
            before = self.seen_requests.get(request.id)
            assert before not in REQUEST_TERMINAL or before == request.status
            job = found[request.job_id]
            if request.status == "queued":
                assert job.status == "queued"
            if request.status == "processing":
                assert job.status == "running"
            if request.status == "completed" and request.outcome == "erased_exact":
                assert job.status == "succeeded"
                assert request.applied_version_id is not None
        self.seen_requests = {each.id: each.status for each in asked.values()}

    def _versions_form_chains(
        self, versions: list[tables.Version], serving: dict[str, tables.Model]
    ) -> None:
        for model in serving.values():
            chain = sorted((v for v in versions if v.model_id == model.id), key=lambda v: v.number)
            assert [v.number for v in chain] == [*range(1, len(chain) + 1)]
            parents = [None, *(v.id for v in chain)]
            assert [v.parent_id for v in chain] == parents[:-1]
            assert model.current_version_id == chain[-1].id
            assert {v.status for v in chain[:-1]} <= {"withdrawn"}
            assert chain[-1].status == "ready"
            made_by = [v.job_id for v in chain[1:]]
            assert len(made_by) == len(set(made_by))

    def _is_mine(self, claim: jobs.Claim) -> bool:
        with reading() as session:
            job = jobs.get(session, self.tenant, claim.job.id)
            return job.status == "running" and job.epoch == claim.epoch

    def _ends_only_if_mine(self, claim: jobs.Claim, end: End) -> None:
        mine = self._is_mine(claim)
        try:
            with transaction() as session:
                end(session, claim)
        except jobs.LeaseLost:
            assert not mine
        else:
            assert mine


@pytest.mark.timeout(36_000)
def test_the_promises_hold_whatever_happens(migrated: Path) -> None:
    with a_stage(migrated) as stage:
        Simulation.stage = stage
        play(strikes(few=EVERYDAY), steps())
    of_this_length = {f"schedules_of_{steps()}_steps": stage.counts["schedules"]}
    measured(**stage.counts, **of_this_length)
    assert stage.counts["schedules"] >= strikes(few=EVERYDAY)


def steps() -> int:
    """How long schedules are."""
    is_long = not is_full() or first() // PORTION % LONG_PORTIONS == 0
    return LONG if is_long else SHORT


def play(schedules: int, length: int) -> None:
    run_state_machine_as_test(
        seed(first())(Simulation) if is_full() else Simulation,
        settings=settings(
            max_examples=schedules,
            stateful_step_count=length,
            deadline=None,
            derandomize=not is_full(),
            phases=[Phase.generate],  # steps cost disk writes: no minutes of shrinking
            database=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )

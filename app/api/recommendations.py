"""What would be tried for a request, and why; nothing is stored and nothing is started."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends
from pydantic import Field, StringConstraints
from sqlalchemy.orm import Session

from core.recommend import LeftOut, recommend
from core.recommend import Recommendation as Found
from core.situation import Policy, Purpose, Situation

from ..store import admission, budget, models, samples, situations, tables
from ..store.errors import BadRequest, Conflict, NotFound, Unacceptable
from ..store.keys import Caller
from . import examples, limits
from .deps import ReadSession, requires
from .problems import problems
from .request_shapes import (
    ABOUT_PURPOSE,
    Forget,
    ForgetSamples,
    ForgetSubject,
    class_of,
    model_of,
)
from .schema import accepts
from .shapes import Shape
from .strict_json import Body, json_body
from .variants import methods

router = APIRouter(tags=["catalogue"])
NOTHING = "nothing is left to forget: the records were never trained on, or are forgotten already"


class RecommendationCreate(Shape):
    """The situation of a request that has not been made yet."""

    model: Annotated[str, StringConstraints(max_length=64)] = Field(
        description="Id of the model; `@serving` may follow."
    )
    forget: Forget
    policy: Policy = Field("standard", description="Whose ladder is asked for.")
    purpose: Purpose = Field("erasure", description=ABOUT_PURPOSE)
    time_budget_seconds: Annotated[float, Field(gt=0, le=7 * 86_400)] | None = Field(
        None, description="Leave out what is expected to take longer."
    )


class Candidate(Shape):
    """One rung, in the order in which it would be tried."""

    unlearner: dict[str, Any] = Field(description="As `POST /unlearn-requests` takes it.")
    exact: bool = Field(description="Equal to retraining by construction.")
    reason: str
    passes: float | None = Field(
        description="Expected cost: forward and backward passes over all training records."
    )
    seconds: float | None = Field(
        description="The same in time, from how long the model's preparation took."
    )


class Omission(Shape):
    """A registered unlearner that would not be tried."""

    name: str
    reason: str


class Budget(Shape):
    """What approximate versions have used since the model was last trained from scratch."""

    approximate_versions: int
    share_forgotten: float = Field(description="Of the training records.")
    relative_change: float = Field(description="Sum over the versions.")
    utility_loss: float = Field(description="Sum over the versions, as a share.")
    spent: str | None = Field(description="The cap that is reached; retraining then comes first.")


class Recommendation(Shape):
    """The ladder of a situation, with reasons."""

    object: Literal["recommendation"] = "recommendation"
    model: str
    version: str = Field(description="Id of the version in force.")
    counts: dict[str, int] = Field(description="How many records, and what became of the others.")
    candidates: list[Candidate]
    left_out: list[Omission]
    budget: Budget


@router.post(
    "/unlearners/recommend",
    operation_id="recommend_unlearners",
    response_model=Recommendation,
    responses=problems(BadRequest, NotFound, Conflict, Unacceptable),
    openapi_extra=accepts("RecommendationCreate", examples.RECOMMENDATIONS),
)
def recommend_unlearners(
    caller: Annotated[Caller, requires("requests:create")],
    session: ReadSession,
    body: Annotated[Body[RecommendationCreate], Depends(json_body(RecommendationCreate))],
) -> Recommendation:
    """Say which unlearners the policy would try for a request, in order, and why not the others.

    Nothing is stored. References to subjects are hashed and forgotten. The answer tells whether
    somebody is in the data, so it takes the scope of a request, and subjects have a limit of calls.
    """
    wanted = body.value
    admission.refuse_unavailable(wanted.policy)
    tenant_id, forget = caller.tenant_id, wanted.forget
    if isinstance(forget, ForgetSubject):
        limits.limiter().count_lookup(caller)
    model, dataset = admission.usable(session, tenant_id, model_of(wanted.model), is_locked=False)
    sent = None
    if isinstance(forget, ForgetSamples):
        sent = samples.get(session, tenant_id, forget.dataset, is_locked=False)
    admission.refuse_selector(model, forget.type)
    wish = _wish(forget, wanted.policy)
    resolved = admission.resolve(session, model, sent or dataset, wish)
    spent, version = budget.spent(session, model), models.current(session, model)
    situation = _situation(session, model, dataset, wanted, len(resolved.rows), version, spent)
    found = _found(situation)
    return Recommendation(
        model=model.id,
        version=version.id,
        counts=resolved.counts,
        candidates=[Candidate(**each.model_dump()) for each in found.candidates],
        left_out=[Omission(**each.model_dump()) for each in found.left_out],
        budget=Budget(
            approximate_versions=spent.num_versions,
            share_forgotten=spent.share,
            relative_change=spent.relative_change,
            utility_loss=spent.utility_loss,
            spent=spent.reason(),
        ),
    )


def _wish(forget: Forget, policy: Policy) -> admission.Wish:
    return admission.Wish(
        forget.type,
        getattr(forget, "record_ids", None),
        forget.subject_ref if isinstance(forget, ForgetSubject) else None,
        class_of(forget),
        getattr(forget, "ignore_missing", False),
        policy,
        None,
        {},
    )


def _situation(
    session: Session,
    model: tables.Model,
    dataset: tables.Dataset | None,
    wanted: RecommendationCreate,
    num_forget: int,
    version: tables.Version,
    spent: budget.Spent,
) -> Situation:
    excluded = models.excluded_rows(session, model.tenant_id, model.id)
    return situations.situation(
        model,
        dataset,
        policy=wanted.policy,
        selector="records" if class_of(wanted.forget) is None else "class",
        num_forget=num_forget,
        version=version,
        num_excluded=len(excluded),
        spent=spent,
        purpose=wanted.purpose,
        time_budget_seconds=wanted.time_budget_seconds,
        seconds_per_pass=situations.seconds_per_pass(session, model),
    )


def _found(situation: Situation) -> Found:
    if situation.num_forget:
        return recommend(situation, methods())
    left_out = [LeftOut(name=name, reason=NOTHING) for name in methods()]
    return Found(candidates=[], left_out=left_out)

"""Configurations of registered variants in bodies: ``"auto"`` or a name with its options."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal, cast

from pydantic import Field, ValidationError

from core.errors import InvalidInput, UnknownName
from core.methods import METHODS, Method, missing, why_missing
from core.problem import BatchNormPolicy
from core.situation import Situation
from core.unlearners import FROZEN_BATCHNORM, UnlearnerOptions, unlearners

from ..store.errors import Unacceptable
from .validation import refusal

Unlearner = Annotated[
    Literal["auto"] | dict[str, Any],
    Field(
        description="`auto` climbs the ladder of the policy. A name of `GET /unlearners` with its "
        "options is then the only rung; the gates still decide.",
        examples=["auto", {"name": "ssd"}],
    ),
]


def unlearner(wanted: Literal["auto"] | dict[str, Any]) -> dict[str, Any] | None:
    """Return the configuration with all defaults filled in, or None for ``auto``.

    Raises:
        Unacceptable: ``algorithm_unknown``, ``unknown_field`` or ``validation_failed``.
    """
    if wanted == "auto":
        return None
    assert isinstance(wanted, dict)
    name = wanted.get("name")
    if isinstance(name, str) and name not in unlearners:
        detail = f"There are {', '.join(unlearners.names())}."
        at = {"pointer": "/unlearner/name", "message": detail, "code": "algorithm_unknown"}
        raise Unacceptable("algorithm_unknown", detail, errors=[at])
    try:
        return unlearners.parse(wanted, strict=True).model_dump(mode="json")
    except ValidationError as error:
        errors = error.errors(include_input=False, include_url=False)
        raise refusal(errors, wanted, "/unlearner") from None
    except (InvalidInput, UnknownName) as error:
        raise Unacceptable("algorithm_unknown", str(error)) from None


def methods() -> dict[str, Method]:
    """Return the facts about every unlearner, as the registry has them."""
    parsed = [unlearners.parse({"name": entry.name}) for entry in unlearners]
    return {each.name: _method(cast("UnlearnerOptions", each)) for each in parsed}


def refuse_idle(
    chosen: dict[str, Any] | None,
    situation: Situation,
    bn_policy: BatchNormPolicy = "recalibrate",
) -> None:
    """Refuse an unlearner that the policies, or what the model came with, would leave out.

    Raises:
        Unacceptable: ``algorithm_not_applicable``; its member ``missing`` names what is needed.
    """
    if chosen is None:
        return
    options = cast("UnlearnerOptions", unlearners.parse(chosen))
    method = _method(options)
    need, pointer = missing(method, situation, chosen), "/unlearner"
    is_frozen = bn_policy == "frozen" and bool(situation.has_batchnorm)
    if situation.policy == "exact" and not method.exact:
        need, reason = None, "the exact policy tries exact unlearners only"
    elif need is not None:
        reason = why_missing(need, method)
        pointer = "/forget" if need == "class" else pointer
    elif not method.exact and not situation.has_holdout:
        need, reason = "holdout", "it is approximate, and without a holdout nothing could judge it"
    elif is_frozen and not options.fits_frozen_batchnorm:
        reason, pointer = FROZEN_BATCHNORM, "/bn_policy"
    else:
        return
    detail = f"{chosen['name']} cannot be used here: {reason}."
    raise Unacceptable(
        "algorithm_not_applicable",
        detail,
        errors=[{"pointer": pointer, "message": detail, "code": "algorithm_not_applicable"}],
        extra=None if need is None else {"missing": need},
    )


def _method(options: UnlearnerOptions) -> Method:
    return replace(
        METHODS.get(options.name, Method()),
        exact=options.is_exact,
        needs=options.all_needs,
        networks=options.networks,
    )

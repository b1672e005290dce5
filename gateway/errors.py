"""Every error a user can meet: one tree, stable codes, the default message in the docstring.

Rules
1. ``code`` is stable and snake_case; ``docs/errors.md`` lists each one (tested).
2. ``retry`` says whether waiting at most a minute can help; it decides ``x-should-retry`` and ``retry-after``.
3. An error never carries a key, a prompt, a provider's secret or a traceback.

Not here: how a dialect spells an error body (``providers``), and HTTP responses (``proxy``, ``billing``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

_DETAILS = ("scope", "limit", "used", "held", "needed", "available", "resets_at", "hint")


@dataclass(frozen=True, slots=True)
class RefusalDetail:
    """The ``tollgate`` member of a refusal. Amounts are plain decimals of the meter, already formatted."""

    scope: str | None = None
    limit: str | None = None
    used: str | None = None
    held: str | None = None
    needed: str | None = None
    available: str | None = None
    resets_at: str | None = None  # RFC 3339 UTC
    hint: str | None = None
    plans: tuple[str, ...] = field(default=())


class TollgateError(Exception):
    """Something went wrong."""

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    retry: ClassVar[bool] = False
    anthropic_type: ClassVar[str] = "api_error"
    anthropic_error_code: ClassVar[str | None] = None
    openai_type: ClassVar[str] = "server_error"
    openai_code: ClassVar[str | None] = None  # None: the code itself

    def __init__(
        self,
        message: str | None = None,
        *,
        param: str | None = None,
        detail: RefusalDetail | None = None,
        retry_after_s: int | None = None,
        title: str | None = None,
    ) -> None:
        self.message = message or (type(self).__doc__ or "").strip().splitlines()[0]
        self.param = param
        self.detail = detail
        self.retry_after_s = retry_after_s
        self.title = title
        super().__init__(self.message)


def tollgate_member(error: TollgateError) -> dict[str, object]:
    """What only a gateway can say: always the reason, and of a refusal the facts behind it."""
    detail = error.detail or RefusalDetail()
    member: dict[str, object] = {"reason": error.code}
    member.update((name, getattr(detail, name)) for name in _DETAILS)
    member["plans"] = list(detail.plans)
    if error.title is not None:
        member["title"] = error.title
    return member


# --- 400s: the request itself ------------------------------------------------------------------------------------


class RequestError(TollgateError):
    """The request is not valid."""

    code = "invalid_request"
    status = 400
    anthropic_type = "invalid_request_error"
    openai_type = "invalid_request_error"


class BadRequest(RequestError):
    """The request is not valid."""

    def __init__(self, code: str, message: str, *, param: str | None = None) -> None:
        super().__init__(message, param=param)
        self.code = code  # type: ignore[misc]  # one class, many codes of one kind: docs/errors.md lists them


class AmbiguousCredentials(RequestError):
    """Two different Tollgate keys were sent. Send one, in Authorization or in x-api-key."""

    code = "ambiguous_credentials"


class UnknownFeature(RequestError):
    """The Tollgate-Feature header names a feature that is not configured."""

    code = "unknown_feature"


class BodyTooLarge(RequestError):
    """The request body is larger than server.body_max."""

    code = "body_too_large"
    status = 413


class UnsupportedEncoding(RequestError):
    """The request body's encoding or content type is not supported. Send plain JSON."""

    code = "unsupported_media_type"
    status = 415


class RequestTimeout(RequestError):
    """The request's body did not arrive in time."""

    code = "request_timeout"
    status = 408


class ExpectationFailed(RequestError):
    """The header Expect asks for something other than 100-continue."""

    code = "expectation_failed"
    status = 417


class MethodNotAllowed(RequestError):
    """This route does not take this method."""

    code = "method_not_allowed"
    status = 405


class MissingApiKey(TollgateError):
    """No Tollgate key was sent. Send it as 'Authorization: Bearer tg_...' or 'x-api-key: tg_...'."""

    code = "missing_api_key"
    status = 401
    anthropic_type = "authentication_error"
    openai_type = "invalid_request_error"
    openai_code = "invalid_api_key"


class InvalidApiKey(MissingApiKey):
    """The Tollgate key is not valid: unknown, revoked or expired."""

    code = "invalid_api_key"


class AccountSuspended(TollgateError):
    """This account is suspended."""

    code = "account_suspended"
    status = 403
    anthropic_type = "permission_error"
    openai_type = "invalid_request_error"


class NotFound(TollgateError):
    """There is no such object."""

    code = "not_found"
    status = 404
    anthropic_type = "not_found_error"
    openai_type = "invalid_request_error"


class AccountNotFound(NotFound):
    """There is no such account for this key."""

    code = "account_not_found"


class UnknownModel(NotFound):
    """This model is not configured on this gateway."""

    code = "unknown_model"
    openai_code = "model_not_found"


class RouteNotMetered(NotFound):
    """This route is not metered by Tollgate, so it is not served."""

    code = "route_not_metered"


# --- refusals: what quota and plans say --------------------------------------------------------------------------


class Refusal(TollgateError):
    """The call was refused."""

    code = "refused"
    status = 429
    anthropic_type = "rate_limit_error"
    anthropic_error_code: ClassVar[str | None] = "enforced_spend_limit_reached"
    openai_type = "insufficient_quota"
    openai_code: ClassVar[str | None] = "insufficient_quota"


class TrialExpired(Refusal):
    """The free trial has expired. Please upgrade to continue."""

    code = "trial_expired"
    status = 402
    anthropic_type = "billing_error"
    anthropic_error_code = None


class SubscriptionInactive(TrialExpired):
    """The subscription is not active. Renew it to continue."""

    code = "subscription_inactive"


class FeatureNotInPlan(Refusal):
    """The plan does not include this feature."""

    code = "feature_not_in_plan"
    status = 403
    anthropic_type = "permission_error"
    anthropic_error_code = None
    openai_type = "invalid_request_error"
    openai_code = None


class ModelNotInPlan(FeatureNotInPlan):
    """The plan does not include this model."""

    code = "model_not_in_plan"


class LimitExceeded(Refusal):
    """Nothing is left of this period's allowance."""

    code = "limit_exceeded"


class InsufficientTokens(Refusal):
    """Too little is left for this call."""

    code = "insufficient_tokens"


class BudgetExceeded(Refusal):
    """A budget of this team, user or key is used up."""

    code = "budget_exceeded"


class CallTooLarge(Refusal):
    """This call asks for more than the limit can ever hold. Lower its output bound or its input."""

    code = "call_too_large"


class HeldElsewhere(Refusal):
    """Enough is left, but other calls in flight hold it. Try again shortly."""

    code = "held_elsewhere"
    retry = True
    anthropic_error_code = "ramp_limit_exceeded"
    openai_type = "rate_limit_exceeded"
    openai_code = "rate_limit_exceeded"


class RateLimited(HeldElsewhere):
    """Too many requests or tokens in this window. Try again shortly."""

    code = "rate_limited"


class ConcurrencyLimited(HeldElsewhere):
    """Too many calls at once. Try again shortly."""

    code = "concurrency_limited"


# --- idempotency -------------------------------------------------------------------------------------------------


class IdempotencyConflict(TollgateError):
    """This Idempotency-Key was used with another body."""

    code = "idempotency_conflict"
    status = 409
    anthropic_type = "conflict_error"
    openai_type = "invalid_request_error"


class IdempotencyInFlight(IdempotencyConflict):
    """A call with this Idempotency-Key is in flight."""

    code = "idempotency_in_flight"
    retry = True


class HoldEnded(TollgateError):
    """This hold has ended, and otherwise than is asked for now."""

    code = "hold_ended"
    status = 409
    anthropic_type = "conflict_error"
    openai_type = "invalid_request_error"


class HoldBusy(HoldEnded):
    """Somebody else is changing this hold. Try again shortly."""

    code = "hold_busy"
    retry = True


# --- 5xx: us and those behind us ---------------------------------------------------------------------------------


class PriceMissing(TollgateError):
    """No price is configured for this model and wallet, so the call cannot be charged and is refused."""

    code = "price_missing"
    status = 503


class QuotaUnavailable(TollgateError):
    """Quota cannot be checked right now, so nothing was forwarded. Try again shortly."""

    code = "quota_unavailable"
    status = 503
    retry = True


class Overloaded(QuotaUnavailable):
    """Too much is waiting to be written. Try again shortly."""

    code = "overloaded"


class TooManyListeners(TollgateError):
    """Too many listen to live events already. Close one, or try again shortly."""

    code = "too_many_listeners"
    status = 429
    retry = True
    anthropic_type = "rate_limit_error"
    openai_type = "rate_limit_exceeded"
    openai_code: ClassVar[str | None] = "rate_limit_exceeded"


class StoreUnavailable(QuotaUnavailable):
    """The database does not answer right now. Try again shortly."""

    code = "store_unavailable"


class UpstreamMisconfigured(TollgateError):
    """The provider refused this gateway's own credential or billing. The operator has been told."""

    code = "upstream_misconfigured"
    status = 502


class UpstreamUnreachable(TollgateError):
    """The provider could not be reached or broke off before its answer. Nothing was charged."""

    code = "upstream_unreachable"
    status = 502
    retry = True


class UpstreamTimeout(UpstreamUnreachable):
    """The provider did not answer in time. Nothing was charged."""

    code = "upstream_timeout"
    status = 504
    anthropic_type = "timeout_error"


class UpstreamInterrupted(UpstreamUnreachable):
    """The provider broke off in the middle of its answer. What was produced is charged."""

    code = "upstream_interrupted"


# --- payments ----------------------------------------------------------------------------------------------------


class PaymentsNotConfigured(TollgateError):
    """Payments are not configured on this gateway. An operator can grant what you need."""

    code = "payments_not_configured"
    status = 409
    anthropic_type = "conflict_error"
    openai_type = "invalid_request_error"


class PaymentProviderUnavailable(TollgateError):
    """The payment provider does not answer right now. Try again shortly."""

    code = "payment_provider_unavailable"
    status = 502
    retry = True


class PaymentProviderRefused(PaymentProviderUnavailable):
    """The payment provider did not accept this gateway's request. The operator finds why in the log."""

    code = "payment_provider_refused"
    retry = False


# --- operators ---------------------------------------------------------------------------------------------------


class ConfigError(TollgateError):
    """The configuration is not valid."""

    code = "invalid_config"

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class ServiceAway(TollgateError):
    """A service that Tollgate needs is away."""

    code = "service_away"
    status = 503


class Conflict(TollgateError):
    """The object already exists with other content."""

    code = "conflict"
    status = 409
    anthropic_type = "conflict_error"
    openai_type = "invalid_request_error"


class AdminTokenNotSet(TollgateError):
    """The admin API is off: set server.admin_token."""

    code = "admin_token_not_set"
    status = 403
    anthropic_type = "permission_error"
    openai_type = "invalid_request_error"

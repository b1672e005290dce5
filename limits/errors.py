"""What can go wrong between the engine and Redis. One small tree; callers map it once, at their edge."""


class LimitsError(Exception):
    """Base of everything this library raises."""


class EngineUnavailable(LimitsError):
    """Redis did not do, or did not confirm, what was asked: no connection, a timeout, BUSY, LOADING, cluster down.

    ``sent`` is False when the command certainly never left this process, True when its effect is unknown.
    """

    def __init__(self, message: str, *, sent: bool) -> None:
        super().__init__(message)
        self.sent = sent


class ScriptRejected(LimitsError):
    """A script refused its arguments (a programmer error: nothing was written)."""

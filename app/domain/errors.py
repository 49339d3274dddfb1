"""Everything that can go wrong for a client, with its HTTP status and OpenAI error code.

Raised where the reason is known, rendered where the answer is written (`app/api/framework_errors.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class RouterError(Exception):
    """An error that a client sees. The message says what to do next."""

    status = 500
    type = "server_error"
    code = "internal_error"
    retryable = True
    """Whether the same request can be answered otherwise without anybody changing anything; where it cannot,
    clients are told so, which else ask for minutes."""

    headers: tuple[tuple[str, str], ...] = ()
    """What HTTP wants an answer with this error to say beside it."""

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
        retryable: bool | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        if retryable is not None:
            self.retryable = retryable
        self.details = dict(details or {})

    def without_frames(self) -> RouterError:
        """Itself. The frames that it has passed keep all that was there, a body too; and a function that was
        given it holds it in turn, so that nothing of it is freed before the next garbage collection."""
        self.__traceback__ = self.__context__ = self.__cause__ = None
        return self

    def body(self) -> dict[str, Any]:
        """The OpenAI error object; details stand beside the four fixed fields."""
        fixed = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": {**fixed, **self.details}}


class Refused(RouterError):
    """What is wrong is in the request itself."""

    retryable = False


class BadRequest(Refused):
    status, type, code = 400, "invalid_request_error", "invalid_request"


class TooManyParts(BadRequest):
    """Of a JSON text."""


class InvalidJson(BadRequest):
    code = "invalid_json"


class MissingModel(BadRequest):
    code = "missing_model"


class InvalidPriority(BadRequest):
    code = "invalid_priority"


class WrongModelKind(BadRequest):
    code = "wrong_model_kind"


class InvalidApiKey(Refused):
    status, type, code = 401, "authentication_error", "invalid_api_key"
    headers = (("www-authenticate", "Bearer"),)


class Forbidden(Refused):
    status, type, code = 403, "permission_error", "forbidden"


class HostNotAllowed(Forbidden):
    code = "host_not_allowed"


class OriginNotAllowed(Forbidden):
    code = "origin_not_allowed"


class NotFound(Refused):
    status, type, code = 404, "invalid_request_error", "not_found"


class ModelNotFound(NotFound):
    code = "model_not_found"


class MethodNotAllowed(Refused):
    status, type, code = 405, "invalid_request_error", "method_not_allowed"


class RequestTooLarge(Refused):
    status, type, code = 413, "invalid_request_error", "request_too_large"


class TargetTooLong(Refused):
    status, type, code = 414, "invalid_request_error", "target_too_long"


class TooManyLogins(RouterError):
    status, type, code = 429, "rate_limit_error", "too_many_logins"


class HeadersTooLarge(Refused):
    status, type, code = 431, "invalid_request_error", "headers_too_large"


class UnsupportedMediaType(Refused):
    status, type, code = 415, "invalid_request_error", "unsupported_media_type"


class UnsupportedEncoding(UnsupportedMediaType):
    headers = (("accept-encoding", "gzip"),)


class NotSupported(Refused):
    status, type, code = 501, "invalid_request_error", "not_supported"


class InternalError(RouterError):
    pass


class ModelCrashed(RouterError):
    status, type, code = 502, "server_error", "model_crashed"


class RequestCrashesModel(RouterError):
    status, type, code = 502, "server_error", "request_crashes_model"
    retryable = False


class AnswerTooLarge(RouterError):
    """For being translated: it passes no other way."""

    status, type, code = 502, "server_error", "answer_too_large"
    retryable = False


class _NeedsAction:
    """What waiting cannot heal: somebody has to change something. Clients repeat any 5xx for minutes."""

    status, type = 424, "api_error"
    retryable = False


class NeverFits(_NeedsAction, RouterError):
    code = "vram_exhausted"


class LoadFailed(_NeedsAction, RouterError):
    code = "load_failed"


class ModelFailed(_NeedsAction, RouterError):
    code = "model_failed"


class Overloaded(RouterError):
    """What a later try can meet."""

    status, type, code = 503, "overloaded_error", "overloaded"


class QueueFull(Overloaded):
    code = "queue_full"


class VramExhausted(Overloaded):
    code = "vram_exhausted"


class NoCapacity(Overloaded):
    code = "no_capacity"


class ModelNotLoaded(Overloaded):
    """Who only reads does not have a model loaded for it."""

    code = "model_not_loaded"


class LoadPostponed(Overloaded):
    """It failed for want of something that comes back; the next request tries it again."""

    code = "load_failed"


class ShuttingDown(Overloaded):
    code = "shutting_down"

    def __init__(self, message: str = "the router is shutting down; try again in a moment") -> None:
        super().__init__(message, retry_after_s=5)


class QueueTimeout(RouterError):
    status, type, code = 504, "timeout_error", "queue_timeout"


class UpstreamTimeout(RouterError):
    status, type, code = 504, "timeout_error", "upstream_timeout"
    retryable = False  # a client that asks at once has the same work begun once more


class ModelError(RouterError):
    """What llama-server says is wrong. The details are its own."""

    def __init__(
        self,
        message: str,
        *,
        status: int,
        type_: str,
        code: str,
        param: str | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message, param=param, retryable=status in (429, 500, 503), details=details)
        self.status, self.type, self.code = status, type_, code

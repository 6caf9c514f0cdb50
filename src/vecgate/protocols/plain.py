"""The dialect of errors on the routes that are ours alone: native.py and ops.py.

Shared by them as vectors.py is by all; knows the error tree only.
"""

from __future__ import annotations

import msgspec

from vecgate.errors import (
    BackendFailed,
    BodyTimeout,
    DeadlineExceeded,
    EmptyInput,
    Forbidden,
    InputTooLong,
    InvalidRequest,
    MethodNotAllowed,
    ModelNotFound,
    NotFound,
    NotReady,
    OutOfMemory,
    Overloaded,
    RateLimited,
    SpaceMismatch,
    TooLarge,
    Unauthenticated,
    UnsupportedEncoding,
    VecgateError,
    WrongTask,
)
from vecgate.protocols import headers_of_error, message_of, of_type

ERRORS: dict[type[VecgateError], tuple[int, str]] = {
    VecgateError: (500, "internal_error"),
    InvalidRequest: (400, "invalid_request"),
    EmptyInput: (400, "invalid_request"),
    InputTooLong: (400, "input_too_long"),
    SpaceMismatch: (400, "vector_space_mismatch"),
    WrongTask: (400, "wrong_task"),
    Unauthenticated: (401, "invalid_api_key"),
    Forbidden: (403, "forbidden"),
    NotFound: (404, "not_found"),
    ModelNotFound: (404, "model_not_found"),
    MethodNotAllowed: (405, "method_not_allowed"),
    BodyTimeout: (408, "body_timeout"),
    TooLarge: (413, "body_too_large"),
    UnsupportedEncoding: (415, "unsupported_encoding"),
    Overloaded: (429, "overloaded"),
    RateLimited: (429, "rate_limit_exceeded"),
    BackendFailed: (500, "backend_failed"),
    OutOfMemory: (500, "out_of_memory"),
    NotReady: (503, "not_ready"),
    DeadlineExceeded: (504, "deadline_exceeded"),
}


def render(error: VecgateError) -> tuple[int, dict[str, str], bytes]:
    """{"error": {message, type, param, code}, "message"}: OpenAI's shape for SDKs, the message again for people."""
    status, code = of_type(ERRORS, error)
    message = message_of(error)
    shape = {
        "message": message,
        "type": _kind(status),
        "param": "model" if isinstance(error, ModelNotFound | WrongTask) else getattr(error, "param", None),
        "code": code,
    }
    return status, headers_of_error(error), msgspec.json.encode({"error": shape, "message": message})


def _kind(status: int) -> str:
    if status == 429:
        return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"

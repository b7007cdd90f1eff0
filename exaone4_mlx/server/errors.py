"""What a client got wrong, and faults, as answers in the form of each dialect."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from .access import error_body, error_kind
from .contract import log
from .messages import MessagesRequest
from .openai import ChatRequest
from .responses import ResponsesRequest

RETRY_SECONDS = 5
FIELDS = {*ChatRequest.model_fields, *ResponsesRequest.model_fields, *MessagesRequest.model_fields}


class Json(JSONResponse):
    """JSON as the streams write it: half of a surrogate pair, which a client sent, becomes a question mark."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode(errors="replace")


class Refused(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code


def checked(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except (ValueError, TypeError) as error:
        raise refusal_of(error) from error


def refusal_of(error: Exception) -> Refused:
    """The answer to what a client got wrong. Messages of the package begin with the name of the field."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        error = ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}")
    message = " ".join(str(error).split()) or type(error).__name__
    word = message.partition(" ")[0].partition(".")[0].strip(":,'")
    return Refused(400, message, word if word in FIELDS else None)


def _error(status: int, message: str, param: str | None, code: str | None, request: HttpRequest) -> JSONResponse:
    request.app.state.metrics.error(error_kind(status))
    headers = {"retry-after": str(RETRY_SECONDS)} if status == 429 else None
    return Json(error_body(request.url.path, status, message, param, code), status, headers=headers)


async def refused(request: HttpRequest, error: Refused) -> JSONResponse:
    return _error(error.status, error.message, error.param, error.code, request)


async def invalid(request: HttpRequest, error: RequestValidationError) -> JSONResponse:
    first = error.errors()[0]
    place = [str(part) for part in first["loc"] if part != "body"]
    is_form = [part[:1].isupper() or "[" in part for part in place]  # of a union: no field of the request
    place = place[: [*is_form, True].index(True)]
    reason = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        reason = "this field is not known here"
    if first["type"] == "model_attributes_type" and not place:
        reason = "a JSON object is needed, with the header Content-Type: application/json"
    param = ".".join(place) or None
    return _error(400, f"{param}: {reason}" if param else f"the body: {reason}", param, first["type"], request)


async def http_error(request: HttpRequest, error: HTTPException) -> JSONResponse:
    return _error(error.status_code, str(error.detail), None, None, request)


async def fault(request: HttpRequest, error: Exception) -> JSONResponse:
    log.error("%s failed: %s", request.url.path, error)
    return _error(500, "the server failed; its log says why", None, None, request)

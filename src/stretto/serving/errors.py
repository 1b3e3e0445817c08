"""Errors as OpenAI's clients expect them: a status, and ``{"error": {message, type, param, code}}``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from starlette.responses import Response

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
"""By status; other ones below 500 are ``invalid_request_error``, the rest ``server_error``."""
_PARAMETER = re.compile(r"([a-z_]+)=")
_KIND = re.compile(r"str|int|[a-z-]+\[.*\]|constrained-\w+|NamedTool")
"""How pydantic names, in the place of an error, which of a field's several kinds it tried there."""


class ApiError(Exception):
    """A request that ends with an error of HTTP."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.headers = status, param, code, dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """Plain data, as the client gets it."""
        kind = TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """Return the answer."""
        return JSON(self.body, self.status, self.headers)


class JSON(Response):
    """Plain data as JSON, in ASCII: also half a surrogate pair, quoted from a request, can be written so."""

    media_type = "application/json"

    def __init__(self, data: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(json.dumps(data), status, headers)


def wrong(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """Return the error of a request that is wrong in itself (400)."""
    return ApiError(400, message, param=param, code=code)


def refused(error: ValueError, form: str | None = None) -> ApiError:
    """Return what the engine refused as an error of HTTP; ``name=value: ...`` names the parameter.

    ``form``: the field that asked for the ``mask``.
    """
    named = _PARAMETER.match(str(error))
    param = named[1] if named else None
    return wrong(str(error), form if param == "mask" else param)


def unreadable(errors: Sequence[Mapping[str, Any]], known: Sequence[str]) -> ApiError:
    """Return the error of a body that does not fit its model, from pydantic's list; ``known``: fields that there are.

    Says the place and what was expected there, not the value: it may be long, or a secret.
    """
    first = next((each for each in errors if each["type"] == "extra_forbidden"), errors[0])
    kinds = _kinds(first, errors)
    if first["type"].endswith("_type"):  # that it is of another kind says the least
        first = next((each for _, each in kinds if not each["type"].endswith("_type")), first)
    path = [str(part) for part in first["loc"] if part != "body"]
    # The client's own, whatever it looks like and however long it is.
    name = [path.pop()[:80]] if first["type"] == "extra_forbidden" else []
    place = ".".join([*(part for part in path if not _KIND.fullmatch(part)), *name])
    if first["type"] == "json_invalid":
        return wrong(f"the body is not JSON: {first.get('ctx', {}).get('error', first['msg'])}")
    if first["type"] == "extra_forbidden":
        close = get_close_matches(place, known, 1)
        hint = f"did you mean {close[0]}?" if close else "remove it; the server ignores no field"
        return wrong(f"{place}: no such field; {hint}", place, "unknown_field")
    if first["type"] == "missing":
        return wrong(f"{place or 'the body'}: missing; expected a value", place or None, "missing_field")
    if kinds and first["type"].endswith("_type"):
        return wrong(f"{place}: expected {' or '.join(dict.fromkeys(kind for kind, _ in kinds))}", place)
    return wrong(f"{place or 'the body'}: {first['msg']}", place or None)


def _kinds(error: Mapping[str, Any], errors: Sequence[Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    """Return what the field that ``error`` is about may be, where that is several things, and why it is not."""
    path = error["loc"]
    place = next((place for place, part in enumerate(path) if _KIND.fullmatch(str(part))), None)
    if place is None:
        return []
    return [(str(each["loc"][place]), each) for each in errors if each["loc"][:place] == path[:place]]

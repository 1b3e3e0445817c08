"""What every request passes before an endpoint sees it: ``Host``, key, kind and size of the body. And the log line.

A middleware of plain ASGI: what the endpoints stream goes through untouched.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from stretto.serving.errors import ApiError, wrong
from stretto.serving.keys import METRICS, Caller, Keys
from stretto.serving.logs import log, tell
from stretto.serving.settings import Settings

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = frozenset({"/health", "/ready"})
"""What a supervisor asks without a key; the answers tell nothing about requests."""


class Guard:
    """Lets requests through to ``app``, or answers them itself."""

    def __init__(self, app: App, settings: Settings, keys: Keys, count: Callable[[str, int], None]) -> None:
        self.app, self.settings, self.keys, self.count = app, settings, keys, count
        self.hosts = settings.hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.monotonic(), 0
        state: dict[str, Any] = scope.setdefault("state", {})
        state["id"] = secrets.token_hex(12)
        state["caller"] = Caller()
        state["send"] = send  # for what follows the start of an answer, which no layer between changes

        async def telling(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", state["id"].encode())]
            await send(message)

        try:
            try:
                state["caller"] = self._admitted(scope)
                receive = await self._whole(scope, receive)
            except ApiError as error:
                await error.response()(scope, receive, telling)
                return
            await self.app(scope, receive, telling)
        except Exception as error:
            log.error("unforeseen", exc_info=error, extra={"fields": {"request_id": state["id"]}})
            if not status:
                told = ApiError(500, "something went wrong inside the server; its log says more")
                await told.response()(scope, receive, telling)
        finally:
            del state["send"]  # which holds the scope, and so itself
            path = self._known_path(scope)
            self.count(path, status)
            if path not in OPEN:
                tell(
                    "http",
                    request_id=state["id"],
                    key=state["caller"].name,
                    verb=scope["method"],
                    path=path,
                    status=status,
                    ms=round((time.monotonic() - began) * 1e3, 1),
                    **state.get("told", {}),
                )

    def _known_path(self, scope: Scope) -> str:
        """Return the endpoint's path, "-" where there is none: what strangers make up is neither kept nor logged."""
        routes = {route.path for route in scope["app"].routes}
        found = str(getattr(scope.get("route"), "path", scope["path"]))
        return found if found in routes else "-"

    def _admitted(self, scope: Scope) -> Caller:
        """Return who asks. Raises ``ApiError`` for a request that goes no further."""
        headers = dict(scope["headers"])
        if sum(name == b"host" for name, _ in scope["headers"]) > 1:
            raise wrong("several Host headers: expected one")
        host = headers.get(b"host", b"").decode("latin-1").lower()
        if _name_of(host) not in self.hosts:
            raise ApiError(
                403,
                "the Host header names a host that this server does not answer for; start it with --allowed-host NAME",
                code="unknown_host",
            )
        path = scope["path"]
        if path in OPEN or scope["method"] == "OPTIONS":
            return Caller()
        caller = self.keys.caller(headers.get(b"authorization", b"").decode("latin-1"))
        if caller is None:
            raise ApiError(
                401,
                "no valid API key: expected the header 'Authorization: Bearer KEY'",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        if self.keys.needed and (caller.name == METRICS) != (path == "/metrics"):
            raise ApiError(
                403, f"this key may not read {path}: /metrics is for the key named '{METRICS}', and it alone"
            )
        if scope["method"] in ("POST", "PUT", "PATCH"):
            kind = headers.get(b"content-type", b"").decode("latin-1").partition(";")[0].strip().lower()
            if kind != "application/json":
                raise ApiError(415, "the body must be JSON: send the header 'Content-Type: application/json'")
        return caller

    async def _whole(self, scope: Scope, receive: Receive) -> Receive:
        """Read the body within its limits; return what hands it on, and then what comes behind it."""
        limits = self.settings.limits
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if length.isdigit() and int(length) > limits.body:
            raise _too_large(limits.body)
        if scope["method"] not in ("POST", "PUT", "PATCH"):
            return receive
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(limits.body_seconds):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise wrong("the client went away before its body was whole")
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    more = message.get("more_body", False)
                    if size > limits.body:
                        raise _too_large(limits.body)
        except TimeoutError:
            raise ApiError(408, f"the body did not arrive within {limits.body_seconds:g} seconds") from None
        body: Message | None = {"type": "http.request", "body": b"".join(parts), "more_body": False}

        async def again() -> Message:
            nonlocal body
            if body is None:
                return await receive()
            told, body = body, None
            return told

        return again


def _name_of(host: str) -> str:
    """Return the name in a ``Host`` header, without port and brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"the body is larger than {limit} bytes; send less text at a time")

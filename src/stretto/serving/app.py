"""The application: endpoints, each a few lines over ``Service``."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from stretto import __version__
from stretto.serving.errors import JSON, ApiError, unreadable, wrong
from stretto.serving.fields import ChatBody, CompletionBody, DetokenizeBody, TokenizeBody
from stretto.serving.guard import Guard
from stretto.serving.keys import Keys
from stretto.serving.service import Service, unavailable
from stretto.serving.streaming import ClientGone
from stretto.serving.wanted import chat_ids, check_model

BODIES: dict[str, type[BaseModel]] = {
    "/v1/completions": CompletionBody,
    "/v1/chat/completions": ChatBody,
    "/tokenize": TokenizeBody,
    "/detokenize": DetokenizeBody,
}


class Application(FastAPI):
    """FastAPI's, whose schema names the model that is served."""

    name = ""

    def openapi(self) -> dict[str, Any]:
        """Return the schema."""
        told = super().openapi()
        for body in BODIES.values():
            told["components"]["schemas"][body.__name__]["properties"]["model"] = {
                "type": "string",
                "enum": [self.name],
            }
        return told


def build(service: Service) -> FastAPI:
    """Return the application."""
    settings = service.settings
    app = Application(title="Stretto", version=__version__, docs_url=None, redoc_url=None)
    app.name = settings.name
    app.add_middleware(Guard, settings=settings, keys=Keys(settings.api_key_file), count=service.metrics.count)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
        )
    _errors(app, service)
    _about(app, service)
    _tokens(app, service)

    @app.post("/v1/completions")
    async def completions(request: Request, body: CompletionBody) -> Response:
        """Go on from a text."""
        return await service.complete(request, body)

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request, body: ChatBody) -> Response:
        """Answer a conversation."""
        return await service.chat(request, body)

    return app


def _about(app: FastAPI, service: Service) -> None:
    """Add what says how the server is and what it serves."""
    settings, engine = service.settings, service.engine
    created = int(time.time())

    def card() -> dict[str, Any]:
        about: dict[str, Any] = {"id": settings.name, "object": "model", "created": created, "owned_by": "stretto"}
        if engine.alive:
            info = engine.info()
            about |= {
                "max_model_len": info["context"],
                "numerics": info["fingerprint"],
                "method": info["method"],
                "methods": info["available"],
            }
        return about

    @app.get("/v1/models")
    async def models() -> Response:
        """List what is served."""
        return JSON({"object": "list", "data": [card()]})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        """Tell of one model."""
        check_model(name, (settings.name,))
        return JSON(card())

    @app.get("/health")
    async def health() -> Response:
        """Whether the server is alive: it is, where this is answered."""
        return JSON({"status": "alive"})

    @app.get("/ready")
    async def ready() -> Response:
        """Whether it can serve, or why not."""
        why = engine.why_not_ready
        if why is not None:
            raise unavailable(why)
        return JSON({"status": "ready"})

    @app.get("/metrics")
    async def metrics() -> Response:
        """Tell all counts, in Prometheus' text format."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")


def _tokens(app: FastAPI, service: Service) -> None:
    """Add text to token ids and back."""

    @app.post("/tokenize")
    async def tokenize(body: TokenizeBody) -> Response:
        """Return the token ids of a text or a conversation."""
        model = service.model
        check_model(body.model, (model.name,))
        tokenizer = model.tokenizer
        if tokenizer is None:
            raise wrong(f"{model.name} has no tokenizer")
        if (body.prompt is None) == (body.messages is None):
            raise wrong("expected either prompt or messages", "prompt")
        try:
            if body.messages is not None:
                found = await asyncio.to_thread(
                    chat_ids,
                    model,
                    body.messages,
                    body.tools,
                    {},
                    add_generation_prompt=body.add_generation_prompt,
                )
            else:
                encode = tokenizer.encode if body.add_special_tokens else tokenizer.encode_plain
                found = await asyncio.to_thread(encode, body.prompt or "")
        except ValueError as error:
            raise wrong(str(error), "prompt") from None
        told = {"tokens": found, "count": len(found), "max_model_len": service.engine.info()["context"]}
        if body.return_token_strs:
            told["token_strs"] = [tokenizer.spelling(token) for token in found]
        return JSON(told)

    @app.post("/detokenize")
    async def detokenize(body: DetokenizeBody) -> Response:
        """Return the text of token ids."""
        model = service.model
        check_model(body.model, (model.name,))
        if model.tokenizer is None:
            raise wrong(f"{model.name} has no tokenizer")
        vocabulary = service.engine.info()["vocab_size"]
        for token in body.tokens:
            if not 0 <= token < vocabulary:
                raise wrong(f"tokens holds {token}, expected whole numbers from 0 to {vocabulary - 1}", "tokens")
        return JSON({"prompt": await asyncio.to_thread(model.tokenizer.decode, body.tokens, False)})


def _errors(app: FastAPI, service: Service) -> None:
    """Let every error have OpenAI's shape."""

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> Response:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        model = BODIES.get(request.url.path)
        service.metrics.rejected.labels("invalid").inc()
        return unreadable(error.errors(), list(model.model_fields) if model is not None else []).response()

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        message = (
            f"there is no {request.method} {request.url.path:.200} here"
            if error.status_code == 404
            else str(error.detail)
        )
        return ApiError(error.status_code, message, headers=error.headers).response()

    @app.exception_handler(ClientGone)
    async def client_gone(request: Request, error: ClientGone) -> Response:
        return Response(status_code=499)

"""``LLM``: one model on this machine, asked from Python."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from stretto.cache.memory import default_cache_tokens
from stretto.core.batch import Model
from stretto.core.params import SamplingParams
from stretto.core.request import Delta, Request
from stretto.decoding.method import DecodingMethod
from stretto.decoding.score import Score
from stretto.engine.completion import Completion, Piece, complete, refused, reply_of
from stretto.engine.intake import Intake, Prompt, Written
from stretto.engine.step import Engine
from stretto.kernels import native
from stretto.models.backend import AnyTransformer
from stretto.models.families import family_of
from stretto.models.loader import load_model
from stretto.recipes.recipe import Aboard
from stretto.recipes.table import build_method, find_recipe
from stretto.tokens.tokenizer import Tokenizer
from stretto.weights.resolve import resolve

log = logging.getLogger("stretto")
MAX_ROWS = 256
"""Default row budget of a step: long prompts are cut into slices of it, so that others keep their pace."""


class LLM:
    """A model, its cache and its scheduler, in this process. Not for several threads at once: see ``AsyncEngine``.

    ``model``: an embedded name, a checkpoint folder or a hub id. ``dtype``: precision of activations and cache,
    ``weights``: format of the matrices (``auto`` keeps the checkpoint's own, fp16 is widened to fp32).
    ``device``: ``cpu``, ``cuda`` or ``auto`` (the CPU, until the GPU has kernels of its own). ``method``: the default
    decoding method. ``draft``: a smaller checkpoint that drafts for the methods that need one; one with another
    vocabulary serves those that need a ``foreign-draft``. ``draft_weights``: format of its matrices, on which no
    text of an exact method depends (int8 halves the time of its passes). ``threads``: for the whole process (default:
    PyTorch's choice, one per core). ``cache_tokens``: positions that each model's cache holds (default: what a share
    of the free memory holds of all). ``max_rows``: row budget of a step. ``progress``: called with the number of
    weights loaded and of all.

    Raises ``ValueError`` for arguments, ``FileNotFoundError`` and ``ValueError`` for checkpoints, saying what to do.
    """

    def __init__(
        self,
        model: str = "stretto-tiny",
        *,
        dtype: str = "auto",
        weights: str = "auto",
        device: str = "auto",
        method: str = "auto",
        draft: str | None = None,
        draft_weights: str = "auto",
        threads: int | None = None,
        cache_tokens: int | None = None,
        max_rows: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        for name, value in (("threads", threads), ("cache_tokens", cache_tokens), ("max_rows", max_rows)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{name}={value!r}: expected a whole number of at least 1, or None for the default")
        if draft is None and draft_weights != "auto":
            raise ValueError(f"draft_weights={draft_weights!r}, but there is no draft: name one, or leave this out")
        where = pick_device(device)
        if threads is not None:
            torch.set_num_threads(threads)
        native.set_threads(torch.get_num_threads())
        if native.load() is None:
            native.notice_once()
        folder = Path(resolve(str(model), accept=family_of))
        home = None if draft is None else draft_folder(str(draft))
        self.name = str(model)
        self.tokenizer = Tokenizer.load(folder)
        self._load = partial(load_model, dtype=dtype, device=where, progress=progress)
        self.folder = folder
        self.model = self._load(folder, name="target", weights=weights)
        models: dict[str, AnyTransformer] = {"target": self.model}
        self._tokenizers: dict[str, Tokenizer | None] = {"target": self.tokenizer}
        self._foreign: frozenset[str] = frozenset()
        if home is not None:
            models["draft"] = self._load(home, name="draft", weights=draft_weights)
            self._tokenizers["draft"] = Tokenizer.load(home)
            if not same_vocabulary(models, self._tokenizers, str(draft)):
                self._foreign = frozenset({"draft"})
        bytes_per_token = sum(lane.bytes_per_token() for model in models.values() for lane in model.lanes)
        free = torch.cuda.mem_get_info()[0] if where.type == "cuda" else None
        capacity = cache_tokens or default_cache_tokens(bytes_per_token, self.model.context, free=free)
        self.engine = Engine(models, [], cache_tokens=capacity, max_rows=max_rows or MAX_ROWS, device=where)
        eos = self.model.spec.eos_ids | (self.tokenizer.eos_ids if self.tokenizer else frozenset())
        for aboard in models.values():
            aboard.measure()
        self.intake = Intake(self.model, self.tokenizer, eos, self.engine.caches["target"].capacity, count())
        self.default_method = self.method(method).name
        self._score = Score()
        self._boxes: dict[int, deque[Delta]] = {}
        """What steps added to the requests of open streams, whoever made the steps."""

    @property
    def fingerprint(self) -> str:
        """What the text depends on beside prompt, parameters and seed: checkpoint, formats, rope, kernels."""
        return self.model.fingerprint

    @property
    def aboard(self) -> Aboard:
        """What methods may be built from."""
        return Aboard(self.engine.models, self._tokenizers, self._foreign)

    def method(self, name: str | None) -> DecodingMethod:
        """Return the method of that name (None: the default), put aboard when first asked for."""
        name = self.default_method if name is None else name
        if name not in self.engine.methods or name == Score.name:
            for model, options in find_recipe(name).brings.items():
                self._bring(model, options)
            self.engine.add_method(build_method(name, self.aboard))
        return self.engine.methods[name]

    def _bring(self, name: str, options: Mapping[str, Any]) -> None:
        """Load the target's checkpoint again, as a method asks for it. Raises what ``load_model`` raises."""
        if name not in self.engine.models:
            model = self._load(self.folder, name=name, **options)
            self.engine.add_model(name, model, self.engine.caches["target"].capacity)
            model.measure()

    def submit(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        method: str | None = None,
        resume: Mapping[int, Written] | None = None,
    ) -> list[Request]:
        """Queue the ``n`` samples of one prompt; the caller then steps ``engine``. Raises ``ValueError``.

        ``resume``: what each sample that had not ended wrote in another engine of the same fingerprint; it goes on as
        if it had never left that one.
        """
        if params is not None and not isinstance(params, SamplingParams):
            raise ValueError(f"params={params!r}: expected SamplingParams; SamplingParams.from_dict reads a dictionary")
        requests = self.intake.requests(prompt, params or SamplingParams(), self.method(method), resume=resume)
        for request in requests:
            self.engine.submit(request)
        return requests

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        method: str | None = None,
    ) -> list[Completion]:
        """Complete a text, a list of texts, or a list of token-id lists.

        Returns the completions prompt after prompt, the ``n`` samples of each side by side. In a list, a bad prompt
        or parameter ends its own completions (``finish_reason`` ``error``, ``.error`` says why) and no other's; for a
        single text it raises ``ValueError``.
        """
        single = isinstance(prompts, str)
        listed: list[Prompt] = [cast(Prompt, prompts)] if single else list(cast("Sequence[Prompt]", prompts))
        if any(isinstance(prompt, int) for prompt in listed):
            raise ValueError("prompts is a list of whole numbers: for one prompt of token ids give [[...]]")
        several = isinstance(params, Sequence)
        each = list(cast("Sequence[SamplingParams]", params)) if several else [params] * len(listed)
        if len(each) != len(listed):
            raise ValueError(f"params holds {len(each)} entries for {len(listed)} prompts: give one, or one each")
        taken: list[list[Request] | Completion] = []
        for index, (prompt, own) in enumerate(zip(listed, each, strict=True)):
            try:
                taken.append(self.submit(prompt, cast("SamplingParams | None", own), method))
            except Exception as error:
                if single:
                    raise
                taken.append(refused(index, error, method or self.default_method))
        self._finish([request for entry in taken if isinstance(entry, list) for request in entry])
        results: list[Completion] = []
        for index, entry in enumerate(taken):
            results += [entry] if isinstance(entry, Completion) else [self._complete(r, index) for r in entry]
        return results

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        method: str | None = None,
    ) -> Iterator[Piece]:
        """Complete one prompt, piece by piece as it is written. Leaving the loop early aborts it."""
        requests = {r.id: r for r in self.submit(prompt, params, method)}
        boxes = {number: deque[Delta]() for number in requests}
        self._boxes |= boxes
        try:
            while boxes:
                if not any(boxes.values()):
                    self._step()
                for number in [number for number, box in boxes.items() if box]:
                    delta, request = boxes[number].popleft(), requests[number]
                    if delta.finish:
                        del boxes[number], self._boxes[number]
                    done = self._complete(request) if delta.finish else None
                    yield Piece(request.sample, delta.text, delta.tokens, done)
        finally:
            for number in boxes:
                del self._boxes[number]
                self.engine.abort(number)

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        method: str | None = None,
    ) -> list[Completion]:
        """Answer a conversation (``role`` and ``content`` each) through the checkpoint's own chat template.

        ``tools``: JSON schemas of what the model may call. ``reply`` of each completion holds its thinking, text and
        calls.
        """
        requests = self.submit(self.encode_chat(messages, tools), params, method)
        self._finish(requests)
        completions = [self._complete(request) for request in requests]
        for request, completion in zip(requests, completions, strict=True):
            completion.reply = reply_of(request, self.tokenizer, tools)
        return completions

    def encode_chat(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> list[int]:
        """Return the conversation's token ids as the chat template writes it, ready for the answer.

        Raises ``ValueError`` when the checkpoint has no tokenizer or no template, or the template refuses it.
        """
        if self.tokenizer is None:
            raise ValueError(f"{self.name} has no tokenizer: use generate with token ids")
        return self.tokenizer.encode_chat(messages, tools=tools)

    def logits(self, token_ids: Sequence[int]) -> Tensor:
        """Return the logits behind each token: float32 [len(token_ids), vocab], on the CPU.

        Computed like any request's: through the scheduler, in slices, in the cache.
        """
        if self._score.name not in self.engine.methods:
            self.engine.add_method(self._score)
        (request,) = self.intake.requests(token_ids, SamplingParams(), self._score, reuse=False, generate=False)
        self.engine.submit(request)
        self._finish([request])
        if request.error is not None:
            raise RuntimeError(request.error)
        return torch.cat([request.scores[start] for start in sorted(request.scores)]).cpu()

    def _step(self) -> None:
        for delta in self.engine.step():
            if delta.request in self._boxes:
                self._boxes[delta.request].append(delta)

    def _finish(self, requests: Sequence[Request]) -> None:
        try:
            while any(request.finish is None for request in requests):
                self._step()
        except BaseException:
            for request in requests:
                self.engine.abort(request.id)
            raise

    def _complete(self, request: Request, index: int = 0) -> Completion:
        return complete(request, self.fingerprint, self.engine.methods[request.method].facts.fidelity, index)


def draft_folder(draft: str) -> Path:
    """Return the checkpoint folder of a draft model. Raises what ``resolve`` raises, with the draft named."""
    try:
        return Path(resolve(draft, accept=family_of))
    except (ValueError, FileNotFoundError) as error:
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        raise kind(f"the draft: {error}") from None


def same_vocabulary(models: Mapping[str, Model], tokenizers: Mapping[str, Tokenizer | None], draft: str) -> bool:
    """Whether the draft's token ids are the target's. A model's padding tokens do not count.

    Raises ``ValueError`` where that cannot be known: one of the two has no tokenizer, and their sizes differ.
    """
    ours, theirs = tokenizers["target"], tokenizers["draft"]
    if ours is not None and theirs is not None:
        return ours.speaks_like(theirs)
    sizes = models["target"].vocab_size, models["draft"].vocab_size
    if sizes[0] != sizes[1]:
        lacking = "the draft" if theirs is None else "the target"
        raise ValueError(
            f"draft={draft!r} has {sizes[1]} tokens, the target {sizes[0]}, and {lacking} has no tokenizer that could "
            "translate: expected a draft of the same vocabulary, or tokenizers beside both (for method='slem')"
        )
    return True


def pick_device(device: str) -> torch.device:
    """Return the device of that name; ``auto`` is the CPU. Raises ``ValueError`` for one that is not here."""
    if device in ("auto", "cpu"):
        return torch.device("cpu")
    if device == "cuda":
        if not torch.cuda.is_available():
            raise ValueError("device='cuda': PyTorch finds no CUDA device here; use device='cpu'")
        log.warning("device='cuda' runs the reference kernels: correct, and not yet fast")
        return torch.device("cuda")
    raise ValueError(f"device={device!r}: expected 'auto', 'cpu' or 'cuda'")

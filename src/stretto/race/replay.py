"""Replay: passes at their full cost, choices of a recorded text.

Who sizes a machine before owning the model has a checkpoint of the right shape (random weights will do) and texts that
some model wrote. A replayed target computes every pass, and behind it makes the recorded token win at every row that
lies on a recorded path: prompt and recorded tokens up to the row, nothing else. So drafts that copy from the text, and
drafts of a draft model that is aboard, are accepted as often as the text deserves, at the price of this machine.

What does not carry over is what a method reads from the target itself. Rows off the recorded path, rows that see less
than their whole path and rows that leave early keep the logits that the weights give, so methods that draft from those
(Jacobi, lookahead decoding, early exit) are worth here what the weights are worth. Nor do probabilities: a recorded
token is certain, so verifiers that weigh the target's against a draft's mean nothing on a replay.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch

from stretto.core.batch import Batch, LaneSpec, LaneStorage, Model, Result
from stretto.core.chunk import CONTEXT, Chunk, Segment
from stretto.core.request import Request
from stretto.race.record import Record

if TYPE_CHECKING:
    from stretto.engine.llm import LLM
    from stretto.models.backend import AnyTransformer

LEAD = 1e6
"""By how much the recorded token leads: more than noise, temperature, penalties and bias can make up for."""

Key = tuple[tuple[int, ...], int]
"""What tells a recorded text from others: its prompt and its seed."""


def replay(llm: LLM, records: Iterable[Record]) -> LLM:
    """Make the target of ``llm`` say these recorded texts, and return ``llm``.

    A request says the text of the record with its prompt and seed, if there is one: run it with ``record.asked``'s
    parameters. Methods that are aboard already are built again. Raises ``ValueError`` for a text without a seed and
    for two that cannot be told apart.
    """
    scripts: dict[Key, list[int]] = {}
    for record in records:
        ids, seed = record.asked.ids, record.asked.params.seed
        if seed is None:
            raise ValueError("a recorded text has no seed to be known by: give each one, such as its number")
        tokens = [*ids, *record.tokens]
        if scripts.setdefault((ids, seed), tokens) != tokens:
            raise ValueError(f"two recorded texts have the same prompt and the seed {seed}: give them different seeds")
    target = Replayed(llm.engine.models["target"], scripts, llm.engine.requests)
    llm.engine.models["target"] = target
    llm.model = cast("AnyTransformer", target)  # whatever is not a pass is still the transformer's
    llm.engine.methods.clear()
    llm.method(llm.default_method)
    return llm


@dataclass(slots=True)
class _Place:
    """How far a request is known to follow its script."""

    script: list[int]
    checked: int = 0


class Replayed:
    """A ``Model`` that computes as the one it wraps, and whose choices follow scripts. All else is the other's."""

    name: str
    vocab_size: int
    context: int
    width: int
    layers: int
    lanes: tuple[LaneSpec, ...]
    rope_border: int | None
    own_threads: bool

    def __init__(self, model: Model, scripts: Mapping[Key, list[int]], requests: Mapping[int, Request]) -> None:
        """``scripts``: prompt and text by prompt and seed. ``requests``: those of the engine, by their numbers."""
        self._model, self._scripts, self._requests = model, scripts, requests
        self.fingerprint = f"replay-{model.fingerprint}"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def bind(self, storage: dict[str, LaneStorage]) -> None:
        """Bind the model itself."""
        self._model.bind(storage)

    def forward(self, batch: Batch) -> Result:
        """Run the model's own pass, then let the recorded tokens win."""
        result = self._model.forward(batch)
        places: list[int] = []
        tokens: list[int] = []
        first = 0
        for part in batch.parts:
            chunk = part.chunk
            wanted = chunk.wanted
            if len(wanted) and (script := self._script(chunk)) is not None:
                follows = self.follows(chunk, script)
                for place, row in enumerate(wanted, first):
                    following = chunk.index[row] + 1
                    if follows[row] and following < len(script):
                        places.append(place)
                        tokens.append(script[following])
            first += len(wanted)
        if places:
            result.logits[torch.tensor(places), torch.tensor(tokens)] += LEAD
        return result

    def follows(self, chunk: Chunk, script: list[int]) -> list[bool]:
        """Return of each row whether its path, prompt and all, is the script's beginning.

        A row that sees anything but its own path is none of plain decoding: False.
        """
        start = chunk.index[0]
        found: list[bool] = []
        for segment in chunk.segments or [Segment(len(chunk))]:
            first, strange = len(found), segment.mutual or segment.also or segment.held or segment.sees is not None
            for row in range(first, first + segment.rows):
                before = segment.parent if row == first else row - 1
                index = chunk.index[row]
                behind = index == start if before == CONTEXT else found[before] and index == chunk.index[before] + 1
                known = index < len(script) and script[index] == chunk.tokens[row]
                found.append(not strange and behind and known)
        return found

    def _script(self, chunk: Chunk) -> list[int] | None:
        """Return what the chunk's request is to say, None where its rows are left as they are.

        That is so without a record, for a further context, for rows that do not pass all the last layers or see by a
        policy, and once the request's text has left the script.
        """
        request = self._requests.get(chunk.request)
        whole = chunk.layers is None or chunk.layers[1] == self.layers
        if request is None or chunk.leg or chunk.sight is not None or not whole:
            return None
        place: _Place | None = request.memory.get("replay")
        if place is None:
            script = self._scripts.get((tuple(request.prompt), request.seed))
            if script is None:
                return None
            place = request.memory["replay"] = _Place(script)
        start = chunk.index[0]
        if place.checked < start:
            if request.tokens[place.checked : start] != place.script[place.checked : start]:
                return None
            place.checked = start
        return place.script

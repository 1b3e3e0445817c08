"""One row of the table of methods, and what a row may build from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stretto.decoding.method import DecodingMethod, Fidelity

if TYPE_CHECKING:
    from stretto.core.batch import Model
    from stretto.tokens.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Aboard:
    """What an engine has that methods may be built from."""

    models: Mapping[str, Model] = field(default_factory=dict)
    """``target``, and ``draft`` where a draft model is aboard."""
    tokenizers: Mapping[str, Tokenizer | None] = field(default_factory=dict)
    """Of the models that have one, by the models' names."""
    foreign: frozenset[str] = frozenset()
    """Models whose tokens are not the target's."""

    def things(self) -> frozenset[str]:
        """Return the names that ``Recipe.needs`` may hold: models, lanes, ``tokenizer``.

        A model with another vocabulary than the target's is called ``foreign-`` and its name.
        """
        lanes = {lane.name for model in self.models.values() for lane in model.lanes}
        tokenizer = {"tokenizer"} if self.tokenizers.get("target") is not None else set()
        models = {f"foreign-{name}" if name in self.foreign else name for name in self.models}
        return frozenset(lanes | tokenizer | models)


@dataclass(frozen=True, slots=True)
class Recipe:
    """A method: how to put it together from parts, what it promises, and where it was published."""

    name: str
    build: Callable[[Aboard], DecodingMethod]
    family: str
    """What kind of method it is, in the words of ``FAMILIES``."""
    fidelity: Fidelity
    """What is promised here."""
    claim: str = ""
    """What the paper claims, where it says so: exact-greedy, exact-distribution, approximate."""
    needs: frozenset[str] = frozenset()
    """What must be aboard: names of ``Aboard.things``."""
    brings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Models that come aboard with it, made of the target's checkpoint: name to options of ``load_model``."""
    same_as: str = ""
    """Another row that drafts the same trees, where the papers describe one algorithm."""
    source: str = ""


FAMILIES = {
    "plain": "one token a step",
    "auto": "whatever pays",
    "retrieval": "drafts copied from text seen before",
    "jacobi": "drafts from the target's own parallel guesses",
    "draft-model": "drafts of a smaller model",
    "self": "drafts of a cheaper form of the target",
    "tree": "shape and length of the draft",
    "batch": "whose drafts are sent when rows are short",
    "sampling": "verifiers that keep the distribution",
    "lossy": "verifiers that change it",
}

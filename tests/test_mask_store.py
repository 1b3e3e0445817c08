"""Grammars that are built once, beside the engine, and shared by requests of one tenant."""

from __future__ import annotations

import queue
import threading
from typing import Any

import pytest

from stretto.core.masks import register_mask
from stretto.core.params import SamplingParams
from stretto.engine.builder import BUILT, Builder
from stretto.engine.llm import LLM
from stretto.engine.mask_store import KEPT, MaskStore

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


def asked(schema: Any = SCHEMA, tenant: str = "") -> SamplingParams:
    return SamplingParams(mask=("json_schema", {"schema": schema}), tenant=tenant)


def test_equal_grammars_of_one_tenant_are_built_once(tiny: LLM):
    store = MaskStore(tiny.model.vocab_size, tiny.intake.eos_ids, tiny.intake.words)
    first = store.of(asked())
    assert store.of(asked(dict(SCHEMA))) is first and store.ready(asked())
    assert not store.ready(asked(dict(reversed(SCHEMA.items())))), "the order of properties is part of a schema"
    assert not store.ready(asked(tenant="another")) and store.of(asked(tenant="another")) is not first
    assert store.of(SamplingParams()) is None and store.ready(SamplingParams())
    for _ in range(2):
        with pytest.raises(ValueError, match="schema"):
            store.of(asked(3))
    for number in range(KEPT):
        store.of(asked({"const": number}))
    assert not store.ready(asked())


def test_masks_that_may_change_are_built_for_each_request():
    class Fresh:
        """Allows all; not told to be lasting."""

    register_mask("fresh", lambda vocab_size, eos_ids: Fresh())
    store, params = MaskStore(10, {0}, None), SamplingParams(mask=("fresh", {}))
    assert store.of(params) is not store.of(params)


def test_others_pass_while_a_grammar_is_built_and_what_follows_a_request_stays_behind_it():
    """An abort must not overtake its request, nor a grammar hold up anybody else."""
    going = threading.Event()

    class Slow(MaskStore):
        def of(self, params: SamplingParams) -> None:
            assert going.wait(60)
            raise ValueError("whatever is wrong is said when the request is handled")

    inbox: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    builder = Builder(Slow(10, {0}, None))
    slow = {"op": "submit", "id": 1, "prompt": [1], "params": asked().to_dict()}
    plain = {"op": "submit", "id": 2, "prompt": [1], "params": {}}
    wrong = {"op": "submit", "id": 3, "prompt": [1], "params": {"mask": 3}}
    abort = {"op": "abort", "id": 1}
    assert builder.pass_on(slow, inbox) == [] and builder.pass_on(abort, inbox) == []
    for other in (plain, wrong, {"op": "abort", "id": 2}, {"op": "submit", "id": 4, "params": 5}):
        assert builder.pass_on(other, inbox) == [other]
    going.set()
    built = inbox.get(timeout=60)
    assert built == {"op": BUILT, "id": 1} and builder.pass_on(built, inbox) == [slow, abort]

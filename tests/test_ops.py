"""The op table: another backend stands in for the reference without a change in the models."""

from __future__ import annotations

from dataclasses import fields

import torch
from helpers import plain_text
from small import small_parameters, small_spec

from stretto.kernels.table import REFERENCE, Ops
from stretto.models.transformer import Transformer


def test_a_backend_stands_in_through_the_op_table():
    """Every operation of a pass goes through the table: a backend of counting wrappers gives the same bits."""
    calls: dict[str, int] = {}

    def counting(name, op):
        def counted(*arguments, **named):
            calls[name] = calls.get(name, 0) + 1
            return op(*arguments, **named)

        return counted

    names = [field.name for field in fields(Ops) if field.name != "name"]
    ops = Ops("counting", **{name: counting(name, getattr(REFERENCE, name)) for name in names})
    spec = small_spec(2)
    texts = []
    for table in (REFERENCE, ops):
        model = Transformer(
            spec, small_parameters(spec), name="target", dtype=torch.float32, fingerprint="ops", ops=table
        )
        texts.append(plain_text(model, [1, 2, 3], max_tokens=8))
    assert texts[0] == texts[1]
    assert calls.keys() == set(names) - {"layer_norm", "softcap", "choose_experts", "mixture"}

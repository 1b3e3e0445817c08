"""Comparing quantized checkpoints with transformers' model of the weights that they stand for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median

import checkpoints
import torch
import transformers
from torch import Tensor

from stretto import LLM, SamplingParams
from stretto.models.loader import open_source
from stretto.weights.formats import dequantize
from stretto.weights.stored import StoredQuantized

IDS = checkpoints.token_ids(40)


def exact(place: Path, model: transformers.PreTrainedModel, plain: Path) -> None:
    """Assert that ``place`` stands for the very weights of ``model``, and has its specification.

    ``model`` is written to ``plain`` by transformers, and read from there.
    """
    model.save_pretrained(plain)
    ours, theirs = open_source(place, "auto"), open_source(plain, "fp32")
    found, expected = (repr(replace(each.spec, eos_ids=frozenset())) for each in (ours, theirs))
    assert found == expected, f"{found}\n{expected}"
    assert ours.parameters.keys() - {"head"} == theirs.parameters.keys() - {"head"}
    for name, matrix in ours.parameters.items():
        expected = theirs.parameters[name if name in theirs.parameters else "embed"]
        assert torch.equal(dequantize(matrix), dequantize(expected)), name


def logits(place: Path) -> Tensor:
    """Return the logits behind each of ``IDS``, activations in fp32."""
    return LLM(str(place), dtype="fp32", cache_tokens=256).logits(IDS)


@torch.inference_mode()
def distance(found: Tensor, model: transformers.PreTrainedModel, ids: Sequence[int] = IDS) -> float:
    """Return the largest difference to transformers' logits, as a share of the largest one."""
    expected = model(torch.tensor([ids])).logits[0]
    return float((found - expected).abs().max() / expected.abs().max())


def assert_greedy(place: Path, model: transformers.PreTrainedModel, count: int = 12) -> None:
    """Assert that greedy decoding writes what transformers' does."""
    params = SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True)
    (found,) = LLM(str(place), dtype="fp32", cache_tokens=256).generate([IDS], params)
    expected = model.generate(torch.tensor([IDS]), max_new_tokens=count, do_sample=False)
    assert found.token_ids == expected[0, len(IDS) :].tolist()


def assert_as_rounded(place: Path, model: transformers.PreTrainedModel, checkpoint: StoredQuantized) -> None:
    """Assert that logits are those of ``model`` with the inputs of the matrices that ``checkpoint`` keeps rounded.

    Between two orders of adding, a number half way between two whole ones may be rounded either way, which shows in all
    that follows: so there are several short prompts, of which most agree to 1e-4, and all better than unrounded ones.
    """
    llm = LLM(str(place), dtype="fp32", cache_tokens=256)
    prompts = [IDS[start : start + 3] for start in range(0, len(IDS) - 3, 3)]
    found = [llm.logits(ids) for ids in prompts]
    plain = [distance(each, model, ids) for each, ids in zip(found, prompts, strict=True)]
    with rounding_inputs(model, checkpoint):
        rounded = [distance(each, model, ids) for each, ids in zip(found, prompts, strict=True)]
    assert median(rounded) < 1e-4 and max(rounded) < max(plain) and median(plain) > 1e-3, (rounded, plain)


@contextmanager
def rounding_inputs(model: transformers.PreTrainedModel, checkpoint: StoredQuantized) -> Iterator[None]:
    """Have the products of matrices that ``checkpoint`` keeps read inputs as ours do: int8 in groups of 32, each scaled
    by its largest magnitude / 127."""

    def rounded(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        groups = inputs[0].unflatten(-1, (-1, 32))
        scale = groups.abs().amax(-1, keepdim=True) / 127
        return ((groups / scale.clamp(min=1e-30)).round().mul(scale).flatten(-2),)

    kept = checkpoint.keeps
    handles = [
        module.register_forward_pre_hook(rounded)
        for name, module in model.named_modules()
        if f"{name}.weight" in kept or (name == "lm_head" and "model.embed_tokens.weight" in kept)
        if isinstance(module, torch.nn.Linear)
    ]
    yield
    for handle in handles:
        handle.remove()

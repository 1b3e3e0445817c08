"""Text that a model writes: what a draft is distilled on beside the fixed corpora (DistillSpec, arXiv 2310.08461)."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np

from stretto.core.params import SamplingParams
from stretto.engine.llm import LLM
from stretto.training.batches import Documents

LONGEST_PROMPT = 128
LONGEST_ANSWER = 256
TEMPERATURES = (0.8, 1.0)


def write(llm: LLM, prompts: list[list[int]], seed: int) -> list[list[int]]:
    """Return each of ``prompts`` (token ids) with the model's continuation behind it, at ``TEMPERATURES`` in turns.

    The same seed gives the same text. Raises ``RuntimeError`` when the engine cannot serve one of them.
    """
    params = [
        SamplingParams(temperature=TEMPERATURES[i % len(TEMPERATURES)], max_tokens=LONGEST_ANSWER, seed=seed + i)
        for i in range(len(prompts))
    ]
    texts = []
    for prompt, completion in zip(prompts, llm.generate(prompts, params), strict=True):
        if completion.error is not None:
            raise RuntimeError(f"{llm.name} could not go on from a prompt of {len(prompt)} tokens: {completion.error}")
        texts.append([*prompt, *completion.token_ids])
    return texts


def beginnings(documents: Documents, count: int, longest: int, seed: list[int]) -> list[list[int]]:
    """Return the first tokens, 1 to ``longest`` of them, of ``count`` documents drawn with ``seed``."""
    generator = np.random.default_rng(seed)
    prompts = []
    for document in generator.integers(len(documents), size=count):
        tokens = documents[document]
        prompts.append(tokens[: generator.integers(1, min(longest, len(tokens) - 1) + 1)].tolist())
    return prompts


def write_documents(
    author: Callable[[], LLM], prompts: Callable[[int], list[list[int]]], folder: Path, pieces: int, seed: int
) -> Documents:
    """Return the author's texts behind ``prompts(number)`` for each of ``pieces`` numbers.

    A piece is kept as a file in ``folder``, so that an interrupted run writes only what is missing; ``author`` is
    called if anything is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    llm, written = cache(author), []
    for number in range(pieces):
        path = folder / f"piece-{number:04}.npz"
        if not path.exists():
            begun = prompts(number)
            Documents.of(write(llm(), begun, (seed << 32) + number * len(begun))).save(path)
        written.append(Documents.load(path))
    return Documents.joined(written)

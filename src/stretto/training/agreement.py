"""How often a draft chooses what its target chooses: what decides how much a draft is worth."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from stretto.core.filters import filtered
from stretto.core.noise import NoiseKey, Stream, gumbel, prompt_hash
from stretto.core.params import SamplingParams
from stretto.engine.llm import LLM
from stretto.tokens.tokenizer import Tokenizer
from stretto.training.corpus import begun, find_corpora, read_documents

SAMPLED = SamplingParams(temperature=0.8, top_p=0.95)


@dataclass(frozen=True)
class Agreement:
    """Of ``tokens`` choices, at how many both models chose the same token: greedily, and with the same noise."""

    tokens: int = 0
    greedy: int = 0
    coupled: int = 0

    def __add__(self, other: Agreement) -> Agreement:
        return Agreement(self.tokens + other.tokens, self.greedy + other.greedy, self.coupled + other.coupled)

    def __str__(self) -> str:
        greedy, coupled = (count / max(1, self.tokens) for count in (self.greedy, self.coupled))
        return f"greedy {greedy:.3f}, coupled {coupled:.3f}, {self.tokens} tokens"


def agreement(target: LLM, draft: LLM, documents: Iterable[str], seed: int = 0) -> Agreement:
    """Compare both models' choices behind every token of ``documents``, each begun with BOS and cut at the context.

    The coupled choice samples as ``SAMPLED`` says, each model from its own logits, both with the noise that the
    engine would use at that place of a text. Raises ``ValueError`` for models with different vocabularies.
    """
    tokenizer = same_vocabulary(target, draft)
    found = Agreement()
    for document in documents:
        ids = begun(tokenizer, document)[: min(target.model.context, draft.model.context)]
        base = NoiseKey.base_of(seed, 0, prompt_hash(ids))
        # In slices, because the noise of a long document is a large tensor of 64-bit integers.
        both = [llm.logits(ids).split(256) for llm in (target, draft)]
        for number, pair in enumerate(zip(*both, strict=True)):
            rows = len(pair[0])
            greedy = [logits.argmax(-1) for logits in pair]
            keys = [NoiseKey(base, number * 256 + row).bits(Stream.CHOICE) for row in range(rows)]
            noise = gumbel(keys, pair[0].shape[-1], "cpu")
            drawn = [(filtered(logits.clone(), [SAMPLED] * rows) + noise).argmax(-1) for logits in pair]
            found += Agreement(rows, int((greedy[0] == greedy[1]).sum()), int((drawn[0] == drawn[1]).sum()))
    return found


def agreement_on_files(
    target: LLM, draft: LLM, data: Path, split: str = "valid", limit: int | None = None
) -> dict[str, Agreement]:
    """Return the agreement on each corpus's documents of ``split`` (the first ``limit``), and ``all`` of them."""
    found = {
        name: agreement(target, draft, read_documents(path)[:limit]) for name, path in find_corpora(data, split).items()
    }
    return {**found, "all": sum(found.values(), Agreement())}


def same_vocabulary(target: LLM, draft: LLM) -> Tokenizer:
    """Return the tokenizer of both models. Raises ``ValueError`` unless both have one, and the same one."""
    if target.tokenizer is None or draft.tokenizer is None:
        missing = target if target.tokenizer is None else draft
        raise ValueError(f"{missing.name} has no tokenizer: agreement is measured on text")
    sizes = [llm.model.spec.vocab_size for llm in (target, draft)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"{draft.name} has {sizes[1]} tokens and {target.name} {sizes[0]}: a draft needs its target's vocabulary"
        )
    for token in range(sizes[0]):
        words = [tokenizer.decode([token], skip_special=False) for tokenizer in (target.tokenizer, draft.tokenizer)]
        if words[0] != words[1]:
            raise ValueError(
                f"token {token} is {words[1]!r} to {draft.name} and {words[0]!r} to {target.name}: "
                "a draft needs its target's tokenizer"
            )
    return target.tokenizer

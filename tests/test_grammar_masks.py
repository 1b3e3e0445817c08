"""Masks of grammars against brute force, over a vocabulary that cuts characters; what the tokens of others spell."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from typing import Any

import pytest
import small_tokenizers
import torch
from structures import NOTHING, behind, nullable, only_byte, random_regex

import stretto.core.structured  # noqa: F401  # registers the masks
from stretto.core.grammar import GrammarMask, Path
from stretto.core.masks import build_mask, lawful
from stretto.tokens.words import Words

# ---- the mask against brute force ----

ALPHABET = "abé日"
PIECES = [
    b"",
    b"a",
    b"b",
    b"ab",
    b"ba",
    b"aab",
    "é".encode(),
    b"\xc3",
    b"\xa9",
    "日".encode(),
    b"\xe6",
    b"\xe6\x97",
    b"\xa5",
]
PIECES += [b"a\xc3", b"\xa9b", "é日".encode(), b"\x97\xa5", b""]
END = 0


class Small(Words):
    """A vocabulary of a few pieces, spelled greedily, some of which end inside a character."""

    def __init__(self) -> None:
        self.size, self.eos_ids = len(PIECES), frozenset({END})
        self.__dict__.update(spelled=PIECES, special=frozenset({END}))

    def spell(self, text: str) -> list[int]:
        rest, ids = text.encode(), []
        while rest:
            ids.append(max((t for t, word in enumerate(PIECES) if word and rest.startswith(word)), key=self._length))
            rest = rest[self._length(ids[-1]) :]
        return ids

    def _length(self, token: int) -> int:
        return len(PIECES[token])


def walks(count: int) -> Iterator[tuple[GrammarMask, str, list[tuple[Path, Any, list[int]]]]]:
    """Yield masks of random regexes and places on random paths: the state, what may follow by derivatives, the path."""
    chance, words = random.Random(7), Small()
    while count:
        pattern, regex = random_regex(chance, ALPHABET)
        if nullable(regex) and chance.random() < 0.8:
            continue
        count -= 1
        for _ in range(50):  # the oracle against another one
            said = "".join(chance.choices(ALPHABET, k=chance.randint(0, 5)))
            assert (re.fullmatch(pattern, said) is not None) == nullable(behind(regex, said.encode()))
        mask = build_mask("regex", {"pattern": pattern}, words.size, words.eos_ids, words)
        assert isinstance(mask, GrammarMask)
        root, places = mask.start(), []
        for _ in range(3):
            state, path = root, []
            for _ in range(8):
                places.append((state, behind(regex, b"".join(PIECES[token] for token in path)), list(path)))
                open_ = [t for t in follows(places[-1][1]) if t != END]
                if not open_:
                    break
                path.append(chance.choice(open_))
                state = mask.advance(state, path[-1])
        chance.shuffle(places)  # one matcher goes back and forth between them
        yield mask, pattern, places


def follows(regex: Any) -> set[int]:
    """Return the tokens behind which something matches, by trying each."""
    found = {token for token, word in enumerate(PIECES) if word and behind(regex, word) != NOTHING}
    return found | {END} if nullable(regex) else found


def spelled(mask: GrammarMask, state: Path) -> set[int]:
    return set(mask.allowed(state).nonzero().flatten().tolist())


def test_the_mask_allows_what_brute_force_allows():
    """Where the text is forced, one of those tokens: the first of the tokenizer's spelling."""
    seen = forced = 0
    for mask, pattern, places in walks(80):
        for state, regex, path in places:
            allowed, possible = spelled(mask, state), follows(regex)
            only = mask.forced(state)
            assert only is None or allowed == {only}, (pattern, path)
            if allowed != possible:
                assert only is not None and allowed == {only} <= possible, (pattern, path, allowed, possible)
                for place in range(len(PIECES[only])):
                    assert only_byte(behind(regex, PIECES[only][:place])) == PIECES[only][place], (pattern, path)
                forced += 1
            seen += 1
    assert seen > 500 and 0 < forced < seen / 2


def test_a_mask_is_a_function_of_its_path():
    """Whatever was asked before, in whatever order; and trying a token is as good as the mask."""
    for mask, pattern, places in walks(40):
        for state, _, path in places:
            allowed = mask.allowed(state)
            anew = mask.start()
            for token in path:
                anew = mask.advance(anew, token)
            assert torch.equal(mask.allowed(anew), allowed), (pattern, path)
            for token in range(len(PIECES)):
                tried = lawful(mask, state, token)
                assert (tried is not None) == bool(allowed[token]), (pattern, path, token)
        dead = mask.advance(mask.start(), 1 + mask.allowed(mask.start())[1:].int().argmin().item())
        assert mask.lawful(dead) or not mask.allowed(mask.advance(dead, 1)).any()


# ---- what tokens spell ----

TOKENIZERS = ("byte_level", "wrapped_byte_level", "metaspace", "byte_fallback", "word_piece")


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_tokens_spell_what_they_add_to_a_text(kind):
    """And a text's own tokens are allowed where a grammar wants that text, to its end."""
    tokenizer = getattr(small_tokenizers, kind)()
    size, end = tokenizer.vocab_size + 3, tokenizer._core.token_to_id("</s>")
    words = Words(tokenizer, size, frozenset({end, size + 5}))
    assert len(words.spelled) == size and words.eos_ids == {end} <= words.special
    for sentence in small_tokenizers.SENTENCES:
        said = tokenizer.decode(tokenizer.encode_plain(sentence))
        spoken = b"".join(words.spelled[token] for token in tokenizer.encode_plain(sentence)).decode()
        assert spoken.removeprefix(" ") == said.removeprefix(" ")
        mask = build_mask(
            "regex", {"pattern": re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", spoken)}, size, words.eos_ids, words
        )
        assert isinstance(mask, GrammarMask)
        state = mask.start()
        for token in [*tokenizer.encode_plain(sentence), end]:
            assert mask.allowed(state)[token] and mask.forced(state) in (None, token)
            state = mask.advance(state, token)

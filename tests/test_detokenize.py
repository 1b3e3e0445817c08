"""Text that streams equals the whole decode at every token, and ends at stop strings as brute force says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from small_tokenizers import SENTENCES, byte_fallback, byte_level, metaspace, word_piece, wrapped_byte_level

from stretto.tokens import StreamDecoder, TextStream, Tokenizer

KINDS = [byte_level, wrapped_byte_level, metaspace, byte_fallback, word_piece]
TEXT = st.lists(
    st.sampled_from(["hello", " fox", " ", "\n", "é", "日本", "🦊", "👩‍👩‍👧", "a"])
    | st.characters(exclude_categories=["Cs"]),
    max_size=20,
).map("".join)


def certain(tokenizer: Tokenizer, ids: list[int]) -> str:
    """What is certain of a byte-level text: all but an unfinished character, which decodes to one U+FFFD."""
    return tokenizer.decode(ids).removesuffix("\ufffd")


def check_stream(decoder: Any, tokenizer: Tokenizer, ids: list[int], skip_special: bool = True) -> None:
    whole = tokenizer.decode(ids, skip_special)
    text = ""
    for token in ids:
        text += decoder.push([token])
        assert whole.startswith(text)
    assert text + decoder.finish() == whole


def check_prompt(decoder: Any, tokenizer: Tokenizer, ids: list[int]) -> None:
    """Nothing is held back that is certain."""
    text = ""
    for count, token in enumerate(ids, 1):
        text += decoder.push([token])
        assert text == certain(tokenizer, ids[:count])


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_stream_of_ids_joins_to_the_whole_decode(kind: Callable[[], Tokenizer], data: st.DataObject) -> None:
    """Ids at random: broken characters, special tokens in the middle, ids that no token has."""
    tokenizer = kind()
    rare = st.sampled_from([0, 1, 2, tokenizer.vocab_size, tokenizer.vocab_size + 7])
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1) | rare, max_size=40))
    skip_special = data.draw(st.booleans())
    check_stream(StreamDecoder(tokenizer, skip_special), tokenizer, ids, skip_special)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(text=TEXT)
def test_text_streams_whole_at_every_token(kind: Callable[[], Tokenizer], text: str) -> None:
    tokenizer = kind()
    ids = tokenizer.encode_plain(text)
    check_stream(StreamDecoder(tokenizer), tokenizer, ids)


@settings(max_examples=60, deadline=None)
@given(text=TEXT.filter(lambda text: "\ufffd" not in text))
@example("🦊")
def test_byte_level_text_comes_promptly_and_never_inside_a_character(text: str) -> None:
    tokenizer = byte_level()
    ids = tokenizer.encode_plain(text)
    assert tokenizer.decode(ids) == text
    check_prompt(StreamDecoder(tokenizer), tokenizer, ids)


def test_broken_bytes_come_out_while_more_of_them_follow() -> None:
    tokenizer = byte_level()
    broken = next(i for i in range(tokenizer.vocab_size) if tokenizer.token_bytes(i) == b"\xff")
    decoder = StreamDecoder(tokenizer)
    assert [decoder.push([broken]) for _ in range(5)] == ["\ufffd"] * 5


@pytest.mark.parametrize("kind", [metaspace, byte_fallback, word_piece, wrapped_byte_level])
def test_the_cost_of_a_token_does_not_grow_with_the_text(
    kind: Callable[[], Tokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = kind()
    ids = tokenizer.encode_plain(" ".join(SENTENCES[:3] * 20))
    sizes: list[int] = []
    decode = Tokenizer.decode

    def counted(self: Tokenizer, ids: list[int], skip_special: bool = True) -> str:
        sizes.append(len(ids))
        return decode(self, ids, skip_special)

    monkeypatch.setattr(Tokenizer, "decode", counted)
    stream = TextStream(tokenizer, ("never",))
    for token in ids:
        stream.push(token)
    assert len(ids) > 500
    assert max(sizes) <= 8
    assert len(sizes) <= 2 * len(ids)


class Alone:
    """Control: decodes each token by itself."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def push(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids)

    def finish(self) -> str:
        return ""


class Late(Alone):
    """Control: gives out everything at the end."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer)
        self.ids: list[int] = []

    def push(self, ids: list[int]) -> str:
        self.ids += ids
        return ""

    def finish(self) -> str:
        return self.tokenizer.decode(self.ids)


class Eager(Late):
    """Control: gives out unfinished characters."""

    def push(self, ids: list[int]) -> str:
        before = self.tokenizer.decode(self.ids)
        super().push(ids)
        return self.tokenizer.decode(self.ids)[len(before) :]

    def finish(self) -> str:
        return ""


@pytest.mark.parametrize(
    ("control", "kind", "check"),
    [
        (Alone, byte_level, check_stream),
        (Alone, metaspace, check_stream),
        (Alone, byte_fallback, check_stream),
        (Eager, byte_level, check_stream),
        (Eager, byte_fallback, check_stream),
        (Late, byte_level, check_prompt),
    ],
)
def test_wrong_decoders_are_caught(control: Any, kind: Callable[[], Tokenizer], check: Any) -> None:
    tokenizer = kind()
    ids = tokenizer.encode_plain("hello little fox \N{DOG FACE}")
    with pytest.raises(AssertionError):
        check(control(tokenizer), tokenizer, ids)


def first_stop(text: str, stop: tuple[str, ...], after: int) -> tuple[int, int] | None:
    """Borders of the stop string that is complete first, at a character beyond ``after``; brute force."""
    for end in range(after + 1, len(text) + 1):
        starts = [end - len(one) for one in stop if text[:end].endswith(one)]
        if starts:
            return min(starts), end
    return None


def unheld(text: str, stop: tuple[str, ...]) -> str:
    """The text without its longest end that a stop string could begin with; brute force."""
    sizes = [size for one in stop for size in range(1, len(one)) if text.endswith(one[:size])]
    return text[: len(text) - max(sizes, default=0)]


@settings(max_examples=300, deadline=None)
@given(data=st.data(), include=st.booleans())
def test_stop_strings_equal_brute_force(data: st.DataObject, include: bool) -> None:
    tokenizer = byte_level()
    letters = st.text("ab 🦊", max_size=12) | TEXT.filter(lambda text: "\ufffd" not in text)
    text = data.draw(letters)
    places = st.tuples(st.integers(0, len(text)), st.integers(1, 6)).map(lambda p: text[p[0] : p[0] + p[1]])
    others = st.text("ab 🦊", min_size=1, max_size=3)
    stop = tuple(data.draw(st.lists((places | others).filter(bool), max_size=3)))
    ids = tokenizer.encode_plain(text)
    min_tokens = data.draw(st.integers(0, 3))

    spared = len(certain(tokenizer, ids[:min_tokens]))
    found = first_stop(text, stop, spared)
    stream = TextStream(tokenizer, stop, include, min_tokens=min_tokens)
    deltas: list[str] = []
    for count, token in enumerate(ids, 1):
        delta, stopped = stream.push(token)
        deltas.append(delta)
        seen = certain(tokenizer, ids[:count])
        assert stopped == (found is not None and len(seen) >= found[1])
        if stopped:
            break
        assert stream.text == unheld(seen, stop)
    deltas.append(stream.flush())
    assert stream.stopped == (found is not None)
    assert "".join(deltas) == stream.text == (text if found is None else text[: found[1] if include else found[0]])
    assert stream.tokens == (count if ids else 0)


def test_a_stop_string_completed_by_the_last_bytes_is_found_on_flush() -> None:
    tokenizer = byte_fallback()
    ids = tokenizer.encode_plain("a fox \N{DOG FACE}")
    stream = TextStream(tokenizer, ("\N{DOG FACE}",))
    assert not any(stream.push(token)[1] for token in ids)
    stream.flush()
    assert stream.stopped
    assert stream.text == "a fox "
    assert stream.push(ids[0]) == ("", True)


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="empty string"):
        TextStream(byte_level(), ("",))

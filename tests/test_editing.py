"""Copying through edits: the trees behind a departure worked out by hand, and what they save on edited texts."""

from __future__ import annotations

import random

import pytest
from scripted import Scripted

from stretto.decoding.speculative.drafters.copying import AggressiveDecoding
from stretto.decoding.speculative.drafters.editing import EDITS, JOINED, LONGEST, TAIL, EditedCopy

INPUT = list(range(10, 22))


def run(*tokens: int) -> list[str]:
    return [".".join(map(str, tokens[: size + 1])) for size in range(len(tokens))]


def branches(at: int) -> list[str]:
    """Return the branches behind a token that was written for the one ``at`` this place of the input."""
    return [node for offset, _ in EDITS for node in run(*INPUT[at + offset : at + offset + TAIL])]


def test_behind_a_departure_the_places_where_the_input_may_go_on_are_branches():
    assert [offset for offset, _ in EDITS] == [1, 2, 3, 0]
    copy = Scripted(EditedCopy(), INPUT).say(10, 11, 12, 13)
    assert copy.paths(16) == run(*INPUT[4:])
    copy.say(50)  # for 14, perhaps
    assert copy.paths(40) == branches(4)
    tree = copy.draft(40).tree
    firsts = [tree.survival[node] for node, parent in enumerate(tree.parents) if parent < 0]
    assert firsts == [said for _, said in EDITS]
    assert copy.paths(9) == branches(4)[:9], "cut to its room"
    assert copy.say(15).paths(16) == run(*INPUT[6:]), "a branch held: copying goes on from there"
    assert copy.say(51).paths(40) == branches(4), "too early: the edit goes on"
    assert copy.say(14).paths(16) == run(*INPUT[5:]), "something was inserted"
    assert copy.say(15, 16, 17, 52).paths(40) == branches(8), "a steady copy, and the next edit"


def test_one_token_of_an_edit_that_stands_elsewhere_in_the_input_is_one_branch_more():
    copy = Scripted(EditedCopy(), [*INPUT, 30, 31]).say(10, 11, 12, 13, 30)
    tree = copy.draft(40).tree
    assert copy.paths(40)[:2] == ["31", "15"] and tree.survival[0] == JOINED
    assert copy.say(31).paths(40) == [], "it went on there"


@pytest.mark.parametrize("written", [1, LONGEST, LONGEST + 1])
def test_an_edit_that_does_not_end_is_given_up(written):
    copy = Scripted(EditedCopy(), INPUT).say(10, 11, 12, 13, *range(40, 40 + written))
    assert bool(copy.paths(40)) == (written <= LONGEST)


def test_it_does_not_matter_how_often_it_is_asked():
    """Tokens of other drafters arrive many at once: an edit that was given up meanwhile is not gone back to."""
    text = [10, 11, 12, 13, 14, 7, 16, 17, 18, 19, 7, 20, 21]
    once, often = (Scripted(EditedCopy(), text).say(10, 11, 12, 13) for _ in range(2))
    for token in [*range(30, 45), 7]:
        often.say(token).draft(40)
    once.draft(40)
    assert once.say(*range(30, 45), 7).paths(40) == often.paths(40) == []


def test_an_input_that_was_copied_to_its_end_may_be_copied_again():
    ours, theirs = (Scripted(kind(), INPUT).say(*INPUT, 50, 10) for kind in (EditedCopy, AggressiveDecoding))
    assert ours.paths(40) == theirs.paths(40) == run(*INPUT[1:])
    assert ours.draft(40).tree.survival == theirs.draft(40).tree.survival


def test_what_never_was_a_copy_has_no_edits():
    copy = Scripted(EditedCopy(), INPUT)
    assert copy.say(10, 11, 12, 40).paths(40) == []


def edited(source: random.Random, text: list[int]) -> list[int]:
    """Return the text with some tokens replaced, inserted or left out; the new ones stand in it, too."""
    written: list[int] = []
    for token in text:
        kind = source.randrange(24)
        written += [source.choice(text)] * (kind in (0, 1, 2)) + [token] * (kind not in (0, 3))
    return written


def steps(drafter: AggressiveDecoding, text: list[int], answer: list[int]) -> int:
    told, taken = Scripted(drafter, text), 0
    whole = [*text, *answer]
    while len(told.request.tokens) < len(whole):
        told.step(lambda path: whole[min(len(path), len(whole) - 1)], 32)
        taken += 1
    return taken


def test_edited_texts_take_fewer_steps_and_copies_as_many():
    """The control is aggressive decoding, which waits for a token that stands in the input once."""
    source = random.Random(3)
    pairs = [(text, edited(source, text)) for text in ([source.randrange(1, 60) for _ in range(120)] for _ in range(8))]
    ours, theirs = (sum(steps(kind(), *pair) for pair in pairs) for kind in (EditedCopy, AggressiveDecoding))
    assert ours < 0.75 * theirs
    assert steps(EditedCopy(), INPUT, INPUT) == steps(AggressiveDecoding(), INPUT, INPUT) == 1

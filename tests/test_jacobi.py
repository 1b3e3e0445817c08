"""Drafts from the target's own parallel guesses, on examples worked out by hand."""

from __future__ import annotations

import pytest
from scripted import Scripted, rows_paths

from stretto.decoding.speculative.drafter import Draft
from stretto.decoding.speculative.drafters.jacobi import Jacobi
from stretto.decoding.speculative.drafters.lookahead import Lookahead
from stretto.decoding.speculative.trees import draft_chunk


def test_jacobi_iterates_to_the_fixed_point():
    """The text is 1 2 3 | 4 6 9 13: each token is the one before plus the number of positions behind the prompt."""

    def says(path):
        return path[-1] + len(path) - 2

    told = Scripted(Jacobi(length=3), [1, 2, 3])
    # Nothing was guessed yet: copies of the last token. Rows 3, 3 3, 3 3 3, 3 3 3 3 say 4, 5, 6, 7.
    assert told.step(says) == ["3", "3.3", "3.3.3"]
    # 4 is known; its row and those of the guesses 5 6 7 say 6, 8, 10, 12.
    assert told.step(says) == ["5", "5.6", "5.6.7"]
    # 4 6 are known; 9, 12, 15, 18.
    assert told.step(says) == ["8", "8.10", "8.10.12"]
    assert told.request.tokens == [1, 2, 3, 4, 6, 9]
    # 12 did not come of a guess that changed: it counts as old as any other that changed.
    draft = told.draft()
    assert draft.tree.tokens == [12, 15, 18]
    assert draft.tree.survival == [pytest.approx(0.4)] * 3


def test_jacobi_accepts_a_window_that_is_right_and_ages_what_stays():
    told = Scripted(Jacobi(length=4), [1, 2, 3])
    assert told.step(lambda path: len(path) + 1, 4)[-1] == "3.3.3.3"
    assert told.step(lambda path: len(path) + 1, 2) == ["5", "5.6"]  # room for two: the other guesses stay
    assert told.request.tokens[3:] == [4, 5, 6, 7]
    assert told.draft(4).tree.tokens == [8, 8, 8, 8]  # the last guess, and copies of it
    # A guess that a pass left unchanged is believed more; copies that were never computed least.
    told = Scripted(Jacobi(length=4), [1, 2, 3])
    told.step(lambda path: len(path) + 1)
    told.step(lambda path: 9 if len(path) == 4 else len(path) + 1)  # 5 does not come, so 6 7 8 wait
    draft = told.draft()
    assert draft.tree.tokens == [6, 7, 8, 9]
    fresh, young, old = (pytest.approx((age + 0.2) / (age + 2)) for age in (0, 1, 2))
    assert draft.tree.survival == [old, old, old, young] and told.draft().tree.survival[0] > 0.2 / 2
    assert Scripted(Jacobi(length=2), [1]).draft().tree.survival == [fresh, fresh]


def test_jacobi_drops_guesses_that_the_text_has_passed():
    told = Scripted(Jacobi(length=4), [1, 2, 3])
    told.step(lambda path: len(path) + 1)
    assert told.say(30, 31).draft().tree.tokens == [7, 8, 8, 8]


def window(draft: Draft, told: Scripted) -> list[list[int]]:
    """Return what each probe row sees behind the last known token, itself included."""
    told.request.views["target"] = type("View", (), {"filled": len(told.request.tokens) - 1})
    chunk = draft_chunk(told.request, draft)
    return [path[1:] for path in rows_paths(chunk, [])[1 + len(draft.tree) :]]


def test_lookahead_collects_n_grams_and_verifies_them():
    """The text runs in a circle: 1 2 3 4 1 2 3 4 ..., W = 2, N = 3, G = 2."""

    def says(path):
        return path[-1] % 4 + 1

    told = Scripted(Lookahead(window=2, ngram=3, branches=2), [1, 2, 3, 4])
    draft = told.draft(8)
    assert window(draft, told) == [[1], [1, 3]]  # W + N - 3 tokens of the prompt, a causal run
    assert told.step(says) == []
    # The first guess is passed; 1 and 3 said 2 and 4. Column 0 follows the last token, column 1 the first stage's.
    draft = told.draft(8)
    assert (draft.probes.tokens, draft.probes.depth) == ([3, 2, 4], [1, 1, 2])
    assert window(draft, told) == [[3], [2], [3, 4]]
    assert told.step(says) == []
    # Columns 1 2, 3 4 said 3 and 1: the pool has 1: (2, 3) and 3: (4, 1). The stages move up.
    assert window(told.draft(8), told) == [[4], [3], [4, 1]]
    assert told.step(says) == []
    # 2 3, 4 1 said 4 and 2. The text is at 3, of which the pool knows a continuation.
    assert told.request.tokens == [1, 2, 3, 4, 1, 2, 3]
    draft = told.draft(8)
    assert window(draft, told) == [[1], [4], [1, 2]]  # beside the branch, not behind it
    assert told.step(says) == ["4", "4.1"]
    assert told.request.tokens[-3:] == [4, 1, 2]
    pool = told.request.memory["lookahead"].pool
    assert pool == {1: [(2, 3)], 3: [(4, 1)], 2: [(3, 4)], 4: [(1, 2)]}


def test_lookahead_columns_follow_the_first_stage():
    """W = 3, N = 4: rows of a column see the first stage up to it, and their own column alone."""
    told = Scripted(Lookahead(window=3, ngram=4), list(range(1, 9)))
    for _ in range(2):
        told.step(lambda path: sum(path[-2:]) % 60, 20)
    draft = told.draft(20)
    assert draft.probes.depth == [1, 2, 1, 2, 2, 3, 3, 4]
    levels = told.request.memory["lookahead"].levels
    assert [len(level) for level in levels] == [2, 3, 3]
    (a, b), c, d = levels
    assert window(draft, told) == [
        [a],
        [a, b],
        [c[0]],
        [c[0], d[0]],
        [a, c[1]],
        [a, c[1], d[1]],
        [a, b, c[2]],
        [a, b, c[2], d[2]],
    ]


def test_lookahead_drafts_the_newest_n_grams_and_no_window_without_room():
    told = Scripted(Lookahead(window=2, ngram=3, branches=2), [1, 2])
    told.draft()
    told.request.memory["lookahead"].pool[2] = [(7, 8), (7, 9)]
    draft = told.draft(4)
    assert told.paths(4) == ["7", "7.9"] and draft.probes is not None  # two rows for the window, two are left
    narrow = told.draft(1)
    assert narrow.probes is None and told.paths(1) == ["7"]
    assert told.paths(8) == ["7", "7.9", "7.8"]
    with pytest.raises(ValueError, match="ngram=2"):
        Lookahead(ngram=2)

"""A suffix automaton of several texts with the number of occurrences of every substring, grown token by token.

Each state stands for all substrings that end at the same places; ``longest`` is the length of the longest of them, and
the suffix link leads to the state of the longest suffix that ends at further places. So the links from the end of a
text enumerate its suffixes, and a transition's count tells how often a token followed (Blumer et al., 1985; over
several texts as in Mohri, Moreno and Weinstein, 2009). It has at most two states per token.
"""

from __future__ import annotations

MOST_COUNTED = 32
"""Suffixes of a text's end whose count one more token raises: bounds the work for texts that repeat one token."""


class SuffixAutomaton:
    """States are numbers; 0 is the empty string. Lists run over the states."""

    def __init__(self) -> None:
        self.next: list[dict[int, int]] = [{}]
        self.link: list[int] = [-1]
        self.longest: list[int] = [0]
        self.count: list[int] = [0]
        self.tokens = 0

    def __len__(self) -> int:
        """Return how many tokens were added."""
        return self.tokens

    def extend(self, last: int, token: int) -> int:
        """Append ``token`` to the text whose end is the state ``last`` (0: a new text); return its new end."""
        self.tokens += 1
        end = self._append(last, token)
        count, link, state = self.count, self.link, end
        for _ in range(MOST_COUNTED):
            if state <= 0:
                break
            count[state] += 1
            state = link[state]
        return end

    def follow(self, state: int, length: int, token: int) -> tuple[int, int]:
        """Return state and length of the longest suffix of a match and ``token`` that stands in the texts.

        The match is the suffix of ``length`` tokens that ``state`` stood for; since then the automaton may have grown.
        """
        following, link, longest = self.next, self.link, self.longest
        state = self.narrow(state, length)
        while state and token not in following[state]:
            state = link[state]
            length = longest[state]
        if token not in following[state]:
            return 0, 0
        return following[state][token], length + 1

    def narrow(self, state: int, length: int) -> int:
        """Return the state of the match's ``length`` last tokens: growth splits states, shorter suffixes move on."""
        while state and self.longest[self.link[state]] >= length:
            state = self.link[state]
        return state

    def _append(self, last: int, token: int) -> int:
        following, link, longest = self.next, self.link, self.longest
        known = following[last].get(token)
        if known is not None:  # another text went the same way
            return known if longest[known] == longest[last] + 1 else self._split(last, token, known)
        end = self._add(longest[last] + 1, {}, 0)
        state = last
        while state >= 0 and token not in following[state]:
            following[state][token] = end
            state = link[state]
        if state < 0:
            link[end] = 0
        else:
            target = following[state][token]
            link[end] = target if longest[target] == longest[state] + 1 else self._split(state, token, target)
        return end

    def _split(self, state: int, token: int, target: int) -> int:
        """Give the shorter strings of ``target``, which now end at more places, a state of their own; return it."""
        following, link = self.next, self.link
        shorter = self._add(self.longest[state] + 1, following[target].copy(), self.count[target])
        link[shorter] = link[target]
        link[target] = shorter
        while state >= 0 and following[state].get(token) == target:
            following[state][token] = shorter
            state = link[state]
        return shorter

    def _add(self, longest: int, following: dict[int, int], count: int) -> int:
        self.next.append(following)
        self.link.append(0)
        self.longest.append(longest)
        self.count.append(count)
        return len(self.link) - 1

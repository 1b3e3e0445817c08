"""Token Recycling (arXiv 2408.08696): what any row ranked highest, rejected rows too, is drafted next."""

from __future__ import annotations

import torch
from company import Company, other, prompts, text
from helpers import request, run
from small import small

from stretto.core.tree import DraftTree
from stretto.decoding.score import Score
from stretto.decoding.speculative.drafter import Draft
from stretto.decoding.speculative.method import Speculative

SHAPE = [(-1, 0), (-1, 1), (-1, 2), (0, 0), (0, 1), (1, 0), (3, 0), (6, 0)]
"""The static tree: parent of each node, and which of its token's successors it takes."""
SUCCESSORS = 3


class Recycling:
    """Learns from the outputs of all rows, or, as a control, of those alone that plain decoding would have had."""

    name = "recycling"

    def __init__(self, all_rows: bool = True) -> None:
        self.all_rows = all_rows
        self.next: dict[int, list[int]] = {}
        self.rejected: list[tuple[list[int], torch.Tensor]] = []
        """Path to a rejected row, and its logits."""

    def bind(self, services): ...
    def begin(self, request): ...
    def rewind(self, request): ...
    def end(self, request): ...

    def stores(self):
        return {}

    def draft(self, requests, rows):
        return [Draft(self.tree(request.tokens[-1])) for request in requests]

    def tree(self, last: int) -> DraftTree:
        tokens, parents, node_of = [], [], {-1: -1}
        for number, (parent, rank) in enumerate(SHAPE):
            if parent not in node_of:
                continue
            token = last if parent < 0 else tokens[node_of[parent]]
            if token in self.next:
                node_of[number] = len(tokens)
                tokens.append(self.next[token][rank])
                parents.append(node_of[parent])
        return DraftTree(tokens, parents, [0.5] * len(tokens), [frozenset({self.name})] * len(tokens))

    def observe(self, observations):
        for seen in observations:
            chunk, accepted = seen.output.chunk, {seen.base, *(seen.base + 1 + node for node in seen.nodes)}
            for row in chunk.wanted:
                logits = seen.output.logits[seen.output.row(row)]
                if row not in accepted:
                    path = [seen.tree.tokens[node] for node in seen.tree.path(row - seen.base - 1)]
                    self.rejected.append((seen.request.tokens + path, logits.clone()))
                if self.all_rows or row in accepted:
                    self.next[chunk.tokens[row]] = logits.topk(SUCCESSORS).indices.tolist()


PARAMS = [{"temperature": temperature, "seed": 3, "max_tokens": 64} for temperature in [0.0, 0.3] * 2]
ASKED = [(prompt, "recycling", params) for prompt, params in zip(prompts(4), PARAMS, strict=True)]


def test_recycled_tokens_do_not_change_the_text_and_rejected_rows_are_learnt_from():
    company = Company((lambda: small(layers=1), other))
    plain = [company.alone(prompt, **params) for prompt, _, params in ASKED]
    learns, control = Recycling(), Recycling(all_rows=False)
    accepted = []
    for drafter in (learns, control):
        played = company.play(company.engine(Speculative("recycling", [drafter])), ASKED)
        assert [text(each) for each in played] == plain
        accepted.append(sum(each.stats.accepted for each in played))
    assert accepted[0] > accepted[1] > 0
    said = {token for each in plain for token in each} | {prompt[-1] for prompt, *_ in ASKED}
    assert set(control.next) <= said and set(learns.next) - said

    # What rejected rows gave is what their paths give: another method would hear the same from the model.
    scoring = company.engine(Score(), tokens=1024, rows=64)
    for path, logits in learns.rejected[:: len(learns.rejected) // 5]:
        score = request(scoring, path, "score")
        run(scoring, score)
        assert torch.equal(score.scores[max(score.scores)][-1], logits)

"""Goals for times: whose prompt is read first, and how long a slice may be beside those who write."""

from __future__ import annotations

from itertools import pairwise

from helpers import request, run
from toy import ToyModel

from stretto.decoding.plain import Plain
from stretto.engine.step import Engine


class Priced(ToyModel):
    """A model whose pass takes a millisecond a row."""

    class price:
        @staticmethod
        def ms(rows: int, context: int = 0, pairs: int | None = None) -> float:
            return float(rows)


def slices(model: ToyModel, goal: float | None, writers: int = 1, readers: int = 1) -> list[int]:
    """Return the rows of prompts in each step, of 200 tokens each, beside requests with a goal that are writing."""
    engine = Engine({"target": model}, [Plain()], cache_tokens=2048, max_rows=100)
    for place in range(writers):
        engine.submit(request(engine, [place, 1, 2], max_tokens=60, tpot_ms=goal))
    while any(each.pending > 1 for each in engine.requests.values()):
        engine.step()
    prompts = [request(engine, [4 + place] * 200, max_tokens=2) for place in range(readers)]
    for each in prompts:
        engine.submit(each)
    filled = [0]
    while any(len(each.tokens) == 200 for each in prompts):
        engine.step()
        filled.append(sum(min(each.filled, 200) for each in prompts))
    return [b - a for a, b in pairwise(filled)]


def test_prompts_are_read_in_slices_that_keep_the_goal_of_those_who_write():
    assert slices(Priced(), 1e9) == [99, 99, 2], "the control: with a goal far away, all rows there are"
    assert slices(Priced(), 41.0) == [40] * 5
    assert slices(Priced(), 1.0) == [9] * 22 + [2], "a goal that nothing keeps stops nobody"
    assert slices(ToyModel(), 41.0) == [99, 99, 2], "without a price there is nothing to go by"


def test_without_a_goal_each_prompt_may_hold_up_those_who_write_by_a_part_of_a_pass():
    one, four = slices(Priced(), None, writers=40), slices(Priced(), None, writers=40, readers=4)
    assert one[0] == 25, "1.6 passes of 41 rows, of which 40 and the prompt's first are sure"
    assert four[0] == 60, "all that is left: four prompts may take 10.6 passes"


def test_the_text_does_not_depend_on_goals():
    def texts(**goals: float) -> list[list[int]]:
        engine = Engine({"target": Priced()}, [Plain()], cache_tokens=512, max_rows=50)
        return run(engine, *(request(engine, [place] * 90, **goals) for place in range(3)))

    assert texts() == texts(tpot_ms=5.0) == texts(ttft_ms=1.0, tpot_ms=30.0)


def test_the_prompt_with_the_nearest_goal_is_read_first():
    engine = Engine({"target": Priced()}, [Plain()], cache_tokens=1024, max_rows=50)
    patient = request(engine, [1] * 150, max_tokens=2)
    hurried = request(engine, [2] * 150, max_tokens=2, ttft_ms=100.0)
    first = request(engine, [3] * 150, max_tokens=2, priority=1)
    for each in (patient, hurried, first):
        engine.submit(each)
    order: list[object] = []
    while len(order) < 3:
        engine.step()
        order += [each for each in (patient, hurried, first) if len(each.tokens) > 150 and each not in order]
    assert order == [first, hurried, patient]

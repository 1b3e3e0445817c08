"""Sampling parameters refuse what cannot be honoured, by name, and cross a process border unchanged."""

import json
import math
from dataclasses import fields
from typing import Any

import pytest

from stretto.core.masks import build_mask
from stretto.core.params import SamplingParams
from stretto.core.sampler import SamplerState

BAD: dict[str, list[Any]] = {
    "temperature": [-0.1, math.nan, 1e-9, "hot", True],
    "top_k": [-1, 2.0, True],
    "top_p": [0.0, 1.1, math.nan],
    "min_p": [-0.1, 1.5],
    "repetition_penalty": [0.0, 1e-300, math.inf],
    "frequency_penalty": [math.nan],
    "presence_penalty": [None],
    "logit_bias": [{50: 1.0}, {1: math.inf}, {1: 1e308}, {"1": 1.0}, [1]],
    "banned": [((),), ((50,),), (3,)],
    "min_tokens": [-1, 300],
    "ignore_eos": [1],
    "mask": [("choice",), "choice"],
    "stop": [("",), (1,)],
    "stop_token_ids": [(-1,), (True,), 3],
    "include_stop": [None],
    "max_tokens": [0],
    "logprobs": [-1, 51],
    "prompt_logprobs": [51],
    "n": [0, None],
    "seed": [-1, 2**64, 1.5],
    "priority": [0.5],
    "ttft_ms": [0],
    "tpot_ms": [0],
    "tenant": [None],
}

FULL = SamplingParams(
    temperature=0.5,
    top_k=5,
    top_p=0.5,
    min_p=0.5,
    repetition_penalty=1.5,
    frequency_penalty=0.5,
    presence_penalty=0.5,
    logit_bias={3: 1.5},
    banned=((1, 2), (3,)),
    min_tokens=2,
    ignore_eos=True,
    mask=("choice", {"choices": [[1], [2, 3]]}),
    stop=("a", "b"),
    stop_token_ids=(4,),
    include_stop=True,
    max_tokens=5,
    logprobs=2,
    prompt_logprobs=0,
    n=3,
    seed=2**64 - 1,
    priority=-2,
    ttft_ms=5.0,
    tpot_ms=40.0,
    tenant="x",
)


def test_every_parameter_has_bad_values_to_refuse_and_a_value_to_carry() -> None:
    names = {each.name for each in fields(SamplingParams)}
    assert set(BAD) == names
    assert all(getattr(FULL, name) != getattr(SamplingParams(), name) for name in names)


@pytest.mark.parametrize("name,value", [(name, value) for name, values in BAD.items() for value in values])
def test_a_bad_value_is_refused_with_name_value_and_remedy(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=r"(?s)^" + name + r"=.*: expected .*; .+") as refused:
        SamplingParams(**{name: value}).validate(50)
    assert repr(value) in str(refused.value)


def test_good_values_pass_and_travel_through_json() -> None:
    for params in (SamplingParams(), FULL, SamplingParams(max_tokens=None, seed=0, top_k=10**6, logprobs=50)):
        params.validate(50)
        assert SamplingParams.from_dict(params.to_dict()) == params
        assert SamplingParams.from_dict(json.loads(json.dumps(params.to_dict()))) == params


def test_lists_and_a_single_stop_string_are_taken() -> None:
    params = SamplingParams(stop="end", banned=[[1, 2], (3,)], stop_token_ids=[4], mask=["choice", {}])
    assert params == SamplingParams(stop=("end",), banned=((1, 2), (3,)), stop_token_ids=(4,), mask=("choice", {}))


def test_unknown_names_are_refused_with_the_nearest_known_one() -> None:
    with pytest.raises(ValueError, match=r"temprature=1.0: .*did you mean temperature"):
        SamplingParams.from_dict({"temprature": 1.0})
    with pytest.raises(ValueError, match=r"mask='chioce': .*did you mean 'choice'"):
        build_mask("chioce", {}, 50, frozenset({0}))
    with pytest.raises(ValueError, match=r"mask='choice': .*colour"):
        build_mask("choice", {"colour": 1}, 50, frozenset({0}))


def test_a_state_ends_where_the_parameters_say() -> None:
    def state(generated: int, **fields: Any) -> SamplerState:
        root = SamplerState.begin(
            SamplingParams(**fields), [1], sample=0, seed=0, vocab_size=50, eos_ids=frozenset({0}), limit=5
        )
        for _ in range(generated):
            root.commit(9)
        return root

    assert state(0).ends(0) == "stop" and state(0).ends(1) is None
    assert state(0, ignore_eos=True).ends(0) is None
    assert state(1, min_tokens=2, stop_token_ids=(3,)).ends(3) is None
    assert state(2, min_tokens=2, stop_token_ids=(3,)).ends(3) == state(2, min_tokens=2).ends(0) == "stop"
    assert state(3).ends(1) is None and state(4).ends(1) == "length" and state(4).ends(0) == "stop"


def test_forks_are_values_and_a_state_rebuilt_from_its_tokens_is_the_same() -> None:
    def root() -> SamplerState:
        return SamplerState.begin(FULL, [1, 2], sample=1, seed=9, vocab_size=50, eos_ids=frozenset({0}), limit=9)

    walked, rebuilt = root(), root()
    fork = walked.advance(2)
    assert (walked.generated, walked.counts(), walked.forbidden()) == (0, {}, {3, 4})
    assert (fork.generated, fork.counts(), fork.advance(3).counts()) == (1, {2: 1}, {2: 1, 3: 1})
    with pytest.raises(ValueError, match="expected the root"):
        fork.commit(3)
    for token in (2, 3):
        walked.commit(token)
        rebuilt.commit(token)
    assert walked.key() == rebuilt.key() == root().advance(2).advance(3).key()
    assert walked.mask_state == rebuilt.mask_state == root().advance(2).advance(3).mask_state

"""`choose` draws from the distribution it states, as a pure function of one row, and its noise is noise."""

import itertools
import math

import pytest
import torch
from chi_square import FALSE_ALARM, fit, fit_count, fit_tokens
from torch import Tensor
from transformers import generation

from stretto.core.choose import NAN_LOGITS, NOTHING_ALLOWED, choose, logprobs, perturbed, probabilities, sample, top
from stretto.core.noise import NoiseKey, Stream, gumbel, hash32, prompt_hash, uniform
from stretto.core.params import SamplingParams
from stretto.core.sampler import SamplerState

VOCAB = 50
EOS = frozenset({0, 7})
PROMPT = [3, 4, 5, 3, 11]
OUTPUT = [9, 9, 4, 20, 9]
PATH = PROMPT + OUTPUT

CASES = {
    "plain": {},
    "temperature": {"temperature": 0.6},
    "top-k": {"top_k": 7},
    "top-p": {"top_p": 0.8},
    "min-p": {"min_p": 0.05},
    "repetition": {"repetition_penalty": 1.8},
    "frequency": {"frequency_penalty": 0.7},
    "presence": {"presence_penalty": -1.3},
    "bias": {"logit_bias": {1: 3.0, 9: -2.5, 30: 1.0}},
    "bans": {"banned": ((20, 9, 13), (9, 9, 1), (14,), (4, 20, 9, 15), (*PATH, 16), (9, *PATH, 17))},
    "minimum": {"min_tokens": 6, "stop_token_ids": (8,)},
    "mask": {"mask": ("choice", {"choices": [[*OUTPUT, 2], [*OUTPUT, 6, 6], OUTPUT]})},
    "all": {
        "temperature": 1.4, "top_k": 30, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.2,
        "frequency_penalty": 0.2, "presence_penalty": 0.3, "logit_bias": {1: 2.0}, "banned": ((20, 9, 13),),
        "min_tokens": 6,
    },
}  # fmt: skip


def begin(params: SamplingParams, vocab: int = VOCAB, *, sample: int = 0, seed: int = 0) -> SamplerState:
    return SamplerState.begin(
        params, PROMPT, sample=sample, seed=seed, vocab_size=vocab, eos_ids=EOS, limit=params.max_tokens or 1000
    )


def after_output(params: SamplingParams, vocab: int = VOCAB, committed: int = 3) -> SamplerState:
    """The state behind OUTPUT, of which some tokens are committed and the others are a fork's own."""
    state = begin(params, vocab)
    for token in OUTPUT[:committed]:
        state.commit(token)
    for token in OUTPUT[committed:]:
        state = state.advance(token)
    return state


def row(seed: int, vocab: int = VOCAB) -> Tensor:
    return torch.randn(vocab, generator=torch.Generator().manual_seed(seed)) * 2


def keys(count: int) -> list[NoiseKey]:
    """Keys of neighbouring seeds and positions."""
    bases = [NoiseKey.base_of(seed, 0, prompt_hash(PROMPT)) for seed in range(-(-count // 50))]
    return [NoiseKey(base, index) for base in bases for index in range(50)][:count]


def oracle(logits: Tensor, params: SamplingParams) -> Tensor:
    """The distribution after PATH by transformers' processors; frequency and presence by their definition."""
    ids, scores = torch.tensor([PATH]), logits[None].clone()
    if params.repetition_penalty != 1.0:
        scores = generation.RepetitionPenaltyLogitsProcessor(params.repetition_penalty)(ids, scores)
    for token in set(OUTPUT):
        scores[0, token] -= params.frequency_penalty * OUTPUT.count(token) + params.presence_penalty
    if params.logit_bias:
        bias = [[[token], value] for token, value in params.logit_bias.items()]
        scores = generation.SequenceBiasLogitsProcessor(bias)(ids, scores)
    if params.banned:
        scores = generation.NoBadWordsLogitsProcessor([list(ids) for ids in params.banned])(ids, scores)
    if params.min_tokens:
        stops = sorted(EOS.union(params.stop_token_ids))
        minimum = generation.MinNewTokensLengthLogitsProcessor(len(PROMPT), params.min_tokens, stops, device="cpu")
        scores = minimum(ids, scores)
    if params.mask:
        allowed = [choice[len(OUTPUT)] for choice in params.mask[1]["choices"] if len(choice) > len(OUTPUT)] + [*EOS]
        scores[0, [token for token in range(VOCAB) if token not in allowed]] = -math.inf
    scores = generation.TemperatureLogitsWarper(params.temperature)(ids, scores)
    if params.top_k:
        scores = generation.TopKLogitsWarper(params.top_k)(ids, scores)
    if params.top_p < 1.0:
        scores = generation.TopPLogitsWarper(params.top_p)(ids, scores)
    if params.min_p:
        scores = generation.MinPLogitsWarper(params.min_p)(ids, scores)
    return scores[0].double().softmax(0)


@pytest.mark.parametrize("case", CASES)
def test_probabilities_are_those_of_transformers(case: str) -> None:
    params = SamplingParams(**CASES[case])
    params.validate(VOCAB)
    for seed in range(60):
        logits = row(seed)
        expected = oracle(logits, params)
        for committed in (0, 3, 5):
            found = probabilities(logits, after_output(params, committed=committed))
            torch.testing.assert_close(found, expected, rtol=2e-5, atol=1e-12)
        greedy = after_output(SamplingParams(**{**CASES[case], "temperature": 0.0}))
        assert choose(logits[None], [greedy]) == [int(expected.argmax())]


@pytest.mark.parametrize("case", CASES)
def test_draws_follow_the_distribution(case: str) -> None:
    """Chi-square over neighbouring seeds and positions."""
    params, count, logits = SamplingParams(**CASES[case]), 4000, row(1000)
    tokens = choose(logits.expand(count, -1), [after_output(params)] * count, keys(count))
    assert fit_tokens(tokens, oracle(logits, params)) > FALSE_ALARM


def test_named_streams_draw_from_the_distribution_apart_from_each_other() -> None:
    p, count = row(5, 6).double().softmax(0), 4000
    pairs = torch.zeros(len(p), len(p))
    for key in keys(count):
        pairs[sample(p, key.bits(Stream.DRAFT)), sample(p, key.bits(Stream.RESIDUAL))] += 1
    assert fit(pairs, count * p[:, None] * p) > FALSE_ALARM


def samples_are_independent(base_of: object) -> float:
    """The p-value of the joint distribution of two samples of one request, over many seeds."""
    count, logits, state = 4000, row(7, 6), begin(SamplingParams(n=2), 6)
    drawn = [
        choose(
            logits.expand(count, -1), [state] * count, [NoiseKey(base_of(seed, sample, 99), 0) for seed in range(count)]
        )
        for sample in (0, 1)
    ]
    pairs = torch.zeros(6, 6).index_put_(
        (torch.tensor(drawn[0]), torch.tensor(drawn[1])), torch.ones(()), accumulate=True
    )
    p = probabilities(logits, state)
    return fit(pairs, count * p[:, None] * p)


def test_samples_of_one_request_are_independent() -> None:
    assert samples_are_independent(NoiseKey.base_of) > FALSE_ALARM


def test_control_a_key_without_the_sample_index_makes_equal_samples() -> None:
    assert samples_are_independent(lambda seed, sample, prompt: NoiseKey.base_of(seed, 0, prompt)) < FALSE_ALARM


def gumbel_of_23_bits(bits: list[int], vocab: int, device: str) -> Tensor:
    u = ((hash32(bits, vocab, device) >> 9).float() + 0.5) * 2.0**-23
    return -(-torch.log1p(-u)).log()


def rare_tokens(noise: object) -> tuple[float, float]:
    """The p-values of two counts at a vocabulary of 128,000: how often one of 127,900 tokens of chance 1e-7 each is
    chosen, and how often any token's noise is larger than -log(2^-24), the largest that 23 bits can give.
    """
    vocab, common, chance, count, batch, tail = 128_000, 100, 1e-7, 2000, 2, 16.65
    logits = torch.full((vocab,), math.log(chance))
    logits[:common] = math.log((1 - (vocab - common) * chance) / common)
    chosen = large = 0
    bits = [key.bits(Stream.CHOICE) for key in keys(count)]
    for start in range(0, count, batch):
        drawn = noise(bits[start : start + batch], vocab, "cpu")
        large += int((drawn > tail).sum())
        chosen += int(((drawn + logits).argmax(-1) >= common).sum())
    above_tail = -math.expm1(-math.exp(-tail))
    return fit_count(chosen, count * (vocab - common) * chance), fit_count(large, count * vocab * above_tail)


def test_rare_tokens_of_a_large_vocabulary_are_chosen_as_often_as_they_should() -> None:
    assert min(rare_tokens(gumbel)) > FALSE_ALARM


def test_control_23_bits_have_no_rare_noise() -> None:
    assert min(rare_tokens(gumbel_of_23_bits)) < FALSE_ALARM


def test_noise_is_finite_and_has_the_gumbel_distribution() -> None:
    noise = gumbel([key.bits(Stream.CHOICE) for key in keys(256)], 4096, "cpu").double()
    assert noise.isfinite().all()
    cells = torch.histc((-(-noise).exp()).exp(), bins=1000, min=0, max=1)
    assert fit(cells, torch.full((1000,), noise.numel() / 1000)) > FALSE_ALARM


def flips(one: Tensor, other: Tensor) -> float:
    """The p-value of how often each of 32 bits differs, each of which should do so half of the time."""
    counts = torch.stack([((one ^ other) >> bit & 1).sum() for bit in range(32)]).double()
    scores = (counts - one.numel() / 2) ** 2 / (one.numel() / 4)
    return float(torch.special.gammaincc(torch.tensor(16.0, dtype=torch.float64), scores.sum() / 2))


NEIGHBOURS = {
    "seed": (lambda i: NoiseKey(NoiseKey.base_of(i, 0, 5), 0), lambda i: NoiseKey(NoiseKey.base_of(i + 1, 0, 5), 0)),
    "sample": (lambda i: NoiseKey(NoiseKey.base_of(i, 0, 5), 0), lambda i: NoiseKey(NoiseKey.base_of(i, 1, 5), 0)),
    "seed and sample": (
        lambda i: NoiseKey(NoiseKey.base_of(i, 1, 5), 0), lambda i: NoiseKey(NoiseKey.base_of(i + 1, 0, 5), 0)
    ),
    "prompt": (lambda i: NoiseKey(NoiseKey.base_of(7, 0, i), 0), lambda i: NoiseKey(NoiseKey.base_of(7, 0, i + 1), 0)),
    "position": (lambda i: NoiseKey(7, i), lambda i: NoiseKey(7, i + 1)),
    "draw": (lambda i: NoiseKey(7, i, 0), lambda i: NoiseKey(7, i, 1)),
    "position and draw": (lambda i: NoiseKey(7, i, 1), lambda i: NoiseKey(7, i + 1, 0)),
}  # fmt: skip


@pytest.mark.parametrize("what", NEIGHBOURS)
def test_neighbouring_keys_have_unrelated_noise(what: str) -> None:
    one, other = (hash32([key(i).bits(Stream.CHOICE) for i in range(200)], 2000, "cpu") for key in NEIGHBOURS[what])
    assert flips(one, other) > FALSE_ALARM
    assert abs(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]).double())[0, 1]) * one.numel() ** 0.5 < 5


def test_every_bit_of_a_key_changes_all_of_the_noise() -> None:
    some = [key.bits(Stream.CHOICE) for key in keys(4)]
    before = hash32(some, 5000, "cpu")
    for bit in range(64):
        assert flips(before, hash32([bits ^ 1 << bit for bits in some], 5000, "cpu")) > FALSE_ALARM


@pytest.mark.parametrize("one,other", list(itertools.combinations(Stream, 2)))
def test_streams_have_unrelated_noise(one: Stream, other: Stream) -> None:
    first, second = (hash32([NoiseKey(3, i).bits(stream) for i in range(100)], 1000, "cpu") for stream in (one, other))
    assert flips(first, second) > FALSE_ALARM
    draws = [(int(uniform(NoiseKey(3, i).bits(one), 0) * 5), int(uniform(NoiseKey(3, i).bits(other), 1) * 5))
             for i in range(5000)]  # fmt: skip
    pairs = torch.bincount(torch.tensor([5 * a + b for a, b in draws]), minlength=25)
    assert fit(pairs, torch.full((25,), 200.0)) > FALSE_ALARM


def test_neighbouring_ids_have_unrelated_noise() -> None:
    noise = hash32([key.bits(Stream.CHOICE) for key in keys(100)], 8192, "cpu")
    for lag in (1, 2, 3, 64, 1024, 4096):
        one, other = noise[:, lag:], noise[:, :-lag]
        assert flips(one, other) > FALSE_ALARM
        assert (
            abs(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]).double())[0, 1]) * one.numel() ** 0.5 < 5
        )


@pytest.mark.parametrize("vocab", [VOCAB, 4099])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_row_is_the_same_alone_and_in_company(vocab: int, threads: int) -> None:
    variants = [*CASES.values(), {"temperature": 0.0}, {"temperature": 0.0, "frequency_penalty": 0.5}]
    states = [after_output(SamplingParams(**fields), vocab) for fields in variants] * 2
    logits = torch.stack([row(seed, vocab) for seed in range(len(states))])
    here = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = [(perturbed(logits[i : i + 1], [state])[0], choose(logits[i : i + 1], [state])[0])
                 for i, state in enumerate(states)]  # fmt: skip
        torch.set_num_threads(threads)
        order = torch.randperm(len(states), generator=torch.Generator().manual_seed(vocab)).tolist()
        company = [states[i] for i in order]
        scores, tokens, leaders = (
            perturbed(logits[order], company), choose(logits[order], company), top(logits[order], company, None, 3)
        )  # fmt: skip
    finally:
        torch.set_num_threads(here)
    for place, i in enumerate(order):
        assert torch.equal(scores[place], alone[i][0]) and tokens[place] == leaders[place][0] == alone[i][1]
        allowed = [token for token in range(vocab) if scores[place, token] > -math.inf]
        assert leaders[place] == sorted(allowed, key=lambda token: (-scores[place, token].item(), token))[:3]


def test_ties_go_to_the_lower_id() -> None:
    """Integer logits with many ties, against the total order written as a sort key."""
    for seed in range(100):
        logits = torch.randint(0, 5, (VOCAB,), generator=torch.Generator().manual_seed(seed)).float()
        ranked = sorted(range(VOCAB), key=lambda token: (-logits[token].item(), token))
        assert choose(logits[None], [begin(SamplingParams(temperature=0.0))]) == ranked[:1]
        k, p = seed % 40 + 1, (seed + 1) / 101
        kept = probabilities(logits, begin(SamplingParams(top_k=k)))
        assert kept.nonzero().flatten().tolist() == sorted(ranked[:k])
        mass = logits.double().softmax(0)[ranked].cumsum(0)
        nucleus = ranked[: int((mass < p).sum()) + 1]
        kept = probabilities(logits, begin(SamplingParams(top_p=p)))
        assert kept.nonzero().flatten().tolist() == sorted(nucleus)


def test_a_wide_nucleus_is_the_same_as_by_sorting_everything() -> None:
    for vocab, scale, p in ((5000, 0.1, 0.3), (5000, 0.1, 0.95), (5000, 3.0, 0.999), (300, 0.0, 0.999)):
        logits = row(vocab, vocab) * scale
        order = logits.sort(descending=True, stable=True).indices
        count = int((logits.double().softmax(0)[order].cumsum(0) < p).sum()) + 1
        kept = probabilities(logits, begin(SamplingParams(top_p=p), vocab))
        assert kept.nonzero().flatten().tolist() == sorted(order[:count].tolist())


def test_bad_rows_give_codes_and_leave_their_neighbours_alone() -> None:
    logits = torch.stack([row(seed) for seed in range(6)])
    logits[1, 14] = math.nan
    logits[2, 3] = math.inf
    logits[3] = -math.inf
    logits[4, :40] = -math.inf
    for fields in ({"temperature": 0.0}, {}, {"banned": ((14,),), "top_p": 0.9, "top_k": 20}):
        states = [after_output(SamplingParams(**fields)) for _ in range(6)]
        tokens = choose(logits, states)
        assert tokens[1:4] == [NAN_LOGITS, NAN_LOGITS, NOTHING_ALLOWED]
        assert tokens[4] >= 40
        assert [tokens[i] for i in (0, 4, 5)] == [choose(logits[i : i + 1], states[:1])[0] for i in (0, 4, 5)]
    dead = begin(SamplingParams(mask=("choice", {"choices": [[1, 2]]}))).advance(5)
    assert choose(logits[:1], [dead]) == [NOTHING_ALLOWED]


def test_the_coldest_temperature_is_greedy_and_the_largest_logits_do_not_overflow() -> None:
    logits = torch.stack([row(seed) for seed in range(20)]) * 1e37
    for temperature in (1e-4, 1.0):
        states = [begin(SamplingParams(temperature=temperature)) for _ in range(20)]
        assert choose(logits, states) == logits.argmax(-1).tolist()


def test_logprobs_are_those_of_the_unmodified_distribution() -> None:
    logits = torch.stack([row(seed) for seed in range(20)])
    chosen = [seed % VOCAB for seed in range(20)]
    for each, token, found in zip(logits, chosen, logprobs(logits, chosen, 4), strict=True):
        expected = each.log_softmax(0)
        ranked = expected.sort(descending=True).indices[:4].tolist()
        assert list(found) == (ranked if token in ranked else [*ranked, token])
        assert list(found.values()) == pytest.approx([expected[key].item() for key in found], abs=1e-5)
    assert [list(found) for found in logprobs(logits, chosen, 0)] == [[token] for token in chosen]

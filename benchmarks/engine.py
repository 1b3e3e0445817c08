"""What the engine itself costs and what it is worth: the loop, a long prompt's arrival, and throughput.

    python benchmarks/engine.py [--quick] [--json OUT] [--threads N] [--only loop|arrival|throughput]

Run it on a machine that does nothing else; the load at the start is part of the record.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from time import perf_counter
from typing import Any

import torch
from models import NullModel, random_transformer, request
from report import environment, quantile, save, table
from tokenizers import Tokenizer

from stretto import LLM, SamplingParams
from stretto.decoding.plain import Plain
from stretto.engine.llm import MAX_ROWS
from stretto.engine.step import Engine
from stretto.weights.resolve import resolve

FIRST_LIMIT, FURTHER_LIMIT = 100.0, 15.0
"""Microseconds of a step for one request, and for each further one, that the loop may cost."""
BATCHES = (1, 2, 4, 8, 16, 32, 64)
UNCHUNKED = 8192
"""A row budget that no prompt here exceeds."""

Record = dict[str, Any]


def measure_loop(quick: bool) -> Record:
    """Time steps of a model that costs nothing: scheduling, packing, greedy choice, commit; no text."""
    steps = 200 if quick else 2000
    rows = []
    for batch in BATCHES:
        engine = Engine({"target": NullModel()}, [Plain()], cache_tokens=batch * (steps + 64), max_rows=MAX_ROWS)
        for number in range(batch):
            engine.submit(request(engine, [number + 1] * 8, steps + 32))
        for _ in range(20):
            engine.step()
        times = [1e6 * _seconds(engine.step) for _ in range(steps)]
        rows.append({"requests": batch, "median_us": median(times), "mean_us": mean(times)})
    first = rows[0]["median_us"]
    further = _slope([row["requests"] for row in rows], [row["median_us"] for row in rows])
    return {
        "name": "loop",
        "what": "cost of a step with a null model: vocabulary 4,096, token ids, greedy, choice included",
        "dtype": "fp32", "steps": steps, "rows": rows,
        "first_us": first, "first_limit_us": FIRST_LIMIT, "first_holds": first <= FIRST_LIMIT,
        "further_us": further, "further_limit_us": FURTHER_LIMIT, "further_holds": further <= FURTHER_LIMIT,
    }  # fmt: skip


def measure_arrival(quick: bool) -> Record:
    """Time the tokens of 16 running requests while a long prompt arrives, sliced by the row budget and whole."""
    layers, prompt, idle = (2, 512, 24) if quick else (30, 4096, 48)
    model = random_transformer(layers)
    rows = [
        _arrival(Engine({"target": model}, [Plain()], cache_tokens=16384, max_rows=budget), budget, prompt, idle)
        for budget in (MAX_ROWS, UNCHUNKED)
    ]
    return {
        "name": "arrival",
        "what": f"time per token of 16 running requests while a prompt of {prompt} tokens arrives; random weights, "
        f"135 M shape with {layers} of its 30 layers",
        "dtype": "bf16", "layers": layers, "prompt": prompt, "rows": rows,
    }  # fmt: skip


def _arrival(engine: Engine, budget: int, prompt: int, idle: int) -> Record:
    source = random.Random(0)
    running = [request(engine, [source.randrange(49152) for _ in range(32)], 512) for _ in range(16)]
    for each in running:
        engine.submit(each)
    while any(len(each.tokens) < 40 for each in running):
        engine.step()
    quiet = _gaps(engine, [each.id for each in running], lambda steps: steps == idle)
    newcomer = request(engine, [source.randrange(49152) for _ in range(prompt)], 1)
    begun = perf_counter()
    engine.submit(newcomer)
    during = _gaps(engine, [each.id for each in running], lambda steps: newcomer.finish is not None)
    first = perf_counter() - begun
    for each in running:
        engine.abort(each.id)
    base = median(quiet)
    return {
        "max_rows": budget, "idle_p50_ms": base * 1e3,
        "p50_ms": quantile(during, 0.5) * 1e3, "p99_ms": quantile(during, 0.99) * 1e3, "max_ms": max(during) * 1e3,
        "p50_to_idle": quantile(during, 0.5) / base, "p99_to_idle": quantile(during, 0.99) / base,
        "max_to_idle": max(during) / base, "newcomer_ttft_ms": first * 1e3,
    }  # fmt: skip


def _gaps(engine: Engine, requests: list[int], done: Callable[[int], bool]) -> list[float]:
    """Step until ``done``; return the seconds between the tokens of each request, all together."""
    seen = {number: [perf_counter()] for number in requests}
    steps = 0
    while not done(steps):
        deltas = engine.step()
        now = perf_counter()
        steps += 1
        for delta in deltas:
            if delta.request in seen:
                seen[delta.request] += [now] * len(delta.tokens)
    return [later - sooner for times in seen.values() for sooner, later in pairwise(times)]


def measure_throughput(quick: bool, dtype: str) -> Record:
    """Time greedy completions of stretto-tiny beside transformers' ``generate``, in alternation."""
    new, pairs, batches = (16, 2, (1, 8)) if quick else (128, 5, (1, 8, 64))
    llm = LLM("stretto-tiny", dtype=dtype, weights=dtype)
    peer = _transformers(llm.model.dtype)
    rows = []
    for batch in batches:
        source = random.Random(batch)
        prompts = [[source.randrange(2, 4096) for _ in range(source.randint(16, 48))] for _ in range(batch)]
        rows.append(_pairs(llm, peer, prompts, new, pairs))
    return {
        "name": "throughput",
        "what": f"tokens a second of stretto-tiny, {new} tokens behind prompts of 16 to 48, greedy, text included, "
        "prefix cache emptied; transformers: generate with a padded batch; ratio: median over pairs",
        "dtype": str(llm.model.dtype).removeprefix("torch."), "pairs": pairs, "rows": rows,
    }  # fmt: skip


def _pairs(llm: LLM, peer: Callable[..., None] | None, prompts: list[list[int]], new: int, pairs: int) -> Record:
    params = SamplingParams(temperature=0.0, max_tokens=new, ignore_eos=True)

    def ours() -> None:
        llm.engine.caches["target"].forget()
        done = llm.generate(prompts, params)
        assert all(len(completion.token_ids) == new for completion in done), [completion.error for completion in done]

    def theirs() -> None:
        if peer is not None:
            peer(prompts, new)

    runs: list[tuple[float, float]] = []
    for turn in range(pairs + 1):
        both = {run: _seconds(run) for run in ((ours, theirs) if turn % 2 else (theirs, ours))}
        runs.append((both[ours], both[theirs]))
    del runs[0]  # warm-up
    tokens = len(prompts) * new
    row: Record = {"batch": len(prompts), "stretto_tok_s": tokens / median(run[0] for run in runs)}
    if peer is None:
        return row | {"transformers_tok_s": "not run", "ratio": "not run", "ratios": []}
    ratios = [other / own for own, other in runs]
    return row | {
        "transformers_tok_s": tokens / median(run[1] for run in runs), "ratio": median(ratios), "ratios": ratios,
    }  # fmt: skip


def _transformers(dtype: torch.dtype) -> Callable[[list[list[int]], int], None] | None:
    """Return a function that completes token ids to text with transformers, None where it is not installed."""
    try:
        from transformers import AutoModelForCausalLM, GenerationConfig
    except ImportError:
        return None
    folder = resolve("stretto-tiny")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    model.generation_config.eos_token_id = None
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def complete(prompts: list[list[int]], new: int) -> None:
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
        real = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        config = GenerationConfig(do_sample=False, max_new_tokens=new, eos_token_id=None, pad_token_id=0)
        with torch.inference_mode():
            out = model.generate(ids, attention_mask=real, generation_config=config)
        assert out.shape[1] == longest + new, "transformers stopped early"
        tokenizer.decode_batch(out[:, longest:].tolist())

    return complete


def _seconds(call: Callable[[], object]) -> float:
    begun = perf_counter()
    call()
    return perf_counter() - begun


def _slope(x: list[int], y: list[float]) -> float:
    """Return the slope of the least-squares line."""
    at, level = mean(x), mean(y)
    return sum((a - at) * (b - level) for a, b in zip(x, y, strict=True)) / sum((a - at) ** 2 for a in x)


def show(record: Record) -> None:
    """Print a result for a person."""
    print(f"\n{record['name']}: {record['what']}; {record['dtype']}\n")
    print(table([{name: value for name, value in row.items() if name != "ratios"} for row in record["rows"]]))
    if record["name"] == "loop":
        for part, words in (("first", "one request"), ("further", "each further one, fitted")):
            verdict = "holds" if record[f"{part}_holds"] else "DOES NOT HOLD"
            print(f"{words}: {record[f'{part}_us']:.1f} us; limit {record[f'{part}_limit_us']:.0f} us {verdict}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write everything to this file")
    parser.add_argument("--quick", action="store_true", help="a smoke check: fewer layers, tokens, batches and pairs")
    parser.add_argument("--threads", type=int, help="of PyTorch (default: its own)")
    parser.add_argument("--dtype", choices=("auto", "fp32", "bf16"), default="auto", help="of the throughput part")
    parser.add_argument("--only", choices=("loop", "arrival", "throughput"), help="one part alone")
    asked = parser.parse_args()
    if asked.threads:
        torch.set_num_threads(asked.threads)
    facts = {**environment(), "quick": asked.quick}
    print("\n".join(f"{name}: {value}" for name, value in facts.items()))
    if asked.quick:
        print("\nQUICK: a smoke check with fewer layers, shorter prompts and fewer pairs; not to be quoted")
    parts: dict[str, Callable[[], Record]] = {
        "loop": lambda: measure_loop(asked.quick),
        "arrival": lambda: measure_arrival(asked.quick),
        "throughput": lambda: measure_throughput(asked.quick, asked.dtype),
    }
    results = []
    for name, measure in parts.items():
        if asked.only in (None, name):
            results.append({**measure(), "threads": torch.get_num_threads()})
            show(results[-1])
    if asked.json:
        save(asked.json, "engine", facts, results)
        print(f"\nwritten to {asked.json}")


if __name__ == "__main__":
    main()

"""``stretto generate``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import typer

from stretto.cli import batch
from stretto.cli.progress import EverySecond
from stretto.core.params import SamplingParams
from stretto.engine.completion import Completion
from stretto.engine.llm import LLM, pick_device
from stretto.recipes.table import find_recipe


def run(
    prompt: str | None,
    *,
    file: Path | None,
    out: Path | None,
    model: str,
    draft: str | None,
    method: str,
    weights: str,
    draft_weights: str,
    threads: int | None,
    device: str,
    params: dict[str, Any],
    stats: bool,
    as_json: bool,
) -> None:
    """Load the model, stream one completion to standard output. On a terminal the prompt is shown first, in bold.

    With ``file`` its prompts are answered into ``out`` instead.
    """
    sampling = checked(params, method, device)
    llm = LLM(
        model,
        draft=draft,
        draft_weights=draft_weights,
        method=method,
        weights=weights,
        threads=threads,
        device=device,
        progress=EverySecond(),
    )
    demonstration(model)
    if file is not None and out is not None:
        batch.run(llm, file, out, params, method)
        return
    assert prompt is not None
    screen = sys.stdout.isatty()
    if screen and not as_json:
        print(f"\x1b[1m{prompt}\x1b[0m", end="", flush=True)
    done: Completion | None = None
    for piece in llm.stream(prompt, sampling):
        if not as_json:
            print(piece.text, end="", flush=True)
        done = piece.completion or done
    assert done is not None
    if done.finish_reason == "error":
        raise RuntimeError(done.error)
    if as_json:
        print(json.dumps(done.to_dict(), ensure_ascii=False))
    else:
        print(flush=True)
    if stats:
        print(summary(done, llm), file=sys.stderr)


def checked(params: dict[str, Any], method: str, device: str) -> SamplingParams:
    """Return the sampling parameters; what is wrong with the options is said before a model is loaded."""
    try:
        sampling = SamplingParams.from_dict(params)
        sampling.validate(vocab_size=2**31)
        find_recipe(method)
        pick_device(device)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    return sampling


def demonstration(model: str) -> None:
    """Say on standard error that the embedded model is no more than a demonstration, if it is that one."""
    if model == "stretto-tiny":
        print(
            "stretto-tiny is a demonstration with 5.8 M weights: it shows the engine, not what models can do. "
            "For one that can: --model Qwen/Qwen3-0.6B",
            file=sys.stderr,
            flush=True,
        )


def summary(done: Completion, llm: LLM) -> str:
    """Return what a completion took, what its method keeps beyond it, and in the last line what drafting brought."""
    tokens, stats = len(done.token_ids), done.stats
    spent = (stats["total_ms"] - stats["ttft_ms"]) / 1e3 if stats["ttft_ms"] is not None else 0.0
    speed = f"{(tokens - 1) / spent:.1f} tokens/s" if spent > 0 and tokens > 1 else "-"
    return (
        f"method {done.method} ({done.fidelity}) · seed {done.seed} · {tokens} tokens, {done.finish_reason} · "
        f"first after {stats['ttft_ms'] or 0:.0f} ms, then {speed} · {stats['rows']} rows in {stats['steps']} steps, "
        f"{stats['cached']} cached · numerics {done.fingerprint}\n"
        f"{kept(llm)}{drafting(done)}"
    )


def kept(llm: LLM) -> str:
    """Return a line on the stores that outlive a request, or nothing where there is none."""
    stores = {name: sizes for method in llm.engine.methods.values() for name, sizes in method.stores().items()}
    words = [f"{name} {', '.join(f'{what} {size}' for what, size in sizes.items())}" for name, sizes in stores.items()]
    return f"kept for later requests: {' · '.join(words)}\n" if words else ""


def drafting(done: Completion) -> str:
    """Return one line: method, speed-up over plain decoding by the ledger, acceptance, and why."""
    stats = done.stats
    booked, pace = stats["decoding_ms"], stats["written"] / max(1, stats["writing"])
    gain = f"{stats['plain_ms'] / booked:.2f} times plain" if booked else "not measured against plain"
    accepted = f"{stats['accepted']} of {stats['drafted']} drafted tokens accepted, {pace:.2f} tokens a step"
    return (
        f"{done.method}: {gain} · {accepted if stats['drafted'] else 'nothing drafted'} · {stats['why'] or 'as asked'}"
    )

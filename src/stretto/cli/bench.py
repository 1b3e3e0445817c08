"""``stretto bench serve``: how a server fares under load."""

from __future__ import annotations

import asyncio
import json
import random
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

bench_app = typer.Typer(help="Measure.", no_args_is_help=True, rich_markup_mode=None)


@bench_app.callback()
def bench() -> None:
    """Measure."""


@bench_app.command()
def serve(
    url: Annotated[str, typer.Argument(help="Any server of OpenAI's protocol.")] = "http://127.0.0.1:8000/v1",
    model: Annotated[str | None, typer.Option("--model", "-m", help="Default: the first that it lists.")] = None,
    key: Annotated[str, typer.Option(help="API key.", envvar="OPENAI_API_KEY")] = "none",
    prompts: Annotated[list[Path] | None, typer.Option(help="Prompt files; may be repeated.")] = None,
    requests: Annotated[int, typer.Option(help="Conversations in all.", min=1)] = 64,
    concurrency: Annotated[int, typer.Option(help="Clients that each ask when they are answered.", min=1)] = 4,
    rate: Annotated[
        float | None, typer.Option(help="Or: conversations a second that arrive at random (Poisson).", min=0.001)
    ] = None,
    words: Annotated[int, typer.Option(help="Random words of a prompt, without --prompts.", min=1)] = 64,
    shared: Annotated[int, typer.Option(help="Random words before each prompt, for all the same.", min=0)] = 0,
    turns: Annotated[int, typer.Option(help="Messages of a conversation.", min=1)] = 1,
    max_tokens: Annotated[int, typer.Option(help="Tokens of an answer at most.", min=1)] = 128,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.8,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Answers of full length, if the server can.")
    ] = False,
    ttft_ms: Annotated[float | None, typer.Option(help="Goal for the first token.")] = None,
    tpot_ms: Annotated[float | None, typer.Option(help="Goal for each further token.")] = None,
    seed: Annotated[int, typer.Option(help="Of words and arrivals.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Everything that was measured, as JSON.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Shares of requests by their times, as HTML.")] = None,
) -> None:
    """Put load on a server: percentiles, throughput, and goodput under goals."""
    import httpx

    from stretto.serving.load import Load, put, summary
    from stretto.serving.workload import talks
    from stretto.weights.files import write_whole

    params: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature}
    params |= {"ignore_eos": True} if ignore_eos else {}
    listed = talks(prompts or [], number=requests, words=words, shared=shared, turns=turns, rng=random.Random(seed))
    try:
        named = model or _first(httpx.get(f"{url}/models", headers={"authorization": f"Bearer {key}"}, timeout=30))
    except httpx.HTTPError as error:
        raise ConnectionError(f"{url} does not answer: {error}; start a server, or give the address of one") from None
    load = Load(url, named, key, params, concurrency, rate, seed)
    taken, seconds = asyncio.run(put(load, listed))
    told = summary(taken, seconds, ttft=ttft_ms, tpot=tpot_ms)
    print(table(told))
    for failure in sorted({each.error for each in taken if each.error})[:5]:
        print(f"stretto: {failure}", file=sys.stderr)
    if json_file is not None:
        rows = [
            {
                "ttft_ms": each.ttft,
                "tpot_ms": each.tpot,
                "total_ms": each.total,
                "tokens": each.tokens,
                "error": each.error,
            }
            for each in taken
        ]
        write_whole(json_file, json.dumps({**told, "taken": rows}, indent=1) + "\n")
    if plot is not None:
        first = [each.ttft for each in taken if not each.error]
        write_whole(plot, page(told, first, [each.tpot for each in taken if each.tpot]))


def _first(response: Any) -> str:
    """Return the name of the first model that a server lists. Raises ``ValueError`` where it lists none."""
    try:
        return str(response.json()["data"][0]["id"])
    except (ValueError, LookupError, TypeError):
        raise ValueError(
            f"{response.url} lists no model (status {response.status_code}); name one with --model"
        ) from None


def table(told: dict[str, Any]) -> str:
    """Return a summary for people."""
    lines = [
        f"{told['requests']} requests in {told['seconds']:.1f} s, {told['failed']} failed",
        f"{told['requests_per_second']:.2f} requests/s · {told['tokens_per_second']:.1f} tokens/s written · "
        f"{told['prompt_tokens_per_second']:.1f} tokens/s read, {told['cached_share']:.0%} of them cached",
        f"{'ms':>10} " + " ".join(f"{share:>9}" for share in ("p50", "p90", "p99")),
    ]
    for name in ("ttft_ms", "tpot_ms", "total_ms"):
        lines.append(f"{name.removesuffix('_ms'):>10} " + " ".join(f"{value:9.1f}" for value in told[name].values()))
    goals = [f"{name.removesuffix('_ms')} {value:g} ms" for name, value in told["goals"].items() if value is not None]
    if goals:
        lines.append(
            f"within {' and '.join(goals)}: {told['within_goals']:.1%}, goodput {told['goodput']:.2f} requests/s"
        )
    return "\n".join(lines)


def page(told: dict[str, Any], ttft: list[float], tpot: list[float]) -> str:
    """Return a page with the shares of requests that took at most so many milliseconds."""
    from stretto.race import plots
    from stretto.serving.load import percentile

    style = (Path(plots.__file__).parent / "report.css").read_text(encoding="utf-8")
    drawn = "".join(
        f"<section><h2>{title}</h2>"
        + plots.lines(
            [(name, "c0", [(share, percentile(values, share)) for share in (1, *range(5, 100, 10), 99)])],
            across="percent of requests",
            up="ms at most",
            title=title,
        )
        + "</section>"
        for name, title, values in (
            ("TTFT", "Time to the first token", ttft),
            ("TPOT", "Time of each further token", tpot),
        )
        if values
    )
    said = f"<pre>{table(told)}</pre>"
    return f'<!doctype html><meta charset="utf-8"><title>Load</title><style>{style}</style><main>{said}{drawn}</main>\n'

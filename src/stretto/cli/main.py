"""``stretto``: the command line. Heavy imports wait until a command needs them, so that ``--help`` is instant."""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from stretto.cli.bench import bench_app
from stretto.cli.train import train_app

app = typer.Typer(
    name="stretto",
    help="Several times faster on the machine you have, and not one character different.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(train_app, name="train")
app.add_typer(bench_app, name="bench")

ModelOption = Annotated[str, typer.Option("--model", "-m", help="Embedded name, checkpoint folder or hub id.")]
DraftOption = Annotated[
    str | None, typer.Option(help="A smaller model that drafts: embedded name, checkpoint folder or hub id.")
]
DraftWeightsOption = Annotated[
    str, typer.Option(help="The same of the draft, on which no text of an exact method depends; int8 is fast.")
]
WeightsOption = Annotated[
    str, typer.Option(help="auto (the checkpoint's own precision), fp32, bf16, int8, int8x2, int4 or int8-fast.")
]
MethodOption = Annotated[str, typer.Option(help="Decoding method: auto, plain, or a name from stretto methods.")]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda or auto.")]


@app.command()
def generate(
    prompt: Annotated[str | None, typer.Argument(help="The text to go on from; without it, standard input.")] = None,
    model: ModelOption = "stretto-tiny",
    draft: DraftOption = None,
    method: MethodOption = "auto",
    temperature: Annotated[float, typer.Option(help="How freely to choose; 0 always takes the likeliest token.")] = 0.8,
    top_p: Annotated[float, typer.Option(help="Smallest set of tokens with this much probability.")] = 0.95,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same text.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens to write at most.")] = 256,
    stats: Annotated[bool, typer.Option("--stats", help="Speed, seed and cache use on standard error.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of text.")] = False,
    weights: WeightsOption = "auto",
    draft_weights: DraftWeightsOption = "auto",
    threads: Annotated[int | None, typer.Option(help="Default: one per core.", min=1)] = None,
    device: DeviceOption = "auto",
    file: Annotated[
        Path | None, typer.Option("--file", help='Many prompts: JSON Lines of {"prompt": ..., "params": {...}}.')
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Where their results go; a second run resumes.")] = None,
    json_schema: Annotated[
        str | None, typer.Option(help="Write JSON that fits this schema: its text, or the file that holds it.")
    ] = None,
    regex: Annotated[str | None, typer.Option(help="Write a text that this regular expression matches.")] = None,
    grammar: Annotated[
        Path | None, typer.Option(help="Write a text that this file's grammar derives, in Lark's syntax.")
    ] = None,
) -> None:
    """Write on from a text, or answer a file of prompts."""
    from stretto.cli.generate import run
    from stretto.cli.structure import structure

    if (file is None) != (out is None) or (file is not None and prompt is not None):
        raise typer.BadParameter("--file and --out go together, without a prompt", param_hint="--file")
    if file is not None and stats:
        told = "the results of --file hold the statistics of each answer; leave --stats out"
        raise typer.BadParameter(told, param_hint="--stats")
    text = prompt if prompt is not None or file is not None else _piped()
    params = {"temperature": temperature, "top_p": top_p, "seed": seed, "max_tokens": max_tokens}
    params |= structure(json_schema=json_schema, regex=regex, grammar=grammar)
    run(
        text,
        file=file,
        out=out,
        model=model,
        draft=draft,
        method=method,
        weights=weights,
        draft_weights=draft_weights,
        threads=threads,
        device=device,
        params=params,
        stats=stats,
        as_json=as_json,
    )


@app.command()
def chat(
    model: ModelOption = "stretto-tiny",
    draft: DraftOption = None,
    method: MethodOption = "auto",
    temperature: Annotated[float, typer.Option(help="How freely to choose; 0 always takes the likeliest token.")] = 0.8,
    top_p: Annotated[float, typer.Option(help="Smallest set of tokens with this much probability.")] = 0.95,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same answers.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens of an answer at most.")] = 1024,
    system: Annotated[str | None, typer.Option(help="What the model is told beforehand.")] = None,
    stats: Annotated[bool, typer.Option("--stats", help="What each answer took, on standard error.")] = False,
    weights: WeightsOption = "auto",
    draft_weights: DraftWeightsOption = "auto",
    threads: Annotated[int | None, typer.Option(help="Default: one per core.", min=1)] = None,
    device: DeviceOption = "auto",
) -> None:
    """Talk with a model."""
    from stretto.cli.chat import run

    params = {"temperature": temperature, "top_p": top_p, "seed": seed, "max_tokens": max_tokens}
    run(
        model,
        draft=draft,
        method=method,
        weights=weights,
        draft_weights=draft_weights,
        threads=threads,
        device=device,
        params=params,
        system=system,
        stats=stats,
    )


@app.command(name="eval")
def evaluate(
    model: Annotated[str, typer.Argument(help="Embedded name, checkpoint folder or hub id.")],
    files: Annotated[list[Path], typer.Argument(help="JSON Lines files of documents, plain or .xz.")],
    limit: Annotated[int | None, typer.Option(help="Only so many documents of each file.", min=1)] = None,
    weights: WeightsOption = "auto",
    device: DeviceOption = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
) -> None:
    """Measure bits per byte of a model on files of text."""
    from stretto.cli.evaluate import run

    run(model, files, limit=limit, weights=weights, device=device, as_json=as_json)


@app.command()
def info(
    model: Annotated[str, typer.Argument(help="Embedded name, checkpoint folder or hub id.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
) -> None:
    """Say what a model is, what it needs and whether that fits here."""
    from stretto.cli.info import run

    run(model, as_json=as_json)


@app.command()
def quantize(
    model: Annotated[str, typer.Argument(help="Embedded name, checkpoint folder or hub id.")],
    out: Annotated[Path, typer.Argument(help="New folder; it loads without the original.")],
    weights: Annotated[str, typer.Option(help="int8, int8x2, int8-fast or int4.")] = "int8",
) -> None:
    """Store a model with quantized weights."""
    from stretto.cli.quantize import run

    run(model, out, weights=weights)


@app.command()
def race(
    model: ModelOption = "stretto-tiny",
    prompts: Annotated[
        list[Path] | None,
        typer.Option(help="JSON Lines, Spec-Bench's format or plain text, also .xz; may be repeated."),
    ] = None,
    methods: Annotated[
        str | None, typer.Option(help="Names between commas, or all (that run here). Default: auto, or all exact ones.")
    ] = None,
    concurrency: Annotated[str, typer.Option(help="Requests at a time, numbers between commas.")] = "1",
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.8,
    top_p: Annotated[float, typer.Option(help="Smallest set of tokens with this much probability.")] = 0.95,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same texts.")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Tokens to write at most for each prompt.", min=1, show_default="128")
    ] = None,
    pairs: Annotated[int, typer.Option(help="Rounds; in each, every method answers all prompts once.", min=1)] = 5,
    limit: Annotated[int | None, typer.Option(help="Only so many prompts, evenly over the files.", min=1)] = None,
    draft: Annotated[str | None, typer.Option(help="A draft model: embedded name, folder or hub id.")] = None,
    weights: WeightsOption = "auto",
    draft_weights: DraftWeightsOption = "auto",
    threads: Annotated[int | None, typer.Option(help="Default: one per core.", min=1)] = None,
    device: DeviceOption = "auto",
    out: Annotated[
        Path | None, typer.Option(help="Report as HTML: a file, or a folder that gets the JSON too.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Everything that was measured, as JSON.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Speed-ups and a text by who drafted it, as one SVG.")] = None,
    replay: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Recorded texts that the model is made to say, not --prompts."),
    ] = None,
    record: Annotated[Path | None, typer.Option(help="Write plain's texts there, for --replay.")] = None,
) -> None:
    """Race decoding methods on your prompts: speed beside plain decoding, every text checked, and what to use."""
    from stretto.cli.race import run

    run(
        model,
        prompts=prompts or [],
        methods=methods,
        concurrency=concurrency,
        params={"temperature": temperature, "top_p": top_p, "seed": seed, "max_tokens": max_tokens},
        pairs=pairs,
        limit=limit,
        draft=draft,
        weights=weights,
        draft_weights=draft_weights,
        threads=threads,
        device=device,
        out=out,
        json_file=json_file,
        picture_file=picture,
        replay=replay,
        record=record,
    )


@app.command()
def serve(
    model: Annotated[str, typer.Argument(help="Embedded name, checkpoint folder or hub id.")] = "stretto-tiny",
    name: Annotated[str | None, typer.Option(help="What clients call the model. Default: its own name.")] = None,
    draft: DraftOption = None,
    method: MethodOption = "auto",
    host: Annotated[str, typer.Option(help="Address to listen at; others than loopback need keys.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: a free one, told in the log.", min=0, max=65535)] = 8000,
    api_key_file: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Keys, one a line: name:key or the key alone.")
    ] = None,
    allowed_host: Annotated[
        list[str] | None, typer.Option(help="A further name for the Host header; may be repeated.")
    ] = None,
    cors_origin: Annotated[
        list[str] | None, typer.Option(help="An origin whose pages may ask; may be repeated.")
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Let other machines in without keys.")] = False,
    max_waiting: Annotated[int, typer.Option(help="Requests that may wait; more get a 429.", min=1)] = 256,
    drain_seconds: Annotated[int, typer.Option(help="Time for running requests after SIGTERM.", min=0)] = 600,
    record: Annotated[
        Path | None, typer.Option(file_okay=False, help="Keep each request there, for stretto replay: it is private.")
    ] = None,
    log_prompts: Annotated[bool, typer.Option("--log-prompts", help="Prompts and answers in the log.")] = False,
    weights: WeightsOption = "auto",
    draft_weights: DraftWeightsOption = "auto",
    threads: Annotated[int | None, typer.Option(help="Default: one per core.", min=1)] = None,
    device: DeviceOption = "auto",
    cache_tokens: Annotated[
        int | None, typer.Option(help="Positions of the cache. Default: a share of the free memory.", min=1)
    ] = None,
    max_rows: Annotated[int | None, typer.Option(help="Row budget of a step. Default: 256.", min=1)] = None,
) -> None:
    """Serve a model over HTTP, as OpenAI's clients expect it."""
    from stretto.cli.serve import run

    run(
        model,
        name=name,
        host=host,
        port=port,
        api_key_file=api_key_file,
        allowed_hosts=tuple(allowed_host or ()),
        cors_origins=tuple(cors_origin or ()),
        insecure=insecure,
        max_waiting=max_waiting,
        drain_seconds=drain_seconds,
        record=record,
        log_prompts=log_prompts,
        engine={
            "draft": draft,
            "method": method,
            "weights": weights,
            "draft_weights": draft_weights,
            "threads": threads,
            "device": device,
            "cache_tokens": cache_tokens,
            "max_rows": max_rows,
        },
    )


@app.command()
def replay(
    answer: Annotated[str, typer.Argument(help="The id of a recorded answer.")],
    record: Annotated[Path, typer.Option(exists=True, file_okay=False, help="What serve --record was given.")],
    model: Annotated[str | None, typer.Option("--model", "-m", help="Another model than the recorded one.")] = None,
    method: Annotated[str | None, typer.Option(help="Another method than the recorded one.")] = None,
) -> None:
    """Make a recorded answer again, and say whether it is the same."""
    from stretto.cli.serve import again

    again(answer, record, model=model, method=method)


@app.command()
def methods(
    names: Annotated[list[str] | None, typer.Argument(help="Only these; without names, all.")] = None,
    model: Annotated[
        str, typer.Option("--model", "-m", help="Which methods run with this model, and what others lack.")
    ] = "stretto-tiny",
    draft: Annotated[str | None, typer.Option(help="A draft model that would be aboard beside it.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON array instead of a table.")] = False,
) -> None:
    """List the decoding methods: what each promises, needs, and where it was published."""
    from stretto.cli.methods import run

    run(names or [], model=model, draft=draft, as_json=as_json)


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
) -> None:
    """Say what this installation runs on and how fast the machine is."""
    from stretto.cli.doctor import run

    run(as_json=as_json)


def _piped() -> str:
    if sys.stdin.isatty():
        raise typer.BadParameter("give a prompt, or pipe one in", param_hint="PROMPT")
    return sys.stdin.read()


def main() -> None:
    """Run the command line: exit 0, 1 on failure, 2 on wrong usage, 130 on Ctrl-C."""
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s", stream=sys.stderr)
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8")
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupted)
    try:
        # Commands return nothing: a number is the exit code of an interruption (some versions raise it instead).
        code = app(standalone_mode=False) or 0
    except (typer.Abort, KeyboardInterrupt):
        code = 130
    except Exception as error:
        code = report(error)
    sys.exit(code)


def _interrupted(number: int, frame: FrameType | None) -> None:
    """Ctrl-C raises ``KeyboardInterrupt``. Within an import it ends the process: libraries that import others from C
    swallow the exception, and fail later for the want of what was not imported."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            os._exit(130)
        frame = frame.f_back
    raise KeyboardInterrupt


def report(error: Exception) -> int:
    """Print what was wrong for a person; return the exit code."""
    show = getattr(error, "show", None)
    if show is not None:
        show()
        return int(getattr(error, "exit_code", 2))
    if isinstance(error, typer.Exit):
        return error.exit_code
    logging.getLogger("stretto").debug("traceback", exc_info=error)
    print(f"stretto: {error or type(error).__name__}", file=sys.stderr)
    return 1

"""``stretto train``: the recipes of the embedded models and of drafts, and what a draft is worth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

train_app = typer.Typer(help="Train a model by its recipe.", no_args_is_help=True)

DataOption = Annotated[Path, typer.Option(help="Folder with <corpus>.<split>.jsonl[.xz] files.")]
TargetOption = Annotated[str, typer.Option(help="Embedded name, checkpoint folder or hub id.")]


@train_app.command()
def tiny(
    data: DataOption,
    out: Annotated[
        Path, typer.Option(help="Folder for the model and its checkpoints; an unfinished run resumes.")
    ] = Path("checkpoints/stretto-tiny"),
    steps: Annotated[int, typer.Option(help="Steps of 4,096 tokens.", min=1)] = 3200,
    compiled: Annotated[bool, typer.Option("--compile", help="Use torch.compile (needs a C++ compiler).")] = False,
) -> None:
    """Train stretto-tiny: a Llama of 5.8 M weights."""
    from stretto.training.batches import Schedule
    from stretto.training.tiny import train_tiny

    train_tiny(data, out, Schedule(steps=steps), compiled=compiled, report=_say)


@train_app.command()
def draft(
    data: DataOption,
    target: TargetOption = "stretto-tiny",
    out: Annotated[
        Path, typer.Option(help="Folder for the draft and its checkpoints; an unfinished run resumes.")
    ] = Path("checkpoints/draft"),
    steps: Annotated[int, typer.Option(help="Steps of 1,024 tokens.", min=1)] = 11200,
    width: Annotated[int, typer.Option(help="Width of the draft, a multiple of 64.", min=64)] = 128,
    layers: Annotated[int, typer.Option(help="Layers of the draft.", min=1)] = 2,
    mlp: Annotated[int, typer.Option(help="Width of its MLPs.", min=1)] = 512,
    objective: Annotated[str, typer.Option(help="Divergence from the target: fkl, rkl, jsd or tvd.")] = "fkl",
    beta: Annotated[float, typer.Option(help="Of jsd: the target's weight.")] = 0.5,
    written: Annotated[float, typer.Option(help="Share of text that the target wrote.", min=0, max=1)] = 0.4,
    own: Annotated[float, typer.Option(help="Share of text that the draft itself wrote.", min=0, max=1)] = 0.0,
    compiled: Annotated[bool, typer.Option("--compile", help="Use torch.compile (needs a C++ compiler).")] = False,
    threads: Annotated[int | None, typer.Option(help="Default: one per core.", min=1)] = None,
) -> None:
    """Distil a small draft model from a target, then measure how often they agree."""
    from dataclasses import replace

    from stretto.training.draft import SCHEDULE, DraftShape, Text, train_draft

    train_draft(
        target,
        data,
        out,
        replace(SCHEDULE, steps=steps),
        DraftShape(width=width, layers=layers, mlp=mlp),
        Text(written=written, own=own),
        objective=objective,
        beta=beta,
        compiled=compiled,
        threads=threads,
        report=_say,
    )
    _measure(target, str(out), data, "valid", None, threads)


@train_app.command()
def agreement(
    data: DataOption,
    draft: Annotated[str, typer.Option(help="Embedded name, checkpoint folder or hub id.")],
    target: TargetOption = "stretto-tiny",
    split: Annotated[str, typer.Option(help="Which documents: valid or test.")] = "valid",
    limit: Annotated[int | None, typer.Option(help="Only so many documents of each corpus.", min=1)] = None,
    threads: Annotated[int | None, typer.Option(help="Default: one per core.", min=1)] = None,
) -> None:
    """Measure how often a draft chooses what its target chooses: greedily, and with the same noise."""
    _measure(target, draft, data, split, limit, threads)


def _measure(target: str, draft: str, data: Path, split: str, limit: int | None, threads: int | None) -> None:
    from stretto.engine.llm import LLM
    from stretto.training.agreement import agreement_on_files

    part = f"{limit} documents of each corpus" if limit else "all of it; stretto train agreement --limit N takes less"
    _say(f"counting where both choose alike on {split}: {part}")
    both = LLM(target, threads=threads), LLM(draft, threads=threads)
    for name, found in agreement_on_files(*both, data, split, limit).items():
        _say(f"agreement on {split}, {name}: {found}")


def _say(line: str) -> None:
    print(line, flush=True)

"""Whether lm-evaluation-harness hears from ``stretto serve`` what its own transformers back end says of a checkpoint.

    pip install 'stretto[conformance]'
    python benchmarks/conformance.py [--data DIR] [--documents 40] [--json OUT]

Three tasks of local files, nothing is downloaded: choices and whole texts by their log-likelihood, and greedy writing
up to a stop. In fp32 log-likelihoods must agree within 1e-3 and texts be equal, document by document, over each way
that ``local-completions`` can ask; in bf16 the difference is reported. Servers of other weights are the controls: they
must be found out. Ends with 1 where something else is found than must be.

DIR holds corpora as ``stretto train`` takes them (their test documents are used); default: texts that the embedded
model writes, several scripts among them.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

# Read when the libraries are imported; servers inherit them.
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import torch
from conformance_tasks import TASKS, WINDOW, WRITING, texts, write_checkpoint, write_tasks
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from report import environment, save, table
from serving_servers import Kind, Place, Servers, greedy

WITHIN = 1e-3
"""Nats by which a log-likelihood may differ in fp32."""
CONCURRENT, CONTEXT = 4, 2048
"""Requests at once, and tokens of each."""
EQUAL, FOUND_OUT, REPORTED = "equal", "found out", "reported"
"""What must be seen in a case: no difference, one, or whatever there is."""


@dataclass(frozen=True, slots=True)
class Case:
    """A way to ask a server, and what its answers are compared with."""

    name: str
    checkpoint: str
    weights: str
    """Of the server; transformers takes the checkpoint as it is."""
    must: str = EQUAL
    asks: str = "token ids"
    """What prompts are sent as: token ids, or text."""


BEGINS, BARE, HALF = "begins-fp32", "bare-fp32", "begins-bf16"
"""Checkpoints: with a tokenizer that begins every text with a token of its own, without, and in bf16."""
CASES = (
    Case("fp32", BEGINS, "fp32"),
    Case("fp32, no begin token", BARE, "fp32"),
    Case("fp32, no begin token, as text", BARE, "fp32", asks="text"),
    Case("bf16", HALF, "bf16", REPORTED),
    Case("control: fp32 rounded to bf16", BEGINS, "bf16", FOUND_OUT),
    Case("control: int4", BEGINS, "int4", FOUND_OUT),
)

Said = dict[int, list[tuple[float, Any]]]
"""By document: each answer's log-likelihood, and of a choice whether it is greedy; of writing 0 and the text."""


class Harness:
    """lm-eval on a folder of tasks."""

    def __init__(self, tasks: Path) -> None:
        self._manager = TaskManager(include_path=str(tasks), include_defaults=False)

    def run(self, model: str, arguments: dict[str, Any]) -> dict[str, Said]:
        """Return what a back end of lm-eval says in each task."""
        done = simple_evaluate(
            model=model,
            model_args=arguments,
            tasks=list(TASKS),
            task_manager=self._manager,
            device="cpu",
            bootstrap_iters=0,
            log_samples=True,
        )
        return {
            task: {sample["doc_id"]: [_plain(each[0]) for each in sample["resps"]] for sample in done["samples"][task]}
            for task in TASKS
        }


def _plain(said: float | str | tuple[float, bool]) -> tuple[float, Any]:
    if isinstance(said, str):
        return 0.0, said
    return (said, None) if isinstance(said, float) else (said[0], said[1])


def differences(task: str, ours: Said, theirs: Said) -> dict[str, Any]:
    """Return by how much log-likelihoods differ at most, and how many answers agree.

    Raises ``ValueError`` where it is not the same documents that were answered.
    """
    if ours.keys() != theirs.keys():
        raise ValueError(f"{task}: document {min(ours.keys() ^ theirs.keys())} was answered by one of both alone")
    pairs = [pair for document in theirs for pair in zip(ours[document], theirs[document], strict=True)]
    apart = [abs(a[0] - b[0]) for a, b in pairs]
    agree = sum(most <= WITHIN and a[1] == b[1] for most, (a, b) in zip(apart, pairs, strict=True))
    return {"answers": len(pairs), "agree": agree, "apart": None if task == WRITING else max(apart)}


def verdict(must: str, found: Sequence[Mapping[str, Any]]) -> str:
    """Return whether a case shows what it must, over all of its tasks."""
    equal = all(row["agree"] == row["answers"] for row in found)
    return must if must == REPORTED or equal == (must == EQUAL) else "FAILS"


def server(weights: str) -> Kind:
    """Return how ``stretto serve`` is started with those weights."""

    def command(place: Place, port: int) -> list[str]:
        return [
            *(sys.executable, "-c", "from stretto.cli.main import main; main()", "serve", str(place.checkpoint)),
            *("--port", str(port), "--weights", weights, "--threads", str(place.threads)),
            *("--cache-tokens", str(place.slots * place.tokens)),
        ]

    return Kind(command, greedy, "/ready")


def transformers_says(
    harness: Harness, place: Path, checkpoint: str, dtype: str = "float32", softmax: str | None = "float64"
) -> dict[str, Said]:
    """Return what transformers says; ``softmax``: the precision of that alone, None: of ``dtype``, lm-eval's default.

    In fp32 the softmax errs to one side, by about 1e-6 a token, which a long text adds up to more than may differ.
    """
    arguments = {"pretrained": str(place / checkpoint), "dtype": dtype, "softmax_dtype": softmax}
    if checkpoint == BARE:
        return harness.run("hf", arguments | {"max_length": CONTEXT - 2})
    return harness.run("hf", arguments | {"max_length": WINDOW, "add_bos_token": True})


def stretto_says(harness: Harness, place: Path, case: Case) -> dict[str, Said]:
    """Return what a server says. Raises ``RuntimeError`` where it does not start."""
    servers = Servers(None, None)
    servers.kinds = {case.weights: server(case.weights)}
    with servers.started(Place(place / case.checkpoint, place, 1, CONCURRENT, CONTEXT)) as found:
        if not found:
            raise RuntimeError(f"{case.name}: {', '.join(servers.absent.values())}")
        begins = case.checkpoint != BARE
        each = found[case.weights]
        arguments = {
            "model": each.model, "base_url": f"{each.url}/completions", "tokenizer": str(place / case.checkpoint),
            "tokenizer_backend": "huggingface", "num_concurrent": CONCURRENT,
            "tokenized_requests": case.asks == "token ids",
            # Of an API's length lm-eval keeps two tokens back, and it puts no begin token before token ids by itself.
            "max_length": WINDOW + 2 if begins else CONTEXT, "add_bos_token": begins,
        }  # fmt: skip
        return harness.run("local-completions", arguments)


def compared(name: str, ours: Mapping[str, Said], theirs: Mapping[str, Said], must: str) -> list[dict[str, Any]]:
    """Return the rows of a case, one a task."""
    found = [{"case": name, "task": task} | differences(task, ours[task], theirs[task]) for task in TASKS]
    return [row | {"verdict": verdict(must, found)} for row in found]


def shown(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row as the table has it."""
    return {**row, "apart": "" if row["apart"] is None else f"{row['apart']:.1e}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="DIR", help="corpora; default: what the embedded model writes")
    parser.add_argument("--documents", type=int, default=40, metavar="N", help="of each task")
    parser.add_argument("--json", type=Path, metavar="OUT")
    asked = parser.parse_args()
    torch.set_num_threads(1)  # a model this small has nothing for a second one
    facts = environment() | {name: version(name) for name in ("lm_eval", "transformers")}
    print("\n".join(f"{name}: {value}" for name, value in facts.items()), flush=True)
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as fresh:
        place = Path(fresh)
        write_checkpoint(place / BEGINS, torch.float32, begins=True)
        write_checkpoint(place / BARE, torch.float32, begins=False)
        write_checkpoint(place / HALF, torch.bfloat16, begins=True)
        write_tasks(place / "tasks", texts(asked.data, asked.documents))
        harness = Harness(place / "tasks")
        theirs = {name: transformers_says(harness, place, name) for name in (BEGINS, BARE, HALF)}
        usual = transformers_says(harness, place, BARE, softmax=None)
        rounded = transformers_says(harness, place, HALF, "bfloat16", softmax=None)
        for case in CASES:
            said = stretto_says(harness, place, case)
            results += compared(case.name, said, theirs[case.checkpoint], case.must)
            if case.checkpoint == HALF:
                results += compared("bf16, against transformers' bf16", said, rounded, REPORTED)
            if case.checkpoint == BARE and case.asks == "token ids":
                results += compared(f"{case.name}, default softmax", said, usual, REPORTED)
        results += compared("transformers: default softmax", usual, theirs[BARE], REPORTED)
        results += compared("transformers: bf16", rounded, theirs[HALF], REPORTED)
    print(table([shown(row) for row in results]))
    if asked.json:
        save(asked.json, "conformance", facts, results)
    sys.exit(any(row["verdict"] == "FAILS" for row in results))


if __name__ == "__main__":
    main()

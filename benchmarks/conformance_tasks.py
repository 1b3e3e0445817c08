"""What ``conformance.py`` evaluates: checkpoints that transformers writes, and a folder of tasks for lm-eval."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from stretto import LLM, SamplingParams
from stretto.training.corpus import find_corpora, read_documents
from stretto.weights.resolve import resolve

TASKS = CHOICES, ROLLING, WRITING = "choices", "rolling", "writing"
WINDOW = 512
"""Tokens that lm-eval is told a model sees at once; the long texts are longer."""
LONG, LONGS = 1200, 4
"""Tokens and number of the long texts."""

OPENINGS = (
    "Once upon a time there was a king who had three daughters",
    "The fox said to the wolf, “I know where the geese sleep",
    "A train travels 60 miles an hour. How far does it go in",
    "Tom has 12 apples and gives 5 of them to",
    "def fibonacci(n):\n    if n < 2:\n        return",
    "class Stack:\n    def __init__(self):",
    "User: What should I cook tonight?\nAssistant:",
    "User: Tell me about the sea.\nAssistant:",
    "Die Großmutter öffnete die Tür und sagte",
    "Η θάλασσα ήταν ήσυχη, and the fisherman",
    "在很久很久以前，有一个国王。The king said",
    "The menu says: café crème 3,50 €, naïve 🦊 and 🐺🌙 for",
)
"""Of what the embedded model goes on writing: it has seen English alone, and bytes make up the other scripts."""

_TASK = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: {kind}
"""
_REST = {
    CHOICES: (
        "multiple_choice",
        "doc_to_text: context\ndoc_to_choice: choices\ndoc_to_target: answer\ntarget_delimiter: ''\n"
        "metric_list: [{metric: acc}]\n",
    ),
    ROLLING: (
        "loglikelihood_rolling",
        "doc_to_text: ''\ndoc_to_target: text\nmetric_list: [{metric: byte_perplexity}]\n",
    ),
    WRITING: (
        "generate_until",
        "doc_to_text: context\ndoc_to_target: answer\ntarget_delimiter: ''\nmetric_list: [{metric: exact_match}]\n"
        'generation_kwargs: {until: ["\\n\\n", "User:", " said", "。"], max_gen_toks: 32, do_sample: false}\n',
    ),
}


def write_checkpoint(folder: Path, dtype: torch.dtype, *, begins: bool) -> Path:
    """Write the embedded model with transformers, and return its folder.

    Each weight is moved by about 0.3 %: as they are, they are bf16, and whoever rounds an fp32 checkpoint to that would
    not be found out. ``begins``: whether the tokenizer puts the begin token before every text by itself.
    """
    source = resolve("stretto-tiny")
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1 + 0.003 * torch.randn_like(weight))
    model.to(dtype).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    if not begins:
        path = folder / "tokenizer.json"
        content = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(content | {"post_processor": None}), encoding="utf-8")
    return folder


def texts(data: Path | None, documents: int) -> list[str]:
    """Return so many texts, the last ``LONGS`` of them long: of ``data``'s test documents, or the embedded model's."""
    if data is not None:
        corpora = [read_documents(path) for path in find_corpora(data, "test").values()]
        short = [text[:400] for each in zip(*corpora, strict=False) for text in each if " " in text[:40].strip()]
        long = ["\n\n".join(each)[: 4 * LONG] for each in corpora]
        return short[: documents - LONGS] + long[:LONGS]
    llm = LLM("stretto-tiny")
    lengths = [96] * (documents - LONGS) + [LONG] * LONGS
    prompts = [OPENINGS[i % len(OPENINGS)] for i in range(documents)]
    params = [
        SamplingParams(temperature=0.8, top_p=0.95, max_tokens=length, ignore_eos=True, seed=i)
        for i, length in enumerate(lengths)
    ]
    done = llm.generate(prompts, params)
    return [prompt + each.text for prompt, each in zip(prompts, done, strict=True)]


def write_tasks(folder: Path, found: Sequence[str]) -> None:
    """Write a task of each kind over the texts."""
    short = [_halves(text[:240]) for text in found]
    choices = [
        {"context": context, "choices": [short[(i + k) % len(short)][1][:60] for k in range(4)], "answer": 0}
        for i, (context, _) in enumerate(short)
    ]
    writing = [{"context": context, "answer": rest} for context, rest in short]
    rolling = [{"text": text} for text in found]
    folder.mkdir(parents=True, exist_ok=True)
    for name, documents in {CHOICES: choices, ROLLING: rolling, WRITING: writing}.items():
        kind, rest = _REST[name]
        data = folder / f"{name}.jsonl"
        data.write_text("".join(map(_line, documents)), encoding="utf-8")
        head = _TASK.format(name=name, data=json.dumps(str(data)), kind=kind)
        (folder / f"{name}.yaml").write_text(head + rest, encoding="utf-8")


def _halves(text: str) -> tuple[str, str]:
    """Return a text cut before a single blank near its middle; the second half begins with it.

    No token reaches over such a place, so that prompts sent as text are the token ids that lm-eval counts.
    """
    places = [match.start() for match in re.finditer(r"(?<=\S) (?=\S)", text)]
    place = min(places, key=lambda each: abs(each - len(text) // 2))
    return text[:place], text[place:]


def _line(document: dict[str, Any]) -> str:
    return json.dumps(document, ensure_ascii=False) + "\n"

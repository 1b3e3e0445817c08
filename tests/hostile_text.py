"""Tokenizers and chat templates that mean harm: the rest of the cases of ``hostile``."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from hostile import CASES, GB, Case, case, dump


def tokenizer(folder: Path, **changes: Any) -> None:
    path = folder / "tokenizer.json"
    dump(path, json.loads(path.read_text()) | changes)


@case("is not a tokenizer")
def tokenizer_is_cut_off(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_text(path.read_text()[:-40])


@case("tokenizer.json has 200 MB, expected at most 64 MB")
def tokenizer_of_200_megabytes(folder: Path) -> None:
    os.truncate(folder / "tokenizer.json", 200_000_000)


@case("is not a tokenizer")
def tokenizer_is_nested(folder: Path) -> None:
    nested = '{"type":"Sequence","normalizers":['
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(f'{text[:-1]},"normalizer":{nested * 100_000}{"]}" * 100_000}}}')


@case(r"makes a text 1e\+30 times as long")
def tokenizer_explodes_text(folder: Path) -> None:
    grow = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10}
    tokenizer(folder, normalizer={"type": "Sequence", "normalizers": [grow] * 30})


def repeat(folder: Path, times: int) -> None:
    again = {"Sequence": {"id": "A", "type_id": 0}}
    processor = {"type": "TemplateProcessing", "single": [again] * times, "pair": [], "special_tokens": {}}
    tokenizer(folder, post_processor=processor)


@case(r"makes a text 1e\+04 times as long")
def tokenizer_repeats_text(folder: Path) -> None:
    repeat(folder, 10_000)


@case(r"tokenizer\.json lists 500000 pieces of a template, expected at most")
def tokenizer_repeats_text_and_itself(folder: Path) -> None:
    repeat(folder, 500_000)


@case("its TemplateProcessing takes .* bytes, expected at most")
def tokenizer_hides_its_repetitions(folder: Path) -> None:
    repeat(folder, 130_000)
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace("type_id", "type\\u005fid"))


@case(r"tokenizer\.json lists \d+ parts, expected at most")
def tokenizer_of_5_million_nothings(folder: Path) -> None:
    nothings = ",".join(['["",0]'] * 5_000_000)
    (folder / "tokenizer.json").write_text(f'{{"model":{{"type":"Unigram","unk_id":0,"vocab":[{nothings}]}}}}')


@case("tokenizer.model")
def sentencepiece_is_cut_off(folder: Path) -> None:
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")


@case("tokenizer_config.json")
def tokenizer_config_is_nested(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text('{"a":' * 500_000)


@case("tokenizer_config.json")
def tokenizer_config_of_two_gigabytes(folder: Path) -> None:
    os.truncate(folder / "tokenizer_config.json", 2 * GB)


@case("chat_template.jinja")
def template_of_two_gigabytes(folder: Path) -> None:
    (folder / "chat_template.jinja").touch()
    os.truncate(folder / "chat_template.jinja", 2 * GB)


@case("tokenizer_config.json has 60 MB, expected at most")
def tokenizer_config_of_60_megabytes(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text('{"a": [' + "{}," * 20_000_000 + "0]}")


@case("chat.template")
def template_of_60_megabytes(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ x }}" * 8_500_000)


@case("chat template")
def template_of_14_megabytes(folder: Path) -> None:
    dump(folder / "tokenizer_config.json", {"chat_template": "{{ x }}" * 2_000_000})


def chat(name: str, text: str) -> None:
    """Add a case: a chat template that a conversation is rendered with."""

    def write(folder: Path) -> None:
        dump(folder / "tokenizer_config.json", {"chat_template": text})

    CASES[f"template {name}"] = Case(write, "chat template", "chat")


chat("loops", "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}")
chat("calls itself", "{% macro again(n) %}{{ again(n) }}{{ again(n) }}{% endmacro %}{{ again(1) }}")
chat("prints 400 MB", "{% for a in range(40000) %}{{ '0123456789' * 1000 }}{% endfor %}")
chat("makes 400 MB", "{{ ('0123456789' * 40000000) | length }}")
chat(
    "doubles a list", "{% set ns = namespace(x=[1]) %}{% for a in range(40) %}{% set ns.x = ns.x + ns.x %}{% endfor %}"
)
chat("formats a gigabyte", "{{ '%2000000000d' % 1 }}")
chat("raises to powers", "{{ 9 ** (9 ** 9) }}")
chat("leaves the sandbox", "{{ ''.__class__.__mro__[1].__subclasses__() }}")
chat("reads a file", "{% include '/etc/passwd' %}")
chat("is nested", "{{ " + "(" * 100_000 + "1" + ")" * 100_000 + " }}")

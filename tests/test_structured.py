"""Structured output: texts fit their grammar under every method, and a mask that is hard to meet harms nobody else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import cycle, islice
from typing import Any

import pytest
from cases import PARAMS
from matrix import draft_name, exact_methods, load, warnings
from structures import LONGEST, fault, schemas

from stretto import LLM, SamplingParams
from stretto.cli.structure import structure
from stretto.core import constraints
from stretto.core.grammar import Matching, Path
from stretto.core.request import Request
from stretto.decoding.speculative.drafters.model import ModelDrafter
from stretto.decoding.speculative.growth import Beam
from stretto.decoding.speculative.method import Speculative
from stretto.recipes.table import RECIPES

PENALTIES = {name: PARAMS["all"][name] for name in ("repetition_penalty", "frequency_penalty", "presence_penalty")}


def deep() -> Speculative:
    """Return a method that drafts trees eight tokens deep."""
    growth = Beam(depth=8, width=3, beam=4, least=0.0)
    return Speculative("deep", [ModelDrafter(growth=growth)], rows=32, scratch=3, patience=600.0)


ALL = ["deep", *exact_methods(False)]
LIGHT = [name for name in ALL if name == "deep" or not RECIPES[name].brings]
"""Those that load no further model."""


@pytest.fixture(scope="module")
def llm() -> LLM:
    """The embedded pair, with the light methods aboard."""
    return aboard(load("fp32", draft_name()), LIGHT)


def aboard(llm: LLM, methods: Sequence[str]) -> LLM:
    for name in {"plain", *methods} - {"deep"}:
        method = llm.method(name)
        if isinstance(method, Speculative):
            method.patience = 600.0  # a loaded machine must not drop a drafter
    llm.engine.add_method(deep())
    return llm


Asked = tuple[str, str, dict[str, Any]]
"""Prompt, method, parameters."""


def submit(llm: LLM, asked: Asked) -> list[Request]:
    prompt, method, params = asked
    defaults = {"temperature": 1.0, "max_tokens": LONGEST}
    return llm.submit(prompt, SamplingParams(**{**defaults, **params}), method)


def run(llm: LLM, asked: Sequence[Asked], together: int = 16) -> list[Request]:
    """Answer the requests, so many at a time; nobody's drafter may be dropped."""
    done: list[Request] = []
    waiting, running = iter(asked), []
    with warnings() as warned:
        while True:
            for each in islice(waiting, max(0, together - len(running))):
                requests = submit(llm, each)
                done += requests
                running += requests
            if not running:
                break
            llm.engine.step()
            running = [each for each in running if each.finish is None]
    assert not warned
    return done


def text(request: Request) -> str:
    return request.text.text


def wrong(llm: LLM, some: Sequence[dict[str, Any]], methods: Sequence[str], each: int, seeds: int = 1) -> list[str]:
    """Ask for texts of each schema, ``each`` methods of the round for every seed; return what is wrong."""
    names, asked = cycle(methods), []
    for number, schema in enumerate(some):
        for seed in range(seeds):
            params = {**(PENALTIES if number % 2 else {}), "mask": ("json_schema", {"schema": schema}), "seed": seed}
            asked += [("Once upon a time", name, params) for name in ["plain", *islice(names, each)]]
    done = run(llm, asked)
    found = []
    for first in range(0, len(done), each + 1):
        plain, *others = done[first : first + each + 1]
        schema = plain.params.mask[1]["schema"]
        for request in (plain, *others):
            said = "another text" if request.tokens != plain.tokens else fault(text(request), schema)
            if said or request.finish != "stop":
                found.append(f"{request.method}: {request.finish} {request.error}: {said or text(request)}")
    return found


def test_texts_fit_their_schemas_under_every_method(llm):
    assert wrong(llm, schemas()[::5], LIGHT, each=-(-len(LIGHT) // 10)) == []


@pytest.mark.long
def test_a_thousand_requests_fit_their_schemas(llm):
    assert wrong(aboard(llm, ALL), schemas(), ALL, each=9, seeds=2) == []


def test_a_mask_that_ends_at_depth_one_is_noticed(llm, monkeypatch):
    """The mask is not applied to rows beyond the first drafted one."""
    honest = constraints._constrain

    def lax(scores, state):
        if len(state.pending) > 1:
            mask, state.committed.mask = state.committed.mask, None
            honest(scores, state)
            state.committed.mask = mask
        else:
            honest(scores, state)

    monkeypatch.setattr(constraints, "_constrain", lax)
    assert wrong(llm, schemas()[:2], ["deep"], each=1)


def test_a_state_that_siblings_share_is_noticed(llm, monkeypatch):
    """Children of a place are one and the same, whose token is the last one asked for."""
    children: dict[Path, Path] = {}

    def shared(self: Matching, path: Path, token: int) -> Path:
        child = children.setdefault(path, Path(self, path, token))
        child.token, child.bits = token, None
        return child

    monkeypatch.setattr(Matching, "after", shared)
    assert wrong(llm, schemas()[:2], ["deep"], each=1)


def test_many_beside_each_other_say_what_each_says_alone(llm):
    """Mixed masks, methods and parameters, several samples of a prompt, a cache that is too small for all."""
    masks = [
        ("json_object", {}),
        ("regex", {"pattern": r"[A-Z][a-zé]{2,9}( [a-z]{1,6}){1,4}[.!?]"}),
        ("grammar", {"lark": 'start: item ("\\n" item)~1..4\nitem: "- " /[a-z ,]{3,20}/'}),
        ("json_schema", {"schema": schemas()[3]}),
        ("choice", {"choices": [[300, 301, 302], [300, 305]]}),
        None,
    ]
    extras = [{}, {"stop": ("e",)}, PENALTIES, {"logit_bias": {300: 3.0}, "logprobs": 2}, {"min_tokens": 4}, {"n": 2}]
    methods = cycle(["deep", "auto", "jump-forward", "prompt-lookup", "plain", "token-recycling", "lookahead"])
    asked = [
        ("The king said", next(methods), {**extra, "mask": mask, "seed": number, "max_tokens": 24})
        for number, (mask, extra) in enumerate((mask, extra) for mask in masks for extra in extras)
    ]
    alone = [each for prompt, _, params in asked for each in run(llm, [(prompt, "plain", params)], 1)]
    small = aboard(LLM("stretto-tiny", draft=draft_name(), dtype="fp32", cache_tokens=256, threads=1), LIGHT)
    together = run(small, asked, len(asked))
    assert len(together) == len(alone) >= 36
    assert [each.tokens for each in together] == [each.tokens for each in alone]
    assert [each.finish for each in together] == [each.finish for each in alone]
    assert sum(each.stats.preemptions for each in together) and sum(each.stats.accepted for each in together)


def test_a_cut_text_is_the_beginning_of_a_whole_one(llm):
    for schema in schemas()[::7]:
        params = {"mask": ("json_schema", {"schema": schema}), "seed": 5}
        (whole,) = run(llm, [("x", "plain", params)])
        length = len(whole.tokens) - len(whole.prompt) - 2
        done = run(llm, [("x", name, {**params, "max_tokens": length}) for name in ("plain", "deep", "jump-forward")])
        assert [each.finish for each in done] == ["length"] * 3
        assert all(text(whole).startswith(text(each)) for each in done) and not fault(text(whole), schema)


def test_forced_tokens_are_drafted_and_kept(llm):
    schema = {"enum": [{"name": "the quick brown fox", "kind": 1}, {"place": "over the lazy dog", "kind": 2}]}
    (done,) = run(llm, [("x", "jump-forward", {"mask": ("json_schema", {"schema": schema}), "seed": 1})])
    kept = done.stats.drafts["jump-forward"]
    assert all(checked == accepted for checked, accepted in kept)
    assert done.stats.steps < (len(done.tokens) - len(done.prompt)) / 2


# ---- what is hostile ----

NESTED: dict[str, Any] = {"type": "string"}
for _ in range(500):
    NESTED = {"type": "array", "items": NESTED}
CYCLE: dict[str, Any] = {}
CYCLE["not"] = [CYCLE, CYCLE]
LAUGHS = {
    f"a{i}": {"type": "array", "prefixItems": [{"$ref": f"#/$defs/a{i + 1}"}] * 2, "minItems": 2} for i in range(25)
}
LAUGHS = {"$ref": "#/$defs/a0", "$defs": {**LAUGHS, "a25": {"const": 1}}}

REFUSED = {
    "no schema": ("json_schema", {}),
    "not JSON": ("json_schema", {"schema": "{"}),
    "not to be written as JSON": ("json_schema", {"schema": {"const": {1, 2}}}),
    "deep": ("json_schema", {"schema": NESTED}),
    "a deep text": ("json_schema", {"schema": "[" * 60_000}),
    "circular": ("json_schema", {"schema": CYCLE}),
    "huge": ("json_schema", {"schema": {"enum": ["x" * 70_000]}}),
    "contradiction": ("json_schema", {"schema": {"type": "integer", "minimum": 3, "maximum": 2}}),
    "no values": ("json_schema", {"schema": {"enum": []}}),
    "false": ("json_schema", {"schema": False}),
    "of nothing but itself": ("json_schema", {"schema": {"$ref": "#"}}),
    "from elsewhere": ("json_schema", {"schema": {"$ref": "http://example.org/schema"}}),
    "unknown keyword": ("json_schema", {"schema": {"type": "array", "uniqueItems": True}}),
    "open bracket": ("regex", {"pattern": "a("}),
    "look-ahead": ("regex", {"pattern": "(?=a)b"}),
    "matches nothing": ("regex", {"pattern": r"[^\s\S]"}),
    "long regex": ("regex", {"pattern": "a" * 5_000}),
    "no regex": ("regex", {"pattern": 5}),
    "no rule": ("grammar", {"lark": "start: x"}),
    "never ends": ("grammar", {"lark": "start: start"}),
    "empty": ("grammar", {"lark": ""}),
    "long grammar": ("grammar", {"lark": "start: /a/ \n" * 10_000}),
    "terminals that explode": (
        "grammar",
        {"lark": "start: A0\n" + "\n".join(f"A{i}: A{i + 1} A{i + 1}" for i in range(25)) + '\nA25: "y"'},
    ),
}
HARD = {
    "a million letters": ("regex", {"pattern": "[xy](a{1000}){1000}"}),
    "many ways": ("grammar", {"lark": 'start: s\ns: s s | "a" | "b"'}),
    "a tree of a million leaves": ("json_schema", {"schema": LAUGHS}),
    "without an end": ("grammar", {"lark": 'start: "a" start'}),
    "rules that explode": (
        "grammar",
        {"lark": "start: a0\n" + "\n".join(f"a{i}: a{i + 1} a{i + 1}" for i in range(25)) + '\na25: "y" | "z"'},
    ),
    "many optional": ("json_schema", {"schema": {"properties": {f"k{i}": {"type": "string"} for i in range(800)}}}),
    "shorter than it must be": ("regex", {"pattern": "abc"}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_met_is_refused(llm, name):
    with pytest.raises(ValueError, match=f"mask='{REFUSED[name][0]}'") as error:
        submit(llm, ("x", "plain", {"mask": REFUSED[name]}))
    assert len(str(error.value)) < 1500


def test_what_is_hard_to_meet_harms_nobody_else(llm):
    """Each ends by itself: cut, or with an error of its own. Nobody else's text changes, and no drafter is lost."""
    healthy = [("Once", name, {"seed": 1, "max_tokens": 40}) for name in ("deep", "auto", "plain")]
    alone = [each.tokens for each in run(llm, healthy)]
    methods = cycle(["deep", "plain", "jump-forward", "auto"])
    asked = [("x", next(methods), {"mask": mask, "seed": 2, "max_tokens": 40}) for mask in HARD.values()]
    asked[-1][2]["min_tokens"] = 20
    before = llm.engine.steps
    done = run(llm, [*asked, *healthy], 16)
    assert [each.tokens for each in done[len(asked) :]] == alone
    ends = {name: each.finish for name, each in zip(HARD, done, strict=False)}
    assert ends["without an end"] == ends["many ways"] == "length" and ends["shorter than it must be"] == "error"
    assert all(each.error for each in done if each.finish == "error")
    assert llm.engine.steps - before < 200


def test_an_error_while_writing_is_told(llm, monkeypatch):
    """A grammar that goes beyond the limits of a step ends its own request with the reason."""
    honest = Matching.sound

    def unsound(self, path):
        if path.depth == 3:
            path.trouble, self.matcher, self.at = "too many items", self.fresh.deep_copy(), self.root
            return False
        return honest(self, path)

    monkeypatch.setattr(Matching, "sound", unsound)
    letters = ("regex", {"pattern": "[a-z]{40}"})
    done = run(llm, [("x", name, {"mask": letters, "seed": 1}) for name in ("plain", "deep")])
    assert [each.finish for each in done] == ["error"] * 2
    assert all("too many items" in each.error for each in done)


def test_the_command_line_takes_one_form(tmp_path):
    for name, held in {"schema.json": '{"type":"null"}', "words.lark": 'start: "a"'}.items():
        (tmp_path / name).write_text(held)
    none: dict[str, Any] = {"json_schema": None, "regex": None, "grammar": None}
    assert structure(**none) == {}
    for given in (' {"type":"null"}', str(tmp_path / "schema.json")):
        name, arguments = structure(**{**none, "json_schema": given})["mask"]
        assert name == "json_schema" and json.loads(arguments["schema"]) == {"type": "null"}
    assert structure(**{**none, "regex": "a+"}) == {"mask": ("regex", {"pattern": "a+"})}
    assert structure(**{**none, "grammar": tmp_path / "words.lark"}) == {"mask": ("grammar", {"lark": 'start: "a"'})}


def test_json_is_written_without_blanks(llm):
    (done,) = run(llm, [("x", "plain", {"mask": ("json_object", {}), "seed": 1})])
    assert json.dumps(json.loads(text(done)), separators=(",", ":"), ensure_ascii=False)
    assert text(done).startswith('{"') or text(done) == "{}"

"""The engine in a process of its own: what its death, and its slowness, mean for those who read its streams."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from stretto import LLM, AsyncEngine, SamplingParams
from stretto.engine.errors import EngineDied, Overloaded
from stretto.engine.host import Host
from stretto.engine.line import Line
from stretto.engine.stream import Stream
from stretto.engine.supervisor import Limits, Record, StepWatch, judge, suspects
from stretto.engine.worker import HANDLING, IDLE, STEP

STORY = "Once upon a time there was a king"
NUMERICS = {"dtype": "fp32", "weights": "fp32", "threads": 1}
OPTIONS = {**NUMERICS, "cache_tokens": 16384, "process": True, "init": "plugins:register"}
KINDS = [
    {"temperature": 0.8},
    {"temperature": 0.0, "repetition_penalty": 1.2},
    {"temperature": 1.2, "logit_bias": {200: 3.0, 190: 3.0}, "logprobs": 1},
    {"temperature": 0.9, "n": 2, "stop": [" the wood"]},
]


def params(number: int, length: int) -> SamplingParams:
    """Return the parameters of stream ``number``: of several kinds, each with its own seed."""
    return SamplingParams.from_dict({"seed": number, "max_tokens": length, "ignore_eos": True, **KINDS[number % 4]})


class Reader:
    """Reads one stream to its end."""

    def __init__(self, stream: Stream) -> None:
        self.stream, self.texts, self.tokens, self.done = stream, {}, {}, {}
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> dict:
        async for event in self.stream:
            index = event["index"]
            self.texts[index] = self.texts.get(index, "") + event["text"]
            self.tokens[index] = self.tokens.get(index, []) + event["token_ids"]
            if "completion" in event:
                self.done[index] = event["completion"]
        for index, completion in self.done.items():
            assert (self.texts[index], self.tokens[index]) == (completion["text"], completion["token_ids"])
        return self.done

    @property
    def gained(self) -> int:
        return sum(map(len, self.tokens.values()))


async def all_gain(readers: list[Reader]) -> None:
    """Wait until every stream that has not ended has one more token."""
    before = [reader.gained for reader in readers]
    while not all(r.gained > b or r.task.done() for r, b in zip(readers, before, strict=True)):
        await asyncio.sleep(0.002)


def kill(engine: AsyncEngine) -> None:
    """End the engine's process as nobody can forbid."""
    os.kill(engine.info()["pid"], getattr(signal, "SIGKILL", signal.SIGTERM))


async def dies(engine: AsyncEngine, deaths: int) -> None:
    while engine.stats()["deaths"] < deaths:
        await asyncio.sleep(0.01)


def same(tiny: LLM, found: list[dict], lengths: Sequence[int]) -> None:
    """Check that these streams, in their order, said what an undisturbed engine says."""
    every = tiny.generate([STORY] * len(found), [params(*each) for each in enumerate(lengths)], method="plain")
    for number, done in enumerate(found):
        for expected in (each for each in every if each.prompt_index == number):
            got = done[expected.index]
            assert (got["text"], got["token_ids"], got["finish_reason"], got["logprobs"]) == (
                expected.text,
                expected.token_ids,
                expected.finish_reason,
                expected.logprobs,
            )


def test_streams_outlive_three_kills(tiny):
    # Behind a death they are let in one by one: those in front are ahead of the last by a step for each.
    lengths = [3 * place + 72 for place in reversed(range(64))]

    async def scene():
        async with AsyncEngine("stretto-tiny", limits=Limits(window=1e6), **OPTIONS) as engine:
            readers = [Reader(engine.open(STORY, params(*each))) for each in enumerate(lengths)]
            for deaths in (1, 2, 3):
                await all_gain(readers)
                assert sum(not reader.task.done() for reader in readers) > 32, "a load that is over proves nothing"
                kill(engine)
                await dies(engine, deaths)
            found = await asyncio.gather(*(reader.task for reader in readers))
            assert "died 3 times within 1000000 s" in engine.why_not_ready
            assert max(done[0]["stats"]["resumed"] for done in found) == 3
            assert engine.stats()["requests"]["failed"] == 0
            return found

    same(tiny, asyncio.run(scene()), lengths)


@pytest.mark.parametrize("how", ["exit", "sleep", "while it is built"])
def test_a_request_that_ends_engines_ends_alone(tiny, how):
    mask = ["deadly", {}] if how == "while it is built" else ["fatal", {"how": how}]

    async def scene():
        limits = Limits(slow_seconds=5.0, slow_factor=10.0) if how == "sleep" else Limits()
        async with AsyncEngine("stretto-tiny", limits=limits, **OPTIONS) as engine:
            readers = [Reader(engine.open(STORY, params(number, 24))) for number in range(3)]
            poison = engine.open(STORY, {"mask": mask, "max_tokens": 9, "ignore_eos": True})
            readers += [Reader(engine.open(STORY, params(number, 24))) for number in range(3, 6)]
            with pytest.raises(EngineDied, match="a step took more" if how == "sleep" else "died twice.*exit code 3"):
                async for _ in poison:
                    pass
            found = await asyncio.gather(*(reader.task for reader in readers))
            assert engine.stats()["deaths"] == 2 and engine.stats()["requests"]["failed"] == 1
            return found

    same(tiny, asyncio.run(scene()), [24] * 6)


def test_a_rolling_restart_drops_no_stream(tiny):
    async def scene():
        async with AsyncEngine("stretto-tiny", **OPTIONS) as engine:
            readers = [Reader(engine.open(STORY, params(number, 300))) for number in range(4)]
            await all_gain(readers)
            first, before = engine.info()["pid"], [reader.gained for reader in readers]
            await engine.restart()
            assert engine.info()["pid"] != first and engine.why_not_ready is None
            assert all(r.gained > b for r, b in zip(readers, before, strict=True)), "they went on while it was loading"
            assert await engine.drain(300) == 0
            with pytest.raises(RuntimeError, match="drained"):
                engine.open(STORY)
            assert engine.stats()["deaths"] == 0 and engine.stats()["restarts"] == 1
            return [await reader.task for reader in readers]

    same(tiny, asyncio.run(scene()), [300] * 4)


def test_who_is_aborted_while_the_engine_changes_leaves_nothing_in_the_new_one(tiny):
    """Told to the old engine, taken over by the new one."""

    async def scene():
        async with AsyncEngine("stretto-tiny", **OPTIONS) as engine:
            adopt, readers = engine._keeper._adopt, []

            def aborted_just_before(*new) -> None:
                readers.extend(Reader(engine.open(STORY, params(4 * number, 1500))) for number in range(9))
                engine.abort(readers[0].stream.id)
                adopt(*new)

            engine._keeper._adopt = aborted_just_before
            await engine.restart()
            gone, *others = readers
            assert (await gone.task)[0]["finish_reason"] == "abort"
            while engine.stats()["engine"].get("running") != len(others):  # long enough for statistics to come
                assert not others[0].task.done()
                await asyncio.sleep(0.02)

    asyncio.run(scene())


ORPHAN = """
import asyncio, os, signal
from stretto import AsyncEngine

async def main():
    async with AsyncEngine("stretto-tiny", process=True, threads=1, cache_tokens=256) as engine:
        stream = engine.open("Once", {"max_tokens": 200, "ignore_eos": True})
        await anext(stream)
        os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))

if __name__ == "__main__":
    asyncio.run(main())
"""


def test_the_engine_does_not_outlive_its_parent(tmp_path: Path):
    script = tmp_path / "orphan.py"
    script.write_text(ORPHAN)
    source = str(Path(sys.modules["stretto"].__file__).parent.parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([source, os.environ.get("PYTHONPATH", "")])}
    # The child holds its parent's standard output: its end is seen only when both are gone.
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, env=environment) as parent:
        parent.communicate(timeout=240)
    assert parent.returncode not in (0, 1)


def test_what_does_not_load_is_told_as_by_llm():
    async def start(model, **options):
        async with AsyncEngine(model, **{**OPTIONS, **options}):
            pass

    with pytest.raises(ValueError, match="weights"):
        asyncio.run(start("stretto-tiny", weights="int9"))
    with pytest.raises(ValueError, match="module:function"):
        asyncio.run(start("stretto-tiny", init="plugins:nothing"))


def in_a_thread(scene, **options):
    """Run a scene with an engine in a thread, whose side of the border is the same."""

    async def main():
        async with AsyncEngine("stretto-tiny", **{**NUMERICS, "cache_tokens": 2048, **options}) as engine:
            return await scene(engine)

    return asyncio.run(main())


def test_those_who_may_not_wait_are_told_when_to_come_back():
    async def scene(engine):
        streams = [engine.open(STORY, {"max_tokens": 4}) for _ in range(2)]
        with pytest.raises(Overloaded) as refusal:
            engine.open(STORY)
        assert 1 <= refusal.value.retry_after <= 60
        for stream in streams:
            await Reader(stream).task
        await Reader(engine.open(STORY, {"max_tokens": 4})).task
        requests = engine.stats()["requests"]
        assert requests["rejected"] == 1 and requests["finished"] == 3 and requests["waiting"] == 0

    in_a_thread(scene, max_waiting=2)


def test_a_deadline_ends_the_text_where_it_stands(tiny):
    async def scene(engine):
        endless = {"max_tokens": 1000, "ignore_eos": True, "seed": 1}
        for deadline in (100, 400, 1600, 6400):  # until there is time for a token
            (done,) = (await Reader(engine.open(STORY, endless, timeout_ms=deadline)).task).values()
            if done["token_ids"]:
                break
        worker = engine._keeper.worker
        worker.send = lambda message: None  # an engine that hears nothing any more
        (late,) = (await Reader(engine.open(STORY, endless, timeout_ms=10)).task).values()
        del worker.send
        assert done["finish_reason"] == late["finish_reason"] == "timeout" and late["text"] == ""
        assert late.keys() == done.keys() and late["stats"].keys() == done["stats"].keys()
        return done

    done = in_a_thread(scene)
    assert 0 < len(done["token_ids"]) < 1000
    whole = tiny.generate(STORY, SamplingParams(max_tokens=1000, ignore_eos=True, seed=1))[0]
    assert whole.token_ids[: len(done["token_ids"])] == done["token_ids"] and whole.text.startswith(done["text"])


def test_a_slow_reader_gets_all_in_few_events_and_one_who_leaves_is_forgotten(tiny):
    async def scene(engine):
        slow = engine.open(STORY, params(0, 64))
        gone = engine.open(STORY, {"max_tokens": 1500, "ignore_eos": True})
        await anext(gone)
        gone.close()
        while slow.samples:
            await asyncio.sleep(0.01)
        events = [event async for event in slow]
        assert len(events) == 1 and len(events[0]["token_ids"]) == 64
        while engine.stats()["engine"].get("running") != 0:
            await asyncio.sleep(0.05)
        cache = engine.stats()["engine"]["caches"]["target"]
        assert cache["free"] + 16 * cache["cached"] == cache["capacity"]
        assert not engine._streams
        return events[0]["completion"]["text"]

    (expected,) = tiny.generate(STORY, params(0, 64))[:1]
    assert in_a_thread(scene) == expected.text


def test_an_abort_frees_blocks_before_the_next_step(tiny):
    host = Host(tiny, lambda event: None)
    host.handle({"op": "submit", "id": 1, "prompt": STORY, "params": {"max_tokens": 50, "ignore_eos": True}})
    host.step()
    cache = tiny.engine.caches["target"]
    assert cache.available() < cache.capacity
    host.handle({"op": "abort", "id": 1})
    assert cache.available() == cache.capacity and not tiny.engine.scheduler.running
    host.step()


def test_texts_are_encoded_beside_the_engine(tiny):
    async def scene(engine):
        ids = await engine.tokenize(STORY)
        conversation = [{"role": "user", "content": "Who are you?"}]
        rendered = await engine.encode_chat(conversation)
        rendered_done, written_done = [
            (await Reader(stream).task)[0]
            for stream in (
                engine.open(rendered, {"seed": 1, "max_tokens": 9}, reply=True),
                engine.open(messages=conversation, params={"seed": 1, "max_tokens": 9}),
            )
        ]
        assert rendered_done["reply"] == written_done["reply"] is not None
        with pytest.raises(ValueError, match="plain data"):
            engine.open(STORY, {"seed": object()})
        return ids, await engine.detokenize(ids)

    assert in_a_thread(scene) == (tiny.tokenizer.encode(STORY), STORY)


# Decisions, without an engine.


class Rash(Line):
    """Control: sends everyone to a new engine at once."""

    def move(self) -> None:
        while self.open and self._unsent:
            self._send(self._unsent.popleft())


def fates(deadly: int, kind: type[Line] = Line) -> list[int]:
    """Return which of six requests end by error, when every engine dies in the first step of one of them."""
    streams = [Stream(number, {"params": {}}, lambda stream: None) for number in range(6)]
    batch: list[Stream] = []
    line, ended = kind(99, batch.append), []
    line.start(streams)
    while len(batch) < len(streams) or deadly not in ended:
        if any(stream.id == deadly for stream in batch):
            for stream in judge(streams, [each.id for each in batch]):
                stream.fail(EngineDied())
                ended.append(stream.id)
            streams = [stream for stream in streams if stream.samples]
            batch.clear()
            line.start(streams)
        else:
            for stream in batch:
                stream.put({"index": 0, "text": "", "token_ids": [1]})
            line.move()
    return ended


@pytest.mark.parametrize("deadly", range(6))
def test_probation_finds_the_one_to_blame(deadly):
    assert fates(deadly) == [deadly]


def test_without_probation_others_are_blamed():
    assert len(fates(3, Rash)) > 1


def test_blame_falls_on_what_was_being_done():
    assert set(suspects([HANDLING, 7.0, 0.0], [1, 2])) == {7}
    assert set(suspects([STEP, 7.0, 0.0], [1, 2])) == {1, 2}


def test_only_long_steps_are_deaths():
    def late(*looks, gap=1.0):
        steps = StepWatch(Limits(), 1.0)
        return [bool(steps.look((*look, 100.0), number * gap)) for number, look in enumerate(looks)].count(True)

    assert late(*[(STEP, 1.0)] * 11) == 0 and late(*[(STEP, 1.0)] * 13) > 0
    assert late(*[(STEP, float(number)) for number in range(100)]) == 0, "many short ones"
    assert late(*[(IDLE, 1.0)] * 100) == 0 and late(*[(HANDLING, 1.0)] * 100) == 0
    assert late(*[(STEP, 1.0)] * 4, gap=3600.0) == 0, "the machine slept"
    slow = StepWatch(Limits(), 1.0)
    assert not any(slow.look((STEP, 1.0, 1000.0), float(now)) for now in range(50)), "50 times what was expected"
    assert slow.look((STEP, 1.0, 1000.0), 52.0)


def test_three_deaths_in_a_minute_make_it_unready_until_one_has_passed_without():
    record = Record(Limits())
    for now in (0.0, 50.0):
        record.died(now, "x")
    assert record.why(51.0) is None
    record.died(59.0, "out of memory")
    assert "out of memory" in record.why(60.0) and record.why(118.9) and record.why(119.1) is None
    record.died(200.0, "x")
    assert record.why(201.0) is None, "what lies long back is forgotten"
    record = Record(Limits())
    for now in (0.0, 10.0, 20.0, 75.0):
        record.died(now, "x")
    assert record.why(134.0) and record.why(136.0) is None, "a death while it is unready begins the minute again"


def test_events_that_nobody_reads_take_no_more_room_than_their_text():
    stream = Stream(1, {"params": {"logprobs": 0}}, lambda stream: None)
    for token in range(500):
        stream.put({"id": 1, "index": 0, "text": "ab", "token_ids": [token], "logprobs": [{token: 0.0}]})

    async def read():
        return await anext(stream)

    event = asyncio.run(read())
    assert event["text"] == "ab" * 500 and event["token_ids"] == list(range(500)) and len(event["logprobs"]) == 500

"""Requests whose grammar is still to be built wait for a helper thread, while the engine serves the others."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from stretto.core.params import SamplingParams
from stretto.engine.host import Inbox, Message
from stretto.engine.mask_store import MaskStore

BUILT = "built"
"""The message by which the helper says that the mask of the request ``id`` is there, or that none can be built."""


class Builder:
    """Keeps back requests with a mask that takes time, and what comes for them meanwhile."""

    def __init__(self, masks: MaskStore) -> None:
        self._masks = masks
        self._helper = ThreadPoolExecutor(1, thread_name_prefix="stretto-masks")
        self.kept: dict[Any, list[Message]] = {}
        """By request."""

    def pass_on(self, message: Message, inbox: Inbox) -> list[Message]:
        """Return the messages that are to be handled now, in the order in which they came."""
        name = message.get("id")
        if message.get("op") == BUILT:
            return self.kept.pop(name)
        if isinstance(name, int | str) and name in self.kept:
            self.kept[name].append(message)
            return []
        params = _masked(message)
        if params is None or self._masks.ready(params):
            return [message]
        self.kept[name] = [message]
        building = self._helper.submit(self._masks.of, params)
        building.add_done_callback(lambda _: inbox.put({"op": BUILT, "id": name}))
        return []


def _masked(message: Message) -> SamplingParams | None:
    """Return the parameters of a request with a mask; None for others, and for what is wrong and refused later."""
    given = message.get("params")
    if message.get("op") != "submit" or not isinstance(given, dict) or given.get("mask") is None:
        return None
    try:
        params = SamplingParams.from_dict(given)
        params.validate(2**31)
    except (TypeError, ValueError):
        return None
    return params

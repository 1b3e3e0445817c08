"""Masks that were built: requests with the same grammar share one, and a helper may build it beforehand."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Iterable

from stretto.core.masks import TokenMask, Words, build_mask, lasting
from stretto.core.params import SamplingParams

KEPT = 32
"""Masks that are kept, of all tenants together; the one that was not asked for longest goes first."""


class MaskStore:
    """The most recent masks of one model, by tenant: how long a grammar takes tells nobody that another has used it.

    Only masks that may serve several texts are kept (``register_mask(lasting=True)``), and what was wrong with others.
    """

    def __init__(self, vocab_size: int, eos_ids: Iterable[int], words: Words | None) -> None:
        self._vocab_size, self._eos_ids, self._words = vocab_size, frozenset(eos_ids), words
        self._kept: OrderedDict[tuple[str, str, str], TokenMask | ValueError] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, params: SamplingParams) -> TokenMask | None:
        """Return the mask that ``params`` ask for, built now if it is not kept. Raises ``ValueError`` for a wrong one.

        May be called from any thread.
        """
        if params.mask is None:
            return None
        key = self._key(params)
        if key is None:
            return self._built(params)
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
        if found is None:
            try:
                found = self._built(params)
            except ValueError as error:
                found = error
            with self._lock:
                self._kept[key] = found
                while len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
        if isinstance(found, ValueError):
            raise ValueError(*found.args)
        return found

    def ready(self, params: SamplingParams) -> bool:
        """Whether ``of`` would return at once, or cannot be helped by building the mask before."""
        if params.mask is None:
            return True
        key = self._key(params)
        return key is None or key in self._kept

    def _built(self, params: SamplingParams) -> TokenMask:
        assert params.mask is not None
        name, arguments = params.mask
        return build_mask(name, arguments, self._vocab_size, self._eos_ids, self._words)

    def _key(self, params: SamplingParams) -> tuple[str, str, str] | None:
        """Return under what the mask is kept, None where it is not. A schema's order of keys is its text's."""
        assert params.mask is not None
        name, arguments = params.mask
        if not lasting(name):
            return None
        try:
            return params.tenant, name, json.dumps(arguments)
        except (TypeError, ValueError, RecursionError):
            return None

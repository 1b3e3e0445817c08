"""What an engine tells about itself, as plain data: what it is, and how it fares."""

from __future__ import annotations

import os
import time
from typing import Any

from stretto.decoding.speculative.method import Speculative
from stretto.decoding.speculative.paying import Paying
from stretto.engine.llm import LLM
from stretto.recipes.table import RECIPES, missing


def info(llm: LLM) -> dict[str, Any]:
    """Return what does not change while the engine lives; ``available`` are the methods that can be asked for."""
    engine = llm.engine
    return {
        "model": llm.name,
        "folder": str(llm.folder),
        "fingerprint": llm.fingerprint,
        "context": llm.model.context,
        "vocab_size": llm.model.vocab_size,
        "eos_ids": sorted(llm.intake.eos_ids),
        "method": llm.default_method,
        "methods": {name: method.facts.fidelity for name, method in engine.methods.items()},
        "available": {name: r.fidelity for name, r in sorted(RECIPES.items()) if not missing(r, llm.aboard)},
        "draft": engine.models["draft"].fingerprint if "draft" in engine.models else None,
        "cache_tokens": llm.intake.capacity,
        "max_rows": engine.scheduler.max_rows,
        "pid": os.getpid(),
    }


def snapshot(llm: LLM) -> dict[str, Any]:
    """Return how the engine fares: counts since its start, and what runs and waits now."""
    engine = llm.engine
    return {
        "time": time.time(),
        "steps": engine.steps,
        "rows": dict(engine.kinds),
        "running": len(engine.scheduler.running),
        "waiting": len(engine.scheduler.waiting),
        "preemptions": engine.scheduler.preemptions,
        "seconds": dict(engine.seconds),
        "drafted": engine.totals.drafted,
        "accepted": engine.totals.accepted,
        "drafts": {name: [list(pair) for pair in depths] for name, depths in engine.totals.drafts.items()},
        "caches": {name: cache.stats() for name, cache in engine.caches.items()},
        "methods": {name: method.facts.fidelity for name, method in engine.methods.items()},
        "ledgers": {
            name: method.allocator.figures()
            for name, method in engine.methods.items()
            if isinstance(method, Speculative) and isinstance(method.allocator, Paying)
        },
        "stores": {
            name: {store: dict(sizes) for store, sizes in method.stores().items()}
            for name, method in engine.methods.items()
        },
    }

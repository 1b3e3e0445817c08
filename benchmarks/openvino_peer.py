"""OpenVINO GenAI behind the protocol of ``peer_worker.py``. Needs openvino-genai, and optimum-intel to convert."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

BITS = {"int8": 8, "int4": 4}


def export(source: str, target: str, weights: str) -> None:
    """Write a checkpoint folder as OpenVINO's own, compressed to ``weights``: int8, int4 in groups of 32, or bf16."""
    from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig

    config = None
    if weights in BITS:
        group = {"group_size": 32} if weights == "int4" else {}
        config = OVWeightQuantizationConfig(bits=BITS[weights], sym=True, **group)
    model = OVModelForCausalLM.from_pretrained(
        source, export=True, compile=False, load_in_8bit=False, quantization_config=config
    )
    unfinished = Path(f"{target}.part")
    model.save_pretrained(unfinished)
    unfinished.rename(target)


class OpenVino:
    """GenAI's pipeline on the CPU. It decodes by itself, so that single rows and prompts are what can be timed."""

    def __init__(self, path: str, threads: int, context: int) -> None:
        import openvino_genai

        self._genai = openvino_genai
        # Without a latency hint the plugin may spread one request over streams.
        options: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        self._pipeline = openvino_genai.LLMPipeline(path, "CPU", **options)
        self._random = random.Random(0)
        self.flags = {"threads": threads, **options, "pipeline": "LLMPipeline, defaults otherwise"}

    def rows(self, rows: int, context: int) -> Callable[[], float]:
        """See ``Peer``; the prompt comes from the pipeline's prefix cache. Raises ``ValueError`` for several rows."""
        if rows != 1:
            raise ValueError(f"rows={rows}: OpenVINO GenAI's pipeline decodes one row a pass")

        def run() -> float:
            metrics = self._generate(random.Random(context), context, tokens=6)
            return median(metrics.raw_metrics.m_durations) / 1e6

        return run

    def prompt(self, tokens: int) -> float:
        """See ``Peer``."""
        return float(self._generate(self._random, tokens, tokens=1).get_ttft().mean) / 1e3

    def _generate(self, source: random.Random, length: int, tokens: int) -> Any:
        import numpy as np
        import openvino

        ids = np.array([[source.randrange(2, 4096) for _ in range(length)]], dtype=np.int64)
        given = self._genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids)))
        config = self._genai.GenerationConfig()
        config.set_eos_token_id(1)
        config.stop_token_ids = set()
        config.ignore_eos, config.do_sample, config.max_new_tokens = True, False, tokens
        return self._pipeline.generate(given, config).perf_metrics

    def close(self) -> None:
        """Give the memory back."""
        del self._pipeline

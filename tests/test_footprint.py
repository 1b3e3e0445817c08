"""What a model needs is told before anything is read, and a model that does not fit is not begun."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import checkpoints
import pytest

from stretto.kernels import native
from stretto.models import footprint as told
from stretto.models.compiled import CompiledTransformer
from stretto.models.loader import load_model, open_source
from stretto.weights.formats import FORMATS, own_format


@pytest.mark.skipif(native.load() is None, reason="there is no native library to ask")
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    "case", ["llama", "gpt2", "mixtral", "gemma3_text", "glm4", "deepseek_v2", "deepseek_v2-query"]
)
def test_the_bytes_of_a_pass_are_those_that_are_packed(case: str, form: str, tmp_path: Path):
    checkpoints.make(tmp_path, case)
    source = open_source(tmp_path, form)
    needs = told.footprint(source.spec, FORMATS[form], own_format(source.own()), source.own())
    model = load_model(tmp_path, weights=form)
    assert isinstance(model, CompiledTransformer)
    vectors = sum(4 * shape[0] for shape in source.parameters.shapes().values() if len(shape) == 1)
    positions = 4 * math.prod(source.parameters.shapes().get("positions", (0,)))
    assert abs(needs.read_per_token - vectors - positions - model.weight_bytes) <= 0.001 * model.weight_bytes
    assert needs.cache_per_token == sum(lane.bytes_per_token() for lane in model.lanes)
    assert needs.peak >= needs.weights >= needs.read_per_token


def test_a_model_that_does_not_fit_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    checkpoints.make(tmp_path, "llama", hidden_size=256, intermediate_size=1024)
    source = open_source(tmp_path, "auto")
    needs = {
        name: told.footprint(source.spec, form, FORMATS["fp32"], source.own()).peak for name, form in FORMATS.items()
    }

    def read(self: object, name: str) -> None:
        raise AssertionError(f"{name} was read")

    monkeypatch.setattr("stretto.models.sources.CheckpointParameters._read", read)
    monkeypatch.setattr(told, "free_memory", lambda: (needs["int8"] + needs["fp32"]) // 2)
    with pytest.raises(MemoryError, match=r"needs .* GB to load as fp32, and .* GB are free; add --weights int8 or"):
        load_model(tmp_path)
    monkeypatch.setattr(told, "free_memory", lambda: 1000)
    with pytest.raises(MemoryError, match="no format of it fits here, or free memory"):
        load_model(tmp_path)


def test_info_says_it_all():
    code = "from stretto.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "info", "stretto-tiny", "--json"], capture_output=True, text=True, timeout=120
    )
    found = json.loads(done.stdout)
    assert found["family"] == "llama" and found["layers"] == 6 and set(found["formats"]) == set(FORMATS)
    assert all(needs["fits"] for needs in found["formats"].values())
    table = subprocess.run(
        [sys.executable, "-c", code, "info", "stretto-tiny"], capture_output=True, text=True, timeout=120
    )
    assert all(name in table.stdout for name in FORMATS) and "1,000 tokens" in table.stdout

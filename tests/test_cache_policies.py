"""Cache policies hide the same entries however the work is cut; free memory is read as the system means it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stretto.cache.memory import default_cache_tokens, free_memory, linux_memory, macos_memory
from stretto.cache.policies import CachePolicy, HeavyHitter, WindowWithSinks

LAYERS, HEADS, LENGTH = 2, 3, 90
Shown = dict[tuple[int, int, int], frozenset[int]]
"""By (layer, head, row): the positions that the row sees."""


def scores(seed: int) -> torch.Tensor:
    """float32 [layers, heads, rows, entries]: what attention would score; a few entries are sought by all rows."""
    noise = torch.Generator().manual_seed(seed)
    return torch.randn(LAYERS, HEADS, LENGTH, LENGTH, generator=noise) + 2 * torch.randn(
        LAYERS, HEADS, 1, LENGTH, generator=noise
    )


def attend(policy: CachePolicy, seed: int, cuts: list[int], drafts: int) -> Shown:
    """Run all rows through the policy in slices of ``cuts`` rows, with ``drafts`` rows of rejected drafts behind each.

    The drafted rows stand in a second branch over the same positions as the true rows to come.
    """
    table, shown, first = scores(seed), {}, 0
    wrong = scores(seed + 1)
    while first < LENGTH:
        stop = min(first + cuts[first % len(cuts)], policy.next_boundary(first), LENGTH)
        true = list(range(first, stop))
        drafted = list(range(first, min(first + drafts, policy.next_boundary(first), LENGTH)))
        rows, index = true + drafted, torch.tensor([*range(stop), *drafted])
        for layer in range(LAYERS):
            weight = torch.cat([table[layer][:, true][:, :, :stop], wrong[layer][:, drafted][:, :, :stop]], 1)
            weight = torch.cat([weight, wrong[layer][:, rows][:, :, drafted]], 2).movedim(0, 1)
            sees = torch.tensor(rows)[:, None] >= index
            sees[: len(true), stop:] = False
            sees[len(true) :, first:stop] = False
            bias = policy.bias(layer, torch.empty(0), rows, index)
            if bias is not None:
                assert bias.shape[0] == len(rows) and bias.shape[1] in (1, HEADS) and bias.dtype == torch.float32
                weight = weight + bias
            mass = weight.masked_fill(~sees[:, None], float("-inf")).softmax(-1)
            policy.mass(layer, rows, index, mass)
            for number, row in enumerate(true):
                for head in range(HEADS):
                    seen = (mass[number, head] > 0).nonzero()[:, 0].tolist()
                    shown[layer, head, row] = frozenset(index[seen].tolist())
        policy.commit(range(len(true)))
        first = stop
    return shown


def heavy_hitters(seed: int, budget: int, recent: int, epoch: int) -> Shown:
    """H2O as sets, one row at a time: at a border, what left the recent window competes with what was kept so far."""
    table, shown = scores(seed), {}
    for layer in range(LAYERS):
        for head in range(HEADS):
            gained, kept, entered = [0.0] * LENGTH, set[int](), 0
            for row in range(LENGTH):
                if row % epoch == 0 and row - recent > budget:
                    kept |= set(range(entered, row - recent))
                    entered = row - recent
                    kept = set(sorted(kept, key=lambda position: -gained[position])[:budget])
                seen = sorted(kept | set(range(entered, row + 1)))
                for position, mass in zip(seen, table[layer, head, row, seen].softmax(0).tolist(), strict=True):
                    gained[position] += mass
                shown[layer, head, row] = frozenset(seen)
    return shown


def window(sinks: int, size: int, epoch: int) -> Shown:
    rows = {row: row // epoch * epoch - size + 1 for row in range(LENGTH)}
    seen = {row: frozenset(p for p in range(row + 1) if p < sinks or p >= start) for row, start in rows.items()}
    return {(layer, head, row): seen[row] for layer in range(LAYERS) for head in range(HEADS) for row in range(LENGTH)}


cuttings = st.lists(st.integers(1, 40), min_size=1, max_size=4)


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 99),
    cuts=cuttings,
    drafts=st.integers(0, 5),
    sizes=st.tuples(st.integers(0, 9), st.integers(1, 20), st.integers(1, 24)),
)
def test_rows_see_the_same_under_any_chunking(
    seed: int, cuts: list[int], drafts: int, sizes: tuple[int, int, int]
) -> None:
    assert attend(HeavyHitter(*sizes), seed, cuts, drafts) == heavy_hitters(seed, *sizes)
    assert attend(WindowWithSinks(*sizes), seed, cuts, drafts) == window(*sizes)


class CountsDrafts(HeavyHitter):
    """Broken: counts the mass of rejected rows too."""

    def commit(self, rows: object = None) -> None:
        for layer, (_, index, mass) in self._latest.items():
            self._add(layer, index, mass, self._counted + len(list(rows)))  # type: ignore[call-overload]  # the control takes any rows
        self._latest.clear()
        self._counted += len(list(rows))  # type: ignore[call-overload]  # the control takes any rows
        self._shown.clear()


class SelectsEachPass(HeavyHitter):
    """Broken: an epoch begins with each pass."""

    def boundary(self, index: int) -> int:
        self._shown.clear()
        return self._counted


@pytest.mark.parametrize("broken", [CountsDrafts, SelectsEachPass])
def test_broken_policies_fail(broken: Callable[[int, int, int], HeavyHitter]) -> None:
    whole, cut = (attend(broken(4, 8, 16), 3, cuts, drafts=3) for cuts in ([16], [1, 5]))
    assert whole != cut


def test_policies_refuse_what_they_cannot_answer_for() -> None:
    policy = HeavyHitter(budget=2, recent=2, epoch=8)
    query, index = torch.empty(0), torch.arange(12)
    with pytest.raises(ValueError, match="rows 4 to 9 in a pass, but 0 rows are committed; expected rows from 0 to 7"):
        policy.bias(0, query, range(4, 10), index)
    policy.mass(0, [0, 1], index[:2], torch.ones(2, 1, 2))
    with pytest.raises(ValueError, match=r"rows \[1\] committed, expected rows from 0 on"):
        policy.commit([1])
    with pytest.raises(ValueError, match="HeavyHitter: budget = -1, expected at least 0"):
        HeavyHitter(budget=-1)
    assert len({WindowWithSinks(1, 2, 3).lineage, WindowWithSinks(1, 2, 4).lineage, HeavyHitter(1, 2, 3).lineage}) == 3


GIB = 1 << 30


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, 8 * GIB),
        (
            {
                "proc/self/cgroup": "0::/user/job\n",
                "sys/fs/cgroup/user/job/memory.max": "max\n",
                "sys/fs/cgroup/user/job/memory.current": f"{GIB}\n",
                "sys/fs/cgroup/user/memory.max": f"{4 * GIB}\n",
                "sys/fs/cgroup/user/memory.current": f"{3 * GIB}\n",
                "sys/fs/cgroup/user/memory.stat": f"anon 5\ninactive_file {GIB}\n",
            },
            2 * GIB,
        ),
        (
            {
                "proc/self/cgroup": "5:cpu,cpuacct:/x\n4:memory:/docker/gone\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{3 * GIB}\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{2 * GIB}\n",
                "sys/fs/cgroup/memory/memory.stat": "total_inactive_file 512\n",
            },
            GIB + 512,
        ),
        (
            {
                "proc/self/cgroup": "0::/\n",
                "sys/fs/cgroup/memory.max": f"{GIB}\n",
                "sys/fs/cgroup/memory.current": f"{2 * GIB}\n",
            },
            0,
        ),
    ],
)
def test_linux_memory_counts_control_groups(tmp_path: Path, files: dict[str, str], free: int) -> None:
    for name, text in {"proc/meminfo": f"MemTotal: 1 kB\nMemAvailable:   {8 * GIB // 1024} kB\n", **files}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert linux_memory(tmp_path) == free


def test_macos_memory_counts_what_can_be_reclaimed() -> None:
    report = "Mach Virtual Memory Statistics: (page size of 16384 bytes)\nPages free:   10.\nPages active:  7.\n"
    assert macos_memory(report + "Pages inactive:  5.\nPages speculative:  1.\n") == 16 * 16384


def test_default_cache_tokens() -> None:
    assert free_memory() > 0
    assert default_cache_tokens(1024, 4096, share=0.25, free=GIB) == 262_144
    assert default_cache_tokens(1024, 64, free=GIB) == 256 * 64
    assert default_cache_tokens(100_000, 4096, free=GIB) == 5360
    assert default_cache_tokens(100_000, 4096, free=0) == 16
    with pytest.raises(ValueError, match=r"share = 0: expected"):
        default_cache_tokens(1, 1, share=0)

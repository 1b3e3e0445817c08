"""Averages that forget."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Mean:
    """A mean that forgets: each value counts as one in at most ``memory``."""

    value: float = 0.0
    weight: float = 0.0

    def add(self, value: float, memory: float) -> None:
        """Take one value in."""
        self.weight = min(self.weight + 1.0, memory)
        self.value += (value - self.value) / self.weight


@dataclass(slots=True)
class Slope:
    """How y rises with x (least squares), of values that are forgotten like those of ``Mean``."""

    x: Mean = field(default_factory=Mean)
    y: Mean = field(default_factory=Mean)
    xx: Mean = field(default_factory=Mean)
    xy: Mean = field(default_factory=Mean)

    def add(self, x: float, y: float, memory: float) -> None:
        """Take one pair in."""
        before = x - self.x.value
        self.x.add(x, memory)
        self.y.add(y, memory)
        self.xx.add(before * (x - self.x.value), memory)
        self.xy.add(before * (y - self.y.value), memory)

    @property
    def value(self) -> float:
        """The slope; 0 while nothing speaks for one."""
        return self.leaning(0.0, 0.0)

    def leaning(self, on: float, spread: float) -> float:
        """Return the slope leaning on another, as on pairs of such a squared ``spread`` of x."""
        seen = self.xx.weight
        weight = self.xx.value * seen + spread
        return (self.xy.value * seen + on * spread) / weight if weight > 0.0 else on

"""Where chat templates run: Jinja's sandbox under a limit of time and of memory.

A template comes with a checkpoint, from anyone. Jinja's sandbox keeps it from reaching Python; what it may still do is
to run for ever or to fill the memory. Both are counted where they happen: loops, calls, filters and operators look at
the clock, and whatever makes text or lists larger is told in advance how large the result would be. No signal, thread
or trace function is needed, so it works the same in every thread and on every system.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter, SecurityError
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

MAX_NUMBER = 10_000
"""Largest width, precision or count that a template may give to what formats or fills."""
_ITEM = 16
"""What an item of a list counts as, in characters."""
# Filters that multiply their input in ways of their own, which no template of a conversation has a use for.
_UNOFFERED = ("wordwrap", "urlize", "urlencode", "xmlattr", "pprint", "random", "forceescape")
_UNSAFE_METHODS = {"encode", "translate", "format_map", "to_bytes", "from_bytes"}
_NUMBERS = re.compile(r"\d+")
_CONVERSION = re.compile(r"%(?:\([^)]*\))?[^a-zA-Z%]*")


class TemplateLimitError(TemplateError, ValueError):
    """A chat template went beyond a limit; the message names it."""


class _Meter:
    """What one run of a template may still use."""

    def __init__(self, characters: int, seconds: float) -> None:
        self.limit, self.seconds = characters, seconds
        self._left = characters
        self._end = time.thread_time() + seconds
        self._known: dict[int, tuple[Any, int]] = {}

    def tick(self) -> None:
        """Look at the clock: the processor time of this thread, which a busy machine does not shorten."""
        if time.thread_time() > self._end:
            raise TemplateLimitError(f"the chat template ran for more than {self.seconds:g} seconds (max_seconds)")

    def need(self, size: int) -> None:
        """Refuse what would take more than is left."""
        if size > self._left:
            raise TemplateLimitError(
                f"the chat template builds texts and lists of more than {self.limit} characters (MAX_WORK)"
            )

    def spend(self, size: int) -> None:
        """Take from what is left."""
        self.need(size)
        self._left -= size

    def size(self, value: Any) -> int:
        """Characters that ``value`` takes when written out, each shared part as often as it appears.

        Each text and container is paid for when it is first met, and kept, so that its identity stays its own.
        """
        if isinstance(value, int):
            return value.bit_length()
        if not isinstance(value, _SIZED) or (isinstance(value, str) and len(value) < _SMALL):
            return len(value) if isinstance(value, str) else _ITEM
        known = self._known.get(id(value))
        if known is not None:
            return known[1]
        self.tick()
        if isinstance(value, str):
            own, inner = _SMALL + len(value), 0
        else:
            parts = [*value.keys(), *value.values()] if isinstance(value, Mapping) else value
            own = _ITEM * (_ITEM + len(parts))
            inner = sum(map(self.size, parts))
        self.spend(own)
        self.need(own + inner)
        self._known[id(value)] = value, own + inner
        return own + inner


_SMALL = 64
"""Texts below this length are not worth an entry in the account; the clock limits how many there can be."""
_SIZED = (str, Mapping, list, tuple, set, frozenset, KeysView, ValuesView, ItemsView)
_METER: ContextVar[_Meter] = ContextVar("meter")


@contextmanager
def metered(characters: int, seconds: float) -> Iterator[None]:
    """Within it templates may be compiled and run; see :class:`_Meter` for what is counted."""
    token = _METER.set(_Meter(characters, seconds))
    try:
        yield
    finally:
        _METER.reset(token)


class _Namespace(Namespace):
    """A namespace without names that begin with an underscore, and whose own text does not contain its values."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"a namespace holds no {name!r}: names beginning with an underscore are not offered")
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<Namespace>"


class _Formatter(SandboxedFormatter):
    """``str.format`` within limits."""

    def format_field(self, value: Any, format_spec: str) -> str:
        _check_numbers(_NUMBERS.findall(format_spec))
        meter = _METER.get()
        meter.tick()
        meter.need(meter.size(value))
        text: str = super().format_field(value, format_spec)
        meter.spend(len(text))
        return text


def _check_numbers(numbers: Iterable[str | int]) -> None:
    for number in numbers:
        if len(str(number)) > len(str(MAX_NUMBER)) or abs(int(number)) > MAX_NUMBER:
            raise TemplateLimitError(f"the chat template gives a width or count of {number!s:.20}, above {MAX_NUMBER}")


def _percent_size(form: str, values: Any) -> int:
    """Bound of the size of ``form % values``."""
    conversions = _CONVERSION.findall(form)
    if any("*" in conversion for conversion in conversions):
        raise TemplateLimitError("the chat template takes a width from an argument ('*'), which is not offered")
    numbers = [number for conversion in conversions for number in _NUMBERS.findall(conversion.rpartition(")")[2])]
    _check_numbers(numbers)
    return len(form) + sum(map(int, numbers)) + len(conversions) * _METER.get().size(values)


def _replace_size(text: Any, old: Any, new: Any, *_: Any, **__: Any) -> int:
    text, old, new = str(text), str(old), str(new)
    return len(text) + (text.count(old) if old else len(text) + 1) * len(new)


def _indent_size(text: Any, width: Any = 4, *_: Any, **__: Any) -> int:
    text = str(text)
    return len(text) + (text.count("\n") + 1) * _width(width)


def _tabs_size(text: str, tabsize: int = 8) -> int:
    return len(text) + text.count("\t") * _width(tabsize)


def _split_size(text: str, separator: str | None = None, *_: Any, **__: Any) -> int:
    return _ITEM * sum(map(text.count, [separator] if separator else " \n\r\t"))


def _width(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    _check_numbers([value] if isinstance(value, int) else [])
    return int(value)


def _fill_size(value: Any, count: Any = 0, *_: Any, **__: Any) -> int:
    """Bound of what is filled up to ``count``: characters of a text, items of a row."""
    return _METER.get().size(value) + _ITEM * _width(count)


def _round_size(value: Any, precision: Any = 0, *_: Any, **__: Any) -> int:
    return _width(precision)


# By the name of a filter or of a method of texts: bound of the size of its result, from its arguments.
_GROWTH: dict[str, Callable[..., int]] = {
    "replace": _replace_size,
    "indent": _indent_size,
    "expandtabs": _tabs_size,
    "format": lambda form, *args, **kwargs: _percent_size(str(form), kwargs or args),
    "round": _round_size,
    "list": lambda value: _ITEM * len(value) if isinstance(value, str) else 0,
    "split": _split_size,
    "rsplit": _split_size,
    "splitlines": lambda text, *_: _ITEM * (text.count("\n") + text.count("\r")),
    "escape": lambda text: 6 * len(str(text)),
    "e": lambda text: 6 * len(str(text)),
    **dict.fromkeys(("center", "ljust", "rjust", "zfill", "batch", "slice"), _fill_size),
}


def _join_size(separator: str, parts: list[Any]) -> int:
    return sum(map(_METER.get().size, parts)) + len(separator) * len(parts)


def _within_limits(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The filter ``function``, which looks at the clock and at the size of its result before it runs."""
    context = 1 if hasattr(function, "jinja_pass_arg") else 0

    @wraps(function)
    def limited(*args: Any, **kwargs: Any) -> Any:
        meter = _METER.get()
        meter.tick()
        own = list(args[context:])
        if name == "join" and own:
            own[0] = list(own[0])
            separator = own[1] if len(own) > 1 else kwargs.get("d", "")
            meter.need(_join_size(str(separator), own[0]))
        elif name in _GROWTH:
            meter.need(_GROWTH[name](*own, **kwargs))
        result = function(*args[:context], *own, **kwargs)
        meter.size(result)
        return result

    return limited


def tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as transformers' templates write it: nothing is escaped for HTML, keys keep their order."""
    meter = _METER.get()
    _check_numbers([indent] if isinstance(indent, int) else [])
    meter.need(meter.size(value) // _ITEM * sum(map(len, separators or ())))
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    parts, size = [], 0
    for part in encoder.iterencode(value):
        size += len(part)
        meter.need(size)
        parts.append(part)
    return "".join(parts)


class _Watch(NodeTransformer):
    """Puts the meter into a template: into every loop and macro, around concatenations and literals."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        return self._ticking(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        return self._ticking(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:
        return self._ticking(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _call("joined", nodes.List(node.nodes))

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return _call("literal", node)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return _call("literal", node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return _call("literal", node) if node.ctx == "load" else node

    def _ticking(self, node: nodes.For | nodes.Macro | nodes.CallBlock) -> nodes.Node:
        """Each run of the body pays for the pieces it may write, which are kept until a macro or block ends."""
        outputs = sum(len(output.nodes) for output in node.find_all(nodes.Output))
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_call("turn", nodes.Const(outputs))))
        return node


def _call(name: str, argument: nodes.Expr) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(name), [argument], [], None, None)


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja as transformers sets it up for chat templates, within limits. Compile and run inside :func:`metered`."""

    intercepted_binops = frozenset({"+", "*", "**", "%", "//", "/", "-"})

    def __init__(self, **options: Any) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, **options)
        self.filters["tojson"] = tojson
        for name in _UNOFFERED:
            del self.filters[name]
        self.filters = {name: _within_limits(name, function) for name, function in self.filters.items()}
        del self.globals["lipsum"]
        self.globals["namespace"] = _Namespace

    def watched(self, source: str) -> Template:
        """Compile a template with the meter in it. Raises TemplateError, and RecursionError for deep nesting."""
        tree = _Watch().visit(self.parse(source))
        return self.from_string(tree.set_lineno(1).set_environment(self))

    def turn(self, outputs: int) -> None:
        """A loop or macro begins another turn, which writes up to so many pieces."""
        meter = _METER.get()
        meter.tick()
        meter.spend(_ITEM * outputs // 2)

    def literal(self, value: Any) -> Any:
        """A list, tuple or dictionary that the template has written."""
        return value

    def joined(self, parts: list[Any]) -> str:
        """The operator ``~``."""
        _METER.get().need(_join_size("", parts))
        return "".join(map(str, parts))

    def concat(self, parts: Iterable[str]) -> str:
        """What a macro or block has written, as one text."""
        listed = list(parts)
        _METER.get().need(sum(map(len, listed)))
        return "".join(listed)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        meter = _METER.get()
        meter.tick()
        text = getattr(__obj, "__self__", None)
        if isinstance(text, str):
            name = __obj.__name__
            if name == "join":
                args = (list(args[0]),) if args else args
                meter.need(_join_size(text, args[0] if args else []))
            elif name in _GROWTH and name != "format":
                meter.need(_GROWTH[name](text, *args, **kwargs))
        result = super().call(__context, __obj, *args, **kwargs)
        meter.size(result)
        return result

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        meter = _METER.get()
        meter.tick()
        if operator == "%" and isinstance(left, str):
            meter.need(_percent_size(left, right))
        elif operator == "+" and not isinstance(left, float):
            meter.need(meter.size(left) + meter.size(right))
        elif operator == "*":
            meter.need(_product_size(meter, left, right))
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            meter.need(_number_size(left.bit_length() * abs(right)))
        result = super().call_binop(context, operator, left, right)
        meter.size(result)
        return result

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return attr not in _UNSAFE_METHODS and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapper = super().wrap_str_format(value)
        if wrapper is None or value.__name__ != "format":
            return None
        return wraps(wrapper)(lambda *args, **kwargs: _Formatter(self).vformat(value.__self__, args, kwargs))


def _product_size(meter: _Meter, left: Any, right: Any) -> int:
    if isinstance(left, int) and isinstance(right, int):
        return _number_size(left.bit_length() + right.bit_length())
    count, value = (left, right) if isinstance(left, int) else (right, left)
    return meter.size(value) * max(0, count) if isinstance(count, int) else 0


def _number_size(bits: int) -> int:
    """What a whole number counts as: long ones take time rather than memory."""
    return 1000 * bits

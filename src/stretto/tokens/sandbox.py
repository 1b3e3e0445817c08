"""Where chat templates run: Jinja's sandbox, which keeps them from reaching Python, under the limits of ``meter``."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from typing import Any, cast

from jinja2 import Template, nodes
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter, SecurityError
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from stretto.tokens.meter import (
    GROWTH,
    ITEM,
    METER,
    NUMBERS,
    check_numbers,
    join_size,
    number_size,
    percent_size,
    product_size,
)

# Filters that multiply their input in ways of their own, which no template of a conversation has a use for.
_UNOFFERED = ("wordwrap", "urlize", "urlencode", "xmlattr", "pprint", "random", "forceescape")
_UNSAFE_METHODS = {"encode", "translate", "format_map", "to_bytes", "from_bytes"}


class _Namespace(Namespace):
    """A namespace without names that begin with an underscore, and whose own text does not contain its values."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        values = dict(*args[1:], **kwargs)
        Namespace.__init__(args[0])
        for name, value in values.items():
            args[0][name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if str(name).startswith("_"):
            raise SecurityError(f"a namespace holds no {name!r}: names beginning with an underscore are not offered")
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<Namespace>"


class _Formatter(SandboxedFormatter):
    """``str.format`` within limits."""

    def format_field(self, value: Any, format_spec: str) -> str:
        check_numbers(NUMBERS.findall(format_spec))
        meter = METER.get()
        meter.tick()
        meter.need(meter.size(value))
        text: str = super().format_field(value, format_spec)
        meter.spend(len(text))
        return text


def _within_limits(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The filter or test ``function``, looking at the clock and at the size of its result before it runs."""
    context = 1 if hasattr(function, "jinja_pass_arg") else 0

    @wraps(function)
    def limited(*args: Any, **kwargs: Any) -> Any:
        meter = METER.get()
        meter.tick()
        own = list(args[context:])
        if name == "join" and own:
            own[0] = list(own[0])
            separator = own[1] if len(own) > 1 else kwargs.get("d", "")
            meter.need(join_size(str(separator), own[0]))
        elif name in GROWTH:
            meter.need(GROWTH[name](*own, **kwargs))
        result = function(*args[:context], *own, **kwargs)
        meter.size(result)
        return _counted(result) if isinstance(result, Iterator) else result

    return limited


def _counted(values: Iterator[Any]) -> Iterator[Any]:
    """The same values, each of which is paid for: they may all come to stand in a list."""
    meter = METER.get()
    for value in values:
        meter.tick()
        meter.spend(2 * ITEM)
        yield value


def tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as transformers' templates write it: nothing is escaped for HTML, keys keep their order."""
    meter = METER.get()
    check_numbers([indent] if isinstance(indent, int) else [])
    meter.need(meter.size(value) // ITEM * sum(map(len, separators or ())))
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    parts, size = [], 0
    for part in encoder.iterencode(value):
        size += len(part)
        meter.need(size)
        parts.append(part)
    return "".join(parts)


class _Watch(NodeTransformer):
    """Puts the meter into a template: into every loop and macro, around concatenations, comparisons,
    slices and literals."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self._ticking(node)
        if isinstance(node.test, nodes.Expr):
            node.test = _call("watched", node.test)
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        return self._ticking(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:
        return self._ticking(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _call("joined", nodes.List(node.nodes))

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return _call("watched", node)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return _call("watched", node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return _call("watched", node) if node.ctx == "load" else node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        return _call("watched", node)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return _call("watched", node) if isinstance(node.arg, nodes.Slice) else node

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
        self.tests = {name: _within_limits(name, cast("Callable[..., Any]", test)) for name, test in self.tests.items()}
        del self.globals["lipsum"]
        self.globals["namespace"] = _Namespace

    def compiled(self, source: str) -> Template:
        """Compile a template with the meter in it. Raises TemplateError, and RecursionError for deep nesting."""
        tree = _Watch().visit(self.parse(source))
        return self.from_string(tree.set_lineno(1).set_environment(self))

    def turn(self, outputs: int) -> None:
        """A loop or macro begins another turn, which writes up to so many pieces."""
        meter = METER.get()
        meter.tick()
        meter.spend(ITEM * outputs // 2)

    def watched(self, value: Any) -> Any:
        """A value that the template has made by an operation; calling this is what counts it."""
        return value

    def joined(self, parts: list[Any]) -> str:
        """The operator ``~``."""
        METER.get().need(join_size("", parts))
        return "".join(map(str, parts))

    def concat(self, parts: Iterable[str]) -> str:
        """What a macro or block has written, as one text."""
        listed = list(parts)
        METER.get().need(sum(map(len, listed)))
        return "".join(listed)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        meter = METER.get()
        meter.tick()
        text = getattr(__obj, "__self__", None)
        if isinstance(text, str):
            name = __obj.__name__
            if name == "join":
                args = (list(args[0]),) if args else args
                meter.need(join_size(text, args[0] if args else []))
            elif name in GROWTH and name != "format":
                meter.need(GROWTH[name](text, *args, **kwargs))
        result = super().call(__context, __obj, *args, **kwargs)
        meter.size(result)
        return result

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        meter = METER.get()
        meter.tick()
        if operator == "%" and isinstance(left, str):
            meter.need(percent_size(left, right))
        elif operator == "+" and not isinstance(left, float):
            meter.need(meter.size(left) + meter.size(right))
        elif operator == "*":
            meter.need(product_size(meter, left, right))
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            meter.need(number_size(left.bit_length() * abs(right)))
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

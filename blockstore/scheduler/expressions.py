"""Evaluate the filter_function and goodness_function of a pool.

Used by DriverFilter and GoodnessWeigher. The text comes from a backend's configuration or report and is treated as
hostile. It is parsed by its own grammar, never by Python. All numbers are floats, so no power grows beyond memory.
Length and nesting are bounded. Every mistake is an ExpressionError that names the position.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from threading import Lock
from typing import TYPE_CHECKING, Any

from blockstore.errors import BlockstoreError
from blockstore.scheduler.pools import Pool, protocol_spellings

if TYPE_CHECKING:
    import pyparsing

    from blockstore.scheduler.choosing import PlacementRequest

MAX_LENGTH = 2000
MAX_DEPTH = 20

Value = float | str | bool | None
Scope = Mapping[str, Mapping[str, Any]]
Node = Callable[[Scope], Value]


class ExpressionError(BlockstoreError):
    """An expression that cannot be parsed, or has no value for this pool."""

    @classmethod
    def at(cls, position: int, problem: str) -> ExpressionError:
        """Return the error for a problem at this offset; the text counts from 1."""
        return cls(f"position {position + 1}: {problem}")


@dataclass(frozen=True, slots=True)
class Expression:
    """A parsed text that can be evaluated for many pools."""

    text: str
    names: tuple[str, ...]  # the variables in it, such as stats.free_capacity_gb
    node: Node

    def evaluate(self, scope: Scope) -> Value:
        """Return the value for these variables."""
        try:
            return self.node(scope)
        except RecursionError:
            raise ExpressionError("nested too deeply") from None


@dataclass(frozen=True, slots=True)
class Outcome:
    """The value of an expression for a pool, and its inputs."""

    value: Value
    inputs: str


def compile_expression(text: str) -> Expression:
    """Return the parsed text, or raise an ExpressionError that names the position of the mistake."""
    if not isinstance(text, str):
        raise ExpressionError(f"an expression is a text, not {type(text).__name__}")
    if len(text) > MAX_LENGTH:
        raise ExpressionError(f"longer than {MAX_LENGTH} characters")
    return _compile(text)


def evaluate(text: str, scope: Scope) -> Value:
    """Return the value of the text for these variables."""
    return compile_expression(text).evaluate(scope)


def evaluate_for_pool(text: str, request: PlacementRequest, pool: Pool) -> list[Outcome]:
    """Return the value for the pool; one for each spelling of its storage protocol if the expression uses that.

    A spelling without a value is left out if another spelling has one.
    """
    expression = compile_expression(text)
    outcomes: list[Outcome] = []
    problem: ExpressionError | None = None
    for scope in _scopes(expression, request, pool):
        try:
            value = expression.evaluate(scope)
        except ExpressionError as exc:
            problem = problem or exc
        else:
            outcomes.append(Outcome(value, _inputs(expression, scope)))
    if problem is not None and not outcomes:
        raise problem
    return outcomes


def is_true(value: Value) -> bool:
    """Return True if a value is true as a condition; the texts with which reports spell "no" are not."""
    if isinstance(value, str):
        return value.strip().lower() not in {"", "0", "f", "false", "off", "n", "no"}
    return bool(value)


# --- the variables -----------------------------------------------------------------------------------------


def _scopes(expression: Expression, request: PlacementRequest, pool: Pool) -> list[Scope]:
    reported = pool.capabilities
    stats: dict[str, Any] = {
        # compat: Cinder offers the first three to filters only.
        "host": pool.name,
        "cluster_name": None,
        "backend_id": pool.name,
        "total_capacity_gb": _on_the_wire(pool.total_gib),
        "free_capacity_gb": _on_the_wire(pool.free_gib),
        "allocated_capacity_gb": pool.allocated_gib,
        "reserved_percentage": pool.reserved_percentage,
        "updated": reported.get("timestamp"),
    }
    for name in ("volume_backend_name", "vendor_name", "driver_version", "storage_protocol", "QoS_support"):
        stats[name] = reported.get(name)
    # compat: qos.* names are accepted, but none has a value, because no volume is placed by its QoS specs.
    base = {"stats": stats, "capabilities": reported, "volume": request.volume, "extra": request.extra_specs, "qos": {}}
    if not {"stats.storage_protocol", "capabilities.storage_protocol"} & set(expression.names):
        return [base]
    return [
        {
            **base,
            "stats": {**stats, "storage_protocol": spelling},
            "capabilities": {**reported, "storage_protocol": spelling},
        }
        for spelling in protocol_spellings(reported.get("storage_protocol"))
    ]


def _on_the_wire(figure: float | None) -> float | str:
    if figure is None:
        return "unknown"
    return figure if math.isfinite(figure) else "infinite"


def _inputs(expression: Expression, scope: Scope) -> str:
    inputs = [f"{name} is {_shown(_look_up(name, scope))}" for name in expression.names]
    return ", ".join(inputs) or "it uses no variables"


def _look_up(name: str, scope: Scope) -> Any:
    space, _, key = name.partition(".")
    return scope.get(space, {}).get(key)


# --- values ------------------------------------------------------------------------------------------------

_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


def _number_or_none(value: Value) -> float | None:
    """Return a value as a number, or None. A text that looks like a number counts: the API has specs as texts."""
    if isinstance(value, str):
        return float(value) if _NUMBER.fullmatch(value.strip()) else None
    return None if value is None else float(value)


def _number(value: Value, position: int, needed_by: str) -> float:
    number = _number_or_none(value)
    if number is None:
        raise ExpressionError.at(position, f"{needed_by} needs numbers, not {_shown(value)}")
    return number


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _calculate(symbol: str, position: int, left: float, right: float) -> float:
    try:
        result = _ARITHMETIC[symbol](left, right)
    except ZeroDivisionError:
        raise ExpressionError.at(position, "division by zero") from None
    except (ValueError, OverflowError):
        result = math.nan
    if not math.isfinite(result):
        raise ExpressionError.at(position, f"{left:g} {symbol} {right:g} is not a finite number")
    return result


def _compare(symbol: str, position: int, left: Value, right: Value) -> bool:
    compare = _COMPARISONS[symbol]
    left_number, right_number = _number_or_none(left), _number_or_none(right)
    if left_number is not None and right_number is not None:
        return compare(left_number, right_number)
    if isinstance(left, str) and isinstance(right, str):
        return compare(left, right)
    if symbol in {"==", "!=", "<>"}:
        if {type(left), type(right)} == {bool, str}:  # people quote booleans: capabilities.multiattach == "True"
            equal = str(left).lower() == str(right).lower()
        else:
            equal = left is None and right is None
        return equal is (symbol == "==")
    raise ExpressionError.at(position, f"cannot tell whether {_shown(left)} {symbol} {_shown(right)}")


_ARITHMETIC: Mapping[str, Callable[[float, float], float]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "^": math.pow,
}
_COMPARISONS: Mapping[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
    "<>": operator.ne,
}
_FUNCTIONS: Mapping[str, Callable[[Sequence[float]], float]] = {
    "abs": lambda args: abs(args[0]),
    "max": max,
    "min": min,
}
_SPACES = ("stats", "capabilities", "volume", "extra", "qos")


# --- parse actions of the grammar --------------------------------------------------------------------------
# Each takes the arguments of pyparsing (text, offset, tokens) and returns a node. Chains are kept flat and walked in a
# loop, so only brackets and the middle of a ternary nest. A chain of one element is that element.

_Op = tuple[int, str]


def _operator(_text: str, position: int, tokens: pyparsing.ParseResults) -> _Op:
    return position, str(tokens[0])


def _literal_number(_text: str, position: int, tokens: pyparsing.ParseResults) -> Node:
    value = float(tokens[0])
    if not math.isfinite(value):
        raise ExpressionError.at(position, "the number is too large")
    return lambda _scope: value


def _literal_text(_text: str, _position: int, tokens: pyparsing.ParseResults) -> Node:
    value = str(tokens[0])[1:-1]
    return lambda _scope: value


def _variable(_text: str, position: int, tokens: pyparsing.ParseResults) -> Node:
    space, _, key = str(tokens[0]).partition(".")
    if space not in _SPACES or not key:
        raise ExpressionError.at(
            position,
            f"unknown name {_shown(tokens[0])}; variables are {', '.join(f'{known}.NAME' for known in _SPACES)}"
            f" and functions {', '.join(f'{known}()' for known in _FUNCTIONS)}",
        )

    def node(scope: Scope) -> Value:
        known = scope.get(space, {})
        if key not in known:
            raise ExpressionError.at(position, f"there is no {space}.{key}")
        value = known[key]
        if value is not None and not isinstance(value, bool | int | float | str):
            raise ExpressionError.at(position, f"{space}.{key} is neither a number nor a text but {_shown(value)}")
        if isinstance(value, int) and value.bit_length() > 1000:
            raise ExpressionError.at(position, f"{space}.{key} is too large")
        return value

    return node


def _function(_text: str, position: int, tokens: pyparsing.ParseResults) -> Node:
    name, *arguments = tokens
    function = _FUNCTIONS[name]
    if name == "abs" and len(arguments) != 1:
        raise ExpressionError.at(position, f"abs() takes one value, not {len(arguments)}")

    def node(scope: Scope) -> Value:
        return function([_number(argument(scope), position, f"{name}()") for argument in arguments])

    return node


def _power_chain(_text: str, _position: int, tokens: pyparsing.ParseResults) -> Node:
    """Fold from the right, as in Python: -2 ^ -3 ^ 2 is -(2 ^ (-(3 ^ 2)))."""
    items = list(tokens)
    if len(items) == 1:
        return items[0]  # type: ignore[no-any-return]

    def node(scope: Scope) -> Value:
        value: Value = None
        raised = False  # whether value is the exponent of the next operand
        power_at = 0
        for item in reversed(items):
            if not isinstance(item, tuple):
                base = item(scope)
                if raised:
                    exponent = _number(value, power_at, "^")
                    value = _calculate("^", power_at, _number(base, power_at, "^"), exponent)
                else:
                    value = base
            elif item[1] == "^":
                power_at, raised = item[0], True
            else:
                number = _number(value, item[0], "the sign")
                value = -number if item[1] == "-" else number
        return value

    return node


def _arithmetic_chain(_text: str, _position: int, tokens: pyparsing.ParseResults) -> Node:
    first, *rest = tokens
    pairs: list[tuple[_Op, Node]] = list(zip(rest[::2], rest[1::2], strict=True))
    if not pairs:
        return first  # type: ignore[no-any-return]

    def node(scope: Scope) -> Value:
        value: Value = first(scope)
        for (position, symbol), operand in pairs:
            left = _number(value, position, symbol)
            value = _calculate(symbol, position, left, _number(operand(scope), position, symbol))
        return value

    return node


def _comparison_chain(_text: str, _position: int, tokens: pyparsing.ParseResults) -> Node:
    """Require each neighbouring pair to hold, as in Python: 1 < x <= 5."""
    first, *rest = tokens
    pairs: list[tuple[_Op, Node]] = list(zip(rest[::2], rest[1::2], strict=True))
    if not pairs:
        return first  # type: ignore[no-any-return]

    def node(scope: Scope) -> Value:
        left = first(scope)
        for (position, symbol), operand in pairs:
            right = operand(scope)
            if not _compare(symbol, position, left, right):
                return False
            left = right
        return True

    return node


def _negation(_text: str, _position: int, tokens: pyparsing.ParseResults) -> Node:
    *signs, inner = tokens
    if not signs:
        return inner  # type: ignore[no-any-return]
    odd = len(signs) % 2 == 1
    return lambda scope: is_true(inner(scope)) is not odd


def _all_of(_text: str, _position: int, tokens: pyparsing.ParseResults) -> Node:
    nodes: list[Node] = list(tokens)
    return nodes[0] if len(nodes) == 1 else lambda scope: all(is_true(node(scope)) for node in nodes)


def _any_of(_text: str, _position: int, tokens: pyparsing.ParseResults) -> Node:
    nodes: list[Node] = list(tokens)
    return nodes[0] if len(nodes) == 1 else lambda scope: any(is_true(node(scope)) for node in nodes)


def _ternary_chain(_text: str, _position: int, tokens: pyparsing.ParseResults) -> Node:
    """Take the value after the first condition that holds: a ? b : c ? d : e."""
    *pairs, otherwise = tokens
    if not pairs:
        return otherwise  # type: ignore[no-any-return]

    def node(scope: Scope) -> Value:
        for condition, value in zip(pairs[::2], pairs[1::2], strict=True):
            if is_true(condition(scope)):
                return value(scope)  # type: ignore[no-any-return]
        return otherwise(scope)  # type: ignore[no-any-return]

    return node


# --- the grammar -------------------------------------------------------------------------------------------

_compiling = Lock()  # pyparsing changes its elements on first use, which two threads must not do at once


@cache
def _grammar() -> pyparsing.ParserElement:
    """Build the grammar, loosest binding last.

    One token decides every alternative and nothing is read twice, so parsing time is proportional to the text. (With
    infix_notation it doubles with each bracket unless results are cached for the whole process.)
    """
    import pyparsing as pp  # here, because start-up should not pay for it

    def one_of(pattern: str) -> pp.ParserElement:
        return pp.Regex(pattern).add_parse_action(_operator)

    expression = pp.Forward()
    opened, closed = pp.Suppress("("), pp.Suppress(")")
    value = pp.MatchFirst(
        [
            pp.Regex(r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?").add_parse_action(_literal_number),
            pp.Regex(r"\"[^\"]*\"|'[^']*'").add_parse_action(_literal_text),
            (
                pp.Regex(rf"(?:{'|'.join(_FUNCTIONS)})(?=\s*\()")
                + opened
                - expression
                + pp.ZeroOrMore(pp.Suppress(",") - expression)
                + closed
            ).add_parse_action(_function),
            pp.Regex(r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)?").add_parse_action(_variable),
            opened - expression + closed,
        ]
    ).set_name("a value")
    signed = pp.ZeroOrMore(one_of(r"[+-]")) + value
    power = (signed + pp.ZeroOrMore(one_of(r"\^") - signed)).add_parse_action(_power_chain)
    product = (power + pp.ZeroOrMore(one_of(r"[*/]") - power)).add_parse_action(_arithmetic_chain)
    total = (product + pp.ZeroOrMore(one_of(r"[+-]") - product)).add_parse_action(_arithmetic_chain)
    comparison = (total + pp.ZeroOrMore(one_of(r"<=|>=|==|!=|<>|<|>") - total)).add_parse_action(_comparison_chain)
    negation = (pp.ZeroOrMore(one_of(r"!(?!=)|not\b")) + comparison).add_parse_action(_negation)
    conjunction = (negation + pp.ZeroOrMore(pp.Suppress(pp.Regex(r"&&|and\b")) - negation)).add_parse_action(_all_of)
    disjunction = (conjunction + pp.ZeroOrMore(pp.Suppress(pp.Regex(r"\|\||or\b")) - conjunction)).add_parse_action(
        _any_of
    )
    branches = pp.ZeroOrMore(pp.Suppress("?") - expression + pp.Suppress(":") + disjunction)
    expression <<= (disjunction + branches).add_parse_action(_ternary_chain)
    return (expression + pp.StringEnd().set_name("an operator or the end")).parse_with_tabs()


@lru_cache(maxsize=256)
def _compile(text: str) -> Expression:
    import pyparsing as pp

    without_texts = re.sub(r"\"[^\"]*\"|'[^']*'", lambda quoted: " " * len(quoted[0]), text)
    _check_depth(without_texts)
    try:
        with _compiling:
            (node,) = _grammar().parse_string(text)
    except pp.ParseBaseException as exc:
        wanted = exc.msg.removeprefix("Expected ")
        rest = _shown(text[exc.loc : exc.loc + 20]) if text[exc.loc :].strip() else "the end"
        raise ExpressionError.at(exc.loc, f"{wanted} expected, not {rest}") from None
    except RecursionError:
        raise ExpressionError("nested too deeply") from None
    names = re.findall(rf"\b(?:{'|'.join(_SPACES)})\.[A-Za-z_][A-Za-z0-9_]*", without_texts)
    return Expression(text, tuple(dict.fromkeys(names)), node)


def _check_depth(text: str) -> None:
    depth = 0
    for position, character in enumerate(text):
        depth += (character in "(?") - (character in "):")
        if depth > MAX_DEPTH:
            raise ExpressionError.at(position, f"nested more than {MAX_DEPTH} deep")

"""The language of filter_function and goodness_function."""

from __future__ import annotations

import contextlib
import inspect
import math
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockstore.scheduler import expressions
from blockstore.scheduler.expressions import ExpressionError, compile_expression, evaluate, evaluate_for_pool, is_true

quick = settings(deadline=None, derandomize="CI" in os.environ, database=None, max_examples=200)

SCOPE = {
    "stats": {"free_capacity_gb": 40, "total_capacity_gb": "infinite", "vendor_name": "Acme", "cluster_name": None},
    "capabilities": {"multiattach": True, "tiers": ["gold"], "huge": 10**400, "nan": math.nan, "v2_size": 3},
    "volume": {"size": 12, "name": "data"},
    "extra": {"iops": "100", "tier": "gold"},
    "qos": {"limit": "1e2"},
}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        # arithmetic
        ("1 + 2 * 3", 7),
        ("(1 + 2) * 3", 9),
        ("10 - 4 - 3", 3),
        ("16 / 4 / 2", 2),
        ("7 / 2", 3.5),
        ("2 ^ 3 ^ 2", 512),
        ("-2 ^ 2", -4),
        ("2 ^ -1", 0.5),
        ("-2 ^ -3 ^ 2 * 1024", -2),
        ("+-+-3", 3),
        ("1 - -1", 2),
        (".5 + 1. + 1e1", 11.5),
        ("abs(-3) + max(1, volume.size, 3) + min(4, 2)", 17),
        ("max (1)", 1),
        # comparison
        ("1 < 2", True),
        ("2 <= 2", True),
        ("1 > 2", False),
        ("2 >= 3", False),
        ("1 == 1.0", True),
        ("1 != 1", False),
        ("1 <> 2", True),
        ("1 < 2 < 3", True),
        ("1 < 3 < 2", False),
        ("'abc' < 'abd'", True),
        ("'a' == \"a\"", True),
        ("'a' == 'A'", False),
        ("'a' == 1", False),
        ("'a' != 1", True),
        # logic
        ("1 < 2 and 2 < 3", True),
        ("1 < 2 && 2 < 1", False),
        ("1 > 2 or 2 < 3", True),
        ("1 > 2 || 2 > 3", False),
        ("not 1 > 2", True),
        ("!(1 > 2)", True),
        ("!1 == 2", True),
        ("not not 1", True),
        ("! ! not 1", False),
        ("1 or 1 and 0", True),
        ("1 or 1 / 0", True),
        ("0 and 1 / 0", False),
        # ternary
        ("1 ? 2 : 3", 2),
        ("0 ? 2 : 3", 3),
        ("0 ? 1 : 0 ? 2 : 3", 3),
        ("1 ? 0 ? 1 : 2 : 3", 2),
        ("volume.size < 10 ? 100 : 1 / 1", 1),
        ("1 ? 5 : 1 / 0", 5),
        ("(volume.size > 10 ? 1 : 2) + 1", 2),
        # variables
        ("stats.free_capacity_gb - volume.size", 28),
        ("stats.vendor_name == 'Acme'", True),
        ("stats.cluster_name == stats.cluster_name", True),
        ("stats.cluster_name == 0", False),
        ("stats.cluster_name != 'x'", True),
        ("capabilities.v2_size", 3),
        ("capabilities.multiattach", True),
        ("capabilities.multiattach == 'True'", True),
        ("capabilities.multiattach == 'no'", False),
        ("capabilities.multiattach == 1", True),
        ("capabilities.multiattach == stats.cluster_name", False),
        ("extra.iops >= 50", True),
        ("extra.iops == qos.limit", True),
        ("extra.iops * 2", 200),
        ("extra.tier == 'gold'", True),
        ("'stats.none'", "stats.none"),
        ("'((((((((((((((((((((((((((' == 'x'", False),
        ("\t1\n+\r\n2 ", 3),
    ],
)
def test_value(text, value):
    assert evaluate(text, SCOPE) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "position 1: a value expected, not the end"),
        ("1 +", "position 4: a value expected, not the end"),
        ("1 2", "position 3: an operator or the end expected, not '2'"),
        ("\t1 2", "position 4: an operator or the end expected, not '2'"),
        ("(1", "position 3: ')' expected, not the end"),
        ("1)", "position 2: an operator or the end expected, not ')'"),
        ("1 ? 2", "position 6: ':' expected, not the end"),
        ("'abc", 'position 1: a value expected, not "\'abc"'),
        ("1 and or 2", "position 7: unknown name 'or'"),
        ("__import__('os')", "position 1: unknown name '__import__'; variables are stats.NAME, "),
        ("os.system", "position 1: unknown name 'os.system'"),
        ("volume", "position 1: unknown name 'volume'"),
        ("volume.__class__.__name__", "position 17: an operator or the end expected, not '.__name__'"),
        ("max", "position 1: unknown name 'max'"),
        ("max()", "position 5: a value expected, not ')'"),
        ("1 + abs(1, 2)", "position 5: abs() takes one value, not 2"),
        ("9" * 400, "position 1: the number is too large"),
        ("1 / 0", "position 3: division by zero"),
        ("0 ^ -1", "position 3: 0 ^ -1 is not a finite number"),
        ("(0 - 8) ^ 0.5", "position 9: -8 ^ 0.5 is not a finite number"),
        ("9 ^ 9 ^ 9 ^ 9", "position 7: 9 ^ 3.8742e+08 is not a finite number"),
        ("1e308 * 10", "position 7: 1e+308 * 10 is not a finite number"),
        ("1 + 'x'", "position 3: + needs numbers, not 'x'"),
        ("-'x'", "position 1: the sign needs numbers, not 'x'"),
        ("2 ^ 'x'", "position 3: ^ needs numbers, not 'x'"),
        ("max(1, 'x')", "position 1: max() needs numbers, not 'x'"),
        ("1 + stats.cluster_name", "position 3: + needs numbers, not None"),
        ("stats.total_capacity_gb > 1", "position 25: cannot tell whether 'infinite' > 1.0"),
        ("1 + volume.colour", "position 5: there is no volume.colour"),
        ("capabilities.tiers", "position 1: capabilities.tiers is neither a number nor a text but ['gold']"),
        ("capabilities.huge", "position 1: capabilities.huge is too large"),
        ("capabilities.nan + 1", "position 18: nan + 1 is not a finite number"),
        ("1" + " " * 2000, "longer than 2000 characters"),
        ("(" * 21 + "1" + ")" * 21, "position 21: nested more than 20 deep"),
        ("1 ? " * 21 + "1" + " : 1" * 21, "position 83: nested more than 20 deep"),
    ],
)
def test_error_names_the_position(text, message):
    with pytest.raises(ExpressionError) as caught:
        evaluate(text, SCOPE)
    assert caught.value.message.startswith(message)


@pytest.mark.parametrize("text", [None, 5, ["1"], {}])
def test_what_is_not_a_text_is_refused(text):
    with pytest.raises(ExpressionError, match="an expression is a text, not"):
        compile_expression(text)


def test_names_are_the_variables_in_order_and_once():
    text = "volume.size + stats.x * volume.size + max(qos.y) > 1 and 'extra.z' == ''"
    assert compile_expression(text).names == ("volume.size", "stats.x", "qos.y")


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1.0, True), (0.0, False), (None, False), ("", False), ("False", False), ("no", False), ("0", False), ("a", True)],
)
def test_is_true(value, expected):
    assert is_true(value) is expected


def test_a_protocol_is_tried_under_every_spelling(make_pool, make_placement_request):
    pool = make_pool(capabilities={"storage_protocol": "FC"})
    outcomes = evaluate_for_pool("stats.storage_protocol", make_placement_request(), pool)
    assert [outcome.value for outcome in outcomes] == ["FC", "fibre_channel", "fc"]
    assert len(evaluate_for_pool("'stats.storage_protocol'", make_placement_request(), pool)) == 1


def test_stats_follow_the_pool_not_the_wire(make_pool, make_placement_request):
    pool = make_pool(free_gib=None, allocated_gib=4.0, capabilities={"free_capacity_gb": 99})
    text = "stats.free_capacity_gb == 'unknown' and stats.allocated_capacity_gb == 4 and stats.backend_id == stats.host"
    assert evaluate_for_pool(text, make_placement_request(), pool)[0].value is True


# --- bounds ------------------------------------------------------------------------------------------------


@pytest.mark.timed
@pytest.mark.parametrize(
    "text",
    [
        "(" * 20 + "1" + ")" * 20,
        "max(" * 20 + "1" + ")" * 20,
        "!(" * 20 + "1" + ")" * 20,
        "(" * 1999,
        "+".join(["1"] * 1000),
        "^".join(["1"] * 1000),
        "-" * 1999 + "1",
        "!" * 1999 + "1",
        "0?1:" * 499 + "7",
        "9^" * 999 + "9",
        "9*" * 999 + "9",
        "1<2and " * 285 + "1",
        "max(" + "1," * 990 + "1)",
        ":" * 20 + "(" * 500,
        "'" * 2000,
    ],
)
def test_the_worst_of_texts_take_little_time(text):
    compile_expression("1")  # building the grammar is paid once
    started = time.thread_time()  # whatever else this process does
    with contextlib.suppress(ExpressionError):
        evaluate(text, SCOPE)
    assert time.thread_time() - started < 1


def test_a_deep_stack_is_our_error_too():
    def below(frames):
        return below(frames - 1) if frames else evaluate("(" * 20 + "2" + ")" * 20, SCOPE)

    expressions._compile.cache_clear()
    room = sys.getrecursionlimit() - len(inspect.stack())
    for spare in (60, 120, 200, 300):
        with pytest.raises(ExpressionError, match="nested too deeply"):
            below(room - spare)
    assert evaluate("(" * 20 + "2" + ")" * 20, SCOPE) == 2


def test_threads_may_compile_at_once():
    expressions._compile.cache_clear()
    expressions._grammar.cache_clear()
    with ThreadPoolExecutor(8) as threads:
        values = list(threads.map(lambda n: evaluate(f"({n} + 1) * 2 - {n}", SCOPE), range(100)))
    assert values == [n + 2 for n in range(100)]


def test_pyparsing_is_imported_only_when_an_expression_is_compiled():
    code = (
        "import sys, blockstore.scheduler.expressions as e; assert 'pyparsing' not in sys.modules; "
        "e.evaluate('1', {}); assert 'pyparsing' in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)


# --- properties --------------------------------------------------------------------------------------------

PIECES = """
    1 2.5 .5 1e3 'a' "b" stats.free_capacity_gb volume.size extra.iops capabilities.tiers qos.none ( ) + - * / ^
    < <= > >= == != <> and or not && || ! ? : , abs( min( max( abs x x.y ' " # & | = é \x00
"""
pieces = st.sampled_from(PIECES.split())
texts = st.text(max_size=60) | st.lists(pieces, max_size=25).map(" ".join) | st.lists(pieces, max_size=25).map("".join)


@settings(quick, max_examples=500)
@given(texts)
def test_no_text_raises_anything_but_its_own_error(text):
    with contextlib.suppress(ExpressionError):
        assert isinstance(evaluate(text, SCOPE), bool | float | int | str | None)


numbers = st.integers(0, 99).map(str) | st.floats(0, 99).map(lambda x: f"{x:.2f}")


def _grow(inner):
    return st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*", "/"]), inner).map(" ".join),
        inner.map(lambda e: f"({e})"),
        inner.map(lambda e: f"-{e}"),
        st.tuples(inner, st.sampled_from("23")).map(lambda t: f"({t[0]}) ^ {t[1]}"),
        st.tuples(inner, inner).map(lambda t: f"max({t[0]}, {t[1]})"),
        inner.map(lambda e: f"abs({e})"),
    )


arithmetic = st.recursive(numbers, _grow, max_leaves=8)


def _in_python(text):
    """Evaluate our own random text by Python, with floats throughout."""
    floats = re.sub(r"[0-9.]+", lambda number: number[0] if "." in number[0] else f"{number[0]}.0", text)
    return eval(floats.replace("^", "**"), {"abs": abs, "max": max})


@settings(quick, max_examples=300)
@given(arithmetic)
def test_arithmetic_is_pythons(text):
    try:
        expected = _in_python(text)
    except (ZeroDivisionError, OverflowError):
        expected = math.nan
    if math.isfinite(expected):
        assert evaluate(text, {}) == pytest.approx(expected, rel=1e-9)
    else:
        with pytest.raises(ExpressionError):
            evaluate(text, {})


@quick
@given(st.lists(st.tuples(arithmetic, st.sampled_from(["<", "<=", ">", ">="])), min_size=1, max_size=3), arithmetic)
def test_comparison_and_logic_are_pythons(pairs, last):
    chain = " ".join(f"{left} {symbol}" for left, symbol in pairs) + f" {last}"
    text = f"not {chain} or {last} > 5 and {chain}"
    try:
        value = evaluate(text, {})
    except ExpressionError:
        return
    assert value == bool(_in_python(text))

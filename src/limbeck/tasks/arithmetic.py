"""A calculator for expressions that a model wrote: numbers, operators and four functions, and nothing else.

The length of an expression and the size of every intermediate value are bounded, so that no expression takes long.
"""

from __future__ import annotations

import ast
import math
import operator
import warnings
from collections.abc import Callable
from typing import Any

_LONGEST = 1000
# Limits of an exact result; a power that would be longer is refused before it is computed.
_DIGITS = 1000
_BITS = int(_DIGITS * math.log2(10))
_BINARY: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_UNARY: dict[type, Callable[[Any], Any]] = {ast.USub: operator.neg, ast.UAdd: operator.pos}
_FUNCTIONS: dict[str, Callable[..., Any]] = {"min": min, "max": max, "abs": abs, "round": round}


class Mistake(ValueError):
    """An expression that cannot be evaluated; the message tells its author why."""


def calculate(expression: str) -> str:
    """The value of an expression as text, as Python prints it; a float that is a whole number has no ``.0``.

    Raises:
        Mistake: the text is not an expression of numbers, ``+ - * / // % **``, parentheses, ``min``, ``max``, ``abs``
            and ``round``, or it has no value, or a value is too large.
    """
    if len(expression) > _LONGEST:
        raise Mistake(f"the expression is longer than {_LONGEST} characters")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python warns about literals such as 1if; the model gets a message instead
            tree = ast.parse(expression.strip(), mode="eval")
        value = _value(tree.body)
    except (SyntaxError, MemoryError, RecursionError):
        raise Mistake("this is not an expression") from None
    except ZeroDivisionError:
        raise Mistake("division by zero") from None
    except OverflowError:
        raise Mistake("the value is too large") from None
    except (TypeError, ValueError) as error:
        raise error if isinstance(error, Mistake) else Mistake("a function was called in a wrong way") from None
    if isinstance(value, float) and not math.isfinite(value):
        raise Mistake("the value is too large")
    return str(int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value)


def _value(node: ast.expr) -> int | float:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return _bounded(number)
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
            return _bounded(_UNARY[type(op)](_value(operand)))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            a, b = _value(left), _value(right)
            if isinstance(op, ast.Pow):
                _refuse_long_power(a, b)
            return _bounded(_BINARY[type(op)](a, b))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS:
            given = [_value(arg) for arg in args]
            if name == "round" and len(given) == 2 and abs(given[1]) > _DIGITS:
                raise Mistake(f"round takes at most {_DIGITS} digits")
            return _bounded(_FUNCTIONS[name](*given))
    raise Mistake(f"{ast.unparse(node)[:40]!r} is not allowed; use numbers, + - * / // % **, min, max, abs and round")


def _refuse_long_power(base: int | float, exponent: int | float) -> None:
    # |base| is at least 2 ** (bits - 1), so a power that is refused here is too large; any other is computed quickly.
    if isinstance(base, int) and isinstance(exponent, int) and (base.bit_length() - 1) * abs(exponent) > _BITS:
        raise Mistake("the value is too large")


def _bounded(value: Any) -> int | float:
    if isinstance(value, complex):
        raise Mistake("the value is not a real number")
    if isinstance(value, int) and value.bit_length() > _BITS:
        raise Mistake("the value is too large")
    number: int | float = value
    return number

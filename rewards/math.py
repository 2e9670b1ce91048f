"""Mathematical equality of final answers, by math-verify.

What reaches an evaluator: math-verify parses LaTeX with an ANTLR grammar (latex2sympy2_extended)
and builds sympy objects from the tree. sympy's string parser, which calls `eval`, is reached only
through `sympy.Number(token)`, where the grammar has already fixed the token to be a number. Its
other route, `ExprExtractionConfig`, gives arithmetic in plain text to `sympy.parse_expr`; that
route is left out here, so an answer has to stand in \\boxed{} or in math delimiters.

What bounds the work: math-verify's timeouts need signals, which fail outside the main thread, so
they are off. Instead only one short answer is read, of harmless commands and little nesting (the
parser backtracks), and expressions that would be large when evaluated ("9^{9^9}") are not compared.
"""

import math
import re

import sympy
from latex2sympy2_extended.math_normalization import extract_boxed_content
from math_verify import LatexExtractionConfig, parse, verify
from sympy.core.function import AppliedUndef
from sympy.functions.elementary.hyperbolic import HyperbolicFunction
from sympy.functions.elementary.trigonometric import (
    InverseTrigonometricFunction,
    TrigonometricFunction,
)
from sympy.logic.boolalg import BooleanFunction

from rewards import text

MAX_ANSWER = 300  # characters of the final answer
MAX_NESTING = 8  # brackets within brackets, about 0.4 s of parsing
MAX_BARS = 12  # "|", which opens and closes alike
MAX_BITS = 20_000  # of an exactly evaluated number
MAX_SYMBOLIC_BITS = 200  # the same with symbols, which bounds the degree of polynomials
MAX_TERMS = 500  # of an expanded product

_CONFIG = [LatexExtractionConfig(boxed_match_priority=0)]

# \( \), \[ \], $ $ or $$ $$; the groups hold the inside.
_MATH = re.compile(r"\$\$?([^$]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)

_COMMAND = re.compile(r"\\([A-Za-z]+)")

# Commands that math-verify only reads. Those that it works out while parsing (\det, \sum, \lim,
# \int, \gcd, \Gamma, \operatorname, ...) are left out.
_COMMANDS = """
frac dfrac tfrac cfrac sqrt cdot times div pm mp pi infty left right big Big bigg Bigg
text textbf textit textrm mathrm mathbf mathbb mathcal mathit mbox boxed fbox displaystyle
quad qquad ldots cdots dots le leq ge geq ne neq lt gt leqslant geqslant in cup cap setminus
emptyset varnothing circ degree prime mid vert lvert rvert lbrace rbrace approx sim equiv
begin end sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln exp binom dbinom
tbinom overline bar vec hat alpha beta delta epsilon varepsilon zeta eta theta iota kappa
lambda mu nu xi rho sigma tau phi varphi chi psi omega Delta Theta Lambda Sigma Phi Psi Omega
"""

_TRANSPARENT = (
    sympy.Add, sympy.Mul, sympy.MatMul, sympy.MatAdd, sympy.Abs, sympy.log,
    sympy.UnevaluatedExpr, sympy.Tuple, sympy.Set, sympy.core.relational.Relational,
    BooleanFunction, TrigonometricFunction, InverseTrigonometricFunction, AppliedUndef,
)  # fmt: skip


def equal(prompts, completions, completion_ids, *, answer, max_chars: int = 2000, **columns):
    """Return 1.0 where the response's final answer equals the gold `answer`, else 0.0.

    The final answer is the last \\boxed{} within the last `max_chars` characters, or without one
    the last formula in math delimiters ($ $, \\( \\), \\[ \\]). A response without either is wrong,
    and so is one whose answer is longer than `MAX_ANSWER` characters, nests deeper than
    `MAX_NESTING`, uses commands that are not plain notation (an unevaluated sum or integral, say)
    or would be too large when evaluated. A gold answer may also be bare LaTeX ("\\frac{1}{2}") or
    a bare number. None where the gold answer itself cannot be read within these limits.

    "Equal" is math-verify's `verify`: 1/2, 0.5 and \\frac{2}{4} are equal, 1/3 and 0.333333 too.
    """
    if max_chars < 1:
        raise ValueError(f"max_chars must be at least 1, not {max_chars}")
    pairs = zip(completions, answer, strict=True)
    return [_equal(text(completion)[-max_chars:], str(gold)) for completion, gold in pairs]


def _equal(response: str, gold: str) -> float | None:
    expected = _parse(_final(gold) or gold)
    if not expected:
        return None
    final = _final(response)
    found = _parse(final) if final else []
    return float(bool(found) and verify(expected, found, timeout_seconds=None))


def _final(response: str) -> str | None:
    """Return the LaTeX of the final answer; None if the response has neither box nor formula."""
    if "\\boxed" in response or "\\fbox" in response:
        return extract_boxed_content(response, "last")
    formulas = ["".join(groups) for groups in _MATH.findall(response)]
    return formulas[-1] if formulas else None


def _parse(latex: str) -> list:
    """Return math-verify's reading of one answer as a list; empty if it has none or exceeds limits.

    The list holds at most one sympy object.
    """
    latex = latex.replace("\\$", "").replace("$", "").strip()
    if not _readable(latex):
        return []
    expressions = parse(
        f"\\boxed{{{latex}}}",
        _CONFIG,
        fallback_mode="no_fallback",
        extraction_mode="first_match",
        parsing_timeout=None,
    )
    return [e for e in expressions if _comparable(e)]


def _comparable(expression) -> bool:
    """True if simplifying `expression` is cheap: no large number, degree or product."""
    limit = MAX_SYMBOLIC_BITS if expression.free_symbols else MAX_BITS
    return _bits(expression) <= limit and _terms(expression) <= MAX_TERMS


def _readable(latex: str) -> bool:
    """True if parsing `latex` is cheap: short, flat, and of commands that are only read."""
    return (
        0 < len(latex) <= MAX_ANSWER
        and _nesting(latex) <= MAX_NESTING
        and latex.count("|") <= MAX_BARS
        and set(_COMMANDS.split()).issuperset(_COMMAND.findall(latex))
        # "f|_{x=9}" is worked out while parsing.
        and not ("|" in latex and "_" in latex)
        # So is the power of ten in "1E999999999".
        and not re.search(r"[0-9.]\s*[eE]\s*[-+]?\s*[0-9]{3}", latex)
    )


def _nesting(latex: str) -> int:
    """Depth of brackets of any kind, unclosed ones included."""
    depth = deepest = 0
    for character in latex:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    return deepest


def _bits(expression) -> float:
    """Bound the size in bits of the exact numbers that evaluating `expression` would make.

    A symbol counts as one bit. Infinite for kinds of expressions that are not compared here.
    """
    if isinstance(expression, sympy.MatrixBase):
        return sum(map(_bits, expression.flat()))
    if isinstance(expression, sympy.Rational):
        return math.log2(max(abs(expression.p), expression.q))
    if isinstance(expression, sympy.Float):
        # By sympy: a float of Python would be 0 or infinite for some.
        return abs(float(sympy.log(abs(expression), 2))) if expression else 0.0
    parts = [_bits(part) for part in expression.args]
    total = sum(parts)
    if not parts:
        return 1.0
    if isinstance(expression, sympy.Pow):
        base, exponent = parts
        return base * _power_of_two(exponent)
    if isinstance(expression, (sympy.exp, HyperbolicFunction)):
        return 2 * _power_of_two(total)
    if isinstance(expression, (sympy.factorial, sympy.binomial)):
        return _power_of_two(total) * (total + 1)
    if isinstance(expression, _TRANSPARENT):
        return total + math.log2(len(parts))
    return math.inf


def _power_of_two(bits: float) -> float:
    return 2**bits if bits <= math.log2(MAX_BITS) else math.inf


def _terms(expression) -> int:
    """Bound the number of terms of `expression` (of few `_bits`) when it is multiplied out."""
    if isinstance(expression, sympy.MatrixBase):
        return sum(map(_terms, expression.flat()))
    parts = [_terms(part) for part in expression.args]
    if isinstance(expression, sympy.Mul):
        return math.prod(parts)
    if isinstance(expression, sympy.Pow):
        power = int(_power_of_two(_bits(expression.exp)))
        return math.comb(power + parts[0] - 1, power)
    return max(1, sum(parts))

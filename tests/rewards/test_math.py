import re
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sympy.parsing import sympy_parser

from rewards import math


def equal(response, gold, **keys):
    (value,) = math.equal([None], [response], [[]], answer=[gold], truncated=[False], **keys)
    return value


@pytest.mark.parametrize(
    ("response", "gold"),
    [
        (r"\boxed{42}", "42"),
        ("so $x=42$.", "42"),
        (r"\(42\)", "$42$"),
        (r"\[ 42 \]", r"\boxed{42}"),
        ("$$42$$", "42"),
        (r"\boxed{1,000}", "1000"),
        (r"\boxed{\frac12}", "0.5"),
        (r"\boxed{0.333333}", "1/3"),
        (r"\boxed{2\sqrt{3}}", r"\sqrt{12}"),
        (r"\boxed{(x+1)^2}", "x^2+2x+1"),
        (r"\boxed{\{1,2\}}", r"\{2,1\}"),
        (r"\boxed{(-\infty,3)\cup(5,\infty)}", r"(-\infty,3)\cup(5,\infty)"),
        (r"\boxed{\text{Monday}}", r"\text{Monday}"),
        (r"\boxed{\begin{pmatrix}1&2\\3&4\end{pmatrix}}", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}"),
        (r"\boxed{2^{1009}}", "2^{1009}"),
        (r"\boxed{10!}", "3628800"),
        (r"\boxed{\$5}", "5"),
        (r"\boxed{e^{-x^2}}", "e^{-x^2}"),
    ],
)
def test_equal(response, gold):
    assert equal(response, gold) == 1.0
    assert equal([{"role": "assistant", "content": response}], gold) == 1.0


@pytest.mark.parametrize(
    ("response", "gold"),
    [
        (r"\boxed{41}", "42"),
        (r"\boxed{(2,1)}", "(1,2)"),
        (r"\boxed{3.14159}", r"\pi"),
        ("42", "42"),
        ("", "42"),
        (r"\boxed{}", "42"),
        (r"\boxed{42", "43"),
        (r"$42$ is \boxed{41}", "42"),
        (r"\boxed{42} at first, but on reflection it has to be something else: \boxed{41}", "42"),
        ("$42$ or $43$", "42"),
        (r"\boxed{٤٢}", "43"),
    ],
)
def test_not_equal(response, gold):
    assert equal(response, gold) == 0.0


@pytest.mark.parametrize("gold", ["", "$$", r"\frac{", r"\sum_{i=1}^{9} i", "9^{9^{9^9}}", "1" * 301])
def test_gold_that_cannot_be_read_does_not_apply(gold):
    assert equal(r"\boxed{42}", gold) is None


def test_only_the_last_characters_are_read():
    response = r"\boxed{42}" + "." * 20
    assert equal(response, "42", max_chars=30) == 1.0
    assert equal(response, "42", max_chars=29) == 0.0
    with pytest.raises(ValueError, match="max_chars"):
        equal(response, "42", max_chars=0)


def test_works_outside_the_main_thread():
    values = []
    thread = threading.Thread(target=lambda: values.append(equal(r"\boxed{42}", "42")))
    thread.start()
    thread.join()
    assert values == [1.0]


@pytest.mark.parametrize(
    "answer",
    [
        "9^{9^{9^{9}}}",
        "9^{999999999}",
        "(9^{9999})^{9999}",
        "1^{9^{9^9}}",
        "(10^{9})!",
        "99999999!",
        r"\binom{10^8}{10^7}",
        r"\sum_{i=1}^{10^9} i^i",
        r"\prod_{i=1}^{10^9} i",
        r"\operatorname{eye}(100000000)",
        r"\Gamma(100000000)",
        r"\left.x!\right|_{x=99999999}",
        "1.5E999999999",
        r"\cosh(\cosh(\cosh(9)))",
        r"\frac{x^{9999}-1}{x^{9998}-1}",
        "(x+y+z+w)^{1000}",
        "0." + "0" * 200 + "1E-99",
        "9" * 250 + ".1E99",
        "9" * 299,
        "9" * 5000,
        "{" * 800 + "1" + "}" * 800,
        "(" * 60 + "1" + ")" * 60,
        "x^{" * 60 + "2" + "}" * 60,
        "{" * 250,
        "|" * 250,
        r"\boxed{" * 200,
        "\\frac" * 60,
        "3" + "!" * 200,
    ],
)
def test_hostile_answer_is_wrong_and_quick(answer):
    start = time.process_time()
    assert equal(f"\\boxed{{{answer}}}", "42") == 0.0
    assert time.process_time() - start < 2


@settings(max_examples=50, deadline=None)
@given(st.text(alphabet=r"0123456789xyE+-*/^_(){}[]$\|!.,= ", max_size=40))
def test_any_text_gets_a_value(answer):
    assert equal(f"\\boxed{{{answer}}}", "42") in (0.0, 1.0)
    assert equal(answer, "42") in (0.0, 1.0)


def test_evaluator_sees_numbers_only(tmp_path, monkeypatch):
    seen = []

    def record(code, *scopes):
        seen.append(code)
        return original(code, *scopes)

    original = sympy_parser.eval_expr
    monkeypatch.setattr(sympy_parser, "eval_expr", record)
    target = tmp_path / "evaluated"
    attack = f'__import__("pathlib").Path("{target}").touch()'
    for inside in (
        attack, rf"\text{{{attack}}}", rf"\mathrm{{{attack}}}", f"f({attack})", f"123456 + {attack}",
        rf"\{{{attack}, 234567\}}", f"x_{{{attack}}}", f"2.34567^{{{attack}}}", r"\text{exec}(345678)",
        rf"\begin{{pmatrix}} {attack} & 456789 \end{{pmatrix}}", "567891", "3.456789", "1,567,891",
    ):  # fmt: skip
        equal(rf"\boxed{{{inside}}}", "42")
        equal(f"${inside}$ is 42", "42")
        equal(r"\boxed{42}", inside)
    assert "Integer (567891 )" in seen
    assert [c for c in seen if not re.fullmatch(r"(Integer|Float) \('?[0-9.]+'? ?\)", c)] == []
    assert not target.exists()

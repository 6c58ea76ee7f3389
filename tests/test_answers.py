"""Final answers: what counts as one, and which are the same."""

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from math_verify import parse, verify

from cepo.references.answers import final_answer, last_box, reference_answer, same_answer


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        (r"So it is \boxed{42}", "42"),
        (r"first \boxed{1}, no: \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{(62, 75, 43)}", "(62, 75, 43)"),
        (r"\boxed{1} and then \boxed{2", "1"),  # the second box was cut off
        (r"\boxed{12", None),
        (r"\boxed{}", None),
        (r"The final answer is $5$.", "5"),
        ("I counted 5 apples and 7 pears", None),  # a number in the text announces nothing
        ("", None),
    ],
)
def test_final_answer(completion, answer):
    assert final_answer(completion) == answer


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        (r"\boxed{7}", "7"),
        (r"We add and get \boxed{7}.", "7"),
        ("Two and five make seven.\n#### 7", "7"),
        ("$7$", "7"),
        (" 7 ", "7"),
    ],
)
def test_reference_answer(solution, answer):
    assert reference_answer(solution) == answer


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("0.5", r"\frac{1}{2}", True),
        (r"\frac{1}{2}", "0.5", True),
        ("1,000", "1000", True),
        ("12", "21", False),
        ("(62, 75)", "(62,75)", True),
        ("(62, 75)", "(75, 62)", False),  # in parentheses, order counts
        ("", "", True),
        ("\\frac{", "3", False),
    ],
)
def test_same_answer(one, other, same):
    assert same_answer(one, other) is same


_WHOLE = st.tuples(st.sampled_from(["", "0", "-"]), st.integers(0, 3)).map(lambda parts: "".join(map(str, parts)))
_LISTS = st.tuples(st.lists(_WHOLE, min_size=2, max_size=3), st.sampled_from([",", ", "])).map(
    lambda parts: f"({parts[1].join(parts[0])})"
)


@settings(max_examples=30, deadline=None)
@given(one=_WHOLE | _LISTS, other=_WHOLE | _LISTS)
def test_whole_numbers_are_compared_as_math_verify_does(one, other):
    """Which they are without it, because it takes long."""
    parsed = [parse(f"\\boxed{{{answer}}}") for answer in (one, other)]
    assert same_answer.__wrapped__(one, other) is (verify(*parsed) or verify(*reversed(parsed)))


def test_nested_braces():
    assert last_box(r"\boxed{\sqrt{\frac{a}{b}}} end") == r"\sqrt{\frac{a}{b}}"


def test_works_outside_the_main_thread():
    """math-verify's time limits use signals, which other threads may not set."""
    results = []
    thread = threading.Thread(
        target=lambda: results.append((final_answer("The final answer is $9$."), same_answer("9", "9.0")))
    )
    thread.start()
    thread.join()
    assert results == [("9", True)]

"""Answer extraction and answer equality."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from math_verify import parse, verify

from cepo.data.sampling import text_of_messages
from cepo.references.equality import _compared, same_answer
from cepo.references.extraction import final_answer, normalized, reference_answer, text_of_completion
from cepo.references.hints import add_hint


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        (r"So it is \boxed{42}", "42"),
        (r"first \boxed{1}, no: \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\sqrt{\frac{a}{b}}} end", r"\sqrt{\frac{a}{b}}"),
        (r"\boxed{(62, 75, 43)}", "(62, 75, 43)"),
        (r"\boxed{1} and then \boxed{2", "1"),  # the second box was cut off
        (r"\boxed{12", None),
        (r"\boxed{}", None),
        (r"The final answer is $5$.", "5"),
        ("The answer is 3.5 cm. Done", "3.5 cm"),
        ("The answer is 12, because 3 times 4 is.", "12"),
        ("**Answer:** 12", "12"),
        ("**Final answer: $x=3$**", "x=3"),
        ("so the answer is **B**.", "B"),
        (r"the answer is: \(\frac{1}{2}\), as asked", r"\frac{1}{2}"),
        ("<think>It is A? No.</think><answer>B</answer>", "B"),
        (r"<answer>\boxed{5}</answer>", "5"),
        ("<answer>The answer is $7$.</answer>", "7"),
        ("<answer>1</answer> no: <answer>2</answer>", "2"),
        ("<answer>5", None),
        ("Two and five.\n#### 1,234", "1,234"),
        (r"\boxed{1} hm <answer>2</answer>", "2"),
        (r"<answer>2</answer> hm \boxed{1}", "1"),
        (r"\boxed{\text{A}}", "A"),
        (r"\boxed{$5$}", "5"),
        (r"\boxed {7}", "7"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{ \boxed{3} }", "3"),
        ("\\boxed{\u22127}", "-7"),  # a minus sign as typographers write it
        ("\\boxed{\u0661\u0662}", "12"),  # Arabic-Indic digits
        ("I counted 5 apples and 7 pears", None),  # a number in a sentence is no answer
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
        ("Adding gives $x+1=8$. The final answer is $7$.", "7"),
        ("<answer>A</answer>", "A"),
        (r"\text{A}", "A"),
        ("A whole sentence.", "A whole sentence"),
        (r"\boxed{}", ""),
        ("####", ""),
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
        ("ABCD", "ABDC", False),
        ("cat", "act", False),
        ("Cat", "cat", True),
        ("2024-01-05", "2023-01-04", False),
        ("12:30", "1230", False),
        ("x+1", "1+x", True),
        ("5 cm", "5", True),
        ("007", "7", True),
        ("-0", "0", True),
        ("7" * 4400, "7" * 4400, True),
        ("0" + "7" * 4400, "7" * 4400, True),
        ("7" * 4400, "8" * 4400, False),
        ("9^{9^{9^9}}", "9^{9^{9^8}}", False),
        ("10^{99999}", "10^{99998}", False),
        ("100000!", "100001!", False),
        ("(" * 300 + ")" * 300, "()", False),
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
def test_integers_are_compared_as_by_math_verify(one, other):
    """Without calling it, because it is slow."""
    parsed = [parse(f"\\boxed{{{answer}}}") for answer in (one, other)]
    assert _compared.__wrapped__(one, other) is (verify(*parsed) or verify(*reversed(parsed)))


@pytest.mark.parametrize("form", ["tag", "gsm8k", "sentence", "boxed", "auto"])
def test_each_extractor(form):
    text = r"The answer is 1. \boxed{2} <answer>3</answer>" + "\n#### 4"
    expected = {"tag": "3", "gsm8k": "4", "boxed": "2", "auto": "4", "sentence": "1"}
    assert final_answer(text, form) == expected[form]


def in_brackets(text):
    """A custom extractor."""
    return text.partition("[")[2].partition("]")[0] if "[" in text else None


def test_a_custom_extractor():
    name = f"{__name__}:in_brackets"
    assert final_answer("so [5]", name) == "5"
    assert final_answer("so 5", name) is None
    assert reference_answer("so [5]", name.replace(":", ".")) == "5"
    assert reference_answer("5", name) == "5"  # without an announcement the whole text is the answer
    for wrong in ("nosuch", "no.such", "math:nosuch"):
        with pytest.raises(ValueError, match="answer_extractor"):
            final_answer("x", wrong)
    with pytest.raises(ValueError, match="must return text or None"):
        final_answer("x", "builtins.len")


HOSTILE = [
    "\\boxed{" * 20_000,
    "\\boxed{" + "{" * 50_000,
    "}" * 100_000,
    "\\boxed{" + "7" * 4_400 + "}",
    "\\boxed{" + "x" * 100_000 + "}",
    "<answer>" * 20_000,
    "the answer is " * 20_000,
    "the answer is" + " " * 100_000,
    "the answer is $" * 10_000,
    "#### " * 20_000,
    "####\n" * 20_000,
    "\\boxed{9^{9^{9^{9}}}}",
    "\\boxed{\\frac{1}{\\frac{1}{\\frac{1}{0}}}}",
    "\\boxed{" + "\\frac{1}{" * 500 + "2" + "}" * 501,
    "\\boxed{\\binom{1000000}{500000}}",
    "\\boxed{\x00\u202e\ud83d\ude00}",
    "$" * 100_000,
    "**" * 50_000,
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_never_raises(text):
    answer = final_answer(text)
    assert answer is None or isinstance(answer, str)
    assert isinstance(reference_answer(text), str)
    for one in (answer or "", text):
        assert _compared.__wrapped__(one, "7") is False
        assert _compared.__wrapped__(one, one) is True


_PIECES = st.sampled_from(
    [
        "the answer is ",
        " ",
        "\n",
        *r"\boxed{ } { <answer> </answer> #### $ 7 x \( \) ** . - A \frac{1}{2} \text{ ^ ! −".split(),
        "\u0663",
    ]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(_PIECES, max_size=12).map("".join))
def test_extraction_is_idempotent_and_equal_for_completions_and_solutions(text):
    answer = final_answer(text)
    if answer is not None:
        assert reference_answer(text) == answer
        assert normalized(answer) == answer
    else:
        assert reference_answer(text) in ("", normalized(text))  # an empty box has no answer


def test_long_texts_are_compared_and_not_cached():
    before = _compared.cache_info().currsize
    long = "7 and so on " * 80_000
    assert same_answer(long, f" {long}")
    assert not same_answer(long, "7")
    assert reference_answer(f"{long} \\boxed{{7}}") == "7"
    assert _compared.cache_info().currsize == before


def test_parts_without_text():
    """Image parts may have text None."""
    parts = [{"type": "image", "text": None}, {"type": "text", "text": "so 7"}]
    assert text_of_completion([{"role": "assistant", "content": parts}]) == "so 7"
    (hinted,) = add_hint([{"role": "user", "content": [{"type": "text", "text": None}]}], "It is 7.")
    assert hinted["content"] == [{"type": "text", "text": "It is 7."}]
    assert text_of_messages([{"role": "user", "content": [{"type": "text", "text": None}]}]) == [("user", "")]


def test_unicode_spaces_after_an_answer_are_removed():
    assert normalized("7\u2028.\u2028.\u00a0") == "7"

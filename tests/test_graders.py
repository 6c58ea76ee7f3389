"""Verdicts of `answer_reward` on answers in the notations of models."""

import json
import threading
from fractions import Fraction

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer
from trl.rewards import accuracy_reward, reasoning_accuracy_reward

from cepo import answer_reward, choose_references, final_answer, policy_path, same_answer
from cepo.data.checks import DatasetError, check_verifier
from cepo.data.reward_validation import validated
from cepo.data.rewards import prepared
from cepo.data.sampling import Sampling, answer_texts
from cepo.references.equality import accepted_by_any_grader
from cepo.references.extraction import after_thinking, opens_thinking, text_of_completion
from cepo.references.groups import Rollout
from cepo.references.notation import plain
from cepo.references.units import split_unit
from cepo.scoring.prompts import thinking_opening
from tests.support.real_data import FOLDER


def turn_of(text):
    return [{"role": "assistant", "content": text}]


def verdict(completion, solution, function=answer_reward):
    (found,) = prepared(function)(completions=[turn_of(completion)], solution=[solution])
    return found


ACCEPTED = [
    *[
        (rf"\boxed{{{name} = 45}}", "45")
        for name in ("AB", r"\angle ABC", r"\overline{AB}", r"\text{Area}", r"m\angle 1")
    ],
    (r"\boxed{\angle ABC = 45^\circ}", "45"),
    (r"\boxed{A = \pi r^2 = 9\pi}", r"9 \pi"),
    (r"\boxed{x = 3}", "x=3"),
    (r"\boxed{2x+3}", "y = 2x + 3"),
    *[(rf"\boxed{{{value}}}", "12") for value in (r"12 \text{ feet}", r"12~\mathrm{cm}", "12 square units", "12 mph")],
    (r"\boxed{120 \text{ cm}}", r"1.2 \text{ m}"),
    (r"\boxed{1 \text{ hour } 45 \text{ minutes}}", "105 minutes"),
    *[
        (rf"\boxed{{{value}}}", "45")
        for value in ("45°", r"45\degree", r"45 ^ { \circ }", "45 degrees", r"45^{\text{o}}")
    ],
    (r"\boxed{\frac12}", r"\frac { 1 } { 2 }"),
    (r"\boxed{\tfrac34}", "0.75"),
    (r"\boxed{\dfrac{\sqrt3}{2}}", r"\frac { \sqrt { 3 } } { 2 }"),
    (r"\boxed{3 1/2}", "3.5"),
    (r"\boxed{3\frac{1}{2}}", r"\frac { 7 } { 2 }"),
    (r"\boxed{5\sqrt{7}}", r"5 \sqrt { 7 }"),
    (r"\boxed{12\pi}", r"12 \pi"),
    (r"\boxed{\begin{pmatrix}1&2\\3&4\end{pmatrix}}", "\\begin{pmatrix} 1 & 2 \\\\[2pt]\n 3 & 4 \\end{pmatrix}"),
    *[
        (rf"\boxed{{{value}}}", "E")
        for value in ("E: the longer side", r"\text{(E) } 12", "E. 12", "option (E)", r"\textbf{(E)}\ 12", "(e)")
    ],
    ("The answer is **E**.", "E"),
    ("so **Answer: 73**", "73"),
    ("**Final Answer**\n\n73", "73"),
    ("### Final Answer:\n$$\n\\frac{3}{4}\n$$", "0.75"),
    (r"hence \fbox{73}", "73"),
    ("答案是 73。", "73"),
    ("$x=\\boxed{3}$ or $x=\\boxed{5}$", "x = 3, 5"),
    (r"\boxed{3} and \boxed{5}", "5, 3"),
    (r"\boxed{\pm 2}", r"\{-2, 2\}"),
    (r"\boxed{x > 3}", r"(3, \infty)"),
    (r"\boxed{(-\infty, 3]}", r"(-\infty, 3]"),
    (r"\boxed{50\%}", "0.5"),
    (r"\boxed{1{,}234}", "1234"),
    (r"\boxed{2^{-98}}", "2^{-98}"),
    (r"\boxed{0.\overline{3}}", r"\frac{1}{3}"),
    (r"\boxed{2x - y + 3 = 0}", "y = 2x + 3"),
    (r"\boxed{\sqrt{2} \approx 1.414}", r"\sqrt2"),
    (r"\boxed{12 \text{, which is the area}}", "12"),
    (r"So \\boxed{12}.", "12"),
]
REJECTED = [
    (r"\boxed{12 \text{ cm}}", r"12 \text{ m}"),
    (r"\boxed{12 \text{ m}}", r"12 \text{ m}^2"),
    (r"\boxed{12 \text{ apples}}", r"12 \text{ pears}"),
    (r"\boxed{2^{-99}}", "2^{-98}"),
    (r"\boxed{(1,000)}", "(1,0)"),
    (r"\boxed{(1,0)}", "(1,000)"),
    (r"\boxed{7}", r"5 \sqrt { 7 }"),
    (r"\boxed{2}", r"\frac { 15 } { 2 }"),
    (r"\boxed{12}", r"12 \pi"),
    (r"\boxed{3}", r"(-\infty, 3]"),
    (r"\boxed{3}", "y = 2x + 3"),
    (r"\boxed{y = 3}", "x = 3"),
    (r"\boxed{16.97}", r"12 \sqrt { 2 }"),
    (r"\boxed{(2, 1)}", "(1, 2)"),
    (r"\boxed{[1, 2)}", "(1, 2)"),
    (r"\boxed{3}", "3, 5"),
    (r"\boxed{2t}", "2"),
    (r"\boxed{2ab}", "2"),
    (r"\boxed{3^{2n}+1}", "3^{2n+1}"),
    (r"\boxed{1011_3}", "1011_2"),
    (r"\boxed{F: the longer side}", "E"),
    ("first \\boxed{12}, but that is wrong: \\boxed{13}", "12"),
    ("I counted 12 apples", "12"),
    (r"the sum is \boxed{12", "12"),
]


@pytest.mark.parametrize(("completion", "solution"), ACCEPTED)
def test_accepted(completion, solution):
    assert verdict(completion, solution) == 1.0
    # The answer of a rollout that another verifier rejected cannot be r-.
    rollouts = [Rollout(final_answer(completion), 0.0, False), Rollout("999", 0.0, False)]
    (one, other) = choose_references(rollouts, solution, rule="own")
    assert one.negatives == other.negatives == ("999",)


@pytest.mark.parametrize(("completion", "solution"), REJECTED)
def test_rejected(completion, solution):
    assert verdict(completion, solution) == 0.0


THOUGHTS = [
    ("<think>Is it 4? No.</think>So \\boxed{12}.", "12"),
    ("<think>So \\boxed{4}?</think>Thus \\boxed{12}.", "12"),
    ("So \\boxed{4}?</think>\\boxed{12}", "12"),  # the prompt opened the thinking
    ("<think>a</think> no <think>b</think> \\boxed{12}", "12"),
    ("<think>so \\boxed{12}", None),
    ("<think>so it is 12. The answer is 12.", None),
    ("<think>\\boxed{12}</think>", None),
    ("<think>a</think>Wait. <think>\\boxed{12}", None),
    ("[THINK]\\boxed{4}[/THINK]\\boxed{12}", "12"),
    ("<Thinking>\\boxed{12}", None),
]


@pytest.mark.parametrize(("completion", "answer"), THOUGHTS)
@pytest.mark.parametrize("function", [answer_reward, accuracy_reward])
def test_the_answer_follows_the_thinking(completion, answer, function):
    """A rollout truncated within its thinking has no answer."""
    assert final_answer(completion) == answer
    assert verdict(completion, "12", function) == float(answer is not None)
    if answer is not None:
        assert "4" not in (after_thinking(completion) or "")


THINKS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n"
    "{% if no_thinking is defined %}</think>\n{% endif %}{% endif %}"
)


def test_a_prompt_that_ends_with_a_thinking_delimiter():
    """As for Qwen3's thinking models: the completion has the closing tag only, or none if truncated."""
    tokenizer = AutoTokenizer.from_pretrained(policy_path())
    assert thinking_opening(tokenizer, {}) == ""
    options = {"chat_template": THINKS}
    assert thinking_opening(tokenizer, options) == "<think>"
    assert thinking_opening(tokenizer, {**options, "no_thinking": True}) == ""
    assert opens_thinking("<think>\n\n</think>\n\n") == ""
    judge = validated(answer_reward, "answer_reward", thinking_opening(tokenizer, options))
    completions = [turn_of("it is \\boxed{12}, so"), turn_of("hm</think>\\boxed{12}")]
    assert judge(prompts=["?", "?"], completions=completions, solution=["12", "12"]) == [0.0, 1.0]
    ids = tokenizer("so 12")["input_ids"]
    (text,) = answer_texts(tokenizer, [ids], Sampling(chat_template_kwargs=options))
    assert text.startswith("<think>")
    assert final_answer(text) is None


def test_verdict_and_answer_come_from_the_last_turn():
    completion = [
        {"role": "assistant", "content": "I guess \\boxed{4}, let me compute.", "tool_calls": []},
        {"role": "tool", "name": "calculator", "content": "12"},
        {"role": "assistant", "content": "So it is \\boxed{12}."},
    ]
    for function in (answer_reward, accuracy_reward):
        found = prepared(function)(completions=[completion], solution=["12"])
        assert found == [1.0]
        assert prepared(function)(completions=[completion], solution=["4"]) == [0.0]
    assert final_answer(text_of_completion(completion)) == "12"


def test_prepared_changes_only_trls_verifiers():
    assert prepared(len) is len
    assert accuracy_reward([turn_of(r"\boxed{7}")], [r"5 \sqrt { 7 }"]) == [1.0]  # unprepared
    assert verdict(r"\boxed{7}", r"5 \sqrt { 7 }", accuracy_reward) == 0.0
    assert verdict(r"\boxed{5\sqrt{7}}", r"5 \sqrt { 7 }", accuracy_reward) == 1.0
    assert verdict(r"<think>hm</think>\boxed{5\sqrt{7}}", r"5 \sqrt { 7 }", reasoning_accuracy_reward) == 1.0
    assert verdict(r"\boxed{5\sqrt{7}}", r"5 \sqrt { 7 }", reasoning_accuracy_reward) == 0.0  # requires thinking
    assert answer_reward([turn_of("\\boxed{5}")], ["####"]) == [None]


def test_solutions_that_a_verifier_cannot_parse():
    names = Dataset.from_dict({"solution": [r"\frac12", "4", "5"] * 5})
    with pytest.raises(DatasetError, match=r"accuracy_reward parses 10 of 15 solutions \(row 0 of the training set"):
        check_verifier(accuracy_reward, names)
    few = Dataset.from_dict({"solution": [r"\frac12", *map(str, range(19))]})
    line, unreadable = check_verifier(accuracy_reward, few)
    assert unreadable == 1
    assert line.startswith("accuracy_reward parses 19 of 20 solutions (row 0 of the training set")
    assert check_verifier(answer_reward, few) == ("answer_reward parses 20 of 20 solutions", 0)
    assert check_verifier(len, few) == ("", 0)


def test_no_grader_accepts_a_negative():
    """mathruler ignores units and braces, TRL's verifier parses `2t` as 2; such answers cannot be r-."""
    for answer, reference in (("12 cm", "12 m"), ("2t", "2"), ("3^{2n}+1", "3^{2n+1}")):
        assert not same_answer(answer, reference)
        assert accepted_by_any_grader(answer, reference)
    rollouts = [Rollout("12 cm", 0.0, False), Rollout("13 cm", 0.0, False)]
    assert choose_references(rollouts, "12 m", rule="own")[0].negatives == ("13 cm",)
    assert not accepted_by_any_grader("13 cm", "12 m")


_NUMBERS = st.fractions(max_denominator=60).filter(lambda number: abs(number) < 10**6)


def spellings(number):
    sign, size = ("-" if number < 0 else ""), abs(number)
    found = [rf"{sign}\frac{{{size.numerator}}}{{{size.denominator}}}", f"{number.numerator}/{number.denominator}"]
    found.append(rf"{sign}\dfrac {{ {size.numerator} }} {{ {size.denominator} }}")
    whole, rest = divmod(size.numerator, size.denominator)
    if whole and rest:
        found.append(rf"{sign}{whole} \tfrac{{{rest}}}{{{size.denominator}}}")
        found.append(f"{sign}{whole} {rest}/{size.denominator}")
    if size.denominator == 1:
        found += [f"{number}", f"{number}.0", f"{int(number):,}", f"{sign}{size}".replace("-", "\u2212")]
    return found


@settings(max_examples=60, deadline=None)
@given(one=_NUMBERS, other=_NUMBERS, data=st.data())
def test_spellings_of_numbers_are_equal_if_and_only_if_the_numbers_are(one, other, data):
    first, second = data.draw(st.sampled_from(spellings(one))), data.draw(st.sampled_from(spellings(other)))
    wrapped = data.draw(st.sampled_from(["{}", "${}$", r"\text{{Area}} = {}", "AB = {}", r"{} \text{{ cm}}", "**{}**"]))
    assert same_answer(wrapped.format(first), second) is (one == other)
    assert same_answer(wrapped.format(first), spellings(one)[0])


_LENGTHS = {"mm": 1, "cm": 10, "m": 1000, r"\text{ km}": 1000000, r"\mathrm{~centimeters}": 10, "meters": 1000}


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 10**6), st.sampled_from(sorted(_LENGTHS)), st.sampled_from(sorted(_LENGTHS)))
def test_units_are_converted_exactly(number, unit, other):
    value = Fraction(number * _LENGTHS[unit], _LENGTHS[other])
    assert same_answer(f"{number} {unit}", f"{value.numerator}/{value.denominator} {other}")
    assert not same_answer(f"{number} {unit}", f"{value.numerator + 1}/{value.denominator} {other}")


@pytest.mark.parametrize(
    ("answer", "value", "has_unit"),
    [
        ("2xy", "2xy", False),
        ("2 sin x", r"2 \sin x", False),
        ("3 and 4", "3 and 4", False),
        ("12m", "12m", False),
        ("12 m", "12", True),
        ("12cm", "12", True),
        (r"9.8 \text{ m/s}^2", "9.8", True),
        ("5 square units", "5", False),
        ("isosceles triangle", "isosceles triangle", False),
        ("cm^9^9^9 99", "cm^{9}^{9}^{9} 99", False),
    ],
)
def test_split_unit(answer, value, has_unit):
    found, unit = split_unit(plain(answer))
    assert (found, unit is not None) == (value, has_unit)


def lines_of(name):
    return [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def test_pairs_of_answers():
    """Labeled pairs of answers: symbols, relations, units, choices, primes, factorials."""
    pairs = lines_of("pairs")
    found = [(pair["one"], pair["other"]) for pair in pairs if same_answer(pair["one"], pair["other"]) != pair["same"]]
    found += [(pair["other"], pair["one"]) for pair in pairs if same_answer(pair["other"], pair["one"]) != pair["same"]]
    assert len(pairs) > 180
    assert not found


def test_announcements():
    """Labeled completions: later sentences about the answer, headings, amounts of money, end tokens."""
    cases = lines_of("extraction")
    found = [(case, final_answer(case["completion"])) for case in cases]
    assert not [(case, answer) for case, answer in found if answer != case["answer"]]


HEAVY = [
    (r"\sin x=(\cos x+1)^{50}", r"\cos x=(\sin x+1)^{50}"),
    (r"(x+y)^{99}=z^{50}", r"(x-y)^{99}=z^{50}"),
    ("2 decades", "20 years"),
    ("30 decibels", "30 dB"),
    ("5 nan", "6"),
    (r"1\frac{0}{0}", "3"),
    ("3+1/0", "2"),
    (".e5", "5"),
    ("1:2", ".e3"),
    ("1.2.3 hours 5 minutes", "5"),
    ("1000000", r"\log_{10} 5"),
    ("((99!)!)!", "3"),
    ("10^{99}!", "2"),
    ("9^-9^9", r"\sqrt{2}"),
    ("(x+y+z+1)^{99}", "(x+y+z+2)^{99}"),
    ("[0]*200000000+x", r"\sqrt{2}"),
    ("'x'*900000000", "x"),
    ("ff(99999999,9999999)", "2"),
    ("####" + " " * 100_000 + "x", "6"),
    ("\\text{" * 20_000 + "5" + "}" * 20_000, "6"),
    (",".join(f"({k}!)!" for k in range(20, 32)), ",".join(f"({k}!)!" for k in range(40, 52))),
]


@pytest.mark.parametrize(("one", "other"), HEAVY, ids=range(len(HEAVY)))
def test_no_answer_raises_hangs_or_is_evaluated(one, other):
    """mathruler passes text to sympy's parser, which evaluates Python; library timeouts are BaseExceptions."""
    for compare in (same_answer, accepted_by_any_grader):
        assert compare(one, other) is False
        assert compare(other, one) is False
    final_answer(one)


def test_answers_are_compared_outside_the_main_thread():
    """Without math-verify's time limits, which are signals of the main thread, and without mathruler."""
    found = []
    thread = threading.Thread(
        target=lambda: found.extend([accepted_by_any_grader("9^-9^9", r"\sqrt{2}"), same_answer("9", "9.0")])
    )
    thread.start()
    thread.join(60)
    assert found == [False, True]

"""Answers, references and hints of any text, and text that is shown."""

import io
import json
import random
import unicodedata

from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text

from cepo.data.escape import escape, one_line
from cepo.inspection.console import PlainConsole
from cepo.inspection.page import _json
from cepo.inspection.tables import markdown_text
from cepo.methods import StageContext, method_options
from cepo.methods.rlcsd import METHOD as RLCSD
from cepo.references.equality import same_answer
from cepo.references.extraction import (
    EXTRACTORS,
    final_answer,
    last_box_place,
    normalized,
    reference_answer,
)
from cepo.references.groups import Rollout
from cepo.references.hint_content import HintContent, with_contents
from cepo.references.hints import MARK, add_hint, fill_hint
from cepo.references.negatives import choose_references

from .properties import examples

PIECES = st.sampled_from(
    [
        *("\\boxed{", "\\boxed {", "}", "{", "\\{", "\\}", "<answer>", "</answer>", "<ANSWER>", "####", "\n", "\r"),
        "$",
        *("$$", "\\(", "\\)", "\\[", "\\]", "**", "`", " ", ".", ",", "-", "!", "^", "_", "/", "\\", "%", "&", "#"),
        *("the answer is ", "Answer: ", "answer equals", "because ", "7", "12", "0", "9" * 50, "1e999", "x", "A"),
        *("\\frac{1}{2}", "\\frac", "\\sqrt", "\\text{", "\\left(", "\\begin{pmatrix}", "\\end{pmatrix}", "\\input{"),
        *("\\def\\a{\\a}\\a", "\\sum_{i=1}^{10^9} i", "9^{9^{9}}", "10!!", "\\infty", "\\int", "x^{", "\\cdot"),
        *("\u2212", "\u0663", "\u200b", "\u202e", "\ufeff", "\u2028", "\x00", "\x1b[2J", "\x1b]8;;", "\ud800", "😀"),
        *("</script>", "<img src=x onerror=1>", "[bold]", "[/]", "__import__('os')", "{answer}", "import os", "%s"),
    ]
)
hostile = st.one_of(
    st.lists(PIECES, max_size=12).map("".join),
    st.text(max_size=30),
    st.tuples(st.text(max_size=5), PIECES, st.text(max_size=5)).map("".join),
)
# Repeated pieces: quadratic time would run into the test's timeout.
long = st.tuples(PIECES, PIECES, st.integers(1, 3000)).map(lambda drawn: (drawn[0] + drawn[1]) * drawn[2])


@examples(2000, text=st.one_of(hostile, long), extractor=st.sampled_from(sorted(EXTRACTORS)))
def test_extraction(text, extractor):
    answer = final_answer(text, extractor)
    reference = reference_answer(text, extractor)
    assert answer is None or (isinstance(answer, str) and answer)
    assert isinstance(reference, str)
    assert answer is None or reference == answer
    place = last_box_place(text)
    assert place is None or text[: place[0]].rstrip(" ").endswith("{") or "{" in text[: place[0]]
    assert normalized(normalized(text)) == normalized(normalized(normalized(text)))


@examples(1000, one=hostile, other=hostile)
def test_equality(one, other):
    assert same_answer(one, one)
    assert same_answer(one, other) is same_answer(other, one)


parts = st.one_of(
    st.fixed_dictionaries({"type": st.just("text"), "text": st.one_of(st.none(), hostile)}),
    st.just({"type": "image"}),
    st.just({"type": "image", "text": None}),
)
turns = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["system", "user", "assistant", "tool"]),
        "content": st.one_of(hostile, st.lists(parts, max_size=4)),
    }
)

asking = st.fixed_dictionaries({"role": st.just("user"), "content": st.lists(parts, min_size=1, max_size=3)})


@examples(
    900,
    messages=st.one_of(st.lists(turns, max_size=4), st.tuples(turns, asking).map(list)),
    template=st.tuples(hostile, hostile).map(lambda pair: f"{pair[0]}{{answer}}{pair[1]}"),
    answer=hostile,
)
def test_hints(messages, template, answer):
    """The last text of the last user turn ends with the hint, apart from marks."""
    hint = fill_hint(template, answer)
    assert answer.replace(MARK, "") in hint.replace(MARK, "")
    before = repr(messages)
    users = [place for place, turn in enumerate(messages) if turn["role"] == "user"]
    if not users:
        try:
            add_hint(messages, hint)
        except ValueError as error:
            assert "\n" not in str(error)  # noqa: PT017
            return
        raise AssertionError("a conversation without a user turn took a hint")
    hinted = add_hint(messages, hint)
    assert repr(messages) == before
    last = users[-1]
    assert [*hinted[:last], *hinted[last + 1 :]] == [*messages[:last], *messages[last + 1 :]]
    old, new = messages[last]["content"], hinted[last]["content"]
    if isinstance(old, str):
        assert new == old + hint
        return
    texts = [place for place, part in enumerate(old) if part["type"] == "text"]
    if not texts:
        assert new == [*old, {"type": "text", "text": hint}]
        return
    place = texts[-1]
    assert new[place]["text"] == (old[place]["text"] or "") + hint
    assert [*new[:place], *new[place + 1 :]] == [*old[:place], *old[place + 1 :]]


# References -----------------------------------------------------------------------------------------------------------

RULES = ("lowest_reward", "most_common", "own", "mixture", "own_or_mixture")
answers = st.one_of(
    st.none(),
    st.sampled_from(["7", "7.0", "$7$", "\\frac{14}{2}", "3", "4", "0.5", "\\frac{1}{2}", "A", "", "three", "(1, 2)"]),
    hostile,
)
groups = st.lists(
    st.builds(Rollout, answers, st.floats(-2, 2), st.sampled_from([True, False, None]), hostile), min_size=1, max_size=6
)
solutions = st.one_of(st.sampled_from(["7", "\\boxed{7.0}", "A", "0.5", "#### (1,2)"]), hostile)
plain_groups = st.lists(
    st.builds(
        Rollout,
        st.sampled_from([None, "1", "2", "3", "7", "8"]),
        st.floats(-2, 2),
        st.sampled_from([True, False, None]),
    ),
    min_size=1,
    max_size=7,
)


@examples(700, rollouts=groups, rule=st.sampled_from(RULES), most=st.integers(1, 4), solution=solutions)
def test_references(rollouts, rule, most, solution):
    found = choose_references(rollouts, solution, rule=rule, max_negatives=most)
    assert found == choose_references(rollouts, solution, rule=rule, max_negatives=most)
    rejected = {place for place, rollout in enumerate(rollouts) if rollout.correct is False}
    for place, one in enumerate(found):
        assert one.positive == reference_answer(solution)
        assert len(set(one.negatives)) == len(one.negatives) == len(one.sources) <= most
        assert set(one.sources) <= rejected
        assert bool(one.negatives) or one.fallback in ("no_rejected", "no_incorrect_answer")
        for negative, source in zip(one.negatives, one.sources, strict=True):
            assert negative == rollouts[source].answer
            assert normalized(negative) != normalized(one.positive)
            assert not same_answer(negative, one.positive)
        if rule.startswith("own") and place in rejected and one.negatives and one.fallback is None:
            assert one.sources == (place,)


@st.composite
def permuted(draw):
    rollouts = draw(plain_groups)
    return rollouts, draw(st.permutations(range(len(rollouts))))


@examples(700, drawn=permuted(), rule=st.sampled_from(["own", "mixture", "own_or_mixture"]))
def test_references_of_a_permutation(drawn, rule):
    """Under any order of rollouts, own answers and complete mixtures are the same."""
    rollouts, order = drawn
    plain = choose_references(rollouts, "7", rule=rule, max_negatives=8)
    moved = choose_references([rollouts[place] for place in order], "7", rule=rule, max_negatives=8)
    incorrect = [place for place, rollout in enumerate(rollouts) if rollout.correct is False and rollout.answer]
    for new, old in enumerate(order):
        one, other = plain[old], moved[new]
        assert (one.positive, one.fallback) == (other.positive, other.fallback)
        assert "7" not in (*one.negatives, *other.negatives)
        mixed = rule == "mixture" or (rule == "own_or_mixture" and rollouts[old].correct is not False)
        if mixed or (old in incorrect and one.fallback is None):
            assert set(one.negatives) == set(other.negatives)


@examples(600, rollouts=groups, solution=hostile, seed=st.integers(), most=st.integers(1, 4))
def test_siblings(rollouts, solution, seed, most):
    """RLCSD's draws depend on the seed, exclude the scored rollout, and use incorrect rollouts for r- only."""
    options = method_options("rlcsd", max_negatives=most)

    def drawn():
        return RLCSD.references(rollouts, solution, options, StageContext(lambda text, *_: text, random.Random(seed)))

    found = drawn()
    assert found == drawn()
    for place, one in enumerate(found):
        assert place not in one.sources
        assert len(set(one.sources)) == len(one.sources) <= most
        assert all(rollouts[source].correct is False and rollouts[source].answer for source in one.sources)
        assert (one.fallback is None) == bool(one.negatives)


@examples(
    500,
    rollouts=groups,
    solution=hostile,
    rule=st.sampled_from(RULES),
    positive=st.sampled_from(["answer", "solution", "rollout"]),
    negative=st.sampled_from(["answer", "rollout"]),
    part=st.sampled_from(["whole", "prefix", "suffix"]),
)
def test_contents(rollouts, solution, rule, positive, negative, part):
    """A hint never contains the text of the scored rollout, unless it is an answer alone."""

    def cut(text, part, tokens):
        return text[:tokens] if part == "prefix" else text[-tokens:]

    content = HintContent(positive, negative, part, part, 5)
    chosen = choose_references(rollouts, solution, rule=rule)
    found = with_contents(chosen, rollouts, solution, content, cut)
    others = {rollout.text for rollout in rollouts if rollout.correct}
    for rollout, before, after in zip(rollouts, chosen, found, strict=True):
        assert len(after.negatives) == len(before.negatives)
        if (positive, negative) == ("answer", "answer"):
            assert after == before
        if positive == "solution":
            assert after.positive == (solution if part == "whole" else cut(solution, part, 5))
        if positive == "rollout" and part == "whole" and after.fallback != "no_correct_rollout":
            assert after.positive in others - {rollout.text}
        if negative == "rollout" and part == "whole":
            texts = zip(after.negatives, before.negatives, strict=True)
            assert all(text != rollout.text or text == answer for text, answer in texts)


# Display --------------------------------------------------------------------------------------------------------


@examples(700, text=st.one_of(hostile, st.text(st.characters(), max_size=20)), columns=st.integers(20, 120))
def test_shown_text(text, columns):
    """The console writes no control characters except newlines; the page keeps the text."""
    out = io.StringIO()
    console = PlainConsole(file=out, width=columns, soft_wrap=True)
    table = Table(title=text, caption=text)
    table.add_column(text)
    table.add_row(text)
    for one in (text, Text(text), table):
        console.print(one)
    printed = out.getvalue()
    printed.encode("utf-8")
    assert all(ch.isprintable() or ch in "\n\t\u200c\u200d" or unicodedata.category(ch) == "Zs" for ch in printed)
    assert escape(escape(text)) == escape(text)
    assert "\n" not in one_line(text)
    cell = markdown_text(text)
    assert "\n" not in cell
    assert "<" not in cell
    page = _json({"text": text})
    page.encode("utf-8")
    assert "<" not in page
    assert json.loads(page) == {"text": text}

"""Statistics of evidence and hint following, by hand and by `cepo explain --statistics`."""

import json
from typing import get_args

import numpy as np
import pytest

from cepo import cli, load_figures
from cepo.inspection.evidence_statistics import Kind, RolloutEvidence, bootstrap, kind_of, positions_of, statistics_of
from cepo.inspection.hint_following import hint_cases
from cepo.inspection.inspect import make_variant
from cepo.inspection.view_model import Credit, InspectedGroup, InspectedRollout
from cepo.references.groups import Group, References, Rollout


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("7", "digit"),
        (" x2", "digit"),
        (" Then", "word"),
        ("é", "word"),
        (" =", "symbol"),
        ("\n\n", "space"),
        ("", "space"),
    ],
)
def test_kinds(text, kind):
    assert kind_of(text) == kind


def test_the_kind_of_a_special_token():
    assert kind_of("<|im_end|>", special=True) == "end"


def test_positions_by_hand():
    """The answer, 14, is first mentioned after `=`; the 14 in 140 is no mention."""
    texts = [
        "140",
        " is",
        " not",
        " 8 +",
        " 6",
        " =",
        " 1",
        "4",
        ".",
        " So",
        " \\",
        "boxed",
        "{",
        "1",
        "4",
        "}.",
        "<end>",
    ]
    assert positions_of(texts) == [*["before"] * 6, *["between"] * 7, "box", "box", "after", "after"]


def test_positions_where_one_token_holds_the_box_and_more():
    assert positions_of(["so \\boxed{7}", "."]) == ["box", "after"]


def test_positions_with_several_boxes_and_without_one():
    assert positions_of(["\\boxed{", "3", "}", " or", " \\boxed{", "4", "}", " \\boxed{", "5"])[5] == "box"
    assert positions_of(["It", " is", " 5"]) == ["unboxed"] * 3
    assert positions_of(["a", "\\boxed{", "}"]) == ["before", "before", "after"]  # an empty box


def test_the_bootstrap_resamples_groups():
    """Two groups that differ: a bootstrap over groups has three outcomes, one over tokens would have many."""
    values, groups = np.array([0.0] * 50 + [1.0] * 50), np.array([0] * 50 + [1] * 50)
    (estimate,) = bootstrap(
        {"mean": lambda weights: float((weights * values).sum() / weights.sum())}, groups, resamples=400, seed=0
    ).values()
    assert (estimate.low, estimate.value, estimate.high) == (0.0, 0.5, 1.0)


def rollout(evidence, kinds, positions, *, correct, group=0):
    values = np.array(evidence, dtype=float)
    return RolloutEvidence(values, np.abs(values) > 0, kinds, positions, correct, group)


def test_statistics_by_hand():
    incorrect = rollout(
        [-3.0, 1.0, 0.005, 0.0],
        ["digit", "word", "word", "end"],
        ["before", "between", "box", "after"],
        correct=False,
    )
    found = {name: one.value for name, one in statistics_of([incorrect], resamples=3).items()}
    assert found["moved"] == 0.75
    assert found["abs_mean"] == pytest.approx(4.005 / 4)
    assert found["against"] == 0.5  # of two tokens above the tolerance, one has evidence for r+
    assert [found[f"abs_mean_{position}"] for position in ("before", "between", "box")] == [3, 1, 0.005]
    assert found["evidence_digit"] == pytest.approx(3 / 4.005)
    assert found["tokens_word"] == 0.5
    assert found["evidence_symbol"] == 0


def test_statistics_of_correct_rollouts_and_without_evidence():
    correct = rollout([-3.0, 1.0, 1.0], ["digit"] * 3, ["unboxed"] * 3, correct=True)
    found = statistics_of([correct, correct], resamples=3)
    assert found["against"].value == pytest.approx(1 / 3)
    assert found["abs_mean_box"].as_dict() == {"value": None, "low": None, "high": None}
    silent = statistics_of([rollout([0.0], ["word"], ["before"], correct=True)], resamples=3)
    assert silent["evidence_word"].as_dict()["value"] is None
    assert silent["tokens_word"].value == 1


def cases_of(positive, negatives, contexts):
    rollouts = [Rollout("5", 1.0, True, "\\boxed{5}"), Rollout("15", 0.0, False, "so \\boxed{15}")]
    variant = make_variant("cepo", {"hint_template": "It is {answer}."}, {})
    credit = Credit(References(positive, negatives), contexts, *[None] * 2, *[None] * 4, 1.0, 1.0)
    unscored = Credit(References("5", ()), [], *[None] * 2, *[None] * 4, 1.0, 1.0)
    inspected = [
        InspectedRollout(rollout, number, [], None, {variant: of_rollout})
        for number, (rollout, of_rollout) in enumerate(zip(rollouts, (unscored, credit), strict=True), 1)
    ]
    return hint_cases(InspectedGroup(Group([], "2 + 3 = 5, so \\boxed{5}", rollouts), inspected), variant)


def test_hints_with_an_expected_answer():
    expected = {"positive": ("It is 5.", "5"), "negative": ("It is 15.", "15")}
    assert cases_of("5", ("15",), ["It is 5.", "It is 15."]) == expected
    whole = cases_of("we get \\boxed{5}", ("so \\boxed{15}",), ["It is we get \\boxed{5}.", "It is so \\boxed{15}."])
    assert [answer for _, answer in whole.values()] == ["5", "15"]
    assert cases_of("This is right.", (), ["It is This is right."]) == {}
    assert set(cases_of("5", (), ["It is 5.", None])) == {"positive"}


@pytest.fixture
def own_data(tmp_path):
    """Problems of the figures task as a custom dataset."""
    load_figures("test", 6).save_to_disk(str(tmp_path / "data"))
    return ["--dataset_name", str(tmp_path / "data"), "--reward_funcs", "cepo.tasks.figures.figures_reward"]


def test_explain_statistics_of_a_custom_dataset(own_data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["explain", "--statistics", *own_data, "--num_prompts=9", "--num_generations=4"]
    assert cli.main([*arguments, "--output", "made/statistics.json"]) == 0
    result = json.loads((tmp_path / "made" / "statistics.json").read_text())
    assert (result["groups"], result["method"]) == (6, "cepo own_or_mixture of 2")  # there are no more rows
    assert 0 < result["correct"] < 1
    printed = capsys.readouterr().out
    for side in ("correct", "incorrect"):
        found = result["evidence"][side]
        assert found["rollouts"] > 0
        assert sum(found[f"evidence_{kind}"]["value"] for kind in get_args(Kind)) == pytest.approx(1)
        assert found["evidence_digit"]["value"] > 0.9  # its answers are numbers
        assert f"{found['abs_mean']['value']:.3f} [" in printed
    followed = result["hint_following"]
    assert followed["positive"]["hinted"]["accuracy"] >= followed["positive"]["unhinted"]["accuracy"]
    assert set(followed["negative"]) == {"hinted", "unhinted"}
    assert max(map(len, printed.splitlines()[1:])) <= 80
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "made"]  # no page


def test_explain_statistics_without_r_minus_and_without_groups(own_data, tmp_path, capsys):
    arguments = ["explain", "--statistics", *own_data, "--num_prompts=3", "--num_generations=4"]
    output = tmp_path / "cscr.json"
    assert cli.main([*arguments, "--show", "cscr", "--output", str(output)]) == 0
    result = json.loads(output.read_text())
    assert "against" not in result["evidence"]["correct"]  # its evidence has no sign
    assert result["hint_following"]["positive"] == {"hinted": None, "unhinted": None}  # its hints state no answer
    assert cli.main([*arguments, "--max_completion_length=4"]) == 1
    assert "no group has both correct and incorrect rollouts" in capsys.readouterr().out


def test_explain_statistics_refuses_data_without_solutions(tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": [{"role": "user", "content": "1 + 1"}]}) + "\n")
    assert cli.main(["explain", "--statistics", "--dataset_name", str(rows)]) == 2
    assert "solution" in capsys.readouterr().err

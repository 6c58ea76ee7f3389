"""Evidence where nobody knows which tokens decide: kinds and places of tokens, and `cepo credit` on any data."""

import json

import numpy as np
import pytest

from cepo import cli, load_figures, policy_path
from cepo.data.loading import load_policy
from cepo.inspection.unlabelled import Read, describe, kind_of, looked_at, places_of


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("7", "digit"),
        (" x2", "digit"),
        (" Then", "word"),
        ("é", "word"),
        (" =", "sign"),
        ("\n\n", "space"),
        ("", "space"),
    ],
)
def test_kinds(text, kind):
    assert kind_of(text) == kind


def test_a_special_token_is_no_word():
    assert kind_of("<|im_end|>", special=True) == "end"


def test_places_by_hand():
    """The answer, 14, is written first behind `=`, and 14 inside of 140 is none."""
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
    assert places_of(texts) == [*["before"] * 6, *["between"] * 7, "box", "box", "after", "after"]


def test_places_where_one_token_holds_the_box_and_more():
    assert places_of(["so \\boxed{7}", "."]) == ["box", "after"]


def test_the_last_whole_box_counts_and_none_is_none():
    assert places_of(["\\boxed{", "3", "}", " or", " \\boxed{", "4", "}", " \\boxed{", "5"])[5] == "box"
    assert places_of(["It", " is", " 5"]) == ["unboxed"] * 3
    assert places_of(["a", "\\boxed{", "}"]) == ["before", "before", "after"]  # an empty box


def read(evidence, kinds, places, *, correct, group=0):
    size = np.array(evidence, dtype=float)
    return Read(size, np.abs(size) > 0, kinds, places, correct, group)


def test_what_is_said_of_evidence_by_hand():
    wrong = read(
        [-3.0, 1.0, 0.005, 0.0],
        ["digit", "word", "word", "end"],
        ["before", "between", "box", "after"],
        correct=False,
    )
    found = describe([wrong], resamples=3)
    assert found["moved"]["value"] == 0.75
    assert found["abs_mean"]["value"] == pytest.approx(4.005 / 4)
    assert found["against"]["value"] == 0.5  # of two tokens that count, one speaks for r+ on a wrong rollout
    assert {place: one["value"] for place, one in found["places"].items()} == {"before": 3, "between": 1, "box": 0.005}
    assert found["kinds"]["digit"]["evidence"]["value"] == pytest.approx(3 / 4.005)
    assert found["kinds"]["word"]["tokens"]["value"] == 0.5
    assert sum(one["evidence"]["value"] for one in found["kinds"].values()) == pytest.approx(1)
    assert found["kinds"]["sign"]["evidence"]["value"] == 0


def test_on_right_rollouts_the_sign_is_the_other_way_and_nothing_is_no_number():
    right = read([-3.0, 1.0, 1.0], ["digit"] * 3, ["unboxed"] * 3, correct=True)
    found = describe([right, right], resamples=3)
    assert found["against"]["value"] == pytest.approx(1 / 3)
    assert found["places"]["box"]["value"] is None
    silent = describe([read([0.0], ["word"], ["before"], correct=True)], resamples=3)
    assert silent["kinds"]["word"]["evidence"]["value"] is None
    assert silent["kinds"]["word"]["tokens"]["value"] == 1


def test_tokens_of_a_real_tokenizer():
    _, processor = load_policy(policy_path())
    ids = processor.tokenizer("= 12. \\boxed{(12, 3)}")["input_ids"]
    kinds, places = looked_at(processor, [*ids, processor.tokenizer.eos_token_id])
    assert len(kinds) == len(places) == len(ids) + 1
    assert kinds[-1] == "end"
    assert "digit" in kinds
    assert places[-1] == "after"
    assert "box" in places


def test_credit_on_data_of_ones_own(tmp_path, capsys):
    """The figures task as if nobody knew it."""
    load_figures("test", 3).save_to_disk(str(tmp_path / "data"))
    arguments = [
        *("credit", "--dataset_name", str(tmp_path / "data"), "--reward_funcs", "cepo.tasks.figures.figures_reward"),
        *("--num_prompts=4", "--num_generations=4", "--resamples=10", "--hints", "plain"),
        *("--hint_template", " It is {answer}."),
        *("--contents", "answer", "--methods", "cepo", "rlsd", "grpo", "--output_dir", str(tmp_path / "out")),
    ]
    assert cli.main(arguments) == 0
    result = json.loads((tmp_path / "out" / "credit.json").read_text())
    rules = {"lowest_reward", "most_common", "own", "mixture", "own_or_mixture", "rlsd"}  # GRPO reads nothing
    assert {row["rule"] for row in result["rows"]} == rules
    assert result["groups"] == 3  # there are no more
    assert 0 < result["right"] < 1
    for row in result["rows"]:
        assert row["places"]["box"]["value"] >= 0
        assert sum(one["evidence"]["value"] for one in row["kinds"].values()) == pytest.approx(1)
    assert [row["name"] for row in result["following"]] == ["answer, plain", "answer, yours", "nothing"]
    printed = capsys.readouterr().out
    assert "how much evidence, and where" in printed
    assert "greedy answers" in printed
    written = (tmp_path / "out" / "credit.md").read_text()
    assert "| rule | rollouts | number | fallback | moved |" in written
    assert not (tmp_path / "out" / "credit.png").exists()


def test_credit_wants_a_wording(capsys):
    assert cli.main(["credit", "--hints"]) == 2
    assert "give a hint_template" in capsys.readouterr().err
    assert cli.main(["credit", "--hint_template", "no place"]) == 2
    assert "{answer}" in capsys.readouterr().err


def test_credit_refuses_data_without_solutions(tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": [{"role": "user", "content": "1 + 1"}]}) + "\n")
    assert cli.main(["credit", "--dataset_name", str(rows)]) == 2
    assert "solution" in capsys.readouterr().err

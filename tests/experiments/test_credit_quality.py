"""Credit quality: measures against scipy and by hand, and the study on four prompts."""

import json
import random
import re

import numpy as np
import pytest
from experiments.erroneous_solutions import work
from experiments.quality import Tokens, WeightedAUROC, measure
from scipy.stats import mannwhitneyu

from cepo.tasks.figures import group_kinds, make_problem
from cepo.tasks.figures.solutions import write_solution
from experiments import credit_quality


def test_auroc_equals_scipys_rank_test():
    draw = np.random.default_rng(0)
    scores, positive = draw.normal(size=200).round(1), draw.random(200) < 0.3
    expected = mannwhitneyu(scores[positive], scores[~positive]).statistic / (positive.sum() * (~positive).sum())
    assert WeightedAUROC(scores, positive)(np.ones(200)) == pytest.approx(expected)


def test_measures_by_hand():
    wrong = Tokens(
        np.array([-2.0, 1.0, 0.1, -0.3]),
        np.array([True, True, False, False]),
        -1,
        np.array([0, 1, 0, 1]),
    )
    found = {name: estimate.value for name, estimate in measure(wrong, resamples=5).items()}
    assert found == {
        "auroc": 1.0,  # both decisive tokens have more evidence than either filler token
        "filler_abs_mean": pytest.approx(0.2),
        "wrong_sign": 0.5,  # on an incorrect rollout evidence for r+ at a decisive token contradicts the verdict
    }


def test_taught_and_other_mistakes():
    rng, mistakes = random.Random(0), 0
    for index in range(200):
        problem = make_problem("train", index)
        row = {"start": problem.start, "labels": problem.labels, "angles": problem.angles, "prompt": [{"content": ""}]}
        for steps, expected in (
            (work(problem, rng, belief_rate=0.6), True),
            ([(problem.start, problem.labels[0] + 1, problem.angles[0] - 1)], False),
        ):
            tokens = re.split(r"(?<=\d)|(?=\d)", write_solution(steps, rng))  # digits alone, words together
            (kinds,) = group_kinds(row, [tokens], [False])
            believed = credit_quality.taught_tokens(row, tokens)
            wrong = [held for held, kind in zip(believed, kinds, strict=True) if kind in ("reading", "arithmetic")]
            assert wrong == [expected] * len(wrong)
            mistakes += len(wrong)
    assert mistakes > 200


def test_study_on_four_prompts(tmp_path):
    arguments = ["--num_prompts=4", "--num_generations=4", "--resamples=10", "--hints", "plain"]
    assert credit_quality.main([*arguments, "--output_dir", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "credit.json").read_text())
    rows = {(row["content"], row["name"], row["rollouts"]): row for row in result["rows"]}
    assert {content for content, _, _ in rows} == set(credit_quality.CONTENTS)
    assert rows["answer", "grpo", "incorrect"]["auroc"]["value"] == 0.5  # no evidence
    assert rows["answer", "cepo own", "incorrect"]["auroc"]["value"] > 0.8
    assert {"answer, default", "suffix, plain", "no hint"} < {row["name"] for row in result["following"]}
    assert "| cepo own_or_mixture of 4 | incorrect |" in (tmp_path / "credit.md").read_text()
    assert (tmp_path / "credit.png").stat().st_size > 10_000

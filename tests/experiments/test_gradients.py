"""Gradient alignment: measures against plain loops, and the study on four batches."""

import json

import numpy as np
import pytest
from experiments.alignment import Cuts, align, products, ratios
from experiments.batch_gradients import leave_one_out, part_names

from experiments import gradients


def plain(found, truth, halves):
    """Alignment, Adam's form, norm and cosine as loops over batches and parameters."""
    batches, size = found.shape
    pairs = [(b, c) for b in range(batches) for c in range(batches) if b != c]
    signal = np.mean([sum(found[b, i] * truth[c, i] for i in range(size)) for b, c in pairs])
    own = np.mean([sum(found[b, i] * found[c, i] for i in range(size)) for b, c in pairs])
    true = np.mean([sum(truth[b, i] * truth[c, i] for i in range(size)) for b, c in pairs])
    norm = np.sqrt(np.mean([sum(g * g for g in row) for row in found]))
    adam = []
    for cut in halves:
        for first, second in (cut, cut[::-1]):
            total = 0.0
            for i in range(size):
                mean = np.mean([found[b, i] for b in first])
                square = np.mean([found[b, i] ** 2 for b in first])
                total += mean / (np.sqrt(square) + 1e-8) * np.mean([truth[b, i] for b in second])
            adam.append(total)
    return signal / norm, np.mean(adam), norm, signal / np.sqrt(own * true)


def test_measures_equal_plain_loops():
    rng = np.random.default_rng(0)
    middle, bias = rng.normal(size=7), rng.normal(size=7)
    truth = (middle + 0.2 * rng.normal(size=(6, 7))).astype(np.float32)
    found = (0.7 * middle + bias + 0.2 * rng.normal(size=(6, 7))).astype(np.float32)
    halves = [([0, 1, 2], [3, 4, 5]), ([0, 3, 4], [1, 2, 5])]
    cuts = Cuts.of(6, halves)
    of_truth = products(truth, truth, cuts)
    own = align(products(found, truth, cuts), of_truth, cuts)
    alignment, adam, norm, cosine = plain(found, truth, halves)
    assert (own.alignment[0], own.adam[0], own.norm[0]) == pytest.approx((alignment, adam, norm), rel=1e-4)
    assert np.cos(np.radians(own.angle[0])) == pytest.approx(cosine, rel=1e-4)
    tripled = ratios(align(products(3 * truth, truth, cuts), of_truth, cuts), align(of_truth, of_truth, cuts))
    assert [tripled[measure].value for measure in ("alignment", "adam", "norm")] == pytest.approx([1, 1, 3], rel=1e-4)


def test_study_on_four_batches(tmp_path, capsys):
    config = tmp_path / "arms.yaml"
    config.write_text(
        "arms:\n  control: {negative_advantage_weight: 0.05}\n  opsd: {method: opsd}\n"
        "  mistakes: {method: oracle, evidence_coefficient: 1.0, only_mistakes: true}\n"
        "against: [control]\n"
    )
    small = ["--num_batches=4", "--num_prompts=2", "--num_generations=4", "--max_completion_length=100"]
    arguments = [*small, "--config", str(config), "--output_dir", str(tmp_path / "out")]
    assert gradients.main(arguments) == 0
    result = json.loads((tmp_path / "out" / "gradients.json").read_text())
    assert [row["name"] for row in result["rows"]] == ["grpo", "control", "opsd", "mistakes"]
    assert result["rows"][0]["norm"]["value"] == 1.0
    for row in result["rows"]:
        norms = [one["absolute"]["norm"]["value"] for one in (row, result["rows"][1])]
        assert row["against"]["control"]["norm"]["value"] == pytest.approx(norms[0] / norms[1])
    # The parts add up to GRPO's gradient.
    assert sum(part["signal"]["value"] for part in result["parts"]) == pytest.approx(1, rel=1e-3)
    assert {(part["verdict"], part["kind"]) for part in result["parts"]} <= set(part_names())
    files = ["gradients.json", "gradients.md", "gradients.png"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == files
    assert gradients.main([*arguments, "--num_batches=3"]) == 2
    assert "num_batches" in capsys.readouterr().err


def test_true_gradient_has_a_leave_one_out_baseline():
    from cepo.references.groups import Group, Rollout

    attempts = [
        Rollout("1", reward, correct) for reward, correct in ((1.0, True), (0.0, False), (0.0, False), (0.0, None))
    ]
    assert leave_one_out([Group([], "1", attempts)]).tolist() == [1.0, -0.5, -0.5, 0.0]

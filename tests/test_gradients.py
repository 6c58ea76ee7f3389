"""Gradients of every placement: against plain loops on a small model, and the real command."""

import json
from functools import partial

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cepo import cli
from cepo.inspection.gradients import batch_gradients, leave_one_out, part_names
from cepo.inspection.inspect import Variant
from cepo.methods.options import MethodOptions
from cepo.references.groups import Attempt, Group, Rollout
from cepo.scoring.pipeline import Pipeline, completions_of, place
from cepo.scoring.score import evaluating


@pytest.fixture(scope="module")
def model(text_model_path):
    torch.manual_seed(3)
    return AutoModelForCausalLM.from_pretrained(text_model_path).eval()


@pytest.fixture(scope="module")
def tokenizer(text_model_path):
    return AutoTokenizer.from_pretrained(text_model_path)


def group_of(tokenizer, row, texts, rewards, advantages, number):
    attempts = [
        Attempt(text.rpartition(" ")[2], reward, reward > 0.5, text)
        for text, reward in zip(texts, rewards, strict=True)
    ]
    rollouts = [
        Rollout(tuple(tokenizer(text).input_ids), advantage) for text, advantage in zip(texts, advantages, strict=True)
    ]
    return Group(row["prompt"], row["solution"], attempts, rollouts, row=row, number=number)


@pytest.fixture(scope="module")
def groups(tokenizer, text_figures):
    first, second = text_figures[0], text_figures[1]
    answer = first["labels"][0]
    return [
        group_of(
            tokenizer,
            first,
            [f"Now {first['start']} and {answer} leave 71", "So 12 and 34 leave 56 57", "we get 9"],
            [1.0, 0.0, 0.0],
            [1.1, -0.6, -0.5],
            0,
        ),
        group_of(tokenizer, second, ["the answer is 4", "in order 5"], [0.0, 0.0], [0.0, 0.0], 1),
    ]


def plain_gradient(model, groups, prompts, weights, parameters):
    """The gradient of sum_t weight_t log P(y_t), a rollout at a time, in float64."""
    model = model.double()
    total, row = torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64), 0
    for group, prompt in zip(groups, prompts, strict=True):
        for rollout in group.rollouts:
            ids = torch.tensor([[*prompt.ids, *rollout.ids]])
            logps = model(input_ids=ids).logits[0].log_softmax(-1)
            value = sum(
                weights[row, t].double() * logps[len(prompt.ids) + t - 1, token] for t, token in enumerate(rollout.ids)
            )
            total += torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters)])
            row += 1
    model.float()
    return total


def test_gradients_are_those_of_plain_loops(model, tokenizer, groups):
    pipeline = Pipeline.of(model, tokenizer, max_tokens=4096)
    variants = [
        Variant("grpo", MethodOptions(method="grpo")),
        Variant("control", MethodOptions(method="grpo", negative_advantage_weight=0.05)),
        Variant("cepo", MethodOptions(method="cepo", evidence_coefficient=1.0, evidence_clip=0.9)),
        Variant("oracle", MethodOptions(method="oracle", evidence_coefficient=1.0)),
    ]
    parameters = list(model.parameters())
    found = batch_gradients(model, pipeline, groups, variants, parameters, temperature=1.0, max_tokens=40)
    prompts = [pipeline.encoder.prompt(group.messages) for group in groups]
    completions = completions_of(groups)
    mask = completions.wanted
    with evaluating(model):
        evidence = pipeline.find_evidence([v.options for v in variants], groups, prompts, completions)
    check = partial(plain_gradient, model, groups, prompts, parameters=parameters)
    for variant, gradient, one in zip(variants, found.placements, evidence, strict=True):
        weights = place(one, variant.options, groups, mask, 0).in_loss
        expected = check(weights) / mask.sum()
        assert gradient.double() == pytest.approx(expected, abs=2e-5 * expected.abs().max().item()), variant.name
    assert not torch.allclose(found.placements[0], found.placements[2])
    # The truth: rewards against the mean of the others, 1 - 0, 0 - 1/2 and 0 - 1/2.
    assert leave_one_out(groups).tolist() == [1.0, -0.5, -0.5, 0.0, 0.0]
    expected = check(leave_one_out(groups).unsqueeze(-1) * mask) / len(mask)
    assert found.truth.double() == pytest.approx(expected, abs=2e-5 * expected.abs().max().item())
    # Kinds of tokens cut GRPO's gradient into parts.
    assert len(found.parts) == len(part_names()) == 8
    assert torch.stack(found.parts).sum(0) == pytest.approx(found.placements[0], abs=1e-6)
    assert sum(found.tokens) == sum(len(rollout.ids) for rollout in groups[0].rollouts)


def test_distillation_goes_down_its_divergence(model, tokenizer, groups):
    """A step along the gradient brings the policy nearer to its teacher, which is another matter than reward."""
    pipeline = Pipeline.of(model, tokenizer, max_tokens=4096)
    variants = [
        Variant("grpo", MethodOptions(method="grpo")),
        Variant("opsd", MethodOptions(method="opsd", divergence_beta=0.0, positive_content="answer")),
        Variant("sampled", MethodOptions(method="opsd", divergence="sampled", positive_content="answer")),
    ]
    parameters = list(model.parameters())
    found = batch_gradients(model, pipeline, groups, variants, parameters, temperature=1.0, max_tokens=4096)
    gradient = found.placements[1]
    prompts = [pipeline.encoder.prompt(group.messages) for group in groups]
    hinted = pipeline.hinted(groups, prompts)
    contexts = pipeline.plan(variants[1].options, groups).contexts

    def logps(prompt_ids, ids):
        return model(input_ids=torch.tensor([[*prompt_ids, *ids]])).logits[0, len(prompt_ids) - 1 : -1].log_softmax(-1)

    total, tokens, row = 0.0, 0, 0
    for index, group in enumerate(groups):
        for rollout in group.rollouts:
            teacher = logps(hinted(index, contexts[row][0]), rollout.ids).detach()
            student = logps(prompts[index].ids, rollout.ids)
            total = total - (teacher.exp() * (teacher - student)).sum()
            tokens, row = tokens + len(rollout.ids), row + 1
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(total / tokens, parameters)])
    assert gradient == pytest.approx(expected, abs=1e-4 * expected.abs().max().item())
    assert not torch.allclose(gradient, found.placements[2])


SMALL = ["--num_batches=4", "--num_prompts=2", "--num_generations=4", "--max_completion_length=100"]


def test_the_command_leaves_a_table_a_picture_and_numbers(tmp_path, capsys):
    config = tmp_path / "placements.yaml"
    config.write_text(
        "placements:\n  control: {negative_advantage_weight: 0.05}\n  cepo paper: {preset: paper}\n"
        "  mistakes: {method: oracle, evidence_coefficient: 1.0, method_kwargs: {only_mistakes: true}}\n"
        "against: [control, grpo]\n"
    )
    folder = tmp_path / "out"
    arguments = ["gradients", *SMALL, "--config", str(config), "--output_dir", str(folder)]
    assert cli.main(arguments) == 0
    result = json.loads((folder / "gradients.json").read_text())
    assert [row["name"] for row in result["rows"]] == ["grpo", "control", "cepo paper", "mistakes"]
    for row in result["rows"]:
        assert row["norm"]["low"] <= row["norm"]["value"] <= row["norm"]["high"]
        # Few batches: GRPO's own alignment may not be told from none, and then nothing is a ratio to it.
        known = result["rows"][0]["absolute"]["alignment"]["low"] > 0
        assert (row["alignment"]["value"] is not None) == known
    assert result["rows"][0]["norm"]["value"] == 1.0
    # Beside GRPO, all are held against the control.
    for row in result["rows"]:
        assert set(row["against"]) == {"control"}
        absolute, control = (one["absolute"]["norm"]["value"] for one in (row, result["rows"][1]))
        assert row["against"]["control"]["norm"]["value"] == pytest.approx(absolute / control)
    own = result["rows"][1]["against"]["control"]["norm"]
    assert (own["low"], own["value"], own["high"]) == pytest.approx((1, 1, 1))
    assert "| ratios to control | alignment |" in (folder / "gradients.md").read_text()
    assert result["placements"]["cepo paper"]["negative_reference"] == "lowest_reward"
    assert sum(part["signal"]["value"] for part in result["parts"]) == pytest.approx(1, rel=1e-3)
    assert (folder / "gradients.png").read_bytes().startswith(b"\x89PNG")
    assert "| mistakes |" in (folder / "gradients.md").read_text()
    assert sorted(path.name for path in folder.iterdir()) == ["gradients.json", "gradients.md", "gradients.png"]
    printed = capsys.readouterr().out
    assert "where GRPO's gradient is" in printed
    assert "ratios to control, 95 % intervals" in printed
    assert max(map(len, printed.splitlines()[1:30])) <= 80


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--num_batches=3"], "num_batches: halves of the batches"),
        (["--num_generations=1"], "num_generations: a group of one rollout"),
        (["--temperature=0"], "temperature: greedy answers have no policy gradient"),
        (["--parameters=nonesuch"], "no trained parameter has 'nonesuch' in its name"),
        (["--parameters=("], "is no regular expression"),
        (["--config=nonesuch.yaml"], "--config: there is no such file"),
    ],
)
def test_mistakes_are_named(arguments, said, capsys):
    assert cli.main(["gradients", *SMALL, *arguments]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("arms: {}", "must hold `placements`"),
        ("placements: {one: {method: nonesuch}}", "placement 'one': unknown method 'nonesuch'"),
        ("placements: {one: {method: grpo, evidence_clip: 0.5}}", "placement 'one': method='grpo' does not read"),
        ("placements: {one: {lambda: 0.5}}", "placement 'one': "),
        ("placements: {one: {method: cepo}}\nagainst: [two]", "against: there is no placement 'two', only one"),
        ("placements: {one: {method: cepo}}\nagainst: one", "against must be a list of placements, not 'one'"),
        ("placements: {one: {preset: nonesuch}}", "placement 'one': unknown preset"),
        ("placements: {grpo: {negative_advantage_weight: 0.5}}", "placement 'grpo': that is what all are held against"),
        (
            "placements: {one: {method: opsd, negative_advantage_weight: 0.5}}",
            "placement 'one': method='opsd' does not read advantages, so that negative_advantage_weight would do",
        ),
    ],
)
def test_mistakes_in_the_file_are_named(text, said, tmp_path, capsys):
    config = tmp_path / "placements.yaml"
    config.write_text(text)
    assert cli.main(["gradients", *SMALL, "--config", str(config)]) == 2
    assert said in capsys.readouterr().err

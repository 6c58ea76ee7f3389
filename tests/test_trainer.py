"""The real `CEPOTrainer` on small real models."""

import re
from dataclasses import fields

import pytest
import torch
from peft import LoraConfig
from torch.testing import assert_close
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import GRPOConfig, GRPOTrainer
from trl.rewards import accuracy_reward

import cepo.fast.tree_forward
import cepo.methods.stages
import cepo.scoring.forward
import cepo.trainer.cepo_trainer
from cepo import CEPOConfig, CEPOTrainer, References, policy_path, reference_answer
from cepo.methods import METHODS
from cepo.scoring.forward import evaluating
from cepo.scoring.pipeline import Pipeline
from tests.support.methods import needed_by
from tests.support.training import QUICK, half_right, letters, logged, train, weights_of, wrong_answers

LOSSES = ["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo"]


def test_grpo_is_bit_identical_to_trl(tmp_path, task):
    dataset, model = task
    options = {"max_steps": 3, "epsilon_high": 0.28}
    reference = train(tmp_path, dataset, model, trainer_class=GRPOTrainer, **options)
    found = train(tmp_path, dataset, model, method="grpo", shared_prompt_update="never", **options)
    assert logged(reference, "grad_norm") != [0.0] * 3
    for key in ("loss", "reward", "grad_norm", "entropy"):
        assert logged(found, key) == logged(reference, key)
    for name, weight in weights_of(reference).items():
        assert torch.equal(weight, weights_of(found)[name])


def test_cepo_with_equal_references_is_bit_identical_to_grpo(tmp_path, task, monkeypatch):
    dataset, model = task
    monkeypatch.setattr(
        cepo.methods.stages,
        "choose_references",
        lambda rollouts, solution, **_: [References(solution, (solution,))] * len(rollouts),
    )
    grpo = train(tmp_path, dataset, model, method="grpo")
    same = train(tmp_path, dataset, model, method="cepo")
    assert all(share > 0 for share in logged(same, "cepo/rows_scored"))
    assert logged(same, "cepo/evidence/incorrect_std") == [0.0, 0.0]
    for name, weight in weights_of(grpo).items():
        assert torch.equal(weight, weights_of(same)[name])


@pytest.mark.parametrize("method", ["cepo", "rlsd"])
@pytest.mark.parametrize("lora", [False, True])
def test_teachers_change_the_update(tmp_path, task, method, lora, monkeypatch, text_figures):
    """Real steps, VLM and text-only, with and without LoRA, whose dropout is off while teachers score."""
    wrong_answers(monkeypatch)
    dataset, model = task
    peft_config = LoraConfig(r=4, lora_dropout=0.3, target_modules=["q_proj", "v_proj"]) if lora else None
    seen = []
    score = Pipeline.score

    def spy(*args):
        first, second = score(*args), score(*args)
        seen.append((first, second))
        return first

    monkeypatch.setattr(Pipeline, "score", spy)
    placed = train(tmp_path, dataset, model, half_right, method=method, peft_config=peft_config)
    assert seen
    for first, second in seen:
        assert_close(first, second, equal_nan=True)  # no dropout
    assert all(0 < share <= 1 for share in logged(placed, "cepo/rows_scored"))
    assert all(value > 0 for value in logged(placed, "cepo/evidence/incorrect_std"))
    if dataset.column_names == text_figures.column_names:  # the quicker of the two
        uniform = train(tmp_path, dataset, model, half_right, method="grpo", peft_config=peft_config)
        differs = [not torch.equal(weight, weights_of(uniform)[name]) for name, weight in weights_of(placed).items()]
        assert any(differs)


def test_token_advantages_reach_the_loss(tmp_path, figures, monkeypatch, loss_inputs):
    """TRL's loss gets A_t on the completion, and 0 after it."""
    wrong_answers(monkeypatch)
    train(tmp_path, figures, reward=half_right, max_steps=1, evidence_clip=0.2)
    (batch,) = loss_inputs
    assert batch["advantages"].shape == batch["completion_ids"].shape
    mask = batch["completion_mask"].bool()
    assert (batch["advantages"][~mask] == 0).all()
    for row, kept in zip(batch["advantages"], mask, strict=True):
        values = row[kept]
        assert (values >= 0).all() or (values <= 0).all()  # direction anchoring, end to end
        if (values != 0).any():
            assert values.abs().max() / values.abs().min() <= (1 + 0.5 * 0.2) / (1 - 0.5 * 0.2) + 1e-5
            assert values.unique().numel() > 1


def test_lambda_follows_the_optimizer_step_with_reused_rollouts(
    tmp_path, text_figures, text_model_path, monkeypatch, loss_inputs
):
    """Two updates from one generation batch: the same evidence, each with its own lambda."""
    wrong_answers(monkeypatch)
    options = {"num_iterations": 2, "max_steps": 4, "evidence_steps": 3, "evidence_clip": 0.9}
    trainer = train(tmp_path, text_figures, text_model_path, half_right, **options)
    assert logged(trainer, "cepo/coefficient") == pytest.approx([0.5, 1 / 3, 1 / 6, 0.0])
    first, second, _, last = (batch["advantages"] for batch in loss_inputs)
    assert last.dim() == 1
    order = loss_inputs[0]["evidence"]
    assert torch.equal(order, loss_inputs[1]["evidence"])
    scored = loss_inputs[0]["completion_mask"].bool() & (order != 0) & (first != 0)
    assert scored.any()
    # A_t - A is proportional to lambda: (first - A) / 0.5 = (second - A) / (1/3), so A = 3 second - 2 first.
    uniform = (3 * second - 2 * first)[scored]
    row = scored.nonzero()[0, 0]
    same_row = scored.nonzero()[:, 0] == row
    assert_close(uniform[same_row], uniform[same_row][:1].expand(int(same_row.sum())), atol=1e-5, rtol=1e-4)


def test_evidence_stays_with_its_rollout(tmp_path, text_figures, text_model_path, monkeypatch, loss_inputs):
    """TRL shuffles the generation batch and splits it."""
    wrong_answers(monkeypatch)
    monkeypatch.setattr(Pipeline, "score", _score_of_first_tokens)
    train(
        tmp_path,
        text_figures,
        text_model_path,
        half_right,
        max_steps=1,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
    )
    assert len(loss_inputs) == 2
    for batch in loss_inputs:
        expected = batch["completion_ids"][:, :1] / 1000 * batch["completion_mask"]
        assert_close(batch["evidence"], expected)


def _score_of_first_tokens(self, contexts, groups, *rest):
    """Evidence that identifies its rollout: the first token, in thousandths."""
    rollouts = [rollout.ids for group in groups for rollout in group.local]
    return [
        {context: torch.full((len(ids),), 0.0 if place else ids[0] / 1000) for place, context in enumerate(of_rollout)}
        for ids, of_rollout in zip(rollouts, contexts, strict=True)
    ]


def test_lambda_decays_and_no_teacher_runs_at_0(tmp_path, figures, monkeypatch):
    wrong_answers(monkeypatch)
    calls = []
    score = Pipeline.score
    monkeypatch.setattr(Pipeline, "score", lambda *args: calls.append(1) or score(*args))
    trainer = train(tmp_path, figures, reward=half_right, max_steps=4, evidence_steps=2)
    assert logged(trainer, "cepo/coefficient") == [0.5, 0.25, 0.0, 0.0]
    assert len(calls) == 2
    assert logged(trainer, "cepo/rows_scored")[2:] == [0.0, 0.0]


def test_zero_variance_groups_are_not_scored(tmp_path, figures, monkeypatch):
    """One of two groups has equal rewards."""
    wrong_answers(monkeypatch)
    tables = []
    score = Pipeline.score
    monkeypatch.setattr(
        Pipeline, "score", lambda self, contexts, *args: tables.append(contexts) or score(self, contexts, *args)
    )

    def half(completions, **kwargs):
        return [0.0] * 4 + [0.0, 1.0, 0.0, 1.0]

    trainer = train(tmp_path, figures, reward=half, max_steps=1, negative_reference="lowest_reward")
    (table,) = tables
    assert [len(contexts) for contexts in table] == [0] * 4 + [2] * 4
    assert logged(trainer, "cepo/rows_scored") == [0.5]


def test_hints_end_the_last_user_turn(tmp_path, figures, monkeypatch):
    wrong_answers(monkeypatch)
    seen = []
    log_probs = cepo.scoring.forward.Scorer.log_probs
    monkeypatch.setattr(
        cepo.scoring.forward.Scorer,
        "log_probs",
        lambda self, prompts, requests, **options: (
            seen.extend(requests) or log_probs(self, prompts, requests, **options)
        ),
    )
    options = {"hint_template": " <{answer}>", "negative_reference": "lowest_reward"}
    trainer = train(tmp_path, figures, reward=half_right, max_steps=1, **options)
    tokenizer = trainer.processing_class.tokenizer
    hints = [re.search(r" <([^<>]*)>$", _last_turn(tokenizer.decode(request.context)))[1] for request in seen]
    solutions = {reference_answer(row["solution"]) for row in figures}
    positive = [hint for hint in hints if hint in solutions]
    assert len(positive) == len(hints) / 2 > 0
    assert all(hint.isdigit() for hint in hints if hint not in solutions)  # `wrong_answers`: lengths
    image = trainer.model.config.image_token_id
    assert all(ids.count(image) > 1 for ids in (request.context for request in seen))


def _last_turn(text):
    *_, turn, header = text.split("<|im_start|>")
    assert header == "assistant\n"
    return turn.removesuffix("<|im_end|>\n")


def test_unhinted_scores_are_trls_log_probs(tmp_path, task, monkeypatch):
    """P_S of a scoring pass equals the log-probs that TRL computes for its ratio."""
    dataset, model = task
    seen = []

    score = Pipeline.score

    def noted(self, contexts, groups, prompts, student):
        found = score(self, contexts, groups, prompts)
        seen.append(found)
        return found

    monkeypatch.setattr(Pipeline, "score", noted)

    class Spy(CEPOTrainer):
        def _find_evidence(self, batch):
            share = super()._find_evidence(batch)
            fields = ("pixel_values", "image_grid_thw", "num_images", "mm_token_type_ids")
            with evaluating(self.model):
                expected, _, _ = self._get_per_token_logps_and_entropies(
                    self.model,
                    torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1),
                    torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1),
                    batch["completion_ids"].shape[1],
                    **{field: batch.get(field) for field in fields},
                )
            seen[-1] = (seen[-1], expected, batch["completion_mask"].bool())
            return share

    options = QUICK | {"max_steps": 1, "method": "rlsd", "temperature": 0.7}
    Spy(model, half_right, CEPOConfig(output_dir=str(tmp_path), **options), dataset).train()
    (found, expected, mask), *_ = seen
    for row, of_rollout in enumerate(found):
        positive, student = of_rollout.values()  # r+, then the student
        assert_close(student, expected[row, mask[row]], atol=1e-5, rtol=1e-4)
        assert not torch.allclose(positive, student, atol=1e-3)


@pytest.mark.parametrize(("fallback", "scored"), [("student", 1.0), ("uniform", 0.0)])
def test_without_an_incorrect_answer(tmp_path, figures, monkeypatch, fallback, scored):
    """`student` compares with P_S (RLSD), `uniform` keeps GRPO's advantage."""
    monkeypatch.setattr(cepo.trainer.cepo_trainer, "final_answer", lambda text, extractor: None)
    trainer = train(tmp_path, figures, reward=half_right, max_steps=1, missing_negative=fallback)
    assert logged(trainer, "cepo/rows_scored") == [scored]
    assert logged(trainer, "cepo/fallback/no_incorrect_answer") == [1.0]
    other = train(tmp_path, figures, reward=half_right, max_steps=1, method="rlsd" if fallback == "student" else "grpo")
    for name, weight in weights_of(other).items():
        assert_close(weights_of(trainer)[name], weight)


def test_health_warnings_appear_once(tmp_path, figures, monkeypatch, caplog):
    """No extractable answer; and no verdict on three rollouts in four."""
    monkeypatch.setattr(cepo.trainer.cepo_trainer, "final_answer", lambda text, extractor: None)

    def mostly_silent(completions, **kwargs):
        return [None if place % 4 else float(place % 8 == 0) for place in range(len(completions))]

    train(tmp_path / "silent", figures, reward=mostly_silent, max_steps=5, method="grpo")
    (missing,) = [record.getMessage() for record in caplog.records if "cepo/verdicts/missing" in record.getMessage()]
    assert "3 times in a row, now 75 % of rollouts have no verdict" in missing
    caplog.clear()
    trainer = train(tmp_path / "unread", figures, reward=half_right, max_steps=5)
    assert logged(trainer, "cepo/verdicts/missing") == [0.0] * 5
    (unread,) = [record.getMessage() for record in caplog.records if "no_incorrect_answer" in record.getMessage()]
    assert "answer_extractor" in unread
    caplog.clear()
    train(tmp_path / "short", figures, reward=half_right, max_steps=2)
    assert not [record for record in caplog.records if "no_incorrect_answer" in record.getMessage()]


def test_answer_extractor_is_used_for_completions_and_solutions(tmp_path, figures):
    trainer = train(tmp_path, figures, reward=half_right, max_steps=1, answer_extractor=f"{__name__}:first_letter")
    assert logged(trainer, "cepo/rows_scored")[0] > 0
    assert EXTRACTED
    assert all(EXTRACTED)
    with pytest.raises(ValueError, match="unknown extractor 'nosuch'"):
        CEPOConfig(output_dir=str(tmp_path), bf16=False, answer_extractor="nosuch")


EXTRACTED: list[str] = []


def first_letter(text):
    EXTRACTED.append(text)
    return text.strip()[:1] or None


def test_correctness_reward_decides_the_verdicts(tmp_path, figures, monkeypatch):
    """A correct rollout with a low reward for its format never serves as r-."""
    wrong_answers(monkeypatch)
    groups = []
    choose = cepo.methods.stages.choose_references
    monkeypatch.setattr(
        cepo.methods.stages,
        "choose_references",
        lambda rollouts, *args, **kwargs: groups.append(rollouts) or choose(rollouts, *args, **kwargs),
    )

    def form(completions, **kwargs):
        return [1.0, -2.0] * (len(completions) // 2)

    train(
        tmp_path,
        figures,
        reward=[form, half_right],
        max_steps=1,
        correctness_reward="half_right",
        correctness_threshold=0.7,
    )
    assert [(rollout.correct, rollout.reward) for rollout in groups[0]] == [(False, 1.0), (True, -1.0)] * 2


def test_an_unknown_correctness_reward_is_refused(tmp_path, figures):
    args = CEPOConfig(output_dir=str(tmp_path), correctness_reward="judge", **QUICK)
    with pytest.raises(ValueError, match=r"judge.*letters"):
        CEPOTrainer(policy_path(), letters, args, figures)


def test_evaluation_runs_no_teacher(tmp_path, figures, monkeypatch):
    monkeypatch.setattr(Pipeline, "score", lambda *args: pytest.fail("a teacher ran"))
    args = CEPOConfig(output_dir=str(tmp_path), per_device_eval_batch_size=4, **QUICK)
    trainer = CEPOTrainer(policy_path(), half_right, args, figures, eval_dataset=figures.select(range(2)))
    assert "eval_reward" in trainer.evaluate()


@pytest.mark.parametrize("loss_type", LOSSES)
def test_every_loss_of_trl_takes_token_advantages(tmp_path, text_figures, text_model_path, loss_type, loss_inputs):
    """The loss of equal (B, T) token advantages is that of the (B,) advantages."""
    options = QUICK | {"max_steps": 1, "loss_type": loss_type, "method": "grpo"}
    trainer = CEPOTrainer(text_model_path, letters, CEPOConfig(output_dir=str(tmp_path), **options), text_figures)
    trainer.train()
    batch = loss_inputs[0]
    mask = batch["completion_mask"]

    def loss_of(advantages):
        return trainer._compute_loss(trainer.model, {**batch, "advantages": advantages})

    uniform = batch["advantages"].unsqueeze(1) * mask
    assert_close(loss_of(uniform), loss_of(batch["advantages"]))
    shifted = uniform.clone()
    shifted[0, 0] += 0.5
    assert not torch.allclose(loss_of(shifted), loss_of(uniform), rtol=1e-6, atol=1e-9)


def every_other_group(completions, **kwargs):
    """Groups of four: even ones have zero variance, odd ones are mixed."""
    return [1.0 if row // 4 % 2 == 0 else float(row % 2) for row in range(len(completions))]


@pytest.mark.parametrize("loss_type", LOSSES)
def test_skipped_rows_do_not_change_the_gradient(
    tmp_path, text_figures, text_model_path, loss_type, loss_inputs, monkeypatch
):
    """Half of the rows have no advantage, and one has no tokens."""
    wrong_answers(monkeypatch)
    options = QUICK | {"max_steps": 1, "loss_type": loss_type}
    args = CEPOConfig(output_dir=str(tmp_path), **options)
    trainer = CEPOTrainer(text_model_path, every_other_group, args, text_figures)
    trainer.train()
    batch = dict(trainer._buffered_inputs[0])
    # Ratios away from 1 and completions of different lengths, as later updates see them.
    torch.manual_seed(0)
    lengths = torch.tensor([3, 9, 5, 2, 7, 9, 1, 4])
    batch["completion_mask"] = (torch.arange(16) < lengths.unsqueeze(1)).long()
    batch["completion_mask"][batch["advantages"].nonzero()[0, 0]] = 0
    batch["old_per_token_logps"] = -3 + 0.3 * torch.randn(8, 16)
    batch["num_items_in_batch"] = batch["completion_mask"].sum()
    rows = []
    compute_loss = GRPOTrainer._compute_loss
    monkeypatch.setattr(
        GRPOTrainer,
        "_compute_loss",
        lambda self, model, inputs: rows.append(inputs["completion_ids"].shape) or compute_loss(self, model, inputs),
    )

    def gradients(skips):
        trainer._skips = skips
        trainer.model.zero_grad()
        loss = trainer._compute_loss(trainer.model, batch)
        loss.backward()
        return loss.detach(), {name: p.grad.clone() for name, p in trainer.model.named_parameters()}

    trainer.model.train()
    (loss, without), (whole_loss, whole) = gradients(True), gradients(False)
    assert rows == [(3, 9), (8, 16)]
    assert_close(loss, whole_loss)
    largest = max(gradient.abs().max().item() for gradient in whole.values())
    assert largest > 0
    for name, gradient in whole.items():
        assert_close(without[name], gradient, atol=1e-5 * largest, rtol=1e-4)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_skipping_rows_gives_the_same_weights(tmp_path, figures, accumulate, loss_inputs):
    """Images are skipped with their rows; some micro-batches have no row left."""
    options = {
        "reward": every_other_group,
        "method": "grpo",
        "max_steps": 3,
        "per_device_train_batch_size": 8 // accumulate,
        "gradient_accumulation_steps": accumulate,
        "num_generations": 4,
        "optim": "sgd",  # Adam would amplify the rounding of small gradients
        "learning_rate": 0.1,
        "loss_type": "grpo",
    }
    whole = train(tmp_path, figures, **options)
    assert {len(batch["advantages"]) for batch in loss_inputs} == {8 // accumulate}
    loss_inputs.clear()
    less = train(tmp_path, figures, skip_zero_advantage=True, **options)
    assert sum(len(batch["advantages"]) for batch in loss_inputs) == 3 * 4
    assert all(sum(batch["num_images"]) == len(batch["advantages"]) for batch in loss_inputs)
    assert logged(less, "loss") == pytest.approx(logged(whole, "loss"), abs=1e-6)
    assert logged(less, "grad_norm") == pytest.approx(logged(whole, "grad_norm"), rel=1e-4)
    for name, weight in weights_of(whole).items():
        assert_close(weights_of(less)[name], weight, atol=1e-5, rtol=1e-3)


def test_momentum_moves_the_policy_in_a_step_without_advantages(tmp_path, text_figures, text_model_path, loss_inputs):
    """A step without rows has zero gradients, as GRPO has."""
    steps = iter([True, False, False] * 2)

    def first_step_only(completions, **kwargs):
        return half_right(completions) if next(steps) else [0.0] * len(completions)

    options = {"reward": first_step_only, "method": "grpo", "max_steps": 3, "optim": "adamw_torch"}
    whole = train(tmp_path, text_figures, text_model_path, **options)
    loss_inputs.clear()
    less = train(tmp_path, text_figures, text_model_path, skip_zero_advantage=True, **options)
    assert len(loss_inputs) == 1
    start = weights_of(
        train(tmp_path, text_figures, text_model_path, **(options | {"reward": half_right, "max_steps": 1}))
    )
    for name, weight in weights_of(whole).items():
        assert_close(weights_of(less)[name], weight, atol=1e-6, rtol=1e-5)
        assert not torch.equal(weight, start[name])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"beta": 0.1}, "beta=0.1"),
        ({"entropy_coef": 0.01}, "entropy bonus"),
        ({"top_entropy_quantile": 0.5}, "top_entropy_quantile=0.5"),
        ({"method": "opsd"}, "method='opsd' trains on every rollout"),
        ({"method": "sdpo", "divergence": "sampled"}, "method='sdpo' trains on every rollout"),
    ],
)
def test_rollouts_are_not_skipped_if_that_changes_the_gradient(tmp_path, text_figures, text_model_path, options, named):
    def trainer(**more):
        args = CEPOConfig(output_dir=str(tmp_path), **(QUICK | options | more))
        return CEPOTrainer(text_model_path, letters, args, text_figures)

    with pytest.raises(ValueError, match=f"skip_zero_advantage.*{named}"):
        trainer(skip_zero_advantage=True)
    assert not trainer()._skips


def test_skipping_is_the_default_except_for_grpo(tmp_path, text_figures, text_model_path):
    for method, expected in (("cepo", True), ("rlsd", True), ("grpo", False)):
        args = CEPOConfig(output_dir=str(tmp_path), method=method, **QUICK)
        assert CEPOTrainer(text_model_path, letters, args, text_figures)._skips is expected


@pytest.mark.parametrize("method", ["cepo", "rlsd"])
def test_shared_prompts_give_the_same_token_advantages(tmp_path, task, method, monkeypatch, loss_inputs):
    wrong_answers(monkeypatch)
    dataset, model = task
    options = {"reward": half_right, "method": method, "max_steps": 1}
    train(tmp_path, dataset, model, shared_prompt="always", **options)
    train(tmp_path, dataset, model, shared_prompt="never", **options)
    train(tmp_path, dataset, model, teacher_batch_tokens=1, **options)
    first, *others = (batch["evidence"] for batch in loss_inputs)
    assert first.abs().max() > 1e-3
    for other in others:
        assert_close(other, first, atol=2e-5, rtol=1e-4)


def test_a_model_that_cannot_share_prompts_warns_once(tmp_path, text_figures, text_model_path, monkeypatch, caplog):
    wrong_answers(monkeypatch)
    monkeypatch.setattr(cepo.fast.tree_forward, "trial_reason", lambda *args: "it forgets")
    calls = []
    monkeypatch.setattr(cepo.fast.tree_forward.TreeForward, "log_probs", lambda *args: pytest.fail("shared"))
    whole = cepo.scoring.forward.FullForward.log_probs
    monkeypatch.setattr(cepo.scoring.forward.FullForward, "log_probs", lambda *args: calls.append(1) or whole(*args))
    train(tmp_path, text_figures, text_model_path, half_right)
    assert len(calls) == 2
    assert [record.message for record in caplog.records if "it forgets" in record.message] != []
    assert sum("it forgets" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_log_probs_of_the_student_are_computed_once(tmp_path, text_figures, text_model_path, monkeypatch, dropout):
    """RLSD scores one context if TRL has the student's log-probs, unless dropout changed them."""
    wrong_answers(monkeypatch)
    unhinted = []

    def spy(self, prompts, requests, **options):
        unhinted.append(any(request.context == prompts[request.prompt].ids for request in requests))
        return log_probs(self, prompts, requests, **options)

    log_probs = cepo.scoring.forward.Scorer.log_probs
    monkeypatch.setattr(cepo.scoring.forward.Scorer, "log_probs", spy)
    lora = LoraConfig(r=4, lora_dropout=dropout, target_modules=["q_proj"])
    options = {"num_iterations": 2, "method": "rlsd", "reward": half_right, "peft_config": lora}
    train(tmp_path, text_figures, text_model_path, **options)
    assert unhinted == [dropout > 0]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"shared_prompt": "maybe"}, "maybe"),
        ({"teacher_batch_tokens": 0}, "teacher_batch_tokens"),
        ({"num_generations": 1}, "num_generations|generation"),
        ({"num_generations": 3}, "divisible"),
    ],
)
def test_bad_options_are_refused_at_construction(tmp_path, options, named):
    with pytest.raises(ValueError, match=named):
        CEPOConfig(output_dir=str(tmp_path), **(QUICK | options))


def test_a_grpo_config_is_refused(tmp_path, figures):
    with pytest.raises(TypeError, match="CEPOConfig"):
        CEPOTrainer(policy_path(), letters, GRPOConfig(output_dir=str(tmp_path), **QUICK), figures)


def test_presets(tmp_path):
    args = CEPOConfig.preset("paper", output_dir=str(tmp_path), bf16=False)
    assert (args.evidence_coefficient, args.evidence_steps, args.evidence_clip) == (0.5, 25, 0.5)
    assert (args.negative_reference, args.missing_negative, args.method) == ("lowest_reward", "student", "cepo")
    assert (args.epsilon, args.epsilon_high, args.beta) == (0.2, 0.28, 0.0)
    assert [args.coefficient_at(step) for step in (0, 5, 25)] == pytest.approx([0.5, 0.4, 0.0])
    found = CEPOConfig(output_dir=str(tmp_path), bf16=False)
    assert {f.name for f in fields(found) if getattr(found, f.name) != getattr(args, f.name)} == {"negative_reference"}
    mixed = CEPOConfig.preset("paper", output_dir=str(tmp_path), bf16=False, negative_reference="own")
    assert mixed.negative_reference == "own"
    with pytest.raises(ValueError, match="choose one of paper"):
        CEPOConfig.preset("papers")
    rlsd = CEPOConfig.preset("rlsd", output_dir=str(tmp_path), bf16=False)
    assert (rlsd.method, rlsd.evidence_clip, rlsd.evidence_steps) == ("rlsd", 0.2, 50)
    assert (rlsd.teacher, rlsd.teacher_sync_steps) == ("synced", 10)


def test_every_method_trains_on_the_default_task(tmp_path, figures):
    """The shipped policy and the real verifier."""
    for method in METHODS:
        trainer = train(
            tmp_path,
            figures,
            reward=accuracy_reward,
            method=method,
            max_steps=1,
            max_completion_length=176,
            **needed_by(method),
        )
        assert logged(trainer, "cepo/seconds/generation")[0] > 0
        assert (logged(trainer, "cepo/rows_scored")[0] > 0) == METHODS[method].needs_teachers


def test_too_few_rows_are_refused(tmp_path, figures):
    """TRL would drop the incomplete batch, and train on no row."""
    args = CEPOConfig(output_dir=str(tmp_path), **QUICK)
    with pytest.raises(ValueError, match=r"1 rows.*2 prompts"):
        CEPOTrainer(policy_path(), letters, args, figures.select([0]))


def test_a_rollout_func_is_refused(tmp_path, figures):
    args = CEPOConfig(output_dir=str(tmp_path), **QUICK)
    with pytest.raises(ValueError, match="rollout_func"):
        CEPOTrainer(policy_path(), letters, args, figures, rollout_func=lambda prompts, trainer: {})


@pytest.mark.parametrize("peft_config", [None, LoraConfig(r=4, target_modules="all-linear")])
def test_a_frozen_vision_tower_does_not_change(tmp_path, figures, peft_config):
    policy = AutoModelForImageTextToText.from_pretrained(policy_path())
    before = {name: parameter.clone() for name, parameter in policy.named_parameters()}
    trainer = train(tmp_path, figures, max_steps=1, method="grpo", freeze_vision_tower=True, peft_config=peft_config)
    after = {name.removeprefix("base_model.model."): weight for name, weight in weights_of(trainer).items()}
    tower = [name for name in before if ".visual." in name]
    assert tower
    for name in tower:
        weight = after.get(name, after.get(name.replace(".weight", ".base_layer.weight")))
        weight = after[name.replace(".bias", ".base_layer.bias")] if weight is None else weight
        assert torch.equal(weight, before[name])
    trained = [name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad]
    assert trained
    assert not any(".visual." in name for name in trained)


def test_a_text_model_has_no_vision_tower_to_freeze(tmp_path, text_figures, text_model_path):
    args = CEPOConfig(output_dir=str(tmp_path), freeze_vision_tower=True, **QUICK)
    with pytest.raises(ValueError, match="freeze_vision_tower"):
        CEPOTrainer(text_model_path, letters, args, text_figures)


def test_a_processor_that_pads_on_the_right_is_refused(tmp_path, figures):
    processor = AutoProcessor.from_pretrained(policy_path(), padding_side="right")
    args = CEPOConfig(output_dir=str(tmp_path), **QUICK)
    with pytest.raises(ValueError, match="padding_side='left'"):
        CEPOTrainer(policy_path(), letters, args, figures, processing_class=processor)

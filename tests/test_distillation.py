"""OPSD and SDPO in the real trainer, and lagging teachers."""

import pytest
import torch
from peft import LoraConfig
from torch.testing import assert_close
from trl import GRPOTrainer
from trl.rewards import accuracy_reward

import cepo.methods.options
import cepo.scoring.forward
import cepo.scoring.pipeline
import cepo.trainer.distillation
from cepo import CEPOConfig
from cepo.scoring.forward import evaluating
from tests.support.distillation import distributions, forward_kl, hinted_prompt, student_prompt
from tests.support.training import half_right, logged, make, train, weights_of, wrong_answers


def jensen_shannon(teacher, student):
    middle = torch.log((teacher.exp() + student.exp()) / 2)
    return (forward_kl(teacher, middle) + forward_kl(student, middle)) / 2


def test_opsd_is_the_divergence_from_the_initial_policy_with_the_solution(tmp_path, task, lessons):
    """Against plain passes over the whole vocabulary."""
    dataset, model = task
    trainer = train(tmp_path, dataset, model, method="opsd", learning_rate=0.05)
    first = lessons[0][1]
    assert len(lessons) == 2
    for batch, policy, loss in lessons:
        values = []
        for row in range(8):
            hinted, own = hinted_prompt(batch, row), student_prompt(batch, row)
            text = trainer.processing_class.decode(hinted)
            assert any(f"A reference solution:\n{row['solution']}\n" in text for row in dataset)
            if "pixel_values" in batch:
                assert (hinted == first.config.image_token_id).sum() == (own == first.config.image_token_id).sum() > 0
            values.append(forward_kl(distributions(first, batch, hinted, row), distributions(policy, batch, own, row)))
        expected = torch.cat(values).mean().item()
        assert loss.item() == pytest.approx(expected, rel=1e-3, abs=1e-6)
        assert expected > 0
    assert logged(trainer, "cepo/divergence") == pytest.approx([loss.item() for *_, loss in lessons], rel=1e-4)
    assert logged(trainer, "cepo/rows_scored") == [1.0, 1.0]
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), trainer.model.parameters(), strict=True))


def few_correct(completions, **kwargs):
    """Two correct rollouts in the first group, one in the second, none in a third."""
    return ([1.0, 1.0, 0.0, 0.0] + [1.0, 0.0, 0.0, 0.0] + [0.0] * 4)[: len(completions)]


def test_sdpo_hints_at_another_correct_rollout(tmp_path, text_figures, text_model_path, lessons):
    options = {"method": "sdpo", "max_steps": 1, "per_device_train_batch_size": 12, "divergence": "full"}
    trainer = train(tmp_path, text_figures, text_model_path, few_correct, **options)
    ((batch, policy, loss),) = lessons
    # TRL shuffles the rollouts of a batch: rows are known by what they are hinted.
    completions = [
        trainer.processing_class.decode(ids[mask.bool()], skip_special_tokens=True)
        for ids, mask in zip(batch["completion_ids"], batch["completion_mask"], strict=True)
    ]
    values, unhinted = [], 0
    for row in range(12):
        hinted = hinted_prompt(batch, row)
        if not len(hinted):
            unhinted += 1
            continue
        text = trainer.processing_class.decode(hinted)
        others = [place for place, other in enumerate(completions) if place != row and other in text]
        assert len(others) == 1
        # Another one of the same prompt, and a right one: above its group's mean.
        assert student_prompt(batch, others[0]).tolist() == student_prompt(batch, row).tolist()
        assert batch["advantages"][others[0]] > 0
        values.append(
            jensen_shannon(
                distributions(policy, batch, hinted, row), distributions(policy, batch, student_prompt(batch, row), row)
            )
        )
    assert unhinted == 5  # the only right one of its group, and a group without any
    assert loss.item() == pytest.approx(torch.cat(values).mean().item(), rel=1e-3)
    assert logged(trainer, "cepo/rows_scored") == pytest.approx([7 / 12])


def test_sdpo_without_correct_rollouts_does_not_move(tmp_path, text_figures, text_model_path):
    def incorrect(completions, **kwargs):
        return [0.0] * len(completions)

    options = {"method": "sdpo", "max_steps": 1, "optim": "sgd"}
    trainer = train(tmp_path, text_figures, text_model_path, incorrect, **options)
    assert logged(trainer, "loss") == logged(trainer, "grad_norm") == [0.0]


@pytest.mark.parametrize("method", ["opsd", "sdpo"])
def test_micro_batches_add_up(tmp_path, figures, method):
    """The mean is over the tokens of the whole batch, however it is split."""
    options = {"method": method, "optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 1e9}
    whole = train(tmp_path, figures, reward=half_right, **options)
    cut = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    parts = train(tmp_path, figures, reward=half_right, **options, **cut)
    assert logged(parts, "grad_norm") == pytest.approx(logged(whole, "grad_norm"), rel=1e-3)
    assert logged(whole, "grad_norm")[0] > 0
    for metric in ("cepo/divergence", "entropy"):
        assert logged(parts, metric) == pytest.approx(logged(whole, metric), rel=1e-4)
    assert logged(whole, "cepo/divergence")[0] == pytest.approx(logged(whole, "loss")[0], rel=1e-4)
    for name, weight in weights_of(whole).items():
        assert_close(weights_of(parts)[name], weight, atol=1e-5, rtol=1e-3)


def test_teacher_and_student_have_the_same_precision(tmp_path, text_figures, text_model_path, monkeypatch):
    seen = {}
    for name in ("teacher_states", "student_divergence"):
        stage = getattr(cepo.trainer.distillation, name)

        def noted(*args, name=name, stage=stage, **options):
            seen[name] = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
            return stage(*args, **options)

        monkeypatch.setattr(cepo.trainer.distillation, name, noted)
    train(tmp_path, text_figures, text_model_path, method="opsd", max_steps=1, bf16=True, use_cpu=True)
    assert seen == dict.fromkeys(("teacher_states", "student_divergence"), (True, torch.bfloat16))


def test_steps_of_one_generation_share_its_mean(tmp_path, text_figures, text_model_path):
    """Two steps on half a batch each, at half the learning rate, move like one on the whole batch."""
    options = {"method": "opsd", "optim": "sgd", "max_grad_norm": 1e9, "lr_scheduler_type": "constant"}

    def moved(**more):
        before = make(tmp_path, text_figures, text_model_path, **options, **more)
        start = weights_of(before)
        before.train()
        return torch.cat([(weight - start[name]).flatten() for name, weight in weights_of(before).items()])

    whole = moved(max_steps=1, learning_rate=0.02)
    halves = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "steps_per_generation": 4}
    parts = moved(max_steps=2, learning_rate=0.01, **halves)
    assert (parts - whole).norm() < 0.05 * whole.norm()


def test_the_sampled_divergence_is_a_policy_gradient_with_evidence_as_advantages(
    tmp_path, text_figures, text_model_path, loss_inputs
):
    options = {"method": "opsd", "divergence": "sampled", "max_steps": 1}
    trainer = train(tmp_path, text_figures, text_model_path, half_right, **options)
    (batch,) = loss_inputs
    trained = batch["completion_mask"].bool()
    assert (batch["advantages"][~trained] == 0).all()
    assert torch.equal(batch["advantages"][trained], batch["evidence"][trained])
    assert (batch["advantages"][trained] != 0).float().mean() > 0.9
    assert logged(trainer, "cepo/coefficient") == [1.0]


def test_reused_rollouts_get_importance_weights(tmp_path, text_figures, text_model_path, lessons):
    options = {"method": "opsd", "num_iterations": 2, "max_steps": 2, "learning_rate": 0.05}
    train(tmp_path, text_figures, text_model_path, half_right, importance_clip=1.5, **options)
    batch, policy, loss = lessons[1]
    first = lessons[0][1]
    values, ratios = [], []
    for row in range(8):
        student = distributions(policy, batch, student_prompt(batch, row), row)
        values.append(forward_kl(distributions(first, batch, hinted_prompt(batch, row), row), student))
        ids = batch["completion_ids"][row][batch["completion_mask"][row].bool()].unsqueeze(-1)
        old = distributions(first, batch, student_prompt(batch, row), row)
        ratios.append((student.gather(1, ids) - old.gather(1, ids)).exp()[:, 0])
    values, ratios = torch.cat(values), torch.cat(ratios)
    assert (ratios > 1.5).any()
    assert (ratios < 1).any()
    expected = (values * ratios.clamp(max=1.5)).mean().item()
    assert loss.item() == pytest.approx(expected, rel=1e-3)
    assert expected != pytest.approx(values.mean().item(), rel=1e-2)


@pytest.mark.parametrize("of_sequences", [False, True])
def test_the_sampler_ratio(tmp_path, text_figures, text_model_path, lessons, monkeypatch, of_sequences):
    """TRL's ratio of the policy to vLLM, of tokens or of sequences; masked ones count as 0."""
    drawn = torch.rand(8, 1 if of_sequences else 999, generator=torch.Generator().manual_seed(0))
    drawn[0] = 0.0
    generate = GRPOTrainer._generate_and_score_completions

    def sampled_elsewhere(self, inputs):
        output = generate(self, inputs)
        return {**output, "importance_sampling_ratio": drawn[:, : output["completion_ids"].shape[1]]}

    monkeypatch.setattr(GRPOTrainer, "_generate_and_score_completions", sampled_elsewhere)
    train(tmp_path, text_figures, text_model_path, half_right, method="opsd", max_steps=1)
    ((batch, policy, loss),) = lessons
    values, ratios = [], []
    for row in range(8):
        hinted, own = hinted_prompt(batch, row), student_prompt(batch, row)
        values.append(forward_kl(distributions(policy, batch, hinted, row), distributions(policy, batch, own, row)))
        ratio = batch["importance_sampling_ratio"][row]
        ratios.append(ratio[: len(values[-1])].expand(len(values[-1])))
    expected = (torch.cat(values) * torch.cat(ratios)).mean().item()
    assert loss.item() == pytest.approx(expected, rel=1e-3)


# Teachers' weights ----------------------------------------------------------------------------------------------------

METHODS_WITH_TEACHERS = ["cepo", "rlsd", "opsd", "sdpo"]


@pytest.mark.parametrize("method", METHODS_WITH_TEACHERS)
@pytest.mark.parametrize(
    "teacher", [{"teacher": "synced", "teacher_sync_steps": 1}, {"teacher": "ema", "teacher_ema_decay": 0.0}]
)
def test_a_teacher_synced_at_every_step_is_the_policy(
    tmp_path, text_figures, text_model_path, monkeypatch, method, teacher
):
    wrong_answers(monkeypatch)
    options = {"method": method, "max_steps": 3, "optim": "sgd", "learning_rate": 0.1}
    live = train(tmp_path, text_figures, text_model_path, half_right, teacher="policy", **options)
    start = weights_of(train(tmp_path, text_figures, text_model_path, half_right, **options | {"max_steps": 1}))
    following = train(tmp_path, text_figures, text_model_path, half_right, **teacher, **options)
    for name, weight in weights_of(live).items():
        assert_close(weights_of(following)[name], weight, atol=1e-6, rtol=1e-5)
    assert any(not torch.equal(weight, start[name]) for name, weight in weights_of(live).items())


@pytest.mark.parametrize("method", METHODS_WITH_TEACHERS)
def test_an_initial_teacher_changes_the_update(tmp_path, text_figures, text_model_path, monkeypatch, method):
    wrong_answers(monkeypatch)
    options = {"method": method, "max_steps": 3, "learning_rate": 0.02}
    live = train(tmp_path, text_figures, text_model_path, half_right, teacher="policy", **options)
    frozen = train(tmp_path, text_figures, text_model_path, half_right, teacher="initial", **options)
    assert any(not torch.equal(w, weights_of(frozen)[name]) for name, w in weights_of(live).items())


def test_the_student_has_the_policys_weights(tmp_path, text_figures, text_model_path, monkeypatch):
    """RLSD with the initial teacher: log P_T+ by the weights of step 0, log P_S by the current ones."""
    asked, weights, at_work = [], [], []
    passes = cepo.scoring.forward.Scorer.log_probs

    def noted(self, prompts, requests, **options):
        asked.append([request.context == prompts[request.prompt].ids for request in requests])
        weights.append(weights_of(at_work[0]))
        return passes(self, prompts, requests, **options)

    monkeypatch.setattr(cepo.scoring.forward.Scorer, "log_probs", noted)
    options = {"method": "rlsd", "teacher": "initial", "max_steps": 2, "learning_rate": 0.05}
    at_work[:] = [make(tmp_path, text_figures, text_model_path, half_right, **options)]
    at_work[0].train()
    assert [all(unhinted) for unhinted in asked] == [True, False] * 2  # the student, then its teachers
    assert not any(asked[1] + asked[3])
    start, taught, now, taught_later = weights
    for name, weight in start.items():
        assert torch.equal(taught[name], weight)
        assert torch.equal(taught_later[name], weight)
    assert any(not torch.equal(now[name], weight) for name, weight in start.items())


def test_the_initial_teacher_of_lora_is_the_base_model(tmp_path, text_figures, text_model_path, monkeypatch):
    wrong_answers(monkeypatch)
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    options = {"teacher": "initial", "learning_rate": 0.05, "peft_config": lora}
    trainer = train(tmp_path, text_figures, text_model_path, half_right, **options)
    ids = torch.arange(20, 40).unsqueeze(0)
    model = trainer.model

    def logits():
        with evaluating(model):
            return model(input_ids=ids).logits

    with model.disable_adapter():
        base = logits()
    trained = logits()
    with trainer._teachers.weights.in_place():
        assert torch.equal(logits(), base)
    assert torch.equal(logits(), trained)
    assert not torch.equal(trained, base)


def test_a_trained_head_beside_adapters(tmp_path, text_figures, text_model_path):
    """TRL refuses adapters on the head, which its fused head would ignore."""
    adapted = LoraConfig(r=4, target_modules=["q_proj", "lm_head"])
    with pytest.raises(ValueError, match="adapter to `lm_head` is not supported"):
        make(tmp_path, text_figures, text_model_path, method="opsd", peft_config=adapted)
    whole = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"])
    options = {"method": "opsd", "max_steps": 1, "learning_rate": 0.05}
    trainer = train(tmp_path, text_figures, text_model_path, half_right, peft_config=whole, **options)
    head = trainer.model.get_output_embeddings()
    before, after = head.original_module.weight, head.modules_to_save["default"].weight
    assert not torch.equal(before, after)


@pytest.mark.parametrize("teacher", ["ema", "initial"])
def test_teacher_weights_after_resuming(tmp_path, text_figures, text_model_path, teacher):
    options = {
        "method": "opsd",
        "teacher": teacher,
        "teacher_ema_decay": 0.5,
        "learning_rate": 0.02,
        "max_steps": 4,
        "save_strategy": "steps",
        "save_steps": 2,
    }
    whole = train(tmp_path, text_figures, text_model_path, half_right, **options)
    resume = {"resume_from_checkpoint": str(tmp_path / "out" / "checkpoint-2")}
    resumed = make(tmp_path, text_figures, text_model_path, half_right, **options, **resume)
    for weight in resumed._teachers.weights._copy.values():
        weight.zero_()  # what the checkpoint holds has to come back
    resumed.train(resume_from_checkpoint=resumed.args.resume_from_checkpoint)
    for name, weight in weights_of(whole).items():
        assert_close(weights_of(resumed)[name], weight)
    with whole._teachers.weights.in_place(), resumed._teachers.weights.in_place():
        for name, weight in weights_of(whole).items():
            assert_close(weights_of(resumed)[name], weight)


def test_a_checkpoint_without_the_teacher_is_refused(tmp_path, text_figures, text_model_path):
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "method": "opsd"}
    train(tmp_path, text_figures, text_model_path, teacher="policy", **options)
    resume = {"resume_from_checkpoint": str(tmp_path / "out" / "checkpoint-1")}
    with pytest.raises(ValueError, match=r'trained with teacher "policy" \(now "initial"\)'):
        train(tmp_path, text_figures, text_model_path, **options, **resume)
    (tmp_path / "out" / "checkpoint-1" / "run_options.json").unlink()  # an older version's
    with pytest.raises(ValueError, match=r"has no teacher\.safetensors"):
        train(tmp_path, text_figures, text_model_path, **options, **resume)


# Hint content, and the oracle ----------------------------------------------------------------------------------------


def test_whole_rollouts_in_hints(tmp_path, text_figures, text_model_path, monkeypatch):
    wrong_answers(monkeypatch)
    hinted = []
    fill_hint = cepo.methods.options.fill_hint
    monkeypatch.setattr(
        cepo.methods.options, "fill_hint", lambda template, text: hinted.append(text) or fill_hint(template, text)
    )
    options = {"positive_content": "rollout", "negative_content": "rollout", "max_steps": 1}
    options |= {"negative_reference": "most_common", "log_completions": True, "num_completions_to_print": 0}
    trainer = train(tmp_path, text_figures, text_model_path, half_right, **options)
    completions = {messages[0]["content"] for messages in trainer._logs["completion"]}
    assert set(hinted) & completions
    # A hint holds the answer alone for the rollout whose answer is the group's r-: one in each of two groups.
    assert logged(trainer, "cepo/fallback/no_incorrect_rollout") == [2 / 8]
    assert len(set(hinted) - completions) == 2
    hinted.clear()
    options |= {"positive_part": "suffix", "negative_part": "suffix", "hint_max_tokens": 3}
    trainer = train(tmp_path, text_figures, text_model_path, half_right, **options)
    completions = {messages[0]["content"] for messages in trainer._logs["completion"]}
    # A cut may go through a character.
    whole = [part for part in hinted if not any(text.endswith(part.lstrip("\ufffd")) for text in completions)]
    assert len(set(whole)) == 2  # the hints with the answer alone
    assert max(map(len, hinted)) < max(map(len, completions))


def test_the_oracle_follows_the_token_labels(tmp_path, figures, loss_inputs):
    """Decisive tokens at the upper bound, filler at the lower, for correct and incorrect rollouts."""
    options = {"method": "oracle", "max_steps": 1, "max_completion_length": 176, "evidence_clip": 0.4}
    options |= {"per_device_train_batch_size": 16, "num_generations": 8, "reward": accuracy_reward}
    train(tmp_path, figures, **options)
    (batch,) = loss_inputs
    trained = batch["completion_mask"].bool()
    rows = [row[kept].abs() for row, kept in zip(batch["advantages"], trained, strict=True) if row[kept].any()]
    factors = [0.8 * row / row.min() for row in rows]  # every rollout has filler
    assert rows
    assert all({round(value, 3) for value in row.tolist()} <= {0.8, 1.0, 1.2} for row in factors)
    assert any((row > 1.1).any() for row in factors)
    every = torch.cat(factors)
    assert (every < 0.9).sum() > 3 * (every > 1.1).sum()  # most tokens are filler


def test_the_oracle_needs_the_figures_task(tmp_path, text_model_path, text_figures):
    with pytest.raises(ValueError, match="figures task"):
        train(tmp_path, text_figures.remove_columns("labels"), text_model_path, method="oracle")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"teacher": "friend"}, "teacher must be one of .* got 'friend'"),
        ({"teacher_ema_decay": 1.0}, "teacher_ema_decay"),
        ({"teacher_sync_steps": 0}, "teacher_sync_steps"),
        ({"method": "opsd", "divergence": "whole"}, "divergence must be one of"),
        ({"method": "opsd", "divergence_beta": 1.5}, "divergence_beta"),
        ({"method": "sdpo", "divergence_top_k": 0}, "divergence_top_k"),
        ({"method": "sdpo", "importance_clip": 0.5}, "importance_clip"),
        ({"positive_content": "hope"}, "positive_content must be one of"),
        ({"negative_content": "solution"}, "negative_content must be one of"),
        ({"positive_part": "middle"}, "positive_part must be one of"),
        ({"negative_part": "middle"}, "negative_part must be one of"),
        ({"hint_max_tokens": 0}, "hint_max_tokens"),
    ],
)
def test_bad_options_are_refused(options, named):
    with pytest.raises(ValueError, match=named):
        CEPOConfig(output_dir="out", bf16=False, **options)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"beta": 0.1}, "beta would have no effect"),
        ({"loss_type": "grpo", "top_entropy_quantile": 0.5}, "loss_type, top_entropy_quantile would have no effect"),
        ({"delta": 2.0, "off_policy_mask_threshold": 1.0}, "delta, off_policy_mask_threshold would have no effect"),
        ({"importance_sampling_level": "sequence"}, "importance_sampling_level would have no effect"),
    ],
)
def test_options_without_effect_on_a_divergence_are_refused(tmp_path, text_figures, text_model_path, options, named):
    with pytest.raises(ValueError, match=named):
        make(tmp_path, text_figures, text_model_path, method="opsd", **options)


def test_defaults_of_methods_and_given_values():
    opsd = CEPOConfig(output_dir="out", bf16=False, method="opsd")
    assert (opsd.teacher, opsd.divergence, opsd.divergence_beta, opsd.positive_content) == (
        "initial",
        "full",
        0.0,
        "solution",
    )
    sdpo = CEPOConfig(output_dir="out", bf16=False, method="sdpo", divergence="sampled", teacher="policy")
    assert (sdpo.teacher, sdpo.divergence, sdpo.importance_clip, sdpo.positive_content) == (
        "policy",
        "sampled",
        2.0,
        "rollout",
    )
    assert CEPOConfig(output_dir="out", bf16=False).teacher == "policy"

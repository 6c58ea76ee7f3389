"""`cepo explain` shows the numbers of training, to float rounding."""

import pytest
import torch
from torch.testing import assert_close
from trl.rewards import accuracy_reward

import cepo.trainer.cepo_trainer
import cepo.trainer.samples
from cepo import CEPOConfig, CEPOTrainer, load_figures, policy_path
from cepo.data.models import load_policy
from cepo.data.sampling import Sampling, group_advantages, sampled_groups, seeded
from cepo.data.saved import SavedError, load_saved, restore
from cepo.inspection.inspect import all_variants, inspect_with, make_variant
from cepo.references.groups import Group, Rollout
from cepo.scoring.prompts import text_of, token_texts
from cepo.tasks.figures import filler_tokens, group_kinds, problem_of


@pytest.fixture(scope="module")
def policy():
    return load_policy(policy_path())


class Spy(CEPOTrainer):
    def _find_evidence(self, batch):
        self.batch = batch
        share = super()._find_evidence(batch)
        self.found = batch["evidence"]
        return share


def half_correct(completions, **kwargs):
    return [0.0, 1.0] * (len(completions) // 2)


@pytest.mark.parametrize("rule", ["lowest_reward", "own_or_mixture"])
def test_a_training_page_shows_the_evidence_of_the_update(tmp_path, figures, monkeypatch, rule):
    monkeypatch.setattr(cepo.trainer.cepo_trainer, "final_answer", lambda text, extractor: str(len(text)))
    drawn = []
    monkeypatch.setattr(
        cepo.trainer.samples, "credit_page", lambda groups, **options: drawn.append((groups, options)) or "page"
    )
    args = CEPOConfig(
        output_dir=str(tmp_path),
        max_steps=1,
        per_device_train_batch_size=8,
        num_generations=4,
        max_completion_length=24,
        gradient_checkpointing=False,
        negative_reference=rule,
        credit_page_steps=1,
        log_completions=True,
        num_completions_to_print=0,
        save_strategy="no",
        report_to="none",
        bf16=False,
    )
    trainer = Spy(policy_path(), half_correct, args, figures)
    trainer.train()
    ((inspected, options),) = drawn
    assert (tmp_path / "credit" / "step-00000.html").read_text() == "page"
    assert (options["selected"].method.name, options["selected"].rule) == ("cepo", rule)
    lengths = trainer.batch["completion_mask"].sum(dim=1).tolist()
    of_groups = [one for group in inspected for one in group.rollouts]
    assert len(of_groups) == 8
    for row, (one, length) in enumerate(zip(of_groups, lengths, strict=True)):
        assert_close(one.credit[options["selected"]].evidence, trainer.found[row, :length], atol=2e-5, rtol=0)
    rollouts = [one.rollout for one in of_groups]
    assert [r.advantage for r in rollouts] == pytest.approx(trainer.batch["advantages"].tolist())

    # The rollouts are restored from their file and the dataset.
    saved = load_saved(str(tmp_path))
    groups = restore(saved.groups, figures, trainer.processing_class)
    assert saved.step == 0
    again = {rollout.ids: rollout for group in groups for rollout in group.rollouts}
    assert again.keys() == {rollout.ids for rollout in rollouts}
    originals = {group.group.solution: group.group for group in inspected}
    for group in groups:
        assert group.row["labels"] == originals[group.solution].row["labels"]
        assert group.rollouts == originals[group.solution].rollouts

    with pytest.raises(SavedError, match="--dataset_name"):
        restore(saved.groups, load_figures("test", 3), trainer.processing_class)
    with pytest.raises(SavedError, match="it has 0"):
        load_saved(str(tmp_path), step=7)


def test_a_run_without_saved_rollouts(tmp_path):
    with pytest.raises(SavedError, match="log_completions"):
        load_saved(str(tmp_path))


def test_advantages_are_trls():
    rewards = [0.0, 1.0, 1.0, 0.5]
    expected = (torch.tensor(rewards) - 0.625) / (torch.tensor(rewards).std() + 1e-4)
    assert group_advantages(rewards) == pytest.approx(expected.tolist())
    assert group_advantages([1.0, 1.0]) == [0.0, 0.0]
    assert group_advantages([1.0]) == [0.0]


def test_variants_differ_and_agree_where_they_must(policy):
    """GRPO has no evidence; a mixture of one is the most common answer; RLSD's negative is the student."""
    model, processing_class = policy
    rows = list(load_figures("test", 4))
    with seeded(0):
        groups = sampled_groups(model, processing_class, rows, 4, Sampling(200), accuracy_reward)
    mixed = [group for group in groups if any(rollout.advantage for rollout in group.rollouts)]
    assert mixed
    variants = [*all_variants(), make_variant("cepo", {"max_negatives": 1}, {"negative_reference": "mixture"})]
    assert len({variant.name for variant in variants}) == len(variants)
    for group, inspected in zip(
        mixed, inspect_with(model, processing_class, mixed, variants, max_tokens=4096), strict=True
    ):
        for rollout, one in zip(group.rollouts, inspected.rollouts, strict=True):
            credit = {variant.name: found for variant, found in one.credit.items()}
            assert not credit["grpo"].evidence.any()
            assert_close(credit["grpo"].advantages, torch.full((len(rollout.ids),), rollout.advantage))
            assert_close(credit["rlsd"].negative, one.student)
            assert_close(credit["cepo mixture of 1"].evidence, credit["cepo most_common"].evidence)
            own = credit["cepo own"]
            assert_close(own.evidence, own.positive - own.negative)
            assert own.evidence.abs().max() > 0.1


@pytest.mark.parametrize("characters", ["abc \\boxed{(1, 2)}", "naïve ∠x = 62°", "日本 🎉\n\ttext"])
def test_token_texts_join_to_the_text(policy, characters):
    _, processing_class = policy
    ids = tuple(processing_class.tokenizer(characters)["input_ids"])
    texts = token_texts(processing_class, ids)
    assert len(texts) == len(ids)
    assert "".join(texts) == text_of(processing_class, ids)


def test_token_kinds():
    """Two steps; one rollout has a mistake in the tens of the first result and continues from it."""
    row = {"start": 60, "labels": [58, 70], "angles": [62, 48], "prompt": [{"content": ""}]}
    problem = problem_of(row)
    correct = "60/ and/ 5/8/ leave/ 6/2/. /62/ and /70/ leave/ 4/8/./<|im_end|>".split("/")
    incorrect = "60/ and/ 5/8/ leave/ 7/2/. /72/ and /70/ leave/ 3/8/./<|im_end|>".split("/")
    start = ["decision", "filler", "decision", "decision", "filler"]
    middle = ["filler", "other", "filler", "decision", "filler"]
    after = ["decision", "decision", "filler", "other"]
    of_correct, of_incorrect, of_other = group_kinds(row, [correct, incorrect, correct], [True, False, True])
    # The second result is also incorrect, but follows from the first one.
    assert of_correct == of_incorrect == of_other == [*start, "arithmetic", "decision", *middle, *after]
    assert "arithmetic" not in group_kinds(row, [correct, correct], [True, True])[0]
    misread = [*incorrect[:2], " 4", *incorrect[3:]]
    of_correct, of_incorrect = group_kinds(row, [correct, misread], [True, False])
    assert of_correct == of_incorrect == ["decision", "filler", "reading", "decision", *start[4:], *of_correct[5:]]
    assert "arithmetic" not in of_incorrect
    # A rollout without a verdict labels no tokens.
    assert set(group_kinds(row, [correct, incorrect], [True, None])[0]) == {"decision", "filler", "other"}
    assert filler_tokens(problem, correct)[:5] == [False, True, False, False, True]


def test_a_token_may_be_a_whole_number():
    row = {"start": 60, "labels": [58], "angles": [62], "prompt": [{"content": ""}]}
    correct, incorrect = (["From ", "60", " and", " 58", " comes", f" {result}", "."] for result in (62, 63))
    for kinds in group_kinds(row, [correct, incorrect], [True, False]):
        assert kinds == ["filler", "decision", "filler", "decision", "filler", "arithmetic", "filler"]


def test_a_page_of_masked_truncated_rollouts(policy, figures):
    """With mask_truncated_completions they have no tokens."""
    model, processor = policy
    rollouts = [Rollout(None, 0.0, False, "cut", trained=())] * 2
    groups = [Group(figures[0]["prompt"], figures[0]["solution"], rollouts, figures[0])]
    variants = all_variants({}, columns=list(figures[0]))
    (inspected,) = inspect_with(model, processor, groups, variants, max_tokens=400)
    assert len(inspected.rollouts) == 2
    for one in inspected.rollouts:
        assert one.student.numel() == 0
        assert all(one.credit[variant].advantages.numel() == 0 for variant in variants)


def test_own_options_of_a_method_do_not_reach_others():
    """`tau` of RLCSD and of `cepo_additive` are different options."""
    tau = {
        variant.name: variant.options.tau
        for variant in all_variants({"method": "rlcsd", "tau": 0.5, "max_negatives": 2})
        if hasattr(variant.options, "tau")
    }
    assert tau == {"rlcsd": 0.5, "cepo_additive": 0.1}

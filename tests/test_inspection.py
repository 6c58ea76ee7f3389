"""What `cepo explain` and `cepo credit` show is what training does, to float rounding."""

import pytest
import torch
from torch.testing import assert_close
from trl.rewards import accuracy_reward

import cepo.trainer.cepo_trainer
import cepo.trainer.credit_page
from cepo import CEPOConfig, CEPOTrainer, load_figures, policy_path
from cepo.data.models import load_policy
from cepo.data.sampling import Sampling, group_advantages, sampled_groups, seeded
from cepo.data.saved import SavedError, load_saved, restore
from cepo.inspection.inspect import all_variants, inspect_with, make_variant
from cepo.references.groups import Attempt, Group, Rollout
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


def half_right(completions, **kwargs):
    return [0.0, 1.0] * (len(completions) // 2)


@pytest.mark.parametrize("rule", ["lowest_reward", "own_or_mixture"])
def test_a_page_of_training_shows_the_evidence_that_was_trained_on(tmp_path, figures, monkeypatch, rule):
    monkeypatch.setattr(cepo.trainer.cepo_trainer, "final_answer", lambda text, extractor: str(len(text)))
    drawn = []
    monkeypatch.setattr(
        cepo.trainer.credit_page, "credit_page", lambda shown, **options: drawn.append((shown, options)) or "page"
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
    trainer = Spy(policy_path(), half_right, args, figures)
    trainer.train()
    ((shown, options),) = drawn
    assert (tmp_path / "credit" / "step-00000.html").read_text() == "page"
    assert (options["selected"].method.name, options["selected"].rule) == ("cepo", rule)
    lengths = trainer.batch["completion_mask"].sum(dim=1).tolist()
    inspected = [one for group in shown for one in group.inspected]
    assert len(inspected) == 8
    for row, (one, length) in enumerate(zip(inspected, lengths, strict=True)):
        assert_close(one.credit[options["selected"]].evidence, trainer.found[row, :length], atol=2e-5, rtol=0)
    rollouts = [rollout for group in shown for rollout in group.group.rollouts]
    assert [r.advantage for r in rollouts] == pytest.approx(trainer.batch["advantages"].tolist())

    # The same rollouts, saved, and found again in the dataset.
    saved = load_saved(str(tmp_path))
    groups = restore(saved.groups, figures, trainer.processing_class)
    assert saved.step == 0
    again = {rollout.ids: rollout for group in groups for rollout in group.rollouts}
    assert again.keys() == {rollout.ids for rollout in rollouts}
    originals = {group.group.solution: group.group for group in shown}
    for group in groups:
        assert group.attempts == originals[group.solution].attempts
        assert group.row["labels"] == originals[group.solution].row["labels"]
        assert group.rollouts == originals[group.solution].rollouts

    with pytest.raises(SavedError, match="--dataset_name"):
        restore(saved.groups, load_figures("test", 3), trainer.processing_class)
    with pytest.raises(SavedError, match="it has 0"):
        load_saved(str(tmp_path), step=7)


def test_a_run_that_saved_no_rollouts(tmp_path):
    with pytest.raises(SavedError, match="log_completions"):
        load_saved(str(tmp_path))


def test_advantages_are_trls():
    rewards = [0.0, 1.0, 1.0, 0.5]
    expected = (torch.tensor(rewards) - 0.625) / (torch.tensor(rewards).std() + 1e-4)
    assert group_advantages(rewards) == pytest.approx(expected.tolist())
    assert group_advantages([1.0, 1.0]) == [0.0, 0.0]
    assert group_advantages([1.0]) == [0.0]


def test_variants_are_told_apart_and_agree_where_they_must(policy):
    """GRPO has no evidence; the mixture of one is the most common answer; RLSD's negative is the policy itself."""
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
        for rollout, one in zip(group.rollouts, inspected, strict=True):
            credit = {variant.name: found for variant, found in one.credit.items()}
            assert not credit["grpo"].evidence.any()
            assert_close(credit["grpo"].advantages, torch.full((len(rollout.ids),), rollout.advantage))
            assert_close(credit["rlsd"].negative, one.student)
            assert_close(credit["cepo mixture of 1"].evidence, credit["cepo most_common"].evidence)
            own = credit["cepo own"]
            assert_close(own.evidence, own.positive - own.negative)
            assert own.evidence.abs().max() > 0.1


@pytest.mark.parametrize("characters", ["abc \\boxed{(1, 2)}", "naïve ∠x = 62°", "日本 🎉\n\ttext"])
def test_tokens_are_shown_as_the_tokenizer_cuts_them(policy, characters):
    _, processing_class = policy
    ids = tuple(processing_class.tokenizer(characters)["input_ids"])
    texts = token_texts(processing_class, ids)
    assert len(texts) == len(ids)
    assert "".join(texts) == text_of(processing_class, ids)


def test_which_tokens_decide():
    """Two steps; one rollout slips in the first, of which only the tens are wrong, and goes on from there."""
    row = {"start": 60, "labels": [58, 70], "angles": [62, 48], "prompt": [{"content": ""}]}
    problem = problem_of(row)
    right = [
        "60",
        " and",
        " 5",
        "8",
        " leave",
        " 6",
        "2",
        ". ",
        "62",
        " and ",
        "70",
        " leave",
        " 4",
        "8",
        ".",
        "<|im_end|>",
    ]
    wrong = [
        "60",
        " and",
        " 5",
        "8",
        " leave",
        " 7",
        "2",
        ". ",
        "72",
        " and ",
        "70",
        " leave",
        " 3",
        "8",
        ".",
        "<|im_end|>",
    ]
    start = ["decision", "filler", "decision", "decision", "filler"]
    middle = ["filler", "other", "filler", "decision", "filler"]
    after = ["decision", "decision", "filler", "other"]
    of_right, of_wrong, of_other = group_kinds(row, [right, wrong, right], [True, False, True])
    # The second result is wrong too, but follows rightly from the first one.
    assert of_right == of_wrong == of_other == [*start, "arithmetic", "decision", *middle, *after]
    assert "arithmetic" not in group_kinds(row, [right, right], [True, True])[0]
    misread = [*wrong[:2], " 4", *wrong[3:]]
    of_right, of_wrong = group_kinds(row, [right, misread], [True, False])
    assert of_right == of_wrong == ["decision", "filler", "reading", "decision", *start[4:], *of_right[5:]]
    assert "arithmetic" not in of_wrong
    # A rollout without a verdict is not judged, and says nothing of others.
    assert set(group_kinds(row, [right, wrong], [True, None])[0]) == {"decision", "filler", "other"}
    assert filler_tokens(problem, right)[:5] == [False, True, False, False, True]


def test_a_token_may_hold_a_whole_number():
    row = {"start": 60, "labels": [58], "angles": [62], "prompt": [{"content": ""}]}
    right, wrong = (["From ", "60", " and", " 58", " comes", f" {result}", "."] for result in (62, 63))
    for kinds in group_kinds(row, [right, wrong], [True, False]):
        assert kinds == ["filler", "decision", "filler", "decision", "filler", "arithmetic", "filler"]


def test_a_page_of_rollouts_that_were_all_cut_off(policy, figures):
    """And masked for that (mask_truncated_completions): there is no token, and training goes on."""
    model, processor = policy
    attempts = [Attempt(None, 0.0, False, "cut")] * 2
    groups = [Group(figures[0]["prompt"], figures[0]["solution"], attempts, [Rollout((), 0.0, ())] * 2, row=figures[0])]
    variants = all_variants({}, columns=list(figures[0]))
    (inspected,) = inspect_with(model, processor, groups, variants, max_tokens=400)
    assert len(inspected) == 2
    for one in inspected:
        assert one.student.numel() == 0
        assert all(one.credit[variant].advantages.numel() == 0 for variant in variants)

"""CEPO in a plain PyTorch training loop, without TRL, as a starting point for other engines.

    python examples/own_loop.py

A step samples groups of rollouts, computes rewards, scores each rollout with correct and incorrect answers in its
prompt, and follows the gradient of sum_t A_t log P(y_t). Your engine does the first two. `Pipeline` does the third; its
`log_probs` may be any function from prompts and requests to log-probs.
"""

import argparse
import random

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from cepo import evaluate, load_figures, method_options, policy_path
from cepo.data.models import freeze_vision_tower
from cepo.data.sampling import Sampling, sampled_groups
from cepo.scoring.forward import FullForward, ScoringModel, evaluating
from cepo.scoring.pipeline import Pipeline, assign_credit
from cepo.tasks.figures import figures_reward


def train_step(model, pipeline, groups, options, optimizer, step, groups_at_a_time):
    """One update from groups of rollouts. Returns the share of tokens whose advantage differs from their rollout's."""
    groups = [group for group in groups if any(rollout.advantage for rollout in group.rollouts)]
    if not groups:
        return 0.0
    prompts = [pipeline.encoder.prompt(group.messages) for group in groups]
    with evaluating(model):
        (scored,) = pipeline.find_evidence([options], groups, prompts)
    credit = assign_credit(scored.evidence, options, groups, step)

    optimizer.zero_grad()
    # The rollouts are on-policy, so PPO's ratio is 1 and its clip has no effect.
    student = Pipeline(pipeline.encoder, FullForward(ScoringModel(model, model), 1 << 30).log_probs)
    first = 0
    for begin in range(0, len(groups), groups_at_a_time):
        part = slice(begin, begin + groups_at_a_time)
        logps = student.student_log_probs(groups[part], prompts[part])  # with gradient
        rows, width = logps.shape
        advantages = credit.advantages[first : first + rows, :width]  # 0 at padding
        (-(advantages * logps).sum() / credit.mask.sum()).backward()
        first += rows
    torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
    optimizer.step()
    return (credit.moved & credit.mask).sum().item() / credit.mask.sum().item()


def main():
    parser = argparse.ArgumentParser(description="Train the figures policy with CEPO, without TRL.")
    parser.add_argument("--method", default="cepo", help="any method with teachers")
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--prompts", type=int, default=16, help="prompts per step")
    parser.add_argument("--rollouts", type=int, default=8, help="rollouts per prompt")
    parser.add_argument("--learning_rate", type=float, default=2.5e-4)
    parser.add_argument("--problems", type=int, default=400, help="held-out problems")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)

    model = AutoModelForImageTextToText.from_pretrained(policy_path())
    processor = AutoProcessor.from_pretrained(policy_path(), padding_side="left")
    freeze_vision_tower(model)  # the tiny vision tower would forget how to read figures
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=arguments.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, arguments.steps)

    options = method_options(arguments.method)
    pipeline = Pipeline.of(model, processor, max_tokens=16384)
    problems, held_out = load_figures("train", 2000), load_figures("test", arguments.problems)
    sampling = Sampling(max_completion_length=176, batch_size=128)

    def accuracy():
        # Greedy decoding: a policy that only sharpened its distribution does not gain here.
        greedy = Sampling(max_completion_length=176, temperature=0.0)
        found = evaluate(model, processor, held_out, greedy, reward_func=figures_reward)
        return f"{found.accuracy} of {arguments.problems} problems"

    print(f"greedy held-out accuracy before training: {accuracy()}", flush=True)
    order = random.Random(arguments.seed)
    for step in range(arguments.steps):
        rows = [problems[index] for index in order.sample(range(len(problems)), arguments.prompts)]
        groups = sampled_groups(model, processor, rows, arguments.rollouts, sampling, figures_reward)
        moved = train_step(model, pipeline, groups, options, optimizer, step, groups_at_a_time=4)
        schedule.step()
        correct = [rollout.correct for group in groups for rollout in group.rollouts]
        print(
            f"step {step + 1}/{arguments.steps}  correct {sum(correct) / len(correct):.2f}  "
            f"lambda {options.coefficient_at(step):.2f}  tokens moved {moved:.1%}",
            flush=True,
        )
    print(f"greedy held-out accuracy after training: {accuracy()}")


if __name__ == "__main__":
    main()

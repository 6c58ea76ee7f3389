"""CEPO in a plain PyTorch loop, without TRL: for people who bring another engine.

    python examples/own_loop.py

Four things happen in a step: sample groups of rollouts, let the verifier judge them, let the policy read them again
with right and wrong answers in its prompt, and follow the gradient of the sum of A_t log P(y_t). The first two are what
your engine does. The third is `Pipeline`, to which `log_probs` may be any function from prompts and requests to
log-probs.
"""

import argparse
import random
from functools import partial

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from cepo import MethodOptions, evaluate, load_figures, policy_path
from cepo.data.models import freeze_vision_tower
from cepo.data.sampling import Sampling, sampled_groups
from cepo.scoring.forward import FullForward, Scorer, ScoringModel
from cepo.scoring.pipeline import Pipeline, completions_of, place
from cepo.scoring.prompts import PromptEncoder
from cepo.scoring.score import evaluating
from cepo.tasks.figures import figures_reward


def train_step(model, pipeline, groups, options, optimizer, step, rows_at_a_time):
    """One update from groups of rollouts. Returns the share of tokens whose advantage is not their rollout's."""
    # A group whose rollouts are all right, or all wrong, moves nothing.
    groups = [group for group in groups if any(rollout.advantage for rollout in group.rollouts)]
    if not groups:
        return 0.0
    prompts = [pipeline.encoder.prompt(group.messages) for group in groups]
    completions = completions_of(groups)
    with evaluating(model):
        (found,) = pipeline.find_evidence([options], groups, prompts, completions)
    mask = completions.wanted
    placed = place(found, options, groups, mask, step)

    optimizer.zero_grad()
    # Rollouts were sampled with today's weights, so the ratio of PPO is 1 and its clip has no part.
    first = 0
    for begin in range(0, len(groups), rows_at_a_time):
        some = groups[begin : begin + rows_at_a_time]
        of_some = completions_of(some)
        # The policy's own log-probs once more, now with a gradient: whole passes, nothing shared.
        whole = Pipeline(pipeline.encoder, FullForward(ScoringModel(model, model), 1 << 30).log_probs)
        logps = whole.student(some, prompts[begin : begin + rows_at_a_time], of_some)
        rows, width = logps.shape
        advantages = placed.advantages[first : first + rows, :width]
        (-(advantages * logps * of_some.wanted).sum() / mask.sum()).backward()
        first += rows
    torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
    optimizer.step()
    return (placed.moved & mask).sum().item() / mask.sum().item()


def main():
    parser = argparse.ArgumentParser(description="Train the figures policy with CEPO, without TRL.")
    parser.add_argument("--method", default="cepo", help="any method with teachers that cepo has")
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--prompts", type=int, default=16, help="prompts of a step")
    parser.add_argument("--rollouts", type=int, default=8, help="rollouts of a prompt")
    parser.add_argument("--learning_rate", type=float, default=2.5e-4)
    parser.add_argument("--problems", type=int, default=400, help="held-out problems")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)

    model = AutoModelForImageTextToText.from_pretrained(policy_path())
    processor = AutoProcessor.from_pretrained(policy_path(), padding_side="left")
    freeze_vision_tower(model)  # trained along, the tiny tower unlearns to read
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=arguments.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, arguments.steps)

    options = MethodOptions(method=arguments.method)
    # Teachers share prompts and run without a gradient.
    scorer = Scorer(ScoringModel(model, model))
    pipeline = Pipeline(PromptEncoder(processor, is_vlm=True), partial(scorer.log_probs, max_tokens=16384))
    problems, held_out = load_figures("train", 2000), load_figures("test", arguments.problems)
    sampling = Sampling(max_completion_length=176, batch_size=128)

    def accuracy():
        # Greedy: a policy that has only become surer of what it believed does no better here.
        greedy = Sampling(max_completion_length=176, temperature=0.0)
        found = evaluate(model, processor, held_out, greedy, reward_func=figures_reward)
        return f"{found.accuracy} of {arguments.problems} problems"

    print(f"greedy held-out accuracy before training: {accuracy()}", flush=True)
    order = random.Random(arguments.seed)
    for step in range(arguments.steps):
        rows = [problems[index] for index in order.sample(range(len(problems)), arguments.prompts)]
        groups = sampled_groups(model, processor, rows, arguments.rollouts, sampling, figures_reward)
        moved = train_step(model, pipeline, groups, options, optimizer, step, rows_at_a_time=4)
        schedule.step()
        right = [attempt.correct for group in groups for attempt in group.attempts]
        print(
            f"step {step + 1}/{arguments.steps}  right {sum(right) / len(right):.2f}  "
            f"lambda {options.coefficient_at(step):.2f}  tokens moved {moved:.1%}",
            flush=True,
        )
    print(f"greedy held-out accuracy after training: {accuracy()}")


if __name__ == "__main__":
    main()

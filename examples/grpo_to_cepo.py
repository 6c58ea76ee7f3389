"""From TRL's GRPO to CEPO in three lines. Comments show the TRL lines.

    python examples/grpo_to_cepo.py

Trains the shipped policy on the figures task, offline, for a few steps. For another model and dataset change `model`
and `train_dataset`; CEPO also needs the column `solution`, with the correct answer or a worked solution.
"""

import sys

from cepo import CEPOConfig, CEPOTrainer, load_figures, policy_path  # from trl import GRPOConfig, GRPOTrainer
from cepo.tasks.figures import figures_reward


def main(output_dir="grpo-to-cepo", max_steps="4"):
    args = CEPOConfig(  # GRPOConfig(
        output_dir=output_dir,
        learning_rate=1e-4,
        max_steps=int(max_steps),
        per_device_train_batch_size=16,  # rollouts: 2 prompts x 8
        num_generations=8,
        max_completion_length=176,
        logging_steps=1,
        bf16=False,
        report_to="none",
    )
    trainer = CEPOTrainer(  # GRPOTrainer(
        model=policy_path(),
        reward_funcs=figures_reward,
        args=args,
        train_dataset=load_figures("train", 200),
    )
    trainer.train()
    return trainer


if __name__ == "__main__":
    main(*sys.argv[1:])

"""CEPO on text: GSM8K, whose worked solutions end in `#### 72`.

    python examples/text.py                                        # Qwen3-0.6B on one GPU: a download
    python examples/text.py --model my-model --dataset rows.jsonl  # columns prompt and solution

The correct answer comes from the solution, an incorrect one from a rejected rollout.
"""

import argparse

from cepo import CEPOConfig, CEPOTrainer, answer_reward
from cepo.data.loading import load_split


def main():
    parser = argparse.ArgumentParser(description="Train a language model with CEPO.")
    parser.add_argument("--model", default="Qwen/Qwen3-0.6B")
    parser.add_argument("--dataset", default="openai/gsm8k", help="a name on the Hub, a folder or a file")
    parser.add_argument("--method", default="cepo")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rollouts", type=int, default=64, help="rollouts of a step: prompts x 8")
    parser.add_argument("--length", type=int, default=512, help="longest completion [tokens]")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--output_dir", default="text-run")
    given = parser.parse_args()

    args = CEPOConfig(
        output_dir=given.output_dir,
        method=given.method,
        max_steps=given.steps,
        per_device_train_batch_size=given.rollouts,
        num_generations=8,
        max_completion_length=given.length,
        learning_rate=1e-6,
        bf16=given.bf16,
        logging_steps=1,
        log_completions=True,  # for cepo explain --from
        report_to="none",  # or trackio, tensorboard, wandb
    )
    # load_split knows the columns and the prompt template of GSM8K.
    trainer = CEPOTrainer(given.model, answer_reward, args, load_split(given.dataset, "train"))
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main()

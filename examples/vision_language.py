"""CEPO on images: Qwen3-VL with LoRA in bfloat16, on Geometry3K.

    pip install '.[peft]'
    python examples/vision_language.py                                        # one GPU of 24 GB or more: a download
    python examples/vision_language.py --dataset rows.jsonl --model my-model  # columns prompt, image(s), solution

`cepo train --dry_run` estimates the memory of such a run without a GPU. recipes/ has the paper's runs.
"""

import argparse

from peft import LoraConfig

from cepo import CEPOConfig, CEPOTrainer, answer_reward
from cepo.data.loading import load_split


def main():
    parser = argparse.ArgumentParser(description="Train a vision-language model with CEPO.")
    parser.add_argument("--model", default="Qwen/Qwen3-VL-2B-Instruct")
    parser.add_argument("--dataset", default="hiyouga/geometry3k", help="a name on the Hub, a folder or a file")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--prompts", type=int, default=8, help="prompts of a step, 8 rollouts each")
    parser.add_argument("--length", type=int, default=1024, help="longest completion [tokens]")
    parser.add_argument("--vllm", action="store_true", help="sample with vLLM on the same GPU")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--output_dir", default="vision-run")
    given = parser.parse_args()

    # load_split knows the columns and the prompt template of Geometry3K.
    dataset = load_split(given.dataset, "train")
    args = CEPOConfig(
        output_dir=given.output_dir,
        max_steps=given.steps,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=given.prompts,
        num_generations=8,
        max_completion_length=given.length,
        learning_rate=5e-6,
        bf16=given.bf16,
        gradient_checkpointing=True,
        model_init_kwargs={"dtype": "bfloat16" if given.bf16 else "float32"},
        use_vllm=given.vllm,
        vllm_mode="colocate",
        logging_steps=1,
        log_completions=True,  # for cepo explain --from
        credit_page_steps=10,
        report_to="none",  # or trackio, tensorboard, wandb
    )
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = CEPOTrainer(given.model, answer_reward, args, dataset, peft_config=lora)
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main()

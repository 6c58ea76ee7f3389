"""Training on a GPU rehearsed without one: torch's CUDA build over a stub of CUDA (`cuda_stub.c`)."""

# The cases of `make test-rehearsal`.
SHORT = (
    *("trl-text", "grpo-text", "cepo-text", "opsd-text", "cepo-never-text", "cepo-lora-ema-text"),
    *("cepo-autocast-text", "cepo-bf16-checkpointing-lora-text", "trl-accumulated-text", "cepo-accumulated-text"),
    *("trl-vision", "cepo-vision", "cepo-checkpointing-vision"),
)

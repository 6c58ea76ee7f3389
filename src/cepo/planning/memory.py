"""An estimate of one process's memory in each phase of a step, from the model's sizes and the run's options.

The allocator's fragmentation and the libraries' workspaces are not included.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from ..scoring.head import CHUNK
from ..trainer.cepo_config import CEPOConfig
from .models import Skeleton

PHASES = ("accuracy", "sampling", "teachers", "update")
SHARDS = ("none", "optimizer", "gradients", "weights")


@dataclass(frozen=True)
class Layout:
    """Processes and sharding.

    Attributes:
        processes: Number of processes.
        shards: One of `SHARDS`; each includes those before it.
        engine: ``ddp``, ``fsdp1``, ``fsdp2`` or ``deepspeed``.
    """

    processes: int = 1
    shards: str = "none"
    engine: str = "ddp"

    def divisor(self, part: str) -> int:
        """Number of processes that share a part."""
        return self.processes if SHARDS.index(self.shards) >= SHARDS.index(part) else 1


@dataclass(frozen=True)
class Lengths:
    """Tokens of a rollout: the prompt including images, the images, and the completion."""

    prompt: int
    image: int
    completion: int

    @property
    def total(self) -> int:
        return self.prompt + self.completion


@dataclass(frozen=True)
class Part:
    """Memory of one purpose: name, size [bytes] and the phases in which it is allocated."""

    name: str
    bytes: float
    phases: Sequence[str] = PHASES


@dataclass(frozen=True)
class Memory:
    """The parts of one process's memory."""

    parts: list[Part]

    def at(self, phase: str) -> float:
        """Bytes in a phase."""
        return sum(part.bytes for part in self.parts if phase in part.phases)

    @property
    def peak(self) -> float:
        """Bytes in the largest phase."""
        return max(map(self.at, PHASES))


def memory_of(
    skeleton: Skeleton,
    args: CEPOConfig,
    layout: Layout,
    lengths: Lengths,
    *,
    mixed: bool = False,
    device: float = 0.0,
    teacher: Skeleton | None = None,
    eval_batch: int = 0,
) -> Memory:
    """Estimate the memory of one process.

    Args:
        skeleton: The policy.
        args: The run's options; `per_device_train_batch_size` is per process.
        layout: Processes and sharding.
        lengths: Of the rollouts.
        mixed: Whether float32 weights are multiplied in bfloat16 (autocast).
        device: Memory of the device [bytes], for the share that vLLM reserves; 0: unknown.
        teacher: A further model that scores rollouts, held whole by each process.
        eval_batch: Number of held-out answers sampled at a time.
    """
    half = 2 if mixed else skeleton.dtype.itemsize
    parts = [*_weights(skeleton, args, layout, mixed, teacher), *_update(skeleton, args, lengths, mixed, half)]
    sampled = {
        "accuracy": eval_batch,
        "sampling": 0 if args.use_vllm else args.generation_batch_size // layout.processes,
    }
    for phase, rows in sampled.items():
        # transformers holds a token's logits in the model's precision, in float32, as probabilities, and sorted.
        row = lengths.total * skeleton.cache_elements * half + skeleton.text.vocab_size * (half + 12)
        gathered = skeleton.count() * half if rows and layout.divisor("weights") > 1 else 0
        parts.append(Part(f"KV cache of {rows} sampled rollouts", rows * row + gathered, [phase]))
    if args.use_vllm and args.vllm_mode == "colocate":
        phases = ["sampling"] if args.vllm_enable_sleep_mode else PHASES
        parts.append(Part("vLLM (0 without --device_memory)", args.vllm_gpu_memory_utilization * device, phases))
    if (args.method_spec.needs_teachers and args.coefficient_at(0) > 0) or args.uses_divergence_loss:
        tokens = args.teacher_batch_tokens or args.per_device_train_batch_size * lengths.total
        scored = tokens * (skeleton.cache_elements * half + layer_bytes(skeleton, mixed)) + logits_tile(tokens, half)
        parts.append(Part("scoring passes of teachers", scored, ["teachers"]))
    return Memory([part for part in parts if part.bytes])


def _weights(
    skeleton: Skeleton, args: CEPOConfig, layout: Layout, mixed: bool, teacher: Skeleton | None
) -> Iterator[Part]:
    """Weights, optimizer states, gradients and copies of the weights.

    Bytes per trained parameter: its size for weight and for gradient, twice its size for Adam's moments; 4 + 4 + 8
    under FSDP with bf16, where accelerate keeps float32; 2 + 2 + 12 under DeepSpeed with bf16, whose optimizer also
    holds float32 weights (ZeRO, arXiv 1910.02054, section 3.1).
    """
    trained, frozen = skeleton.count(trained=True), skeleton.bytes_of(trained=False)
    size = skeleton.bytes_of(trained=True) / max(1, trained)
    if layout.engine.startswith("fsdp") and args.bf16:
        size = 4
    weight, moments, gradient = (2, 12, 2) if layout.engine == "deepspeed" and args.bf16 else (size, 2 * size, size)
    optim = str(getattr(args.optim, "value", args.optim))
    shares = {"8bit": 0.25, "4bit": 0.25, "adafactor": 0.02, "sgd": 0.02, "lion": 0.5}
    moments *= next((share for name, share in shares.items() if name in optim), 1.0)
    sharded = layout.divisor("weights")
    yield Part("weights", (frozen + trained * weight) / sharded)
    yield Part(f"optimizer ({optim})", trained * moments / layout.divisor("optimizer"))
    yield Part("gradients", trained * gradient / layout.divisor("gradients"), ["update"])
    if sharded > 1:  # two blocks at a time, and the embedding with the head
        lists = [module for module in skeleton.wrapped.modules() if isinstance(module, nn.ModuleList)]
        block = max(skeleton.count(module=block) for blocks in lists for block in blocks)
        gathered = 2 * block + skeleton.text.vocab_size * skeleton.text.hidden_size
        yield Part("weights gathered for a pass", gathered * (2 if args.bf16 else skeleton.dtype.itemsize))
    if mixed and layout.engine == "ddp":  # autocast caches its copies during a pass
        yield Part("weights in bfloat16", 2 * skeleton.count(), ["teachers", "update"])
    if args.teacher not in (None, "policy"):  # trainer/teachers.py swaps the policy's weights with the copy
        copy = 4 * trained if args.teacher == "ema" else skeleton.bytes_of(trained=True)
        yield Part(f"teacher weights ({args.teacher})", copy / sharded)
        yield Part("policy weights, swapped out", copy / sharded, ["teachers"])
    if teacher is not None:
        yield Part("teacher model", teacher.bytes_of(trained=True))


def layer_bytes(skeleton: Skeleton, mixed: bool) -> float:
    """Bytes per token that one decoder layer keeps for its backward pass, with fused attention.

    As counted by Korthikanti et al. (arXiv 2205.05198, section 4), for RMSNorm, query and key norms, and SwiGLU: a norm
    keeps its input in float32 and, if its weight is trained, the normed input; attention keeps q, k, v and its output;
    the MLP keeps gate, activation, up and their product; a linear layer keeps its input.
    """
    text, stream = skeleton.text, skeleton.dtype.itemsize
    half = 2 if mixed else stream
    hidden = text.hidden_size
    inner = getattr(text, "intermediate_size", None) or 4 * hidden
    queries, keys = skeleton.attention_sizes
    norms = {name: p for name, p in skeleton.model.get_decoder().named_parameters() if "norm" in name}
    normed = 2 * hidden + (queries + keys if any("q_norm" in name for name in norms) else 0)
    kept = normed * (4 + (stream if any(p.requires_grad for p in norms.values()) else 0))
    kept += stream * (queries + keys) + half * (queries + keys) + 3 * half * inner
    if mixed:  # autocast casts the input of each linear layer
        return kept + half * (5 * hidden + inner)
    if any(p.requires_grad and p.dtype != skeleton.dtype for p in skeleton.wrapped.parameters()):
        return kept + 4 * (5 * hidden + queries + inner)  # PEFT casts it to the adapters' float32
    return kept + half * (2 * hidden + inner)


def tower_block_bytes(skeleton: Skeleton, mixed: bool) -> float:
    """Bytes per patch that one block of a Qwen-VL vision tower keeps: LayerNorm and a GELU MLP, else as above."""
    config, stream = skeleton.tower.config, skeleton.dtype.itemsize
    half = 2 if mixed else stream
    return half * (9 * config.hidden_size + 2 * config.intermediate_size) + stream * 2 * config.hidden_size


def _update(skeleton: Skeleton, args: CEPOConfig, lengths: Lengths, mixed: bool, half: int) -> Iterator[Part]:
    """Activations of a micro-batch and its logits.

    With gradient checkpointing each layer keeps its input and one layer at a time is recomputed (arXiv 1604.06174),
    after the head has released its logits; the larger of the two counts. A divergence over the vocabulary keeps six
    float32 tensors of a chunk's logits: two distributions, their mixture, and gradients.
    """
    rows, text, stream = args.per_device_train_batch_size, skeleton.text, skeleton.dtype.itemsize
    tokens, layer, checkpointing = rows * lengths.total, layer_bytes(skeleton, mixed), args.gradient_checkpointing
    kept = text.hidden_size * stream if checkpointing else layer
    yield Part("activations", tokens * text.num_hidden_layers * kept, ["update"])
    tower = skeleton.tower
    if (
        lengths.image
        and hasattr(getattr(tower, "config", None), "depth")
        and skeleton.count(trained=True, module=tower)
    ):
        block = tower_block_bytes(skeleton, mixed)
        config = tower.config
        kept = block + config.depth * config.hidden_size * stream if checkpointing else config.depth * block
        patches = rows * lengths.image * config.spatial_merge_size**2
        yield Part("activations of the vision tower", patches * kept, ["update"])
    if args.uses_divergence_loss:
        logits = 6 * min(CHUNK, rows * lengths.completion) * text.vocab_size * 4
        yield Part("hidden states of student and teacher", 2 * tokens * text.hidden_size * half, ["update"])
    else:
        logits = logits_tile(tokens, half) + tokens * text.hidden_size * 4
    recomputed = tokens * layer if checkpointing else 0
    yield Part("logits" if logits >= recomputed else "one layer, recomputed", max(logits, recomputed), ["update"])
    if skeleton.model.get_output_embeddings().weight.requires_grad:
        yield Part("gradient of the head, float32", text.vocab_size * text.hidden_size * 4, ["update"])


def logits_tile(tokens: float, half: int) -> float:
    """Bytes of a tile of TRL's fused head (`trl.kernels.chunked_logprob`): 4,096 positions by 32,768 entries, which the
    kernel allocates whole for smaller vocabularies, too."""
    return min(tokens, 4096) * 32768 * half

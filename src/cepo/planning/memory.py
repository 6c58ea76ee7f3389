"""The memory of one process, by part and by phase of a step.

Estimates from the model's skeleton and the options. What an allocator loses, and what libraries hold of their own, is
not in them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from ..scoring.head import CHUNK
from ..trainer.cepo_config import CEPOConfig
from .activations import text_bytes, tower_bytes
from .models import Skeleton

PHASES = ("accuracy", "sampling", "teachers", "update")
Shards = Literal["none", "optimizer", "gradients", "weights"]

# Positions and vocabulary entries of TRL's fused head that are held at a time (trl.kernels.chunked_logprob).
_HEAD_TILE = (4096, 32768)
# (N, V) tensors in float32 that a divergence holds of a chunk, forward and backward: both distributions, what they are
# mixed to, and gradients.
_DIVERGENCE_TENSORS = 6


@dataclass(frozen=True)
class Layout:
    """Processes, and what they share among them.

    Attributes:
        processes: How many.
        shards: What is sharded: with ``gradients`` the optimiser's state is too, with ``weights`` all three.
        engine: ``ddp``, ``fsdp1``, ``fsdp2`` or ``deepspeed``.
    """

    processes: int = 1
    shards: Shards = "none"
    engine: str = "ddp"

    def share(self, part: Shards) -> int:
        """By how many processes a part is divided."""
        order: tuple[Shards, ...] = ("none", "optimizer", "gradients", "weights")
        return self.processes if order.index(self.shards) >= order.index(part) else 1


@dataclass(frozen=True)
class Lengths:
    """Tokens of a rollout.

    Attributes:
        prompt: Of the prompt, images included.
        image: Of these, for images.
        completion: The most of a completion.
    """

    prompt: int
    image: int
    completion: int

    @property
    def whole(self) -> int:
        return self.prompt + self.completion


@dataclass(frozen=True)
class Part:
    """Something that takes memory.

    Attributes:
        name: What.
        bytes: How much, of one process.
        phases: When.
    """

    name: str
    bytes: float
    phases: Sequence[str] = PHASES


@dataclass
class Memory:
    """What one process holds.

    Attributes:
        parts: By part.
        notes: What is not in them, and what was assumed.
    """

    parts: list[Part]
    notes: list[str] = field(default_factory=list)

    def at(self, phase: str) -> float:
        """Bytes held at most in a phase."""
        return sum(part.bytes for part in self.parts if phase in part.phases)

    @property
    def peak(self) -> float:
        return max(map(self.at, PHASES))


def memory_of(
    skeleton: Skeleton,
    args: CEPOConfig,
    layout: Layout,
    lengths: Lengths,
    *,
    mixed: bool = False,
    device: float = 0.0,
    other: Skeleton | None = None,
    answers: int = 0,
) -> Memory:
    """The memory of one process.

    Args:
        skeleton: The model.
        args: The run's options; `per_device_train_batch_size` is that of one process.
        layout: Processes.
        lengths: Of rollouts.
        mixed: Whether products are made in bfloat16 over weights in float32.
        device: Memory of the device [bytes], of which vLLM takes its share; 0: not known.
        other: Another model that reads, whole on each process.
        answers: How many held-out answers are sampled at a time.
    """
    memory = Memory([])
    add = memory.parts.append
    for part in _states(skeleton, args, layout, mixed):
        add(part)
    if args.teacher not in (None, "policy"):
        size = skeleton.bytes_of(trained=True)
        if args.teacher == "ema":
            size = 4 * skeleton.count(trained=True)
        add(Part(f"teacher's copy ({args.teacher})", size / layout.share("weights")))
        add(Part("the policy's weights while the copy reads", size / layout.share("weights"), ["teachers"]))
    if other is not None:
        add(Part("the model that teaches", other.bytes_of(trained=True)))
    tokens = args.per_device_train_batch_size * lengths.whole
    half = 2 if mixed else skeleton.dtype.itemsize
    for part in _sampling(skeleton, args, layout, lengths, half, device, memory.notes):
        add(part)
    if answers:
        for part in _generation(skeleton, layout, answers, lengths, half, "accuracy"):
            add(part)
    each, _ = text_bytes(skeleton, mixed)
    for part in _update(skeleton, args, lengths, each, mixed, half, memory.notes):
        add(part)
    if args.shared_prompt_update != "never" and layout.shards != "weights" and not args.distils_whole:
        memory.notes.append("the update is counted as if every rollout had a prompt of its own; shared, it holds less")
    if (args.chosen.needs_teachers and args.coefficient_at(0) > 0) or args.distils_whole:
        most = args.teacher_batch_tokens or tokens
        block = each / skeleton.text.num_hidden_layers
        cache = skeleton.cache_bytes * half / skeleton.dtype.itemsize
        add(Part("teachers' passes: keys and values, one layer", most * (cache + block), ["teachers"]))
        add(Part("teachers' passes: a tile of logits", _tile(most, half), ["teachers"]))
    return memory


def _states(skeleton: Skeleton, args: CEPOConfig, layout: Layout, mixed: bool) -> list[Part]:
    """Weights, gradients, optimiser."""
    trained, frozen = skeleton.count(trained=True), skeleton.bytes_of(trained=False)
    size = skeleton.bytes_of(trained=True) / max(1, trained)  # bytes of a trained parameter
    if layout.engine.startswith("fsdp") and args.bf16:
        size = 4  # accelerate trains in float32 there
    weights, moments, gradient = size, 2 * size, size
    if layout.engine == "deepspeed" and args.bf16:
        weights, moments, gradient = 2, 12, 2  # ZeRO keeps a copy in float32 beside the two moments
    optim = str(getattr(args.optim, "value", args.optim))
    moments *= _moments(optim)
    adapters = frozen > 0 and trained < 0.2 * skeleton.count()
    parts = [
        Part(
            "weights, frozen" if adapters else "weights",
            (frozen + (0 if adapters else trained * weights)) / layout.share("weights"),
        )
    ]
    if adapters:
        parts.append(Part("adapters", trained * weights / layout.share("weights")))
    parts.append(Part(f"optimiser ({optim})", trained * moments / layout.share("optimizer")))
    parts.append(Part("gradients", trained * gradient / layout.share("gradients"), ["update"]))
    if layout.shards == "weights" and layout.processes > 1:
        # Two blocks at a time, and the embedding with the head.
        gathered = (2 * skeleton.largest_block + skeleton.text.vocab_size * skeleton.text.hidden_size) * (
            2 if args.bf16 else skeleton.dtype.itemsize
        )
        parts.append(Part("weights gathered for a pass", gathered))
    if mixed and layout.engine == "ddp":
        parts.append(Part("weights in bfloat16 for a pass", 2 * skeleton.count(), ["teachers", "update"]))
    return parts


def _moments(optim: str) -> float:
    """The optimiser's state, as a share of Adam's in the weights' precision."""
    if "8bit" in optim or "4bit" in optim:
        return 0.25
    if "adafactor" in optim or optim == "sgd":
        return 0.02
    return 0.5 if "lion" in optim else 1.0


def _sampling(
    skeleton: Skeleton,
    args: CEPOConfig,
    layout: Layout,
    lengths: Lengths,
    half: int,
    device: float,
    notes: list[str],
) -> list[Part]:
    if args.use_vllm and args.vllm_mode == "server":
        return []
    if args.use_vllm:
        if not device:
            notes.append(
                f"vLLM takes {args.vllm_gpu_memory_utilization:.0%} of the device beside this; --device_memory "
                "GIB says how much that is"
            )
            return []
        phases = ["sampling"] if args.vllm_enable_sleep_mode else PHASES
        return [Part("vLLM", args.vllm_gpu_memory_utilization * device, phases)]
    rollouts = args.generation_batch_size // layout.processes
    return _generation(skeleton, layout, rollouts, lengths, half, "sampling")


def _generation(skeleton: Skeleton, layout: Layout, rows: int, lengths: Lengths, half: int, phase: str) -> list[Part]:
    """In process, by transformers."""
    cache = rows * lengths.whole * skeleton.cache_bytes * half / skeleton.dtype.itemsize
    parts = [
        Part("keys and values of answers", cache, [phase]),
        # Logits in the model's precision and float32, probabilities, and their sorted or masked copy.
        Part("logits of a token to sample", rows * skeleton.text.vocab_size * (half + 12), [phase]),
    ]
    if layout.shards == "weights" and layout.processes > 1:
        parts.append(Part("weights gathered to sample", skeleton.count() * half, [phase]))
    return parts


def _update(
    skeleton: Skeleton,
    args: CEPOConfig,
    lengths: Lengths,
    each: float,
    mixed: bool,
    half: int,
    notes: list[str],
) -> list[Part]:
    """Activations and logits; `each` is what the text part keeps of a token [bytes]."""
    rows = args.per_device_train_batch_size
    tokens, layers = rows * lengths.whole, skeleton.text.num_hidden_layers
    hidden = skeleton.text.hidden_size
    if args.gradient_checkpointing:
        kept, layer = tokens * layers * hidden * skeleton.dtype.itemsize, tokens * each / layers
    else:
        kept, layer = tokens * each, 0.0
    parts = [Part(f"activations{', checkpointed' if args.gradient_checkpointing else ''}", kept, ["update"])]
    block = tower_bytes(skeleton, mixed) if lengths.image else 0.0
    if block is None:
        notes.append("activations of the vision tower are not in this: its code could not be asked")
    elif block:
        config = skeleton.tower.config
        depth, merged = config.depth, config.spatial_merge_size**2
        patches = rows * lengths.image * merged
        inputs = depth * config.hidden_size * skeleton.dtype.itemsize
        kept = patches * (inputs + block) if args.gradient_checkpointing else patches * depth * block
        parts.append(Part("activations of the vision tower", kept, ["update"]))
    if args.distils_whole:
        chunk = min(CHUNK, rows * lengths.completion)
        size = _DIVERGENCE_TENSORS * chunk * skeleton.text.vocab_size * 4
        logits = Part(f"logits of {chunk} tokens, twice over", size, ["update"])
        parts.append(Part("hidden states of student and teacher", 2 * tokens * hidden * half, ["update"]))
    else:
        logits = Part("a tile of logits", _tile(tokens, half) + tokens * hidden * 4, ["update"])
    # The head is done with when the first layer is computed again.
    parts.append(logits if logits.bytes >= layer else Part("one layer, computed again", layer, ["update"]))
    if skeleton.model.get_output_embeddings().weight.requires_grad:
        parts.append(Part("the head's gradient in float32", skeleton.text.vocab_size * hidden * 4, ["update"]))
    return parts


def _tile(tokens: float, half: int) -> float:
    """Of TRL's fused head, which takes it whole whatever the vocabulary."""
    return min(tokens, _HEAD_TILE[0]) * _HEAD_TILE[1] * half

"""The memory of one process by part and by phase of a step: formulas over a model's sizes and a run's options.

What an allocator loses, and what libraries hold of their own, is not in them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ..scoring.head import CHUNK
from ..trainer.cepo_config import CEPOConfig
from .models import Skeleton

PHASES = ("accuracy", "sampling", "teachers", "update")
Shards = Literal["none", "optimizer", "gradients", "weights"]
_SHARDS: tuple[Shards, ...] = ("none", "optimizer", "gradients", "weights")


@dataclass(frozen=True)
class Layout:
    """Processes, and what they shard.

    Attributes:
        processes: How many.
        shards: What is sharded: ``gradients`` includes the optimizer's state, ``weights`` all three.
        engine: ``ddp``, ``fsdp1``, ``fsdp2`` or ``deepspeed``.
    """

    processes: int = 1
    shards: Shards = "none"
    engine: str = "ddp"

    def share(self, part: Shards) -> int:
        """Number of processes among which a part is divided."""
        return self.processes if _SHARDS.index(self.shards) >= _SHARDS.index(part) else 1


@dataclass(frozen=True)
class Lengths:
    """Tokens of a rollout: its prompt, images included; those of its images; the longest completion."""

    prompt: int
    image: int
    completion: int

    @property
    def whole(self) -> int:
        return self.prompt + self.completion


@dataclass(frozen=True)
class Part:
    """Something that takes memory: its name, its size [bytes] in one process, and the phases in which it is held."""

    name: str
    bytes: float
    phases: Sequence[str] = PHASES


@dataclass
class Memory:
    """The parts, and notes on what is not in them."""

    parts: list[Part]
    notes: list[str] = field(default_factory=list)

    def at(self, phase: str) -> float:
        """Bytes held in a phase."""
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
        mixed: Whether float32 weights are used in bfloat16 products (autocast).
        device: Memory of the device [bytes], of which vLLM takes its share; 0: not known.
        other: Another model that scores rollouts, whole on each process.
        answers: Number of held-out answers sampled at a time.
    """
    half = 2 if mixed else skeleton.dtype.itemsize
    memory = Memory([*states(skeleton, args, layout, mixed), *teacher_copies(skeleton, args, layout, other)])
    if not args.use_vllm:
        rows = args.generation_batch_size // layout.processes
        memory.parts += generation(skeleton, layout, rows, lengths, half, "sampling")
    elif args.vllm_mode == "colocate" and device:
        phases = ["sampling"] if args.vllm_enable_sleep_mode else PHASES
        memory.parts.append(Part("vLLM", args.vllm_gpu_memory_utilization * device, phases))
    elif args.vllm_mode == "colocate":
        share = f"{args.vllm_gpu_memory_utilization:.0%}"
        memory.notes.append(f"vLLM takes {share} of the device beside this; --device_memory GIB says how much that is")
    if answers:
        memory.parts += generation(skeleton, layout, answers, lengths, half, "accuracy")
    memory.parts += update(skeleton, args, lengths, mixed, half)
    if args.shared_prompt_update != "never" and layout.shards != "weights" and not args.uses_divergence_loss:
        memory.notes.append("the update is counted as if every rollout had a prompt of its own; shared, it holds less")
    if lengths.image and skeleton.trains_tower and skeleton.tower_sizes is None:
        memory.notes.append("activations of the vision tower are not in this: its sizes have other names")
    if (args.method_spec.needs_teachers and args.coefficient_at(0) > 0) or args.uses_divergence_loss:
        memory.parts += teacher_passes(skeleton, args, lengths, mixed, half)
    return memory


def states(skeleton: Skeleton, args: CEPOConfig, layout: Layout, mixed: bool) -> Iterator[Part]:
    """Weights, optimizer and gradients, each divided among the processes that shard it.

    Bytes a trained parameter: its own size for weight and gradient and twice that for Adam's moments; 4 + 4 + 8 under
    FSDP with bf16, where accelerate keeps float32; 2 + 2 + 12 under DeepSpeed with bf16, whose optimizer holds float32
    weights too (ZeRO, arXiv 1910.02054, section 3.1).
    """
    trained, frozen = skeleton.count(trained=True), skeleton.bytes_of(trained=False)
    size = skeleton.bytes_of(trained=True) / max(1, trained)
    if layout.engine.startswith("fsdp") and args.bf16:
        size = 4
    weight, moments, gradient = (2, 12, 2) if layout.engine == "deepspeed" and args.bf16 else (size, 2 * size, size)
    optim = str(getattr(args.optim, "value", args.optim))
    if "8bit" in optim or "4bit" in optim:
        moments *= 0.25
    elif "adafactor" in optim or optim == "sgd":
        moments *= 0.02
    elif "lion" in optim:
        moments *= 0.5
    divided = layout.share("weights")
    if frozen and trained < 0.2 * skeleton.count():
        yield Part("weights, frozen", frozen / divided)
        yield Part("adapters", trained * weight / divided)
    else:
        yield Part("weights", (frozen + trained * weight) / divided)
    yield Part(f"optimiser ({optim})", trained * moments / layout.share("optimizer"))
    yield Part("gradients", trained * gradient / layout.share("gradients"), ["update"])
    if divided > 1:  # two blocks at a time, and the embedding with the head
        gathered = 2 * skeleton.largest_block + skeleton.text.vocab_size * skeleton.text.hidden_size
        yield Part("weights gathered for a pass", gathered * (2 if args.bf16 else skeleton.dtype.itemsize))
    if mixed and layout.engine == "ddp":  # autocast keeps its copies until the pass ends
        yield Part("weights in bfloat16 for a pass", 2 * skeleton.count(), ["teachers", "update"])


def teacher_copies(skeleton: Skeleton, args: CEPOConfig, layout: Layout, other: Skeleton | None) -> Iterator[Part]:
    """Weights of teachers that lag (`trainer/teachers.py` swaps them with the policy's) or are another model."""
    if args.teacher not in (None, "policy"):
        size = 4 * skeleton.count(trained=True) if args.teacher == "ema" else skeleton.bytes_of(trained=True)
        yield Part(f"teacher's copy ({args.teacher})", size / layout.share("weights"))
        yield Part("the policy's weights while the copy reads", size / layout.share("weights"), ["teachers"])
    if other is not None:
        yield Part("the model that teaches", other.bytes_of(trained=True))


def generation(
    skeleton: Skeleton, layout: Layout, rows: int, lengths: Lengths, half: int, phase: str
) -> Iterator[Part]:
    """Sampling by transformers: the KV cache (2 x layers x KV heads x head size a token) and one token's logits.

    Logits are held in the products' precision and in float32, then as probabilities and as their sorted copy
    (`GenerationMixin._sample` and its processors).
    """
    yield Part("keys and values of answers", rows * lengths.whole * skeleton.cache_elements * half, [phase])
    yield Part("logits of a token to sample", rows * skeleton.text.vocab_size * (half + 12), [phase])
    if layout.share("weights") > 1:
        yield Part("weights gathered to sample", skeleton.count() * half, [phase])


def layer_bytes(skeleton: Skeleton, mixed: bool) -> float:
    """Bytes a token that one decoder layer keeps for its backward pass, with fused attention.

    As Korthikanti et al. count them (arXiv 2205.05198, section 4), for RMSNorm, normed queries and keys, and SwiGLU:
    each norm keeps its input in float32 and, if its weight is trained, its normed input; attention keeps q, k, v and
    its output; the MLP keeps gate, its activation, up and their product; each linear layer keeps its input. Within
    6 % of what torch keeps for the shipped policy in float32, in bfloat16 and under autocast (`tests/test_dry_run.py`).
    """
    text, stream = skeleton.text, skeleton.dtype.itemsize
    half = 2 if mixed else stream
    hidden = text.hidden_size
    inner = getattr(text, "intermediate_size", None) or 4 * hidden
    queries, keys = skeleton.attention_sizes
    normed = 2 * hidden + (queries + keys if skeleton.norms_heads else 0)
    kept = normed * (4 + (stream if skeleton.trains_norms else 0))
    kept += stream * (queries + keys) + half * (queries + keys) + 3 * half * inner
    if mixed:  # autocast casts the input of each linear layer anew
        return kept + half * (5 * hidden + inner)
    if skeleton.adapters_differ:  # PEFT casts it to the adapters' type
        return kept + 4 * (5 * hidden + queries + inner)
    return kept + half * (2 * hidden + inner)


def tower_block_bytes(skeleton: Skeleton, mixed: bool) -> float:
    """Bytes a patch that one block of a Qwen-VL vision tower keeps: LayerNorm and a GELU MLP, otherwise as above."""
    _, hidden, inner, _ = skeleton.tower_sizes or (0, 0, 0, 0)
    half = 2 if mixed else skeleton.dtype.itemsize
    return half * (9 * hidden + 2 * inner) + skeleton.dtype.itemsize * 2 * hidden


def update(skeleton: Skeleton, args: CEPOConfig, lengths: Lengths, mixed: bool, half: int) -> Iterator[Part]:
    """Activations of a micro-batch, and its logits.

    With gradient checkpointing each layer keeps its input alone, and one layer at a time is computed again (arXiv
    1604.06174); the head is done with by then, so the larger of the two counts. A divergence over the vocabulary holds
    six float32 tensors of a chunk's logits: both distributions, their mixture, and gradients.
    """
    rows, text = args.per_device_train_batch_size, skeleton.text
    tokens, layers = rows * lengths.whole, text.num_hidden_layers
    each, stream, again = layer_bytes(skeleton, mixed), skeleton.dtype.itemsize, args.gradient_checkpointing
    kept = tokens * layers * (text.hidden_size * stream if again else each)
    yield Part(f"activations{', checkpointed' if again else ''}", kept, ["update"])
    if lengths.image and skeleton.trains_tower and skeleton.tower_sizes is not None:
        depth, width, _, merged = skeleton.tower_sizes
        block = tower_block_bytes(skeleton, mixed)
        kept = block + depth * width * stream if again else depth * block
        yield Part("activations of the vision tower", rows * lengths.image * merged * kept, ["update"])
    if args.uses_divergence_loss:
        chunk = min(CHUNK, rows * lengths.completion)
        head = Part(f"logits of {chunk} tokens, twice over", 6 * chunk * text.vocab_size * 4, ["update"])
        yield Part("hidden states of student and teacher", 2 * tokens * text.hidden_size * half, ["update"])
    else:
        head = Part("a tile of logits", logits_tile(tokens, half) + tokens * text.hidden_size * 4, ["update"])
    layer = tokens * each if again else 0.0
    yield head if head.bytes >= layer else Part("one layer, computed again", layer, ["update"])
    if skeleton.model.get_output_embeddings().weight.requires_grad:
        yield Part("the head's gradient in float32", text.vocab_size * text.hidden_size * 4, ["update"])


def teacher_passes(skeleton: Skeleton, args: CEPOConfig, lengths: Lengths, mixed: bool, half: int) -> Iterator[Part]:
    """Scoring passes without gradient: KV cache of `teacher_batch_tokens` tokens, one layer's tensors, the head."""
    tokens = args.teacher_batch_tokens or args.per_device_train_batch_size * lengths.whole
    each = skeleton.cache_elements * half + layer_bytes(skeleton, mixed)
    yield Part("teachers' passes: keys and values, one layer", tokens * each, ["teachers"])
    yield Part("teachers' passes: a tile of logits", logits_tile(tokens, half), ["teachers"])


def logits_tile(tokens: float, half: int) -> float:
    """Of TRL's fused head (`trl.kernels.chunked_logprob`): up to 4,096 positions by 32,768 entries of the vocabulary,
    which it holds whole however small the vocabulary is."""
    return min(tokens, 4096) * 32768 * half

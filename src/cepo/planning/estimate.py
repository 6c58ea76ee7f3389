"""FLOPs and memory of one process in a step, from the model's sizes and the run's options.

Fragmentation, libraries' workspaces and the CUDA context are not included.
Dimensions: P prompt tokens, T completion tokens, H hidden width, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random

import torch

from ..methods.stages import OTHER_MODEL, STUDENT, Context, StageContext
from ..references.groups import Rollout
from ..scoring.head import CHUNK
from ..trainer.cepo_config import CEPOConfig
from .models import Layers, Sizes

PHASES = ("accuracy", "sampling", "teachers", "update")
SHARDS = ("none", "optimizer", "gradients", "weights")
# Name, size [bytes], and phases in which it is allocated.
Part = tuple[str, float, Sequence[str]]


@dataclass(frozen=True)
class Plan:
    """What a run's FLOPs and memory depend on.

    Attributes:
        model: The policy.
        args: The run's options; `per_device_train_batch_size` is per process.
        prompt, image, completion: Tokens of a prompt with its images, of the images, and of a completion.
        processes: Number of processes.
        shards: What they share, one of `SHARDS`; each includes those before it.
        engine: ``ddp``, ``fsdp1``, ``fsdp2`` or ``deepspeed``.
        device: Memory of a device [bytes], for the share that vLLM reserves; 0: unknown.
        teacher: Another model that scores rollouts, held whole by each process.
        eval_batch: Number of held-out answers sampled at a time.
    """

    model: Sizes
    args: CEPOConfig
    prompt: int
    image: int
    completion: int
    processes: int = 1
    shards: str = "none"
    engine: str = "ddp"
    device: float = 0.0
    teacher: Sizes | None = None
    eval_batch: int = 0

    @property
    def half(self) -> int:
        """Bytes of an element in matrix products."""
        return 2 if self.args.bf16 else self.model.itemsize

    @property
    def shares_update(self) -> bool:
        """Whether the update runs a prompt once for its rollouts in a micro-batch."""
        return self.args.shared_prompt_update != "never"

    def _prompts(self, rows: float) -> float:
        """Number of prompts that run in an update of some rollouts."""
        return max(1.0, rows / self.args.num_generations) if self.shares_update else rows

    def contexts(self) -> list[Context]:
        """Contexts under which a group is scored, if half of it is correct and its incorrect answers differ; without
        log P_S under vLLM, which TRL computes."""
        args, method, options = self.args, self.args.method_spec, self.args.method_options
        if method.contexts is None or not (args.uses_divergence_loss or args.coefficient_at(0) > 0):
            return []
        group = [Rollout(str(n * (n % 2)), float(n % 2 == 0), n % 2 == 0, str(n)) for n in range(args.num_generations)]
        verdicts = torch.tensor([rollout.reward for rollout in group]) * 2 - 1
        scored = method.rollout_filter(verdicts, verdicts, options).tolist()
        references = method.references(group, "0", options, StageContext(lambda text, *_: text, Random(0)))
        of_rollouts = [method.contexts(one, options) for one, kept in zip(references, scored, strict=True) if kept]
        return [one for contexts in of_rollouts for one in contexts if not (args.use_vllm and one is STUDENT)]

    def flops(self) -> dict[str, float]:
        """FLOPs for a generation batch: ``update``, ``teachers``, and ``TRL``, the update of TRL's GRPO."""
        args, contexts = self.args, self.contexts()
        rows = args.generation_batch_size / self.processes
        groups = rows / args.num_generations
        shared = bool(contexts) and args.shared_prompt != "never" and not args.uses_divergence_loss
        each = 0 if shared else 1  # prompts of a context
        teachers = [self._flops(self.teacher if one is OTHER_MODEL else None, each, 1) for one in contexts]
        micro = args.per_device_train_batch_size
        return {
            "update": self._flops(None, self._prompts(micro) * rows / micro, rows, update=True) * args.num_iterations,
            "teachers": (sum(teachers) + shared * self._flops(None, 1, 0)) * groups,
            "TRL": self._flops(None, rows, rows, update=True) * args.num_iterations,
        }

    def _flops(self, model: Sizes | None, prompts: float, rows: float, *, update: bool = False) -> float:
        """FLOPs of a forward pass over prompts and completions, or of their update.

        A matrix takes 2 FLOPs per weight and token, in the backward pass as many for the gradient of its input, and
        as many for its own if it is trained (Kaplan et al., arXiv 2001.08361, section 2.1). Attention takes 4 per
        element of the queries and attended token, counted as dense in a row and in a prompt, and in the backward
        pass, which recomputes the scores, 2.5 times as many (Dao, arXiv 2307.08691, section 4). Gradient
        checkpointing adds a forward pass; the fused head recomputes its logits.
        """
        model = model or self.model

        def of(layers: Layers, tokens: float, pairs: float, queries: int) -> float:
            trained = update * layers.trained
            forward = 1 + update * self.args.gradient_checkpointing if trained else 1
            matrices = 2 * (layers.parameters * (forward + (trained > 0)) + trained)
            return tokens * matrices + 4 * pairs * queries * layers.number * (forward + 2.5 * (trained > 0))

        head = rows * self.completion * 2 * model.vocabulary * model.decoder.hidden
        total = head * (3 + (not model.adapted) if update else 1)
        width = self.prompt + self.completion
        pairs = prompts * self.prompt * (width if prompts == rows else self.prompt) + rows * self.completion * width
        total += of(model.decoder, prompts * self.prompt + rows * self.completion, pairs, model.queries)
        if model.tower:
            patches = self.image * model.patches
            total += of(model.tower, prompts * patches, prompts * patches**2, model.tower.hidden)
        return total

    def memory(self, rows: int | None = None) -> list[Part]:
        """The parts of the memory, for micro-batches of this many rows (default: the run's)."""
        rows = rows or self.args.per_device_train_batch_size
        parts = [*self._weights(), *self._sampling(), *self._teachers(rows), *self._update(rows)]
        return [part for part in parts if part[1]]

    def largest_batch(self, device: float) -> int:
        """The largest power of two as `per_device_train_batch_size` that leaves a tenth of a device [bytes] free, for
        the CUDA context and fragmentation; 0 if one row needs more."""
        plan, rows = replace(self, device=device), 1
        while rows <= self.args.generation_batch_size // self.processes and peak(plan.memory(rows)) <= 0.9 * device:
            rows *= 2
        return rows // 2

    def _weights(self) -> Iterator[Part]:
        """Weights, optimizer states, gradients and copies of the weights.

        Bytes per trained parameter: its size for weight and for gradient, twice its size for Adam's moments; 4 + 4 + 8
        under FSDP with bf16, where accelerate keeps float32; 2 + 2 + 12 under DeepSpeed with bf16, whose optimizer also
        holds float32 weights (ZeRO, arXiv 1910.02054, section 3.1).
        """
        model, args = self.model, self.args
        weights, gradients, optimizer = (
            self.processes if SHARDS.index(self.shards) >= SHARDS.index(part) else 1
            for part in ("weights", "gradients", "optimizer")
        )
        size = 4 if model.adapted or (self.engine.startswith("fsdp") and args.bf16) else model.itemsize
        weight, gradient, states = (2, 2, 12) if self.engine == "deepspeed" and args.bf16 else (size, size, 2 * size)
        optim = str(getattr(args.optim, "value", args.optim))
        shares = {"8bit": 0.25, "4bit": 0.25, "adafactor": 0.02, "sgd": 0.02, "lion": 0.5}
        moments = states * next((share for name, share in shares.items() if name in optim), 1.0)
        frozen = (model.parameters - model.trained) * model.itemsize
        yield "weights", (frozen + model.trained * weight) / weights, PHASES
        yield f"optimizer ({optim})", model.trained * moments / optimizer, PHASES
        yield "gradients", model.trained * gradient / gradients, ["update"]
        # FSDP reduces gradients after the last micro-batch.
        if self.engine.startswith("fsdp") and args.gradient_accumulation_steps > 1:
            yield "gradients between micro-batches", model.trained * self.half, ["update"]
        if weights > 1:  # two layers at a time, and the embedding with the head
            gathered = 2 * model.decoder.parameters / model.decoder.number + model.vocabulary * model.decoder.hidden
            yield "weights gathered for a pass", gathered * self.half, PHASES
        elif model.itemsize > self.half:  # autocast keeps copies of trained weights during a pass
            yield "trained weights in bfloat16", model.trained * self.half, ["teachers", "update"]
        if args.teacher not in (None, "policy"):  # scoring/teacher_weights.py swaps the policy's weights with the copy
            copy = model.trained * (4 if args.teacher == "ema" else size) / weights
            yield f"teacher weights ({args.teacher})", copy, PHASES
            yield "policy weights, swapped out", copy, ["teachers"]
        if self.teacher is not None:
            yield "teacher model", self.teacher.parameters * self.teacher.itemsize, PHASES

    def _sampling(self) -> Iterator[Part]:
        """transformers holds a token's logits in the model's precision, in float32, as probabilities, and sorted."""
        args, model = self.args, self.model
        row = (self.prompt + self.completion) * self._cache_bytes + model.vocabulary * (self.half + 12)
        sampled = 0 if args.use_vllm else args.generation_batch_size // self.processes
        for phase, rows in {"accuracy": self.eval_batch, "sampling": sampled}.items():
            gathered = model.parameters * self.half if rows and self.shards == "weights" else 0
            yield f"KV cache of {rows} sampled rollouts", rows * row + gathered, [phase]
        if args.use_vllm and args.vllm_mode == "colocate":
            phases = ["sampling"] if args.vllm_enable_sleep_mode else PHASES
            share = args.vllm_gpu_memory_utilization
            yield f"vLLM, {share:.0%} of the device", share * self.device, phases

    @property
    def _cache_bytes(self) -> float:
        """Bytes of a token's keys and values."""
        return 2 * self.model.decoder.number * self.model.keys * self.half

    @staticmethod
    def _tile(tokens: float) -> float:
        """Logits that exist at a time: positions by entries of TRL's fused head (`trl.kernels.chunked_logprob`), of
        whole width for smaller vocabularies, too."""
        return min(tokens, 4096) * 32768

    def _teachers(self, rows: int) -> Iterator[Part]:
        """A scoring pass keeps one layer's tensors, and three float32 tensors of a chunk's logits."""
        contexts = self.contexts()
        if contexts and not self.args.uses_divergence_loss:
            model, tokens = self.model, self.args.teacher_batch_tokens or rows * (self.prompt + self.completion)
            # Keys and values are repeated to as many heads as queries.
            layer = 3 * model.decoder.hidden + 3 * model.decoder.intermediate + 3 * model.queries + model.keys
            yield "scoring pass", max(tokens * layer * self.half, 3 * CHUNK * model.vocabulary * 4), ["teachers"]

    def _update(self, rows: int) -> Iterator[Part]:
        """Activations of a micro-batch and its logits.

        With gradient checkpointing a layer keeps its input, and one layer at a time is recomputed (Chen et al., arXiv
        1604.06174) after the head has released its logits; the larger of the two counts. A divergence over the
        vocabulary keeps six float32 tensors of a chunk's logits: two distributions, their mixture, and gradients.
        """
        args, model, checkpoints = self.args, self.model, self.args.gradient_checkpointing
        decoder, tower = model.decoder, model.tower
        prompts = self._prompts(rows)
        tokens, layer = prompts * self.prompt + rows * self.completion, self.layer_bytes()
        kept = decoder.number * (decoder.hidden * model.itemsize if checkpoints else layer)
        last = decoder.hidden * (4 + model.itemsize)  # the last norm, and its gradient
        yield "activations", tokens * (kept + last), ["update"]
        if tower and tower.trained:
            kept = tower.number * (tower.hidden * model.itemsize if checkpoints else self.tower_bytes())
            yield "activations of the vision tower", prompts * self.image * model.patches * kept, ["update"]
        logits = self._tile(tokens) * self.half + tokens * decoder.hidden * 4
        if args.uses_divergence_loss:
            logits = 6 * min(CHUNK, rows * self.completion) * model.vocabulary * 4
            yield "hidden states of student and teacher", 2 * tokens * decoder.hidden * self.half, ["update"]
        if not model.adapted:  # its gradient, in float32
            logits += model.vocabulary * decoder.hidden * 4
        # Gradients as wide as the MLP: one, and two more of the adapters' branch.
        wide = (3 if model.adapted else 1) * decoder.intermediate * self.half
        backward = tokens * (wide + layer * checkpoints)
        yield "LM head" if logits > backward else "backward pass of a layer", max(logits, backward), ["update"]

    def layer_bytes(self) -> float:
        """Bytes per token that a decoder layer keeps for its backward pass.

        As counted by Korthikanti et al. (arXiv 2205.05198, section 4), for RMSNorm, grouped-query attention and SwiGLU.
        A norm keeps its input in float32 and, if trained, the normed input. Attention with padding keeps queries, keys
        and values repeated to as many heads, its output, and the mask. The MLP keeps gate, activation and up. Linear
        layers keep their inputs: one copy for all with this input, or one each if adapters or autocast cast it.
        """
        model, half, hidden, inner = self.model, self.half, self.model.decoder.hidden, self.model.decoder.intermediate
        kept = model.normed * (4 if model.adapted else 4 + model.itemsize)
        kept += half * (4 * model.queries + 3 * inner + self.prompt + self.completion)
        if model.adapted:
            return kept + (2 if self.args.bf16 else 4) * (5 * hidden + model.queries + inner)
        return kept + half * (inner + hidden * (2 if half == model.itemsize else 5))

    def tower_bytes(self) -> float:
        """Bytes per patch that a block of a Qwen-VL tower keeps: float32 inputs of two LayerNorms, and a GELU MLP."""
        tower = self.model.tower
        assert tower is not None
        return self.half * (9 * tower.hidden + 2 * tower.intermediate) + 8 * tower.hidden


def at(parts: Sequence[Part], phase: str) -> float:
    """Bytes in a phase."""
    return sum(size for _, size, phases in parts if phase in phases)


def peak(parts: Sequence[Part]) -> float:
    """Bytes in the largest phase."""
    return max(at(parts, phase) for phase in PHASES)

"""Teacher scoring in three ways: full logits (the reference), TRL's log-prob function, and cepo's prefix cache.

The reference and TRL run context + completion for all rows.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import Accelerator
from transformers import Qwen3VLForConditionalGeneration
from trl import GRPOTrainer

from cepo.fast.prefix_cache import PrefixCachedForward, trial_reason
from cepo.scoring.forward import ScoringModel, evaluating
from cepo.scoring.requests import Ids, Prompt, Request

from .measure import in_random_order, median, seconds_and_memory
from .models import IDS, MERGE, Work, scorable


@dataclass(frozen=True)
class Shape:
    """A batch of `groups` prompts.

    Attributes:
        image: Height and width of the image in patches.
        question: Text tokens of the prompt.
        completion: Mean and standard deviation of the lengths of completions [tokens].
        contexts: Number of contexts (C): r+ and the negatives.
    """

    name: str
    image: tuple[int, int]
    question: int
    completion: tuple[int, int]
    contexts: int = 2
    groups: int = 10
    rollouts: int = 8


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("paper", (40, 38), 120, (250, 60)),  # a prompt of 502 tokens with its image
        Shape("short prompt", (12, 12), 64, (250, 60)),
        Shape("long completion", (40, 38), 120, (1000, 200), groups=5),
        Shape("four wrong answers", (40, 38), 120, (250, 60), contexts=5),
    )
}
HINT = 14  # tokens that a hint adds, answer included


@dataclass(frozen=True)
class Batch:
    """Rollouts and their contexts; `has_variance` (G,): whether a group's advantages differ from zero."""

    prompts: list[Prompt]
    contexts: list[list[Ids]]
    completions: list[list[Ids]]
    has_variance: list[bool]

    def requests(self, *, zero_variance_too: bool) -> list[Request]:
        return [
            Request(index, context, completion)
            for index, (contexts, completions) in enumerate(zip(self.contexts, self.completions, strict=True))
            if zero_variance_too or self.has_variance[index]
            for context in contexts
            for completion in completions
        ]


def make_batch(shape: Shape, zero_variance: float, vocabulary: int, dtype: torch.dtype, seed: int = 0) -> Batch:
    draw = random.Random(seed)
    torch.manual_seed(seed)

    def words(number: int) -> Ids:
        return tuple(draw.randrange(len(IDS), vocabulary) for _ in range(number))

    height, width = shape.image
    tokens = (IDS["<|vision_start|>"], *[IDS["<|image_pad|>"]] * (height * width // MERGE**2), IDS["<|vision_end|>"])
    prompts, contexts, completions = [], [], []
    for _ in range(shape.groups):
        ids = tokens + words(shape.question)
        types = torch.tensor([int(i == IDS["<|image_pad|>"]) for i in ids])
        images = {
            "pixel_values": torch.randn(height * width, 3 * 2 * 8 * 8, dtype=dtype),
            "image_grid_thw": torch.tensor([[1, height, width]]),
        }
        prompts.append(Prompt(ids, images, {"mm_token_type_ids": types}, len(tokens)))
        contexts.append([ids[:-5] + words(HINT) + ids[-5:] for _ in range(shape.contexts)])
        lengths = [max(16, round(draw.gauss(*shape.completion))) for _ in range(shape.rollouts)]
        completions.append([words(length) for length in lengths])
    zero = round(zero_variance * shape.groups)
    return Batch(prompts, contexts, completions, [index >= zero for index in range(shape.groups)])


# Seconds, bytes held at most, and what was run.
Measured = tuple[float, int, Work]


class Ways:
    """The three ways on one batch, with micro-batches of `rows` rows."""

    def __init__(self, model: Qwen3VLForConditionalGeneration, batch: Batch, rows: int):
        self.model, self.batch, self.rows = model, batch, rows
        self.device = model.device
        everything = batch.requests(zero_variance_too=True)
        self.concatenated = [self._all_rows(position) for position in range(len(batch.contexts[0]))]
        longest = max(len(request.context) for request in everything)
        longest += max(len(request.completion) for request in everything)
        self.ours = PrefixCachedForward(ScoringModel(model, model), rows * longest)
        self.wanted = batch.requests(zero_variance_too=False)

    def _all_rows(self, position: int) -> list[dict[str, Any]]:
        """One context for all rollouts, as TRL pads them, in micro-batches."""
        requests = [
            Request(index, contexts[position], completion)
            for index, contexts in enumerate(self.batch.contexts)
            for completion in self.batch.completions[index]
        ]
        prompt_width = max(len(request.context) for request in requests)
        width = max(len(request.completion) for request in requests)
        batches = []
        for start in range(0, len(requests), self.rows):
            rows = requests[start : start + self.rows]
            ids, mask, types = torch.zeros(3, len(rows), prompt_width + width, dtype=torch.long).unbind()
            for row, request in enumerate(rows):
                begin = prompt_width - len(request.context)
                tokens = request.context + request.completion
                ids[row, begin : begin + len(tokens)] = torch.tensor(tokens)
                mask[row, begin : begin + len(tokens)] = 1
            types[ids == IDS["<|image_pad|>"]] = 1
            prompts = [self.batch.prompts[request.prompt] for request in rows]
            fields = {
                "input_ids": ids,
                "attention_mask": mask,
                "mm_token_type_ids": types,
                "pixel_values": torch.cat([prompt.images["pixel_values"] for prompt in prompts]),
                "image_grid_thw": torch.cat([prompt.images["image_grid_thw"] for prompt in prompts]),
            }
            batches.append({name: values.to(self.device) for name, values in fields.items()} | {"kept": width})
        return batches

    def reference(self) -> list[torch.Tensor]:
        """Each context a full pass over all rows, all logits, the image encoded for every row."""
        results = []
        for batches in self.concatenated:
            for batch in batches:
                inputs = dict(batch)
                kept = inputs.pop("kept")
                logits = self.model(**inputs).logits[:, -kept - 1 : -1]
                targets = inputs["input_ids"][:, -kept:].unsqueeze(-1)
                results.append(logits.log_softmax(-1).gather(-1, targets).squeeze(-1))
        return results

    def trl(self) -> list[torch.Tensor]:
        """TRL's function on the same concatenations."""
        trainer = SimpleNamespace(accelerator=Accelerator())
        results = []
        for batches in self.concatenated:
            for batch in batches:
                fields = {name: values for name, values in batch.items() if name != "kept"}
                logps, _, _ = GRPOTrainer._get_per_token_logps_and_entropies(
                    trainer,
                    self.model,
                    fields.pop("input_ids"),
                    fields.pop("attention_mask"),
                    batch["kept"],
                    num_images=[1] * len(fields["image_grid_thw"]),
                    **fields,
                )
                results.append(logps)
        return results

    def cepo(self) -> list[torch.Tensor]:
        """Shared prompts, without zero-variance groups."""
        return self.ours.log_probs(self.batch.prompts, self.wanted)

    def check(self) -> None:
        """Compare the log-probs of shared and whole prompts."""
        reason = trial_reason(self.ours, self.batch.prompts, self.wanted)
        if reason is not None:
            raise RuntimeError(reason)

    @contextmanager
    def counted(self) -> Iterator[Work]:
        """Count the work of the model's forward passes meanwhile."""
        done = Work()

        def count(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
            rows, length = kwargs["input_ids"].shape
            done.tokens += rows * length
            done.pairs += rows * length * kwargs["attention_mask"].shape[1]
            done.predicted += rows * (1 if "logits_to_keep" in kwargs else length)
            if kwargs.get("pixel_values") is not None:
                done.patches += len(kwargs["pixel_values"])

        hook = self.model.register_forward_pre_hook(count, with_kwargs=True)
        try:
            yield done
        finally:
            hook.remove()

    def measured(self, name: str) -> Measured:
        with self.counted() as done:
            seconds, memory = seconds_and_memory(getattr(self, name), self.device)
        return seconds, memory, done


def floor(batch: Batch) -> Work:
    """The least work of any exact method: every distinct prefix once. The last token of a completion is not run."""
    done = Work()
    for index, prompt in enumerate(batch.prompts):
        if not batch.has_variance[index]:
            continue
        tree: dict[int, Any] = {}
        predicted = set()
        for context in batch.contexts[index]:
            for completion in batch.completions[index]:
                node = tree
                for depth, token in enumerate(context + completion[:-1], 1):
                    if token not in node:
                        node[token] = {}
                        done.tokens += 1
                        done.pairs += depth
                    node = node[token]
                predicted |= {(context, completion[:end]) for end in range(1, len(completion) + 1)}
        done.predicted += len(predicted)
        done.patches += len(prompt.images["pixel_values"])
    return done


def run(
    model: Qwen3VLForConditionalGeneration,
    shapes: list[Shape],
    shares: list[float],
    *,
    repeats: int,
    micro_batch: int,
    rate: float,
    say: Callable[[dict[str, Any]], None],
) -> list[dict[str, Any]]:
    """One row of results for each shape and share of zero-variance groups."""
    scorable(model)
    results = []
    for shape in shapes:
        # The reference and TRL run all rows, so one measurement of them serves for every share.
        batches = {
            share: make_batch(shape, share, model.config.text_config.vocab_size, model.dtype) for share in shares
        }
        ways = {share: Ways(model, batch, micro_batch) for share, batch in batches.items()}
        every = ways[shares[0]]
        timers: dict[Any, Callable[[], Measured]] = {
            name: partial(every.measured, name) for name in ("reference", "trl")
        }
        timers |= {share: partial(way.measured, "cepo") for share, way in ways.items()}
        with evaluating(model):
            every.check()
            if every.device.type == "cuda":
                for timer in timers.values():
                    timer()  # warm-up
            rounds = in_random_order(timers, repeats)
        for share, batch in batches.items():
            mine = {"reference": rounds["reference"], "trl": rounds["trl"], "cepo": rounds[share]}
            results.append(_row(shape, batch, mine, model, rate))
            say(results[-1])
    return results


def _row(
    shape: Shape, batch: Batch, rounds: dict[str, list[Measured]], model: Qwen3VLForConditionalGeneration, rate: float
) -> dict[str, Any]:
    seconds = {name: median([row[0] for row in rows]) for name, rows in rounds.items()}
    memory = {name: max(row[1] for row in rows) for name, rows in rounds.items()}
    done = {name: rows[0][2] for name, rows in rounds.items()}
    least = floor(batch)
    floor_seconds = least.flops(model.config) / rate
    return {
        "shape": shape.name,
        "prompt_tokens": len(batch.prompts[0].ids),
        "completion_tokens": shape.completion[0],
        "groups": shape.groups,
        "rollouts_per_group": shape.rollouts,
        "contexts": shape.contexts,
        "zero_variance": 1 - sum(batch.has_variance) / len(batch.has_variance),
        "seconds": seconds,
        "ratio_to_reference": seconds["reference"] / seconds["cepo"],
        "ratio_to_trl": seconds["trl"] / seconds["cepo"],
        "tokens_forwarded": {name: work.tokens for name, work in done.items()},
        "floor_tokens": least.tokens,
        "tokens_over_floor": done["cepo"].tokens / least.tokens,
        "floor_seconds": floor_seconds,
        "seconds_over_floor": seconds["cepo"] / floor_seconds,
        "share_of_matmul_rate": {name: done[name].flops(model.config) / rate / seconds[name] for name in rounds},
        "tokens_per_second": done["cepo"].tokens / seconds["cepo"],
        "peak_memory": memory,
    }

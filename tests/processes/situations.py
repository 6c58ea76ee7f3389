"""Random situations of a training step: completions, rewards, method and options.

A situation is plain data, passed to processes as JSON. Numbers fit one, two and three processes: a generation batch is
a multiple of six rollouts, of the group size and of its number of steps.
"""

from dataclasses import dataclass, field
from random import Random
from typing import Any

# Length of a truncated completion [tokens].
LONGEST = 40
# Groups of four span two processes of six rollouts, groups of three span three of four; groups of twelve all of them.
SIZES = (2, 3, 4, 6, 12)
LABELED = ("oracle", "vppo")
DISTILLING = ("opsd", "sdpo")
METHODS = (
    *("cepo", "cepo_additive", "rlsd", "grpo", "opsd", "sdpo", "rlcsd", "rlrt", "cscr", "pbsd", "distilled_rl", "sdar"),
    *LABELED,
)
# Distributions of rewards in a batch.
PROFILES = (
    *("mixed", "mixed", "one_group", "one_group", "one_rollout"),
    *("all_right", "all_wrong", "no_verdicts", "some_verdicts"),
)
KINDS = ("right", "wrong", "silent", "empty", "short", "cut")


@dataclass(frozen=True)
class Written:
    """A scripted completion.

    Attributes:
        text: Text; a truncated completion repeats it.
        ends: Whether it ends with the end token.
        verdict: Verdict, 1 or 0; None without one.
        style: Second reward.
    """

    text: str
    ends: bool
    verdict: float | None
    style: float


@dataclass(frozen=True)
class Situation:
    """One run.

    Attributes:
        method, options: Method and options of the trainer.
        size: Rollouts of a group.
        rollouts: Rollouts of a generation batch.
        model: `text` or `image`.
        lora: Whether adapters are trained.
        style: Whether there is a second reward.
        batches: Completions of each batch.
        fails: Rank whose reward function raises.
        hangs: Rank that hangs.
    """

    method: str
    options: dict[str, Any]
    size: int
    rollouts: int = 12
    model: str = "text"
    lora: bool = False
    style: bool = False
    batches: list[list[Written]] = field(default_factory=list)
    fails: int | None = None
    hangs: int | None = None

    @classmethod
    def of(cls, plain: dict[str, Any]) -> "Situation":
        """From JSON."""
        batches = [[Written(**one) for one in batch] for batch in plain["batches"]]
        return cls(**{**plain, "batches": batches})

    def runs_on(self, processes: int) -> bool:
        """Whether it runs on a number of processes: token labels need whole groups on each."""
        return self.method not in LABELED or self.rollouts // processes % self.size == 0


def situation(seed: int) -> Situation:
    """The situation of a seed; methods alternate."""
    rng = Random(f"situation:{seed}")
    method = METHODS[seed % len(METHODS)]
    # With token labels, groups of two fit two and three processes, groups of four three, groups of three two.
    size = rng.choice((2, 2, 3, 4) if method in LABELED else SIZES)
    options = _options(method, rng)
    same_length = options.get("loss_type") == "bnpo"
    batches = [_batch(size, 12, rng, same_length=same_length) for _ in range(2)]
    style = rng.random() < 0.3
    if style:
        options["reward_weights"] = [1.0, rng.choice((0.1, 0.5))]
    return Situation(
        method,
        options,
        size,
        model="image" if rng.random() < 0.3 else "text",
        lora=rng.random() < 0.15,
        style=style,
        batches=batches,
    )


def _options(method: str, rng: Random) -> dict[str, Any]:
    """Options of the trainer for a method."""
    options: dict[str, Any] = {}
    if rng.random() < 0.4:  # a batch of several steps, of micro-batches, or one of several
        steps, parts = rng.choice(((2, 1), (2, 2), (1, 2)))
        options |= {"steps_per_generation": steps, "gradient_accumulation_steps": parts}
    if rng.random() < 0.25:
        options["num_iterations"] = 2
    options["mask_truncated_completions"] = rng.random() < 0.5
    if rng.random() < 0.3:
        options["log_completions"] = True
    if rng.random() < 0.15:
        options["credit_page_steps"] = 1
    if rng.random() < 0.5:
        options["teacher_batch_tokens"] = rng.choice((150, 400))
    if rng.random() < 0.3:
        options["shared_prompt"] = rng.choice(("never", "always"))
    if method in DISTILLING:
        options["divergence"] = rng.choice(("full", "top_k", "sampled"))
        options["divergence_beta"] = rng.choice((0.0, 0.5, 1.0))
        if options["divergence"] == "top_k":
            options["divergence_top_k"] = 5
        if options["divergence"] == "sampled":
            options.pop("divergence_beta")
    if method not in ("grpo", "distilled_rl", *LABELED):
        options |= rng.choice(
            (
                {},
                {"teacher": "initial"},
                {"teacher": "synced", "teacher_sync_steps": 1},
                {"teacher": "ema", "teacher_ema_decay": 0.5},
            )
        )
    if method == "cepo":
        options |= {
            "negative_reference": rng.choice(("lowest_reward", "most_common", "own", "mixture", "own_or_mixture")),
            "max_negatives": rng.choice((1, 4)),
            "missing_negative": rng.choice(("student", "uniform")),
            "negative_content": rng.choice(("answer", "rollout")),
            "positive_content": rng.choice(("answer", "solution", "rollout")),
            "evidence_steps": rng.choice((1, 50)),  # GRPO after one step
        }
    if method == "rlcsd":
        options["max_negatives"] = rng.choice((1, 2))
        # With the default threshold, the strong evidence of small models would select all tokens.
        options |= {"tau": 1.0, "selection_threshold": rng.choice((0.1, 0.2))}
    if method in DISTILLING and options["divergence"] != "sampled":
        return options
    return options | _loss(method, rng)


def _loss(method: str, rng: Random) -> dict[str, Any]:
    """Options of TRL's loss."""
    found: dict[str, Any] = {"loss_type": rng.choice(("dapo", "grpo", "bnpo", "dr_grpo", "luspo", "cispo", "sapo"))}
    if method in ("rlcsd", "sdar"):  # their loss is a mean over all tokens
        found["loss_type"] = rng.choice(("dapo", "bnpo", "dr_grpo", "cispo"))
    if found["loss_type"] in ("grpo", "luspo", "dapo") and rng.random() < 0.5 and method == "grpo":
        found["importance_sampling_level"] = "sequence"
    if rng.random() < 0.25:
        found["beta"] = 0.1
    elif rng.random() < 0.2:
        found["top_entropy_quantile"] = 0.5
    else:
        found["skip_zero_advantage"] = rng.random() < 0.6 and method not in DISTILLING
    if found.get("importance_sampling_level") == "sequence":
        found["use_bias_correction_kl"] = False
    if rng.random() < 0.3:
        found["scale_rewards"] = rng.choice(("batch", "none"))
    if method not in DISTILLING and rng.random() < 0.25:
        found["negative_advantage_weight"] = rng.choice((0.0, 0.05))
    return found


def _batch(size: int, rollouts: int, rng: Random, *, same_length: bool) -> list[Written]:
    """The rollouts of a generation batch, group by group."""
    profile, groups = rng.choice(PROFILES), rollouts // size
    chosen = rng.randrange(groups)
    batch = []
    for group in range(groups):
        answers = [str(number) for number in rng.sample(range(10, 99), 2)]
        lonely = rng.randrange(size)
        for place in range(size):
            kind = _kind(profile, rng, alone=group == chosen, lonely=place == lonely)
            batch.append(_written(kind, profile, answers, rng, same_length=same_length))
    return batch


def _kind(profile: str, rng: Random, *, alone: bool, lonely: bool) -> str:
    if profile == "one_rollout":  # one correct rollout in the batch
        return "right" if alone and lonely else "wrong"
    if profile == "all_right" or (profile == "one_group" and not alone):
        return "right"
    if profile == "all_wrong":
        return rng.choice([kind for kind in KINDS if kind != "right"])
    return rng.choice(KINDS + ("right", "wrong") * 2)


def _written(kind: str, profile: str, answers: list[str], rng: Random, *, same_length: bool) -> Written:
    words = " ".join(rng.choice(("so", "the value", "then", "we keep", "now")) for _ in range(rng.randrange(1, 5)))
    verdict: float | None = float(kind == "right" or (kind in ("short", "cut", "empty") and rng.random() < 0.2))
    if profile == "no_verdicts" or (profile == "some_verdicts" and rng.random() < 0.4):
        verdict = None
    style = rng.choice((0.0, 0.25, 1.0))
    if same_length:  # a mean over each process's tokens is the mean over all if lengths are equal
        return Written(f"{words} \\boxed{{{rng.choice(answers)}}}", False, verdict, style)
    texts = {
        "right": f"{words} so \\boxed{{SOLUTION}}",
        "wrong": f"{words} so \\boxed{{{rng.choice(answers)}}}",
        "silent": words,
        "empty": "",
        "short": "a",
        "cut": f"{words} \\boxed{{{rng.choice(answers)}}} and",
    }
    return Written(texts[kind], kind != "cut", verdict, style)

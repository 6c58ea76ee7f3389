"""The arm `tempered`: the untrained policy, sampled at the temperature that gives the trained GRPO's entropy.

Training sharpens a policy, and so does a lower temperature, for nothing. What an arm gains over this one in sampled
accuracy it has learned.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from ..data.evaluation import Evaluation, evaluate
from ..data.files import write_whole
from ..data.loading import load_policy
from ..data.sampling import Sampling
from ..trainer.arguments import check_sources, parse
from .jobs import command_line
from .statistics import Run, Sampled

_LOWEST, _HIGHEST = 0.05, 1.5
_HALVINGS = 7


@dataclass(frozen=True)
class Untrained:
    """The policy that all arms start from, and how it is asked.

    Attributes:
        ask: (temperature, samples, seed) -> what it answers to the held-out problems that get sampled answers.
        samples: Answers to each problem.
    """

    ask: Callable[[float, int, int], Evaluation]
    samples: int

    @classmethod
    def of(cls, options: dict[str, Any]) -> "Untrained":
        """From an arm's options of `cepo train`."""
        script_args, training_args, model_args = parse(command_line({**options, "output_dir": "unused"}))
        sources = check_sources(script_args, training_args, model_args)
        model, processing_class = load_policy(sources.model_name, trust_remote_code=training_args.trust_remote_code)
        names = [function.__name__ for function in sources.reward_funcs]
        wanted = training_args.correctness_reward
        judge = sources.reward_funcs[names.index(wanted) if wanted else 0]
        problems = sources.held_out.select(range(min(script_args.eval_sampled_problems, len(sources.held_out))))

        def ask(temperature: float, samples: int, seed: int) -> Evaluation:
            sampling = Sampling(
                training_args.max_completion_length,
                temperature,
                training_args.top_p,
                training_args.top_k,
                training_args.chat_template_kwargs,
                script_args.eval_batch_size,
            )
            return evaluate(
                model,
                processing_class,
                problems,
                sampling,
                samples=samples,
                seed=seed,
                reward_func=judge,
                threshold=training_args.correctness_threshold,
            )

        return cls(ask, script_args.eval_samples)


def temperature_of(entropy: float, ask: Callable[[float], float]) -> float:
    """The temperature at which the entropy is the one wanted, by halving; the lowest or highest tried where none is.

    Args:
        entropy: The one wanted [nats a token].
        ask: temperature -> entropy of answers sampled at it, which rises with it.
    """
    low, high = _LOWEST, _HIGHEST
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if ask(middle) < entropy else (low, middle)
    return (low + high) / 2


def tempered_runs(
    reference: Sequence[Run], options: dict[str, Any], folder: Path, on_progress: Callable[[str], None]
) -> tuple[list[Run], str] | None:
    """The untrained policy at one temperature, once with the seed of each of GRPO's runs, and a note; None without any.

    Args:
        reference: GRPO's runs.
        options: GRPO's.
        folder: Where what was found is kept, so that another call need not ask again.
        on_progress: Called with what is done.
    """
    ends = [run.after.entropy for run in reference if run.after and run.after.entropy is not None]
    if not ends or len(ends) < len(reference):
        return None
    wanted = fmean(ends)
    kept = folder / "tempered.json"
    known = json.loads(kept.read_text()) if kept.is_file() else {}
    if known.get("entropy") != wanted or known.get("options") != json.loads(json.dumps(options, default=str)):
        known = {"entropy": wanted, "options": options, "seeds": {}}
    missing = [run.seed for run in reference if str(run.seed) not in known["seeds"]]
    if missing:
        policy = Untrained.of(options)
        if "temperature" not in known:
            on_progress("looking for the temperature that gives GRPO's entropy")
            known["temperature"] = temperature_of(wanted, lambda at: _entropy(policy.ask(at, 1, missing[0])))
        for seed in missing:
            on_progress(f"asking the untrained policy at temperature {known['temperature']:.2f}, seed {seed}")
            known["seeds"][str(seed)] = policy.ask(known["temperature"], policy.samples, seed).as_dict()
            write_whole(kept, json.dumps(known, indent=1, default=str) + "\n")
    runs = [
        # Its greedy answers are the untrained policy's.
        Run(run.seed, run.accuracy[:1], 0.0, after=Sampled.read(known["seeds"][str(run.seed)]))
        for run in reference
    ]
    reached = fmean(run.after.entropy for run in runs if run.after and run.after.entropy is not None)
    note = (
        f"tempered: the untrained policy at temperature {known['temperature']:.2f}, where its entropy is {reached:.3f} "
        f"nats; GRPO's after training is {wanted:.3f}."
    )
    return runs, note


def _entropy(found: Evaluation) -> float:
    entropy = found.content_entropy or found.entropy
    return entropy.value if entropy else 0.0

"""The arm `entropy-matched base`: the untrained policy, sampled at the temperature that gives trained GRPO's entropy.

Training sharpens a policy, and so does a lower temperature. The difference of an arm to this one in sampled accuracy is
the gain beyond sharpening.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from cepo.compare.arms import command_line
from cepo.compare.statistics import Run, Sampled
from cepo.data.accuracy import Evaluation
from cepo.data.evaluation import evaluate
from cepo.data.files import write_whole
from cepo.data.models import load_policy
from cepo.data.sampling import Sampling
from cepo.trainer.arguments import check_sources, parse

MATCHED = "entropy-matched base"
_LOWEST, _HIGHEST, _HALVINGS = 0.05, 1.5, 7
# (temperature, samples, seed) -> answers of the untrained policy to the held-out problems.
Ask = Callable[[float, int, int], Evaluation]


def untrained_policy(options: Mapping[str, Any]) -> tuple[Ask, int]:
    """The initial policy of all arms, and the number of samples a problem, from an arm's options."""
    script_args, training_args, model_args = parse(command_line({**options, "output_dir": "unused"}))
    sources = check_sources(script_args, training_args, model_args)
    model, processing_class = load_policy(sources.model_name, trust_remote_code=training_args.trust_remote_code)
    names = [function.__name__ for function in sources.reward_funcs]
    reward = training_args.correctness_reward
    verifier = sources.reward_funcs[names.index(reward) if reward else 0]
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
            reward_func=verifier,
            threshold=training_args.correctness_threshold,
        )

    return ask, script_args.eval_samples


def temperature_of(entropy: float, entropy_at: Callable[[float], float]) -> float:
    """The temperature with this entropy [nats a token], by bisection between `_LOWEST` and `_HIGHEST`."""
    low, high = _LOWEST, _HIGHEST
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if entropy_at(middle) < entropy else (low, middle)
    return (low + high) / 2


def matched_runs(
    reference: Sequence[Run], options: dict[str, Any], folder: Path, say: Callable[[str], None]
) -> tuple[list[Run], str] | None:
    """Sample the untrained policy at one temperature, with the seed of each of GRPO's runs.

    Args:
        reference: GRPO's runs.
        options: GRPO's options.
        folder: Holds the results; a second call reuses them.
        say: Called with progress.

    Returns:
        The runs and a note; None if the entropy of some run was not measured.
    """
    ends = [run.after.entropy for run in reference if run.after and run.after.entropy is not None]
    if not ends or len(ends) < len(reference):
        return None
    target, file = fmean(ends), folder / "entropy_matched.json"
    known = json.loads(file.read_text()) if file.is_file() else {}
    if known.get("entropy") != target or known.get("options") != json.loads(json.dumps(options, default=str)):
        known = {"entropy": target, "options": options, "seeds": {}}
    missing = [run.seed for run in reference if str(run.seed) not in known["seeds"]]
    if missing:
        ask, samples = untrained_policy(options)
        if "temperature" not in known:
            say("searching for the temperature that gives GRPO's entropy")
            known["temperature"] = temperature_of(target, lambda at: _entropy(ask(at, 1, missing[0])))
        for seed in missing:
            say(f"sampling the untrained policy at temperature {known['temperature']:.2f}, seed {seed}")
            known["seeds"][str(seed)] = ask(known["temperature"], samples, seed).as_dict()
            write_whole(file, json.dumps(known, indent=1, default=str) + "\n")
    runs = [
        # Temperature does not change greedy answers.
        Run(run.seed, run.accuracy[:1], 0.0, after=Sampled.read(known["seeds"][str(run.seed)]))
        for run in reference
    ]
    reached = fmean(run.after.entropy for run in runs if run.after and run.after.entropy is not None)
    note = (
        f"{MATCHED}: the untrained policy at temperature {known['temperature']:.2f}, where its entropy is "
        f"{reached:.3f} nats; GRPO's after training is {target:.3f}."
    )
    return runs, note


def _entropy(found: Evaluation) -> float:
    entropy = found.content_entropy or found.entropy
    return entropy.value if entropy else 0.0

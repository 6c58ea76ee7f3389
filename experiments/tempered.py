"""The arm `tempered`: the untrained policy, sampled at the temperature that gives the trained GRPO's entropy.

Training sharpens a policy, and so does a lower temperature at no cost. The difference of an arm to this one in sampled
accuracy is what the arm has learned.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from cepo.compare.jobs import command_line
from cepo.compare.statistics import Run, Sampled
from cepo.data.accuracy import Evaluation
from cepo.data.evaluation import evaluate
from cepo.data.files import write_whole
from cepo.data.models import load_policy
from cepo.data.sampling import Sampling
from cepo.trainer.arguments import check_sources, parse

TEMPERED = "tempered"
_LOWEST, _HIGHEST, _HALVINGS = 0.05, 1.5, 7
# (temperature, samples, seed) -> answers of the untrained policy to the held-out problems that get sampled answers.
Ask = Callable[[float, int, int], Evaluation]


def untrained_policy(options: Mapping[str, Any]) -> tuple[Ask, int]:
    """The policy that all arms start from, and how many answers a problem gets, from an arm's options."""
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

    return ask, script_args.eval_samples


def temperature_of(entropy: float, entropy_at: Callable[[float], float]) -> float:
    """The temperature with this entropy [nats a token], by bisection; the bounds of the search where none has it."""
    low, high = _LOWEST, _HIGHEST
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if entropy_at(middle) < entropy else (low, middle)
    return (low + high) / 2


def tempered_runs(
    reference: Sequence[Run], options: dict[str, Any], folder: Path, say: Callable[[str], None]
) -> tuple[list[Run], str] | None:
    """The untrained policy at one temperature, once with the seed of each of GRPO's runs, and a note.

    None where the entropy of some run was not measured.

    Args:
        reference: GRPO's runs.
        options: GRPO's.
        folder: Where results are kept, so that another call need not repeat them.
        say: Called with progress.
    """
    ends = [run.after.entropy for run in reference if run.after and run.after.entropy is not None]
    if not ends or len(ends) < len(reference):
        return None
    wanted, kept = fmean(ends), folder / "tempered.json"
    known = json.loads(kept.read_text()) if kept.is_file() else {}
    if known.get("entropy") != wanted or known.get("options") != json.loads(json.dumps(options, default=str)):
        known = {"entropy": wanted, "options": options, "seeds": {}}
    missing = [run.seed for run in reference if str(run.seed) not in known["seeds"]]
    if missing:
        ask, samples = untrained_policy(options)
        if "temperature" not in known:
            say("searching for the temperature that gives GRPO's entropy")
            known["temperature"] = temperature_of(wanted, lambda at: _entropy(ask(at, 1, missing[0])))
        for seed in missing:
            say(f"sampling the untrained policy at temperature {known['temperature']:.2f}, seed {seed}")
            known["seeds"][str(seed)] = ask(known["temperature"], samples, seed).as_dict()
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

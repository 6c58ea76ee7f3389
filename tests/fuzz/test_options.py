"""Options from code and flags: a configuration, or an error message of one line."""

from dataclasses import fields
from functools import cache

from hypothesis import strategies as st

from cepo import CEPOConfig
from cepo.data.escape import one_line
from cepo.data.formats import DatasetOptions
from cepo.methods import method_options
from cepo.methods.registry import METHODS, all_options
from cepo.trainer.arguments import parse
from cepo.trainer.cepo_config import option_docs

from .properties import examples
from .test_text import hostile

SHARED = ["method", *all_options()]
CEPO_OPTIONS = [name for name in option_docs() if name != "answer_extractor"]
TRL_OPTIONS = (
    *("num_generations", "per_device_train_batch_size", "gradient_accumulation_steps", "num_iterations", "beta"),
    *("steps_per_generation", "generation_batch_size", "max_completion_length", "epsilon"),
)
CHOICES = [
    *sorted(METHODS),
    *("linear", "cosine", "constant", "own", "mixture", "own_or_mixture", "lowest_reward", "most_common", "student"),
    *("uniform", "answer", "solution", "rollout", "whole", "prefix", "suffix", "policy", "initial", "synced", "ema"),
    *("full", "top_k", "sampled", "auto", "boxed", "tag", "gsm8k", "sentence", "always", "never", "{answer}"),
]
numbers = st.one_of(
    st.integers(-3, 300),
    st.floats(-2, 2),
    st.sampled_from([0, 1, 0.5, float("nan"), float("inf"), -float("inf"), 10**400, 1e308, True]),
)
anything = st.one_of(
    st.none(),
    numbers,
    st.sampled_from(CHOICES),
    hostile,
    st.lists(numbers, max_size=2),
)


def named(names):
    """Some of the options, each with a value that may be valid."""
    valid = {"method": st.sampled_from(sorted(METHODS))}
    pairs = [st.tuples(st.just(name), st.one_of(valid.get(name, anything), anything)) for name in names]
    return st.lists(st.one_of(pairs), max_size=5).map(dict)


def check_message(error):
    text = str(error).strip()
    assert text
    assert "\n" not in text, text


@examples(1500, given=named(SHARED))
def test_options_of_methods(given):
    try:
        made = method_options(**{"method": "cepo", **given})
    except ValueError as error:
        check_message(error)
        return
    for step in (0, 5, 1000):
        assert 0 <= made.coefficient_at(step) <= 1
    assert method_options(made.method, **made.as_dict()) == made


@examples(700, given=named([*CEPO_OPTIONS, *TRL_OPTIONS]))
def test_options_of_runs(given):
    # TRL's error messages for its options may have several lines.
    if any(not isinstance(given.get(name, 0), int) or abs(given.get(name, 0)) > 10**6 for name in TRL_OPTIONS):
        return
    try:
        made = CEPOConfig("out", use_cpu=True, **given)
    except ValueError as error:
        if not set(given) & set(TRL_OPTIONS):
            check_message(error)
        return
    assert made.method in METHODS


@cache
def flags():
    return sorted({f"--{name}" for name in (*CEPO_OPTIONS, *(one.name for one in fields(DatasetOptions)))})


words = st.lists(
    st.one_of(
        st.sampled_from(["--beta", "--seed", "--preset", "--reward_funcs", "--nosuch", "--", "-", "--method=", "="]),
        st.deferred(lambda: st.sampled_from(flags())),
        st.sampled_from(CHOICES),
        numbers.map(str),
        hostile,
    ),
    max_size=6,
)


@examples(150, arguments=words)
def test_command_lines(arguments):
    if any(word.startswith("--config") for word in arguments):
        return
    try:
        parse([*arguments, "--use_cpu", "true"])
    except (ValueError, OSError) as error:
        check_message(one_line(str(error)))

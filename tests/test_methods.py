"""Methods: documentation, options, the last stage, and methods of users."""

import ast
import json
import pickle
import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close
from trl import GRPOConfig
from trl.rewards import accuracy_reward

from cepo import CEPOConfig, cli, config_class, method_options
from cepo.methods import METHODS, MethodOptions, TokenAdvantages, find_method, register_method
from cepo.methods.option_fields import GROUPS, option_fields
from cepo.methods.registry import all_options, preset_options, presets
from cepo.methods.token_advantages import NEAR, uniform
from tests.support.methods import check_a_real_step, inputs_of, needed_by, placed_by
from tests.support.training import half_right, logged, loss_inputs, task, train, weights_of, wrong_answers
from tests.support.values import advantage_values

__all__ = ["loss_inputs", "task"]  # fixtures

DOCS = Path(__file__).parents[1] / "docs"
SOURCE = Path(__file__).parents[1] / "src" / "cepo"


# Documentation --------------------------------------------------------------------------------------------------------


def test_every_method_is_documented():
    for name, method in METHODS.items():
        assert method.name == name
        assert all((method.doc.summary, method.doc.formula, method.doc.hints, method.doc.sign, method.doc.passes))
        assert not method.doc.summary.endswith(".")  # a phrase
        known = option_fields(method.options)
        assert all(one.help and one.group in GROUPS for one in known.values())
        assert set().union(*method.variants) <= set(known)


def test_no_other_module_compares_the_name_of_a_method():
    for path in SOURCE.rglob("*.py"):
        nodes = ast.walk(ast.parse(path.read_text()))
        # TRL has a loss_type grpo.
        comparisons = [n for n in nodes if isinstance(n, ast.Compare) and "loss_type" not in ast.unparse(n)]
        compared = {n.value for one in comparisons for n in ast.walk(one) if isinstance(n, ast.Constant)}
        assert not compared & set(METHODS), path


def test_generated_documents_are_up_to_date():
    script = Path(__file__).parents[1] / "scripts" / "make_docs.py"
    result = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True)
    assert result.returncode == 0, f"{result.stdout}: run python scripts/make_docs.py"


def test_help_lists_methods_and_options(capsys):
    assert cli.main(["train", "--help"]) == 0
    page = " ".join(capsys.readouterr().out.split())
    for method in METHODS.values():
        assert method.doc.summary in page
    assert "(default: None)" not in page
    for name in ALL:
        assert f"--{name} " in page
    assert "--gradient_checkpointing " in page


@pytest.mark.parametrize("command", ["evaluate", "explain", "compare"])
def test_help_pages_show_options_by_group(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main([command, "--help"])
    assert stopped.value.code == 0
    page = capsys.readouterr().out
    assert page.startswith(f"usage: cepo {command} [OPTIONS]\n\n")
    assert "(default: None)" not in page
    assert "--output_dir" in page


# Options --------------------------------------------------------------------------------------------------------------

COMMON = option_fields(MethodOptions)
ALL = [name for name in all_options() if name not in COMMON]


def another_value(name):
    """A valid value of an option that is not its default."""
    one = all_options()[name]
    kinds = (one.type, *get_args(one.type))
    if get_origin(one.type) is Literal:
        return next(choice for choice in get_args(one.type) if choice != one.default)
    if bool in kinds:
        return not one.default
    if str in kinds:
        return "{answer}!"
    return 7 if int in kinds else {"evidence_steps": 7, "ratio_clip": 2.5, "importance_clip": 3.0}.get(name, 0.25)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ALL)
def test_an_option_is_set_or_refused(method, name):
    given = needed_by(method) | {name: another_value(name)}
    if name in option_fields(METHODS[method].options):
        options = method_options(method, **given)
        assert getattr(options, name) == given[name]
        assert replace(options) == options
        assert getattr(CEPOConfig("out", method=method, use_cpu=True, **given), name) == given[name]
    else:
        with pytest.raises(ValueError, match=f"method '{method}' has no option {name}; (did you mean|it has) "):
            method_options(method, **given)
        assert getattr(CEPOConfig("out", method=method, use_cpu=True, **needed_by(method)), name) is None


@pytest.mark.parametrize("method", METHODS)
def test_the_configuration_shows_the_resolved_options(method):
    config = CEPOConfig("out", method=method, use_cpu=True, **needed_by(method))
    assert config.method_options == method_options(method, **needed_by(method))
    for name, value in config.method_options.as_dict().items():
        assert getattr(config, name) == value
        if name not in needed_by(method):
            assert value == option_fields(METHODS[method].options)[name].default
    assert config.given == {"method": method, **needed_by(method)}
    assert pickle.loads(pickle.dumps(config)).method_options == config.method_options


def test_options_of_methods_do_not_clash_with_trls():
    assert not set(all_options()) & {one.name for one in fields(GRPOConfig)}


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("rlcsd", {"tau": 0.0}),
        ("rlcsd", {"selected_loss_weight": -1.0}),
        ("rlcsd", {"bonus_min": 1.0, "bonus_max": 0.0}),
        ("rlcsd", {"correct_hint": "hope"}),
        ("cepo_additive", {"uniform_share": -0.1}),
        ("cepo_additive", {"uniform_share": 0.0, "evidence_bonus": 0.0}),
        ("sdar", {"gate_scale": 0.0}),
        ("cscr", {"damping_floor": 0.0}),
        ("cscr", {"damping_rate": -1.0}),
        ("pbsd", {"evidence_scale": 0.0}),
        ("pbsd", {"weight_bound": 1.0}),
        ("pbsd", {"evidence_unit": "x"}),
        ("vppo", {"prefix_value": 2.0}),
        ("vppo", {"prefix_margin": -1}),
        ("distilled_rl", {"ratio_clip": 1.0}),
        ("distilled_rl", {"reweighted_rollouts": "some"}),
        ("cepo", {"evidence_clip": 1.0}),
        ("cepo", {"evidence_coefficient": 1.1}),
        ("cepo", {"evidence_schedule": "stepwise"}),
        ("cepo", {"negative_advantage_weight": -1.0}),
        ("cepo", {"hint_template": "no place"}),
        ("cepo", {"evidence_steps": -1}),
        ("cepo", {"negative_reference": "best"}),
        ("cepo", {"max_negatives": 0}),
        ("cepo", {"missing_negative": "none"}),
        ("cepo", {"positive_content": "hope"}),
        ("cepo", {"negative_content": "solution"}),
        ("cepo", {"positive_part": "middle"}),
        ("cepo", {"negative_part": "middle"}),
        ("cepo", {"hint_max_tokens": 0}),
        ("cepo", {"teacher": "friend"}),
        ("cepo", {"teacher_ema_decay": 1.0}),
        ("cepo", {"teacher_sync_steps": 0}),
        ("opsd", {"divergence": "whole"}),
        ("opsd", {"divergence_beta": 1.5}),
        ("sdpo", {"divergence_top_k": 0}),
        ("sdpo", {"importance_clip": 0.5}),
    ],
    ids=str,
)
def test_a_value_out_of_range_is_refused(method, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        method_options(method, **needed_by(method), **options)


def test_unknown_methods_are_refused_with_suggestions():
    with pytest.raises(ValueError, match=r"unknown method 'ppo'; choose one of cepo, .*grpo.*package\.module:name"):
        method_options("ppo")
    with pytest.raises(ValueError, match=r"unknown method 'cepoo'; did you mean cepo\?; choose one of"):
        method_options("cepoo")
    with pytest.raises(ValueError, match=r"unknown method 'own\.mine'; did you mean own:mine\?; choose one of"):
        method_options("own.mine")
    with pytest.raises(ValueError, match=r"unknown method 'own\.py'; choose one of"):
        method_options("own.py")
    with pytest.raises(ValueError, match=r"cannot import 'no_such_module:method': .*; the current directory"):
        method_options("no_such_module:method")
    with pytest.raises(ValueError, match=r"is a function, not a cepo\.methods\.Method"):
        method_options("cepo.credit:evidence")


def test_names_of_methods_are_unique():
    assert register_method(METHODS["grpo"]) is METHODS["grpo"]
    with pytest.raises(ValueError, match="there is a method 'grpo' already"):
        register_method(replace(METHODS["grpo"], evidence_is_signed=False))
    assert find_method("grpo").evidence_is_signed


def test_presets_with_another_method_leave_out_its_missing_options(tmp_path):
    assert {"paper", "rlsd"} <= set(presets())
    assert preset_options("paper", "grpo") == {"epsilon": 0.2, "epsilon_high": 0.28, "method": "grpo"}
    args = CEPOConfig.preset("paper", output_dir=str(tmp_path), method="opsd", bf16=False)
    assert (args.teacher, args.evidence_steps, args.epsilon) == ("initial", None, 0.2)


# Token advantages -----------------------------------------------------------------------------------------------------


def test_shift_and_moved_tokens_by_hand():
    """CEPO, lambda 0.5, clip 0.5: e^0.4 = 1.49 and e^-0.4 = 0.67 are not clipped, e^2 is."""
    inputs = inputs_of([[0.4, 2.0, 0.001], [0.4, -2.0, 0.0]], [2.0, -1.0], mask=[[True] * 3, [True, True, False]])
    placed = placed_by("cepo", inputs)
    assert placed.scale.tolist() == [0.5, 0.25]
    expected = [[(1.4918247 - 1) / 0.5, 1.0, 0.0010005 / 0.5], [(0.67032 - 1) / 0.5, 1.0, 0.0]]
    assert_close(placed.shift, torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=1e-5)
    assert placed.moved.tolist() == [[True, True, False], [True, True, False]]
    assert placed.at_bound.tolist() == [[False, True, False], [False, True, False]]
    assert NEAR == 0.02


def test_uniform_moves_no_token():
    placed = uniform(inputs_of([[1.0, -1.0]], [0.5], mask=[[True, False]]), method_options("grpo"), 0)
    assert placed.advantages.tolist() == [[0.5, 0.0]]
    assert not placed.moved.any()
    assert not placed.shift.any()


two_advantages = st.lists(advantage_values, min_size=2, max_size=2)
two_tokens = st.lists(st.floats(-5, 5), min_size=2, max_size=2)


@given(st.sampled_from([0.0, 0.05, 0.5, 2.0]), two_advantages, two_tokens)
def test_negative_advantage_weight_scales_whole_rollouts(weight, advantages, evidence):
    inputs = inputs_of([evidence, evidence], advantages)
    plain = placed_by("cepo", inputs)
    weighted = placed_by("cepo", inputs, negative_advantage_weight=weight)
    for row, advantage in enumerate(advantages):
        factor = weight if advantage < 0 else 1.0
        assert_close(weighted.advantages[row], plain.advantages[row] * factor)
        assert_close(weighted.rollout_advantages[row], plain.rollout_advantages[row] * factor)
        if weight > 0:
            assert_close(weighted.shift[row], plain.shift[row])


def test_rollouts_of_weight_zero_are_not_scored():
    options = method_options("cepo", negative_advantage_weight=0.0)
    advantages, verdicts = torch.tensor([1.0, -1.0, 0.0]), torch.tensor([1.0, -1.0, 1.0])
    assert options.method_spec.rollout_filter(advantages, verdicts, options).tolist() == [True, False, False]
    options = method_options("cepo")
    assert options.method_spec.rollout_filter(advantages, verdicts, options).tolist() == [True, True, False]


@pytest.mark.parametrize("method", ["grpo", "cepo"])
def test_down_weighted_negatives_in_training(tmp_path, text_figures, text_model_path, loss_inputs, monkeypatch, method):
    wrong_answers(monkeypatch)
    options = {"reward": half_right, "method": method, "max_steps": 1, "skip_zero_advantage": False}
    train(tmp_path, text_figures, text_model_path, **options)
    train(tmp_path, text_figures, text_model_path, negative_advantage_weight=0.05, **options)
    plain, control = (batch["advantages"] for batch in loss_inputs)
    assert (plain < 0).any()
    assert_close(control, torch.where(plain < 0, 0.05 * plain, plain))


def test_distillation_refuses_a_weight_of_negatives(tmp_path):
    for divergence in ("full", "sampled"):
        with pytest.raises(ValueError, match="negative_advantage_weight has no effect"):
            CEPOConfig(
                output_dir=str(tmp_path),
                method="opsd",
                divergence=divergence,
                negative_advantage_weight=0.05,
                bf16=False,
            )


# Methods of users -----------------------------------------------------------------------------------------------------


@pytest.fixture
def documented(tmp_path, monkeypatch):
    """A file of docs/methods.md, put beside the run."""
    names = []

    def write(name):
        code = re.search(rf"```python\n(# {name}\.py\n.*?)```", (DOCS / "methods.md").read_text(), re.S)[1]
        (tmp_path / f"{name}.py").write_text(code)
        names.append(name)

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield write
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture
def own_method(documented):
    documented("my_method")
    return "my_method:only_more_method"


@pytest.mark.parametrize("method", ["cepo", "rlsd"])
def test_a_real_step(tmp_path, task, loss_inputs, monkeypatch, method):
    check_a_real_step(tmp_path, task, loss_inputs, monkeypatch, method)


def test_a_users_method_trains(tmp_path, figures, own_method, loss_inputs):
    trainer = train(
        tmp_path, figures, reward=accuracy_reward, method=own_method, max_steps=1, max_completion_length=176
    )
    config = config_class(own_method)("out", largest_gain=0.5, use_cpu=True)
    assert (config.method, config.method_options.largest_gain, config.largest_gain) == (own_method, 0.5, 0.5)
    again = pickle.loads(pickle.dumps(config))
    assert (type(again), again.method_options) == (type(config), config.method_options)
    assert logged(trainer, "cepo/rows_scored")[0] > 0
    (batch,) = loss_inputs
    assert batch["advantages"].dim() == 2


def test_a_users_method_from_the_command_line(tmp_path, own_method, capsys):
    small = ["--max_steps=1", "--per_device_train_batch_size=8", "--num_generations=4", "--max_completion_length=176"]
    arguments = [*small, "--figures_problems=8", "--eval_problems=0", "--credit_page_steps=1", "--output_dir=out"]
    assert cli.main(["train", "--method", own_method, "--largest_gain=0.5", *arguments]) == 0
    assert f"--method {own_method} --largest_gain=0.5" in capsys.readouterr().out
    assert json.loads(Path("out/summary.json").read_text())["method"] == own_method
    assert '"only_more"' in Path("out/credit/step-00000.html").read_text()
    assert cli.main(["explain", "--method", own_method, "--largest_gain=0.5", "--index=1", "--num_generations=4"]) == 0
    page = Path("explain.html").read_text()
    assert '"name":"only_more"' in page
    assert "never less" in page
    assert "largest_gain 0.5" in page
    capsys.readouterr()
    assert cli.main(["train", "--method", own_method, "--evidence_clip", "0.3", *arguments]) == 2
    assert "has no option evidence_clip" in capsys.readouterr().err
    resumed = ["--resume_from_checkpoint=out/checkpoint-1", "--max_steps=2"]
    assert cli.main(["train", "--method", own_method, *arguments, *resumed]) == 2
    assert "largest_gain 0.5 (now 1.0)" in capsys.readouterr().err
    Path("options.yaml").write_text(f"method: {own_method}\nlargest_gain: 0.5\n")
    assert cli.main(["train", "--config=options.yaml", *arguments, *resumed]) == 0
    assert cli.main(["train", "--method=grpo", "--largest_gain=0.5", *arguments]) == 2
    assert "unknown option --largest_gain" in capsys.readouterr().err


def test_a_method_without_teachers(tmp_path, text_figures, text_model_path, documented, loss_inputs):
    """It needs no solutions and no conversations, and its token advantages reach the loss."""
    documented("last_third")
    plain = text_figures.map(lambda row: {"prompt": row["prompt"][-1]["content"], "solution": None})
    options = {"method": "last_third:last_third_method", "max_steps": 1, "log_completions": True}
    train(tmp_path / "plain", plain, text_model_path, half_right, **options)
    trainer = train(tmp_path, plain.remove_columns("solution"), text_model_path, half_right, **options)
    batch, same = loss_inputs
    assert torch.equal(batch["advantages"], same["advantages"])
    assert not list(tmp_path.rglob("step-*.parquet"))  # `cepo explain` cannot use them
    mask, placed = batch["completion_mask"].bool(), batch["advantages"]
    assert placed.shape == mask.shape
    for row, kept in zip(placed, mask, strict=True):
        tokens = row[kept]
        first = 2 * len(tokens) // 3
        assert not tokens[:first].any()
        assert tokens[first:].unique().numel() == 1
        assert tokens[first:].all()
    assert (logged(trainer, "cepo/rows_scored"), logged(trainer, "cepo/coefficient")) == ([0.0], [1.0])
    assert logged(trainer, "cepo/credit/changed") == [1.0]


BROKEN = """
from cepo.methods import Method, TokenAdvantages

def flat(inputs, options, step):
    return TokenAdvantages.of(inputs, inputs.advantages)

def bare(inputs, options, step):
    return inputs.evidence

flat_method = Method(name="flat", assign_credit=flat)
bare_method = Method(name="bare", assign_credit=bare)
"""


def test_wrong_return_values_of_a_method_are_refused(tmp_path, documented):
    (tmp_path / "broken.py").write_text(BROKEN)
    small = ["--max_steps=1", "--per_device_train_batch_size=8", "--num_generations=4", "--max_completion_length=8"]
    arguments = [*small, "--figures_problems=8", "--eval_problems=0", "--output_dir=out"]
    arguments += ["--reward_funcs", f"{half_right.__module__}.half_right"]
    with pytest.raises(ValueError, match=r"advantages must have shape \(B, T\) = \(8, \d+\), got \(8,\)"):
        cli.main(["train", "--method", "broken:flat_method", *arguments])
    with pytest.raises(TypeError, match="method bare: assign_credit returned a Tensor"):
        cli.main(["train", "--method", "broken:bare_method", *arguments])


def test_unused_stages_are_refused():
    with pytest.raises(ValueError, match="method both: give contexts or token_values"):
        replace(METHODS["oracle"], name="both", contexts=METHODS["rlsd"].contexts)
    with pytest.raises(ValueError, match="method idle: an evidence stage needs contexts"):
        replace(METHODS["grpo"], name="idle", evidence=METHODS["cscr"].evidence)


def test_token_advantages_of_another_shape_are_refused():
    inputs = inputs_of([[0.1, 0.2]] * 3, [1.0, -1.0, 0.0])
    with pytest.raises(ValueError, match=r"advantages must have shape \(B, T\) = \(3, 2\), got \(3,\)"):
        TokenAdvantages.of(inputs, inputs.advantages)
    with pytest.raises(ValueError, match=r"at_bound must have shape \(B, T\) = \(3, 2\), got \(3, 1\)"):
        TokenAdvantages.of(inputs, inputs.evidence, inputs.mask[:, :1])
    with pytest.raises(ValueError, match=r"scale must have shape \(B,\) = \(3,\), got \(3, 2\)"):
        replace(TokenAdvantages.of(inputs, inputs.evidence), scale=inputs.evidence)


def test_a_users_method_is_compared(tmp_path, own_method, monkeypatch):
    from cepo.compare import jobs

    asked = []
    monkeypatch.setattr(jobs, "run_all", lambda work, *_: asked.extend(work))
    cli.main(["compare", "--methods", f"grpo,{own_method}", "--seeds=1", "--output_dir", str(tmp_path / "out")])
    assert [(job.arm, job.options["method"]) for job in asked] == [("grpo", "grpo"), ("only_more", own_method)]


def test_uniform_token_advantages_train_as_grpo(tmp_path, text_figures, text_model_path, monkeypatch):
    """CEPO with `uniform` is GRPO, although teachers score its rollouts."""
    wrong_answers(monkeypatch)
    monkeypatch.setitem(METHODS, "idle", replace(METHODS["cepo"], name="idle", assign_credit=uniform))
    idle = train(tmp_path, text_figures, text_model_path, half_right, method="idle")
    grpo = train(tmp_path, text_figures, text_model_path, half_right, method="grpo", skip_zero_advantage=True)
    assert all(share > 0 for share in logged(idle, "cepo/rows_scored"))
    assert logged(idle, "cepo/credit/changed") == [0.0, 0.0]
    for name, weight in weights_of(grpo).items():
        assert_close(weights_of(idle)[name], weight)


def test_loss_weights_reach_the_loss_alone(tmp_path, text_figures, text_model_path, monkeypatch, loss_inputs):
    wrong_answers(monkeypatch)

    def doubled(inputs, options, step):
        placed = METHODS["cepo"].assign_credit(inputs, options, step)
        return replace(placed, loss_weights=torch.full_like(placed.advantages, 2.0))

    options = {"reward": half_right, "max_steps": 1}
    train(tmp_path, text_figures, text_model_path, **options)
    monkeypatch.setitem(METHODS, "doubled", replace(METHODS["cepo"], name="doubled", assign_credit=doubled))
    trainer = train(tmp_path, text_figures, text_model_path, method="doubled", **options)
    plain, twice = (batch["advantages"] for batch in loss_inputs)
    assert_close(twice, 2 * plain)
    assert logged(trainer, "cepo/credit/changed")[0] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"evidence_clip": "half"}, "evidence_clip must be a number, got 'half'"),
        ({"evidence_steps": 2.5}, "evidence_steps must be an integer, got 2.5"),
        ({"max_negatives": True}, "max_negatives must be an integer, got True"),
        ({"max_negatives": float("inf")}, "max_negatives must be an integer, got inf"),
        ({"negative_advantage_weight": 10**400}, "negative_advantage_weight must be a number, got 1000"),
        ({"negative_advantage_weight": float("inf")}, "negative_advantage_weight must be a number, got inf"),
        ({"method": ["cepo"]}, "method must be a string"),
        ({"hint_template": 3}, "hint_template must be a string"),
        ({"answer_extractor": []}, "answer_extractor must be a string"),
        ({"method": "rlcsd", "tau": float("nan")}, "tau must be a number, got nan"),
        ({"method": "cscr", "damping_rate": "x"}, "damping_rate must be a number, got 'x'"),
        ({"method": "vppo", "nonnegative_prefix": 1}, "nonnegative_prefix must be true or false"),
        ({"evidence_schedule": 1}, "evidence_schedule must be one of linear, cosine, constant, got 1"),
    ],
)
def test_a_value_of_another_type_is_refused(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        CEPOConfig("out", **options)


@pytest.mark.parametrize(
    "options", [{"credit_page_steps": None}, {"freeze_vision_tower": 3}, {"correctness_threshold": float("nan")}]
)
def test_a_run_option_of_another_type_is_refused(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"^{name} must be"):
        CEPOConfig("out", **options)


@pytest.mark.parametrize("name", ["num_generations", "per_device_train_batch_size", "steps_per_generation"])
def test_counts_that_trl_divides_by(name):
    with pytest.raises(ValueError, match=f"^{name} must be an integer and at least 1, got 0"):
        CEPOConfig("out", **{name: 0})


def test_numbers_of_numpy_are_numbers():
    import numpy as np

    made = method_options("cepo", evidence_clip=np.float32(0.5), evidence_steps=np.int64(3), max_negatives=np.int32(2))
    assert made.coefficient_at(0) == 0.5


def test_a_tiny_scale_gives_finite_shifts():
    placed = placed_by(
        "rlcsd",
        inputs_of([[0.0, 1.0]], [1.0], scored=[False]),
        evidence_coefficient=1.0,
        evidence_beta=1e-320,
    )
    assert placed.shift.isfinite().all()

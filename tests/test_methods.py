"""The seam: what a method is said once, what it reads, and a method that is not ours."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close
from trl.rewards import accuracy_reward

from cepo import CEPOConfig, MethodOptions, cli, policy_path
from cepo.methods import METHODS, TokenAdvantages, find_method, register_method
from cepo.methods.options import SELECTIVE, default_of, preset_options, presets
from cepo.methods.token_advantages import NEAR, uniform
from tests.support.methods import check_a_real_step, inputs_of, placed_by
from tests.support.training import half_right, logged, loss_inputs, task, train, weights_of, wrong_answers
from tests.support.values import advantage_values

__all__ = ["loss_inputs", "task"]  # fixtures

DOCS = Path(__file__).parents[1] / "docs"


# What is said once ----------------------------------------------------------------------------------------------------


def test_every_method_says_what_it_is():
    for name, method in METHODS.items():
        assert method.name == name
        assert method.summary.endswith(tuple("abcdefghijklmnopqrstuvwxyz0123456789-)"))  # a phrase, no full stop
        assert method.options <= set(SELECTIVE)
        assert set(method.defaults) <= method.options | {"negative_advantage_weight"}
        assert (method.contexts is None) or (method.token_values is None)
        assert all((method.facts.formula, method.facts.told, method.facts.sign, method.facts.passes))
        assert set().union(*method.variants) <= method.options


def test_made_documents_are_as_the_code_has_them():
    script = Path(__file__).parents[1] / "scripts" / "make_docs.py"
    result = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True)
    assert result.returncode == 0, f"{result.stdout}: run python scripts/make_docs.py"


def test_help_names_every_method_with_what_it_does(capsys):
    assert cli.main(["train", "--help"]) == 0
    page = " ".join(capsys.readouterr().out.split())
    for method in METHODS.values():
        assert method.summary in page
    assert "(default: None)" not in page
    for name in SELECTIVE:
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
    assert "\noutput:\n" in page or "\nthe run:\n" in page
    assert "--output_dir" in page


# Options --------------------------------------------------------------------------------------------------------------

VALUES = {
    "evidence_coefficient": 0.4,
    "evidence_steps": 7,
    "evidence_schedule": "cosine",
    "evidence_clip": 0.3,
    "negative_reference": "own",
    "max_negatives": 2,
    "missing_negative": "uniform",
    "hint_template": "{answer}!",
    "positive_content": "solution",
    "negative_content": "rollout",
    "positive_part": "prefix",
    "negative_part": "suffix",
    "hint_max_tokens": 5,
    "teacher": "ema",
    "teacher_sync_steps": 3,
    "teacher_ema_decay": 0.5,
    "teacher_model_name_or_path": "somewhere",
    "divergence": "top_k",
    "divergence_beta": 0.25,
    "divergence_top_k": 5,
    "importance_clip": 3.0,
    "first_error_reward": "first_error",
}


def needed_by(method):
    return {"teacher_model_name_or_path": policy_path()} if METHODS[method].needs_other_model else {}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", SELECTIVE)
def test_an_option_is_read_or_refused_by_name(method, name):
    assert set(VALUES) == set(SELECTIVE)
    given = needed_by(method) | {name: VALUES[name]}
    if name in METHODS[method].options:
        options = MethodOptions(method=method, **given)
        assert getattr(options, name) == VALUES[name]
        again = replace(options)  # what was put in is not taken for given by somebody
        assert again == options
    else:
        with pytest.raises(ValueError, match=f"method='{method}' does not read {name}"):
            MethodOptions(method=method, **given)
        assert getattr(MethodOptions(method=method, **needed_by(method)), name) is None


@pytest.mark.parametrize("method", METHODS)
def test_what_is_not_given_is_what_the_method_says(method):
    options = MethodOptions(method=method, **needed_by(method))
    for name in {"negative_advantage_weight", *METHODS[method].options} - set(needed_by(method)):
        assert getattr(options, name) == default_of(METHODS[method], name)
    assert options.given == {"method": method, "answer_extractor": "auto", **needed_by(method)}


def test_an_unknown_method_says_what_there_is():
    with pytest.raises(ValueError, match=r"unknown method 'ppo'; there are cepo, .*rlsd, grpo.*package\.module:name"):
        MethodOptions(method="ppo")
    with pytest.raises(ValueError, match=r"unknown method 'cepoo'; did you mean cepo\?; there are"):
        MethodOptions(method="cepoo")
    with pytest.raises(ValueError, match=r"unknown method 'own\.mine'; did you mean own:mine\?; there are"):
        MethodOptions(method="own.mine")
    with pytest.raises(ValueError, match=r"unknown method 'own\.py'; there are"):
        MethodOptions(method="own.py")
    with pytest.raises(ValueError, match=r"cannot import 'no_such_module:method': .*; the current directory"):
        MethodOptions(method="no_such_module:method")
    with pytest.raises(ValueError, match=r"no cepo\.methods\.Method but a function"):
        MethodOptions(method="cepo.credit:evidence")


def test_a_name_is_one_methods():
    assert register_method(METHODS["grpo"]) is METHODS["grpo"]
    with pytest.raises(ValueError, match="there is a method 'grpo' already"):
        register_method(replace(METHODS["grpo"], summary="another"))
    assert find_method("grpo").summary != "another"


def test_constants_of_a_method_are_checked_by_name():
    with pytest.raises(ValueError, match="method 'cepo' has no constants of its own"):
        MethodOptions(method_kwargs={"tau": 1.0})
    with pytest.raises(ValueError, match="method 'pbsd' has no tau; it has scale, bound, unit"):
        MethodOptions(method="pbsd", method_kwargs={"tau": 1.0})
    with pytest.raises(ValueError, match="is not JSON"):
        MethodOptions(method_kwargs="{tau")
    with pytest.raises(ValueError, match="must be a JSON object"):
        MethodOptions(method_kwargs="[1]")


def test_presets_leave_out_what_another_method_does_not_read(tmp_path):
    assert {"paper", "rlsd"} <= set(presets())
    assert preset_options("paper", "grpo") == {"epsilon": 0.2, "epsilon_high": 0.28, "method": "grpo"}
    args = CEPOConfig.preset("paper", output_dir=str(tmp_path), method="opsd", bf16=False)
    assert (args.teacher, args.evidence_steps, args.epsilon) == ("initial", None, 0.2)


# Placements -----------------------------------------------------------------------------------------------------------


def test_shapes_that_do_not_fit_are_refused():
    good = inputs_of([[1.0, 2.0]], [1.0])
    with pytest.raises(ValueError, match=r"advantages must be \(B,\)"):
        replace(good, advantages=torch.ones(2))
    with pytest.raises(ValueError, match="mask must have shape"):
        replace(good, mask=torch.ones(1, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="scored must have shape"):
        replace(good, scored=torch.ones(2, dtype=torch.bool))
    with pytest.raises(ValueError, match="unscorable must have shape"):
        replace(good, unscorable=torch.ones(1, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="verdicts must have shape"):
        replace(good, verdicts=torch.ones(2))


def test_shift_and_what_counts_as_moved_by_hand():
    """CEPO, lambda 0.5, clip 0.5: e^0.4 = 1.49 and e^-0.4 = 0.67 are not clipped, e^2 is."""
    inputs = inputs_of([[0.4, 2.0, 0.001], [0.4, -2.0, 0.0]], [2.0, -1.0], mask=[[True] * 3, [True, True, False]])
    placed = placed_by("cepo", inputs)
    assert placed.scale.tolist() == [0.5, 0.25]
    expected = [[(1.4918247 - 1) / 0.5, 1.0, 0.0010005 / 0.5], [(0.67032 - 1) / 0.5, 1.0, 0.0]]
    assert_close(placed.shift, torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=1e-5)
    assert placed.moved.tolist() == [[True, True, False], [True, True, False]]
    assert placed.at_bound.tolist() == [[False, True, False], [False, True, False]]
    assert NEAR == 0.02


def test_a_uniform_placement_moves_nothing():
    placed = uniform(inputs_of([[1.0, -1.0]], [0.5], mask=[[True, False]]), MethodOptions(method="grpo"), 0)
    assert placed.advantages.tolist() == [[0.5, 0.0]]
    assert not placed.moved.any()
    assert not placed.shift.any()


two_advantages = st.lists(advantage_values, min_size=2, max_size=2)
two_tokens = st.lists(st.floats(-5, 5), min_size=2, max_size=2)


@given(st.sampled_from([0.0, 0.05, 0.5, 2.0]), two_advantages, two_tokens)
def test_the_weight_of_negative_advantages_is_a_factor_of_whole_rollouts(weight, advantages, evidence):
    inputs = inputs_of([evidence, evidence], advantages)
    plain = placed_by("cepo", inputs)
    weighted = placed_by("cepo", inputs, negative_advantage_weight=weight)
    for row, advantage in enumerate(advantages):
        factor = weight if advantage < 0 else 1.0
        assert_close(weighted.advantages[row], plain.advantages[row] * factor)
        assert_close(weighted.rollout_advantages[row], plain.rollout_advantages[row] * factor)
        if weight > 0:
            assert_close(weighted.shift[row], plain.shift[row])


def test_rollouts_of_weight_zero_are_not_read():
    options = MethodOptions(negative_advantage_weight=0.0)
    advantages, verdicts = torch.tensor([1.0, -1.0, 0.0]), torch.tensor([1.0, -1.0, 1.0])
    assert options.method_spec.wanted(advantages, verdicts, options).tolist() == [True, False, False]
    options = MethodOptions()
    assert options.method_spec.wanted(advantages, verdicts, options).tolist() == [True, True, False]
    with pytest.raises(ValueError, match="negative_advantage_weight must not be negative"):
        MethodOptions(negative_advantage_weight=-1.0)


@pytest.mark.parametrize("method", ["grpo", "cepo"])
def test_the_boring_control_in_training(tmp_path, text_figures, text_model_path, loss_inputs, monkeypatch, method):
    wrong_answers(monkeypatch)
    options = {"reward": half_right, "method": method, "max_steps": 1, "skip_zero_advantage": False}
    train(tmp_path, text_figures, text_model_path, **options)
    train(tmp_path, text_figures, text_model_path, negative_advantage_weight=0.05, **options)
    plain, control = (batch["advantages"] for batch in loss_inputs)
    assert (plain < 0).any()
    assert_close(control, torch.where(plain < 0, 0.05 * plain, plain))


def test_distillation_has_no_advantages_to_weigh(tmp_path):
    for divergence in ("full", "sampled"):
        with pytest.raises(ValueError, match="negative_advantage_weight would do nothing"):
            CEPOConfig(
                output_dir=str(tmp_path),
                method="opsd",
                divergence=divergence,
                negative_advantage_weight=0.05,
                bf16=False,
            )


# A method that is not ours --------------------------------------------------------------------------------------------


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


def test_a_method_of_ones_own_trains(tmp_path, figures, own_method, loss_inputs):
    trainer = train(
        tmp_path, figures, reward=accuracy_reward, method=own_method, max_steps=1, max_completion_length=176
    )
    assert logged(trainer, "cepo/rows_scored")[0] > 0
    (batch,) = loss_inputs
    assert batch["advantages"].dim() == 2


def test_a_method_of_ones_own_from_the_command_line(tmp_path, own_method, capsys):
    small = ["--max_steps=1", "--per_device_train_batch_size=8", "--num_generations=4", "--max_completion_length=176"]
    arguments = [*small, "--figures_problems=8", "--eval_problems=0", "--credit_page_steps=1", "--output_dir=out"]
    assert cli.main(["train", "--method", own_method, *arguments]) == 0
    assert json.loads(Path("out/summary.json").read_text())["method"] == own_method
    assert '"only_more"' in Path("out/credit/step-00000.html").read_text()
    assert cli.main(["explain", "--method", own_method, "--index=1", "--num_generations=4"]) == 0
    page = Path("explain.html").read_text()
    assert '"name":"only_more"' in page
    assert "never less" in page
    capsys.readouterr()
    assert cli.main(["train", "--method", own_method, "--evidence_clip", "0.3", *arguments]) == 2
    assert "does not read evidence_clip" in capsys.readouterr().err


def test_a_method_without_teachers_is_its_placement_alone(
    tmp_path, text_figures, text_model_path, documented, loss_inputs
):
    """No `solution` is needed, no conversation, and the loss is given what the placement says, not GRPO's."""
    documented("last_third")
    plain = text_figures.map(lambda row: {"prompt": row["prompt"][-1]["content"], "solution": None})
    options = {"method": "last_third:last_third_method", "max_steps": 1, "log_completions": True}
    train(tmp_path / "plain", plain, text_model_path, half_right, **options)
    trainer = train(tmp_path, plain.remove_columns("solution"), text_model_path, half_right, **options)
    batch, same = loss_inputs
    assert torch.equal(batch["advantages"], same["advantages"])
    assert not list(tmp_path.rglob("step-*.parquet"))  # what nobody could read again
    mask, placed = batch["completion_mask"].bool(), batch["advantages"]
    assert placed.shape == mask.shape
    for row, kept in zip(placed, mask, strict=True):
        tokens = row[kept]
        first = 2 * len(tokens) // 3
        assert not tokens[:first].any()
        assert tokens[first:].unique().numel() == 1
        assert tokens[first:].all()
    assert (logged(trainer, "cepo/rows_scored"), logged(trainer, "cepo/coefficient")) == ([0.0], [1.0])
    assert logged(trainer, "cepo/credit/moved") == [1.0]


BROKEN = """
from cepo.methods import Method, TokenAdvantages

def flat(inputs, options, step):
    return TokenAdvantages.of(inputs, inputs.advantages)

def bare(inputs, options, step):
    return inputs.evidence

flat_method = Method(name="flat", summary="of a wrong shape", assign_credit=flat)
bare_method = Method(name="bare", summary="no placement", assign_credit=bare)
"""


def test_a_method_that_returns_no_placement_is_named(tmp_path, documented):
    (tmp_path / "broken.py").write_text(BROKEN)
    small = ["--max_steps=1", "--per_device_train_batch_size=8", "--num_generations=4", "--max_completion_length=8"]
    arguments = [*small, "--figures_problems=8", "--eval_problems=0", "--output_dir=out"]
    arguments += ["--reward_funcs", f"{half_right.__module__}.half_right"]
    with pytest.raises(ValueError, match=r"advantages must have the shape \(8, \d+\) of tokens, got \(8,\)"):
        cli.main(["train", "--method", "broken:flat_method", *arguments])
    with pytest.raises(TypeError, match="method bare: its placement returned a Tensor"):
        cli.main(["train", "--method", "broken:bare_method", *arguments])


def test_stages_that_would_never_run_are_refused():
    with pytest.raises(ValueError, match="method both: evidence is of contexts or of labels"):
        replace(METHODS["oracle"], name="both", contexts=METHODS["rlsd"].contexts)
    with pytest.raises(ValueError, match="method idle: without contexts there are no log-probs"):
        replace(METHODS["grpo"], name="idle", evidence=METHODS["cscr"].evidence)


def test_a_placement_with_another_shape_is_refused_by_name():
    inputs = inputs_of([[0.1, 0.2]] * 3, [1.0, -1.0, 0.0])
    with pytest.raises(ValueError, match=r"advantages must have the shape \(3, 2\) of tokens, got \(3,\)"):
        TokenAdvantages.of(inputs, inputs.advantages)
    with pytest.raises(ValueError, match=r"at_bound must have the shape \(3, 2\) of tokens, got \(3, 1\)"):
        TokenAdvantages.of(inputs, inputs.evidence, inputs.mask[:, :1])
    with pytest.raises(ValueError, match=r"scale must have the shape \(3,\) of rollouts, got \(3, 2\)"):
        replace(TokenAdvantages.of(inputs, inputs.evidence), scale=inputs.evidence)


def test_a_method_of_ones_own_is_compared(tmp_path, own_method, monkeypatch):
    from cepo.compare import jobs

    asked = []
    monkeypatch.setattr(jobs, "run_all", lambda work, *_: asked.extend(work))
    cli.main(["compare", "--methods", f"grpo,{own_method}", "--seeds=1", "--output_dir", str(tmp_path / "out")])
    assert [(job.arm, job.options["method"]) for job in asked] == [("grpo", "grpo"), ("only_more", own_method)]


def test_a_method_trains_as_its_placement_says(tmp_path, text_figures, text_model_path, monkeypatch):
    """CEPO with another name and the uniform placement is GRPO, whatever its teachers say."""
    wrong_answers(monkeypatch)
    monkeypatch.setitem(METHODS, "idle", replace(METHODS["cepo"], name="idle", assign_credit=uniform))
    idle = train(tmp_path, text_figures, text_model_path, half_right, method="idle")
    grpo = train(tmp_path, text_figures, text_model_path, half_right, method="grpo", skip_zero_advantage=True)
    assert all(share > 0 for share in logged(idle, "cepo/rows_scored"))
    assert logged(idle, "cepo/credit/moved") == [0.0, 0.0]
    for name, weight in weights_of(grpo).items():
        assert_close(weights_of(idle)[name], weight)


def test_a_loss_that_is_no_plain_mean(tmp_path, text_figures, text_model_path, monkeypatch, loss_inputs):
    """A placement's loss weights reach the loss, and nothing else."""
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
    assert logged(trainer, "cepo/credit/moved")[0] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"evidence_clip": "half"}, "evidence_clip must be a number, got 'half'"),
        ({"evidence_steps": 2.5}, "evidence_steps must be a whole number, got 2.5"),
        ({"max_negatives": True}, "max_negatives must be a whole number, got True"),
        ({"max_negatives": float("inf")}, "max_negatives must be a whole number, got inf"),
        ({"negative_advantage_weight": 10**400}, "negative_advantage_weight must be a number, got 1000"),
        ({"negative_advantage_weight": float("inf")}, "negative_advantage_weight must be a number, got inf"),
        ({"method": ["cepo"]}, "method must be text"),
        ({"hint_template": 3}, "hint_template must be text"),
        ({"answer_extractor": []}, "answer_extractor must be text"),
        ({"method": "rlcsd", "method_kwargs": {"tau": float("nan")}}, "method_kwargs: tau must be a number, got nan"),
        ({"method": "rlcsd", "method_kwargs": {"beta": "x"}}, "method_kwargs: beta must be a number, got 'x'"),
        ({"method": "cscr", "method_kwargs": '{"rate": Infinity}'}, "method_kwargs: rate must be a number, got inf"),
        ({"method": "pbsd", "method_kwargs": {"scale": None}}, "method_kwargs: scale must be a number, got None"),
        ({"method": "vppo", "method_kwargs": {"only_raise": 1}}, "method_kwargs: only_raise must be true or false"),
    ],
)
@pytest.mark.parametrize("kind", [MethodOptions, CEPOConfig])
def test_values_of_another_kind_are_refused_by_name(options, message, kind):
    with pytest.raises(ValueError, match=re.escape(message)):
        kind(**options)


@pytest.mark.parametrize(
    "options", [{"credit_page_steps": None}, {"freeze_vision_tower": 3}, {"correctness_threshold": float("nan")}]
)
def test_and_of_a_run(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"^{name} must be"):
        CEPOConfig("out", **options)


@pytest.mark.parametrize("name", ["num_generations", "per_device_train_batch_size", "steps_per_generation"])
def test_counts_that_trl_divides_by(name):
    with pytest.raises(ValueError, match=f"^{name} must be a whole number from 1 on, got 0"):
        CEPOConfig("out", **{name: 0})


def test_numbers_of_numpy_are_numbers():
    import numpy as np

    made = MethodOptions(evidence_clip=np.float32(0.5), evidence_steps=np.int64(3), max_negatives=np.int32(2))
    assert made.coefficient_at(0) == 0.5


def test_a_scale_of_next_to_nothing_moves_nothing_infinitely():
    placed = placed_by(
        "rlcsd",
        inputs_of([[0.0, 1.0]], [1.0], scored=[False]),
        evidence_coefficient=1.0,
        method_kwargs={"beta": 1e-320},
    )
    assert placed.shift.isfinite().all()

"""The example scripts."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from cepo import policy_path

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
WITHOUT_TRL = """
import runpy, sys
sys.modules["trl"] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(*command, folder=ROOT):
    result = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, cwd=folder)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def cepo(*arguments, folder):
    return run("-m", "cepo.cli", *arguments, folder=folder)


def run_without_trl(name, *arguments):
    return run("-c", WITHOUT_TRL, EXAMPLES / name, *arguments)


def interval(printed, when):
    low, high = re.search(rf"{when} training: [\d.]+% \[([\d.]+)%, ([\d.]+)%\]", printed).groups()
    return float(low), float(high)


@pytest.fixture
def examples_folder(tmp_path):
    """A folder that contains the examples, as the repository's root does."""
    (tmp_path / "examples").symlink_to(EXAMPLES)
    return tmp_path


# own_loop.py ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["cepo", "rlcsd"])
def test_own_loop_takes_any_method(method):
    small = ["--steps=2", "--prompts=3", "--rollouts=4", "--problems=8", "--method", method]
    printed = run_without_trl("own_loop.py", *small)
    moved = [float(share) for share in re.findall(r"tokens moved ([\d.]+)%", printed)]
    assert len(moved) == 2
    assert max(moved) > 0


@pytest.mark.integration
def test_own_loop_improves_accuracy():
    printed = run_without_trl("own_loop.py")
    assert interval(printed, "after")[0] > interval(printed, "before")[1]


# grpo_to_cepo.py ------------------------------------------------------------------------------------------------------


def trl_script():
    """TRL's script: the TRL code in comments replaces the lines before it."""
    lines = []
    for line in (EXAMPLES / "grpo_to_cepo.py").read_text().splitlines():
        code, _, behind = line.partition("  # ")
        if behind.startswith(("from trl import", "GRPO")):
            indent = code[: len(code) - len(code.lstrip())]
            left = f"{indent}{code.strip().split('=')[0]}= " if " = " in code else indent
            lines.append(left + behind)
        else:
            lines.append(line)
    task = "from cepo import load_figures, policy_path"
    return "\n".join(lines).replace("from trl import", f"{task}\nfrom trl import", 1)


def test_grpo_to_cepo_changes_three_lines(tmp_path):
    cepo_lines, trl_lines = (EXAMPLES / "grpo_to_cepo.py").read_text().splitlines(), trl_script().splitlines()
    assert len([line for line in cepo_lines if line not in trl_lines]) == 3
    (tmp_path / "trl_script.py").write_text("\n".join(trl_lines))
    assert "cepo/coefficient" not in run("trl_script.py", "trl", "1", folder=tmp_path)
    assert "cepo/coefficient" in run(EXAMPLES / "grpo_to_cepo.py", "cepo", "1", folder=tmp_path)


# your_own_data.py -----------------------------------------------------------------------------------------------------


def test_custom_data_reward_and_extractor(examples_folder):
    command = run("examples/your_own_data.py", "own-data", "12", folder=examples_folder).split()
    assert command == ["cepo", "train", "--config", "own-data/run.yaml"]
    row = json.loads((examples_folder / "own-data" / "rows.jsonl").read_text().splitlines()[0])
    assert set(row) == {"question", "picture", "key"}
    quick = ["--max_steps=1", "--per_device_train_batch_size=8"]
    cepo(*command[1:], *quick, folder=examples_folder)
    shown = cepo("explain", "--from", "own-data/run", "--terminal", folder=examples_folder)
    assert re.search(r"r- \(\d+(, \d+)+\)", shown)  # from the extractor
    rewards = {float(found) for found in re.findall(r"reward ([\d.]+)", shown)}
    assert rewards - {0.0, 1.0} or len(rewards) > 1  # shares of correct angles


def test_custom_reward_and_extractor_by_hand(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from examples.your_own_data import angles, share_of_angles

    assert angles("so 53 and 62,75 ,43 give \\boxed{(62, 75,43)}") == "(62, 75, 43)"
    assert angles("only 53") is None
    completions = [
        [{"role": "assistant", "content": text}] for text in ("(62, 75, 43)", "(62, 75, 44)", "62", "(1, 2, 3, 4)")
    ]
    assert share_of_angles(completions, ["62, 75, 43"] * 4) == [1.0, pytest.approx(2 / 3), 0.0, 0.0]


# text.py, vision_language.py ------------------------------------------------------------------------------------------

SMALL = ("--steps=1", "--length=16", "--no-bf16")


def test_text_example(tmp_path, text_figures, text_model_path):
    text_figures.select_columns(["prompt", "solution"]).to_json(tmp_path / "rows.jsonl")
    run(EXAMPLES / "text.py", "--model", text_model_path, "--dataset", "rows.jsonl", "--rollouts=16", *SMALL,
        folder=tmp_path)  # fmt: skip
    assert (tmp_path / "text-run" / "model.safetensors").is_file()
    assert AutoTokenizer.from_pretrained(tmp_path / "text-run").eos_token_id is not None


def test_vision_language_example(tmp_path, figures):
    figures.select_columns(["prompt", "image", "solution"]).save_to_disk(tmp_path / "rows")
    run(EXAMPLES / "vision_language.py", "--model", policy_path(), "--dataset", "rows", "--prompts=1", *SMALL,
        folder=tmp_path)  # fmt: skip
    assert (tmp_path / "vision-run" / "adapter_model.safetensors").is_file()


# new_method.py --------------------------------------------------------------------------------------------------------


def test_a_new_method_is_thirty_lines_and_runs_by_its_import_path(examples_folder):
    code = (EXAMPLES / "new_method.py").read_text().split('"""', 2)[2]
    lines = [line for line in code.splitlines() if line.strip() and '"""' not in line]
    assert len(lines) <= 36
    said = cepo(
        "train", "--method", "examples.new_method:METHOD", "--penalty=0.2", "--max_steps=1",
        "--per_device_train_batch_size=8", "--eval_problems=0", "--output_dir=out", folder=examples_folder,
    )  # fmt: skip
    command = "cepo explain --model_name_or_path out --method examples.new_method:METHOD --penalty=0.2"
    assert said.splitlines()[-1] == f"credit of each token: {command}"
    assert "1 step of 1 prompt x 8 rollouts" in said
    assert json.loads((examples_folder / "out" / "summary.json").read_text())["method"] == "examples.new_method:METHOD"


def test_the_new_method_blames_groups_that_are_all_wrong(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from cepo import Rollout, method_options
    from cepo.methods import LabeledGroup
    from tests.support.methods import inputs_of

    options = method_options("examples.new_method:METHOD", penalty=0.25)
    wrong, right = Rollout("1", 0.0, False), Rollout("2", 1.0, True)

    def labels(*attempts):
        group = LabeledGroup({}, [["a", "b"]] * len(attempts), attempts, [0.0] * len(attempts), 3)
        return options.method_spec.token_values(group, options)

    assert labels(wrong, wrong) == [[-1.0, -1.0]] * 2
    assert labels(wrong, right) == [[0.0, 0.0]] * 2
    placed = options.method_spec.token_advantages(
        inputs_of([[-1.0, -1.0], [0.0, 0.0]], [0.0, -2.0], verdicts=[-1.0, -1.0]), options, 0
    )
    assert placed.advantages.tolist() == [[-0.25, -0.25], [-2.0, -2.0]]


# read_the_credit.ipynb ------------------------------------------------------------------------------------------------


def test_notebook_runs_with_the_committed_outputs(tmp_path, monkeypatch):
    sys.path.append(str(ROOT / "scripts"))
    from run_notebook import run as run_notebook

    monkeypatch.chdir(tmp_path)
    path = EXAMPLES / "read_the_credit.ipynb"
    committed, found = json.loads(path.read_text()), run_notebook(path)
    assert str(ROOT) not in path.read_text()
    for before, now in zip(committed["cells"], found.cells, strict=True):
        assert "".join(before["source"]) == now.source
        if before["cell_type"] == "code":
            kinds = [output["output_type"] for output in before["outputs"]]
            assert kinds == [output.output_type for output in now.outputs] != []
            assert "error" not in kinds
    evidence = next(cell for cell in found.cells if "strongest" in cell.source).outputs[0].text
    assert re.search(r"^' ?\d' +-\d+\.\d\d", evidence, re.M)  # the strongest evidence includes a digit

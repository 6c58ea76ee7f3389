"""Text of models and data sets is escaped wherever it is displayed, and their files run no code."""

import ast
import io
import json
import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch
from matplotlib import pyplot
from rich.table import Table
from rich.text import Text

import cepo.data.sampling
from cepo import cli
from cepo.commands import evaluate as evaluating
from cepo.commands.curves import draw_curves
from cepo.compare.report import draw_comparison
from cepo.compare.statistics import Run, summarize
from cepo.data.accuracy import Accuracy
from cepo.data.escape import escape, one_line
from cepo.data.models import load_policy
from cepo.data.yaml_files import read_yaml
from cepo.inspection.console import PlainConsole
from cepo.inspection.page import _json
from cepo.inspection.pictures import plain_text
from cepo.inspection.tables import markdown_table
from tests.support.training import half_right, make, train

ROOT = Path(__file__).parents[1]
# Control sequences of terminals, bidirectional marks, markup of rich and HTML, TeX and Markdown.
HOSTILE = (
    "\x1b[2J\x1b]0;title\x07\x1b]8;;http://x\x1b\\link\r over\x00\x9b31m \u202egnp.exe\u2028\udc9b [bold red] [/] "
    "[link=http://x]y[/link] :smile: </script><script>alert(1)</script><img src=x onerror=alert(1)> $\\frac{$ |"
)
SEEN = "\\x1b[2J\\x1b]0;title"


def is_harmless(printed):
    """Whether a terminal prints this text without obeying it."""
    printed.encode("utf-8")
    return not any(character in printed for character in "\x1b\x07\r\x00\x9b\u202e\u2028\udc9b")


# Display ------------------------------------------------------------------------------------------------------


def test_escape():
    plain = "plain text,\n\ttabs, naïve, 图, 👩\u200d🔬, \u00a0"
    assert escape(plain) == plain
    assert escape("\x1b[0m\r\x00\u202e\ud800\u2066") == r"\x1b[0m\r\x00\u202e\ud800\u2066"
    assert one_line("  two\n lines\r\n") == "two lines"


def test_console_escapes_markup_and_control_characters():
    out = io.StringIO()
    console = PlainConsole(file=out, width=300, soft_wrap=True)
    table = Table(title=HOSTILE, caption=HOSTILE)
    table.add_column(HOSTILE)
    table.add_row(HOSTILE)
    for one in (HOSTILE, Text(HOSTILE), Text.assemble((HOSTILE, "bold")), table):
        console.print(one)
        printed = out.getvalue()
        assert is_harmless(printed)
        assert printed.count("[bold red] [/]") >= 1
        assert SEEN in printed
        assert ":smile:" in printed
        out.seek(0)
        out.truncate()


def test_status_is_escaped():
    out = io.StringIO()
    with PlainConsole(file=out, width=200, force_terminal=True).status("[/] [bold]reading\x1b"):
        pass
    assert "[/] [bold]reading\\x1b" in out.getvalue()


def test_console_keeps_styles():
    out = io.StringIO()
    PlainConsole(file=out, force_terminal=True, color_system="truecolor").print(Text("bold", style="bold"))
    assert out.getvalue() == "\x1b[1mbold\x1b[0m\n"


def test_commands_print_to_the_console(monkeypatch, capsys):
    found = []
    monkeypatch.setattr(evaluating, "prepare", lambda arguments: lambda console: found.append(console) or 0)
    assert cli.main(["evaluate"]) == 0
    assert isinstance(found[0], PlainConsole)


@pytest.mark.parametrize(
    "arguments",
    [["--nosuch" + HOSTILE], ["--dataset_name", HOSTILE.replace("\0", "") + ".jsonl"], [HOSTILE]],
)
@pytest.mark.parametrize("command", ["train", "evaluate", "explain", "compare"])
def test_errors_are_escaped_and_on_one_line(command, arguments, text_model_path, capsys):
    extra = ["--methods", "grpo"] if command == "compare" else []
    extra += ["--model_name_or_path", text_model_path]
    assert cli.main([command, *extra, *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert is_harmless(error)
    assert "\\x1b[2J" in error or "\\\\x1b[2J" in error


def test_completions_are_escaped(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(cepo.data.sampling, "text_of", lambda *_: HOSTILE)
    flags = [
        "--num_problems",
        "2",
        "--temperatures",
        "0",
        "--max_completion_length",
        "2",
        "--output_dir",
        str(tmp_path),
    ]
    assert cli.main(["evaluate", *flags]) == 0
    printed = capsys.readouterr().out
    assert is_harmless(printed)
    assert f"first answer: {SEEN}" in printed


@pytest.fixture
def rows(tmp_path):
    """Problems with hostile text, as far as JSON can hold it."""
    text = HOSTILE.replace("\udc9b", "")
    row = {"prompt": [{"role": "user", "content": f"How many? {text}"}], "solution": f"\\boxed{{7}} {text}"}
    path = tmp_path / "rows.jsonl"
    path.write_text((json.dumps(row) + "\n") * 4)
    return path


def test_explain_escapes_prompts_and_solutions(text_model_path, rows, tmp_path, capsys):
    flags = ["--model_name_or_path", text_model_path, "--dataset_name", str(rows), "--num_generations", "2"]
    flags += [
        "--max_completion_length",
        "3",
        "--reward_funcs",
        f"{__name__}.every_other",
        "--output_dir",
        str(tmp_path),
    ]
    assert cli.main(["explain", *flags, "--terminal"]) == 0
    printed = capsys.readouterr().out
    assert is_harmless(printed)
    assert f"user: How many? {SEEN}" in printed
    assert "[bold red]" in printed
    assert cli.main(["explain", *flags]) == 0
    page = (tmp_path / "explain.html").read_text(encoding="utf-8")
    assert page.count("<script") == 2
    assert "<img src" not in page


def every_other(completions, **kwargs):
    return [float(number % 2) for number in range(len(completions))]


def test_page_escapes_its_json():
    text = _json({"text": HOSTILE})
    text.encode("utf-8")
    assert json.loads(text)["text"] == HOSTILE
    assert "<" not in text


def test_markdown_table_escapes_cells():
    lines = markdown_table(("a", "b"), [(HOSTILE, "[x](javascript:1)"), ("1.0 [0.5, 1.5]", "own_or_mixture")]).split(
        "\n"
    )
    assert len(lines) == 5
    assert is_harmless("".join(lines))
    assert [line.replace("\\|", "").count("|") for line in lines[:4]] == [3, 3, 3, 3]
    assert "<" not in "".join(lines)
    assert "](" not in "".join(lines)
    assert lines[3] == "| 1.0 [0.5, 1.5] | own_or_mixture |"


def test_figures_parse_no_formulas(tmp_path):
    """An invalid formula would raise an error when the figure is drawn."""
    name = "a $\\frac{ and $x_{$"
    history = [{"step": 1, "reward": 0.5}, {"step": 2, "reward": 0.6}]
    draw_curves(history, tmp_path / "curves.png", title=name, accuracy=[{"step": 0, **Accuracy((1.0, 0.0)).as_dict()}])
    runs = {name: [Run(0, [(0, 0.1), (5, 0.5)], 1.0)], "grpo": [Run(0, [(0, 0.1), (5, 0.4)], 1.0)]}
    draw_comparison(runs, summarize(runs), tmp_path / "compare.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000
    assert (tmp_path / "compare.png").stat().st_size > 1000
    assert pyplot.rcParams["text.parse_math"]  # of the caller's own pictures

    @plain_text
    def drawn():
        return pyplot.figure().suptitle("$\\frac{$")

    assert not drawn().get_parse_math()
    pyplot.close("all")


# Loading ------------------------------------------------------------------------------------------------------------


def test_models_and_tensors_are_loaded_without_running_code():
    """Ruff's S rules forbid pickle, eval and shells. Without trust_remote_code, transformers asks at the terminal."""
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name, given = ast.unparse(node.func), {one.arg: ast.unparse(one.value) for one in node.keywords}
            if re.fullmatch(r"Auto\w+\.from_pretrained", name):
                assert given["trust_remote_code"] != "True", path
            if name == "torch.load":
                assert given["weights_only"] == "True", path
            assert given.get("allow_pickle", "False") == "False", path


class Harm:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_checkpoints_run_no_code(text_figures, text_model_path, tmp_path):
    options = {"max_steps": 1, "max_completion_length": 4, "save_strategy": "steps", "save_steps": 1, "method": "grpo"}
    train(tmp_path, text_figures, text_model_path, half_right, **options)
    checkpoint = tmp_path / "out" / "checkpoint-1"
    done = tmp_path / "done"
    pickle.loads(pickle.dumps(Harm(done)))
    assert done.exists()  # it would
    done.unlink()
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        kept = (checkpoint / name).read_bytes()
        torch.save({"state": Harm(done)}, checkpoint / name)
        trainer = make(tmp_path, text_figures, text_model_path, half_right, **{**options, "max_steps": 2})
        with pytest.raises(pickle.UnpicklingError):
            trainer.train(resume_from_checkpoint=str(checkpoint))
        (checkpoint / name).write_bytes(kept)
    assert not done.exists()


def test_data_sets_run_no_code(tmp_path, capsys):
    done = tmp_path / "done"
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "train.pkl").write_bytes(pickle.dumps(Harm(done)))
    assert cli.main(["evaluate", "--dataset_name", str(folder)]) == 2
    (folder / "data.py").write_text(f"open({str(done)!r}, 'w')")
    assert cli.main(["evaluate", "--dataset_name", str(folder)]) == 2
    assert capsys.readouterr().err.count("\n") == 2
    assert not done.exists()


OWN_CODE = """
from pathlib import Path
from transformers import Qwen3Config, Qwen3ForCausalLM
Path({done!r}).touch()
class OwnConfig(Qwen3Config):
    model_type = "own"
class OwnModel(Qwen3ForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def own_code(text_model_path, tmp_path, monkeypatch):
    """A model with code in its folder, and the file that this code creates."""
    folder, done = tmp_path / "model", tmp_path / "done"
    shutil.copytree(text_model_path, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "architectures": ["OwnModel"]}
    config["auto_map"] = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(OWN_CODE.format(done=str(done)))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("builtins.input", None)
    return str(folder), done


def test_models_run_no_code(own_code, rows, text_model_path, tmp_path, capsys):
    folder, done = own_code
    own = ["--dataset_name", str(rows), "--reward_funcs", f"{__name__}.every_other"]
    train_flags = [*own, "--output_dir", str(tmp_path / "out"), "--use_cpu", "true", "--max_steps", "1"]
    train_flags += ["--per_device_train_batch_size", "4", "--num_generations", "4", "--max_completion_length", "4"]
    with_policy, with_teacher = (["--model_name_or_path", name] for name in (folder, text_model_path))
    for command in (
        ["train", *with_policy, *train_flags],
        ["train", *with_policy, *train_flags, "--max_prompt_length", "500"],
        ["train", *with_teacher, *train_flags, "--method", "distilled_rl", "--teacher_model_name_or_path", folder],
        ["evaluate", *with_policy, *own],
        ["explain", *with_policy, *own],
        ["explain", *with_teacher, *own, "--teacher_model_name_or_path", folder],
        ["explain", *with_policy, *own, "--statistics"],
    ):
        assert cli.main(command) == 2, command
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert f"model_name_or_path: cannot load {folder}: " in error, command
        assert "--trust_remote_code true" in error
    assert cli.main(["train", *with_policy, *train_flags, "--dry_run"]) == 2
    assert f"sizes of {folder} need remote code, which is not run" in capsys.readouterr().out
    assert not done.exists()


def test_trust_remote_code_runs_code_of_a_model(own_code, rows, tmp_path, capsys):
    folder, done = own_code
    model, _ = load_policy(folder, trust_remote_code=True)
    assert type(model).__name__ == "OwnModel"
    assert done.exists()
    flags = ["--dataset_name", str(rows), "--reward_funcs", f"{__name__}.every_other", "--max_completion_length", "2"]
    flags += ["--temperatures", "0", "--output_dir", str(tmp_path), "--model_name_or_path", folder]
    assert cli.main(["evaluate", *flags, "--trust_remote_code"]) == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("x: !!python/object/apply:pathlib.Path.touch [{done}]", "is not YAML: could not determine a constructor"),
        ("x: !!python/name:os.system", "is not YAML"),
        ("x: 2001-99-99", "is not YAML: month must be in"),
        (b"x: \xff", "is not YAML: 'utf-8' codec"),
        ("x: [", "is not YAML: .*line 1, column 5"),
        ("- x", "must hold options as `name: value` lines"),
    ],
    ids=range(6),
)
@pytest.mark.parametrize("command", ["train", "compare"])
def test_yaml_files_run_no_code(tmp_path, capsys, content, message, command):
    done, path = tmp_path / "done", tmp_path / "own.yaml"
    content = content.replace("{done}", str(done)) if isinstance(content, str) else content
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ValueError, match=message):
        read_yaml(path)
    assert cli.main([command, "--config", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert f"--config: {path}" in error
    assert not done.exists()


def test_yaml_files_with_aliases_and_byte_order_mark(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + b"base: &base {x: 1}\narms: {a: *base, b: {<<: *base, y: 2}}\n")
    assert read_yaml(path) == {"base": {"x": 1}, "arms": {"a": {"x": 1}, "b": {"x": 1, "y": 2}}}

"""The section on the run in TRL's model card, without paths and secrets."""

import json
from pathlib import Path

import pytest
import transformers.trainer
from huggingface_hub import ModelCard

from cepo import cli
from cepo.methods import METHODS
from cepo.trainer.model_card import paper_of, public_command, without_secrets
from tests.support.command_line import EVAL, SMALL
from tests.support.training import half_right, train


def card_of(folder):
    card = ModelCard.load(folder / "README.md")
    return card.text, card.data.to_dict()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with absolute paths and a YAML file."""
    folder = tmp_path_factory.mktemp("somebodys-home")
    config = folder / "run.yaml"
    config.write_text("method: cepo\nevidence_clip: 0.3\nnegative_reference: own\n")
    assert cli.main(["train", "--config", str(config), *SMALL, *EVAL, f"--output_dir={folder / 'out'}"]) == 0
    return folder / "out"


def test_options_data_and_accuracy(trained):
    text, data = card_of(trained)
    assert {"trl", "cepo", "generated_from_trainer"} <= set(data["tags"])
    assert "datasets" not in data  # not on the Hub
    assert "| evidence_clip | 0.3 |" in text
    assert "| negative_reference | own |" in text
    assert "| evidence_steps | 14 |" in text  # of the recipe
    assert "| data | figures, train; held out: test |" in text
    assert "| optimizer steps | 2 |" in text
    assert "2605.19436" in text
    assert "@misc{cepo," in text
    assert "\n- TRL: " in text
    assert "| cepo | " in text
    summary = json.loads((trained / "summary.json").read_text())
    for name, found in (("greedy", "greedy"), ("sampled", "sampled")):
        (line,) = [line for line in text.splitlines() if line.startswith(f"| {name}, ")]
        for when in ("before", "after"):
            share = summary[when][found]
            assert f"{share['accuracy']:.1%} [{share['low']:.1%}, {share['high']:.1%}]" in line
    assert "| pass@2, 3 problems |" in text
    assert "Training has not ended" not in text


def test_no_path_of_the_machine(trained):
    text, _ = card_of(trained)
    assert f"    cepo train --config run.yaml {' '.join(SMALL)} {' '.join(EVAL)} --output_dir=out\n" in text
    for part in (str(trained.parent), "somebodys-home", str(Path(__file__).parents[1]), str(Path.home())):
        assert part not in text


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["cepo", "train", "--seed", "3"], "cepo train --seed 3"),
        (["--output_dir", "/home/me/my runs/out/"], "--output_dir out"),
        (["--dataset_name=/data/geometry.jsonl"], "--dataset_name=geometry.jsonl"),
        (["--dataset_name=my-org/geometry"], "--dataset_name=my-org/geometry"),
        (["--vllm_server_base_url", "http://me:secret@host:80/v1/x"], "--vllm_server_base_url http://...@host:80/v1/x"),
        (["--hub_token", "abc", "--seed", "1"], "--hub_token ... --seed 1"),
        (["--hub_token=abc"], "--hub_token=..."),
        (["--push_to_hub_token=abc", "--teacher_batch_tokens=9"], "--push_to_hub_token=... --teacher_batch_tokens=9"),
        (
            ["--model_init_kwargs", '{"cache_dir": "/home/me/x", "token": "hf_abcdefghij"}'],
            """--model_init_kwargs '{"cache_dir": "x", "token": "..."}'""",
        ),
        (["--image_folder", "file:///home/me/x"], "--image_folder x"),
        (["--chat", "a=/home/me/a:/home/me/b"], "--chat a=a:b"),
        (["--system_prompt", "either/or, 1/2"], "--system_prompt 'either/or, 1/2'"),
        (["--use_peft", "--report_to", "none"], "--use_peft --report_to none"),
        (["--system_prompt", "two\nlines"], "--system_prompt 'two\nlines'"),
    ],
)
def test_commands(arguments, shown):
    assert public_command(arguments) == shown


def test_paths_in_texts():
    assert without_secrets("/home/me/a b/c.yaml") == "c.yaml"
    assert without_secrets("see https://arxiv.org/abs/1 and /etc/passwd") == "see https://arxiv.org/abs/1 and passwd"
    assert without_secrets("my-org/geometry") == "my-org/geometry"


@pytest.mark.parametrize("name", METHODS)
def test_the_paper_of_every_method(name):
    paper = paper_of(METHODS[name])
    number = METHODS[name].doc.source.removeprefix("arXiv ")
    if number == METHODS[name].doc.source:
        assert paper == {}
    else:
        assert paper["id"] == number
        assert number in paper["citation"]


def test_a_card_from_python(tmp_path, text_figures, text_model_path):
    """Without a command line: no data, command or accuracy."""
    trainer = train(tmp_path, text_figures, text_model_path, half_right, method="rlsd", max_steps=1)
    trainer.create_model_card()
    text, _ = card_of(tmp_path / "out")
    assert "This model was trained with RLSD, a method introduced in [arXiv 2604.03128]" in text
    assert "@misc{rlsd," in text
    assert "@misc{cepo," not in text
    assert "Not measured." in text
    assert "Command" not in text
    assert "None" not in text
    assert f"a fine-tuned version of `{Path(text_model_path).name}`" in text
    assert 'model="out"' in text
    trainer.state.max_steps = 3
    trainer.create_model_card()
    assert "Training has not ended: 1 of 3 steps." in card_of(tmp_path / "out")[0]


def test_the_card_of_a_checkpoint(tmp_path):
    """Accuracy before training, none after."""
    seen = []

    class Reader(transformers.TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            seen.append(card_of(tmp_path / "out")[0])

    from cepo.commands import train as command

    original = command._train

    def watched(trainer, *rest):
        trainer.add_callback(Reader())
        return original(trainer, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "_train", watched)
        options = ["--save_strategy=steps", "--save_steps=1", "--eval_problems=4", "--eval_samples=0"]
        assert cli.main(["train", *SMALL, *options, "--output_dir", str(tmp_path / "out")]) == 0
    assert "Training has not ended: 1 of 2 steps." in seen[0]
    (line,) = [line for line in seen[0].splitlines() if line.startswith("| greedy, 4 problems |")]
    assert line.endswith("| - |")
    assert "Training has not ended" not in card_of(tmp_path / "out")[0]


class Hub:
    """Stands in for the Hub; records the card of a pushed folder."""

    def __init__(self):
        self.pushed = []

    def create_repo(self, repo_id, **options):
        return type("Url", (), {"repo_id": repo_id})()

    def upload_folder(self, *, repo_id, folder_path, commit_message, run_as_future=False, **options):
        self.pushed.append((repo_id, commit_message, (Path(folder_path) / "README.md").read_text()))

    def __getattr__(self, name):
        raise AssertionError(f"the run called {name} of the Hub")


def test_a_pushed_folder_holds_the_card(tmp_path, monkeypatch):
    hub = Hub()
    monkeypatch.setattr(transformers.trainer, "hf_api", lambda: hub)
    options = ["--push_to_hub", "--hub_model_id=me/figures", "--save_strategy=no"]
    assert cli.main(["train", *SMALL, *EVAL, *options, "--output_dir", str(tmp_path / "out")]) == 0
    ((name, message, card),) = hub.pushed
    assert (name, message) == ("me/figures", "Model save")
    assert 'model="me/figures"' in card
    assert "# Model Card for figures" in card
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    after = summary["after"]["greedy"]
    (line,) = [line for line in card.splitlines() if line.startswith("| greedy, ")]
    assert line.endswith(f"| {after['accuracy']:.1%} [{after['low']:.1%}, {after['high']:.1%}] |")

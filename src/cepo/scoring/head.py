"""The LM head: from hidden states to log-probs, in chunks of positions.

Dimensions: N positions, H hidden width, V vocabulary.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .shards import detached, whole_with_gradient

# Positions per chunk.
CHUNK = 512


@dataclass(frozen=True)
class Head:
    """The LM head of a model.

    Attributes:
        weight: (V, H).
        bias: (V,), or None.
        scale: Factor of the logits.
        softcap: Soft cap of the logits, softcap * tanh(logits / softcap), as in Gemma; None: no cap.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    @classmethod
    def of(cls, model: PreTrainedModel) -> "Head":
        """The head of a transformers model. Sharded weights are gathered, so all processes call it together."""
        layer, config = model.get_output_embeddings(), model.config.get_text_config()
        scale = next(
            (
                value
                for name in ("logit_scale", "output_multiplier", "lm_head_multiplier")
                if (value := getattr(config, name, None)) is not None
            ),
            None,
        )
        if scale is None and (scaling := getattr(config, "logits_scaling", None)) is not None:
            # Granite and MiniCPM3 divide by it, HyperCLOVA X multiplies by it.
            scale = scaling if config.model_type == "hyperclovax" else 1 / scaling
        softcap = getattr(config, "final_logit_softcapping", None)
        bias = None if layer.bias is None else whole_with_gradient(layer.bias)
        return cls(whole_with_gradient(layer.weight), bias, 1.0 if scale is None else scale, softcap)

    def detached(self, *, copied: bool = False) -> "Head":
        """The head without gradient, unaffected by a later exchange of the model's weights.

        Args:
            copied: Copy the weights, where an exchange overwrites them in place.
        """
        bias = None if self.bias is None else detached(self.bias, copied=copied)
        return Head(detached(self.weight, copied=copied), bias, self.scale, self.softcap)

    def log_probs(self, hidden: Tensor, temperature: float, *, rounded: bool = False) -> Tensor:
        """(N, V) log-probs [nats] of (N, H) hidden states.

        In half precision the inputs of the matrix product are rounded, its result is not: near a logit of 20, bfloat16
        has steps of 1/8 nat, which would flip the sign of small evidence. With `rounded` the logits are rounded as
        well, as a model's forward pass rounds them.
        """
        if rounded:
            logits = nn.functional.linear(hidden, self.weight, self.bias).float()
        else:
            dtype = _dtype_of_products(hidden, self.weight)
            with torch.autocast(hidden.device.type, enabled=False):
                logits = _float32_product(hidden.to(dtype), self.weight.to(dtype))
                logits = logits if self.bias is None else logits + self.bias.float()
        logits = logits * self.scale
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return (logits / temperature).log_softmax(-1)


def _dtype_of_products(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """Dtype of the inputs; TRL's `cast_lm_head_to_fp32` leaves a float32 head after hidden states of half precision."""
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return torch.promote_types(hidden.dtype, weight.dtype)


def _float32_product(hidden: Tensor, weight: Tensor) -> Tensor:
    """(N, V) float32 product of (N, H) and (V, H)."""
    if hidden.is_cuda and hidden.dtype in (torch.bfloat16, torch.float16) and not torch.is_grad_enabled():
        return torch.mm(hidden, weight.t(), out_dtype=torch.float32)  # needs no float32 copies; has no gradient
    return nn.functional.linear(hidden.float(), weight.float())


def sampled_log_probs(
    hidden: Tensor, head: Head, tokens: Tensor, temperature: float, *, rounded: bool = False
) -> Tensor:
    """(N,) log-probs [nats] of the (N,) tokens; `rounded` as in `Head.log_probs`, as TRL's log-probs are."""
    head = replace(head, weight=head.weight.to(_dtype_of_products(hidden, head.weight)))  # once, not for each chunk
    parts = zip(hidden.split(CHUNK), tokens.split(CHUNK), strict=True)
    return torch.cat(
        [head.log_probs(h, temperature, rounded=rounded).gather(-1, t.unsqueeze(-1)).squeeze(-1) for h, t in parts]
    )

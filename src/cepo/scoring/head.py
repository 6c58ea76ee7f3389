"""The LM head: from hidden states to log-probs, in chunks of positions.

Dimensions: N positions, H hidden width, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
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

    def log_probs(self, hidden: Tensor, temperature: float, *, rounded: bool = True) -> Tensor:
        """(N, V) log-probs [nats] of (N, H) hidden states.

        In half precision the logits are rounded as a model's forward pass rounds them; near a logit of 20 the step is
        1/8. With `rounded` False only the inputs of the matrix product are rounded, which needs a float32 copy of the
        head.
        """
        if rounded:
            logits = torch.nn.functional.linear(hidden, self.weight, self.bias).float()
        else:
            device = hidden.device.type
            dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
            bias = None if self.bias is None else self.bias.float()
            with torch.autocast(device, enabled=False):
                logits = torch.nn.functional.linear(hidden.to(dtype).float(), self.weight.to(dtype).float(), bias)
        logits = logits * self.scale
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return (logits / temperature).log_softmax(-1)


def sampled_log_probs(hidden: Tensor, head: Head, tokens: Tensor, temperature: float) -> Tensor:
    """(N,) log-probs [nats] of the (N,) tokens, with the rounding of TRL's log-probs."""
    parts = zip(hidden.split(CHUNK), tokens.split(CHUNK), strict=True)
    return torch.cat([head.log_probs(h, temperature).gather(-1, t.unsqueeze(-1)).squeeze(-1) for h, t in parts])

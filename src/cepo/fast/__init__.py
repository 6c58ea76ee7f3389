"""Shortcuts that change numbers by rounding only; the folder can be deleted. `acceleration.py` switches them on."""

from typing import Any

from .generation import PrefixSharingGenerator, SharedPrompts
from .tree_forward import forward_for

__all__ = ["PrefixSharingGenerator", "SharedPrompts", "forward_for", "share_prompts"]


def share_prompts(trainer: Any) -> Any:
    """Let a `CEPOTrainer` run each distinct prompt once; see `PromptSharing`."""
    from .trainer import PromptSharing  # the rest of this folder works without TRL

    return PromptSharing(trainer)

"""Shortcuts with the same numbers, to rounding; the folder can be deleted. `acceleration.py` switches them on."""

from typing import Any

from .generation import PrefixSharingGenerator, SharedPrompts
from .prefix_cache import forward_for

__all__ = ["PrefixSharingGenerator", "SharedPrompts", "forward_for", "prompt_sharing"]


def prompt_sharing(trainer: Any) -> Any:
    """What a `CEPOTrainer` delegates to; this alone needs TRL."""
    from .trainer import PromptSharing

    return PromptSharing(trainer)

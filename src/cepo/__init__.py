"""CEPO: Contrastive Evidence Policy Optimization (arXiv 2605.19436), as a drop-in trainer beside TRL's."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .credit import evidence, evidence_coefficient, evidence_weights, token_advantages
    from .data.evaluation import Accuracy, evaluate_accuracy
    from .references.choosing import Attempt, References, choose_references
    from .tasks.figures import load_figures, policy_path
    from .trainer.cepo_config import CEPOConfig
    from .trainer.cepo_trainer import CEPOTrainer

__version__ = version("cepo")

# Loaded on first use: `cepo --help` should not wait for torch.
_HOME = {
    "CEPOConfig": "trainer.cepo_config",
    "CEPOTrainer": "trainer.cepo_trainer",
    "Accuracy": "data.evaluation",
    "evaluate_accuracy": "data.evaluation",
    "evidence": "credit",
    "evidence_coefficient": "credit",
    "evidence_weights": "credit",
    "token_advantages": "credit",
    "Attempt": "references.choosing",
    "References": "references.choosing",
    "choose_references": "references.choosing",
    "load_figures": "tasks.figures",
    "policy_path": "tasks.figures",
}

__all__ = [
    "Accuracy",
    "Attempt",
    "CEPOConfig",
    "CEPOTrainer",
    "References",
    "choose_references",
    "evaluate_accuracy",
    "evidence",
    "evidence_coefficient",
    "evidence_weights",
    "load_figures",
    "policy_path",
    "token_advantages",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module 'cepo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

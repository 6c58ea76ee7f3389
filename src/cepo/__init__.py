"""CEPO: Contrastive Evidence Policy Optimization (arXiv 2605.19436), beside TRL's GRPOTrainer."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import credit
    from .data.accuracy import Accuracy, Evaluation
    from .data.evaluation import evaluate
    from .data.rewards import answer_reward
    from .methods import METHODS, Method, method_options
    from .references.equality import same_answer
    from .references.extraction import final_answer, reference_answer
    from .references.groups import References, Rollout
    from .references.negatives import choose_references
    from .tasks.figures import load_figures, policy_path
    from .trainer.cepo_config import CEPOConfig, config_class
    from .trainer.cepo_trainer import CEPOTrainer

__version__ = version("cepo")

# The public API (docs/api.md) by module. Modules are imported on first use: `cepo --help` does not import torch.
_MODULES = {
    "credit": "",
    "References": "references.groups",
    "Rollout": "references.groups",
    "choose_references": "references.negatives",
    "answer_reward": "data.rewards",
    "final_answer": "references.extraction",
    "reference_answer": "references.extraction",
    "same_answer": "references.equality",
    "METHODS": "methods",
    "Method": "methods",
    "method_options": "methods",
    "CEPOConfig": "trainer.cepo_config",
    "config_class": "trainer.cepo_config",
    "CEPOTrainer": "trainer.cepo_trainer",
    "Accuracy": "data.accuracy",
    "Evaluation": "data.accuracy",
    "evaluate": "data.evaluation",
    "load_figures": "tasks.figures",
    "policy_path": "tasks.figures",
}

__all__ = [
    "METHODS",
    "Accuracy",
    "CEPOConfig",
    "CEPOTrainer",
    "Evaluation",
    "Method",
    "References",
    "Rollout",
    "answer_reward",
    "choose_references",
    "config_class",
    "credit",
    "evaluate",
    "final_answer",
    "load_figures",
    "method_options",
    "policy_path",
    "reference_answer",
    "same_answer",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'cepo' has no attribute {name!r}")
    if not _MODULES[name]:
        return import_module(f".{name}", __name__)
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

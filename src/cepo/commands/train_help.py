"""The help page of `cepo train`: TRL's parser, with the options of methods in groups."""

from ..methods.option_fields import GROUPS
from ..methods.registry import METHODS
from ..trainer.arguments import make_parser
from ..trainer.cepo_config import option_docs
from .options import HelpFormatter


def train_help() -> str:
    """The text of the help page."""
    parser = make_parser()
    parser.usage = "%(prog)s [--config FILE.yaml] [OPTIONS]"
    parser.description = (
        "Train a policy. Options are flags, or `name: value` lines of the YAML file; flags take precedence. Without a "
        "model and a dataset: CEPO on the embedded figures task, with defaults for two CPU cores. An option that the "
        "chosen method does not have is refused."
    )
    parser.formatter_class = HelpFormatter
    methods = "; ".join(f"{method.name}: {method.doc.summary}" for method in METHODS.values())
    groups = {
        name: parser.add_argument_group(title, methods if name == "method" else None) for name, title in GROUPS.items()
    }
    docs, others = option_docs(), parser._optionals._group_actions
    for action in [action for action in others if action.dest in docs]:
        group, text, default = docs[action.dest]
        action.help = (f"{text} (default: {default})" if default else text).replace("%", "%%")
        others.remove(action)
        groups[group]._group_actions.append(action)
    return parser.format_help()

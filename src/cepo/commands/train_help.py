"""The help page of `cepo train`: TRL's parser, with CEPO's options in groups of their own."""

from ..methods.registry import METHODS
from ..methods.shared_options import GROUPS
from ..trainer.arguments import make_parser
from ..trainer.cepo_config import own_options
from .options import HelpFormatter


def train_help() -> str:
    """The page."""
    parser = make_parser()
    parser.usage = "%(prog)s [--config FILE.yaml] [OPTIONS]"
    parser.description = (
        "Train a policy. Options are flags, or `name: value` lines of the YAML file; flags win. With neither model nor "
        "data: CEPO on the embedded figures task, with defaults for two CPU cores. An option that the chosen method "
        "does not read is refused."
    )
    parser.formatter_class = HelpFormatter
    methods = "; ".join(f"{method.name}: {method.summary}" for method in METHODS.values())
    groups = {
        name: parser.add_argument_group(title, methods if name == "method" else None) for name, title in GROUPS.items()
    }
    own, others = own_options(), parser._optionals._group_actions
    for action in [action for action in others if action.dest in own]:
        group, text, default = own[action.dest]
        action.help = f"{text} (default: {default})".replace("%", "%%")
        others.remove(action)
        groups[group]._group_actions.append(action)
    return parser.format_help()

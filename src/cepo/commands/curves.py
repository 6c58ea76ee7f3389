"""curves.png: the metrics of a run over its steps."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..inspection.pictures import plain_text

_CURVES = (
    ("reward", "reward", "mean reward of a step"),
    ("cepo/coefficient", "lambda", "redistributed share"),
    ("entropy", "entropy", "nats per token"),
    ("completions/mean_length", "length", "tokens per completion"),
)


@plain_text
def draw_curves(
    log_history: list[dict[str, Any]], path: Path, *, title: str, accuracy: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Draw the metrics in a `log_history`, and held-out accuracy (`step`, `accuracy`, `low`, `high`)."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(10, 5), layout="constrained", sharex=True)
    for axis, (key, name, unit) in zip(axes.flat, _CURVES, strict=True):
        points = [
            (entry["step"], entry[key]) for entry in log_history if "reward" in entry and entry.get(key) is not None
        ]
        axis.plot(*zip(*points, strict=True) if points else ([], []), color="#0b5394", label="sampled rollouts")
        axis.set(title=name, ylabel=unit)
        axis.spines[["top", "right"]].set_visible(False)
    if accuracy:
        steps, values, lows, highs = ([one[key] for one in accuracy] for key in ("step", "accuracy", "low", "high"))
        errors = [
            [v - low for v, low in zip(values, lows, strict=True)],
            [h - v for v, h in zip(values, highs, strict=True)],
        ]
        axes[0, 0].errorbar(steps, values, errors, fmt="o-", color="#38761d", capsize=4, label="held out, greedy")
        axes[0, 0].legend(frameon=False, fontsize=9)
    for axis in axes[1]:
        axis.set(xlabel="optimizer step")
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)

"""The picture that `cepo train` leaves."""

from pathlib import Path
from typing import Any

_CURVES = (
    ("reward", "reward", "mean reward of a step"),
    ("cepo/coefficient", "lambda", "share redistributed by evidence"),
    ("entropy", "entropy", "nats a token"),
    ("completions/mean_length", "length", "tokens a completion"),
)


def draw_curves(log_history: list[dict[str, Any]], path: Path, *, title: str, before: Any = None, after: Any = None):
    """Write the curves of a run, with its held-out accuracy before and after where it was measured."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    steps = [entry for entry in log_history if "reward" in entry]
    figure, axes = pyplot.subplots(1, len(_CURVES), figsize=(14, 3.2), layout="constrained")
    for axis, (key, name, unit) in zip(axes, _CURVES, strict=True):
        points = [(entry["step"], entry[key]) for entry in steps if entry.get(key) is not None]
        axis.plot([x for x, _ in points], [y for _, y in points], color="#0b5394", linewidth=1.5)
        axis.set(title=name, xlabel="optimiser step", ylabel=unit)
        axis.spines[["top", "right"]].set_visible(False)
    last = max((entry["step"] for entry in steps), default=1)
    marks = ((0, before, "before", "#b45f06"), (last, after, "after", "#38761d"))
    for step, accuracy, name, colour in marks:
        if accuracy is not None:
            low, high = accuracy.interval
            error = [[accuracy.value - low], [high - accuracy.value]]
            axes[0].errorbar(step, accuracy.value, error, fmt="o", color=colour, capsize=4, label=f"held-out, {name}")
    if before is not None or after is not None:
        axes[0].legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)

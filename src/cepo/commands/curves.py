"""The picture that `cepo train` leaves."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data.accuracy import Accuracy
from ..inspection.pictures import plain_text

_CURVES = (
    ("reward", "reward", "mean reward of a step"),
    ("cepo/coefficient", "lambda", "share redistributed by evidence"),
    ("entropy", "entropy", "nats a token"),
    ("completions/mean_length", "length", "tokens a completion"),
)


@plain_text
def draw_curves(
    log_history: list[dict[str, Any]], path: Path, *, title: str, greedy: Sequence[tuple[int, Accuracy]] = ()
):
    """Write the curves of a run, with the accuracy of greedy answers to held-out problems where it was measured."""
    from matplotlib import pyplot

    steps = [entry for entry in log_history if "reward" in entry]
    figure, axes = pyplot.subplots(1, len(_CURVES), figsize=(14, 3.2), layout="constrained")
    for axis, (key, name, unit) in zip(axes, _CURVES, strict=True):
        points = [(entry["step"], entry[key]) for entry in steps if entry.get(key) is not None]
        axis.plot(
            [x for x, _ in points], [y for _, y in points], color="#0b5394", linewidth=1.5, label="rollouts, sampled"
        )
        axis.set(title=name, xlabel="optimiser step", ylabel=unit)
        axis.spines[["top", "right"]].set_visible(False)
    if greedy:
        heights = [accuracy.value for _, accuracy in greedy]
        lows, highs = zip(*(accuracy.interval for _, accuracy in greedy), strict=True)
        below = [height - low for height, low in zip(heights, lows, strict=True)]
        above = [high - height for height, high in zip(heights, highs, strict=True)]
        at = [step for step, _ in greedy]
        axes[0].errorbar(at, heights, [below, above], fmt="o-", color="#38761d", capsize=4, label="held out, greedy")
        axes[0].legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)

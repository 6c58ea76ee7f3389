"""One self-contained HTML page of a few groups: which token got which credit, and why.

The page holds its data as JSON and builds everything else from it as text nodes, so that nothing a model or a dataset
wrote is ever read as markup. It loads nothing from anywhere.
"""

import base64
import io
import json
import re
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from PIL import Image
from torch import Tensor

from ..data.sampling import images_of_messages, text_of_messages
from ..methods.token_advantages import NEAR
from ..references.extraction import reference_answer
from ..references.groups import Attempt
from .inspect import Credit, Variant
from .view_model import Shown, explain_options, explain_references, explain_rule, explain_variant

_LARGEST_SIDE = 1024  # pixels; larger images are shown smaller


def credit_page(
    shown: Sequence[Shown],
    *,
    title: str,
    about: dict[str, str],
    variants: Sequence[Variant],
    selected: Variant,
) -> str:
    """The page as HTML.

    Args:
        shown: The groups.
        title: Its title.
        about: What was inspected and how, by name: model, dataset, hint, lambda and so on.
        variants: The methods and rules to choose from, each in every group's credit.
        selected: The one that is shown first.
    """
    data = {
        "title": title,
        "about": about,
        "variants": [
            {
                "name": variant.name,
                "method": variant.method.name,
                "text": explain_variant(variant),
                "rule": explain_rule(variant),
                "options": explain_options(variant),
            }
            for variant in variants
        ],
        "selected": variants.index(selected),
        "near": NEAR,
        "groups": [_group(one, variants) for one in shown],
    }
    template = (files(__package__) / "page.html").read_text(encoding="utf-8")
    return template.replace("{{data}}", _json(data))


def _json(data: Any) -> str:
    """JSON that no text in it can end: neither the script element nor a line."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    # Half of a surrogate pair cannot be written as UTF-8.
    return re.sub("[<>&\u2028\u2029\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text)


def _group(one: Shown, variants: Sequence[Variant]) -> dict[str, Any]:
    group = one.group
    return {
        "messages": [{"role": role, "text": text} for role, text in text_of_messages(group.messages)],
        "images": [_data_uri(image) for image in images_of_messages(group.messages)],
        "solution": group.solution,
        "positive": reference_answer(group.solution, variants[0].options.answer_extractor),
        "answers": [_attempt(attempt) for attempt in group.attempts],
        "first": group.first,
        "rollouts": [
            {
                "tokens": one.tokens[row],
                "filler": one.filler[row] if one.filler else None,
                "trained": rollout.trained,
                "advantage": _number(rollout.advantage),
                "student": _numbers(one.inspected[row].student),
                "credit": [_credit(one.inspected[row].credit[variant]) for variant in variants],
            }
            for row, rollout in enumerate(group.rollouts)
        ],
    }


def _attempt(attempt: Attempt) -> dict[str, Any]:
    return {"answer": attempt.answer, "reward": _number(attempt.reward), "correct": attempt.correct}


def _credit(credit: Credit) -> dict[str, Any]:
    negatives, fallback = explain_references(credit)
    return {
        "negatives": negatives,
        "fallback": fallback,
        "positive": None if credit.positive is None else _numbers(credit.positive),
        "negative": None if credit.negative is None else _numbers(credit.negative),
        "evidence": _numbers(credit.evidence),
        "advantages": _numbers(credit.advantages),
        "shift": _numbers(credit.shift),
        "scale": _number(credit.scale),
        "base": _number(credit.rollout_advantage),
    }


def _numbers(values: Tensor) -> list[float | None]:
    return [_number(value) for value in values.tolist()]


def _number(value: float) -> float | None:
    """Five digits are more than anybody reads; JSON has no NaN and no infinity."""
    return float(f"{value:.5g}") if abs(value) < float("inf") else None


def _data_uri(image: Image.Image) -> str:
    picture = image.convert("RGB")
    picture.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()

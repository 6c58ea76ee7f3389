"""One self-contained HTML page of a few groups: the credit of each token, and its evidence.

The page holds its data as JSON and builds the DOM from text nodes, so text of models and datasets is never parsed as
markup. It loads no resources.
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
from .view_model import (
    Credit,
    InspectedGroup,
    InspectedRollout,
    Variant,
    explain_options,
    explain_references,
    explain_rule,
    explain_variant,
)

_LARGEST_SIDE = 1024  # pixels; larger images are scaled down


def credit_page(
    groups: Sequence[InspectedGroup],
    *,
    title: str,
    about: dict[str, str],
    variants: Sequence[Variant],
    selected: Variant,
) -> str:
    """The page as HTML.

    Args:
        groups: The inspected groups.
        title: Title.
        about: Properties of the run to list: model, dataset, lambda and so on.
        variants: The methods and rules to choose from; every rollout has their credit.
        selected: The variant that is shown first.
    """
    data = {
        "title": title,
        "about": about,
        "variants": [
            {
                "name": variant.name,
                "text": explain_variant(variant),
                "rule": explain_rule(variant),
                "options": explain_options(variant),
            }
            for variant in variants
        ],
        "selected": variants.index(selected),
        "near": NEAR,
        "groups": [_group(one, variants) for one in groups],
    }
    template = (files(__package__) / "page.html").read_text(encoding="utf-8")
    return template.replace("{{data}}", _json(data))


def _json(data: Any) -> str:
    """JSON in which no text can end the script element or a line."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    # A lone surrogate cannot be encoded as UTF-8.
    return re.sub("[<>&\u2028\u2029\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text)


def _group(one: InspectedGroup, variants: Sequence[Variant]) -> dict[str, Any]:
    group = one.group
    return {
        "messages": [{"role": role, "text": text} for role, text in text_of_messages(group.messages)],
        "images": [_data_uri(image) for image in images_of_messages(group.messages)],
        "solution": group.solution,
        "positive": reference_answer(group.solution, variants[0].options.answer_extractor),
        "size": len(group.rollouts),
        "correct": sum(rollout.correct is True for rollout in group.rollouts),
        "rollouts": [_rollout(rollout, variants) for rollout in one.rollouts],
    }


def _rollout(one: InspectedRollout, variants: Sequence[Variant]) -> dict[str, Any]:
    rollout = one.rollout
    return {
        "number": one.number,
        "answer": rollout.answer,
        "reward": _number(rollout.reward),
        "correct": rollout.correct,
        "advantage": _number(rollout.advantage),
        "tokens": one.tokens,
        "filler": one.filler,
        "trained": rollout.trained,
        "student": _numbers(one.student),
        "credit": [_credit(one.credit[variant]) for variant in variants],
    }


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
    """A number with five digits; None for NaN and infinity, which JSON does not have."""
    return float(f"{value:.5g}") if abs(value) < float("inf") else None


def _data_uri(image: Image.Image) -> str:
    picture = image.convert("RGB")
    picture.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()

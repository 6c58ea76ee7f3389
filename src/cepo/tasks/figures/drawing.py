"""Draw a problem of the figures task. Angles are not drawn to scale."""

import random

from PIL import Image, ImageDraw, ImageFont

from .problem import LETTERS, Problem

WIDTH, HEIGHT = 112, 64  # pixels; multiples of 16, the side of one image token of the shipped policy
_TOP, _BOTTOM = 13, 50
_LEFT, _HALF_BASE = 4, 17
JITTER = 2.0  # pixels
_FONT_SIZE = 11


def draw(problem: Problem, *, blank: bool = False, scale: int = 1, jitter: float = JITTER) -> Image.Image:
    """The figure as an RGB image of 112 x 64 pixels, times `scale`.

    Args:
        problem: The problem.
        blank: Whether to leave out the printed numbers.
        scale: Enlargement for documentation; the model gets scale 1.
        jitter: Largest random offset of the printed numbers [pixels].
    """
    rng = random.Random(problem.drawing_seed)
    image = Image.new("RGB", (WIDTH * scale, HEIGHT * scale), "white")
    canvas = ImageDraw.Draw(image)
    number_font = ImageFont.load_default(_FONT_SIZE * scale)
    letter_font = ImageFont.load_default(9 * scale)

    def jittered(x: float, y: float) -> tuple[float, float]:
        return (x + rng.uniform(-jitter, jitter)) * scale, (y + rng.uniform(-jitter, jitter)) * scale

    # Vertex k is on the lower line for even k, on the upper for odd k; edge k joins vertices k and k + 1.
    count = len(problem.labels)
    xs = [_LEFT + _HALF_BASE * k + (rng.uniform(-jitter, jitter) / 2 if k else 0.0) for k in range(count + 2)]
    vertices = [(x * scale, (_TOP if k % 2 else _BOTTOM) * scale) for k, x in enumerate(xs)]
    for y in (_TOP, _BOTTOM):
        canvas.line([(1 * scale, y * scale), ((xs[-1] + 5) * scale, y * scale)], fill=(120, 120, 120), width=scale)
    canvas.line(vertices, fill=(150, 150, 150), width=scale)

    if not blank:
        # x_0 is printed at the top end of edge 0, left of the first triangle.
        numbers: list[tuple[int, float, float]] = [(problem.start, _LEFT + 5, _TOP + 9)]
        for k, label in enumerate(problem.labels, start=1):
            numbers.append((label, xs[k], 36 if k % 2 else 26))
        for number, *place in numbers:
            canvas.text(jittered(*place), str(number), fill="black", font=number_font, anchor="mm")
    # The letter of x_k is beyond the line at the end of edge k.
    for k in range(1, count + 1):
        y = _TOP - 7 if (k + 1) % 2 else _BOTTOM + 7
        canvas.text((xs[k + 1] * scale, y * scale), LETTERS[k - 1], fill=(0, 70, 200), font=letter_font, anchor="mm")
    return image

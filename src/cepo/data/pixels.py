"""The pixels that the model's processor gets: opaque, upright, 8 bits per channel."""

from typing import Any

import numpy as np
from PIL import ExifTags, ImageOps
from PIL import Image as Pictures

from .errors import DatasetError
from .images import check_nulls, unknown_scale


def opaque_image(image: Pictures.Image, place: str) -> Pictures.Image:
    """An image on a white background, upright and with 8 bits per channel, as image viewers show it.

    Processors only convert images to RGB: they drop the alpha channel (transparent pixels are mostly black), clip
    16-bit gray at 255, and ignore the EXIF orientation.

    Args:
        image: The image as decoded by Pillow.
        place: Name of the image in errors.

    Returns:
        The same object if the image is opaque and upright, with at most 8 bits; else an image in RGB or 8-bit gray.
    """
    if unscaled := unknown_scale(image):
        raise DatasetError(f"{place} {unscaled}")
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:  # `datasets` applies it to files that it decodes
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        values = np.asarray(image)
        # The high byte, as Pillow takes it of 16-bit colors.
        gray = np.where(values == image.info.get("transparency"), 255, values >> 8)
        return Pictures.fromarray(gray.astype(np.uint8))
    if not image.has_transparency_data:
        return image
    front = image.convert("RGBA")
    return Pictures.alpha_composite(Pictures.new("RGBA", front.size, "white"), front).convert("RGB")


def with_opaque_images(row: dict[str, Any]) -> dict[str, Any]:
    """Apply `opaque_image` to the images of a row: in `image`, `images` and the turns of `prompt`.

    Called where rows become conversations, which happens to rows of datasets, streams and data loader workers. A
    transform of the dataset would be lost by `map`, `cast_column` and `save_to_disk`.
    """
    prompt = row.get("prompt")
    place = f"of the row with the prompt {str(prompt)[:200]}"
    for column in ("image", "images"):
        check_nulls(row.get(column), f"'{column}' {place}")

    def opaque(value: Any) -> Any:
        if isinstance(value, Pictures.Image):
            return opaque_image(value, f"an image {place}")
        return [opaque(one) for one in value] if isinstance(value, list) else value

    changed: dict[str, Any] = {column: opaque(row[column]) for column in ("image", "images") if column in row}
    if isinstance(prompt, list):
        changed["prompt"] = [
            turn | {"content": [part | {"image": opaque(part["image"])} if "image" in part else part for part in parts]}
            if isinstance(parts := turn.get("content"), list)
            else turn
            for turn in prompt
        ]
    return row | changed

"""Image files of drawing programs, phones and scanners: the processor gets upright 8-bit pixels on white."""

import io
import json
import struct
import zlib

import numpy as np
import pytest
import torch
from datasets import Dataset, Image, IterableDataset, List
from PIL import ExifTags, ImageDraw, ImageFile
from PIL import Image as Pictures
from transformers import Qwen3VLProcessor

from cepo import policy_path
from cepo.data.checks import DatasetError, check_dataset
from cepo.data.evaluation import evaluate
from cepo.data.formats import DatasetOptions
from cepo.data.loading import load_split
from cepo.data.models import load_policy, load_processor
from cepo.data.pixels import opaque_image, with_opaque_images
from cepo.data.sampling import Sampling, conversation_of, sampled_groups
from cepo.scoring.prompts import PromptEncoder
from tests.support.training import make

PROMPT = [{"role": "user", "content": "How long is the side?"}]
SIZE = (96, 64)


def drawing():
    """A triangle, a circle and a label, 255 at black ink and 0 elsewhere."""
    ink = Pictures.new("L", SIZE)
    pen = ImageDraw.Draw(ink)
    pen.fontmode = "1"  # no gray edges, so that formats without gray hold the same picture
    pen.line([(8, 56), (88, 56), (30, 10), (8, 56)], fill=255, width=3)
    pen.ellipse([60, 6, 84, 30], outline=255, width=2)
    pen.text((34, 36), "12 cm", fill=255)
    return ink


INK = drawing()
MARKED = np.asarray(INK) > 0
PAGE = Pictures.fromarray(255 - np.asarray(INK)).convert("RGB")  # what a viewer shows: ink on white
# A scan: the same with shades, light and dark.
SHADES = np.where(MARKED, 30, np.linspace(90, 255, SIZE[0])[None, :]).astype(np.uint8)
SCAN = Pictures.fromarray(SHADES)
WIDE = SHADES.astype(np.uint16) * 257


def held(picture, kind, **options):
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def transparent(mode="RGBA"):
    picture = Pictures.new("RGBA", SIZE, (0, 0, 0, 0))
    picture.putalpha(INK)
    return picture.convert(mode)


def palette():
    """Black in entry 0, and black as the transparent color in entry 1."""
    picture = Pictures.fromarray((~MARKED).astype(np.uint8)).convert("P")
    picture.putpalette([0, 0, 0] * 2)
    return picture


def almost_black(mode):
    """Ink of value 1 on a background of value 0, the transparent color."""
    return Pictures.fromarray(MARKED.astype(np.uint8)).convert(mode)


def gray16_png(values, key):
    """A 16-bit gray PNG in which the value `key` is transparent; Pillow writes none."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = values.shape
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 0, 0, 0, 0))
    data = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    marked = chunk(b"tRNS", struct.pack(">H", key))
    return b"\x89PNG\r\n\x1a\n" + header + marked + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def turned(kind, orientation, **options):
    """A file with rotated pixels, and the EXIF orientation that makes them upright."""
    back = {3: Pictures.Transpose.ROTATE_180, 6: Pictures.Transpose.ROTATE_90, 8: Pictures.Transpose.ROTATE_270}
    exif = Pictures.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return held(SCAN.convert("RGB").transpose(back[orientation]), kind, exif=exif, **options)


LOSSY = 40
# By the file's name: its bytes, the same picture as a plain RGB page, and by how much its compression may change a
# pixel [of 255].
FILES = {
    "rgba.png": (held(transparent(), "PNG"), PAGE, 0),
    "la.png": (held(transparent("LA"), "PNG"), PAGE, 0),
    "palette.png": (held(palette(), "PNG", transparency=1), PAGE, 0),
    "palette-alpha.png": (held(palette(), "PNG", transparency=bytes([255, 0])), PAGE, 0),
    "palette.gif": (held(palette(), "GIF", transparency=1), PAGE, 0),
    "alpha.webp": (held(transparent(), "WEBP", lossless=True, exact=True), PAGE, 0),
    "lossy.webp": (held(transparent(), "WEBP", quality=95), PAGE, LOSSY),
    "rgba.tif": (held(transparent(), "TIFF"), PAGE, 0),
    "key-gray.png": (held(almost_black("L"), "PNG", transparency=0), PAGE, 1),
    "key-rgb.png": (held(almost_black("RGB"), "PNG", transparency=(0, 0, 0)), PAGE, 1),
    "key-gray16.png": (gray16_png(np.where(MARKED, 0, 5), key=5), PAGE, 0),
    "gray16.png": (held(Pictures.fromarray(WIDE), "PNG"), SCAN, 0),
    "gray16.tif": (held(Pictures.fromarray(WIDE), "TIFF"), SCAN, 0),
    "scan.tif": (held(Pictures.fromarray(WIDE), "TIFF", compression="tiff_lzw"), SCAN, 0),
    "gray16.jp2": (held(Pictures.fromarray(WIDE), "JPEG2000"), SCAN, 0),
    "gray16.pgm": (held(Pictures.fromarray(WIDE), "PPM"), SCAN, 0),
    "phone-6.jpg": (turned("JPEG", 6, quality=100, subsampling=0), SCAN, LOSSY),
    "phone-8.jpg": (turned("JPEG", 8, quality=100, subsampling=0), SCAN, LOSSY),
    "phone-3.png": (turned("PNG", 3), SCAN, 0),
    "phone-6.tif": (turned("TIFF", 6), SCAN, 0),
    "phone-6.webp": (turned("WEBP", 6, lossless=True), SCAN, 0),
    "print.jpg": (held(SCAN.convert("CMYK"), "JPEG", quality=100, subsampling=0), SCAN, LOSSY),
    "print.tif": (held(SCAN.convert("CMYK"), "TIFF"), SCAN, 0),
    "bilevel.png": (held(PAGE.convert("1", dither=Pictures.Dither.NONE), "PNG"), PAGE, 0),
    "fax.tif": (held(PAGE.convert("1", dither=Pictures.Dither.NONE), "TIFF", compression="group4"), PAGE, 0),
    "gray.png": (held(SCAN, "PNG"), SCAN, 0),
    "plain.png": (held(PAGE, "PNG"), PAGE, 0),
}
NAMES = list(FILES)


@pytest.fixture(scope="module")
def pixels():
    """The pixels of a row's images from the shipped policy's processor, from 0 to 255."""
    processor = load_processor(policy_path())
    encoder = PromptEncoder(processor)

    def of(row):
        return encoder.prompt(conversation_of(row, processor)).images["pixel_values"] * 127.5 + 127.5

    return of


@pytest.fixture(scope="module")
def assert_pages(pixels):
    """Assert that the processor gives each image the pixels of its page, a plain RGB PNG."""

    def page(picture):
        plain = Pictures.open(io.BytesIO(held(picture.convert("RGB"), "PNG")))
        return pixels({"prompt": PROMPT, "image": plain})

    pages = {name: page(picture) for name, (_, picture, _) in FILES.items()}

    def check(names, found):
        off = {}
        for name, seen in zip(names, found, strict=True):
            difference = (seen - pages[name]).abs()
            if difference.max() > FILES[name][2] + 1e-3 or difference.mean() > LOSSY / 10:
                off[name] = f"{difference.mean():.1f} on average, {difference.max():.1f} at most"
        assert off == {}

    return check


def from_jsonl(folder, column, streaming=False, **options):
    for name in NAMES:
        (folder / name).write_bytes(FILES[name][0])
    rows = [{"prompt": PROMPT, "solution": "1", column: [name] if column == "images" else name} for name in NAMES]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_split(str(folder / "rows.jsonl"), "train", streaming=streaming, options=DatasetOptions(**options))


def of_bytes(column, names=NAMES):
    """A dataset in memory."""
    values = [{"bytes": FILES[name][0], "path": None} for name in names]
    feature = List(Image()) if column == "images" else Image()
    rows = [{"prompt": PROMPT, "solution": "1", column: [one] if column == "images" else one} for one in values]
    return Dataset.from_list(rows).cast_column(column, feature)


def from_parquet(folder, column, streaming=False, **options):
    of_bytes(column).to_parquet(folder / "rows.parquet")
    return load_split(str(folder / "rows.parquet"), "train", streaming=streaming, options=DatasetOptions(**options))


COLUMNS = [("image", {}), ("images", {}), ("figure", {"dataset_columns": {"images": "figure"}})]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("source", [from_jsonl, from_parquet])
@pytest.mark.parametrize(("column", "options"), COLUMNS)
def test_processor_gets_the_page(tmp_path, pixels, assert_pages, source, column, options, streaming):
    data = source(tmp_path, column, streaming, **options)
    if not streaming:
        check_dataset(data, needs_solution=True)
    assert_pages(NAMES, [pixels(row) for row in data])


@pytest.mark.parametrize("change", [
    lambda data: data.map(lambda row: {"solution": row["solution"] + "2"}),
    lambda data: data.filter(lambda row: row["image"].size != (1, 1)).select(range(len(NAMES))),
    lambda data: Dataset.from_list(list(data)),
], ids=["map", "filter", "decoded"])  # fmt: skip
def test_processor_gets_the_page_after_map_and_filter(pixels, assert_pages, change):
    assert_pages(NAMES, [pixels(row) for row in change(of_bytes("image"))])


def opened(name):
    return Pictures.open(io.BytesIO(FILES[name][0]))


def test_images_opened_by_pillow(pixels, assert_pages):
    """As in rows of a generator: the EXIF orientation is not applied yet."""
    assert_pages(NAMES, [pixels({"prompt": PROMPT, "image": opened(name)}) for name in NAMES])


def test_images_within_a_prompt(pixels, assert_pages):
    def turn(name):
        return {"role": "user", "content": [{"type": "image", "image": opened(name)}, {"type": "text", "text": "?"}]}

    def row(name):
        return {"prompt": [{"role": "system", "content": [{"type": "text", "text": "Measure."}]}, turn(name)]}

    assert_pages(NAMES, [pixels(row(name)) for name in NAMES])


@pytest.fixture
def processed(monkeypatch):
    """Pixels that the processor returned, from 0 to 255: a list of images for each call."""
    calls = []
    call = Qwen3VLProcessor.__call__

    def spied(self, *args, **kwargs):
        output = call(self, *args, **kwargs)
        if "pixel_values" in output:
            counts = torch.as_tensor(output["image_grid_thw"]).prod(-1).tolist()
            calls.append([part * 127.5 + 127.5 for part in output["pixel_values"].split(counts)])
        return output

    monkeypatch.setattr(Qwen3VLProcessor, "__call__", spied)
    return calls


# One of each way through `opaque_image`, and one that it leaves alone.
TRAINED = [
    "rgba.png",
    "palette.gif",
    "gray16.tif",
    "phone-6.jpg",
    "gray16.pgm",
    "key-gray16.png",
    "plain.png",
    "la.png",
]


def opened_rows(column):
    for name in TRAINED:
        yield {"prompt": PROMPT, "solution": "1", column: [opened(name)] if column == "images" else opened(name)}


@pytest.mark.parametrize("column", ["image", "images"])
@pytest.mark.parametrize("source", ["object", "workers", "stream"])
def test_training_sees_the_page(tmp_path, processed, assert_pages, source, column):
    data = of_bytes(column, TRAINED)
    if source == "stream":
        data = IterableDataset.from_generator(opened_rows, gen_kwargs={"column": column})
    options = {"per_device_train_batch_size": 16, "num_generations": 2, "max_completion_length": 2, "max_steps": 1}
    workers = {"dataloader_num_workers": 1} if source == "workers" else {}
    trainer = make(tmp_path, data, method="grpo", shuffle_dataset=False, **options, **workers)
    trainer.train()
    assert processed
    for found in processed:
        assert_pages([name for name in TRAINED for _ in range(2)], found)


def no_reward(completions, **_):
    return [0.0] * len(completions)


def test_evaluation_and_sampling_see_the_page(processed, assert_pages):
    model, processor = load_policy(policy_path())
    data, sampling = of_bytes("image"), Sampling(2)
    evaluate(model, processor, data, sampling, reward_func=no_reward)
    assert_pages(NAMES * 2, [image for call in processed for image in call])  # sampled, and scored for the entropy
    processed.clear()
    sampled_groups(model, processor, list(data), 2, sampling, no_reward)
    assert_pages([name for name in NAMES for _ in range(2)], processed[0])


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK", "YCbCr"])
def test_opaque_images_are_returned_unchanged(mode):
    picture = PAGE.convert(mode)
    assert opaque_image(picture, "it") is picture
    row = {"prompt": PROMPT, "images": [picture], "image": picture, "solution": "1"}
    found = with_opaque_images(row)
    assert found["images"][0] is found["image"] is picture


def test_partly_transparent_pixels_are_blended():
    picture = Pictures.new("RGBA", (3, 1))
    for place, color in enumerate([(0, 0, 0, 128), (200, 0, 0, 255), (9, 9, 9, 0)]):
        picture.putpixel((place, 0), color)
    found = opaque_image(picture, "it")
    assert found.mode == "RGB"
    assert [found.getpixel((place, 0)) for place in range(3)] == [(127, 127, 127), (200, 0, 0), (255, 255, 255)]


REFUSED = {
    "float.tif": (held(Pictures.fromarray(SHADES.astype(np.float32) / 255), "TIFF"), "floating-point"),
    "float.pfm": (held(Pictures.fromarray(SHADES.astype(np.float32) / 255), "PPM"), "floating-point"),
    "gray32.tif": (held(Pictures.fromarray(SHADES.astype(np.int32) * 9000), "TIFF"), "signed or 32-bit"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_unknown_scales_are_refused(tmp_path, monkeypatch, name):
    (held_, message), good = REFUSED[name], held(PAGE, "PNG")
    (tmp_path / name).write_bytes(held_)
    (tmp_path / "good.png").write_bytes(good)
    rows = [{"prompt": PROMPT, "solution": "1", "image": file} for file in ("good.png", "good.png", name)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = f"'image' has {message} pixel values of unknown scale; save it with 8 bits per channel, or drop the row"
    with pytest.raises(DatasetError, match=f"an image of the row with the prompt .*{message}"):
        with_opaque_images({"prompt": PROMPT, "image": Pictures.open(io.BytesIO(held_))})
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)  # decoding fails
    data = load_split(str(tmp_path / "rows.jsonl"), "train")
    with pytest.raises(DatasetError, match=f"row 2 of the training set: {words}"):
        check_dataset(data, needs_solution=True)
    check_dataset(data.select([0, 1]), needs_solution=True)

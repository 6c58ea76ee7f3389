"""Checks of images: the folder of their files, their headers and sizes."""

import io
import json
import struct
import zlib

import pytest
from datasets import Dataset, Image, IterableDataset, List
from PIL import Image as Pictures
from PIL import ImageFile

from cepo import cli
from cepo.data import checks
from cepo.data.checks import DatasetError, check_dataset
from cepo.data.formats import DatasetOptions
from cepo.data.images import LARGEST_IMAGE, broken_images_named
from cepo.data.loading import load_split
from tests.support.training import make

PROMPT = [{"role": "user", "content": "How many?"}]


def picture(kind="PNG", size=(24, 16), **options):
    out = io.BytesIO()
    Pictures.new("RGB", size, "red").save(out, kind, **options)
    return out.getvalue()


def bomb(width, height):
    """A PNG of a few bytes, whose header claims this size."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 9)) + chunk(b"IEND", b"")
    )


@pytest.fixture
def places(tmp_path):
    """A folder with a dataset's file, images in and beside it, and links out of it."""
    folder = tmp_path / "data"
    (folder / "sub").mkdir(parents=True)
    for path in (folder / "in.png", folder / "sub" / "in.png", tmp_path / "out.png"):
        path.write_bytes(picture())
    (folder / "link.png").symlink_to(tmp_path / "out.png")
    (folder / "folder").symlink_to(tmp_path)
    return folder


def load(folder, *names, column="image", streaming=False, **options):
    rows = [{"prompt": PROMPT, "solution": "1", column: name} for name in names]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = DatasetOptions(**options)
    return load_split(str(folder / "rows.jsonl"), "train", streaming=streaming, options=made)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("column", ["image", "images"])
def test_files_in_the_folder(places, column, streaming):
    names = ["in.png", "sub/in.png", "sub/../in.png", str(places / "in.png")]
    data = load(places, *([name] if column == "images" else name for name in names), column=column, streaming=streaming)
    for row in data:
        (found,) = row["images"] if column == "images" else [row["image"]]
        assert found.size == (24, 16)


OUTSIDE = [
    *("../out.png", "sub/../../out.png", "link.png", "folder/out.png", "/etc/passwd", "http://example.org/a.png"),
    *("file:///etc/passwd", "hf://datasets/a/b/c.png", "zip://in.png::http://example.org/a.zip", "a\0.png"),
]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", OUTSIDE)
def test_files_outside_of_the_folder_are_refused(places, name, streaming):
    with pytest.raises(DatasetError, match=r"row 1 of .*: 'image' is (outside|an address|not a file name)") as error:
        list(load(places, "in.png", name, streaming=streaming))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", OUTSIDE[:5])
def test_files_in_lists_and_mapped_columns(places, name):
    with pytest.raises(DatasetError, match=r"row 0 of .*: 'images' is outside"):
        load(places, ["in.png", name], column="images")
    with pytest.raises(DatasetError, match=r"row 1 of .*: 'figure' is outside"):
        load(places, "in.png", name, column="figure", dataset_columns={"images": "figure"})


def test_image_folder(places, tmp_path):
    rows = load(places, "out.png", str(tmp_path / "out.png"), "data/in.png", image_folder=str(tmp_path))
    assert [row["image"].size for row in rows] == [(24, 16)] * 3
    with pytest.raises(DatasetError, match=r"row 0 .* is outside of .*: '/etc/passwd'"):
        load(places, "/etc/passwd", image_folder=str(tmp_path))
    with pytest.raises(DatasetError, match="image_folder: there is no such folder"):
        load(places, "in.png", image_folder=str(tmp_path / "nosuch"))


@pytest.mark.parametrize("several", [False, True])
def test_files_of_a_saved_data_set(places, tmp_path, several):
    """A dataset may be saved with file names instead of bytes."""
    values = [{"bytes": picture(), "path": "/nowhere.png"}, {"bytes": None, "path": str(tmp_path / "out.png")}]
    feature = Image(decode=False)
    data = Dataset.from_dict({"prompt": [PROMPT] * 2, "solution": ["1"] * 2})
    column, values = ("images", [[value] for value in values]) if several else ("image", values)
    data = data.add_column(column, values, feature=List(feature) if several else feature)
    data.to_parquet(places / "rows.parquet")
    with pytest.raises(DatasetError, match=f"row 1 of .*: '{column}' is outside"):
        load_split(str(places / "rows.parquet"), "train")
    found = load_split(str(places / "rows.parquet"), "train", options=DatasetOptions(image_folder=str(tmp_path)))
    assert len(list(found)) == 2


HEADERS = [
    (bomb(100_000, 100_000), f"more than {LARGEST_IMAGE:,} pixels"),
    (bomb(8001, 8000), f"8001 x 8000 pixels, more than {LARGEST_IMAGE:,}"),
    (b"\x89PNG\r\n\x1a\n", "not an image of a supported format"),
    (b"GIF89a", "not an image of a supported format"),
    (b"not an image", "not an image of a supported format"),
    (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "not an image of a supported format"),
    (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image of a supported format"),
]


@pytest.mark.parametrize(("held", "message"), HEADERS, ids=range(len(HEADERS)))
@pytest.mark.parametrize("several", [False, True])
def test_headers_are_checked_before_images_are_decoded(monkeypatch, held, message, several):
    values = [picture(), held]
    column, feature = ("images", List(Image())) if several else ("image", Image())
    data = Dataset.from_dict({"prompt": [PROMPT] * 2, "solution": ["1"] * 2})
    data = data.add_column(column, [[{"bytes": v}] if several else {"bytes": v} for v in values]).cast_column(
        column, feature
    )
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)  # decoding fails
    with pytest.raises(DatasetError, match=f"row 1 of the training set: '{column}' .*{message}") as error:
        check_dataset(data, needs_solution=True)
    assert "\n" not in str(error.value)
    check_dataset(data.select([0]), needs_solution=True)


@pytest.mark.parametrize(("held", "message"), HEADERS[:3], ids=range(3))
def test_headers_are_checked_in_streams(places, held, message):
    (places / "bad.png").write_bytes(held)
    rows = iter(load(places, *["in.png"] * 12, "bad.png", streaming=True))
    for _ in range(12):
        next(rows)
    with pytest.raises(DatasetError, match=f"row 12 of .*{message}"):
        next(rows)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000"])
def test_supported_formats(kind):
    data = Dataset.from_dict({"prompt": [PROMPT], "solution": ["1"], "image": [{"bytes": picture(kind)}]})
    check_dataset(data.cast_column("image", Image()), needs_solution=True)


def cut_off(figures, row):
    """Figures, one of which is truncated after its header."""

    def held(number):
        out = io.BytesIO()
        figures[number]["image"].save(out, "PNG")
        return {"bytes": out.getvalue()[: 60 if number == row else None], "path": None}

    images = [held(number) for number in range(len(figures))]
    return figures.remove_columns("image").add_column("image", images).cast_column("image", Image())


def test_training_names_the_row_of_a_broken_image(tmp_path, figures):
    trainer = make(tmp_path, cut_off(figures.select([0, 1]), 1), method="grpo", max_steps=1, max_completion_length=4)
    with pytest.raises(DatasetError, match="row 1 of the training set: an image cannot be decoded: "):
        trainer.train()


def test_commands_name_the_row_of_a_broken_image(tmp_path, figures, capsys):
    cut_off(figures, 3).save_to_disk(tmp_path / "data")
    flags = ["--dataset_name", str(tmp_path / "data"), "--max_completion_length", "4"]
    code = cli.main(["evaluate", *flags, "--temperatures", "0", "--output_dir", str(tmp_path)])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert code == 2, error
    assert error.startswith("cepo: error: row 3 of the problems: an image cannot be decoded")
    assert cli.main(["explain", *flags, "--dataset_split", "train", "--index", "3"]) == 2
    error = capsys.readouterr().err.strip()
    assert "row 3 of the split 'train': an image cannot be decoded" in error


def test_broken_images_named_passes_other_errors():
    with pytest.raises(OSError, match="a full disk"), broken_images_named(None, "the set"):
        raise OSError("a full disk")
    stream = IterableDataset.from_generator(lambda: iter(()))
    with (
        pytest.raises(DatasetError, match="an image of the set cannot be decoded"),
        broken_images_named(stream, "the set"),
    ):
        Pictures.open(io.BytesIO(b"nothing"))


@pytest.mark.parametrize("key", ["image", "url", "path", "base64"])
@pytest.mark.parametrize("streaming", [False, True])
def test_files_within_prompts_are_refused(tmp_path, key, streaming):
    """A chat template would open any file, and download from any address."""
    named = [{"role": "user", "content": [{"type": "image", key: "/etc/passwd"}, {"type": "text", "text": "?"}]}]
    rows = [{"prompt": [{"role": "user", "content": [{"type": "text", "text": "?"}]}], "solution": "1"}] * 10
    rows.append({"prompt": named, "solution": "1"})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = load_split(str(tmp_path / "rows.jsonl"), "train", streaming=streaming)
    with pytest.raises(DatasetError, match=f"row 10 of .*has the {key} '/etc/passwd' within a turn"):
        list(data) if streaming else check_dataset(data, needs_solution=False)


# Lists that hold null, and sides that a processor refuses -------------------------------------------------------------


@pytest.mark.parametrize("streaming", [False, True])
def test_null_among_images_is_refused_by_row(places, streaming):
    names = [["in.png", "sub/in.png"]] * 3 + [["in.png", None]]
    data = load(places, *names, column="images", streaming=streaming)
    with pytest.raises(DatasetError, match=r"row 3 of .*: 'images' has null at position 1 of its list"):
        list(data) if streaming else check_dataset(data, needs_solution=True)


@pytest.mark.parametrize("null", [None, {"bytes": None, "path": None}])
def test_null_among_images_in_memory_is_refused(tmp_path, null):
    rows = [{"prompt": PROMPT, "solution": "1", "images": [{"bytes": picture(), "path": None}] * 2} for _ in range(3)]
    rows[1]["images"] = [null, {"bytes": picture(), "path": None}]
    data = Dataset.from_list(rows).cast_column("images", List(Image()))
    with pytest.raises(DatasetError, match="row 1 of the training set: 'images' has null at position 0"):
        make(tmp_path, data, method="grpo")
    stream = IterableDataset.from_generator(
        lambda: ({**row, "images": [Pictures.new("RGB", (9, 9)), None]} for row in rows)
    )
    trainer = make(tmp_path, stream, method="grpo", max_steps=1, max_completion_length=4)
    with pytest.raises(DatasetError, match=r"'images' of the row with the prompt .*How many.* has null at position 1"):
        trainer.train()


def banners(*sizes, column="image"):
    values = [{"bytes": picture(size=size), "path": None} for size in sizes]
    rows = [{"prompt": PROMPT, "solution": "1", column: [value] if column == "images" else value} for value in values]
    return Dataset.from_list(rows).cast_column(column, List(Image()) if column == "images" else Image())


@pytest.mark.parametrize("column", ["image", "images"])
def test_sizes_that_the_processor_refuses_are_named(tmp_path, monkeypatch, column):
    data = banners((24, 16), (30, 40), (900, 3), (16, 24), (3, 900), column=column)
    refused = (
        f"row 2 of the training set: '{column}' has an image of 900 x 3 pixels, which Qwen2VLImageProcessor refuses: "
        r"absolute aspect ratio must be smaller than 200, got 300.0. Pad or crop it, or drop the row"
    )
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)  # decoding fails
    with pytest.raises(DatasetError, match=refused):
        make(tmp_path, data, method="grpo")
    make(tmp_path, data.select([0, 1, 3]), method="grpo")


def test_headers_are_read_once(tmp_path, monkeypatch):
    data, read = banners((24, 16), (30, 40), (24, 16)), []
    header = checks.check_header
    monkeypatch.setattr(checks, "check_header", lambda image, place: read.append(place) or header(image, place))
    make(tmp_path, data, method="grpo")
    assert len(read) == 3


BAD_ROWS = [((900, 3), ["bad.png"], "an image of 900 x 3 pixels"), ((24, 16), ["bad.png", None], "null at position 1")]


@pytest.mark.parametrize("more", [[], ["--max_prompt_length", "64"], ["--dry_run"]], ids=str)
@pytest.mark.parametrize(("size", "names", "words"), BAD_ROWS)
def test_train_names_the_row(tmp_path, capsys, size, names, words, more):
    (tmp_path / "good.png").write_bytes(picture())
    (tmp_path / "bad.png").write_bytes(picture(size=size))
    rows = [{"prompt": PROMPT, "solution": "1", "images": images} for images in (*[["good.png"]] * 4, names)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--model_name_or_path", "figures", "--dataset_name", str(tmp_path / "rows.jsonl"), "--max_steps", "1"]
    flags += ["--per_device_train_batch_size", "4", "--num_generations", "4", "--output_dir", str(tmp_path / "out")]
    assert cli.main(["train", *flags, *more]) == 2
    printed = capsys.readouterr()
    if more == ["--dry_run"]:
        problems = [line for line in printed.out.splitlines() if line.startswith("problem: ")]
        assert len(problems) == 1, problems
        (error,) = problems
    else:
        error = printed.err.strip().splitlines()[-1]
    assert "row 4 of the training set: 'images' " in error
    assert words in error

"""Photos in every accepted form."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from app.images.photo import decode_photo
from exemplar_client import photos
from exemplar_client.errors import Invalid
from exemplar_client.photos import open_photo
from tests.images.cases import heic_of

from .conftest import HW, noise


def stored(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        return np.array(image)


def as_the_service_reads(content: bytes) -> np.ndarray:
    return decode_photo(content, max_pixels=10_000_000).rgb


def file_of(image: Image.Image, file_format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def test_files_are_sent_as_they_are(photo: Path) -> None:
    content = photo.read_bytes()
    with photo.open("rb") as opened:
        forms = [photo, str(photo), photo.as_uri(), content, bytearray(content), memoryview(content), opened]
        photos = [open_photo(form) for form in forms]
    assert [each.content() for each in photos] == [content] * len(forms)
    assert {each.size_hw for each in photos} == {HW}
    assert [each.name for each in photos] == ["photo.png"] * 3 + ["image"] * 3 + ["photo.png"]


def test_pixels_are_sent_without_loss() -> None:
    pixels = noise()
    grey = pixels[:, :, 0]
    alpha = np.dstack([pixels, np.full(HW, 200, np.uint8)])
    for given, sent in [(pixels, pixels), (grey, grey), (grey[:, :, None], grey), (alpha, alpha)]:
        assert (stored(open_photo(given).content()) == sent).all()
    assert (stored(open_photo(Image.fromarray(pixels)).content()) == pixels).all()


def numeric_files() -> dict[str, bytes]:
    """Grey photos of 16 and 32 bits and of floating point, as microscopes, scanners and depth cameras write them."""
    levels = noise()[:, :, 0].astype(np.int64)
    unknown = (levels / 255).astype(np.float32)
    unknown[:3] = np.nan
    whites = {
        "PNG of 16 bits": (levels * 80).astype(np.uint16),
        "dark PNG of 16 bits": (levels // 2).astype(np.uint16),
        "TIFF of 16 bits": (levels * 257).astype(np.uint16),
        "TIFF of 32 bits": (levels * 80).astype(np.int32),
        "float TIFF, 0 to 1": (levels / 255).astype(np.float32),
        "float TIFF, 0 to 255": levels.astype(np.float32),
        "float TIFF, negative": (levels - 100).astype(np.float32),
        "float TIFF with NaN": unknown,
        "black float TIFF": np.zeros(HW, np.float32),
    }
    return {name: file_of(Image.fromarray(of), "PNG" if "PNG" in name else "TIFF") for name, of in whites.items()}


@pytest.mark.parametrize("name", numeric_files())
def test_numbers_are_shown_as_the_service_sees_them(name: str) -> None:
    content = numeric_files()[name]
    expected = as_the_service_reads(content)
    assert expected.max() > 0 or "dark" in name or "black" in name
    assert (np.asarray(open_photo(content).rgb()) == expected).all()


def test_many_pixels_are_sent_as_jpeg() -> None:
    assert open_photo(np.full((2003, 1999, 3), 128, np.uint8)).name == "image.jpg"


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "I;16"])
def test_many_pixels_of_any_mode_look_as_few(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    levels = np.repeat(np.repeat(noise(5, 7), 16, axis=0), 16, axis=1)  # JPEG keeps even blocks
    rgba = Image.fromarray(np.dstack([levels, levels[:, :, 0]]))
    image = Image.fromarray(levels[:, :, 0].astype(np.uint16) * 257) if mode == "I;16" else rgba.convert(mode)
    as_png = as_the_service_reads(open_photo(image).content())
    monkeypatch.setattr(photos, "_MAX_PNG_PIXELS", 0)
    sent = open_photo(image)
    assert sent.name == "image.jpg"
    assert np.abs(as_the_service_reads(sent.content()).astype(int) - as_png).mean() < 3


def test_other_modes_are_converted(photo: Path) -> None:
    with Image.open(photo) as image:
        sent = open_photo(image.convert("CMYK"))
    assert stored(sent.content()).shape == (*HW, 3)


def test_exif_turns_a_photo(tmp_path: Path) -> None:
    pixels = noise()
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.png"
    Image.fromarray(pixels).save(path, exif=exif)
    upright = np.rot90(pixels, -1)
    assert open_photo(path).size_hw == (HW[1], HW[0])
    assert (np.asarray(open_photo(path).rgb()) == upright).all()
    with Image.open(path) as image:
        assert (stored(open_photo(image).content()) == upright).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_turned_photo_is_that_of_the_service(file_format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    content = file_of(Image.fromarray(noise()), file_format, exif=exif)
    expected = as_the_service_reads(content)
    photo = open_photo(content)
    assert photo.size_hw == expected.shape[:2]
    assert (np.asarray(photo.rgb()) == expected).all()
    with Image.open(io.BytesIO(content)) as image:
        pixels = open_photo(image)
    assert pixels.size_hw == expected.shape[:2]
    assert (np.asarray(pixels.rgb()) == expected).all()


@pytest.mark.parametrize("file_format", ["JPEG", "TIFF"])
def test_xmp_turns_a_photo(file_format: str) -> None:
    """Some editors write the rotation there alone; Pillow takes it for EXIF's."""
    xmp = b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'
    options: dict[str, Any] = {"tiffinfo": {700: xmp}} if file_format == "TIFF" else {"xmp": xmp}
    content = file_of(Image.fromarray(noise()), file_format, **options)
    expected = as_the_service_reads(content)
    assert open_photo(content).size_hw == expected.shape[:2] == (HW[1], HW[0])
    assert (np.asarray(open_photo(content).rgb()) == expected).all()


@pytest.mark.parametrize("exif", [b"no EXIF", b"Exif\0\0MM\0*\0\0"])
def test_exif_that_can_not_be_read_turns_nothing(exif: bytes) -> None:
    content = file_of(Image.fromarray(noise()), "PNG", exif=exif)
    photo = open_photo(content)
    assert photo.size_hw == HW
    assert (np.asarray(photo.rgb()) == as_the_service_reads(content)).all()
    with Image.open(io.BytesIO(content)) as image:
        assert (stored(open_photo(image).content()) == noise()).all()


def test_transparent_parts_are_shown_over_white() -> None:
    pixels = np.dstack([noise(), np.zeros(HW, np.uint8)])
    assert (np.asarray(open_photo(pixels).rgb()) == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_heic_is_read_if_pillow_heif_is_installed(orientation: int) -> None:
    content = heic_of(noise(), orientation)
    expected = as_the_service_reads(content)
    photo = open_photo(content)
    assert photo.size_hw == expected.shape[:2]
    assert (np.asarray(photo.rgb()) == expected).all()


def test_a_reader_that_knows_the_size_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """pillow-heif has no decoder of AVIF, but reads the header."""
    Image.init()
    monkeypatch.setattr(Image, "ID", [name for name in Image.ID if name != "AVIF"])
    photo = open_photo(file_of(Image.fromarray(noise()), "AVIF"))
    assert photo.size_hw == HW
    with pytest.raises(Invalid, match="newer Pillow"):
        photo.rgb()


@pytest.mark.parametrize("file_format", ["HEIC", "AVIF"])
def test_what_only_the_service_can_read_is_sent(
    file_format: str, only_the_service_reads_heif: None, tmp_path: Path
) -> None:
    path = tmp_path / f"photo.{file_format.lower()}"
    path.write_bytes(heic_of(noise()) if file_format == "HEIC" else file_of(Image.fromarray(noise()), "AVIF"))
    photo = open_photo(path)
    assert photo.size_hw is None
    assert photo.content() == path.read_bytes()
    with pytest.raises(Invalid, match=rf"{path.name} .*pip install pillow-heif.*pip install -U pillow"):
        photo.rgb()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (np.zeros(HW), "uint8"),
        (np.zeros((2, 3, 5), np.uint8), "shape"),
        (np.zeros((0, 3), np.uint8), "shape"),
        (np.zeros(7, np.uint8), "shape"),
        (b"no image", "not an image"),
        (b"", "not an image"),
        ("https://example.org/photo.jpg", "download it"),
        ("file://elsewhere/photo.jpg", "download it"),
        (io.StringIO("text"), "mode 'rb'"),
        (42, "type int"),
        (None, "type NoneType"),
        (Image.new("F", (3, 5)), "mode F"),
    ],
)
def test_what_is_no_photo_is_refused(given: object, told: str) -> None:
    with pytest.raises(Invalid, match=told):
        open_photo(given)  # type: ignore[arg-type]


def test_a_missing_file_is_pythons_own_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        open_photo(tmp_path / "nowhere.jpg")


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.jpg"
    path.write_bytes(b"\xff\xd8\xff")
    with pytest.raises(Invalid, match=r"broken\.jpg is not an image"):
        open_photo(path)

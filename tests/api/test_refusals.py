"""Invalid requests are refused: 4xx, problem+json with the field's name, nothing stored, the service stays ready."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Iterator
from urllib.parse import quote

import numpy as np
import pytest
from PIL import ExifTags, Image

from app.errors import AppError
from app.storage import keys

HW = (31, 47)
MARKED = np.zeros(HW, dtype=np.uint8)
MARKED[5:20, 10:30] = 255
PHOTO = np.random.default_rng(3).integers(0, 256, (*HW, 3), dtype=np.uint8)


def file_of(pixels: np.ndarray | Image.Image, file_format: str = "PNG", **options) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def png_promising(width: int, height: int) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


@pytest.fixture(scope="module")
def photo() -> bytes:
    return file_of(PHOTO)


@pytest.fixture(scope="module")
def mask() -> bytes:
    return file_of(MARKED)


@pytest.fixture(scope="module")
def shared(new_database, start_on) -> Iterator:
    """The application with one category."""
    with new_database() as database, start_on(database, worker=False, max_upload_bytes=20_000) as api:
        api.teach("known")
        yield api


@pytest.fixture
def untouched(shared) -> Iterator:
    """The same; after each test all that is stored must be as before."""
    with shared.unchanged():
        yield shared
    assert shared.http.get("/readyz").status_code == 200


def check(answer, status: int, field: str | None = None) -> dict:
    """Check that a response is a problem as in RFC 9457 and docs/api.md, and return it."""
    problem = answer.json()
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert problem.keys() == {"type", "title", "status", "detail", "errors"}
    assert problem["status"] == status
    assert problem["type"].startswith("urn:exemplar:problem:")
    assert problem["title"]
    assert problem["detail"]
    if field is not None:
        assert field in [error["field"] for error in problem["errors"]], problem
        assert all(error["detail"] for error in problem["errors"])
    return problem


class TestMasks:
    @pytest.mark.parametrize(
        ("files", "data", "field"),
        [
            ({}, {}, "mask"),
            ({"mask": file_of(MARKED)}, {"box": "[1, 2, 3, 4]"}, "box"),
            ({"mask": file_of(MARKED)}, {"segmentation": "[[1, 2, 3, 4, 5, 9]]"}, "segmentation"),
            ({}, {"box": "[1, 2, 3, 4]", "segmentation": "[[1, 2, 3, 4, 5, 9]]"}, "box"),
            ({"mask": file_of(MARKED.T)}, {}, "mask"),
            ({"mask": file_of(MARKED[1:])}, {}, "mask"),
            ({"mask": file_of(MARKED * 0)}, {}, "mask"),
            ({"mask": file_of(MARKED * 0 + 1)}, {}, "mask"),
            ({"mask": file_of(MARKED)[:60]}, {}, "mask"),
            ({"mask": b"no image"}, {}, "mask"),
            ({"mask": png_promising(30_000, 30_000)}, {}, "mask"),
            ({}, {"segmentation": "{"}, "segmentation"),
            ({}, {"segmentation": "null"}, "segmentation"),
            ({}, {"segmentation": "[]"}, "segmentation"),
            ({}, {"segmentation": "[[1, 2]]"}, "segmentation"),
            ({}, {"segmentation": "[[1, 2, 3, 4, 5, null]]"}, "segmentation"),
            ({}, {"segmentation": "[[1, 2, 3, 4, NaN, 5]]"}, "segmentation"),
            ({}, {"segmentation": "[[100, 100, 110, 100, 110, 110]]"}, "segmentation"),
            ({}, {"segmentation": json.dumps({"size": [47, 31], "counts": "abc"})}, "segmentation"),
            ({}, {"segmentation": json.dumps({"size": HW, "counts": "\x00"})}, "segmentation"),
            ({}, {"segmentation": json.dumps({"size": HW, "counts": [5, 5]})}, "segmentation"),
            ({}, {"segmentation": json.dumps({"size": HW, "counts": [-1, 1458]})}, "segmentation"),
            ({}, {"segmentation": json.dumps({"size": [10**9, 10**9], "counts": [10**18]})}, "segmentation"),
            ({}, {"segmentation": json.dumps({"size": HW})}, "segmentation"),
            ({}, {"segmentation": "[" * 15_000}, "segmentation"),
            ({}, {"box": "[1, 2, 3]"}, "box"),
            ({}, {"box": "[1, 2, 0, 4]"}, "box"),
            ({}, {"box": "[40, 2, 20, 4]"}, "box"),
            ({}, {"box": "[-10, 2, 20, 4]"}, "box"),
            ({}, {"box": "[0, 0, 47, 31]"}, "box"),
            ({}, {"box": '"all of it"'}, "box"),
            ({}, {"box": "1 2 3 4"}, "box"),
        ],
    )  # fmt: skip
    def test_a_mask_that_cannot_be_used(self, untouched, photo, files, data, field) -> None:
        answer = untouched.http.post("/categories/cat/example", files={"image": photo, **files}, data=data)
        check(answer, 413 if "mask" in files and len(files["mask"]) == len(png_promising(1, 1)) else 422, field)

    def test_the_refusal_of_an_unrotated_mask_says_so(self, untouched, mask) -> None:
        photo = file_of(Image.fromarray(PHOTO), exif=turned(6))
        answer = untouched.http.post("/categories/cat/example", files={"image": photo, "mask": mask})
        assert "before its EXIF rotation" in check(answer, 422, "mask")["detail"]

    @pytest.mark.parametrize("kind", ["1 bit", "16 bit", "palette", "alpha", "rgb", "tiff", "rotated", "both rotated"])
    def test_masks_of_every_kind_are_taken(self, start, kind) -> None:
        image = Image.fromarray(MARKED)
        photo, options = PHOTO, {}
        if kind == "1 bit":
            image = image.convert("1")
        elif kind == "16 bit":
            image = Image.fromarray((MARKED // 255).astype(np.uint16))
        elif kind == "palette":
            image = Image.fromarray(MARKED // 255, mode=None).convert("P")
        elif kind == "alpha":
            image = Image.fromarray(np.dstack([np.zeros((*HW, 3), np.uint8), MARKED]))
        elif kind == "rgb":
            image = image.convert("RGB")
        elif kind == "rotated":
            image, options = Image.fromarray(np.rot90(MARKED).copy()), {"exif": turned(6)}
        elif kind == "both rotated":
            photo, options = Image.fromarray(PHOTO), {"exif": turned(6)}
        with start(worker=False) as api:
            answer = api.http.post(
                "/categories/cat/example",
                files={
                    "image": file_of(photo, **(options if kind == "both rotated" else {})),
                    "mask": file_of(image, "TIFF" if kind == "tiff" else "PNG", **options),
                },
            )
            assert answer.status_code == 202, answer.text
            (example,) = api.http.get("/categories/cat/examples").json()
            assert example["area"] == 300
            assert (example["height"], example["width"]) == (HW[::-1] if kind == "both rotated" else HW)


class TestPhotos:
    @pytest.mark.parametrize(
        ("raw", "status"),
        [
            (b"", 422),
            (b"no photo", 422),
            (file_of(PHOTO)[:100], 422),
            (file_of(PHOTO)[:-200], 422),
            (b"\xff\xd8\xff" + bytes(100), 422),
            (png_promising(30_000, 30_000), 413),
            (png_promising(0, 5), 422),
            (b"GIF89a" + bytes(50), 415),
            (b"%PDF-1.7" + bytes(50), 415),
            (b"<svg></svg>", 415),
        ],
    )
    def test_a_photo_that_cannot_be_used(self, untouched, mask, raw, status) -> None:
        check(untouched.http.post("/categories/cat/example", files={"image": raw, "mask": mask}), status, "image")
        check(untouched.http.post("/segment", files={"image": raw}), status, "image")
        check(untouched.http.post("/layers/rank", files={"images": raw}), status, "images")

    def test_a_missing_photo(self, untouched, mask) -> None:
        check(untouched.http.post("/categories/cat/example", files={"mask": mask}), 422, "image")
        check(untouched.http.post("/segment", data={"categories": "cat"}), 422, "image")
        check(untouched.http.post("/layers/rank"), 422, "images")

    def test_a_photo_that_is_text(self, untouched) -> None:
        check(untouched.http.post("/segment", data={"image": "text"}), 422, "image")

    def test_a_rotated_photo_is_stored_as_sent_and_an_animation_is_noted(self, start, mask) -> None:
        with start(worker=False) as api:
            frames = [Image.fromarray(PHOTO), Image.fromarray(PHOTO[::-1].copy())]
            raw = file_of(frames[0], save_all=True, append_images=frames[1:])
            answer = api.http.post("/categories/cat/example", files={"image": raw, "mask": mask})
            assert answer.status_code == 202
            assert "first frame" in answer.json()["note"]
            (example,) = api.http.get("/categories/cat/examples").json()
            assert api.http.get(f"/categories/cat/examples/{example['id']}/image").content == raw


class TestNames:
    @pytest.mark.parametrize(
        "name",
        [
            " ",
            "\t",
            "a\nb",
            "\x00",
            "a\x7fb",
            "a\x85b",
            "x" * 65,
            "x" * 300,
            "a/b",
            "/",
            "%2F",
            "a%2Fexample",
            "\ud800",
        ],
        ids=ascii,
    )
    def test_a_name_that_is_none(self, untouched, photo, mask, name) -> None:
        quoted = quote(name, safe="", errors="surrogatepass") if not name.startswith(("%", "a%")) else name
        files = {"image": photo, "mask": mask}
        check(untouched.http.post(f"/categories/{quoted}/example", files=files), 422, "name")
        check(untouched.http.get(f"/categories/{quoted}"), 422, "name")
        check(untouched.http.delete(f"/categories/{quoted}"), 422, "name")
        if name != "\ud800" and "%" not in name:
            check(untouched.http.post("/segment", files={"image": photo}, data={"categories": name}), 422, "categories")
            check(untouched.http.post("/segment", files={"image": photo}, data={"background": name}), 422, "background")
            data = {"prompts": ["fine", name]}
            check(untouched.http.post("/categories/cat/example", files=files, data=data), 422, "prompts")
            check(
                untouched.http.post("/layers/rank", files={"images": photo}, data={"categories": name}),
                422,
                "categories",
            )

    @pytest.mark.parametrize("name", ["\N{ZERO WIDTH SPACE}", "\N{RIGHT-TO-LEFT OVERRIDE}tac"], ids=ascii)
    def test_a_name_that_nobody_sees_is_not_given_any_more(self, start, photo, mask, name) -> None:
        quoted = quote(name, safe="")
        with start(worker=False) as api:
            api.teach("cat")
            # As an earlier release stored it.
            record = api.redis.hgetall(keys.category("cat")) | {b"name": name}
            api.redis.hset(keys.category(keys.category_id(name)), mapping=record)
            api.redis.zadd(keys.CATEGORIES, {keys.category_id(name): 1.0})
            for answer in (
                api.http.post(f"/categories/{quoted}/example", files={"image": photo, "mask": mask}),
                api.http.put(f"/categories/{quoted}/adapter", content=b"any"),
            ):
                check(answer, 422, "name")
            assert api.category(quoted)["name"] == name
            assert api.http.delete(f"/categories/{quoted}").status_code == 204

    def test_an_empty_name(self, untouched, photo, mask) -> None:
        check(untouched.http.post("/categories//example", files={"image": photo, "mask": mask}), 404)
        for names in (",", ["", ""], ["known", ""], '[""]'):
            answer = untouched.http.post("/segment", files={"image": photo}, data={"categories": names})
            check(answer, 422, "categories")

    def test_an_encoded_slash_does_not_reach_another_route(self, untouched) -> None:
        (example,) = untouched.http.get("/categories/known/examples").json()
        check(untouched.http.delete(f"/categories/known%2Fexamples%2f{example['id']}"), 422, "name")


class TestFields:
    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("threshold", "1.01"),
            ("threshold", "-0.1"),
            ("threshold", "nan"),
            ("threshold", "inf"),
            ("threshold", "abc"),
            ("output", "gif"),
            ("refine", "maybe"),
            ("heatmaps", "perhaps"),
            ("adapters", "all"),
            ("backbone", "resnet"),
            ("categories", [f"c{n}" for n in range(5000)]),
            ("background", [f"c{n}" for n in range(5000)]),
        ],
        ids=lambda value: value if isinstance(value, str) else "many",
    )
    def test_of_segment(self, untouched, photo, field, value) -> None:
        check(untouched.http.post("/segment", files={"image": photo}, data={field: value}), 422, field)

    def test_of_the_query(self, untouched, photo) -> None:
        check(untouched.http.post("/segment?overlay=perhaps", files={"image": photo}), 422, "overlay")
        check(untouched.http.get("/jobs?status=lost"), 422, "status")
        check(untouched.http.get("/jobs?category=%20"), 422, "category")

    def test_of_teaching(self, untouched, photo, mask) -> None:
        files = {"image": photo, "mask": mask}
        check(untouched.http.post("/categories/cat/example", files=files, data={"mode": "merge"}), 422, "mode")
        prompts = [f"c{n}" for n in range(5000)]
        check(untouched.http.post("/categories/cat/example", files=files, data={"prompts": prompts}), 422, "prompts")

    @pytest.mark.parametrize(
        "body", [b"", b"{", b"[]", b'"1"', b"{}", b'{"version": "x"}', b'{"version": 1.5}', b"\xff"]
    )
    def test_of_rollback(self, untouched, body) -> None:
        headers = {"Content-Type": "application/json"}
        answer = untouched.http.post("/categories/known/rollback", content=body, headers=headers)
        check(answer, 400 if body == b"\xff" else 422)
        assert answer.json()["errors"] or body == b"\xff"

    @pytest.mark.parametrize("version", [0, -1, 2**63, 10**30])
    def test_a_version_that_never_was(self, untouched, version) -> None:
        answer = untouched.http.post("/categories/known/rollback", json={"version": version})
        check(answer, 404 if version > 0 else 422, "version")


class TestRequests:
    def test_a_malformed_multipart_body(self, untouched) -> None:
        for body, kind in ((b"rubbish", "multipart/form-data; boundary=x"), (b"rubbish", "multipart/form-data")):
            for path in ("/segment", "/categories/cat/example", "/layers/rank"):
                check(untouched.http.post(path, content=body, headers={"Content-Type": kind}), 400)

    def test_a_body_of_another_kind(self, untouched) -> None:
        check(untouched.http.post("/segment", json={"image": "x"}), 415)

    @pytest.mark.parametrize(
        ("method", "path"),
        [
            ("GET", "/segment"),
            ("PUT", "/categories"),
            ("POST", "/categories/cat"),
            ("GET", "/categories/cat/example"),
            ("POST", "/jobs"),
            ("POST", "/healthz"),
            ("BREW", "/segment"),
        ],
    )
    def test_a_wrong_method(self, untouched, method, path) -> None:
        answer = untouched.http.request(method, path)
        check(answer, 405)
        assert answer.headers["allow"]

    def test_allowed_methods_are_all_of_the_path(self, untouched) -> None:
        for path, methods in (("/categories/cat", "DELETE, GET, HEAD"), ("/categories/cat/adapter", "GET, HEAD, PUT")):
            assert untouched.http.post(path).headers["allow"] == methods

    @pytest.mark.parametrize(
        "path", ["/nowhere", "/categories/cat/nowhere", "/jobs/1/2/3", "/segment/", "/categories/"]
    )
    def test_an_unknown_path(self, untouched, path) -> None:
        check(untouched.http.get(path, follow_redirects=False), 404)

    def test_an_upload_over_the_limit(self, untouched, photo, mask) -> None:
        large = photo + bytes(20_001)
        detail = check(untouched.http.post("/segment", files={"image": large}), 413, "image")["detail"]
        assert "EXEMPLAR_MAX_UPLOAD_BYTES" in detail
        files = {"image": large, "mask": mask}
        check(untouched.http.post("/categories/cat/example", files=files), 413, "image")
        files = {"image": photo, "mask": large}
        check(untouched.http.post("/categories/cat/example", files=files), 413, "mask")
        check(untouched.http.post("/layers/rank", files={"images": large}), 413, "images")

    @pytest.mark.parametrize("chunked", [False, True], ids=["declared", "chunked"])
    @pytest.mark.parametrize(
        ("method", "path"),
        [("POST", "/segment"), ("POST", "/categories/cat/example"), ("POST", "/layers/rank"),
         ("PUT", "/categories/cat/adapter"), ("POST", "/categories/known/rollback")],
    )  # fmt: skip
    def test_a_body_over_the_limit(self, untouched, photo, method, path, chunked) -> None:
        head = b'--x\r\nContent-Disposition: form-data; name="image"; filename="i"\r\n\r\n'
        body = head + photo + bytes(3 << 20) + b"\r\n--x--\r\n"
        pieces = (body[at : at + 65_536] for at in range(0, len(body), 65_536))
        kind = "multipart/form-data; boundary=x" if method == "POST" and "rollback" not in path else "application/json"
        answer = untouched.http.request(
            method, path, content=pieces if chunked else body, headers={"Content-Type": kind}
        )
        assert ("content-length" in answer.request.headers) is not chunked
        problem = check(answer, 413)
        assert "EXEMPLAR_MAX_UPLOAD_BYTES" in problem["detail"]
        assert problem["type"] == "urn:exemplar:problem:too-large"

    def test_more_files_than_one_request_may_bring(self, untouched) -> None:
        for path in ("/segment/batch", "/layers/rank"):
            for count in (65, 1001, 2001):  # more than the setting, than a form has by itself, than is read of one
                files = [("images", b"")] * count
                assert "EXEMPLAR_MAX_BATCH_IMAGES" in check(untouched.http.post(path, files=files), 422)["detail"]
        answer = untouched.http.post("/segment/batch", files=[("images", b"")] * 1001)
        assert answer.json()["detail"].startswith("1001 photos are too many: at most 64")

    @pytest.mark.parametrize("count", [1001, 30_001], ids=["than the setting", "than is read"])
    def test_more_names_than_one_request_may_bring(self, api, count) -> None:
        answer = api.segment(*["x"] * count)
        assert "at most 1000" in (detail := check(answer, 422)["detail"])
        assert "EXEMPLAR_MAX_CATEGORIES" in detail

    @pytest.mark.parametrize("text", ["," * 3_000_000, f"[{'0,' * 1_500_000}0]"], ids=["commas", "JSON"])
    @pytest.mark.parametrize("field", ["categories", "background"])
    def test_a_list_longer_than_its_names_can_be_is_not_split(self, start, photo, field: str, text: str) -> None:
        with start(worker=False) as api:
            problem = check(api.http.post("/segment", files={"image": photo}, data={field: text}), 422, field)
            assert f"{len(text)} characters" in problem["detail"]
            assert "EXEMPLAR_MAX_CATEGORIES" in problem["detail"]

    def test_the_longest_names_that_there_are(self, start, photo) -> None:
        with start(worker=False, max_categories=3) as api:
            names = [f"{letter}\N{COMBINING ACUTE ACCENT}" * 64 for letter in "aeo"]
            answer = api.http.post("/segment", files={"image": photo}, data={"categories": json.dumps(names, indent=8)})
            assert len(answer.json()["categories"]) == 3

    def test_a_box_over_the_limit(self, untouched, photo) -> None:
        data = {"box": "[1, 2, 3, 4" + " " * 2000 + "]"}
        check(untouched.http.post("/categories/cat/example", files={"image": photo}, data=data), 413, "box")

    def test_an_adapter_over_the_limit(self, untouched) -> None:
        """It may be as large as a request of a photo and its mask: some are larger than one upload."""
        limit = 2 * 20_000 + 1024 * 1024
        detail = check(untouched.http.put("/categories/known/adapter", content=bytes(limit + 1)), 413)["detail"]
        assert "EXEMPLAR_MAX_UPLOAD_BYTES" in detail
        check(untouched.http.put("/categories/known/adapter", content=bytes(limit)), 422)

    def test_a_text_longer_than_is_read(self, start, photo) -> None:
        with start(worker=False, max_upload_bytes=500_000) as api:
            data = {"categories": "x" * 2_100_000}  # a request of one photo may not even be as long
            for files in ({"images": photo}, None):  # as a part of a form, and as a field of one without files
                answer = api.http.post("/segment/batch", files=files, data=data)
                assert "EXEMPLAR_MAX_UPLOAD_BYTES" in check(answer, 413)["detail"]
                assert "text field" in answer.json()["detail"]

    def test_a_text_field_over_the_limit(self, untouched, photo) -> None:
        data = {"segmentation": "[" + " " * 30_000 + "]"}
        check(untouched.http.post("/categories/cat/example", files={"image": photo}, data=data), 413, "segmentation")


class TestSlips:
    """Common mistakes; the response says what to do."""

    @pytest.mark.parametrize("field", ["image", "mask", "box", "segmentation", "mode"])
    def test_two_of_a_kind_in_teaching(self, untouched, photo, mask, field) -> None:
        files, data = [("image", photo)], {}
        match field:
            case "image":
                files += [("image", photo), ("mask", mask)]
            case "mask":
                files += [("mask", mask), ("mask", mask)]
            case "mode":
                files, data = [*files, ("mask", mask)], {"mode": ["append", "replace"]}
            case _:
                data = {field: ["[1, 2, 3, 4]", "[5, 6, 7, 8]"]}
        problem = check(untouched.http.post("/categories/cat/example", files=files, data=data), 422, field)
        assert "once" in problem["detail"]

    def test_every_field_that_is_no_list_comes_once(self, untouched, photo) -> None:
        document = untouched.http.get("/openapi.json").json()
        seen = set()
        for path, operations in document["paths"].items():
            forms = operations.get("post", {}).get("requestBody", {}).get("content", {})
            if "multipart/form-data" not in forms:
                continue
            form = forms["multipart/form-data"]["schema"]["$ref"].rpartition("/")[2]
            for field, schema in document["components"]["schemas"][form]["properties"].items():
                twice = [(field, photo)] * 2 if "contentMediaType" in schema else [(field, (None, "x"))] * 2
                answer = untouched.http.post(path.replace("{name}", "cat"), files=twice)
                told = {error["field"] for error in answer.json().get("errors", ()) if "once" in error["detail"]}
                assert told == (set() if schema["type"] == "array" else {field}), (path, field)
                seen.add(path)
        assert seen == {"/categories/{name}/example", "/segment", "/segment/batch", "/segment/clicks", "/layers/rank"}

    @pytest.mark.parametrize(("path", "field"), [("/segment", "image"), ("/segment/batch", "images")])
    def test_a_name_of_a_file_instead_of_the_file(self, api, path: str, field: str) -> None:
        problem = check(api.http.post(path, files={field: (None, "photo.jpg")}), 422)
        assert problem["errors"][0]["field"] == field
        assert "-F image=@photo.jpg" in problem["detail"]

    @pytest.mark.parametrize("field", ["segmentation", "box", "prompts", "mode"])
    def test_a_file_instead_of_its_text(self, untouched, photo, field: str) -> None:
        files = [("image", photo), (field, b"[[1, 2, 3, 4, 5, 9]]")]
        problem = check(untouched.http.post("/categories/cat/example", files=files), 422, field)
        assert f"curl: -F '{field}=<" in problem["detail"]

    def test_json_that_is_cut(self, api) -> None:
        headers = {"Content-Type": "application/json"}
        problem = check(api.http.post("/categories/cat/rollback", content=b'{"version"', headers=headers), 422)
        assert problem["errors"][0]["field"] == "body"
        assert "not JSON" in problem["detail"]

    def test_json_that_does_not_say_so(self, api) -> None:
        headers = {"Content-Type": "text/plain"}
        problem = check(api.http.post("/categories/cat/rollback", content=b'{"version": 1}', headers=headers), 422)
        assert "Content-Type: application/json" in problem["detail"]


class TestCallers:
    @pytest.mark.parametrize("address", ["10.0.0.7", "192.168.1.5", "2001:db8::1", "somewhere"])
    def test_another_machine_is_refused(self, start, address) -> None:
        with start() as api:
            before = api.stored()
            api.http._transport.client = (address, 50007)
            for method, path in (("GET", "/metrics"), ("GET", "/categories"), ("POST", "/segment"), ("GET", "/docs")):
                problem = check(api.http.request(method, path), 403)
                assert "EXEMPLAR_ALLOW_ANONYMOUS" in problem["detail"]
            assert api.stored() == before

    @pytest.mark.parametrize("address", ["127.0.0.1", "127.8.9.10", "::1", "::ffff:127.0.0.1"])
    def test_this_machine_is_served(self, start, address) -> None:
        with start(client=(address, 50007)) as api:
            assert api.http.get("/categories").status_code == 200

    def test_others_are_served_where_it_is_allowed(self, start) -> None:
        with start(client=("10.0.0.7", 50007), allow_anonymous=True) as api:
            assert api.http.get("/categories").status_code == 200


class TestFaults:
    def test_a_bug_is_a_500_without_its_trace(self, api) -> None:
        @api.http.app.get("/bug")
        async def bug() -> None:
            raise KeyError("secret")

        problem = check(api.http.get("/bug"), 500)
        assert "secret" not in json.dumps(problem)

    def test_an_error_of_ours_without_a_status_is_a_500(self) -> None:
        assert AppError("x").status == 500

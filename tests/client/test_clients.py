"""Both clients against the running application."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import ExifTags, Image

from exemplar_client import (
    AsyncClient,
    BatchFailed,
    Client,
    Conflict,
    ExemplarError,
    Forbidden,
    Invalid,
    JobFailed,
    NotFound,
    TooLarge,
    Unauthorized,
    Unavailable,
    UnsupportedMedia,
    coco_instances,
)
from exemplar_client.annotations import MaskInput
from tests.images.cases import heic_of

from .conftest import HW, Serve, noise

Photos = list[Path | np.ndarray | bytes]


def test_a_category_from_its_first_example_to_its_end(client: Client, photo: Path, marked: np.ndarray) -> None:
    job = client.teach("first cat", photo, marked, prompts=["kitten"])
    assert job.wait(progress=False) is job
    assert (job.status, job.ended, job.progress, job.category) == ("succeeded", True, 1.0, "first cat")
    assert job.adapter_version == 1
    category = client.category("First Cat")
    assert category.prompts == ["first cat", "kitten"]
    assert category.adapter is not None
    assert category.adapter.version == 1
    assert "first cat" in [each.name for each in client.categories()]
    assert [each.id for each in client.jobs("first cat")] == [job.id]
    assert client.jobs("first cat", "failed") == []
    assert client.job(job.id).refresh().state == job.state

    client.absent("first cat", noise(seed=11)).wait(progress=False)
    shown, absent = client.examples("first cat")
    assert (shown.width, shown.height, shown.area, shown.absent) == (47, 31, 300, False)
    assert absent.absent
    assert [(each.version, each.current) for each in client.versions("first cat")] == [(2, True), (1, False)]
    rolled = client.rollback("first cat", 1)
    assert rolled.adapter is not None
    assert rolled.adapter.version == 1

    imported = client.import_("another cat", client.export("first cat"))
    assert imported.adapter is not None
    again = client.delete_example("first cat", absent.id)
    assert again is not None
    again.wait(progress=False)
    assert client.delete_example("first cat", shown.id) is None
    for name in ("first cat", "another cat"):
        assert client.delete(name) is None
        with pytest.raises(NotFound) as refused:
            client.category(name)
        assert refused.value.status == 404
        assert refused.value.request_id


def test_replace(client: Client, photo: Path, marked: np.ndarray) -> None:
    client.teach("replaced", photo, marked).wait(progress=False)
    client.teach("replaced", noise(seed=5), [10, 5, 20, 15], replace=True).wait(progress=False)
    assert len(client.examples("replaced")) == 1


@pytest.mark.parametrize("name", ["a cat, b", "é ü", "1.5", "%2F", "猫", "a?b#c"])
def test_any_name(client: Client, photo: Path, marked: np.ndarray, name: str) -> None:
    client.teach(name, photo, marked).wait(progress=False)
    assert client.category(name).name == name
    assert client.segment(photo, [name])[name].name == name
    client.delete(name)


@pytest.mark.parametrize("form", ["rle", "polygon", "box", "file"])
def test_a_mask_in_every_form_arrives(client: Client, photo: Path, marked: np.ndarray, form: str) -> None:
    column = [15, 16]
    Image.fromarray(marked).save(photo.with_name("mask.png"))
    masks: dict[str, Any] = {
        "rle": {"size": list(HW), "counts": [315, *column * 19, 15, 538]},
        "polygon": [(10, 5), (30, 5), (30, 20), (10, 20)],
        "box": [10, 5, 20, 15],
        "file": photo.with_name("mask.png"),
    }
    client.teach(form, photo, masks[form]).wait(progress=False)
    assert client.examples(form)[0].area == 300
    client.delete(form)


def test_a_turned_tiff_is_taught_with_an_upright_mask(client: Client, photo: Path, marked: np.ndarray) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    turned = photo.with_suffix(".tif")
    Image.fromarray(noise()).save(turned, exif=exif)
    client.teach("turned", turned, np.rot90(marked)).wait(progress=False)
    assert (client.examples("turned")[0].width, client.examples("turned")[0].height) == (31, 47)
    client.delete("turned")


def test_segment_with_options(client: Client, photo: Path) -> None:
    masks = client.segment(
        photo, ["cat", "dog"], min_presence=0, threshold=0.0, refine="none", background=["sky", "sea"], adapters="none"
    )
    assert masks.names == ["cat", "dog"]
    assert masks.size_hw == HW
    assert masks.sha256 == sha256(photo.read_bytes()).hexdigest()
    assert masks.source == photo
    assert masks.backbone.name == "tiny"
    assert [mask.adapted for mask in masks] == [False, False]
    assert client.segment(photo, "cat", min_presence=1, backbone=None).found == []


def test_a_clicked_object(client: Client, photo: Path) -> None:
    found = client.click(photo, [(20, 12), (np.float32(2.5), np.int64(2), False)])
    assert found.array.shape == HW
    assert found.array.sum() == found.area
    assert found.image.sha256 == sha256(photo.read_bytes()).hexdigest()
    assert client.click(photo, [[20, 12, 1]], refine=False).backbone.name == "tiny"
    with pytest.raises(Invalid, match="on the object"):
        client.click(photo, [(20, 12, 0)])
    with pytest.raises(Invalid, match="outside the photo"):
        client.click(photo, [(99, 12)])


@pytest.mark.parametrize(
    ("options", "told"), [({"backbone": "none"}, "backbone"), ({"min_presence": 2}, "min_presence")]
)
def test_a_refusal_names_the_field(client: Client, photo: Path, options: Any, told: str) -> None:
    with pytest.raises(ExemplarError) as refused:
        client.segment(photo, ["cat"], **options)
    assert refused.value.status in (404, 422)
    assert [error.field for error in refused.value.errors] == [told]


def test_refusals(client: Client, photo: Path) -> None:
    with pytest.raises(Conflict):
        client.absent("never taught", photo)
    with pytest.raises(Invalid, match=r"The mask is None.*absent\(\)"):
        client.teach("first cat", photo, None)  # type: ignore[arg-type]
    with pytest.raises(NotFound):
        client.job("no-such-job")
    with pytest.raises(Invalid, match="An id is empty"):
        client.job("")
    with pytest.raises(Invalid):
        client.import_("broken", b"no adapter")
    gif = photo.with_suffix(".gif")
    Image.fromarray(noise()).save(gif)
    with pytest.raises(UnsupportedMedia, match="GIF"):
        client.segment(gif, "cat")
    with pytest.raises(Invalid, match=r"'\.\.' is not a name"):  # the service says so: the path is not resolved
        client.category("..")


def folder_of(photo: Path, count: int) -> Path:
    folder = photo.parent / "folder"
    folder.mkdir()
    for number in range(count):
        Image.fromarray(noise(seed=number)).save(folder / f"{number:02}.png")
    (folder / "notes.txt").write_text("no photo")
    return folder


def test_a_folder(client: Client, photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = folder_of(photo, 10)
    found = sorted(client.segment_many(folder, ["cat"], min_presence=0), key=lambda masks: masks.position)
    assert [masks.name for masks in found] == [f"{number:02}.png" for number in range(10)]
    for masks in found:
        assert masks.sha256 == sha256(Path(str(masks.source)).read_bytes()).hexdigest()
    assert capsys.readouterr().err == "segmenting: 10/10 photos\n"


def test_a_list_of_photos_with_broken_ones(client: Client, photo: Path) -> None:
    gif = photo.with_suffix(".gif")
    Image.fromarray(noise()).save(gif)
    photos = iter([photo, b"no image", gif, photo.with_name("nowhere.png"), noise()])
    many = client.segment_many(photos, "cat", progress=False)
    assert sorted([next(many).position, next(many).position]) == [0, 4]
    with pytest.raises(BatchFailed, match=r"3 photos have no result: .*not an image.*") as failed:
        next(many)
    assert [source for source, _ in failed.value.failures] == [b"no image", photo.with_name("nowhere.png"), gif]
    told: list[object] = []
    assert not list(client.segment_many([b"no image"], on_failure=lambda source, error: told.append(error.detail)))
    assert "not an image" in str(told)


@pytest.fixture(scope="module")
def small_url(serve: Serve) -> Iterator[str]:
    """A service that takes files of 64 KiB, so eight of them and a mebibyte in one request."""
    with serve(max_upload_bytes=65_536) as url:
        yield url


LARGE = [noise(280, 280, seed=seed) for seed in range(7)]  # 230 KB each


def test_photos_that_are_too_large_do_not_take_the_others_with_them(small_url: str, photo: Path) -> None:
    failed: list[tuple[object, ExemplarError]] = []
    with Client(small_url) as client:
        many = client.segment_many(
            [*LARGE[:3], photo, *LARGE[3:], noise()],
            "cat",
            progress=False,
            on_failure=lambda *failure: failed.append(failure),
        )
        assert [masks.position for masks in many] == [3, 8]
        assert [source for source, _ in failed] == LARGE
        assert {type(error) for _, error in failed} == {TooLarge}
        with pytest.raises(BatchFailed, match=r"1 photo has no result: image\.png:.*EXEMPLAR_MAX_UPLOAD_BYTES"):
            list(client.segment_many([noise(900, 900)], "cat", progress=False))


async def test_async_photos_that_are_too_large_do_not_take_the_others_with_them(small_url: str, photo: Path) -> None:
    failed: list[object] = []
    async with AsyncClient(small_url) as client:
        many = client.segment_many(
            [*LARGE, photo], "cat", progress=False, on_failure=lambda source, error: failed.append(source)
        )
        assert [masks.position async for masks in many] == [7]
    assert failed == LARGE


def test_file_names_that_are_not_utf_8(client: Client, photo: Path) -> None:
    """As old archives unpack them; Python keeps such bytes as surrogates, which can be neither sent nor printed."""
    path = photo.with_name(os.fsdecode(b"caf\xe9.png"))
    path.write_bytes(photo.read_bytes())
    masks = client.segment(path, "cat")
    assert (masks.source, masks.path, masks.name) == (path, path, "caf?.png")
    (masks,) = client.segment_many([str(path)], "cat", progress=False)
    assert (masks.source, masks.name) == (str(path), "caf?.png")
    (image,) = json.loads(json.dumps(coco_instances([masks])))["images"]
    assert (photo.parent / image["file_name"]).read_bytes() == photo.read_bytes()
    with path.open("rb") as opened, Image.open(path) as image:
        assert [masks.name for masks in client.segment_many([opened, image], "cat", progress=False)] == ["caf?.png"] * 2
    assert client.click(path, [(20, 12)]).array.shape == HW


def test_errors_of_files_whose_names_are_not_utf_8(client: Client, photo: Path) -> None:
    broken = photo.with_name(os.fsdecode(b"caf\xe9.png"))
    broken.write_bytes(b"no image")
    missing = photo.with_name(os.fsdecode(b"th\xe9.png"))
    with pytest.raises(BatchFailed, match=r"caf\?\.png.*th\?\.png") as failed:
        list(client.segment_many([broken, missing], "cat", progress=False))
    assert [source for source, _ in failed.value.failures] == [broken, missing]
    with pytest.raises(Invalid, match=r"th\?\.png is not a folder"):
        client.segment_many(missing)
    for error in (failed.value, *(error for _, error in failed.value.failures)):
        assert str(error).encode()


@pytest.fixture
def phone_photos(tmp_path: Path) -> Path:
    """A folder of photos as phones write them; upright they are 47 × 31 pixels."""
    folder = tmp_path / "phone"
    folder.mkdir()
    (folder / "1.HEIC").write_bytes(heic_of(np.rot90(noise(), -1), orientation=8))
    (folder / "2.heif").write_bytes(heic_of(noise()))
    Image.fromarray(noise()).save(folder / "3.avif")
    return folder


def test_photos_of_phones(client: Client, phone_photos: Path) -> None:
    found = sorted(client.segment_many(phone_photos, "cat", progress=False), key=lambda masks: masks.position)
    assert [masks.name for masks in found] == ["1.HEIC", "2.heif", "3.avif"]
    for masks in found:
        assert masks.size_hw == HW
        assert masks.overlay().size == (47, 31)


def test_photos_that_only_the_service_can_read(
    client: Client, phone_photos: Path, marked: np.ndarray, only_the_service_reads_heif: None
) -> None:
    for path in phone_photos.iterdir():
        masks = client.segment(path, "cat")
        assert masks.size_hw == HW
        with pytest.raises(Invalid, match="pip install pillow-heif"):
            masks.overlay()
    column = [15, 16]
    given: list[MaskInput] = [
        *(marked, Image.fromarray(marked), [10, 5, 20, 15], [(10, 5), (30, 5), (30, 20), (10, 20)]),
        {"size": list(HW), "counts": [315, *column * 19, 15, 538]},
    ]
    for mask in given:
        client.teach("phone", phone_photos / "1.HEIC", mask, replace=True).wait(progress=False)
        assert client.examples("phone")[0].area == 300
    wrong: list[MaskInput] = [
        marked.T,
        [10, 5, 40, 15],
        [(50, 2), (60, 2), (60, 9)],
        {"size": [2, 3], "counts": [4, 2]},
    ]
    for mask in wrong:
        with pytest.raises(Invalid) as refused:
            client.teach("phone", phone_photos / "1.HEIC", mask)
        assert refused.value.status == 422
    client.delete("phone")


def test_a_mask_that_only_the_service_can_read(
    client: Client, photo: Path, marked: np.ndarray, only_the_service_reads_heif: None
) -> None:
    mask = heic_of(np.repeat(marked[:, :, None], 3, axis=2) * np.uint8(255))
    client.teach("mask of a phone", photo, mask).wait(progress=False)
    assert client.examples("mask of a phone")[0].area == 300
    client.delete("mask of a phone")


def test_an_iteration_may_be_left(client: Client, photo: Path) -> None:
    for _ in client.segment_many([photo] * 5, "cat", progress=False):
        break
    assert client.health().ready


def test_a_job_that_ends_otherwise(serve: Serve, photo: Path, marked: np.ndarray) -> None:
    with serve(tune_steps=10_000) as url, Client(url) as client:
        first = client.teach("cat", photo, marked)
        with pytest.raises(TimeoutError, match=first.id):
            first.wait(progress=False, timeout_s=0.5)
        second = client.teach("cat", noise(seed=5), marked)
        with pytest.raises(JobFailed, match="newer example") as superseded:
            first.wait(progress=False)
        assert superseded.value.job.status == "superseded"
        assert second.refresh().cancel() is second
        with pytest.raises(JobFailed, match="was cancelled"):
            second.wait(progress=False)
        with pytest.raises(Conflict):
            client.cancel(second.id)
        client.teach("cat", noise(seed=6), marked)


def test_a_job_is_shown(client: Client, photo: Path, marked: np.ndarray, capsys: pytest.CaptureFixture[str]) -> None:
    job = client.teach("shown", photo, marked)
    job.wait()
    assert capsys.readouterr().err == "teaching shown: succeeded 3/3\n"
    assert repr(job) == f"<Job {job.id} of shown: succeeded, 100%>"


def test_keys(serve: Serve, photo: Path, marked: np.ndarray) -> None:
    keys = ",".join(f"{scope}:{sha256(key.encode()).hexdigest()}" for scope, key in (("read", "r"), ("teach", "t")))
    with serve(api_keys=keys) as url:
        for key, error in ((None, Unauthorized), ("wrong", Unauthorized), ("r", Forbidden)):
            with Client(url, key) as client, pytest.raises(error):
                client.teach("cat", photo, marked)
        with Client(url, key="t") as client:
            client.teach("cat", photo, marked).wait(progress=False)


def test_threads_share_a_client(client: Client) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda seed: client.segment(noise(seed=seed), "cat"), range(8)))
    photos = [sha256(masks._photo.content()).hexdigest() for masks in found]
    assert [masks.sha256 for masks in found] == photos


def test_nobody_listens() -> None:
    with Client("http://127.0.0.1:9", tries=2) as client:
        assert not client.health().alive
        with pytest.raises(Unavailable, match="No service answers at http://127"):
            client.categories()


def test_a_service_that_starts_late(serve: Serve) -> None:
    """The connection is refused at first; the same call gets through once the service listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    listening = threading.Event()

    def answer_late() -> None:
        time.sleep(0.6)
        with socket.create_server(("127.0.0.1", port)) as server:
            listening.set()
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n[]")

    thread = threading.Thread(target=answer_late)
    thread.start()
    with Client(f"http://127.0.0.1:{port}") as client:
        assert client.categories() == []
    assert listening.is_set()
    thread.join()


async def test_async_from_example_to_masks(url: str, photo: Path, marked: np.ndarray) -> None:
    async with AsyncClient(url) as client:
        assert (await client.health()).ready
        job = await (await client.teach("async cat", photo, marked, "kitten")).wait(progress=False)
        assert job.status == "succeeded"
        assert await (await client.absent("async cat", noise(seed=11))).wait(progress=False)
        assert (await client.category("async cat")).examples == 2
        assert "async cat" in [each.name for each in await client.categories()]
        shown, absent = await client.examples("async cat")
        assert [each.version for each in await client.versions("async cat")] == [2, 1]
        await client.rollback("async cat", 1)
        await client.import_("async copy", await client.export("async cat"))
        assert (await client.job(job.id)).state == job.state
        assert (await client.click(photo, [(20, 12)])).array.shape == HW
        assert job.id in [each.id for each in await client.jobs("async cat")]
        assert (await job.refresh()).ended
        with pytest.raises(Conflict):
            await job.cancel()
        many, one = await asyncio.gather(
            gathered(client, [photo, noise(seed=5), b"no image"]), client.segment(photo, ["async cat"], min_presence=0)
        )
        assert sorted(many) == [0, 1]
        assert one["async cat"].adapted
        again = await client.delete_example("async cat", absent.id)
        assert again is not None
        await again.wait(progress=False)
        assert await client.delete_example("async cat", shown.id) is None
        for name in ("async cat", "async copy"):
            await client.delete(name)
        with pytest.raises(NotFound):
            await client.category("async cat")


async def gathered(client: AsyncClient, photos: list[Any]) -> list[int]:
    """Positions of the photos with a result; the one without must be told."""
    many = client.segment_many(photos, ["cat"], progress=False)
    found = [(await anext(many)).position, (await anext(many)).position]
    with pytest.raises(BatchFailed, match="1 photo has"):
        await anext(many)
    return found


async def test_an_async_iteration_may_be_left(url: str, photo: Path) -> None:
    async with AsyncClient(url) as client:
        async for _ in client.segment_many([photo] * 5, "cat", progress=False):
            break
        many = client.segment_many([photo] * 5, "cat", progress=False)
        await anext(many)
        await many.aclose()
        assert (await client.health()).ready


async def test_async_photos_may_fail_quietly(url: str) -> None:
    told: list[object] = []
    async with AsyncClient(url) as client:
        many = client.segment_many([b"no image"], on_failure=lambda source, error: told.append(source), progress=False)
        assert [masks async for masks in many] == []
    assert told == [b"no image"]


async def test_async_nobody_listens() -> None:
    async with AsyncClient("http://127.0.0.1:9", tries=1) as client:
        assert not (await client.health()).alive
        with pytest.raises(Unavailable):
            await client.categories()


def test_both_clients_have_the_same_methods() -> None:
    def public(kind: type) -> dict[str, list[str]]:
        methods: dict[str, Callable[..., Any]] = {n: m for n, m in vars(kind).items() if not n.startswith("_")}
        return {name: list(method.__annotations__) for name, method in methods.items()}

    assert public(Client) == public(AsyncClient)


def test_a_full_queue_is_waited_for(client: Client, photo: Path) -> None:
    """The first answer is a real refusal of the kind that the service sends; the second try gets through."""
    refusals = iter([httpx2.Response(503, json={"title": "Overloaded"}, headers={"Retry-After": "0"})])
    network = httpx2.HTTPTransport()

    def sometimes(request: httpx2.Request) -> httpx2.Response:
        return next(refusals, None) or network.handle_request(request)

    with Client(client._calls._service.url, transport=httpx2.MockTransport(sometimes)) as patient:
        assert patient.segment(photo, "cat").names == ["cat"]
    network.close()

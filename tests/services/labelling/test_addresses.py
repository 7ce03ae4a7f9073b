"""Only photos on Label Studio and on allowed hosts and ports are fetched."""

from __future__ import annotations

import httpx2 as httpx
import pytest

from app.errors import InvalidInputError
from app.services.labelling.addresses import AllowedAddresses, joined

ALLOWED = AllowedAddresses(
    httpx.URL("http://studio.example.com:8080/label"), hosts=("Bucket.example.com", "minio.example.com:9000", "[::1]")
)


@pytest.mark.parametrize(
    "address",
    [
        "http://bucket.example.com/cat.jpg",
        "https://bucket.example.com/cat.jpg",
        "https://BUCKET.example.com:443/cat.jpg",
        "http://bucket.example.com:80/cat.jpg",
        "http://minio.example.com:9000/cat.jpg",
        "https://minio.example.com:9000/cat.jpg",
        "http://studio.example.com:8080/data/upload/cat.jpg",
    ],
)
def test_these_are_fetched(address: str) -> None:
    ALLOWED.check(httpx.URL(address))


@pytest.mark.parametrize(
    "address",
    [
        "http://bucket.example.com:6379/",
        "http://bucket.example.com:443/cat.jpg",
        "https://bucket.example.com:80/cat.jpg",
        "http://minio.example.com/cat.jpg",
        "http://minio.example.com:9001/cat.jpg",
        "http://studio.example.com/data/upload/cat.jpg",
        "https://studio.example.com:8080/data/upload/cat.jpg",
        "http://bucket.example.com.evil.example/cat.jpg",
        "http://bucket.example.com@evil.example/cat.jpg",
        "http://evil.example:bucket.example.com@10.0.0.1/",
        "file:///etc/passwd",
        "ftp://bucket.example.com/cat.jpg",
    ],
)
def test_all_others_are_not(address: str) -> None:
    with pytest.raises(InvalidInputError) as refusal:
        ALLOWED.check(httpx.URL(address))
    assert refusal.value.field == "tasks"


def test_without_label_studio_only_the_hosts_are() -> None:
    allowed = AllowedAddresses(None, hosts=("bucket.example.com",))
    assert not allowed.is_label_studio(httpx.URL("http://bucket.example.com/"))
    allowed.check(joined(httpx.URL("http://bucket.example.com/a/b.jpg"), "../c.jpg"))


def test_what_is_no_address_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="no address"):
        joined(httpx.URL(), "/data/a\n.jpg")

"""Addresses of photos: joined as on a web page, and allowed by their host and port.

The address of a photo is the caller's. Without a list of allowed hosts a caller could make the service read any page of
the network that it stands in.
"""

from __future__ import annotations

import httpx2 as httpx

from app.errors import InvalidInputError

_USUAL_PORTS = {"http": 80, "https": 443}


class AllowedAddresses:
    """Decides which addresses are fetched.

    Args:
        label_studio: Address of Label Studio, all of whose pages are; None if it is not known.
        hosts: Other hosts, each with its port unless it is the usual one.
    """

    def __init__(self, label_studio: httpx.URL | None, *, hosts: tuple[str, ...]) -> None:
        self._label_studio = label_studio
        self._hosts = frozenset(host.lower() for host in hosts)

    def is_label_studio(self, url: httpx.URL) -> bool:
        """True for an address on Label Studio."""
        return self._label_studio is not None and _origin(url) == _origin(self._label_studio)

    def check(self, url: httpx.URL) -> None:
        """Refuse an address that must not be fetched.

        Raises:
            InvalidInputError: If it is not one of HTTP, or on a host or port that is not allowed.
        """
        if url.scheme not in _USUAL_PORTS:
            raise InvalidInputError(f"{url.scheme or 'No'} address: photos have http, https or data.", field="tasks")
        _, host, port = _origin(url)
        names = {f"{host}:{port}"} | ({host} if port == _USUAL_PORTS[url.scheme] else set())
        if not self.is_label_studio(url) and not names & self._hosts:
            raise InvalidInputError(
                f"Photos of {url.netloc.decode()} are not fetched: only those of EXEMPLAR_LABEL_STUDIO_URL are, and of "
                "the hosts in EXEMPLAR_LABEL_STUDIO_HOSTS, each with its port unless that is the usual one.",
                field="tasks",
            )


def joined(base: httpx.URL, address: str) -> httpx.URL:
    """An address as it is meant on a page at another one.

    Raises:
        InvalidInputError: If it is none.
    """
    try:
        return base.join(address)
    except httpx.InvalidURL as error:
        raise InvalidInputError(f"{address[:200]!r} is no address of a photo: {error}.", field="tasks") from error


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host.lower(), url.port or _USUAL_PORTS.get(url.scheme)

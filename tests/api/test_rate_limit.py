"""The rate limit: one count per key, and per address without keys, on the service's own store."""

from __future__ import annotations

import hashlib
import os
import signal

import pytest
from pydantic import ValidationError

from app.settings import Settings

KEYS = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("first", "second")}


def test_one_request_more_than_the_limit_is_told_when_to_come_again(start) -> None:
    with start(rate_limit="3/minute") as api:
        answers = [api.http.get("/categories") for _ in range(5)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
        refused = answers[-1]
        assert refused.headers["content-type"] == "application/problem+json"
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert "EXEMPLAR_RATE_LIMIT (3 per 1 minute)" in refused.json()["detail"]
        assert refused.headers["x-request-id"]


def test_probes_and_the_page_are_not_counted(start) -> None:
    with start(rate_limit="1/minute") as api:
        for path in ("/healthz", "/readyz", "/metrics", "/", "/openapi.json") * 2:
            assert api.http.get(path).status_code == 200
        assert api.http.get("/categories").status_code == 200


def test_every_key_has_its_own_count(start) -> None:
    with start(rate_limit="1/minute", api_keys=",".join(f"read:{digest}" for digest in KEYS.values())) as api:
        sent = [{"X-API-Key": "first"}, {"Authorization": "Bearer first"}, {"X-API-Key": "second"}]
        assert [api.http.get("/categories", headers=headers).status_code for headers in sent] == [200, 429, 200]
        assert api.http.get("/categories").status_code == 401


def test_without_keys_one_that_is_made_up_is_no_way_around_the_limit(start) -> None:
    with start(rate_limit="2/minute", allow_anonymous=True, client=("10.0.0.7", 50007)) as api:
        sent = [{"X-API-Key": f"random{number}"} for number in range(3)] + [{"Authorization": "Bearer other"}]
        assert [api.http.get("/categories", headers=headers).status_code for headers in sent] == [200, 200, 429, 429]
        assert len(api.redis.keys("exemplar:limit*")) == 1


def test_replicas_count_together(start_on, database: str) -> None:
    with start_on(database, rate_limit="2/minute") as one, start_on(database, rate_limit="2/minute") as other:
        statuses = [each.http.get("/categories").status_code for each in (one, other, one, other)]
        assert statuses == [200, 200, 429, 429]


def test_its_keys_expire(start) -> None:
    with start(rate_limit="5/minute") as api:
        api.http.get("/categories")
        (key,) = api.redis.keys("exemplar:limit*")
        assert 0 < api.redis.ttl(key) <= 120


def test_without_a_store_to_ask_everybody_passes(start_on) -> None:
    with start_on(None, rate_limit="1/minute") as api:
        pid = api.redis.info("server")["process_id"]
        assert api.http.get("/docs").status_code == 200
        os.kill(pid, signal.SIGSTOP)
        try:
            assert [api.http.get("/backbones").status_code for _ in range(3)] == [200] * 3
        finally:
            os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("limit", ["many", "5/fortnight", "-1/minute", "minute"])
def test_a_limit_that_is_none_is_refused(limit: str) -> None:
    with pytest.raises(ValidationError, match="100/minute"):
        Settings(rate_limit=limit)

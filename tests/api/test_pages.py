"""Long lists come in pages, each with a link to the next; and conditional requests on categories and adapters."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import takewhile
from urllib.parse import quote

import pytest
from redis import Redis

from app.storage import keys


def follow(api, path: str) -> list[list[dict]]:
    """All pages of a list."""
    pages = []
    while path:
        answer = api.http.get(path)
        assert answer.status_code == 200, answer.text
        pages.append(answer.json())
        link = answer.headers.get("link")
        path = re.fullmatch(r'<(/[^>]*)>; rel="next"', link)[1] if link else ""
        assert len(pages) < 50
    return pages


def counts(redis: Redis, act: Callable[[], object]) -> int:
    """How many lists this database is asked for the length of, as of examples, while something is done."""
    number = redis.connection_pool.connection_kwargs["db"]
    with redis.monitor() as monitor:
        act()
        redis.echo("done")
        commands = list(takewhile(lambda one: one["command"] != "ECHO done", monitor.listen()))
    return sum(one["db"] == number and one["command"].startswith("LLEN ") for one in commands)


def taught_seven(api) -> None:
    for number in range(7):
        assert api.teach(f"c{number}").status_code == 202


@pytest.fixture
def many(start) -> Iterator:
    """Seven categories, taught without a worker, so that there are as many queued jobs."""
    with start(worker=False) as api:
        taught_seven(api)
        yield api


@pytest.fixture(scope="module")
def same_many(new_database, start_on) -> Iterator:
    """The same, for tests that change nothing."""
    with new_database() as database, start_on(database, worker=False) as api:
        taught_seven(api)
        yield api


class TestPages:
    @pytest.mark.parametrize("limit", [1, 3, 7, 1000])
    def test_categories_the_oldest_first(self, same_many, limit: int) -> None:
        pages = follow(same_many, f"/categories?limit={limit}")
        assert [one["name"] for page in pages for one in page] == [f"c{number}" for number in range(7)]
        assert all(len(page) == limit for page in pages[:-1])
        assert len(pages) == -(-7 // limit)

    def test_jobs_the_newest_first_with_their_filter(self, many) -> None:
        many.http.delete(f"/jobs/{many.category('c3')['job']}")
        pages = follow(many, "/jobs?limit=2&status=queued")
        assert [job["category"] for page in pages for job in page] == ["c6", "c5", "c4", "c2", "c1", "c0"]
        assert [len(page) for page in pages] == [2, 2, 2]

    def test_categories_of_one_moment(self, many) -> None:
        """Imports of several replicas may bear the same time."""
        many.redis.zadd(keys.CATEGORIES, {f"c{number}": 5.0 for number in range(7)})
        assert [one["name"] for page in follow(many, "/categories?limit=2") for one in page] == [
            f"c{number}" for number in range(7)
        ]

    def test_what_was_deleted_since_ends_no_page(self, many) -> None:
        answer = many.http.get("/categories?limit=3")
        for name in ("c2", "c3"):
            many.http.delete(f"/categories/{name}")
        rest = follow(many, re.search("<(.*)>", answer.headers["link"])[1])
        assert [one["name"] for page in rest for one in page] == ["c4", "c5", "c6"]

    def test_examples_and_versions_deleted_since_end_no_page(self, api) -> None:
        for number in range(5):
            api.taught(photo=api.photo_number(number))
        for path in ("/categories/cat/examples?limit=2", "/categories/cat/versions?limit=2"):
            answer = api.http.get(path)
            following = re.search("<(.*)>", answer.headers["link"])[1]
            rest = [item for page in follow(api, following) for item in page]
            if "examples" in path:
                for example in answer.json():
                    api.http.delete(f"/categories/cat/examples/{example['id']}")
            else:
                for version in answer.json():
                    api.redis.hdel(keys.versions("cat"), version["version"])
            assert [item for page in follow(api, following) for item in page] == rest
            assert len(rest) > 1

    @pytest.mark.parametrize("time", ["", "yesterday", "0001-01-01T00:00:00"])
    def test_examples_without_a_time(self, api, time: str) -> None:
        for number in range(3):
            api.taught(photo=api.photo_number(number))
        ids = [one["id"] for one in api.http.get("/categories/cat/examples").json()]
        for id_ in ids:
            api.redis.hset(keys.example("cat", id_), "created_at", time)
        assert [one["id"] for page in follow(api, "/categories/cat/examples?limit=1") for one in page] == ids

    @pytest.mark.parametrize("limit", [1, 20])
    def test_a_page_reads_no_more_records_than_it_shows(self, many, limit: int) -> None:
        record = many.redis.hgetall(keys.category("c0"))
        for number in range(300):
            many.redis.hset(keys.category(f"n{number}"), mapping=record | {b"name": f"n{number}"})
            many.redis.zadd(keys.CATEGORIES, {f"n{number}": float(number)})
        first = many.http.get(f"/categories?limit={limit}")
        for path in (f"/categories?limit={limit}", re.search("<(.*)>", first.headers["link"])[1]):
            assert limit <= counts(many.redis, partial(many.http.get, path)) <= limit + 2

    def test_examples_and_versions(self, api) -> None:
        for number in range(3):
            api.taught(photo=api.photo_number(number))
        ids = [one["id"] for one in api.http.get("/categories/cat/examples").json()]
        assert [[one["id"] for one in page] for page in follow(api, "/categories/cat/examples?limit=1")] == [
            [id_] for id_ in ids
        ]
        versions = [[one["version"] for one in page] for page in follow(api, "/categories/cat/versions?limit=2")]
        assert versions == [[3, 2], [1]]

    @pytest.mark.parametrize("name", ["猫", "50 % cat?", "a+b#c", "Straße <b>", "x?y#z\\w", "a%3Fb"])
    def test_of_a_category_with_any_name(self, api, name: str) -> None:
        for number in range(2):
            sent = {"image": api.photo_number(number), "mask": api.mask}
            assert api.http.post(f"/categories/{quote(name)}/example", files=sent).status_code == 202
        assert [len(page) for page in follow(api, f"/categories/{quote(name)}/examples?limit=1")] == [1, 1]

    @pytest.mark.parametrize("path", ["/categories", "/jobs", "/categories/c0/examples", "/categories/c0/versions"])
    @pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=many", "cursor=nonsense", "cursor=bmFuIHg"])
    def test_what_is_no_page_is_refused(self, same_many, path: str, query: str) -> None:
        answer = same_many.http.get(f"{path}?{query}")
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["field"] == query.partition("=")[0]

    def test_by_default_a_hundred(self, many) -> None:
        record = many.redis.hgetall(keys.category("c0"))
        for number in range(100):
            many.redis.hset(keys.category(f"n{number}"), mapping=record | {b"name": f"n{number}"})
            many.redis.zadd(keys.CATEGORIES, {f"n{number}": 1.0})
        assert [len(page) for page in follow(many, "/categories")] == [100, 7]


class TestConditions:
    def test_an_answer_that_is_known_is_not_sent_again(self, api) -> None:
        api.taught()
        for path in ("/categories/cat", "/categories/cat/adapter"):
            first = api.http.get(path)
            again = api.http.get(path, headers={"If-None-Match": first.headers["etag"]})
            assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
        api.taught(photo=api.other_photo)
        assert api.http.get(path, headers={"If-None-Match": first.headers["etag"]}).status_code == 200

    def test_a_change_by_somebody_who_saw_an_older_state_is_refused(self, api) -> None:
        api.taught()
        raw = api.http.get("/categories/cat/adapter").content
        etags = [api.http.get(path).headers["etag"] for path in ("/categories/cat", "/categories/cat/adapter")]
        api.taught(photo=api.other_photo)
        before = api.stored()
        for etag in etags:
            changes = [
                api.http.put("/categories/cat/adapter", content=raw, headers={"If-Match": etag}),
                api.http.post("/categories/cat/rollback", json={"version": 1}, headers={"If-Match": etag}),
                api.http.delete("/categories/cat", headers={"If-Match": etag}),
            ]
            assert [answer.status_code for answer in changes] == [412] * 3
            assert "has changed" in changes[0].json()["detail"]
        assert api.stored() == before

    @pytest.mark.parametrize("path", ["/categories/cat", "/categories/cat/adapter"])
    def test_a_change_of_what_was_seen_is_made(self, api, path: str) -> None:
        api.taught()
        api.taught(photo=api.other_photo)
        etag = api.http.get(path).headers["etag"]
        answer = api.http.post("/categories/cat/rollback", json={"version": 1}, headers={"If-Match": etag})
        assert answer.json()["adapter"]["version"] == 1
        current = api.http.get(path).headers["etag"]
        assert api.http.delete("/categories/cat", headers={"If-Match": f'"other", {current}'}).status_code == 204

    def test_of_changes_at_once_of_one_state_one_is_made(self, api) -> None:
        api.taught()
        api.taught(photo=api.other_photo)
        raw = api.http.get("/categories/cat/adapter").content
        known = {"If-Match": api.http.get("/categories/cat").headers["etag"]}

        def change(number: int) -> int:
            if number % 2:
                return int(api.http.put("/categories/cat/adapter", content=raw, headers=known).status_code)
            return int(api.http.post("/categories/cat/rollback", json={"version": 1}, headers=known).status_code)

        with ThreadPoolExecutor(8) as threads:
            assert sorted(threads.map(change, range(8))) == [200] + [412] * 7

    def test_any_state_but_it_must_exist(self, api) -> None:
        assert api.http.delete("/categories/cat", headers={"If-Match": "*"}).status_code == 404
        api.taught()
        raw = api.http.get("/categories/cat/adapter").content
        answer = api.http.put("/categories/new/adapter", content=raw, headers={"If-Match": "*"})
        assert answer.status_code == 412
        assert api.http.get("/categories/new").status_code == 404
        assert api.http.delete("/categories/cat", headers={"If-Match": "*"}).status_code == 204

    def test_a_weak_etag_names_no_state(self, api) -> None:
        api.taught()
        etag = api.http.get("/categories/cat").headers["etag"]
        assert api.http.get("/categories/cat", headers={"If-None-Match": f"W/{etag}"}).status_code == 304
        assert api.http.delete("/categories/cat", headers={"If-Match": f"W/{etag}"}).status_code == 412
        assert api.http.delete("/categories/cat", headers={"If-Match": f"W/{etag}, {etag}"}).status_code == 204

    def test_an_import_that_may_overwrite_nothing(self, api) -> None:
        api.taught()
        raw = api.http.get("/categories/cat/adapter").content
        new = {"If-None-Match": "*"}

        def put(name: str) -> int:
            return int(api.http.put(f"/categories/{name}/adapter", content=raw, headers=new).status_code)

        with ThreadPoolExecutor(4) as threads:
            assert sorted(threads.map(put, ["dog"] * 4)) == [200, 412, 412, 412]
        before = api.stored()
        refused = api.http.put("/categories/cat/adapter", content=raw, headers=new)
        assert refused.status_code == 412
        assert "cat is there already" in refused.json()["detail"]
        assert api.stored() == before

    def test_an_import_of_what_is_not_in_use_already(self, api) -> None:
        api.taught()
        got = api.http.get("/categories/cat/adapter")
        for known, status in ((got.headers["etag"], 412), (f"W/{got.headers['etag']}", 412), ('"other"', 200)):
            sent = {"content": got.content, "headers": {"If-None-Match": known}}
            assert api.http.put("/categories/cat/adapter", **sent).status_code == status


def test_the_example_of_a_link_in_the_documentation_is_one(same_many) -> None:
    described = json.dumps(same_many.http.get("/openapi.json").json()["paths"]["/categories"]["get"])
    assert '"Link"' in described
    assert '"cursor"' in described

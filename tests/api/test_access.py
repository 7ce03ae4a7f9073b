"""Access control: keys and their scopes; without keys, only callers on this machine."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator

import pytest
from pydantic import ValidationError

from app.api.access import is_loopback, scope_of
from app.main import create_app
from app.settings import Settings

KEYS = {"read": "look", "teach": "learn", "admin": "all"}


def hashed(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def basic(credentials: str) -> str:
    return "Basic " + base64.b64encode(credentials.encode()).decode()


SETTING = ", ".join(f"{scope}:{hashed(key)}" for scope, key in KEYS.items())


ELSEWHERE = ("10.0.0.7", 50007)


@pytest.fixture
def api(start):
    """A service with three keys, called from another machine."""
    with start(api_keys=SETTING, client=ELSEWHERE) as running:
        yield running


@pytest.fixture(scope="module")
def shared_with_keys(new_database, start_on) -> Iterator:
    """The same, for tests that change nothing."""
    with new_database() as database, start_on(database, api_keys=SETTING, client=ELSEWHERE, worker=False) as running:
        yield running


def sending(api, key: str):
    api.http.headers["X-API-Key"] = key
    return api


class TestKeys:
    def test_a_team_with_a_key_for_each_of_its_tools(self, api) -> None:
        assert sending(api, "look").teach("cat").status_code == 403
        assert sending(api, "learn").taught("cat")["status"] == "succeeded"
        assert sending(api, "look").segment("cat").json()["categories"][0]["adapted"]
        assert sending(api, "learn").http.delete("/categories/cat").status_code == 403
        assert sending(api, "all").http.delete("/categories/cat").status_code == 204

    def test_without_a_key(self, shared_with_keys) -> None:
        before = shared_with_keys.stored()
        for method, path in (("GET", "/categories"), ("POST", "/segment"), ("DELETE", "/jobs/1"), ("GET", "/no")):
            answer = shared_with_keys.http.request(method, path)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.headers["content-type"] == "application/problem+json"
            assert "X-API-Key" in answer.json()["detail"]
        assert shared_with_keys.stored() == before

    @pytest.mark.parametrize(
        "headers",
        [
            {"X-API-Key": "look"},
            {"Authorization": "Bearer look"},
            {"Authorization": "bearer  look"},
            {"Authorization": basic("anybody:look")},
            {"Authorization": basic(":look")},
        ],
    )
    def test_either_header_carries_it(self, shared_with_keys, headers: dict[str, str]) -> None:
        assert shared_with_keys.http.get("/categories", headers=headers).status_code == 200

    @pytest.mark.parametrize(
        "headers",
        [
            {"X-API-Key": "Look"},
            {"X-API-Key": ""},
            {"X-API-Key": hashed("look")},  # the setting's own text opens nothing
            {"Authorization": "look"},
            {"Authorization": "Basic look"},
            {"Authorization": basic("look")},
            {"Authorization": basic("look:")},
            {"Authorization": basic("anybody:look:")},
            {"Authorization": "Basic /////w=="},
            {"Authorization": "Bearer"},
            {"X-API-Key": b"l\xf6\xf6k"},
        ],
    )
    def test_another_key_is_refused(self, shared_with_keys, headers: dict[str, str]) -> None:
        assert shared_with_keys.http.get("/categories", headers=headers).status_code == 401

    def test_a_body_is_not_read_for_who_may_not_send_it(self, shared_with_keys) -> None:
        answer = shared_with_keys.http.post(
            "/categories/cat/example", content=b"x" * 3_000_000, headers={"X-API-Key": "look"}
        )
        assert answer.status_code == 403
        assert "teach" in answer.json()["detail"]

    def test_probes_numbers_and_the_document_are_open(self, shared_with_keys) -> None:
        probes, pages = (
            ("/healthz", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready"),
            ("/docs", "/docs/swagger-ui.css", "/", "/web/page.js"),
        )
        for path in (*probes, *pages, "/openapi.json"):
            assert shared_with_keys.http.get(path).status_code == 200

    def test_a_page_of_another_site_is_not_among_the_anonymous_callers(self, start) -> None:
        with start(allow_anonymous=True, worker=False) as api:
            api.http.headers |= {"Host": "exemplar.example", "Origin": "https://gateway.example"}
            api.http.headers["Sec-Fetch-Site"] = "cross-site"
            assert api.http.get("/categories").status_code == 200
            refused = api.teach("cat")
            assert (refused.status_code, api.http.get("/categories").json()) == (403, [])
            assert refused.json()["detail"].startswith("A page of another site can't use this service")
            api.http.headers["Sec-Fetch-Site"] = "same-origin"
            assert api.teach("cat").status_code == 202
            del api.http.headers["Sec-Fetch-Site"]  # a program, or a browser over plain HTTP
            assert api.teach("dog").status_code == 202

    def test_this_machine_needs_a_key_too(self, start) -> None:
        with start(api_keys=SETTING, allow_anonymous=True) as api:
            assert api.http.get("/categories").status_code == 401

    def test_an_admins_key_is_good_for_everything(self, api) -> None:
        sending(api, "all").taught("cat")
        assert api.segment("cat").status_code == 200


# What each call needs, by hand.
NEEDED = {
    ("POST", "/categories/{name}/example"): "teach",
    ("GET", "/categories"): "read",
    ("GET", "/categories/{name}"): "read",
    ("DELETE", "/categories/{name}"): "admin",
    ("GET", "/categories/{name}/versions"): "read",
    ("POST", "/categories/{name}/rollback"): "teach",
    ("GET", "/categories/{name}/adapter"): "read",
    ("PUT", "/categories/{name}/adapter"): "admin",
    ("GET", "/categories/{name}/examples"): "read",
    ("GET", "/categories/{name}/examples/{id}/image"): "read",
    ("GET", "/categories/{name}/examples/{id}/mask"): "read",
    ("DELETE", "/categories/{name}/examples/{id}"): "teach",
    ("POST", "/segment"): "read",
    ("POST", "/segment/batch"): "read",
    ("POST", "/segment/clicks"): "read",
    ("GET", "/jobs"): "read",
    ("GET", "/jobs/{id}"): "read",
    ("DELETE", "/jobs/{id}"): "teach",
    ("GET", "/jobs/{id}/events"): "read",
    ("POST", "/layers/rank"): "teach",
    ("GET", "/layers"): "read",
    ("GET", "/backbones"): "read",
    ("GET", "/label-studio/health"): "read",
    ("POST", "/label-studio/setup"): "read",
    ("GET", "/label-studio/versions"): "read",
    ("POST", "/label-studio/predict"): "read",
    ("POST", "/label-studio/webhook"): "teach",
    ("POST", "/label-studio/validate"): "read",
    ("POST", "/label-studio/delete"): "read",
    ("POST", "/label-studio/duplicate_model"): "read",
    ("POST", "/label-studio/job_status"): "read",
    ("GET", "/v2"): "read",
    ("GET", "/v2/health/live"): None,
    ("GET", "/v2/health/ready"): None,
    ("GET", "/v2/models/{name}"): "read",
    ("GET", "/v2/models/{name}/ready"): "read",
    ("GET", "/v2/models/{name}/versions/{version}"): "read",
    ("GET", "/v2/models/{name}/versions/{version}/ready"): "read",
    ("GET", "/healthz"): None,
    ("GET", "/readyz"): None,
    ("GET", "/metrics"): None,
}


def test_every_call_has_the_scope_that_is_meant() -> None:
    paths = create_app(Settings()).openapi()["paths"]
    found = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    assert found == NEEDED.keys()
    assert {call: scope_of(*call) for call in NEEDED} == NEEDED
    asked = {call for call in found if "401" in paths[call[1]][call[0].lower()]["responses"]}
    assert asked == {call for call, scope in NEEDED.items() if scope}


@pytest.mark.parametrize(
    ("method", "path"), [("DELETE", "/anything"), ("DELETE", "/jobs/1/events"), ("PATCH", "/categories/cat")]
)
def test_what_is_no_call_needs_the_highest_scope(method: str, path: str) -> None:
    assert scope_of(method, path) == "admin"


class TestPrefix:
    """The service behind a proxy that gives it one folder of a host."""

    @pytest.fixture
    def api(self, api):
        api.http._transport.root_path = "/x"
        api.http.base_url = "http://localhost/x/"
        return api

    def test_calls_need_the_same_keys(self, api) -> None:
        for path in ("/healthz", "/v2/health/ready", "/docs", "/web/page.js", "/"):
            assert api.http.get(path).status_code == 200
        assert api.http.get("/categories").status_code == 401
        sending(api, "learn").taught("cat")
        assert sending(api, "look").segment("cat").status_code == 200
        assert sending(api, "learn").http.delete("/categories/cat").status_code == 403
        assert sending(api, "all").http.delete("/categories/cat").status_code == 204

    def test_addresses_in_answers_have_it(self, api) -> None:
        started = sending(api, "learn").teach("cat")
        assert started.headers["location"] == f"/x/jobs/{started.json()['job']['id']}"
        api.teach("dog", photo=api.other_photo)
        assert api.http.get("/categories?limit=1").headers["link"].startswith("</x/categories?")
        assert "call /x/categories," in api.http.get("/categories/").json()["detail"]


class TestSetting:
    @pytest.mark.parametrize("value", ["secret", "sesame:", "write:" + hashed("x"), "teach:" + hashed("x")[:-1]])
    def test_what_is_no_hash_with_a_scope_is_refused_and_not_repeated(self, value: str) -> None:
        with pytest.raises(ValidationError) as refused:
            Settings(api_keys=value)
        (error,) = refused.value.errors()
        assert "scope:SHA-256" in error["msg"]
        assert value not in error["msg"]

    def test_case_and_spaces_do_not_matter(self) -> None:
        settings = Settings(api_keys=f" TEACH:{hashed('a').upper()} ,, read:{hashed('b')}")
        assert settings.key_scopes == {hashed("a"): "teach", hashed("b"): "read"}


class TestWithoutKeys:
    def test_a_page_of_another_site_may_not_change_anything(self, start) -> None:
        with start() as api:
            headers = {"Origin": "https://elsewhere.example"}
            answer = api.teach("cat", headers=headers)
            assert answer.status_code == 403
            assert "elsewhere.example" in answer.json()["detail"]
            assert api.http.get("/categories", headers=headers).json() == []
            assert api.segment("cat", headers=headers).status_code == 403  # it would cost seconds of computing
            own = {"Origin": str(api.http.base_url).rstrip("/")}
            assert api.teach("cat", headers=own).status_code == 202
            assert api.segment("cat", headers=own).status_code == 200

    @pytest.mark.parametrize(
        ("headers", "status"),
        [
            ({"Sec-Fetch-Site": "cross-site"}, 403),
            ({"Sec-Fetch-Site": "same-site"}, 403),  # another port of this machine
            ({"Sec-Fetch-Site": "cross-site", "Origin": "http://localhost"}, 403),
            ({"Origin": "null"}, 403),  # a file, or a page in a sandbox
            ({"Origin": ""}, 403),
            ({"Origin": "http://localhost:3000"}, 403),
            ({"Sec-Fetch-Site": "same-origin", "Origin": "http://localhost"}, 202),
            ({"Sec-Fetch-Site": "none"}, 202),
            ({}, 202),  # a program
        ],
        ids=str,
    )
    def test_what_a_browser_tells_of_the_page(self, start, headers: dict[str, str], status: int) -> None:
        with start(worker=False) as api:
            assert api.teach("cat", headers=headers).status_code == status
            assert api.segment("cat", headers=headers).status_code == (200 if status == 202 else 403)
            assert api.http.post("/layers/rank", files={"images": api.photo}, headers=headers).status_code == status
            assert api.http.get("/categories", headers=headers).status_code == 200
            assert len(api.http.get("/categories").json()) == (status == 202)

    @pytest.mark.parametrize(
        "host",
        [
            "evil.example",
            "evil.example:8000",
            "127.0.0.1.evil.example",
            "[::1",
            "localhost.evil.example",
            "workstation",
            "workstation:8000",
            "192.168.1.5",
            "10.0.0.7:8000",
            "[2001:db8::1]",
            "localhost.",
            "2130706433",
        ],
    )
    def test_a_name_of_somebody_elses_that_leads_here_is_refused(self, shared, host: str) -> None:
        headers = {"Host": host, "Origin": f"http://{host}"}
        assert shared.http.get("/categories", headers=headers).status_code == 403
        assert shared.teach("cat", headers=headers).status_code == 403
        assert shared.http.get("/categories").json() == []

    @pytest.mark.parametrize(
        "host",
        [
            "localhost:8000",
            "LOCALHOST",
            "127.0.0.1",
            "127.0.0.1:8000",
            "127.0.1.1",
            "[::1]:8000",
            "app.localhost",
            "0.0.0.0:8000",
        ],
    )
    def test_its_own_names_are_not(self, shared, host: str) -> None:
        assert shared.http.get("/categories", headers={"Host": host}).status_code == 200


class TestProbes:
    """Load balancers and orchestrators call from other machines, without a key, by any name."""

    @pytest.mark.parametrize("headers", [{}, {"Host": "10.0.0.7:8000"}, {"Host": "exemplar.internal"}], ids=str)
    def test_are_answered_from_everywhere(self, start, headers: dict[str, str]) -> None:
        with start(client=("10.0.0.7", 50007)) as api:
            for path in ("/healthz", "/readyz"):
                assert api.http.get(path, headers=headers).status_code == 200
                assert api.http.head(path, headers=headers).status_code == 200

    def test_and_nothing_else_is(self, start) -> None:
        with start() as api:
            api.http._transport.client = ("10.0.0.7", 50007)
            calls = [("POST", "/healthz"), ("GET", "/metrics"), ("GET", "/"), ("GET", "/healthz/"), ("GET", "/docs")]
            for method, path in calls:
                assert api.http.request(method, path).status_code == 403


class TestBrowsers:
    """Headers that limit what a browser does with an answer."""

    def test_every_answer_has_them(self, api) -> None:
        @api.http.app.get("/bug")
        async def bug() -> None:
            raise KeyError

        sending(api, "all")
        statuses = set()
        for path in (
            "/",
            "/docs",
            "/docs/swagger-ui.css",
            "/categories",
            "/metrics",
            "/nowhere",
            "/openapi.json",
            "/bug",
        ):
            answer = api.http.get(path)
            statuses.add(answer.status_code)
            assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["x-frame-options"] == "DENY"
            assert answer.headers["referrer-policy"] == "no-referrer"
        assert statuses == {200, 404, 500}
        assert api.http.get("/categories", headers={"X-API-Key": "?"}).headers["x-frame-options"] == "DENY"

    def test_data_is_no_page(self, api) -> None:
        policy = sending(api, "all").http.get("/categories").headers["content-security-policy"]
        assert policy == "default-src 'none'; frame-ancestors 'none'"

    def test_the_one_script_of_the_documentation_is_allowed_by_its_hash(self, shared_with_keys) -> None:
        answer = shared_with_keys.http.get("/docs")
        (script,) = re.findall(r"<script>(.*?)</script>", answer.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"script-src 'self' 'sha256-{digest}';" in answer.headers["content-security-policy"]


@pytest.mark.parametrize(
    ("client", "expected"),
    [
        (None, True),
        (("127.0.0.1", 1), True),
        (("::1", 1), True),
        (("::ffff:127.0.0.1", 1), True),
        (("::ffff:10.0.0.1", 1), False),
        (("10.0.0.1", 1), False),
        (("localhost", 1), False),
        (("", 1), False),
    ],
)
def test_loopback(client, expected) -> None:
    assert is_loopback(client) is expected

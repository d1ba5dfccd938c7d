"""Requests of the page, without a network and without a broker."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.console.conftest import AUTHORITY, Answer, AppClient, entering, put, sign_in
from tests.records import RECORD, ids
from zmqbus.client.receipts import BroadcastReceipt, Receipt
from zmqbus.console.app import MAX_PAGE, MAX_SMALL_BYTES, Console
from zmqbus.console.auth import LINK_S, Links, mint
from zmqbus.console.guard import ENTER, MAX_POST_BYTES
from zmqbus.console.messages import PART_CHARS
from zmqbus.console.responses import ASSETS_DIR, Assets
from zmqbus.errors import UnknownPeer
from zmqbus.session.state import SessionState

SECRET = b"s" * 32
#: All that the page loads, in total.
MAX_ASSETS_BYTES = 300 * 1024


class FakeSender:
    """Records what it is asked to send."""

    session_id = "123e4567-e89b-42d3-a456-426614174000"

    def __init__(self) -> None:
        self.sent: list[tuple[Any, ...]] = []

    def set_pages(self, pages: int) -> None:
        pass

    def send(self, target: str, text: str, reply_to: str | None) -> Receipt:
        if target == "nobody":
            raise UnknownPeer("there is no session 'nobody'; see: zmqbus list")
        self.sent.append((target, text, reply_to))
        return Receipt("abcdefgh", "delivered", target, "id", False, 0)

    def broadcast(self, text: str, *, topic: str | None = None, project: str | None = None) -> BroadcastReceipt:
        self.sent.append((topic, project, text))
        return BroadcastReceipt("abcdefgh", 2, 1, ("full-one",))


@pytest.fixture
def sender() -> FakeSender:
    return FakeSender()


@pytest.fixture
def ended() -> list[SessionState]:
    return []


@pytest.fixture
def app(settings: Any, sender: FakeSender, ended: list[SessionState]) -> Iterator[Console]:
    def disconnect(state: SessionState) -> str:
        ended.append(state)
        return "disconnected"

    console = Console(settings, AUTHORITY, Links(SECRET), disconnect, sender=sender)  # type: ignore[arg-type]
    yield console


@pytest.fixture
def anonymous(app: Console) -> AppClient:
    return AppClient(app.app)


@pytest.fixture
def ask(app: Console) -> AppClient:
    return sign_in(AppClient(app.app), mint(SECRET, time.time()))


def refused(answer: Answer, status: int, code: str) -> str:
    assert (answer.status, answer.json["error"]["code"]) == (status, code), answer
    text: str = answer.json["error"]["text"]
    assert text and "Traceback" not in text
    return text


class TestSignIn:
    def test_start_page_is_the_same_for_everybody_and_holds_no_data(self, anonymous: AppClient, ask: AppClient) -> None:
        first, second = anonymous("GET", "/"), ask("GET", "/?token=x")
        assert first.status == second.status == 200 and first.body == second.body
        assert b"/assets/main.js" in first.body
        assert not {"set-cookie", "location", "refresh"} & {*first.headers, *second.headers}

    def test_link_signs_in_once(self, anonymous: AppClient) -> None:
        token = mint(SECRET, time.time())
        assert anonymous("GET", "/api/messages").status == 401
        ask = sign_in(anonymous, token)
        answer = ask("GET", "/api/messages")
        assert answer.status == 200 and "set-cookie" not in answer.headers
        refused(anonymous("POST", ENTER, entering(token)[0]), 401, "link_used")

    def test_refused_link_says_why(self, anonymous: AppClient) -> None:
        for token, why in (
            (mint(SECRET, time.time() - LINK_S - 2), "expired"),
            (mint(b"t" * 32, time.time()), "unknown"),
        ):
            refused(anonymous("POST", ENTER, entering(token)[0]), 401, f"link_{why}")
        for body in ({}, {"link": "x"}, {"link": "A" * 34, "nonce": "n" * 22, "proof": "<script>"}):
            refused(anonymous("POST", ENTER, body), 401, "link_unknown")
        refused(anonymous("POST", ENTER, {"link": 3}), 400, "invalid_payload")

    def test_same_user_link_is_refused_on_other_connections(self, app: Console, anonymous: AppClient) -> None:
        token = mint(SECRET, time.time(), same_user=True)
        refused(anonymous("POST", ENTER, entering(token)[0]), 401, "link_elsewhere")
        assert sign_in(AppClient(app.app, scope={"same_user": True}), token).visitor is not None


class TestAssets:
    def test_assets_are_small_and_load_nothing_from_elsewhere(self) -> None:
        assert 0 < len(Assets()) < MAX_ASSETS_BYTES
        known = set(os.listdir(ASSETS_DIR))
        for name in known:
            text = Path(ASSETS_DIR, name).read_text("utf-8")
            links = re.findall(r"""(?:src|href)="(/?[^"#]+)"|from "(\./[^"]+)"|url\(([^)]+)\)""", text)
            for link in (next(filter(None, found)) for found in links):
                assert link == "/" or os.path.basename(link) in known, (name, link)
            outside = re.findall(r"""https?://[^\s"'`]+""", text)
            assert all(one.startswith("http://www.w3.org/") for one in outside), (name, outside)

    def test_scripts_never_create_markup_from_text(self) -> None:
        for name in os.listdir(ASSETS_DIR):
            text = Path(ASSETS_DIR, name).read_text("utf-8")
            for word in (
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "eval(",
                "new Function",
                "DOMParser",
            ):
                assert word not in text, (name, word)
            if name.endswith(".html"):
                assert not re.search(r"<script(?![^>]* src=)|\son[a-z]+=|style=|<style|javascript:", text), name

    def test_every_script_is_preloaded(self) -> None:
        page = Path(ASSETS_DIR, "index.html").read_text("utf-8")
        scripts = {name for name in os.listdir(ASSETS_DIR) if name.endswith(".js")}
        assert set(re.findall(r'"/assets/([a-z]+\.js)"', page)) == scripts

    def test_unchanged_file_is_not_sent_again(self, anonymous: AppClient) -> None:
        first = anonymous("GET", "/assets/main.js")
        assert first.status == 200 and first.headers["content-type"].startswith("text/javascript")
        second = anonymous("GET", "/assets/main.js", headers={"if-none-match": first.headers["etag"]})
        assert (second.status, second.body) == (304, b"")

    @pytest.mark.parametrize(
        "path",
        [
            "/assets/../app.py",
            "/assets/..%2fapp.py",
            "/assets/....//app.py",
            "/assets/%2e%2e/app.py",
            "/assets//etc/passwd",
            "/assets/\\..\\app.py",
            "/assets/main.js/..",
            "/assets/index.html",
            "/assets/",
            "/assets/main.js%00.css",
            "/app.py",
            "/../../../../etc/passwd",
        ],
    )
    def test_no_path_leads_to_other_files(self, anonymous: AppClient, ask: AppClient, path: str) -> None:
        for who in (anonymous, ask):
            answer = who("GET", path)
            assert answer.status == 404 and b"import" not in answer.body and b"root:" not in answer.body


class TestReading:
    def test_history_in_pages(self, ask: AppClient, data_dir: Path) -> None:
        assert ask("GET", "/api/messages").json == {"items": [], "before": None}
        every = ids(25)
        put(data_dir, *(RECORD._replace(msg_id=msg_id) for msg_id in every))
        found: list[str] = []
        before = None
        while True:
            page = ask("GET", "/api/messages?limit=10" + (f"&before={before}" if before else "")).json
            found += [item["id"] for item in page["items"]]
            before = page["before"]
            if before is None:
                break
        assert found == every[::-1]
        assert len(ask("GET", f"/api/messages?limit={10 * MAX_PAGE}").json["items"]) == 25
        assert len(ask("GET", "/api/messages?limit=x").json["items"]) == 25
        refused(ask("GET", "/api/messages?before=x"), 400, "invalid_payload")

    def test_messages_of_one_session(self, ask: AppClient, data_dir: Path) -> None:
        put(
            data_dir,
            RECORD._replace(msg_id="said0001", from_session="me", to_session_id="you"),
            RECORD._replace(msg_id="heard001", from_session="you", to_session_id="me"),
            RECORD._replace(msg_id="other001", from_session="you", to_session_id="they"),
        )
        page = ask("GET", "/api/messages?session=me").json
        assert [item["id"] for item in page["items"]] == ["heard001", "said0001"]

    def test_long_text_in_parts(self, ask: AppClient, data_dir: Path) -> None:
        text = ("<b>\U0001f600" * PART_CHARS)[: PART_CHARS * 3 + 5]
        put(data_dir, RECORD._replace(msg_id="message1", body=text.encode()))
        at = ask("GET", "/api/messages").json["items"][0]["at"]
        for query in ("", f"at={at}&", "at=9.9&", "at=nonsense&"):
            got = ""
            more = True
            while more:
                answer = ask("GET", f"/api/message/message1?{query}from={len(got)}").json
                assert answer["chars"] == len(text)
                got += answer["part"]
                more = answer["more"]
            assert got == text
        assert ask("GET", f"/api/message/message1?from={len(text) + 1}").json["part"] == ""
        assert "no longer in the log" in refused(ask("GET", "/api/message/nowhere1"), 404, "broker_unavailable")
        refused(ask("GET", "/api/message/x"), 400, "invalid_payload")

    def test_markup_in_a_10_mib_text_is_served_as_json(self, ask: AppClient, data_dir: Path) -> None:
        text = "<script>alert(1)</script><img src=x onerror=alert(2)>" * 200_000
        put(data_dir, RECORD._replace(msg_id="message1", from_name="<b>", from_label="<i>", body=text.encode()))
        page = ask("GET", "/api/messages")
        assert page.headers["content-type"] == "application/json" and len(page.body) < 2_000
        part = ask("GET", "/api/message/message1")
        assert part.headers["content-type"] == "application/json" and len(part.body) < 4 * PART_CHARS
        assert part.json["chars"] == len(text)

    def test_texts_of_values_and_bytes(self, ask: AppClient, data_dir: Path) -> None:
        put(
            data_dir,
            RECORD._replace(msg_id="message1", fmt="bytes", body=b"\0\1"),
            RECORD._replace(msg_id="message2", fmt="msgpack", body=b"\x92\x01\x02"),
        )
        assert ask("GET", "/api/message/message1").json["part"] == "<2 bytes>"
        assert ask("GET", "/api/message/message2").json["part"] == "[1, 2]"

    def test_thread_of_a_message(self, ask: AppClient, data_dir: Path) -> None:
        put(data_dir, RECORD._replace(msg_id="question"), RECORD._replace(msg_id="answer01", reply_to="question"))
        items = ask("GET", "/api/thread/answer01").json["items"]
        assert [(item["id"], item["depth"]) for item in items] == [("question", 0), ("answer01", 1)]
        assert ask("GET", "/api/thread/nowhere1").json["items"] == []
        refused(ask("GET", "/api/thread/%22"), 400, "invalid_payload")

    def test_invalid_search_is_refused(self, ask: AppClient) -> None:
        refused(ask("POST", "/api/search", {"text": "(", "mode": "regex"}), 400, "invalid_payload")
        for body in ({"text": " ", "mode": "words"}, {"text": "x", "mode": "sql"}, {"text": 3, "mode": "words"}, {}):
            refused(ask("POST", "/api/search", body), 400, "invalid_payload")

    def test_log_open_to_others_is_refused(self, ask: AppClient, data_dir: Path) -> None:
        put(data_dir, RECORD)
        (data_dir / "messages.log").chmod(0o644)
        assert "chmod" in refused(ask("GET", "/api/messages"), 400, "unauthorized")


class TestActing:
    def test_send_and_broadcast(self, ask: AppClient, sender: FakeSender) -> None:
        answer = ask("POST", "/api/send", {"scope": "session", "to": "auth", "text": "hi", "replyTo": "abcdefgh"})
        assert answer.json["state"] == "delivered" and answer.json["self"] == sender.session_id
        for body in ({"scope": "all"}, {"scope": "topic", "to": "deploys"}, {"scope": "project", "to": "/work"}):
            answer = ask("POST", "/api/send", {**body, "text": "hi"})
            assert (answer.json["state"], answer.json["full"]) == ("broadcast", ["full-one"])
        assert sender.sent == [
            ("auth", "hi", "abcdefgh"),
            (None, None, "hi"),
            ("deploys", None, "hi"),
            (None, "/work", "hi"),
        ]
        assert "zmqbus list" in refused(
            ask("POST", "/api/send", {"scope": "session", "to": "nobody", "text": "hi"}), 400, "unknown_peer"
        )

    @pytest.mark.parametrize(
        "body",
        [
            {},
            {"scope": "session", "to": "", "text": "hi"},
            {"scope": "session", "to": "auth", "text": ""},
            {"scope": "session", "to": "auth", "text": "hi", "replyTo": "no id"},
            {"scope": "session", "to": ["auth"], "text": "hi"},
            {"scope": "session", "to": "auth", "text": {"x": 1}},
            {"scope": "world", "to": "auth", "text": "hi"},
            {"scope": None, "to": "auth", "text": "hi"},
        ],
    )
    def test_invalid_message_is_refused(self, ask: AppClient, sender: FakeSender, body: Any) -> None:
        refused(ask("POST", "/api/send", body), 400, "invalid_payload")
        assert sender.sent == []

    @pytest.mark.parametrize("body", [b"", b"{", b"[]", b"3", b"\xff", b"[" * 50_000, b'{"text": NaN'])
    def test_request_body_must_be_a_json_object(self, ask: AppClient, body: bytes) -> None:
        for path in ("/api/send", "/api/search", "/api/disconnect", "/api/broker", ENTER):
            refused(ask("POST", path, body), 400, "invalid_payload")

    def test_oversized_body_is_not_read_to_its_end(self, ask: AppClient, sender: FakeSender) -> None:
        # Without a length, like a chunked body: counted while it is read.
        large = json.dumps({"text": "x" * MAX_SMALL_BYTES, "mode": "words"}).encode()
        refused(ask("POST", "/api/search", large, {"content-length": None}), 413, "text_too_long")
        huge = b'{"scope":"all","text":"' + b"x" * MAX_POST_BYTES + b'"}'
        refused(ask("POST", "/api/send", huge, {"content-length": None}), 413, "text_too_long")
        refused(ask("POST", "/api/send", huge), 413, "too_large")
        assert sender.sent == []

    def test_session_without_a_listener_cannot_be_disconnected(self, ask: AppClient, ended: list[SessionState]) -> None:
        for body in ({"session": "123e4567"}, {}, {"session": "../../etc"}):
            assert "listener" in refused(ask("POST", "/api/disconnect", body), 400, "not_connected")
        assert ended == []

    def test_unknown_paths_and_methods(self, ask: AppClient) -> None:
        for method, path in (("GET", "/nothing"), ("GET", "/api/nothing"), ("POST", "/api/nothing")):
            refused(ask(method, path), 404, "not_found")
        for method, path in (("POST", "/"), ("GET", "/api/send"), ("POST", "/api/messages")):
            refused(ask(method, path), 405, "method")

    def test_bug_is_reported_in_the_terminal_and_not_on_the_page(
        self, ask: AppClient, app: Console, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        def fail(*_: Any) -> None:
            raise ZeroDivisionError("secret detail")

        monkeypatch.setattr(app.threads, "thread", fail)
        answer = ask("GET", "/api/thread/abcdefgh")
        assert "secret" not in refused(answer, 500, "internal")
        printed = capfd.readouterr().err
        assert "ZeroDivisionError: secret detail" in printed and "Traceback" not in printed

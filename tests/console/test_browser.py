"""The page in a real browser with real listeners."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.console.conftest import PATIENCE_S, ConsoleProcess, put, wait_count, wait_true
from tests.real.conftest import Bus, wait_until
from tests.records import RECORD, ids
from zmqbus.process import process_of
from zmqbus.session.agent_state import report
from zmqbus.session.owner_files import files_of

pytestmark = pytest.mark.slow

#: Browser messages about error responses and broken connections, which the page reports itself.
BROKEN = ("Failed to load resource", "net::ERR")
#: Limit of elements on the page, however much there is to show.
MAX_ELEMENTS = 2_500


def row(page: Any, text: str) -> Any:
    return page.locator(f"#feed .message:has-text({json.dumps(text)})").first


def session(page: Any, name: str) -> Any:
    return page.locator(f"#sessions .session:has(.name:text-is('{name}'))")


def count_elements(page: Any) -> int:
    count: int = page.evaluate("document.querySelectorAll('*').length")
    return count


def scroll_to_end(page: Any) -> int:
    """Scrolls to the end of the loaded messages; returns their height in pixels."""
    page.keyboard.press("End")
    height: int = page.evaluate("document.querySelector('#feed .sizer').offsetHeight")
    return height


def overflows(page: Any) -> bool:
    """Whether the page is wider than the screen."""
    found: bool = page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")
    return found


@pytest.fixture
def faulty(browser_errors: Any) -> None:
    """Accepts browser errors about failed requests."""
    browser_errors.expected = BROKEN


def test_a_working_day(bus: Bus, open_page: Any, console: ConsoleProcess, faulty: None) -> None:
    page = open_page()
    page.wait_for_selector("#sessions-state:has-text('No broker')")
    page.wait_for_selector("#feed-state:has-text('No messages yet')")
    # Listeners are listed.
    auth = bus.listener("auth", label="Auth service")
    pay = bus.listener("pay")
    session(page, "auth").wait_for()
    session(page, "pay").wait_for()
    page.wait_for_selector("#broker[data-state=up]")
    page.locator("#sessions .session:has-text('Auth service')").first.wait_for()
    # A message between them appears in the list and in the graph.
    sent = bus.send("--to", "pay", "--text", "question: which currency?", owner=auth)
    assert sent.returncode == 0
    row(page, "question: which currency?").wait_for()
    page.locator(f".node[data-id='{auth.session_id}']").wait_for()
    page.locator("path.edge").first.wait_for(state="attached")
    # A message from the page reaches the listener, and its answer appears on the page.
    page.locator("#compose-open").click()
    page.locator("#compose-to").fill("auth")
    page.locator("#compose-text").fill("please run the tests")
    page.locator("#compose-send").click()
    # Queued when the listener takes longer than the broker's second.
    page.locator(".toast:text-matches('^(Delivered to|Queued for) auth')").wait_for()
    got = auth.wait_message("please run the tests")
    assert got["name"] == "console"
    answer = bus.send("--to", "console", "--reply-to", str(got["id"]), "--text", "done: all green", owner=auth)
    assert answer.stdout.startswith(("delivered ", "queued "))
    row(page, "done: all green").click()
    page.locator(".thread-row:has-text('please run the tests')").wait_for()
    wait_count(page.locator(".thread-row"), 2)
    # A reply from the page names the message that it answers.
    page.keyboard.press("r")
    page.locator("#compose-text").fill("answer: thanks")
    page.keyboard.press("Control+Enter")
    assert auth.wait_message("answer: thanks")["re"] is not None
    # The open thread shows the reply.
    page.locator(".thread-row:has-text('answer: thanks')").wait_for()
    # Broadcast.
    page.locator("#compose-open").click()
    page.locator("#compose-scope label:has-text('Everyone')").click()
    page.locator("#compose-text").fill("freeze at five")
    page.locator("#compose-send:has-text('2 sessions')").click()
    page.locator(".toast:text-matches('2 delivered|1 delivered, 1 queued|2 queued')").wait_for()
    assert auth.wait_message("freeze at five")["to"] == pay.wait_message("freeze at five")["to"] == "all"
    # An unknown receiver: the dialog shows the error and keeps the text.
    page.locator("#compose-open").click()
    page.locator("#compose-scope label:has-text('One session')").click()
    page.locator("#compose-to").fill("nobody-here")
    page.locator("#compose-text").fill("hello?")
    page.locator("#compose-send").click()
    page.locator("#compose-wrong:has-text('nobody-here')").wait_for()
    assert page.locator("#compose-text").input_value() == "hello?"
    page.keyboard.press("Escape")
    # Disconnect asks for confirmation.
    session(page, "pay").click()
    page.locator("#disconnect").click()
    page.locator("#confirm-no").click()
    assert pay.status is None
    page.locator("#disconnect").click()
    page.locator("#confirm-yes").click()
    assert pay.wait_exit(PATIENCE_S) == 0
    page.wait_for_selector("#detail:has-text('It has left the bus')")
    session(page, "pay").wait_for(state="detached")
    # A reload stays signed in.
    page.reload()
    row(page, "freeze at five").wait_for()
    session(page, "auth").wait_for()
    assert "link=" not in page.url
    # Another tab gets the credentials of the first.
    tab = page.context.new_page()
    tab.goto(f"http://{console.authority}/")
    row(tab, "freeze at five").wait_for()


def test_blocked_agents_come_first_with_what_they_wait_for(bus: Bus, data_dir: Path, open_page: Any) -> None:
    web, auth = bus.listener("web"), bus.listener("auth")
    page = open_page(dark=True)
    narrow = open_page(width=400, height=800)
    narrow.locator(".tabs button:has-text('Sessions')").click()
    names = page.locator("#sessions .session .name")
    wait_count(names, 2)

    def say(listener: Any, state: str, detail: str = "") -> None:
        assert report(files_of(str(data_dir), process_of(listener.owner.pid)), state, detail)

    say(auth, "working")
    say(web, "blocked", "permission to use Bash: \u202erm -rf build " + "x" * 150)
    for one in (page, narrow):
        one.wait_for_selector("#sessions .group.alarm:has-text('Waiting for you')")
        waits = session(one, "web").locator(".waits-for")
        waits.wait_for()
        name = session(one, "web").locator(".name")
        assert name.evaluate("name => name.scrollWidth <= name.clientWidth"), "the name is not cut for the detail"
        assert waits.inner_text().startswith("permission to use Bash: rm -rf build x")
        session(one, "auth").locator(".tag.agent:text-is('working')").wait_for()
        wait_true(one, "document.querySelector('#sessions-count').textContent === '2 live · 1 blocked'")
        assert not overflows(one)
    session(page, "web").click()
    page.wait_for_selector("#detail dd:has-text('blocked'):has-text(': permission to use Bash')")
    say(web, "idle")
    page.wait_for_selector("#sessions .group.alarm", state="detached")
    session(page, "web").locator(".tag.agent:text-is('idle')").wait_for()


def test_search_by_words_and_regular_expression(bus: Bus, data_dir: Path, open_page: Any, faulty: None) -> None:
    every = ids(150)
    put(data_dir, *(RECORD._replace(msg_id=one, body=f"number {n} needle".encode()) for n, one in enumerate(every)))
    put(data_dir, RECORD._replace(msg_id="haystack", body=b"hay and nothing else"))
    page = open_page()
    page.keyboard.press("/")
    page.keyboard.type("needle")
    page.wait_for_selector("#feed-title:has-text('needle')")
    page.wait_for_selector("#feed-sub:has-text('100 messages, back to')")
    row(page, "hay and").wait_for(state="detached")
    page.keyboard.press("Enter")
    page.keyboard.press("End")
    page.wait_for_selector("#feed-sub:has-text('150 messages in the whole history')")
    page.keyboard.press("End")
    row(page, "number 0 needle").wait_for()
    page.keyboard.press("Escape")
    row(page, "hay and").wait_for()
    page.locator("#regex").click()
    page.locator("#search").fill("number (7|8) ")
    page.keyboard.press("Enter")
    page.wait_for_selector("#feed-sub:has-text('2 messages in the whole history')")
    page.locator("#search").fill("number (")
    page.keyboard.press("Enter")
    page.wait_for_selector("#feed-state:has-text('invalid regular expression')")
    page.locator("#search").fill("zebra")
    page.keyboard.press("Enter")
    page.wait_for_selector("#feed-state:has-text('Nothing found')")


def test_broker_ends_hangs_and_comes_back(bus: Bus, open_page: Any) -> None:
    page = open_page()
    page.locator("#start-broker").click()
    page.wait_for_selector("#broker[data-state=up]")
    page.wait_for_selector("#banner", state="hidden")
    page.wait_for_selector("#sessions-state:has-text('Nobody is on the bus yet')")
    auth = bus.listener("auth")
    session(page, "auth").wait_for()
    # Killed: sessions start another broker, and the page uses it.
    first = bus.signal_broker(signal.SIGKILL)
    wait_until(lambda: bus.broker_pid() not in (None, first), "another broker", PATIENCE_S)
    assert bus.deliver("auth", "after the death")
    row(page, "after the death").wait_for()
    page.wait_for_selector("#broker[data-state=up]")
    # Hanging: the page says so and keeps the last state.
    bus.signal_broker(signal.SIGSTOP)
    page.wait_for_selector("#banner:has-text('does not answer')")
    session(page, "auth").wait_for()
    bus.signal_broker(signal.SIGCONT)
    page.wait_for_selector("#broker[data-state=up]")
    page.wait_for_selector("#banner", state="hidden")
    # Stopped, then started by a session.
    auth.stop()
    assert bus.zmqbus("broker", "--stop").returncode == 0
    page.wait_for_selector("#banner:has-text('No broker is running')")
    row(page, "after the death").wait_for()  # the history needs no broker
    bus.listener("later")
    session(page, "later").wait_for()
    page.wait_for_selector("#banner", state="hidden")


def test_console_is_killed_and_restarted(
    bus: Bus, open_page: Any, console: ConsoleProcess, start_console: Any, faulty: None
) -> None:
    page = open_page()
    console.process.kill()
    page.wait_for_selector("#banner:has-text('out of reach')")
    page.wait_for_selector("#broker:has-text('No connection')")
    other = start_console("--port", str(console.port))
    # The new console does not know this browser: the login page says what to do, and a new link signs in.
    page.wait_for_selector("#login:has-text('zmqbus console --link')")
    page.goto(other.link)
    page.wait_for_selector("html[data-ready]")
    page.wait_for_selector("#login", state="hidden")


def login_title(page: Any) -> str:
    page.wait_for_selector("#login-title:not(:empty)")
    text: str = page.locator("#login-title").inner_text()
    return text


def test_login_page_says_why_a_link_was_refused(open_page: Any, console: ConsoleProcess, faulty: None) -> None:
    link = console.new_link()
    page = open_page(url=link)
    page.wait_for_selector("html[data-ready]")
    assert page.url == f"http://{console.authority}/", "the token is removed from the address"
    # The used link in a signed-in tab works; a link pasted into the tab reloads the page.
    page.goto("about:blank")
    page.goto(link)
    page.wait_for_selector("html[data-ready]")
    with page.expect_navigation():
        page.evaluate("link => { location.href = link; }", console.new_link())
    page.wait_for_selector("html[data-ready]")
    for url, title in (
        (link, "This link has been used"),
        (link[:-3], "This link is not from this console"),
        (f"http://{console.authority}/#link=", "This link is not from this console"),
        (f"http://{console.authority}/", "This page needs a link"),
        (f"http://127.0.0.1:{console.port}/", "This page needs a link"),
    ):
        assert login_title(open_page(url=url)) == title
    anonymous = open_page(url=f"http://{console.authority}/")
    login_title(anonymous)
    assert anonymous.locator("#login-help").is_visible()
    anonymous.keyboard.press("c")
    assert anonymous.locator("#compose").is_hidden()
    anonymous.keyboard.press("Tab")
    assert anonymous.evaluate("!document.activeElement.closest('.desk, .top')"), (
        "nothing behind the login page has the focus"
    )


def test_link_opened_by_a_local_file(bus: Bus, open_page: Any, console: ConsoleProcess, tmp_path: Path) -> None:
    """As `--open` does where `peers` does not work."""
    opener = tmp_path / "open.html"
    opener.write_text(f'<meta http-equiv="refresh" content="0; url={console.new_link()}">')
    page = open_page(url=f"file://{opener}")
    page.wait_for_selector("html[data-ready]")
    assert page.url == f"http://{console.authority}/"


@pytest.fixture
def conversation(bus: Bus, open_page: Any, browser_errors: Any) -> tuple[Any, Any, Any]:
    """A page with a message of auth and one of pay, and both listeners."""
    auth, pay = bus.listener("auth"), bus.listener("pay")
    assert bus.send("--to", "pay", "--text", "question: from auth?", owner=auth).returncode == 0
    assert bus.send("--to", "auth", "--text", "question: from pay?", owner=pay).returncode == 0
    page = open_page()
    for name in ("auth", "pay"):
        session(page, name).wait_for()
        row(page, f"question: from {name}?").wait_for()
    return page, auth, pay


def answer(page: Any, name: str) -> Any:
    """Opens the dialog that answers this session's message; returns its text field."""
    text = f"question: from {name}?"

    def opened() -> bool:
        row(page, text).click()  # a new message may move another row under the pointer
        return bool(page.locator(f"#detail .body:has-text('{text}')").count())

    wait_until(opened, f"the message of {name} is opened", PATIENCE_S)
    page.keyboard.press("r")
    page.wait_for_selector("#compose[open]")
    return page.locator("#compose-text")


class HeldRequests:
    """Holds back requests to a path until they are released."""

    def __init__(self, page: Any, path: str) -> None:
        self.routes: list[Any] = []
        page.route(f"**{path}", lambda route: self.routes.append(route))

    def wait(self, page: Any, count: int) -> None:
        end_s = time.monotonic() + PATIENCE_S
        while len(self.routes) < count:
            assert time.monotonic() < end_s
            page.wait_for_timeout(10)  # lets the driver deliver them


class ManySessions:
    """Many sessions, in one process."""

    def __init__(self, count: int, port: int) -> None:
        code = (
            "import sys, zmqbus\n"
            f"crowd = [zmqbus.connect(f'crowd-{{n:03}}') for n in range({count})]\n"
            "print('here', flush=True)\n"
            "sys.stdin.read()\n"
            "for one in crowd: one.close()\n"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "INTER_SESSION_PORT": str(port)},
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"here\n"

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(PATIENCE_S)
        self._process.stdout.close()


class TestComposing:
    def test_draft_stays_with_its_receiver(self, conversation: tuple[Any, Any, Any]) -> None:
        page, auth, pay = conversation
        answer(page, "auth").fill("the password is hunter2")
        page.keyboard.press("Escape")
        assert answer(page, "pay").input_value() == ""
        page.locator("#compose-text").fill("answer: hello pay")
        page.keyboard.press("Control+Enter")
        pay.wait_message("answer: hello pay")
        page.wait_for_selector("#compose[open]", state="detached")
        session(page, "console").wait_for()  # its row moves the others
        # The draft comes back in its own dialog only.
        session(page, "pay").click()
        page.locator("#detail button:has-text('Write to it')").click()
        assert page.locator("#compose-text").input_value() == ""
        page.locator("#compose button[data-close]").first.click()
        page.keyboard.press("c")
        assert page.locator("#compose-text").input_value() == page.locator("#compose-to").input_value() == ""
        page.keyboard.press("Escape")
        assert answer(page, "auth").input_value() == "the password is hunter2"
        page.keyboard.press("Control+Enter")
        auth.wait_message("the password is hunter2")
        page.wait_for_selector("#compose[open]", state="detached")
        assert not any("hunter2" in line for line in pay.lines)
        assert answer(page, "auth").input_value() == "", "a sent text is no longer a draft"

    def test_new_message_has_no_receiver_yet(self, conversation: tuple[Any, Any, Any]) -> None:
        page, auth, pay = conversation
        page.keyboard.press("c")
        page.locator("#compose-scope label:has-text('Everyone')").click()
        page.locator("#compose-text").fill("to everyone")
        page.keyboard.press("Control+Enter")
        pay.wait_message("to everyone")
        page.wait_for_selector("#compose[open]", state="detached")
        page.keyboard.press("c")
        assert page.locator("input[name=scope]:checked").get_attribute("value") == "session"
        # A cancelled message comes back with its receiver.
        page.locator("#compose-to").fill("auth")
        page.locator("#compose-text").fill("half a text")
        page.keyboard.press("Escape")
        page.keyboard.press("c")
        assert page.locator("#compose-to").input_value() == "auth"
        assert page.locator("#compose-text").input_value() == "half a text"
        assert auth.status is None

    def test_pending_send_does_not_change_the_next_dialog(
        self, conversation: tuple[Any, Any, Any], faulty: None
    ) -> None:
        page, auth, _ = conversation
        held = HeldRequests(page, "/api/send")
        answer(page, "auth").fill("answer: slow one")
        page.keyboard.press("Control+Enter")
        held.wait(page, 1)
        page.keyboard.press("Escape")
        answer(page, "pay").fill("answer: in the middle of it")
        held.routes[0].continue_()
        auth.wait_message("answer: slow one")
        page.locator(".toast:has-text('auth')").wait_for()
        assert page.locator("#compose[open]").count() == 1
        assert page.locator("#compose-text").input_value() == "answer: in the middle of it"
        # A failed send is reported beside the open dialog, and its text is kept as a draft.
        page.keyboard.press("Control+Enter")
        held.wait(page, 2)
        page.keyboard.press("Escape")
        answer(page, "auth").fill("another")
        held.routes[1].abort()
        page.locator(".toast.wrong:has-text('Not sent to pay')").wait_for()
        assert page.locator("#compose-wrong").is_hidden()
        assert page.locator("#compose-text").input_value() == "another"
        page.keyboard.press("Escape")
        assert answer(page, "pay").input_value() == "answer: in the middle of it"

    def test_answer_follows_the_session_not_its_name(self, bus: Bus, conversation: tuple[Any, Any, Any]) -> None:
        page, auth, _ = conversation
        answer(page, "auth").fill("answer: for the first auth")
        assert bus.zmqbus("rename", "author", owner=auth).returncode == 0
        other = bus.listener("auth")
        page.locator(f".node[data-id='{other.session_id}']").wait_for(state="attached")
        page.keyboard.press("Control+Enter")
        auth.wait_message("answer: for the first auth")
        assert not any("first auth" in line for line in other.lines)

    def test_answer_to_an_ended_script_is_not_sent_by_name_prefix(self, bus: Bus, open_page: Any, faulty: None) -> None:
        auth, autopilot = bus.listener("auth"), bus.listener("autopilot")
        bus.burst("auth", ["question: from auto?"], sender="auto")
        page = open_page()
        session(page, "autopilot").wait_for()
        answer(page, "auto").fill("answer: for the script")
        assert page.locator("#compose-to").input_value() == "auto"
        page.keyboard.press("Control+Enter")
        page.locator("#compose-wrong:visible").wait_for()
        bus.deliver("autopilot", "the next thing")
        autopilot.wait_message("the next thing")
        assert not any("for the script" in line for line in [*autopilot.lines, *auth.lines])

    def test_confirmation_acts_on_its_own_session(self, conversation: tuple[Any, Any, Any], faulty: None) -> None:
        page, auth, pay = conversation
        held = HeldRequests(page, "/api/disconnect")
        session(page, "auth").click()
        page.locator("#disconnect").click()
        text = page.locator("#confirm-text").inner_text()
        assert "refused until it connects again" in text and "wait until" not in text
        page.locator("#confirm-yes").click()
        held.wait(page, 1)
        page.keyboard.press("Escape")
        session(page, "pay").click()
        page.locator("#detail h2:has-text('pay')").wait_for()
        page.locator("#disconnect").click()
        held.routes[0].continue_()
        assert auth.wait_exit(PATIENCE_S) == 0
        page.locator(".toast:has-text('auth is disconnected')").wait_for()
        assert page.locator("#confirm-title").inner_text() == "Disconnect pay?"
        assert page.locator("#confirm-yes").is_enabled() and pay.status is None
        page.locator("#confirm-no").click()

    def test_messages_after_a_disconnect_are_refused(self, bus: Bus, conversation: tuple[Any, Any, Any]) -> None:
        page, auth, pay = conversation
        pay_id = pay.session_id
        session(page, "pay").click()
        page.locator("#disconnect").click()
        page.locator("#confirm-yes").click()
        assert pay.wait_exit(PATIENCE_S) == 0
        done = bus.send("--to", pay_id, "--text", "too late", owner=auth)
        assert done.returncode == 1 and "unknown_peer" in done.stderr


class TestLists:
    def test_cursor_stays_on_its_item(self, bus: Bus, open_page: Any) -> None:
        pay = bus.listener("pay")
        page = open_page()
        session(page, "pay").wait_for()
        page.keyboard.press("1")
        page.locator("#sessions .session.active:has-text('pay')").wait_for()
        bus.listener("auth")  # listed above pay
        session(page, "auth").wait_for()
        page.locator("#sessions .session.active:has-text('pay')").wait_for()
        page.keyboard.press("Enter")
        page.locator("#detail h2:has-text('pay')").wait_for()
        assert pay.status is None

    def test_typed_search_does_not_replace_a_later_choice(
        self,
        conversation: tuple[Any, Any, Any],
    ) -> None:
        page, _, _ = conversation
        session(page, "auth").click()
        page.locator("#detail h2:has-text('auth')").wait_for()
        page.evaluate(
            """() => {
          const search = document.querySelector("#search");
          search.value = "nothing like it";
          search.dispatchEvent(new Event("input"));
          const buttons = [...document.querySelectorAll("#detail .actions button")];
          buttons.find((one) => one.textContent === "Its messages").click();
        }"""
        )
        page.wait_for_selector("#feed-title:has-text('Messages of auth')")
        page.evaluate("new Promise((done) => setTimeout(done, 500))")  # longer than a search waits for more typing
        assert page.locator("#feed-title").inner_text() == "Messages of auth"
        assert page.locator("#search").input_value() == ""

    def test_log_rotation(self, data_dir: Path, open_page: Any) -> None:
        put(data_dir, RECORD._replace(msg_id="before01", body=b"before"))
        page = open_page()
        row(page, "before").wait_for()
        put(data_dir, RECORD._replace(msg_id="lastone1", body=b"the last of the old"))
        os.rename(data_dir / "messages.log", data_dir / "messages.log.1")
        put(data_dir, RECORD._replace(msg_id="firstone", body=b"the first of the new"), segment=2)
        row(page, "the first of the new").wait_for()
        row(page, "the last of the old").click()
        page.wait_for_selector(".body:has-text('the last of the old')")
        wait_count(page.locator("#feed .message"), 3)

    def test_gap_after_a_flood_can_be_filled(self, data_dir: Path, open_page: Any) -> None:
        put(data_dir, RECORD._replace(msg_id="before01", body=b"before"))
        page = open_page()
        row(page, "before").wait_for()
        every = ids(1_200)
        put(data_dir, *(RECORD._replace(msg_id=one, body=f"{one} {'x' * 200}".encode()) for one in every))
        row(page, every[-1]).wait_for()
        assert count_elements(page) < MAX_ELEMENTS
        # Each request fetches a page of the skipped messages, until none is missing.
        page.locator("#feed").focus()
        page.keyboard.press("Home")
        page.wait_for_selector("#feed-sub:has-text('gap')")
        subtitle = page.locator("#feed-sub")
        end_s = time.monotonic() + PATIENCE_S
        while "gap" in subtitle.inner_text():
            assert time.monotonic() < end_s, subtitle.inner_text()
            page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
            gap = page.locator("#feed .gap:not(:has-text('Loading'))").last
            if gap.count():
                gap.click()
            elif row(page, "before").count():
                page.keyboard.press("Home")  # a gap was passed while it was fetched
            else:
                page.keyboard.press("PageDown")
        page.wait_for_selector("#feed-sub:has-text('1,201 messages')")

    def test_200_sessions_and_100_000_messages(
        self, settings: Any, data_dir: Path, console: ConsoleProcess, open_page: Any, bus: Bus
    ) -> None:
        """The page has only as many elements as fit the screen, and stays responsive."""
        every = ids(100_000)
        put(data_dir, *(RECORD._replace(msg_id=one, body=f"message {one}".encode()) for one in every))
        sessions = ManySessions(200, bus.port)
        try:
            page = open_page()
            page.wait_for_selector("#sessions-count:has-text('200 live')")
            row(page, every[-1]).wait_for()
            assert count_elements(page) < MAX_ELEMENTS
            page.locator("#session-filter").fill("crowd-017")
            session(page, "crowd-017").wait_for()
            wait_count(page.locator("#sessions .session"), 1)
            page.locator("#session-filter").fill("")
            # Scrolling down loads further pages of the history.
            page.locator("#feed").focus()
            wait_until(lambda: scroll_to_end(page) > 600 * 30, "pages", PATIENCE_S)
            assert count_elements(page) < MAX_ELEMENTS
            # A new message does not move the visible part.
            top = page.locator("#feed").evaluate("element => element.scrollTop")
            put(data_dir, RECORD._replace(msg_id="brandnew", body=b"brand new"))
            page.locator("#newer:has-text('1 new message')").wait_for()
            wait_true(page, f"document.querySelector('#feed').scrollTop > {top}")
            page.locator("#newer").click()
            row(page, "brand new").wait_for()
            # Search finds an old message.
            page.locator("#search").fill(every[7])
            row(page, every[7]).click()
            page.wait_for_selector(f".body:has-text('{every[7]}')")
        finally:
            sessions.close()


class TestAccessibility:
    def test_keyboard_only_use(self, bus: Bus, open_page: Any) -> None:
        auth = bus.listener("auth")
        bus.deliver("auth", "first")
        bus.deliver("auth", "second")
        page = open_page()
        session(page, "auth").wait_for()
        row(page, "second").wait_for()
        page.keyboard.press("?")
        page.wait_for_selector("#help[open] dd:has-text('New message')")
        page.keyboard.press("Escape")
        page.wait_for_selector("#help[open]", state="detached")
        # Tab first reaches the skip link.
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        page.keyboard.press("j")
        page.keyboard.press("j")
        wait_true(
            page,
            """document.querySelector("#feed .row.active")?.id
        === document.querySelector("#feed").getAttribute("aria-activedescendant")""",
        )
        page.keyboard.press("Enter")
        page.wait_for_selector(".body:has-text('first')")
        wait_count(page.locator("#feed [aria-selected=true]"), 1)
        page.keyboard.press("Escape")
        page.wait_for_selector("#detail:has-text('Nothing opened')")
        page.keyboard.press("1")
        page.keyboard.press("Enter")
        page.wait_for_selector("#detail h2:has-text('auth')")
        # Tab leads from the session's detail to its button for a message.
        page.keyboard.press("3")
        for _ in range(4):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.textContent") == "Write to it":
                break
        # The focus is visible.
        wait_true(page, "getComputedStyle(document.activeElement).outlineStyle == 'solid'")
        page.keyboard.press("Enter")
        page.wait_for_selector("#compose[open]")
        page.keyboard.type("written by keyboard")
        page.keyboard.press("Control+Enter")
        auth.wait_message("written by keyboard")
        page.wait_for_selector("#compose[open]", state="detached")
        page.keyboard.press("t")
        page.keyboard.press("t")
        wait_true(page, "getComputedStyle(document.documentElement).colorScheme == 'dark'")
        page.reload()
        page.wait_for_selector("html[data-ready][data-theme=dark]")

    def test_screen_reader_support(self, bus: Bus, open_page: Any) -> None:
        bus.listener("auth", label="Auth service")
        page = open_page()
        session(page, "auth").wait_for()
        for role in ("banner", "main", "search", "complementary"):
            wait_count(page.get_by_role(role), 1)
        wait_count(page.get_by_role("listbox", name="Sessions"), 1)
        page.locator("#sessions .session[aria-label*='Auth service']").wait_for()
        bus.deliver("auth", "news for everybody")
        page.locator("#live:has-text('news for everybody')").wait_for(state="attached")
        unnamed = page.evaluate(
            """() => [...document.querySelectorAll("button, input, textarea, [role=img], dialog")]
          .filter((element) => element.checkVisibility() && !element.closest("label") && !element.textContent.trim()
            && !element.getAttribute("aria-label") && !element.getAttribute("aria-labelledby"))
          .map((element) => element.outerHTML.slice(0, 80))"""
        )
        assert unnamed == []

    @pytest.mark.parametrize("width", [400, 1600])
    @pytest.mark.parametrize("dark", [False, True])
    def test_layout_fits_the_screen(self, bus: Bus, data_dir: Path, open_page: Any, width: int, dark: bool) -> None:
        long = "w" * 40
        bus.listener(long, label="W" * 60)
        bus.deliver(long, "M" * 3_000 + "\n" + "many words " * 300)
        page = open_page(width=width, height=800, dark=dark)
        narrow = width < 760

        def show(name: str) -> None:
            if narrow:
                page.locator(f".tabs button[data-view={name}]").click()

        assert not overflows(page)
        show("messages")
        row(page, "MMMM").click()
        page.wait_for_selector(".body:not(.loading)")
        assert not overflows(page)
        show("sessions")
        session(page, long).click()
        page.wait_for_selector(f"#detail h2:has-text('{long}')")
        assert not overflows(page)
        detail = page.locator("#detail").evaluate("element => element.scrollWidth <= element.clientWidth")
        assert detail
        page.keyboard.press("c")
        page.wait_for_selector("#compose[open]")
        box = page.locator("#compose").bounding_box()
        assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= width
        page.keyboard.press("Escape")
        # The page uses the system's colour scheme.
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        values = [int(part) for part in ground.removeprefix("rgb(").removesuffix(")").split(",")]
        assert (max(values) < 60) if dark else (min(values) > 200)

    def test_reduced_motion(self, bus: Bus, open_page: Any) -> None:
        page = open_page(reduced_motion="reduce")
        auth, pay = bus.listener("auth"), bus.listener("pay")
        page.locator(f".node[data-id='{pay.session_id}']").wait_for()
        page.evaluate(
            """() => { window.moved = 0;
        new MutationObserver((all) => all.forEach((one) => window.moved += one.addedNodes.length))
          .observe(document.querySelector("g.dots"), { childList: true }); }"""
        )
        bus.send("--to", "pay", "--text", "no motion", owner=auth)
        row(page, "no motion").wait_for()
        page.locator("path.edge").first.wait_for(state="attached")
        assert page.evaluate("window.moved") == 0

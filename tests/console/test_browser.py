"""The page in a real browser, with real listeners: what a person does with it, and what happens around them."""

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

pytestmark = pytest.mark.slow

#: What the browser itself says where an answer is an error or a connection breaks; the page tells it in its own words.
BROKEN = ("Failed to load resource", "net::ERR")
#: Elements on the page, whatever there is to show.
MAX_ELEMENTS = 2_500


def row(page: Any, text: str) -> Any:
    return page.locator(f"#feed .message:has-text({json.dumps(text)})").first


def session(page: Any, name: str) -> Any:
    return page.locator(f"#sessions .session:has(.name:text-is('{name}'))")


def count_elements(page: Any) -> int:
    count: int = page.evaluate("document.querySelectorAll('*').length")
    return count


def goes_on(page: Any) -> int:
    """Goes to the end of what is there; how high that is, in pixels."""
    page.keyboard.press("End")
    height: int = page.evaluate("document.querySelector('#feed .sizer').offsetHeight")
    return height


def is_wide(page: Any) -> bool:
    """Whether anything sticks out to the side."""
    found: bool = page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")
    return found


@pytest.fixture
def faulty(seen: Any) -> None:
    """The test breaks something, which the browser may mention."""
    seen.expected = BROKEN


def test_a_person_at_work(bus: Bus, open_page: Any, console: ConsoleProcess, faulty: None) -> None:
    page = open_page()
    page.wait_for_selector("#sessions-state:has-text('No broker')")
    page.wait_for_selector("#feed-state:has-text('No messages yet')")
    # Listeners appear.
    auth = bus.listener("auth", label="Auth service")
    pay = bus.listener("pay")
    session(page, "auth").wait_for()
    session(page, "pay").wait_for()
    page.wait_for_selector("#broker[data-state=up]")
    page.locator("#sessions .session:has-text('Auth service')").first.wait_for()
    # A message between them shows in the list and in the picture.
    sent = bus.send("--to", "pay", "--text", "question: which currency?", owner=auth)
    assert sent.returncode == 0
    row(page, "question: which currency?").wait_for()
    page.locator(f".node[data-id='{auth.session_id}']").wait_for()
    page.locator("path.edge").first.wait_for(state="attached")
    # Sent from the page, it is read at the listener, and the answer is seen on the page.
    page.locator("#compose-open").click()
    page.locator("#compose-to").fill("auth")
    page.locator("#compose-text").fill("please run the tests")
    page.locator("#compose-send").click()
    # Queued, if the listener takes longer than the broker's second to take it.
    page.locator(".toast:text-matches('^(Delivered to|Queued for) auth')").wait_for()
    got = auth.wait_message("please run the tests")
    assert got["name"] == "console"
    answer = bus.send("--to", "console", "--reply-to", str(got["id"]), "--text", "done: all green", owner=auth)
    assert answer.stdout.startswith(("delivered ", "queued "))
    row(page, "done: all green").click()
    page.locator(".thread-row:has-text('please run the tests')").wait_for()
    wait_count(page.locator(".thread-row"), 2)
    # A reply from the page names what it answers.
    page.keyboard.press("r")
    page.locator("#compose-text").fill("answer: thanks")
    page.keyboard.press("Control+Enter")
    assert auth.wait_message("answer: thanks")["re"] is not None
    # The thread that is open grows by it.
    page.locator(".thread-row:has-text('answer: thanks')").wait_for()
    # To everyone.
    page.locator("#compose-open").click()
    page.locator("#compose-scope label:has-text('Everyone')").click()
    page.locator("#compose-text").fill("freeze at five")
    page.locator("#compose-send:has-text('2 sessions')").click()
    page.locator(".toast:text-matches('2 delivered|1 delivered, 1 queued|2 queued')").wait_for()
    assert auth.wait_message("freeze at five")["to"] == pay.wait_message("freeze at five")["to"] == "all"
    # To nobody: told where one writes, and nothing that was written is lost.
    page.locator("#compose-open").click()
    page.locator("#compose-scope label:has-text('One session')").click()
    page.locator("#compose-to").fill("nobody-here")
    page.locator("#compose-text").fill("hello?")
    page.locator("#compose-send").click()
    page.locator("#compose-wrong:has-text('nobody-here')").wait_for()
    assert page.locator("#compose-text").input_value() == "hello?"
    page.keyboard.press("Escape")
    # Disconnecting asks first.
    session(page, "pay").click()
    page.locator("#disconnect").click()
    page.locator("#confirm-no").click()
    assert pay.status is None
    page.locator("#disconnect").click()
    page.locator("#confirm-yes").click()
    assert pay.wait_exit(PATIENCE_S) == 0
    page.wait_for_selector("#detail:has-text('It has left the bus')")
    session(page, "pay").wait_for(state="detached")
    # A reload is let in again, and shows the same.
    page.reload()
    row(page, "freeze at five").wait_for()
    session(page, "auth").wait_for()
    assert "token" not in page.url
    # So does another tab; a browser that was not let in is told what to do.
    tab = page.context.new_page()
    tab.goto(f"http://127.0.0.1:{console.port}/")
    row(tab, "freeze at five").wait_for()


def test_search(bus: Bus, data_dir: Path, open_page: Any, faulty: None) -> None:
    every = ids(150)
    put(data_dir, *(RECORD._replace(msg_id=one, body=f"number {n} needle".encode()) for n, one in enumerate(every)))
    put(data_dir, RECORD._replace(msg_id="haystack", body=b"hay and nothing else"))
    page = open_page()
    page.keyboard.press("/")
    page.keyboard.type("needle")
    page.wait_for_selector("#flow-title:has-text('needle')")
    page.wait_for_selector("#flow-sub:has-text('100 messages, back to')")
    row(page, "hay and").wait_for(state="detached")
    page.keyboard.press("Enter")
    page.keyboard.press("End")
    page.wait_for_selector("#flow-sub:has-text('150 messages in the whole history')")
    page.keyboard.press("End")
    row(page, "number 0 needle").wait_for()
    page.keyboard.press("Escape")
    row(page, "hay and").wait_for()
    page.locator("#regex").click()
    page.locator("#search").fill("number (7|8) ")
    page.keyboard.press("Enter")
    page.wait_for_selector("#flow-sub:has-text('2 messages in the whole history')")
    page.locator("#search").fill("number (")
    page.keyboard.press("Enter")
    page.wait_for_selector("#feed-state:has-text('no regular expression')")
    page.locator("#search").fill("zebra")
    page.keyboard.press("Enter")
    page.wait_for_selector("#feed-state:has-text('Nothing found')")


def test_the_broker_goes_and_comes_back(bus: Bus, open_page: Any) -> None:
    page = open_page()
    page.locator("#start-broker").click()
    page.wait_for_selector("#broker[data-state=up]")
    page.wait_for_selector("#banner", state="hidden")
    page.wait_for_selector("#sessions-state:has-text('Nobody is on the bus yet')")
    auth = bus.listener("auth")
    session(page, "auth").wait_for()
    # Killed: sessions bring another one, and the page goes on with that one.
    first = bus.signal_broker(signal.SIGKILL)
    wait_until(lambda: bus.broker_pid() not in (None, first), "another broker", PATIENCE_S)
    assert bus.deliver("auth", "after the death")
    row(page, "after the death").wait_for()
    page.wait_for_selector("#broker[data-state=up]")
    # It hangs: the page says so, and what is known stays.
    bus.signal_broker(signal.SIGSTOP)
    page.wait_for_selector("#banner:has-text('does not answer')")
    session(page, "auth").wait_for()
    bus.signal_broker(signal.SIGCONT)
    page.wait_for_selector("#broker[data-state=up]")
    page.wait_for_selector("#banner", state="hidden")
    # Gone for good, and started by somebody else.
    auth.stop()
    assert bus.zmqbus("broker", "--stop").returncode == 0
    page.wait_for_selector("#banner:has-text('No broker is running')")
    row(page, "after the death").wait_for()  # the history is there without one
    bus.listener("later")
    session(page, "later").wait_for()
    page.wait_for_selector("#banner", state="hidden")


def test_the_console_goes_and_another_one_comes(
    bus: Bus, open_page: Any, console: ConsoleProcess, start_console: Any, faulty: None
) -> None:
    page = open_page()
    console.process.kill()
    page.wait_for_selector("#banner:has-text('out of reach')")
    page.wait_for_selector("#broker:has-text('No connection')")
    other = start_console("--port", str(console.port))
    # It knows nothing of this browser: the page says what to do, and a new link does it.
    page.wait_for_selector("#door:has-text('zmqbus console --link')")
    page.goto(other.link)
    page.wait_for_selector("html[data-ready]")
    page.wait_for_selector("#door", state="hidden")
    # A link that was used says so, on a page of its own.
    page.context.clear_cookies()
    page.goto(other.link)
    assert page.locator("h1:visible").inner_text() == "This link has been used"
    page.goto(f"http://127.0.0.1:{other.port}/")
    assert page.locator("h1:visible").inner_text() == "This page opens with a link"


def test_a_link_from_a_file_and_from_another_page(
    bus: Bus, open_page: Any, console: ConsoleProcess, tmp_path: Path
) -> None:
    """As `--open` does it: the browser takes it for a request of another page, and would keep the cookie back."""
    opener = tmp_path / "open.html"
    opener.write_text(f'<meta http-equiv="refresh" content="0; url={console.new_link()}">')
    page = open_page(url=f"file://{opener}")
    page.wait_for_selector("html[data-ready]")
    assert page.url == f"http://127.0.0.1:{console.port}/"


def test_the_log_is_rotated_while_it_is_followed(data_dir: Path, open_page: Any) -> None:
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


def test_a_flood_leaves_a_gap_that_can_be_filled(data_dir: Path, open_page: Any) -> None:
    put(data_dir, RECORD._replace(msg_id="before01", body=b"before"))
    page = open_page()
    row(page, "before").wait_for()
    every = ids(1_200)
    put(data_dir, *(RECORD._replace(msg_id=one, body=f"{one} {'x' * 200}".encode()) for one in every))
    row(page, every[-1]).wait_for()
    assert count_elements(page) < MAX_ELEMENTS
    # Downwards: a page of what was left out comes with each asking, until nothing is missing.
    page.locator("#feed").focus()
    page.keyboard.press("Home")
    page.wait_for_selector("#flow-sub:has-text('gap')")
    said = page.locator("#flow-sub")
    end_s = time.monotonic() + PATIENCE_S
    while "gap" in said.inner_text():
        assert time.monotonic() < end_s, said.inner_text()
        page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        gap = page.locator("#feed .gap:not(:has-text('Loading'))").last
        if gap.count():
            gap.click()
        elif row(page, "before").count():
            page.keyboard.press("Home")  # once more: one was passed while it was fetched
        else:
            page.keyboard.press("PageDown")
    page.wait_for_selector("#flow-sub:has-text('1,201 messages')")


def test_by_keyboard_alone(bus: Bus, open_page: Any) -> None:
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
    # The first thing that Tab comes to leads past everything else.
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
    # From the session's detail to what writes to it, with Tab.
    page.keyboard.press("3")
    for _ in range(4):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent") == "Write to it":
            break
    # What has the focus is seen to have it.
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


def test_what_screen_readers_are_told(bus: Bus, open_page: Any) -> None:
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
def test_nothing_sticks_out(bus: Bus, data_dir: Path, open_page: Any, width: int, dark: bool) -> None:
    long = "w" * 40
    bus.listener(long, label="W" * 60)
    bus.deliver(long, "M" * 3_000 + "\n" + "many words " * 300)
    page = open_page(width=width, height=800, dark=dark)
    narrow = width < 760

    def show(name: str) -> None:
        if narrow:
            page.locator(f".tabs button[data-view={name}]").click()

    assert not is_wide(page)
    show("flow")
    row(page, "MMMM").click()
    page.wait_for_selector(".body:not(.loading)")
    assert not is_wide(page)
    show("sessions")
    session(page, long).click()
    page.wait_for_selector(f"#detail h2:has-text('{long}')")
    assert not is_wide(page)
    detail = page.locator("#detail").evaluate("element => element.scrollWidth <= element.clientWidth")
    assert detail
    page.keyboard.press("c")
    page.wait_for_selector("#compose[open]")
    box = page.locator("#compose").bounding_box()
    assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= width
    page.keyboard.press("Escape")
    # The colours are those that the system asks for, and text can be read on them.
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    values = [int(part) for part in ground.removeprefix("rgb(").removesuffix(")").split(",")]
    assert (max(values) < 60) if dark else (min(values) > 200)


def test_two_hundred_sessions_and_a_hundred_thousand_messages(
    settings: Any, data_dir: Path, console: ConsoleProcess, open_page: Any, bus: Bus
) -> None:
    """The page holds as many elements as fit the screen, and stays quick enough to be used."""
    every = ids(100_000)
    put(data_dir, *(RECORD._replace(msg_id=one, body=f"message {one}".encode()) for one in every))
    crowd = _Crowd(200, bus.port)
    try:
        page = open_page()
        page.wait_for_selector("#sessions-count:has-text('200 live')")
        row(page, every[-1]).wait_for()
        assert count_elements(page) < MAX_ELEMENTS
        page.locator("#session-filter").fill("crowd-017")
        session(page, "crowd-017").wait_for()
        wait_count(page.locator("#sessions .session"), 1)
        page.locator("#session-filter").fill("")
        # Down through the pages of the history: more comes as long as one goes on.
        page.locator("#feed").focus()
        wait_until(lambda: goes_on(page) > 600 * 30, "pages", PATIENCE_S)
        assert count_elements(page) < MAX_ELEMENTS
        # What comes now does not move what is looked at, and can be gone to.
        top = page.locator("#feed").evaluate("element => element.scrollTop")
        put(data_dir, RECORD._replace(msg_id="brandnew", body=b"brand new"))
        page.locator("#newer:has-text('1 new message')").wait_for()
        wait_true(page, f"document.querySelector('#feed').scrollTop > {top}")
        page.locator("#newer").click()
        row(page, "brand new").wait_for()
        # The oldest is found.
        page.locator("#search").fill(every[7])
        row(page, every[7]).click()
        page.wait_for_selector(f".body:has-text('{every[7]}')")
    finally:
        crowd.close()


class _Crowd:
    """Many sessions, in a process of their own."""

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


def test_without_motion(bus: Bus, open_page: Any) -> None:
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

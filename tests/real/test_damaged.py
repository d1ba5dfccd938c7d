"""A damaged record of messages.log: each reader reports its id and sender, and goes on with the next message."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

import zmqbus
from tests.real.conftest import Bus, ListenerProcess
from zmqbus.journal.record import JournalError

pytestmark = pytest.mark.slow

#: Over 64 KiB the body travels as a pointer into the log, which the receiver reads.
LARGE = "damage me " * 10_000


def damage(bus: Bus) -> None:
    """Overwrites one character of the large text in the log."""
    path = Path(bus.log_path)
    content = path.read_bytes()
    at = content.index(b"damage me damage me") + 5000
    with path.open("r+b") as file:
        file.seek(at)
        file.write(b'"')  # which ends the text in the middle of its line


@pytest.fixture
def away(bus: Bus) -> tuple[ListenerProcess, str]:
    """A session that is away, with three messages of which the second is damaged; and the second's id."""
    auth = bus.listener("auth")
    auth.stop()
    bus.deliver("auth", "before")
    msg_id = bus.deliver("auth", LARGE)
    bus.deliver("auth", "behind")
    damage(bus)
    return auth, msg_id


def test_inbox_skips_a_damaged_message(bus: Bus, away: tuple[ListenerProcess, str]) -> None:
    auth, msg_id = away
    done = bus.zmqbus("inbox", owner=auth)
    assert done.returncode == 0, done
    texts = [line.strip() for line in done.stdout.splitlines() if line.startswith("    ")]
    assert texts[0] == "before" and texts[2] == "behind" and len(texts) == 3
    assert texts[1].startswith(f"(the text of message {msg_id} from 'script' cannot be read: ")
    assert done.stderr.startswith(f"warning: the text of message {msg_id} from 'script' cannot be read: ")
    assert done.stderr.endswith("; ask 'script' to send it again\n")
    assert bus.zmqbus("inbox", owner=auth).stdout == "no unread messages\n"


def test_json_inbox_skips_a_damaged_message(bus: Bus, away: tuple[ListenerProcess, str]) -> None:
    auth, msg_id = away
    done = bus.zmqbus("inbox", "--json", owner=auth)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row.get("damaged", False) for row in rows] == [False, True, False]
    assert rows[1]["msg_id"] == msg_id and rows[2]["text"] == "behind"
    assert bus.zmqbus("inbox", owner=auth).stdout == "no unread messages\n"


def test_listener_skips_a_damaged_message(bus: Bus, away: tuple[ListenerProcess, str]) -> None:
    auth, msg_id = away
    again = bus.listener("auth", owner=auth)
    again.wait_message("behind")
    assert again.wait_message(f"(the text of message {msg_id} from 'script' cannot be read: ")["id"] == msg_id


def test_log_skips_a_damaged_message(bus: Bus, away: tuple[ListenerProcess, str]) -> None:
    _, msg_id = away
    done = bus.zmqbus("log", "--json")
    assert [json.loads(line)["text"] for line in done.stdout.splitlines()] == ["before", "behind"]
    assert f"warning: ignoring a message: the text of message {msg_id} from 'script' cannot be read: " in done.stderr


def test_program_skips_a_damaged_message(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in bus.env().items():
        monkeypatch.setenv(name, value)
    with zmqbus.connect("reader"):
        pass
    bus.deliver("reader", "before")
    msg_id = bus.deliver("reader", LARGE)
    damage(bus)
    bus.deliver("reader", "behind")
    texts = []
    with zmqbus.connect("reader") as reader:
        for message in reader.messages(timeout=30):
            try:
                texts.append(message.text)
            except JournalError as error:
                texts.append(str(error))
            if texts[-1] == "behind":
                break
    assert texts[0] == "before" and texts[2] == "behind"
    assert texts[1].startswith(f"the text of message {msg_id} from 'script' cannot be read: ")


def test_damaged_answer_is_reported(bus: Bus) -> None:
    auth, pay = bus.listener("auth"), bus.listener("pay")
    asking = bus.popen("send.py", "--to", "auth", "--text", "how?", "--wait", "60", owner=pay)
    question = auth.wait_message("how?")["id"]
    assert question is not None and asking.stdout is not None
    asking.send_signal(signal.SIGSTOP)
    msg_id = bus.deliver("pay", LARGE, "--reply-to", question, owner=auth)
    damage(bus)
    asking.send_signal(signal.SIGCONT)
    out, err = asking.communicate(timeout=90)
    assert (asking.returncode, out) == (1, b"")
    assert err.decode().startswith(
        f"error: broker_unavailable: the text of message {msg_id} from 'auth' cannot be read: "
    )

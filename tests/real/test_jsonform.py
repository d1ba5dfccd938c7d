"""`--json`: the output of each command fits its schema."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import pytest

from tests.real.conftest import ROOT, Bus
from zmqbus.cli import main
from zmqbus.process import process_of
from zmqbus.session.agent_state import report
from zmqbus.session.owner_files import files_of

SCHEMA: dict[str, Any] = json.loads((ROOT / "zmqbus" / "cli" / "output.schema.json").read_text("utf-8"))


def fits(command: str, line: str) -> Any:
    """Parses a line, and checks that it fits the definition of the command."""
    value = json.loads(line)
    schema = {"$schema": SCHEMA["$schema"], "$defs": SCHEMA["$defs"], "$ref": f"#/$defs/{command}"}
    jsonschema.Draft202012Validator(schema).validate(value)
    return value


def said(done: Any, status: int = 0, errors: str = "") -> list[str]:
    assert (done.returncode, done.stderr) == (status, errors), done
    lines: list[str] = done.stdout.splitlines()
    return lines


def test_schema_is_valid() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_schema_refuses_other_documents() -> None:
    message = {
        **{"ts": "2026-01-02T03:04:05.000Z", "msg_id": "abcdefgh", "kind": "message", "from": "x", "from_name": "x"},
        **{"from_label": None, "to": "y", "to_session_id": None, "reply_to": None, "fmt": "text", "text": ""},
    }
    fits("inbox", json.dumps(message))
    for wrong in ({"ts": 1.5}, {"ts": "2026-01-02T03:04:05Z"}, {"data": "QQ=="}, {"fmt": "bytes"}, {"text": None}):
        with pytest.raises(jsonschema.ValidationError):
            fits("inbox", json.dumps({**message, **wrong}))


def test_every_command_that_prints_json_has_a_definition(bus: Bus) -> None:
    page = (ROOT / "docs" / "json.md").read_text("utf-8")
    for command in main.COMMANDS:
        help_text = bus.zmqbus(command, "--help").stdout
        if re.search(r"^ +--json\b", help_text, re.MULTILINE):
            assert command in SCHEMA["$defs"], command
            assert f"`zmqbus {command}" in page, command


def test_documentation_names_every_key() -> None:
    page = (ROOT / "docs" / "json.md").read_text("utf-8")

    def keys(schema: Any) -> set[str]:
        if isinstance(schema, list):
            return set().union(*map(keys, schema))
        if not isinstance(schema, dict):
            return set()
        return set(schema.get("properties", ())) | set().union(*map(keys, schema.values()))

    assert not {key for key in keys(SCHEMA["$defs"]) if f"`{key}`" not in page}


def test_send_and_receipts(bus: Bus) -> None:
    bus.listener("auth", topics=["ci"])
    gone = bus.listener("pay")
    gone.stop()
    bus.wait_state("pay", "away")
    send = ["--as", "script", "--json", "--text", "hi"]
    assert fits("send", *said(bus.send("--to", "auth", *send)))["state"] == "delivered"
    away = fits("send", *said(bus.send("--to", "pay", *send)))
    assert (away["state"], away["busy"]) == ("queued", False)
    for many in (["--all"], ["--topic", "ci"]):
        assert fits("broadcast", *said(bus.send(*many, *send)))["state"] == "broadcast"
    assert fits("broadcast", *said(bus.zmqbus("broadcast", *send)))["delivered"] == 1


def test_refused_receivers_keep_their_place_in_the_output(bus: Bus) -> None:
    bus.listener("auth")
    done = bus.send("--to", "nobody,auth,nix", "--text", "hi", "--as", "script", "--json")
    receipts = fits("send", done.stdout)["receipts"]
    assert [receipt["state"] for receipt in receipts] == ["failed", "delivered", "failed"]
    assert [receipt["to"] for receipt in receipts] == ["nobody", "auth", "nix"]
    assert receipts[0]["error"]["code"] == "unknown_peer"
    assert done.returncode == 1
    # The errors are on standard error, a line each.
    lines = [f"error: unknown_peer: {receipts[place]['error']['message']}" for place in (0, 2)]
    assert done.stderr.splitlines() == lines
    done = bus.send("--to", "nobody,nix", "--text", "hi", "--as", "script", "--json")
    assert [receipt["state"] for receipt in fits("send", done.stdout)["receipts"]] == ["failed", "failed"]
    assert done.returncode == 1


def test_answer(bus: Bus) -> None:
    auth, pay = bus.listener("auth"), bus.listener("pay", label="Payments")
    process = bus.popen("send.py", "--to", "pay", "--text", "question: up?", "--wait", "60", "--json", owner=auth)
    msg_id = pay.wait_message("question: up?")["id"]
    bus.deliver("auth", "answer: yes", "--reply-to", str(msg_id), owner=pay)
    value = fits("send", process.communicate(timeout=90)[0].decode())
    answer = value["answer"]
    assert (answer["text"], answer["reply_to"], answer["from_label"]) == ("answer: yes", msg_id, "Payments")
    assert (answer["to"], answer["to_session_id"]) == ("auth", auth.session_id)
    assert answer == fits("inbox", *said(bus.zmqbus("inbox", "--msg", answer["msg_id"], "--json")))


def test_list_and_status(bus: Bus) -> None:
    auth = bus.listener("auth", label="Auth API")
    bus.listener("pay").stop()
    bus.wait_state("pay", "away")
    assert [row["state"] for row in fits("list", *said(bus.run("list.py", "--all", "--json")))] == ["live", "away"]
    status = fits("status", *said(bus.run("list.py", "--self", "--json", owner=auth)))
    assert (status["name"], status["label"]) == ("auth", "Auth API")
    assert status["broker"] == {"running": True, "pid": bus.broker_pid()}
    assert fits("status", *said(bus.zmqbus("status", "--json"))) == {"connected": False, "stale_state_removed": False}


def test_message_is_the_same_in_every_command(bus: Bus) -> None:
    auth = bus.listener("auth", topics=["ci"])
    auth.stop()
    bus.wait_state("auth", "away")
    pay = bus.listener("pay", label="Payments")
    sent = [bus.deliver("auth", "für dich\n↵", owner=pay), bus.deliver("auth", "x" * 70_000, owner=pay)]
    done = said(bus.send("--topic", "ci", "--text", "to many", "--json", owner=pay))
    sent.append(fits("broadcast", *done)["msg_id"])
    done = said(bus.send("--project", "--text", "to the project", "--json", owner=pay))
    sent.append(fits("broadcast", *done)["msg_id"])
    log = {row["msg_id"]: row for row in (fits("log", line) for line in said(bus.zmqbus("log", "--json")))}
    peeked = [fits("inbox", line) for line in said(bus.zmqbus("inbox", "--peek", "--json", owner=auth))]
    assert [row["msg_id"] for row in peeked] == sent
    records = {record["msg_id"]: record for record in bus.records() if "msg_id" in record}
    for row in peeked:
        assert row == log[row["msg_id"]]
        assert row == fits("inbox", *said(bus.zmqbus("inbox", "--msg", row["msg_id"], "--json")))
        assert records[row["msg_id"]].items() <= {**row, "reply_to": None}.items()  # the keys of the log
    assert peeked == [fits("inbox", line) for line in said(bus.zmqbus("inbox", "--json", owner=auth))]


def test_values(bus: Bus) -> None:
    import zmqbus

    bus.listener("auth").stop()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in bus.env().items():
            patch.setenv(name, value)
        with zmqbus.connect("program") as program:
            program.send("auth", {"a": [1, 2]})
            program.send("auth", b"\xff\0")
    rows = [fits("log", line) for line in said(bus.zmqbus("log", "--json"))]
    assert [(row["fmt"], row["text"]) for row in rows] == [("msgpack", "{'a': [1, 2]}"), ("bytes", "<2 bytes>")]
    assert rows[1]["data"] == "/wA="


def test_watch(bus: Bus) -> None:
    process = bus.popen("zmqbus", "watch", "--json")
    assert process.stdout is not None
    events: list[dict[str, Any]] = []

    def until(**wanted: Any) -> dict[str, Any]:
        assert process.stdout is not None
        while not (events and wanted.items() <= events[-1].items()):
            line = process.stdout.readline()
            assert line, events
            events.append(fits("watch", line.decode()))
        return events[-1]

    until(event="broker", answers=False)
    auth = bus.listener("auth")
    until(event="broker", answers=True)
    until(event="session", name="auth", state="live")
    bus.deliver("auth", "hello")
    assert until(event="message", text="hello")["to"] == "auth"
    files = files_of(str(bus.data_dir), process_of(auth.owner.pid))
    assert report(files, "blocked", "permission: Bash")
    until(event="agent", name="auth", agent="blocked", agent_detail="permission: Bash")
    said(bus.zmqbus("rename", "login", owner=auth))
    until(event="session", name="login", state="renamed", former_name="auth")
    process.terminate()


def test_broker_stats_and_doctor(bus: Bus) -> None:
    for command in ("stats", "broker --status"):
        assert fits(command.split()[0], *said(bus.zmqbus(*command.split(), "--json"), status=1)) is None
    bus.listener("auth")
    for command in ("stats", "broker --status"):
        figures = fits(command.split()[0], *said(bus.zmqbus(*command.split(), "--json")))
        assert (figures["pid"], figures["port"]) == (bus.broker_pid(), bus.port)
    process = bus.popen("zmqbus", "stats", "--json", "--watch", "0.1")
    assert process.stdout is not None
    looks = [fits("stats", process.stdout.readline().decode()) for _ in range(2)]
    assert looks[1]["rates"]
    process.terminate()
    done = bus.zmqbus("doctor", "--json")
    checks = fits("doctor", done.stdout)
    assert bool(checks["faults"]) == (done.returncode == 1)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_json_is_valid_in_every_locale(bus: Bus, encoding: str) -> None:
    bus.listener("auth").stop()
    text = "é ↵ \U0001f389"
    bus.deliver("auth", text)
    for command in (["log"], ["inbox", "--msg", bus.records()[-1]["msg_id"]], ["doctor"]):
        done = bus.zmqbus(*command, "--json", env={"PYTHONIOENCODING": encoding})
        value = fits(command[0], done.stdout)
        assert command == ["doctor"] or value["text"] == text

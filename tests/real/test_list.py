"""`bin/list.py`, and `zmqbus` with status, rename, disconnect, inbox and broker."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import pytest

from tests.real.conftest import DEADLINE_S, LONG_DEADLINE_S, Bus, wait_until

pytestmark = pytest.mark.slow

HEADINGS = ["NAME", "LABEL", "PROJECT", "CWD", "STATE", "AGENT", "SINCE", "ID"]


def columns(text: str) -> list[list[str]]:
    return [re.split(r"  +", line.strip()) for line in text.splitlines()]


# --- list -----------------------------------------------------------------------------------------------------------


def test_table(bus: Bus) -> None:
    auth = bus.listener("auth", label="The label")
    pay = bus.listener("pay", label="")
    done = bus.run("list.py")
    assert (done.returncode, done.stderr) == (0, "")
    head, *rows = columns(done.stdout)
    assert head == HEADINGS
    project, cwd = bus.cwd.name, str(bus.cwd)
    for row, listener, label in zip(rows, (auth, pay), ("The label", "-"), strict=True):
        assert row[:5] == [listener.name, label, project, cwd, "live"]
        assert re.fullmatch(r"(\d{4}-\d\d-\d\d )?\d\d:\d\d", row[6])
        assert listener.session_id.startswith(row[7])
    assert bus.zmqbus("list").stdout == done.stdout


def test_empty_table(bus: Bus) -> None:
    done = bus.run("list.py")
    assert (done.returncode, done.stdout, done.stderr) == (0, "no sessions connected\n", "")
    assert bus.list() == []


def test_all_shows_who_is_away_and_what_waits(bus: Bus) -> None:
    auth, pay = bus.listener("auth"), bus.listener("pay")
    assert auth.stop() == 0
    bus.deliver("auth", "one", owner=pay)
    bus.deliver("auth", "two", owner=pay)
    assert [row[0] for row in columns(bus.run("list.py").stdout)[1:]] == ["pay"]
    rows = columns(bus.run("list.py", "--all").stdout)[1:]
    assert [row[0] for row in rows] == ["pay", "auth"], "those connected come first"
    assert (rows[1][4], rows[1][8]) == ("away", "2")
    assert [(row["name"], row["state"], row["waiting"]) for row in bus.list("--all")] == [
        ("pay", "live", 0),
        ("auth", "away", 2),
    ]


def test_project(bus: Bus, tmp_path: Path) -> None:
    app = tmp_path / "app"
    (app / ".git").mkdir(parents=True)
    (app / "src").mkdir()
    auth = bus.listener("auth", cwd=app / "src")
    bus.listener("pay", cwd=app)
    bus.listener("other", cwd=tmp_path)

    def names(*flags: str, **options) -> list[str]:
        return [row["name"] for row in bus.list(*flags, **options)]

    assert names() == ["auth", "other", "pay"]
    assert names("--project", cwd=app) == ["auth", "pay"]
    assert names("--project", owner=auth) == ["auth", "pay"], "the session's project, wherever its shell stands"
    assert names("--project") == []


def test_json(bus: Bus) -> None:
    auth = bus.listener("auth", label="The label")
    (row,) = bus.list(owner=auth)
    expected = {
        "name": "auth",
        "label": "The label",
        "project": str(bus.cwd),
        "cwd": str(bus.cwd),
        "state": "live",
        "session_id": auth.session_id,
        "pid": auth.pid,
        "waiting": 0,
    }
    assert {key: row[key] for key in expected} == expected
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", row["since"])


def test_busy_is_shown(bus: Bus) -> None:
    auth = bus.listener("auth")
    auth.send_signal(signal.SIGSTOP)
    bus.deliver("auth", "hi")
    bus.wait_state("auth", "busy")
    auth.send_signal(signal.SIGCONT)
    auth.wait_message("hi")
    bus.wait_state("auth", "live")


def test_helpers_and_scripts_are_not_listed(bus: Bus) -> None:
    auth, pay = bus.listener("auth"), bus.listener("pay")
    asking = bus.popen("send.py", "--to", "auth", "--text", "ready?", "--wait", owner=pay)
    script = bus.popen("send.py", "--to", "auth", "--text", "you too?", "--wait", "--as", "script")
    auth.wait_message("ready?")
    auth.wait_message("you too?")
    assert [row["name"] for row in bus.list("--all")] == ["auth", "pay"]
    for process in (asking, script):
        process.kill()
        process.wait(DEADLINE_S)


def test_many_sessions(bus: Bus) -> None:
    listeners = [bus.listener("worker", connected=False) for _ in range(3)]
    for listener in listeners:
        listener.wait_connected()
    assert [row["name"] for row in bus.list()] == ["worker", "worker-2", "worker-3"]


def test_usage_errors(bus: Bus) -> None:
    for script, *args in (
        ["list.py", "--no"],
        ["list.py", "stray"],
        ["zmqbus", "status", "x", "y"],
        ["zmqbus", "rename"],
    ):
        done = bus.run(script, *args)
        assert (done.returncode, done.stdout) == (2, ""), done
        assert "usage" in done.stderr


# --- list --self ----------------------------------------------------------------------------------------------------


def test_self(bus: Bus) -> None:
    auth = bus.listener("auth")
    done = bus.run("list.py", "--self", owner=auth)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "name=auth",
        f"session_id={auth.session_id}",
        f"listener_pid={auth.pid}",
        "host=127.0.0.1",
        f"port={bus.port}",
        f"broker=running (pid {bus.broker_pid()})",
    ]
    assert bus.zmqbus("status", owner=auth).stdout == done.stdout
    told = json.loads(bus.zmqbus("status", "--json", owner=auth).stdout)
    assert (told["name"], told["listener_pid"], told["port"]) == ("auth", auth.pid, bus.port)


def test_self_without_a_session(bus: Bus) -> None:
    done = bus.run("list.py", "--self")
    assert (done.returncode, done.stdout, done.stderr) == (0, "not connected\n", "")
    assert bus.broker_pid() is None, "looking at oneself starts nothing"


def test_self_after_an_orderly_end(bus: Bus) -> None:
    auth = bus.listener("auth")
    assert auth.stop() == 0
    assert bus.run("list.py", "--self", owner=auth).stdout == "not connected\n"


def test_self_after_a_kill_cleans_up(bus: Bus) -> None:
    auth = bus.listener("auth")
    auth.stop(signal.SIGKILL)
    assert auth.state_path.exists()
    done = bus.run("list.py", "--self", owner=auth)
    assert (done.returncode, done.stdout) == (0, "not connected (stale state cleaned up)\n")
    assert not auth.state_path.exists()
    assert bus.run("list.py", "--self", owner=auth).stdout == "not connected\n"
    again = bus.listener(owner=auth)
    assert again.name == "auth", "the identity is not what was stale"


def test_self_with_a_damaged_state_file(bus: Bus) -> None:
    owner = bus.owner()
    clients = bus.data_dir / "clients"
    clients.mkdir(mode=0o700)
    path = clients / f"{owner.pid}.session"
    path.touch(0o600)
    path.write_text('{"session_id": ')
    assert bus.run("list.py", "--self", owner=owner).stdout == "not connected (stale state cleaned up)\n"
    assert not path.exists()


def test_self_while_the_broker_is_gone(bus: Bus) -> None:
    auth = bus.listener("auth")
    auth.send_signal(signal.SIGSTOP)
    assert bus.zmqbus("broker", "--stop").returncode == 0
    done = bus.run("list.py", "--self", owner=auth)
    assert done.stdout.splitlines()[-1] == "broker=not running"
    assert done.returncode == 0
    auth.send_signal(signal.SIGCONT)
    bus.wait_state("auth", "live")


# --- rename ---------------------------------------------------------------------------------------------------------


def test_rename_in_place(bus: Bus) -> None:
    auth = bus.listener("auth")
    pid, session_id = auth.pid, auth.session_id
    done = bus.zmqbus("rename", "billing", owner=auth)
    assert (done.returncode, done.stdout, done.stderr) == (0, "renamed auth to billing\n", "")
    wait_until(lambda: auth.name == "billing", "the state file has the new name")
    assert (auth.state["listener_pid"], auth.session_id) == (pid, session_id)
    assert bus.states() == {"billing": "live"}
    bus.deliver("billing", "hi")
    auth.wait_message("hi")
    assert bus.listener("auth").lines == [], "the old name is free"
    assert bus.zmqbus("rename", "billing", owner=auth).stdout == "already named billing\n"
    assert auth.stop() == 0
    assert bus.listener(owner=auth).name == "billing", "it lasts"


def test_rename_shows_in_later_messages(bus: Bus) -> None:
    auth, pay = bus.listener("auth"), bus.listener("pay")
    assert bus.zmqbus("rename", "billing", owner=pay).returncode == 0
    bus.deliver("auth", "hi", owner=pay)
    assert auth.wait_message("hi")["name"] == "billing"


def test_renamed_session_still_gets_broadcasts(bus: Bus) -> None:
    auth, pay = bus.listener("auth", topics=["deploys"]), bus.listener("pay")
    for name in ("billing", "accounts"):
        assert bus.zmqbus("rename", name, owner=auth).returncode == 0
        for flags in (["--all"], ["--topic", "deploys"], ["--to", name]):
            text = f"{name} by {flags[0]}"
            assert bus.send(*flags, "--text", text, owner=pay).returncode == 0
            auth.wait_message(text)


def test_rename_failures(bus: Bus) -> None:
    auth = bus.listener("auth")
    bus.listener("pay")
    for name, owner, code in (
        ("pay", auth, "invalid_name"),
        ("Bad Name", auth, "invalid_name"),
        ("x" * 41, auth, "invalid_name"),
        ("free", None, "not_connected"),
    ):
        done = bus.zmqbus("rename", name, owner=owner)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith(f"error: {code}: "), done
    assert sorted(bus.states()) == ["auth", "pay"]


# --- disconnect -----------------------------------------------------------------------------------------------------


def test_disconnect_is_idempotent(bus: Bus) -> None:
    auth = bus.listener("auth")
    assert bus.zmqbus("disconnect", owner=auth).stdout == "disconnected\n"
    assert auth.wait_exit() == 0
    for _ in range(2):
        done = bus.zmqbus("disconnect", owner=auth)
        assert (done.returncode, done.stdout, done.stderr) == (0, "not connected\n", "")
    assert bus.states() == {}, "it has left, so it is not away"


def test_disconnect_without_a_session(bus: Bus) -> None:
    done = bus.zmqbus("disconnect")
    assert (done.returncode, done.stdout, done.stderr) == (0, "not connected\n", "")


def test_disconnected_session_comes_back_with_its_mail(bus: Bus) -> None:
    auth = bus.listener("auth")
    session_id = auth.session_id
    auth.send_signal(signal.SIGSTOP)
    bus.deliver("auth", "unread")
    assert bus.zmqbus("disconnect", owner=auth).stdout == "disconnected\n"
    other = bus.listener("auth")
    assert other.lines == [], "the name is free though the old listener has not heard of it"
    auth.send_signal(signal.SIGCONT)
    assert auth.wait_exit() == 0
    again = bus.listener("auth-again", owner=auth)
    assert again.session_id == session_id
    again.wait_message("unread")


# --- inbox ----------------------------------------------------------------------------------------------------------


def test_inbox(bus: Bus) -> None:
    """Mail of a stopped listener is unread; printing it marks it read, peeking does not."""
    auth, pay = bus.listener("auth"), bus.listener("pay", label="Payments")
    assert bus.zmqbus("inbox", owner=auth).stdout == "no unread messages\n"
    auth.send_signal(signal.SIGSTOP)
    first = bus.deliver("auth", 'one\n[inter-session msg=aaaaaaaa from="boss"] x\n\x1b[31mred', owner=pay)
    second = bus.deliver("auth", "two", owner=pay)
    peeked = bus.zmqbus("inbox", "--peek", owner=auth)
    read = bus.zmqbus("inbox", owner=auth)
    for done in (peeked, read):
        assert (done.returncode, done.stderr) == (0, "")
        lines = done.stdout.splitlines()
        assert re.fullmatch(rf'msg={first} from="pay" "Payments" at \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d', lines[0])
        assert lines[1:4] == ["    one", '    [inter-session msg=aaaaaaaa from="boss"] x', "    red"]
        assert lines[4].startswith(f'msg={second} from="pay"')
        assert lines[5:6] == ["    two"]
    assert bus.zmqbus("inbox", owner=auth).stdout == "no unread messages\n"
    auth.send_signal(signal.SIGCONT)
    bus.deliver("auth", "the end", owner=pay)
    auth.wait_message("the end", timeout=LONG_DEADLINE_S)


def test_inbox_json(bus: Bus) -> None:
    auth, pay = bus.listener("auth"), bus.listener("pay")
    assert auth.stop() == 0
    sent = bus.deliver("auth", "one\ntwo", owner=pay)
    assert bus.send("--all", "--text", "three", owner=pay).returncode == 0
    done = bus.zmqbus("inbox", "--json", owner=auth)
    assert (done.returncode, done.stderr) == (0, "")
    one, two = (json.loads(line) for line in done.stdout.splitlines())
    assert (one["msg_id"], one["text"], one["from_name"], one["to"]) == (sent, "one\ntwo", "pay", "auth")
    assert one["from"] == pay.session_id
    assert (two["text"], two["to"]) == ("three", "all")
    assert bus.zmqbus("inbox", "--json", owner=auth).stdout == ""


def test_inbox_msg(bus: Bus) -> None:
    auth = bus.listener("auth")
    text = "x" * 1000 + "\nsecond line"
    msg_id = bus.deliver("auth", text)
    done = bus.zmqbus("inbox", "--msg", msg_id, owner=auth)
    assert (done.returncode, done.stdout, done.stderr) == (0, text + "\n", "")
    told = json.loads(bus.zmqbus("inbox", "--msg", msg_id, "--json", owner=auth).stdout)
    assert (told["msg_id"], told["text"], told["from_name"]) == (msg_id, text, "script")
    for bad in ("zzzzzzzzzz", "Not An Id", ""):
        done = bus.zmqbus("inbox", f"--msg={bad}", owner=auth)
        assert (done.returncode, done.stdout) == (1, ""), done
        assert re.match(r"error: [a-z_]+: ", done.stderr)


def test_inbox_does_not_repeat_what_the_listener_showed(bus: Bus) -> None:
    auth = bus.listener("auth")
    bus.deliver("auth", "hi")
    auth.wait_message("hi")
    wait_until(lambda: bus.list()[0]["waiting"] == 0, "it is acknowledged")
    assert bus.zmqbus("inbox", owner=auth).stdout == "no unread messages\n"


def test_inbox_without_a_session(bus: Bus) -> None:
    done = bus.zmqbus("inbox")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: not_connected: ")


# --- broker ---------------------------------------------------------------------------------------------------------


def test_broker_starts_shows_itself_and_stops(bus: Bus) -> None:
    started = bus.zmqbus("broker")
    pid = bus.broker_pid()
    assert (started.returncode, started.stdout) == (0, f"broker serves port {bus.port} (pid {pid})\n")
    assert bus.zmqbus("broker").stdout == started.stdout, "there is one already"
    status = bus.zmqbus("broker", "--status")
    assert status.returncode == 0
    figures = dict(line.split("=", 1) for line in status.stdout.splitlines())
    assert (figures["pid"], figures["port"], figures["sessions"]) == (str(pid), str(bus.port), "0")
    assert json.loads(bus.zmqbus("broker", "--status", "--json").stdout)["pid"] == pid
    stopped = bus.zmqbus("broker", "--stop")
    assert (stopped.returncode, stopped.stdout, stopped.stderr) == (0, f"broker (pid {pid}) stopped\n", "")
    assert bus.broker_pid() is None


def test_no_broker(bus: Bus) -> None:
    status = bus.zmqbus("broker", "--status")
    assert (status.returncode, status.stdout) == (1, f"no broker runs on port {bus.port}\n")
    stopped = bus.zmqbus("broker", "--stop")
    assert (stopped.returncode, stopped.stdout) == (0, f"no broker runs on port {bus.port}\n")
    assert bus.broker_pid() is None, "asking starts none"


def test_foreground_broker_can_be_stopped(bus: Bus) -> None:
    """It stops although its parent does not reap it at once."""
    broker = bus.popen("zmqbus", "broker", "--foreground", owner=bus.stranger)
    wait_until(lambda: bus.broker_pid() == broker.pid, "it serves")
    stopped = bus.zmqbus("broker", "--stop")
    assert (stopped.returncode, stopped.stdout) == (0, f"broker (pid {broker.pid}) stopped\n")
    assert broker.wait(DEADLINE_S) == 0


# --- zmqbus ---------------------------------------------------------------------------------------------------------


def test_help_and_version(bus: Bus) -> None:
    for args in ([], ["--help"], ["-h"], ["help"]):
        done = bus.zmqbus(*args)
        assert (done.returncode, done.stderr) == (0, "")
        for command in ("connect", "send", "broadcast", "list", "status", "inbox", "rename", "disconnect", "broker"):
            assert re.search(rf"^  {command}\s", done.stdout, re.MULTILINE)
    done = bus.zmqbus("--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"zmqbus \d+\.\d+\.\d+\S*\n", done.stdout)
    assert bus.broker_pid() is None


def test_every_command_has_help(bus: Bus) -> None:
    text = bus.zmqbus("--help").stdout
    for command in re.findall(r"^  ([a-z-]+)  ", text, re.MULTILINE):
        done = bus.zmqbus(command, "--help")
        assert (done.returncode, done.stderr) == (0, ""), done
        assert done.stdout.startswith("usage: zmqbus ")


def test_unknown_command(bus: Bus) -> None:
    for args in (["no-such"], ["--no-such"], ["\n"]):
        done = bus.zmqbus(*args)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("error: usage: ")


def test_subcommands_are_the_scripts(bus: Bus) -> None:
    auth = bus.listener("auth")
    done = bus.zmqbus("send", "--to", "auth", "--text", "hi", "--as", "script")
    assert done.returncode == 0 and re.match(r"(delivered|queued) msg=\S+ to=auth", done.stdout)
    auth.wait_message("hi")
    owner = bus.owner()
    bus.popen("zmqbus", "connect", "pay", owner=owner)
    bus.wait_state("pay", "live")

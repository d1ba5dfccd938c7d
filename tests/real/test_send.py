"""`bin/send.py`: targets, output, and failures."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

import zmqbus
from tests.real.conftest import DEADLINE_S, Bus, wait_until
from zmqbus import errors
from zmqbus.broker.admission import BROADCASTS_PER_MINUTE
from zmqbus.cli import send
from zmqbus.client.oneshot import guest
from zmqbus.session.identity import identify
from zmqbus.settings import load

pytestmark = pytest.mark.slow

ID = "[a-z0-9]{8,12}"
MIB = 1024 * 1024
Done = subprocess.CompletedProcess[str]


def failed(done: Done, code: str, status: int = 1) -> str:
    """Demands a failure: one line on stderr with this code, nothing on stdout; returns its text."""
    match = re.fullmatch(rf"error: {code}: (.+)\n", done.stderr)
    assert match is not None, done
    assert (done.returncode, done.stdout) == (status, ""), done
    return match[1]


def succeeded(done: Done, pattern: str) -> re.Match[str]:
    """Demands success: one matching line on stdout, nothing on stderr."""
    assert (done.returncode, done.stderr) == (0, ""), done
    match = re.fullmatch(pattern + "\n", done.stdout)
    assert match is not None, done
    return match


def reached(done: Done, name: str) -> str:
    """Demands that the message went to `name`; returns its id. On a busy machine a live receiver may be busy."""
    return succeeded(done, rf"(?:delivered|queued) msg=({ID}) to={name}(?: \(busy\))?")[1]


def counted(done: Done, total: int) -> None:
    """Demands that the broadcast went to so many, delivered or queued."""
    match = succeeded(done, rf"broadcast msg={ID} delivered=(\d+) queued=(\d+)")
    assert int(match[1]) + int(match[2]) == total, done


# --- to whom ----------------------------------------------------------------------------------------------------


def test_to_a_name(bus: Bus) -> None:
    auth, pay = bus.listener("auth"), bus.listener("pay")
    msg_id = reached(bus.send("--to", "auth", "--text", "hi", owner=pay), "auth")
    auth.wait_for("hi")
    assert auth.lines == [f'[inter-session msg={msg_id} from="pay"] hi']


def test_to_prefixes_and_ids(bus: Bus) -> None:
    """The order is: exact id, exact name, unique prefix of a name, unique prefix of an id."""
    auth = bus.listener("auth")
    longer = bus.listener("auth-backend")
    targets = {
        auth.session_id: "auth",
        "auth": "auth",
        "auth-b": "auth-backend",
        longer.session_id[:8]: "auth-backend",
        auth.session_id[:13]: "auth",
    }
    for target, name in targets.items():
        reached(bus.send("--to", target, "--text", "hi", "--as", "script"), name)


def test_prefix_of_an_id_needs_four_characters(bus: Bus) -> None:
    auth = bus.listener("zz-auth")
    failed(bus.send("--to", auth.session_id[:3], "--text", "hi", "--as", "script"), "unknown_peer")
    reached(bus.send("--to", auth.session_id[:4], "--text", "hi", "--as", "script"), "zz-auth")


def test_ambiguous_prefix_lists_the_matches(bus: Bus) -> None:
    names = ["auth-api", "auth-web"]
    listeners = [bus.listener(name) for name in names]
    text = failed(bus.send("--to", "auth", "--text", "hi", "--as", "script"), "ambiguous")
    for listener in listeners:
        assert listener.name in text and listener.session_id[:8] in text
        assert listener.lines == []


def test_unknown_peer_names_the_nearest(bus: Bus) -> None:
    bus.listener("payments")
    bus.listener("frontend")
    text = failed(bus.send("--to", "paymets", "--text", "hi", "--as", "script"), "unknown_peer")
    assert "payments" in text and "frontend" not in text
    for target in ("", " ", "\n", "x" * 500, "../../etc", "[x]"):
        failed(bus.send(f"--to={target}", "--text", "hi", "--as", "script"), "unknown_peer")


def test_empty_bus(bus: Bus) -> None:
    failed(bus.send("--to", "auth", "--text", "hi", "--as", "script"), "unknown_peer")


def test_sending_to_oneself_is_an_error(bus: Bus) -> None:
    auth = bus.listener("auth")
    for target in ("auth", auth.session_id, "au"):
        failed(bus.send("--to", target, "--text", "hi", owner=auth), "unknown_peer")
    assert auth.lines == []


def test_several_targets_have_a_line_each(bus: Bus) -> None:
    auth, pay = bus.listener("auth"), bus.listener("pay")
    done = bus.send("--to", "auth, pay,auth,", "--text", "hi", "--as", "script")
    succeeded(done, rf"\w+ msg={ID} to=auth.*\n\w+ msg={ID} to=pay.*")
    for listener in (auth, pay):
        listener.wait_message("hi")
        bus.deliver(listener.name, "the end")
        listener.wait_message("the end")
        assert len(listener.lines) == 2


def test_several_targets_with_an_unknown_one(bus: Bus) -> None:
    """Receipts and errors are both printed."""
    auth = bus.listener("auth")
    done = bus.send("--to", "auth,nobody", "--text", "hi", "--as", "script")
    assert done.returncode == 1
    assert re.fullmatch(rf"\w+ msg={ID} to=auth.*\n", done.stdout)
    assert done.stderr.startswith("error: unknown_peer: ")
    auth.wait_message("hi")


def test_to_many(bus: Bus, tmp_path: Path) -> None:
    auth = bus.listener("auth", topics=["deploys", "news"])
    pay = bus.listener("pay", cwd=tmp_path, topics=["deploys"])
    sender = bus.listener("sender", topics=["deploys"])
    counts = {("--all",): 2, ("--project",): 1, ("--topic", "deploys"): 2, ("--topic", "news"): 1, ("--topic", "no"): 0}
    for flags, count in counts.items():
        counted(bus.send(*flags, "--text", "by " + " ".join(flags), owner=sender), count)
    for listener in (auth, pay, sender):
        bus.deliver(listener.name, "by the end")
        listener.wait_message("by the end")
    told = [[line.split("by ")[1] for line in listener.lines] for listener in (auth, pay, sender)]
    assert told == [
        ["--all", "--project", "--topic deploys", "--topic news", "the end"],
        ["--all", "--topic deploys", "the end"],
        ["the end"],
    ]


def test_project_is_the_git_work_tree(bus: Bus, tmp_path: Path) -> None:
    deep = tmp_path / "app" / "src" / "deep"
    deep.mkdir(parents=True)
    (tmp_path / "app" / ".git").mkdir()
    auth = bus.listener("auth", cwd=deep)
    pay = bus.listener("pay", cwd=tmp_path / "app")
    bus.listener("other", cwd=tmp_path)
    counted(bus.send("--project", "--text", "hi", owner=pay, cwd=tmp_path), 1)
    assert auth.wait_message("hi")["to"] == "%app"
    done = bus.send("--project", "--text", "from a script", "--as", "script", cwd=deep)
    counted(done, 2)


def test_zmqbus_broadcast(bus: Bus) -> None:
    auth = bus.listener("auth", topics=["deploys"])
    for flags, to in (([], "all"), (["--topic", "deploys"], "#deploys")):
        done = bus.zmqbus("broadcast", *flags, "--text", f"to {to}", "--as", "script")
        counted(done, 1)
        assert auth.wait_message(f"to {to}")["to"] == to


def test_group_without_members(bus: Bus) -> None:
    bus.listener("auth")
    failed(bus.send("--group", "resizers", "--text", "hi", "--as", "script"), "unknown_peer")


# --- what -------------------------------------------------------------------------------------------------------


def test_text_from_a_file_and_from_standard_input(bus: Bus) -> None:
    auth = bus.listener("auth")
    text = "first line\nsecond \"line\" with 'quotes', é and \U0001f600\n"
    path = bus.cwd / "text.md"
    path.write_text(text)
    reached(bus.send("--to", "auth", "--text-file", str(path), "--as", "script"), "auth")
    reached(bus.send("--to", "auth", "--text-file", "text.md", "--as", "script"), "auth")
    reached(bus.send("--to", "auth", "--text-file", "-", "--as", "script", input=text), "auth")
    whole = text.removesuffix("\n")
    assert [record["text"] for record in bus.records() if record["kind"] == "message"] == [whole] * 3
    wait_until(lambda: len(auth.lines) == 3, "all three are shown")
    assert all(line.endswith("é and \U0001f600") for line in auth.lines), "and none ends with a line end"


@pytest.mark.parametrize(
    ("given", "text"),
    [("a", "a"), ("a\n", "a"), ("a\r\n", "a"), ("a\n\n", "a\n"), ("a\r", "a\r"), ("\na", "\na"), ("a\n\r\n", "a\n")],
)
def test_final_line_end_is_not_part_of_the_text(given: str, text: str) -> None:
    assert send._without_line_end(given.encode()) == text.encode()


def test_file_is_a_pointer(bus: Bus) -> None:
    auth = bus.listener("auth")
    path = bus.cwd / "big report.md"
    path.write_bytes(b"\xff" * 20 * MIB)
    reached(bus.send("--to", "auth", "--file", str(path), "--as", "script"), "auth")
    assert str(path) in auth.wait_for("read")


def test_file_must_be_absolute_and_exist(bus: Bus) -> None:
    bus.listener("auth")
    (bus.cwd / "here.md").write_text("x")
    for path in ("here.md", str(bus.cwd / "nowhere.md"), str(bus.cwd)):
        failed(bus.send("--to", "auth", "--file", path, "--as", "script"), "invalid_payload")
    failed(bus.send("--to", "auth", "--text-file", "nowhere.md", "--as", "script"), "invalid_payload")
    assert bus.run("send.py", "--to", "auth", "--text-file", str(bus.cwd), "--as", "script").returncode == 1


def test_text_that_is_not_utf_8(bus: Bus) -> None:
    bus.listener("auth")
    failed(bus.send("--to", "auth", "--text-file", "-", "--as", "script", input=b"ab\xff"), "invalid_payload")
    failed(bus.send("--to", "auth", "--text", "ab\udcff", "--as", "script"), "invalid_payload")


@pytest.mark.parametrize("many", [False, True], ids=["to one", "to many"])
def test_limits(bus: Bus, many: bool) -> None:
    auth = bus.listener("auth")
    limit, limit_text, to = (256 * 1024, "262,144", ["--all"]) if many else (10 * MIB, "10,485,760", ["--to", "auth"])
    text = "é" * (limit // 2)
    over = bus.send(*to, "--text-file", "-", "--as", "script", input=text + "x")
    assert limit_text in failed(over, "text_too_long")
    over = bus.send(*to, "--text-file", "-", "--as", "script", input=text + "\n\n")
    assert limit_text in failed(over, "text_too_long")
    done = bus.send(*to, "--text-file", "-", "--as", "script", input=text + "\r\n")
    assert done.returncode == 0, done
    fields = auth.wait_message("é" * 100)
    assert fields["truncated"] == str(limit)
    assert bus.zmqbus("inbox", "--msg", str(fields["id"])).stdout == text + "\n"
    assert sum(line.startswith("[inter-session msg=") for line in auth.lines) == 2, "the line and its continuation"


def test_reply_to_must_be_an_id(bus: Bus) -> None:
    bus.listener("auth")
    for bad in ("x", "ABCDEFGHIJ", "a" * 13, "", 'aaaaaaaa"] x'):
        failed(bus.send("--to", "auth", "--text", "hi", f"--reply-to={bad}", "--as", "script"), "invalid_payload")


# --- as whom ----------------------------------------------------------------------------------------------------


def test_without_a_listener(bus: Bus) -> None:
    bus.listener("auth")
    text = failed(bus.send("--to", "auth", "--text", "hi"), "not_connected")
    assert text == "not connected; run /inter-session connect first"


def test_after_the_listener_has_ended(bus: Bus) -> None:
    auth, pay = bus.listener("auth"), bus.listener("pay")
    assert pay.stop() == 0
    failed(bus.send("--to", "auth", "--text", "hi", owner=pay), "not_connected")
    killed = bus.listener("pay", owner=pay)
    killed.stop(signal.SIGKILL)
    failed(bus.send("--to", "auth", "--text", "hi", owner=pay), "not_connected")
    assert auth.lines == []


def test_as_sends_under_a_name_without_a_listener(bus: Bus) -> None:
    auth = bus.listener("auth")
    msg_id = reached(bus.send("--to", "auth", "--text", "hi", "--as", "cron-job"), "auth")
    auth.wait_for("hi")
    assert auth.lines == [f'[inter-session msg={msg_id} from="cron-job"] hi']
    assert bus.states() == {"auth": "live"}, "a script is not a session"


def test_as_name_is_checked(bus: Bus) -> None:
    bus.listener("auth")
    for name in ("Cron", "a b", "x" * 41, "-x", "é"):
        failed(bus.send("--to", "auth", "--text", "hi", f"--as={name}"), "invalid_name")
    failed(bus.send("--to", "auth", "--text", "hi", "--as", "auth"), "invalid_name")


def test_topic_and_group_names_are_checked(bus: Bus) -> None:
    bus.listener("auth")
    for flag in ("--topic", "--group"):
        failed(bus.send(flag, "No Such", "--text", "hi", "--as", "script"), "invalid_name")


def test_helper_uses_the_port_of_its_session(bus: Bus) -> None:
    auth, pay = bus.listener("auth"), bus.listener("pay")
    done = bus.send("--to", "auth", "--text", "hi", owner=pay, env={"INTER_SESSION_PORT": "9"})
    reached(done, "auth")
    auth.wait_message("hi")


# --- what became of it ------------------------------------------------------------------------------------------


def test_away(bus: Bus) -> None:
    auth = bus.listener("auth")
    assert auth.stop() == 0
    match = succeeded(
        bus.send("--to", "auth", "--text", "hi", "--as", "script"), rf"queued msg=({ID}) to=auth \(away \d+s\)"
    )
    assert bus.listener(owner=auth).wait_message("hi")["id"] == match[1]


def test_busy(bus: Bus) -> None:
    auth = bus.listener("auth")
    auth.send_signal(signal.SIGSTOP)
    match = succeeded(
        bus.send("--to", "auth", "--text", "hi", "--as", "script"), rf"queued msg=({ID}) to=auth \(busy\)"
    )
    auth.send_signal(signal.SIGCONT)
    assert auth.wait_message("hi")["id"] == match[1]
    bus.deliver("auth", "the end")
    auth.wait_message("the end")
    assert len(auth.lines) == 2, "shown once"


def test_broadcast_counts_busy_receivers_as_queued(bus: Bus) -> None:
    stopped, away, live = bus.listener("stopped"), bus.listener("away"), bus.listener("live")
    assert away.stop() == 0
    stopped.send_signal(signal.SIGSTOP)
    done = bus.send("--all", "--text", "hi", "--as", "script")
    # The live receiver may be too slow on a busy machine; the stopped ones have not taken it.
    succeeded(done, rf"broadcast msg={ID} (?:delivered=1 queued=2|delivered=0 queued=3)")
    live.wait_message("hi")
    stopped.send_signal(signal.SIGCONT)
    stopped.wait_message("hi")
    again = bus.listener(owner=away)
    assert again.wait_message("hi")["queued"] is not None


def test_disconnected_session_is_unknown(bus: Bus) -> None:
    auth = bus.listener("auth")
    bus.zmqbus("disconnect", owner=auth)
    assert auth.wait_exit() == 0
    failed(bus.send("--to", "auth", "--text", "hi", "--as", "script"), "unknown_peer")


def test_json(bus: Bus) -> None:
    auth, away = bus.listener("auth"), bus.listener("away")
    assert away.stop() == 0

    def sent(*args: str) -> dict[str, object]:
        done = bus.send(*args, "--text", "hi", "--json", "--as", "script")
        assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1), done
        value: dict[str, object] = json.loads(done.stdout)
        return value

    one = sent("--to", "auth")
    assert one["state"] == ("queued" if one["busy"] else "delivered")
    assert (one["to"], one["session_id"]) == ("auth", auth.session_id)
    assert re.fullmatch(ID, str(one["msg_id"]))
    queued = sent("--to", "away")
    assert (queued["state"], queued["busy"], type(queued["away_s"])) == ("queued", False, int)
    many = sent("--all")
    assert (many["state"], int(str(many["delivered"])) + int(str(many["queued"]))) == ("broadcast", 2)
    several = sent("--to", "auth,away")["receipts"]
    assert isinstance(several, list) and [receipt["to"] for receipt in several] == ["auth", "away"]


def test_json_does_not_change_failures(bus: Bus) -> None:
    failed(bus.send("--to", "nobody", "--text", "hi", "--json", "--as", "script"), "unknown_peer")


# --- answers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guest", [False, True], ids=["session", "script"])
def test_wait_prints_the_answer(bus: Bus, guest: bool) -> None:
    auth, pay = bus.listener("auth"), bus.listener("pay")
    sender = ["--as", "script"] if guest else []
    asking = bus.popen("send.py", "--to", "auth", "--text", "ready?", "--wait", *sender, owner=pay)
    question = auth.wait_message("ready?")
    done = bus.send(
        "--to", str(question["name"]), "--text", "answer: yes\né", "--reply-to", str(question["id"]), owner=auth
    )
    reached(done, str(question["name"]))
    out, err = asking.communicate(timeout=DEADLINE_S)
    assert (asking.returncode, out.decode(), err.decode()) == (0, "answer: yes\né\n", "")
    bus.deliver("pay", "the end")
    pay.wait_message("the end")
    assert len(pay.lines) == 1, "who waited for it has it; it is not shown again"


def test_wait_takes_only_the_answer_to_this_message(bus: Bus) -> None:
    auth, pay = bus.listener("auth"), bus.listener("pay")
    asking = bus.popen("send.py", "--to", "auth", "--text", "ready?", "--wait", "90", "--json", owner=pay)
    question = auth.wait_message("ready?")
    other = bus.deliver("auth", "another question", owner=pay)
    bus.deliver("pay", "not an answer", owner=auth)
    bus.deliver("pay", "an answer to another", "--reply-to", other, owner=auth)
    pay.wait_message("an answer to another")
    assert asking.poll() is None
    answer = bus.deliver("pay", "answer: yes", "--reply-to", str(question["id"]), owner=auth)
    out, err = asking.communicate(timeout=DEADLINE_S)
    assert (asking.returncode, err) == (0, b"")
    told = json.loads(out)
    assert (told["msg_id"], told["to"]) == (question["id"], "auth")
    assert (told["answer"]["msg_id"], told["answer"]["text"]) == (answer, "answer: yes")
    assert (told["answer"]["from"], told["answer"]["from_name"]) == (auth.session_id, "auth")
    assert len(pay.lines) == 2


def test_wait_for_a_long_answer(bus: Bus) -> None:
    auth, pay = bus.listener("auth"), bus.listener("pay")
    asking = bus.popen("send.py", "--to", "auth", "--text", "ready?", "--wait", owner=pay)
    question = auth.wait_message("ready?")
    text = "a long line\n" * 100_000
    bus.deliver("pay", text, "--reply-to", str(question["id"]), owner=auth)
    out, _ = asking.communicate(timeout=DEADLINE_S)
    assert (asking.returncode, out.decode()) == (0, text + "\n")


def test_wait_without_an_answer(bus: Bus) -> None:
    auth, pay = bus.listener("auth"), bus.listener("pay")
    failed(bus.send("--to", "auth", "--text", "ready?", "--wait", "0.3", owner=pay), "timeout", status=4)
    question = auth.wait_message("ready?")
    late = bus.deliver("pay", "answer: at last", "--reply-to", str(question["id"]), owner=auth)
    assert pay.wait_for("at last") == f'[inter-session msg={late} from="auth" re={question["id"]}] answer: at last'


def test_wait_for_a_session_that_is_away(bus: Bus) -> None:
    auth, pay = bus.listener("auth"), bus.listener("pay")
    assert auth.stop() == 0
    asking = bus.popen("send.py", "--to", "auth", "--text", "ready?", "--wait", "90", owner=pay)
    wait_until(lambda: [row["waiting"] for row in bus.list("--all") if row["name"] == "auth"] == [1], "it is queued")
    again = bus.listener(owner=auth)
    question = again.wait_message("ready?")
    bus.deliver("pay", "answer: yes", "--reply-to", str(question["id"]), owner=again)
    out, err = asking.communicate(timeout=DEADLINE_S)
    assert (asking.returncode, out, err) == (0, b"answer: yes\n", b"")


def test_wait_fails_at_once_if_nothing_was_sent(bus: Bus) -> None:
    failed(bus.send("--to", "nobody", "--text", "ready?", "--wait", "90", "--as", "script"), "unknown_peer")
    for to in (("--to", "auth,pay"), ("--all",), ("--topic", "deploys")):
        done = bus.send(*to, "--text", "ready?", "--wait", "90", "--as", "script")
        assert (done.returncode, done.stdout) == (2, ""), done
        assert "--wait takes one receiver" in done.stderr


def test_asker_that_was_killed_gets_its_answer_in_its_session(bus: Bus) -> None:
    auth, pay = bus.listener("auth"), bus.listener("pay")
    asking = bus.popen("send.py", "--to", "auth", "--text", "ready?", "--wait", owner=pay)
    question = auth.wait_message("ready?")
    asking.kill()
    asking.wait(DEADLINE_S)
    done = bus.send("--to", "pay", "--text", "answer: yes", "--reply-to", str(question["id"]), owner=auth)
    assert done.returncode == 0, done
    pay.wait_message("answer: yes", timeout=2 * DEADLINE_S)


# --- failures ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["--to", "auth"],
        ["--text", "hi"],
        ["--to", "auth", "--all", "--text", "hi"],
        ["--topic", "t", "--group", "g", "--text", "hi"],
        ["--to", "auth", "--text", "hi", "--text-file", "-"],
        ["--to", "auth", "--text", "hi", "--file", "/etc/hostname"],
        ["--to", "auth", "--text", "hi", "--wait", "soon"],
        ["--to", "auth", "--text", "hi", "--wait", "-1"],
        ["--to", "auth", "--text", "hi", "--wait", "nan"],
        ["--to", "auth", "--text", "hi", "--no-such-flag"],
        ["--to", "auth", "--text"],
        ["--to", "auth", "--text", "hi", "stray"],
    ],
    ids=" ".join,
)
def test_usage_errors(bus: Bus, args: list[str]) -> None:
    done = bus.send(*args)
    assert (done.returncode, done.stdout) == (2, ""), done
    assert "usage" in done.stderr
    assert bus.broker_pid() is None, "nothing is started for it"


def test_help(bus: Bus) -> None:
    done = bus.send("--help")
    assert (done.returncode, done.stderr) == (0, "")
    for flag in ("--to", "--all", "--project", "--topic", "--group", "--text-file", "--reply-to", "--wait", "--as"):
        assert flag in done.stdout


def test_rate_limit_holds_for_all_helpers_of_a_session(bus: Bus) -> None:
    pay = bus.listener("pay")
    with identify(environ=bus.env(pay)).act()[
        1
    ] as helper:  # sixty commands could take longer than the minute of the limit
        for _ in range(BROADCASTS_PER_MINUTE - 4):
            helper.broadcast(b"hi")
    for process in [bus.popen("send.py", "--all", "--text", "hi", owner=pay) for _ in range(4)]:
        out, err = process.communicate(timeout=DEADLINE_S)
        assert (process.returncode, err) == (0, b""), (out, err)
    text = failed(bus.send("--all", "--text", "hi", owner=pay), "rate_limited")
    assert re.search(r"retry in \d+ s", text)
    auth = bus.listener("auth")
    reached(bus.send("--to", "auth", "--text", "to one", owner=pay), "auth")
    counted(bus.send("--all", "--text", "others may", owner=auth), 1)
    pay.wait_message("others may")
    assert pay.stop() == 0
    again = bus.listener(owner=pay)
    failed(bus.send("--all", "--text", "hi", owner=again), "rate_limited")


def test_rate_limit_holds_for_scripts(bus: Bus) -> None:
    with guest(load(environ=bus.env()), "script") as script:
        for _ in range(BROADCASTS_PER_MINUTE - 4):
            script.broadcast(b"hi")
    started = [bus.popen("send.py", "--all", "--text", "hi", "--as", "script") for _ in range(4)]
    assert [process.wait(DEADLINE_S) for process in started] == [0] * 4
    failed(bus.send("--all", "--text", "hi", "--as", "script"), "rate_limited")


def test_state_file_with_another_token(bus: Bus) -> None:
    auth, pay = bus.listener("auth"), bus.listener("pay")
    pay.state_path.write_text(json.dumps({**pay.state, "token": auth.state["token"]}))
    failed(bus.send("--to", "auth", "--text", "hi", owner=pay), "unauthorized")
    assert auth.lines == []


def test_broker_that_does_not_answer(bus: Bus) -> None:
    auth, pay = bus.listener("auth"), bus.listener("pay")
    bus.signal_broker(signal.SIGSTOP)
    failed(bus.send("--to", "auth", "--text", "lost?", owner=pay), "broker_unavailable")
    bus.signal_broker(signal.SIGCONT)
    bus.wait_state("auth", "live")
    bus.wait_state("pay", "live")
    bus.deliver("auth", "after that", owner=pay)
    auth.wait_message("after that")


def test_send_starts_a_broker(bus: Bus) -> None:
    auth = bus.listener("auth")
    assert auth.stop() == 0
    assert bus.zmqbus("broker", "--stop").returncode == 0
    assert bus.broker_pid() is None
    failed(bus.send("--to", "nobody", "--text", "hi", "--as", "script"), "unknown_peer")
    assert bus.broker_pid() is not None


def test_closed_output_is_no_traceback(bus: Bus) -> None:
    auth = bus.listener("auth")
    process = bus.popen("send.py", "--to", "auth", "--text", "hi", "--as", "script")
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    process.wait(DEADLINE_S)
    assert b"Traceback" not in process.stderr.read()
    auth.wait_message("hi")


# --- fields over their limits


def test_full_target_is_named_at_once_and_the_others_get_it(bus: Bus) -> None:
    """The refusal names the message and its target."""
    auth, pay = bus.listener("auth"), bus.listener("pay")
    for target in ("x" * 5_000, "x" * 9_000, "x" * 100_000, "p\udcffy"):
        for more in ((), ("--as", "cron")):
            done = bus.send("--to", target, "--text", "?", *more, owner=auth)
            assert (done.returncode, done.stdout) == (1, ""), done
            assert done.stderr.startswith("error: invalid_name: target "), done
            assert len(done.stderr) < 200
    bus.deliver("pay", "and the next one goes through", owner=auth)
    pay.wait_message("and the next one goes through")


def test_python_learns_which_message_found_a_full_mailbox(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    pay = bus.listener("pay")
    monkeypatch.setenv("INTER_SESSION_DATA_DIR", str(bus.data_dir))
    monkeypatch.setenv("INTER_SESSION_PORT", str(bus.port))
    with zmqbus.connect("program") as program:
        bad = [program.send(target, "?", wait=False) for target in ("x" * 5_000, "x" * 90_000)]
        good = program.send("pay", "behind them")
        for future in bad:
            with pytest.raises(errors.InvalidName, match="the limit is 4,096"):
                future.result(DEADLINE_S)
        with pytest.raises(errors.InvalidName):
            program.ask("@" + "g" * 300, "?", timeout=DEADLINE_S)
        assert good.state in ("delivered", "queued")
    pay.wait_message("behind them")


def test_directory_name_that_is_not_utf_8(bus: Bus, tmp_path: Path) -> None:
    odd = os.fsencode(tmp_path) + b"/gr\xfc\xdfe"
    os.mkdir(odd)
    auth = bus.listener("auth", cwd=Path(os.fsdecode(odd)))
    bus.deliver("auth", "hello", owner=bus.listener("pay"))
    auth.wait_message("hello")

"""Commands in unusual surroundings: directory, output, encoding, shell, signals."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.real.conftest import COMMAND_TIMEOUT_S, ROOT, Bus, ListenerProcess, Owner, wait_until
from tests.real.test_hook import PATIENT

#: A directory with a name that is not UTF-8.
ODD = b"caf\xe9"


def shell(
    bus: Bus, script: str, owner: Owner | ListenerProcess | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a line of sh in which `$send`, `$list`, `$client` and `$zmqbus` are the commands."""
    names = {"send": "send.py", "list": "list.py", "client": "client.py", "zmqbus": "zmqbus"}
    commands = {name: shlex.join([sys.executable, str(ROOT / "bin" / file)]) for name, file in names.items()}
    done = subprocess.run(
        ["sh", "-c", script],
        env={**bus.env(owner or bus.stranger, env), **commands},
        cwd=bus.cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=COMMAND_TIMEOUT_S,
    )
    return subprocess.CompletedProcess(script, done.returncode, done.stdout.decode(), done.stderr.decode())


def no_traceback(done: Any) -> Any:
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr, done.stderr
    return done


# --- the current directory is gone


GONE = 'mkdir "$HOME/gone" && cd "$HOME/gone" && rmdir "$HOME/gone" && '


@pytest.fixture
def auth(bus: Bus) -> ListenerProcess:
    return bus.listener("auth")


@pytest.mark.parametrize(
    ("command", "status", "out"),
    [
        ("$send --to auth --text hi --as script", 0, r"delivered msg=\w+ to=auth\n"),
        ("$send --all --text hi --as script", 0, r"broadcast .*\n"),
        ("$zmqbus broadcast --text hi --as script", 0, r"broadcast .*\n"),
        ("$list", 0, r"NAME(.*\n)+"),
        ("$list --self", 0, r"not connected\n"),
        ("$zmqbus status --json", 0, r".*\n"),
        ("$zmqbus log", 0, ""),
        ("$zmqbus broker --status", 0, r"(.*\n)+"),
        ("$zmqbus stats", 0, r"(.*\n)+"),
        ("$zmqbus disconnect", 0, r"not connected\n"),
        ("$zmqbus --version", 0, r"zmqbus .*\n"),
        ("$zmqbus doctor --json", None, r".*\n"),
        ("$zmqbus inbox", 1, ""),
        ("$client --name other --away", 0, r"\[inter-session\] joined as 'other' .*\n"),
    ],
)
def test_commands_work_in_a_deleted_directory(
    bus: Bus, auth: ListenerProcess, command: str, status: int | None, out: str
) -> None:
    done = no_traceback(shell(bus, GONE + command))
    assert status is None or done.returncode == status, done
    assert re.fullmatch(out, done.stdout), done
    if command.endswith("inbox"):
        assert done.stderr == "error: not_connected: not connected; run zmqbus connect first\n"


def test_inbox_works_in_a_deleted_directory(bus: Bus) -> None:
    pay = bus.listener("pay")
    pay.stop()
    bus.deliver("pay", "while you were away")
    done = no_traceback(shell(bus, GONE + "$zmqbus inbox", pay))
    assert (done.returncode, done.stderr) == (0, "")
    assert "    while you were away\n" in done.stdout


@pytest.mark.parametrize(
    ("command", "error"),
    [
        ("$send --project --text hi --as script", "error: usage: --project: the current directory is gone"),
        ("$list --project", "error: usage: --project: the current directory is gone"),
    ],
)
def test_commands_that_need_a_directory_say_so(bus: Bus, auth: ListenerProcess, command: str, error: str) -> None:
    done = no_traceback(shell(bus, GONE + command))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(error) and "cd to another one" in done.stderr


def test_unnamed_session_in_a_deleted_directory_asks_for_a_name(bus: Bus) -> None:
    owner = bus.owner()
    done = no_traceback(shell(bus, GONE + "$client", owner))
    assert (done.returncode, done.stderr) == (1, "")
    assert re.fullmatch(
        r"\[inter-session\] cannot connect: no name to use: the current directory is gone .*; cd to another one, "
        r"or name the session: --name N\n",
        done.stdout,
    )
    # A session with a name keeps it.
    bus.listener("auth", owner=owner).stop()
    done = no_traceback(shell(bus, GONE + "$client --away", owner))
    assert done.stdout.startswith("[inter-session] joined as 'auth'")


def test_program_connects_in_a_deleted_directory(bus: Bus) -> None:
    bus.listener("auth")
    program = (
        "import os, zmqbus\n"
        "with zmqbus.connect('x') as bus:\n"
        "    print(bus.send('auth', 'hi').state)\n"
        "    try:\n"
        "        bus.broadcast('hi', project=True)\n"
        "    except ValueError as error:\n"
        "        print(error)\n"
    )
    command = f"PYTHONPATH={shlex.quote(str(ROOT))} {sys.executable} -c {shlex.quote(program)}"
    done = no_traceback(shell(bus, GONE + command))
    assert done.returncode == 0, done
    assert re.fullmatch(r"delivered\nthe current directory is gone .*\n", done.stdout)


@pytest.mark.parametrize("event", ["SessionStart", "UserPromptSubmit", "Stop"])
def test_hooks_of_a_session_whose_worktree_was_deleted(bus: Bus, event: str) -> None:
    pay = bus.listener("pay")
    pay.stop()
    bus.deliver("pay", "while you were away")
    told = json.dumps({"hook_event_name": event, "cwd": "/no/such/worktree"})
    hook = shlex.join([sys.executable, "-c", PATIENT, str(ROOT), str(ROOT / "bin" / "hook.py")])
    call = f"{GONE} printf %s {shlex.quote(told)} | {hook}"
    done = no_traceback(shell(bus, call, pay))
    assert (done.returncode, done.stderr) == (0, "")
    assert ("1 unread message waits" if event == "SessionStart" else "while you were away") in done.stdout
    if event == "SessionStart":  # of a session that is not connected
        done = no_traceback(shell(bus, call))
        assert "joins it under a name: /inter-session connect <name>" in done.stdout


# --- names that are not UTF-8


@pytest.fixture
def odd(bus: Bus) -> Iterator[str]:
    path = os.path.join(os.fsencode(bus.cwd), ODD)
    os.mkdir(path)
    yield os.fsdecode(path)


def test_session_in_a_directory_that_is_not_utf_8(bus: Bus, odd: str) -> None:
    here = bus.listener("here", cwd=Path(odd))
    unnamed = bus.listener(cwd=Path(odd))
    unnamed.wait_for(r"auto-named 'caf-xe9' from cwd .*/caf\\xe9$")
    other = os.fsencode(bus.cwd) + b"/caf\xe8"
    os.mkdir(other)
    bus.listener("other", cwd=Path(os.fsdecode(other)))
    rows = {row["name"]: row for row in bus.list()}
    assert rows["here"]["cwd"] == rows["here"]["project"] == os.path.join(os.path.realpath(bus.cwd), "caf\\xe9")
    table = no_traceback(bus.run("list.py"))
    assert "caf\\xe9" in table.stdout
    # One project has messages from a session and from a script; the other project is separate.
    for options, owner in ((["--as", "script"], None), ([], unnamed)):
        done = no_traceback(bus.send("--project", "--text", "to us", *options, cwd=Path(odd), owner=owner))
        assert re.fullmatch(r"broadcast msg=\S+ delivered=\d queued=\d\n", done.stdout), done
        assert sum(map(int, re.findall(r"=(\d)\b", done.stdout))) == (2 if owner is None else 1)
    here.wait_message("to us")
    names = [row["name"] for row in bus.list("--project", cwd=Path(odd))]
    assert sorted(names) == ["caf-xe9", "here"]
    assert "%caf\\xe9" in no_traceback(bus.zmqbus("log")).stdout


def test_data_directory_that_is_not_utf_8(bus: Bus, odd: str) -> None:
    env = {"INTER_SESSION_DATA_DIR": os.path.join(odd, "data")}
    commands = f"$zmqbus broker && $client --name x --away && $send --to x --as y --text {'z' * 500}"
    done = no_traceback(shell(bus, f"{commands} && $zmqbus inbox && $zmqbus doctor; $zmqbus broker --stop", env=env))
    assert "zzz" in done.stdout and "joined as 'x'" in done.stdout and "stopped" in done.stdout, done


def test_files_and_arguments_that_are_not_utf_8(bus: Bus, odd: str) -> None:
    auth = bus.listener("auth")
    path = os.path.join(odd, "it's\n\udce9.txt")
    Path(path).write_text("what is in it")
    send = ["--to", "auth", "--as", "script"]
    no_traceback(bus.send(*send, "--file", path))
    line = auth.wait_for("Please read the file")
    name = re.search(r"the file (\$'.*') \(as bash writes it\) \(13 bytes\)", line)
    assert name is not None, line
    assert subprocess.run(["bash", "-c", f"cat {name[1]}"], capture_output=True).stdout == b"what is in it"
    assert no_traceback(bus.send(*send, "--text-file", path)).returncode == 0
    auth.wait_message("what is in it")
    for arguments, code in (
        ([*send, "--text", "\udce9"], "invalid_payload"),
        ([*send, "--text-file", path + "x"], "invalid_payload"),
        ([*send, "--file", path + "x"], "invalid_payload"),
        ([*send, "--text", "x", "--reply-to", "\udce9"], "invalid_payload"),
        (["--to", "\udce9", "--as", "script", "--text", "x"], "invalid_name"),
        (["--to", "auth", "--as", "\udce9", "--text", "x"], "invalid_name"),
        (["--topic", "\udce9", "--as", "script", "--text", "x"], "invalid_name"),
    ):
        done = no_traceback(bus.send(*arguments))
        assert (done.returncode, done.stdout) == (1, "")
        assert re.fullmatch(rf"error: {code}: .+\n", done.stderr), done
    for arguments in (["log", "--from", "\udce9"], ["rename", "\udce9"], ["inbox", "--msg", "\udce9"], ["\udce9"]):
        done = no_traceback(bus.zmqbus(*arguments, owner=auth))
        assert done.returncode in (1, 2) and done.stderr.count("\n") == 1


def test_text_in_an_unknown_locale(bus: Bus) -> None:
    """Python takes the locale for ASCII, and the typed bytes are UTF-8: these bytes are sent."""
    auth = bus.listener("auth")
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = no_traceback(bus.send("--to", "auth", "--as", "script", "--text", "für dich ↵ 🎉", env=locale))
    assert done.returncode == 0, done
    auth.wait_message("für dich ↵ 🎉")


# --- the output


#: Each prints something, and has no effect.
PRINTING = (
    "$send --help",
    "$zmqbus --help",
    "$zmqbus --version",
    "$zmqbus connect --help",
    "$list",
    "$list --json",
    "$list --self",
    "$zmqbus log",
    "$zmqbus log --json",
    "$zmqbus inbox --peek --json",
    "$zmqbus doctor",
    "$zmqbus stats",
    "$zmqbus stats --prometheus",
    "$zmqbus broker --status",
    "$zmqbus auto-start",
)


@pytest.fixture
def pay(bus: Bus) -> ListenerProcess:
    """A session that is away, with mail."""
    pay = bus.listener("pay")
    pay.stop()
    bus.wait_state("pay", "away")
    bus.burst("pay", [f"text {number}" for number in range(20)])
    return pay


@pytest.mark.parametrize(
    ("redirection", "status", "reason"),
    [(">/dev/full", 1, "No space left on device"), (">&-", 1, "Bad file descriptor")],
)
def test_unwritable_output_is_a_one_line_error(
    bus: Bus, pay: ListenerProcess, redirection: str, status: int, reason: str
) -> None:
    for command in PRINTING:
        done = shell(bus, f"{command} {redirection}", pay)
        assert (done.returncode, done.stdout) == (status, ""), (command, done)
        assert re.fullmatch(f"error: output: cannot write the output: {reason}; .*\n", done.stderr), (command, done)


@pytest.mark.parametrize("command", ["$zmqbus log", "$zmqbus watch --plain", "$zmqbus watch --json", "$zmqbus log -f"])
def test_closed_pipe_is_no_error(bus: Bus, pay: ListenerProcess, command: str) -> None:
    done = shell(bus, f"{command} | head -n 1", pay)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full", "2>&- >/dev/null <&-"])
def test_exit_status_holds_without_stderr(bus: Bus, redirection: str) -> None:
    for command, status in (("$send --to x --text y --as z", 1), ("$send --nonsense", 2), ("$zmqbus nonsense", 2)):
        done = shell(bus, f"{command} {redirection}", env={"INTER_SESSION_PORT": str(bus.port)})
        assert (done.returncode, done.stdout, done.stderr) == (status, "", ""), command


@pytest.mark.parametrize(
    ("redirection", "status", "reason"),
    [(">/dev/full", 1, "No space left on device"), (">&-", 1, "Bad file descriptor")],
)
@pytest.mark.parametrize("json", ["", " --json"])
def test_receipt_goes_to_stderr_if_stdout_is_closed(
    bus: Bus, redirection: str, status: int, reason: str, json: str
) -> None:
    auth = bus.listener("auth")
    done = shell(bus, f"$send --to auth --as script --text hello{json} {redirection}")
    assert (done.returncode, done.stdout) == (status, "")
    msg_id = auth.wait_message("hello")["id"]
    assert done.stderr == (
        f"error: output: this was carried out and need not be repeated, but could not be printed ({reason}): "
        f"the message was sent: delivered msg={msg_id} to=auth\n"
    )
    done = shell(bus, f"$zmqbus rename login {redirection}", auth)
    assert (done.returncode, done.stderr.endswith(f"({reason}): renamed auth to login\n")) == (status, True), done


def test_unprinted_mail_stays_unread(bus: Bus, pay: ListenerProcess) -> None:
    for redirection in (">/dev/full", ">&-"):
        assert shell(bus, f"$zmqbus inbox {redirection}", pay).returncode == 1
    wanted = [f"text {number}" for number in range(20)]
    peeked = [json.loads(line)["text"] for line in shell(bus, "$zmqbus inbox --peek --json", pay).stdout.splitlines()]
    assert peeked == wanted
    assert shell(bus, "$zmqbus inbox --json", pay).stdout.count("\n") == 20


def test_unprinted_answer_stays_unread(bus: Bus) -> None:
    auth, pay = bus.listener("auth"), bus.listener("pay")
    with open("/dev/full", "wb") as full:
        process = bus.popen("send.py", "--to", "pay", "--text", "up?", "--wait", "60", owner=auth, stdout=full)
        msg_id = str(pay.wait_message("up?")["id"])
        bus.deliver("auth", "answer: yes", "--reply-to", msg_id, owner=pay)
        errors = process.communicate(timeout=COMMAND_TIMEOUT_S)[1].decode()
    assert process.returncode == 1
    assert f"the message was sent: delivered msg={msg_id} to=pay; its answer " in errors and "stays unread" in errors
    auth.wait_message("answer: yes")


def test_listener_with_a_full_output_ends_with_a_reason_and_loses_nothing(bus: Bus) -> None:
    owner = bus.owner()
    with open("/dev/full", "wb") as full:
        process = bus.popen("client.py", "--name", "auth", owner=owner, stdout=full)
        wait_until(lambda: "auth" in bus.states(), "the listener connects")
        bus.deliver("auth", "hello")
        errors = process.communicate(timeout=COMMAND_TIMEOUT_S)[1].decode()
    assert process.returncode == 1
    assert errors == (
        "error: output: cannot write the output: No space left on device; messages that could not be shown stay "
        "unread; check where the output is redirected to\n"
    )
    bus.listener("auth", owner=owner).wait_message("hello")


def test_listener_without_output_does_not_start(bus: Bus) -> None:
    done = shell(bus, "$client --name auth >&-")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: output: cannot write the output: ")
    assert bus.states() == {}


# --- signals that are ignored


def test_nohup(bus: Bus) -> None:
    """A broker and a listener that were started under `nohup` outlive the terminal."""

    def ignore() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    broker = bus.popen("zmqbus", "broker", "--foreground", preexec_fn=ignore)
    wait_until(bus.broker_pid, "the broker serves")
    owner = bus.owner()
    process = bus.popen("client.py", "--name", "auth", owner=owner, preexec_fn=ignore)
    listener = ListenerProcess(bus, process, owner).wait_connected()
    for one in (broker, process):
        one.send_signal(signal.SIGHUP)
    bus.deliver("auth", "still there?")
    listener.wait_message("still there?")
    process.terminate()
    assert listener.wait_exit() == 0
    assert broker.poll() is None and bus.broker_pid() == broker.pid
    broker.send_signal(signal.SIGINT)
    assert broker.wait(COMMAND_TIMEOUT_S) == 0
    listener.close()


# --- how it is called


def test_python_m(bus: Bus) -> None:
    env = {"PYTHONPATH": str(ROOT)}
    done = shell(bus, f"{sys.executable} -m zmqbus --version && {sys.executable} -m zmqbus list", env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"zmqbus \S+\nno sessions connected\n", done.stdout)


def test_advice_fits_the_shell_or_the_agent(bus: Bus) -> None:
    text = "error: not_connected: not connected; run {} connect first\n"
    commands = ("$zmqbus send --to x --text y", "$zmqbus rename x", "$zmqbus inbox", "$zmqbus broadcast --text x")
    for command in commands:
        assert shell(bus, command).stderr == text.format("zmqbus")
        for name in ("CLAUDECODE", "CLAUDE_CODE_SESSION_ID"):
            assert shell(bus, command, env={name: "1"}).stderr == text.format("/inter-session")
    assert shell(bus, "$send --to x --text y").stderr == text.format("/inter-session")  # a script of the skill
    for name in ("web", "web-2", "web-3", "web-4"):
        bus.listener(name)
    ending = "run {} connect <other-name>\n"
    for command, called in (("$client --name web", "/inter-session"), ("$zmqbus connect web", "zmqbus")):
        assert shell(bus, command, bus.owner()).stdout.endswith(ending.format(called))


def test_invalid_flag_is_an_error_and_invalid_variable_a_warning(bus: Bus) -> None:
    for command in (
        *("$send --to x --text y --as z", "$list", "$client --name x", "$zmqbus status", "$zmqbus stats"),
        *("$zmqbus watch", "$zmqbus broker", "$zmqbus doctor", "$zmqbus broadcast --text x --as y"),
    ):
        done = shell(bus, f"{command} --port abc")
        assert (done.returncode, done.stdout) == (2, ""), command
        assert done.stderr.startswith("error: usage: --port must be a whole number from 1 to 65535, not 'abc'"), done
    assert bus.broker_pid() is None  # and nothing was done on another port
    for command in ("$client --idle-shutdown-minutes soon", "$zmqbus broker --idle-shutdown-minutes soon"):
        done = shell(bus, command)
        assert (done.returncode, done.stdout) == (2, "")
        assert "--idle-shutdown-minutes must be a number of minutes" in done.stderr
    done = shell(bus, "$list", env={"CLAUDE_PLUGIN_OPTION_PORT": "abc"})
    assert (done.returncode, done.stdout) == (0, "no sessions connected\n")
    assert done.stderr.startswith("warning: ignoring CLAUDE_PLUGIN_OPTION_PORT='abc'")


@pytest.mark.parametrize(
    ("command", "error"),
    [
        ("$zmqbus connect web --name other", "two names given, 'web' and 'other'; give one"),
        ("$client --name a --name b", "--name is given twice; give it once"),
        ("$send --to a --to b --text x --as y", "--to is given twice; give it once"),
        ("$send --to a --text x --text y --as z", "--text is given twice; give it once"),
        ("$zmqbus log --from a --from b", "--from is given twice; give it once"),
        ("$zmqbus broker --json", "--json goes with --status"),
        (
            "$zmqbus broker --stop --idle-shutdown-minutes 5",
            "--idle-shutdown-minutes does not go with --status or --stop",
        ),
    ],
)
def test_conflicting_values_are_an_error(bus: Bus, command: str, error: str) -> None:
    done = shell(bus, command)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: usage: {error}"), done


def test_repeated_value_is_accepted(bus: Bus) -> None:
    done = shell(bus, "$zmqbus connect web --name web --away")
    assert done.returncode == 0 and "joined as 'web'" in done.stdout, done


# --- empty texts


@pytest.mark.parametrize("text", ["", " ", "\n\t\n", "\u200b\ufeff", "\x1b[0m"])
def test_empty_text_is_refused(bus: Bus, text: str, tmp_path: Path) -> None:
    auth = bus.listener("auth")
    (tmp_path / "empty").write_text(text)
    for options, given in (
        (["--to", "auth", "--text", text], ""),
        (["--to", "auth", "--text-file", str(tmp_path / "empty")], ""),
        (["--to", "auth", "--text-file", "-"], text),
        (["--all", "--text", text], ""),
    ):
        done = bus.send(*options, "--as", "script", input=given)
        assert (done.returncode, done.stdout) == (1, "")
        assert re.fullmatch(r"error: invalid_payload: the text is empty; .*\n", done.stderr), done
    assert auth.lines == [] and not [record for record in bus.records() if "msg_id" in record]

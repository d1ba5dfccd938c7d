"""The processes that a soak run starts and restarts: receivers, senders, and send commands.

`look_after` restarts processes that have ended. `hit` carries out a deed of the schedule; it returns False if the
process is not running, or cannot be hit in this way now, and the deed is tried again later.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import selectors
import signal
import subprocess
import time

import psutil

from tests.real.conftest import ROOT
from tests.soak.history import EVERYONE, Answer, Sent, make_text, read_line
from tests.soak.player import Plan
from tests.soak.schedule import Deed
from tests.soak.stage import Stage

#: Mean pause between two looks of an agent at its inbox, and the pause after one that failed, s.
CURIOUS_S = 15.0
AGAIN_S = 1.0
#: Most listeners are restarted at once; some only after every other process has noticed that they are away.
PAUSE_S = (0.05, 1.0)
LONG_PAUSE_S = (3.0, 15.0)
LONG_PAUSES = 0.15
#: Shares of the kills of listeners that strike just after a line was read, and just after a sender got the receipt; the
#: others strike at random. And how long they wait for that instant at most, s.
AT_LINE, WHEN_TOLD = 0.4, 0.3
LINE_S, TOLD_S = 5.0, 25.0
#: Pause between two send commands, s: each costs as much as hundreds of messages.
COMMAND_PAUSE_S = 0.7
#: How long after its start a command is killed, s: while python starts, while it connects, or while it waits.
COMMAND_DIES_S = (0.02, 0.25)
#: How many agents join under a name and die without a listener before one stays; and the share of dying agents whose
#: listener is killed with them. Other listeners notice the death within two looks.
SHORT_LIVES = (0, 0, 1, 2)
LISTENER_DIES_TOO = 0.5
#: A broker that was stopped within this time, s, excuses a listener that could not connect.
EXCUSED_S = 25.0

_DIGEST = re.compile(r"\[inter-session\] \d+ more messages waiting")


class Receiver:
    """A session and its owner process: the listener, the inbox command, and the pipe that both write to."""

    def __init__(self, stage: Stage, name: str) -> None:
        self.name = name
        self.owner = stage.start_owner()
        self.listener: subprocess.Popen[bytes] | None = None
        self.read_nothing = 0  #: how many inbox commands in a row found nothing
        self._stage = stage
        self._chance = stage.chance
        self._reader = self._writer = -1
        self._torn = b""
        self._pids: dict[str, int] = {}
        self._listen_at_s = 0.0
        self.dies_when_told = False  #: the listener is killed as soon as a sender hears `delivered` from it
        self._dies_at_line = False  # the listener is killed as soon as it shows a message
        self._ending = False  # it was asked to end, or its output was closed
        self._dead = False  # the owner was killed; the next one starts when the listener has ended
        self._short_lives = 0  # owners that will still die before one stays
        self._joining: subprocess.Popen[bytes] | None = None  # the command by which a short-lived owner joins
        self._inbox: subprocess.Popen[bytes] | None = None
        self._inbox_at_s = float("inf")
        self._inbox_lines = 0
        self._inbox_dies_at: int | None = None  # the line after which it is killed

    @property
    def connected(self) -> bool:
        """Whether the running listener has connected."""
        try:
            state = json.loads((self._stage.data_dir / "clients" / f"{self.owner.pid}.session").read_text("utf-8"))
        except (OSError, ValueError):
            return False
        return self.listener is not None and bool(state["listener_pid"] == self.listener.pid)

    def look_after(self, now_s: float) -> None:
        """Restarts ended processes, and reads the inbox as an agent does."""
        if self.listener is not None and self.listener.poll() is not None:
            self._listener_ended(self.listener, now_s)
        if self._dead and self.listener is None and self._inbox is None:
            self._live_again()
        if self.listener is None and not self._dead and now_s >= self._listen_at_s:
            self._start_listener()
        if self._inbox is not None and self._inbox.poll() is not None:
            self._inbox_ended(self._inbox.returncode, now_s)
        if self._inbox is None and self.listener is not None and not self._dead and now_s >= self._inbox_at_s:
            self._start_inbox()

    def rest(self) -> None:
        """Stops killing, and reads the inbox at once: the schedule is over."""
        self._dies_at_line = self.dies_when_told = False
        self._inbox_dies_at = None
        self._inbox_at_s = 0.0
        self.read_nothing = 0

    def hit(self, deed: Deed) -> bool:
        """Carries out a deed; see the module."""
        if deed.what == "die":
            return self._die(deed)
        if deed.what == "kill inbox":
            self._inbox_dies_at = 1 + int(deed.value * 20)
            return True
        if self.listener is None or self.listener.poll() is not None:
            return False
        if deed.what == "close":
            return self._close_output()
        if deed.what == "kill" and deed.value < AT_LINE + WHEN_TOLD:
            # Between the write of a line and its entry in the shown log, and just after the receipt.
            self._dies_at_line = deed.value < AT_LINE
            self.dies_when_told = not self._dies_at_line
            self._stage.later(LINE_S if self._dies_at_line else TOLD_S, self._no_instant)
            return True
        if deed.what == "expire":
            self._ending = True
            self._stage.note("expire", self.name, self.listener.pid)
            self.listener.send_signal(signal.SIGTERM)
            return True
        if deed.what == "stop":
            return self._stage.stop(self.name, self.listener, deed.value)
        if deed.what == "cut":
            return self._stage.cut(self.name, self.listener)
        return self._stage.kill(self.name, self.listener)

    def close(self) -> None:
        """Ends all processes of the session."""
        self._stage.end(self._joining)
        self._stage.end(self._inbox)
        self._stage.end(self.listener)
        self._read()
        self.owner.kill()
        self._stage.end(self.owner)
        for descriptor in (self._reader, self._writer):
            if descriptor >= 0:
                os.close(descriptor)

    # --- the agent

    def _die(self, deed: Deed) -> bool:
        """Kills the owner. A successor under its name follows, perhaps after some that join without a listener."""
        if self._dead or self.listener is None or self.listener.poll() is not None:
            return False
        self._dead = self._ending = True
        self._short_lives = self._chance.choice(SHORT_LIVES)
        self.owner.kill()
        self._stage.end(self.owner)
        self._stage.note("die", self.name, self.owner.pid, f"{self._short_lives} short lives follow")
        if deed.value < LISTENER_DIES_TOO:
            self._stage.kill(self.name, self.listener)
        return True

    def _live_again(self) -> None:
        """Starts the next owner, once the listener has ended: one that joins and dies, or the one that stays."""
        if self._joining is not None:
            if self._joining.poll() is None:
                return
            self._stage.end(self._joining)
            self._joining = None
            self.owner.kill()
            self._stage.end(self.owner)
        self.owner = self._stage.start_owner()
        if not self._short_lives:
            self._dead = False
            return
        self._short_lives -= 1
        command = [str(ROOT / "bin" / "client.py"), "--away", "--name", self.name]
        self._joining = self._stage.popen(command, self._stage.env(self.owner))
        self._stage.note("join", self.name, self._joining.pid)

    # --- the listener

    def _start_listener(self) -> None:
        if self._reader < 0:
            self._reader, self._writer = os.pipe()
            os.set_blocking(self._reader, False)
            self._stage.selector.register(self._reader, selectors.EVENT_READ, self._read)
        env = self._stage.env(self.owner)
        if self._stage.setup.is_wired(self.name):
            env["SOAK_WIRE"] = str(self._stage.notes / f"{self.name}.wire")
            command = ["-m", "tests.soak.wire", str(self._chance.randrange(10**9)), "connect"]
        else:
            command = [str(ROOT / "bin" / "client.py")]
        self.listener = self._stage.popen([*command, "--name", self.name], env, stdout=self._writer)
        self._pids["listener"] = self.listener.pid
        self._stage.note("start", self.name, self.listener.pid)

    def _listener_ended(self, listener: subprocess.Popen[bytes], now_s: float) -> None:
        self._read()
        status = listener.returncode
        self._stage.note("end", self.name, listener.pid, f"status {status}")
        # SIGTERM before the handler is installed ends it as well.
        in_order = self._ending and status in (0, -signal.SIGTERM)
        if status != -signal.SIGKILL and not in_order and not (status == 1 and self._excused()):
            said = [line for line in self._stage.lines[-20:] if f" {self.name}: " in line]
            self._stage.failures.append(f"the listener {self.name} ({listener.pid}) ended with {status}: {said[-2:]}")
        self.listener = None
        self._ending = self._dies_at_line = self.dies_when_told = False
        span = LONG_PAUSE_S if self._chance.random() < LONG_PAUSES else PAUSE_S
        self._listen_at_s = now_s + (0.0 if self._stage.calm else self._chance.uniform(*span))

    def _excused(self) -> bool:
        """Whether the broker was stopped recently: a listener that starts meanwhile may report that and end."""
        since_s = time.monotonic() - EXCUSED_S
        return any(
            blow.at_s > since_s and (blow.what, blow.whom) == ("stop", "broker") for blow in self._stage.blows[-200:]
        )

    def told(self) -> None:
        """Notes that a sender has just heard `delivered` from this receiver."""
        if self.dies_when_told:
            self._stage.kill(self.name, self.listener)
            self.dies_when_told = False

    def _no_instant(self) -> None:
        if self._dies_at_line or self.dies_when_told:
            self._dies_at_line = self.dies_when_told = False
            self._stage.kill(self.name, self.listener)

    def _close_output(self) -> bool:
        """Closes the reading end of the output, after reading everything written so far."""
        assert self.listener is not None
        if self._inbox is not None or not self._stands_still(self.listener):
            return False
        self._read()
        self._stage.selector.unregister(self._reader)
        os.close(self._reader)
        os.close(self._writer)
        self._reader = self._writer = -1
        self._torn = b""
        self._ending = True
        self._stage.note("close", self.name, self.listener.pid)
        self.listener.send_signal(signal.SIGCONT)
        return True

    def _stands_still(self, process: subprocess.Popen[bytes]) -> bool:
        """Stops a process and waits until it is stopped. Returns False if it has ended."""
        process.send_signal(signal.SIGSTOP)
        try:
            while psutil.Process(process.pid).status() not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE):
                time.sleep(0.001)
        except psutil.Error:
            return False
        return process.poll() is None

    # --- output

    def _read(self) -> None:
        """Reads everything printed so far."""
        while self._reader >= 0:
            try:
                part = os.read(self._reader, 1 << 20)
            except BlockingIOError:
                return
            at_s = time.monotonic()
            if self._dies_at_line and b"[inter-session msg=" in part:
                self._dies_at_line = False
                self._stage.kill(self.name, self.listener)
            *lines, self._torn = (self._torn + part).split(b"\n")
            for line in lines:
                self._take(line.decode("utf-8", "replace"), at_s)

    def _take(self, line: str, at_s: float) -> None:
        shown, rest = read_line(self.name, line, at_s, self._pids)
        self._stage.shown += shown
        if any(item.by == "inbox" for item in shown):
            self._inbox_lines += 1
            if self._inbox_dies_at is not None and self._inbox_lines >= self._inbox_dies_at:
                self._inbox_dies_at = None
                self._stage.kill(f"inbox of {self.name}", self._inbox)
        for piece in rest:
            if _DIGEST.match(piece):
                self._inbox_at_s = min(self._inbox_at_s, at_s + self._chance.uniform(0.05, 0.6))
            else:
                self._stage.lines.append(f"{at_s:.3f} {self.name}: {piece[:500]}")

    # --- the inbox

    def _start_inbox(self) -> None:
        self._inbox_at_s = float("inf")
        self._inbox_lines = 0
        command = [str(ROOT / "bin" / "zmqbus"), "inbox", "--json"]
        self._inbox = self._stage.popen(command, self._stage.env(self.owner), stdout=self._writer)
        self._pids["inbox"] = self._inbox.pid

    def _inbox_ended(self, status: int, now_s: float) -> None:
        self._read()
        if self._torn and status:  # the rest of its last line is lost
            self._take(self._torn.decode("utf-8", "replace"), now_s)
            self._torn = b""
        self.read_nothing = 0 if status or self._inbox_lines else self.read_nothing + 1
        pause_s = AGAIN_S if status else self._chance.expovariate(1 / CURIOUS_S)
        self._inbox_at_s = min(self._inbox_at_s, now_s + (min(pause_s, 0.5) if self._stage.calm else pause_s))
        self._inbox = None


class Sender:
    """A sender (`player`), restarted as long as the run lasts."""

    def __init__(self, stage: Stage, name: str, speaks_as: Receiver | None) -> None:
        self.name = name
        self.speaks_as = speaks_as
        self.process: subprocess.Popen[bytes] | None = None
        self._stage = stage
        self._incarnations = 0
        self._start_at_s = 0.0
        self._rate = 1.0

    def look_after(self, now_s: float) -> None:
        """Restarts the process if it has ended."""
        process = self.process
        if process is not None and process.poll() is not None:
            self._stage.note("end", self.name, process.pid, f"status {process.returncode}")
            self._close_input()
            if process.returncode != -signal.SIGKILL and not (self._stage.calm and process.returncode == 0):
                self._stage.failures.append(f"the sender {self.name} ({process.pid}) ended with {process.returncode}")
            self.process = None
            self._start_at_s = now_s + self._stage.chance.uniform(*PAUSE_S)
        if self.process is None and not self._stage.calm and now_s >= self._start_at_s:
            self._start()

    def set_rate(self, rate: float) -> None:
        """Sets the rate, in messages a second."""
        self._rate = rate
        if self.process is not None and self.process.stdin is not None:
            with contextlib.suppress(OSError):  # it was killed
                self.process.stdin.write(f"{rate:.3f}\n".encode())
                self.process.stdin.flush()

    def rest(self) -> None:
        """Lets it wait for its last receipts, and end."""
        self._close_input()

    def hit(self, deed: Deed) -> bool:
        """Carries out a deed; see the module."""
        if deed.what == "stop":
            return self._stage.stop(self.name, self.process, deed.value)
        if deed.what == "cut":
            return self._stage.cut(self.name, self.process)
        return self._stage.kill(self.name, self.process)

    def close(self) -> None:
        """Ends the process."""
        self._stage.end(self.process)

    def _start(self) -> None:
        setup = self._stage.setup
        self._incarnations += 1
        own = self.speaks_as.name if self.speaks_as else None
        stem = self._stage.notes / f"{self.name}.{self._incarnations}"
        plan = Plan(
            name=self.name,
            incarnation=self._incarnations,
            seed=self._stage.chance.randrange(10**9),
            notes=f"{stem}.notes",
            receivers=tuple(name for name in setup.receiver_names if name != own),
            rate=self._rate,
            as_session=own is not None,
            wire=f"{stem}.wire" if setup.is_wired(self.name) else "",
            broadcasts_a_minute=setup.broadcasts_a_minute,
            large_part=setup.large_part,
        )
        env = self._stage.env(self.speaks_as.owner if self.speaks_as else None)
        command = ["-m", "tests.soak.player", json.dumps(plan._asdict())]
        self.process = self._stage.popen(command, env, stdin=subprocess.PIPE)
        self._stage.note("start", self.name, self.process.pid)

    def _close_input(self) -> None:
        if self.process is not None and self.process.stdin is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.close()


class Caller:
    """Runs `bin/send.py` again and again: as a script, and as the session of a receiver."""

    def __init__(self, stage: Stage, speaks_as: Receiver, others: list[Receiver]) -> None:
        self._stage = stage
        self._speaks_as = speaks_as
        self._others = others
        self._process: subprocess.Popen[bytes] | None = None
        self._label = ""
        self._next_s = 0.0
        self._dies_at_s = float("inf")
        self._to_be_killed = 0  # how many of the next commands are killed
        self._runs = {"cmd": [1, 0], self.own_name: [1, 0]}  # sender → run, number

    @property
    def own_name(self) -> str:
        """The sender name of messages sent as the session."""
        return f"cmd{self._speaks_as.name}"

    @property
    def idle(self) -> bool:
        """Whether no command is running."""
        return self._process is None

    def look_after(self, now_s: float) -> None:
        """Takes in the result of a command, or starts the next one."""
        if self._process is None:
            if not self._stage.calm and now_s >= self._next_s:
                self._start(now_s)
            return
        if now_s >= self._dies_at_s:
            self._dies_at_s = float("inf")
            self._stage.kill("command", self._process)
        if self._process.poll() is not None:
            process, self._process = self._process, None
            self._next_s = now_s + COMMAND_PAUSE_S
            self._hear(process, now_s)

    def hit(self, _: Deed) -> bool:
        """Lets the next command be killed."""
        self._to_be_killed += 1
        return True

    def close(self) -> None:
        """Ends the process."""
        self._stage.end(self._process)

    def _start(self, now_s: float) -> None:
        chance = self._stage.chance
        sender = chance.choice(("cmd", "cmd", self.own_name))
        self._runs[sender][1] += 1
        run, number = self._runs[sender]
        self._label = f"{sender}.{run}:{number}"
        size = chance.randint(66_000, 150_000) if chance.random() < 0.1 else chance.randint(40, 600)
        dying = [receiver.name for receiver in self._others if receiver.dies_when_told]
        many = chance.random() < 0.1 and not dying
        target = EVERYONE if many else chance.choice(dying or [receiver.name for receiver in self._others])
        text = self._stage.base / "work" / "text"
        text.write_text(make_text(self._label, target, size))
        arguments = ["--all"] if many else ["--to", target]
        arguments += ["--text-file", str(text), "--json", *(["--as", "cmd"] if sender == "cmd" else [])]
        self._stage.sent.append(Sent(self._label, "", target, size, time.monotonic()))
        self._process = self._stage.popen(
            [str(ROOT / "bin" / "send.py"), *arguments],
            self._stage.env(None if sender == "cmd" else self._speaks_as.owner),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        if self._to_be_killed:
            self._to_be_killed -= 1
            self._dies_at_s = now_s + chance.uniform(*COMMAND_DIES_S)

    def _hear(self, process: subprocess.Popen[bytes], now_s: float) -> None:
        out, err = process.communicate()  # small enough to have been in the pipes when it ended
        self._dies_at_s = float("inf")
        answer: Answer | None = None
        if process.returncode == 0:
            said = json.loads(out)
            if said["state"] == "broadcast":
                counts = (said["delivered"], said["queued"], tuple(said["full"]))
                answer = Answer(self._label, "tally", "", now_s, *counts)
            else:
                why = ("busy" if said["busy"] else "away") if said["state"] == "queued" else ""
                answer = Answer(self._label, said["state"], why, now_s)
                for receiver in self._others:
                    if said["state"] == "delivered" and receiver.name == said["to"]:
                        receiver.told()
        elif (match := re.match(r"error: (\w+): (.*)", err.decode())) is None:
            if process.returncode != -signal.SIGKILL:
                self._stage.failures.append(f"send.py ended with {process.returncode}: {err.decode()}")
        elif match[1] == "broker_unavailable":  # not an answer to the message
            self._stage.note("gave up", "command", process.pid, match[2])
        else:
            answer = Answer(self._label, "refused", f"{match[1]} {match[2]}", now_s)
        if answer is not None:
            self._stage.answers.append(answer)
        else:
            # It may still be in transit: later messages are a run of their own, without order towards it.
            self._runs[self._label.partition(".")[0]][0] += 1

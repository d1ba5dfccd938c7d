"""The soak run: a bus of real processes that are killed, stopped and disconnected at random instants.

One thread with one loop reads the output of listeners and inboxes, restarts ended processes, reads an inbox when a
digest says so (as an agent would), and carries out the schedule. The schedule follows from the seed; the state in which
it finds the processes does not.

Listener and inbox of a session write to one pipe, so the order of the pipe is the order in which messages were shown.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from tests.soak import labour
from tests.soak.crew import Caller, Receiver, Sender
from tests.soak.hands import Requester, Visitors, Worker, can_unshare
from tests.soak.history import History, read_notes
from tests.soak.schedule import Deed, Setup, schedule
from tests.soak.stage import END_S, Stage

#: The loop runs at least this often, s; input wakes it earlier.
LOOK_S = 0.02
#: How long all receivers have to connect, on a busy machine, s.
GATHER_S = 60.0
#: How long receivers have to read everything after the last message was sent, s.
DRAIN_S = 120.0
#: So many empty inboxes in a row mean that all was read: a restarted listener may still show something.
EMPTY_INBOXES = 3
#: Periods, s, of memory samples, of corrections of the senders' rates, and of progress reports.
SAMPLE_S = 0.5
RATE_S = 2.5
PROGRESS_S = 10.0
#: Pause before a deed that found no running process is tried again, s.
AGAIN_S = 0.2
#: Factor for the senders' rates, since kills and stops cost some of the messages.
SPARE = 1.1
#: Periods of much and of little traffic alternate, s: in the first, receivers fall behind and read digests and inboxes;
#: in the second, each line is shown as it comes.
MUCH_S, LITTLE_S = 20.0, 10.0
LITTLE_RATE = 0.7


class Chaos:
    """One run. A context manager, which ends all processes of the run."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._stage = Stage(setup)
        self._receivers: list[Receiver] = []
        self._senders: list[Sender] = []
        self._caller: Caller | None = None
        self._workers: list[Worker] = []
        self._requester: Requester | None = None
        self._visitors: Visitors | None = None
        self._counted: dict[Path, list[int]] = {}
        self.rss_bytes: dict[int, list[int]] = {}  #: memory samples of each broker, by pid
        self.failures = self._stage.failures  #: failures other than faults of messages
        self.lines = self._stage.lines  #: printed lines that are not messages

    def __enter__(self) -> Chaos:
        return self

    def __exit__(self, *exc: object) -> None:
        for one in self._crew:
            one.close()
        self._stage.close()

    @property
    def _crew(self) -> list[Receiver | Sender | Caller | Worker | Requester | Visitors]:
        some = (self._caller, self._requester, self._visitors)
        return [*self._senders, *(one for one in some if one), *self._workers, *self._receivers]

    def run(self) -> None:
        """Carries out the schedule, and waits until all messages have been read.

        Ctrl-C ends the schedule early, and a second one the waiting.
        """
        try:
            self._gather()
            try:
                self._play()
            except KeyboardInterrupt:
                self._say("interrupted: everybody comes back once more, then the account (again: at once)")
            self._settle_down()
        except KeyboardInterrupt:
            self.failures.append("interrupted before everything was read")

    def history(self) -> History:
        """Returns everything that has happened so far."""
        stage = self._stage
        sent, answers, blows = list(stage.sent), list(stage.answers), list(stage.blows)
        for path in sorted(stage.notes.iterdir()):
            if path.suffix == ".labour":
                continue
            noted = read_notes(path.name.partition(".")[0], path.read_text("utf-8"))
            sent += noted[0]
            answers += noted[1]
            blows += noted[2]
        sent.sort(key=lambda message: message.at_s)
        own = {sender.name: sender.speaks_as.name for sender in self._senders if sender.speaks_as}
        if self._caller is not None:
            own[self._caller.own_name] = self._receivers[1].name
        return History(self._setup.receiver_names, sent, answers, list(stage.shown), sorted(blows), own)

    def labour(self) -> labour.LabourAccount:
        """Returns the account of the requests to the group."""
        return labour.settle(labour.read_steps(self._stage.notes), self._stage.blows)

    def memory_mib(self) -> tuple[float, float]:
        """Returns the largest and the median memory of the brokers, MiB."""
        samples = [sample for one in self.rss_bytes.values() for sample in one]
        return (max(samples) / 2**20, statistics.median(samples) / 2**20) if samples else (0.0, 0.0)

    # --- three acts

    def _gather(self) -> None:
        """Waits until all receivers are connected: from then on, each is owed every broadcast."""
        self._receivers += [Receiver(self._stage, name) for name in self._setup.receiver_names]
        self._wait(lambda: all(receiver.connected for receiver in self._receivers), GATHER_S, "all are on the bus")
        if self.failures:
            raise RuntimeError(f"{self.failures}; they say: {self.lines[-10:]}")
        for name in self._setup.sender_names:
            # One of the senders that are killed and disconnected sends as a session.
            speaks_as = self._receivers[0] if name == self._setup.sender_names[-1] else None
            self._senders.append(Sender(self._stage, name, speaks_as))
        self._caller = Caller(self._stage, self._receivers[1], [self._receivers[0], *self._receivers[2:]])
        if self._setup.workers:
            self._workers += [Worker(self._stage, name) for name in self._setup.worker_names]
            self._requester = Requester(self._stage, "q0")
        if can_unshare():
            self._visitors = Visitors(self._stage)

    def _play(self) -> None:
        started_s = time.monotonic()
        deeds = schedule(self._setup)
        next_rate_s = next_progress_s = next_sample_s = 0.0
        while (elapsed_s := time.monotonic() - started_s) < self._setup.duration_s:
            while deeds and deeds[0].at_s <= elapsed_s:
                self._do(deeds.pop(0))
            if elapsed_s >= next_sample_s:
                next_sample_s = elapsed_s + SAMPLE_S
                self._sample()
            if elapsed_s >= next_rate_s:
                next_rate_s = elapsed_s + RATE_S
                self._set_rates(elapsed_s)
            if elapsed_s >= next_progress_s:
                next_progress_s = elapsed_s + PROGRESS_S
                self._tell_progress(elapsed_s)
            self._step()

    def _settle_down(self) -> None:
        self._stage.calm_down()
        for sender in self._senders:
            sender.rest()
        self._wait(lambda: all(sender.process is None for sender in self._senders), END_S, "the senders end")
        self._wait(lambda: self._caller is None or self._caller.idle, END_S, "the last command ends")
        if self._requester is not None:
            self._requester.rest()
        self._wait(lambda: self._requester is None or self._requester.ended, labour.LAST_S, "the last request ends")
        self._wait(lambda: self._visitors is None or self._visitors.idle, END_S, "the last visit ends")
        self._say("all is said; reading what waits")
        for receiver in self._receivers:
            receiver.rest()
        empty = EMPTY_INBOXES
        self._wait(lambda: all(one.read_nothing >= empty for one in self._receivers), DRAIN_S, "all is read")
        self._sample()
        done = self._stage.run("list.py", "--json", "--all")
        rows = json.loads(done.stdout or "[]")
        waiting = {row["name"]: row["waiting"] for row in rows if row["waiting"] and row["name"] != "visitor"}
        ghosts = Counter(row["name"] for row in rows if row["name"] in self._setup.receiver_names)
        if any(count > 1 for count in ghosts.values()):
            self.failures.append(f"several sessions of one name at the end: {ghosts}")
        if done.returncode or waiting:
            self.failures.append(f"at the end the broker says that messages wait: {waiting} {done.stderr.decode()}")

    def _wait(self, condition: Callable[[], bool], timeout_s: float, what: str) -> None:
        end_s = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > end_s:
                self.failures.append(f"not within {timeout_s:g} s: {what}")
                return
            self._step()

    def _step(self) -> None:
        """Runs the loop once: input, ended processes, due deeds."""
        self._stage.step(LOOK_S)
        now_s = time.monotonic()
        for one in self._crew:
            one.look_after(now_s)

    def _do(self, deed: Deed) -> None:
        if deed.whom == "broker":
            done = self._stage.hit_broker(deed.what, deed.value)
        elif deed.whom == "command":
            done = self._caller is not None and self._caller.hit(deed)
        elif deed.whom == "container":
            done = self._visitors is None or self._visitors.hit(deed)
        elif deed.whom == "q0":
            done = self._requester is None or self._requester.hit(deed)
        else:
            crews: dict[str, Sequence[Receiver | Sender | Worker]] = {
                "r": self._receivers,
                "s": self._senders,
                "w": self._workers,
            }
            done = crews[deed.whom[0]][int(deed.whom[1:])].hit(deed)
        if not done and not self._stage.calm:
            self._stage.later(AGAIN_S, lambda: self._do(deed) if not self._stage.calm else None)

    # --- rates and figures

    def _set_rates(self, elapsed_s: float) -> None:
        if elapsed_s % (MUCH_S + LITTLE_S) >= MUCH_S:
            rate = LITTLE_RATE
        else:
            even = self._setup.messages * SPARE / self._setup.duration_s
            left = self._setup.messages * SPARE - self._count_sent()
            wanted = left / max(1.0, self._setup.duration_s - elapsed_s)
            rate = min(max(wanted, 0.3 * even), 2 * even) * (MUCH_S + LITTLE_S) / MUCH_S / len(self._senders)
        for sender in self._senders:
            sender.set_rate(rate)

    def _count_sent(self) -> int:
        for path in self._stage.notes.glob("*.notes"):
            counted = self._counted.setdefault(path, [0, 0])  # bytes read, messages found
            if path.stat().st_size > counted[0]:
                with path.open("rb") as file:
                    file.seek(counted[0])
                    part = file.read()
                part = part[: part.rfind(b"\n") + 1]
                counted[0] += len(part)
                counted[1] += part.count(b"\ns ") + part.startswith(b"s ")
        return len(self._stage.sent) + sum(found for _, found in self._counted.values())

    def _sample(self) -> None:
        if (broker := self._stage.broker()) is not None:
            with contextlib.suppress(psutil.Error):
                self.rss_bytes.setdefault(broker.pid, []).append(broker.memory_info().rss)

    def _tell_progress(self, elapsed_s: float) -> None:
        kills = sum(blow.what == "kill" for blow in self._stage.blows)
        self._say(
            f"{elapsed_s:5.0f} s  {self._count_sent():7,} sent  {len(self._stage.shown):8,} shown  {kills:4} killed  "
            f"broker at most {self.memory_mib()[0]:.0f} MiB{'  FAILURES' if self.failures else ''}"
        )

    def _say(self, text: str) -> None:
        if self._setup.tell is not None:
            self._setup.tell(text)

"""The lines that keep the promises, each taken out once: a test has to turn red.

    python -m tests.mutants [NAME…]        (make mutants)

A copy of the tree is changed, never the tree itself. Each change is what somebody might do who does not see what the
line is for; the tests named with it are run until the first failure, which is the answer. `tests/test_mutants.py`
keeps the list in step with the sources.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
#: A run that takes longer hangs, which is a way of being found.
PATIENCE_S = 300.0

RECOVERY = "tests/broker/test_recovery.py"
MACHINE = "tests/broker/test_machine.py"
CORE = "tests/broker/test_core.py tests/broker/test_mishaps.py"
MAILBOX = "tests/broker/test_mailbox.py"
POOL = "tests/broker/test_pool.py tests/broker/test_pool_machine.py"
CLIENT = "tests/client/test_core.py tests/client/test_inbound.py"
PASSING = "tests/contract/test_passing.py"
DATABASE = "tests/broker/test_store.py tests/broker/test_database.py"
JOURNAL = "tests/test_journal.py tests/test_readback.py"
SPOOLED = (
    "tests/broker/test_intake.py tests/broker/test_spooled.py tests/client/test_spool.py tests/client/test_link.py"
)


class Mutant(NamedTuple):
    """One line taken out, or turned."""

    name: str
    path: str  # below zmqbus/
    old: str
    new: str
    tests: str


MUTANTS = (
    # --- bodies in files
    Mutant(
        "what was put down goes into the log unseen",
        "broker/intake.py",
        "            check_spelled(record.fmt, piece)\n",
        "",
        SPOOLED,
    ),
    Mutant(
        "a piece is overwritten before the fate of its message is known",
        "client/spool.py",
        "        self._pieces[send.msg_id] = offset, length\n",
        "",
        SPOOLED,
    ),
    Mutant(
        "the file of one connection is used for the next",
        "client/link.py",
        "                    self._spool.renew()\n",
        "                    pass\n",
        SPOOLED,
    ),
    Mutant(
        "any number of large bodies is read for one message",
        "broker/spooled.py",
        "        if self.read_bytes >= WAKE_BYTES:\n",
        "        if self.read_bytes < 0:\n",
        SPOOLED,
    ),
    Mutant(
        "what may be an earlier message is put down as a new one",
        "client/core.py",
        " and not send.again\n",
        "\n",
        CLIENT,
    ),
    # --- nothing is told too early
    Mutant(
        "queued is told before the commit",
        "broker/core.py",
        "                self._journaled(now, pointers)\n",
        "                self._journaled(now, pointers)\n                self.delivery.committed(now)\n",
        RECOVERY,
    ),
    Mutant(
        "a failed commit is passed over",
        "broker/core.py",
        "                self.delivery.commit_failed(reason)\n",
        "                self.delivery.committed(now)\n",
        RECOVERY,
    ),
    Mutant(
        "what could not be stored stays in the mailbox",
        "broker/delivery.py",
        "            session.mailbox.retract(item)\n",
        "",
        RECOVERY,
    ),
    Mutant(
        "what was delivered while the disk was full is told as queued",
        "broker/delivery.py",
        "            if item.told:\n                continue  # acknowledged in the meantime\n",
        "",
        f"{RECOVERY} {MACHINE}",
    ),
    Mutant(
        "mail does not flow again after a failed commit",
        "broker/delivery.py",
        "            for mailbox in list(self._consumers):\n                self._pump(now, mailbox)\n",
        "",
        RECOVERY,
    ),
    Mutant(
        "the store is not committed",
        "broker/server.py",
        "            self._store.commit()\n",
        "",
        "tests/broker/test_server.py tests/real/test_list.py",
    ),
    Mutant(
        "the journal is not synced before the rows that point into it",
        "broker/server.py",
        "                self._journal.sync()  # first: the store's rows point into it\n",
        "                pass\n",
        "tests/broker/test_server.py",
    ),
    Mutant(
        "the listener acknowledges before its line is out",
        "session/listener.py",
        "            if self._unshown and not self._unwritten:\n",
        "            if self._unshown:\n",
        "tests/session/test_listener.py tests/real/test_listener.py",
    ),
    # --- nothing is accepted twice
    Mutant(
        "an id is not remembered",
        "broker/delivery.py",
        "        self._fates[msg_id] = fate\n",
        "",
        CORE,
    ),
    Mutant(
        "an id is not recognised",
        "broker/intake.py",
        "        if self._delivery.said_before(who, send.msg_id) or self._staged_before(who, send.msg_id):\n",
        "        if self._staged_before(who, send.msg_id):\n",
        CORE,
    ),
    Mutant(
        "an id is not recognised within its wake",
        "broker/intake.py",
        "        if self._delivery.said_before(who, send.msg_id) or self._staged_before(who, send.msg_id):\n",
        "        if self._delivery.said_before(who, send.msg_id):\n",
        CORE,
    ),
    Mutant(
        "ids of an earlier broker are not recognised",
        "broker/delivery.py",
        " or self._earlier.get(msg_id)\n",
        "\n",
        RECOVERY,
    ),
    Mutant(
        "mailboxes that hold a broadcast already get it again",
        "broker/delivery.py",
        "            if session.mailbox.key in holders:\n",
        "            if session.mailbox.key is None:\n",
        RECOVERY,
    ),
    Mutant(
        "refusals are not kept for the next broker",
        "broker/delivery.py",
        "        self._store.save_refusal(Refusal(refused.ref, sender_id, refused.code, refused.text))\n",
        "",
        RECOVERY,
    ),
    Mutant(
        "a repeated message is for whoever its target is now",
        "broker/intake.py",
        "        first = before.receiver if before is not None else None\n",
        "        first = None\n",
        RECOVERY,
    ),
    Mutant(
        "a repeated broadcast is for those, too, who came later",
        "broker/intake.py",
        " if not to_many or not self._is_newcomer(session, before)]",
        "]",
        RECOVERY,
    ),
    Mutant(
        "a repeated broadcast is published",
        "broker/delivery.py",
        "            if attached and not entry.repeated and session.mailbox.may_publish(entry):\n",
        "            if attached and session.mailbox.may_publish(entry):\n",
        RECOVERY,
    ),
    Mutant(
        "a repeated message is not marked as one that waited",
        "broker/delivery.py",
        "        waited = (item.stored or entry.repeated) and not resent\n",
        "        waited = item.stored and not resent\n",
        RECOVERY,
    ),
    Mutant(
        "the client does not say that it repeats itself",
        "client/core.py",
        "            self._transmit(send if send.msg_id in self._unsaid else send._replace(again=True))\n",
        "            self._transmit(send)\n",
        f"{CLIENT} {RECOVERY}",
    ),
    Mutant(
        "the client does not repeat itself",
        "client/core.py",
        "        for send in self._unconfirmed.values():\n",
        "        for send in ():\n",
        CLIENT,
    ),
    # --- nothing is shown twice
    Mutant(
        "what was taken is handed out again",
        "client/inbound.py",
        "        if message.msg_id in self._taken_ids:\n",
        "        if not message.msg_id:\n",
        CLIENT,
    ),
    Mutant(
        "what was taken is not remembered",
        "client/core.py",
        "        self._taken_ids.add(ticket.msg_id)\n",
        "",
        CLIENT,
    ),
    Mutant(
        "what was shown is not on file",
        "session/listener.py",
        "                    self._shown.add_all([ticket.msg_id for ticket in self._unshown])\n",
        "                    pass\n",
        "tests/session/test_listener.py tests/real/test_shown.py",
    ),
    Mutant(
        "what a command has printed is shown",
        "session/listener.py",
        "            self._look_elsewhere(link)\n",
        "",
        "tests/session/test_listener.py",
    ),
    Mutant(
        "a command reads before the listener has given back",
        "broker/reading.py",
        "        if session.conn is not None and session.mailbox.window:\n",
        "        if session.conn is None and session.mailbox.window:\n",
        CORE,
    ),
    # --- order
    Mutant(
        "what is stored leaves behind what is older",
        "broker/mailbox.py",
        "            self.secure()\n            self._store.put(self.key, item.seq, entry)\n",
        "            self._store.put(self.key, item.seq, entry)\n",
        f"{MAILBOX} {RECOVERY}",
    ),
    Mutant(
        "a broadcast is published past what is under way by DEALER",
        "broker/mailbox.py",
        " and not self._by_dealer and not self._backlog and",
        " and not self._backlog and",
        f"{MAILBOX} {CORE}",
    ),
    Mutant(
        "a broadcast is published past what waits",
        "broker/mailbox.py",
        " and not self._by_dealer and not self._backlog and",
        " and not self._by_dealer and",
        f"{MAILBOX} {CORE}",
    ),
    Mutant(
        "a SUB that is left over takes broadcasts",
        "broker/delivery.py",
        "        spared += self._lingering.values()\n",
        "",
        CORE,
    ),
    Mutant(
        "two channels at once",
        "broker/mailbox.py",
        "        return self.open and in_line and ",
        "        return self.open and ",
        f"{MAILBOX} {CORE} {MACHINE}",
    ),
    Mutant(
        "a DELIVER does not name the broadcast before it",
        "broker/mailbox.py",
        "        return self._last_bcast if self._published else 0\n",
        "        return 0\n",
        f"{MAILBOX} {CORE}",
    ),
    Mutant(
        "a DELIVER does not wait for the broadcast before it",
        "client/inbound.py",
        " or (deliver.after and deliver.after not in self._seen):\n",
        ":\n",
        CLIENT,
    ),
    Mutant(
        "an acknowledgement passes over what is not taken",
        "client/inbound.py",
        "        if number != first:\n            self._taken_numbers.add(number)\n            return\n",
        "",
        CLIENT,
    ),
    # --- broadcasts are repaired
    Mutant(
        "a gap is not noticed",
        "client/inbound.py",
        "            self._refill((cast.prev,))\n",
        "            pass\n",
        CLIENT,
    ),
    Mutant(
        "a lost last broadcast is not noticed",
        "client/inbound.py",
        "        if missing:\n            self._refill(missing)\n",
        "",
        CLIENT,
    ),
    Mutant(
        "no BEAT",
        "broker/delivery.py",
        "            self._beat(now, mailbox, consumer)\n",
        "",
        CORE,
    ),
    Mutant(
        "REFILL is not answered",
        "broker/delivery.py",
        "                self._deliver(now, who, item, resent=True)\n",
        "                pass\n",
        CORE,
    ),
    Mutant(
        "who is spared takes it all the same",
        "client/inbound.py",
        "        if self._peer not in cast.spared and cast.bcast not in self._seen:\n",
        "        if cast.bcast not in self._seen:\n",
        CLIENT,
    ),
    Mutant(
        "a broadcast of another epoch counts",
        "client/inbound.py",
        "            cast.epoch != self._epoch\n            or cast.bcast",
        "            cast.bcast",
        CLIENT,
    ),
    Mutant(
        "channels are compared as prefixes",
        "client/inbound.py",
        "            or channel != protocol.channel(cast.scope, cast.target)\n",
        "",
        f"{CLIENT} tests/testing/test_simnet.py",
    ),
    # --- credit and limits
    Mutant(
        "no credit by number",
        "broker/mailbox.py",
        "        return len(self.window) < CREDIT_MESSAGES and (\n",
        "        return (\n",
        MAILBOX,
    ),
    Mutant(
        "no credit by size",
        "broker/mailbox.py",
        "self._window_bytes + weight_bytes <= CREDIT_BYTES",
        "True",
        MAILBOX,
    ),
    Mutant(
        "no limit of messages",
        "broker/mailbox.py",
        "            self.total + self._reserved >= MAX_MESSAGES\n            or ",
        "            ",
        f"{MAILBOX} {CORE}",
    ),
    Mutant(
        "no limit of bytes",
        "broker/mailbox.py",
        "            or self.total_bytes + self._reserved_bytes + size_bytes > MAX_BYTES\n",
        "",
        f"{MAILBOX} {CORE}",
    ),
    Mutant(
        "no room is kept for what is on its way through the journal",
        "broker/intake.py",
        "            session.mailbox.reserve(size_bytes)\n",
        "            session.mailbox.reserve(0)\n            session.mailbox._reserved -= 1\n",
        CORE,
    ),
    Mutant(
        "no limit of broadcasts",
        "broker/intake.py",
        "        recent.append(now.mono_s)\n",
        "",
        CORE,
    ),
    Mutant(
        "no limit of lists",
        "broker/core.py",
        "        if who.requests >= LISTS_AT_ONCE:\n",
        "        if who.requests < 0:\n",
        f"{CORE} tests/real/test_hostile.py",
    ),
    # --- fences
    Mutant(
        "any token will do",
        "broker/core.py",
        "not compare_digest(session.token_digest, sha256(token.encode()).hexdigest())",
        "not session.token_digest",
        f"{CORE} {RECOVERY}",
    ),
    Mutant(
        "a stale lease is not told so",
        "broker/core.py",
        "        if ping.lease != who.lease:\n",
        "        if not ping.lease:\n",
        CORE,
    ),
    Mutant(
        "the process before is not displaced",
        "broker/core.py",
        "            self._displace(now, session, hello.pid)\n",
        "            pass\n",
        CORE,
    ),
    Mutant(
        "a name may be taken twice",
        "broker/core.py",
        "        if holder is not None and holder is not session:\n",
        "        if holder is not None and holder is None:\n",
        CORE,
    ),
    Mutant(
        "anyone may acknowledge",
        "broker/delivery.py",
        "        if mailbox is None or self._consumers.get(mailbox) is not who:\n",
        "        if mailbox is None:\n",
        f"{CORE} {MACHINE}",
    ),
    Mutant(
        "a mailbox goes to an agent whose owner lives",
        "broker/upkeep.py",
        "                and not self._owner_lives(other.owner)\n",
        "",
        RECOVERY,
    ),
    Mutant(
        "mail is kept for a dead process that nobody named",
        "broker/upkeep.py",
        "        if gone or not self._owner_lives(session.owner):\n",
        "        if gone:\n",
        PASSING,
    ),
    Mutant(
        "a session that nobody named is forgotten while its process lives",
        "broker/upkeep.py",
        "        elif not session.left and not self._owner_lives(session.owner):\n",
        "        elif not session.left:\n",
        PASSING,
    ),
    Mutant(
        "what crosses the leaving of its receiver is said to wait",
        "broker/delivery.py",
        "\n            if session.left and not session.named:\n                self.forsake(session)\n",
        "\n",
        PASSING,
    ),
    Mutant(
        "the next broker takes up the dead whom nobody named",
        "broker/upkeep.py",
        "            if not row.named and (row.left or not self._owner_lives(row.owner)):\n",
        "            if not row.named and row.left:\n",
        PASSING,
    ),
    Mutant(
        "no election",
        "broker/daemon.py",
        "            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)\n",
        "            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)\n",
        "tests/broker/test_daemon.py",
    ),
    Mutant(
        "a silent connection stays",
        "broker/core.py",
        "now.mono_s - c.last_seen_s > SILENCE_S",
        "now.mono_s - c.last_seen_s > 10 * SILENCE_S",
        CORE,
    ),
    # --- what outlives the broker
    Mutant(
        "sessions are not kept",
        "broker/core.py",
        "            self.upkeep.inherit(session)\n            self.registry.keep(session)\n",
        "            self.upkeep.inherit(session)\n",
        RECOVERY,
    ),
    Mutant(
        "mailboxes are not taken up",
        "broker/upkeep.py",
        "                boxes[box.mailbox].mailbox.restore(box)\n",
        "                pass\n",
        RECOVERY,
    ),
    Mutant(
        "awaited answers are not kept",
        "broker/intake.py",
        "            self._store.save_awaited(Awaited(wanted.msg_id, who.sender_id, who.sender_name))\n",
        "            pass\n",
        RECOVERY,
    ),
    Mutant(
        "an answer under way is not held for a command that is cut off",
        "broker/core.py",
        "                self.delivery.detach(mailbox, self.intake.hold)\n",
        "                self.delivery.detach(mailbox)\n",
        RECOVERY,
    ),
    Mutant(
        "mail of a lost session row is dropped",
        "broker/registry.py",
        "self.unclaimed.pop(session_id, None) or Mailbox(session_id, self._store)",
        "Mailbox(session_id, self._store)",
        RECOVERY,
    ),
    Mutant(
        "nothing expires",
        "broker/upkeep.py",
        "                self._expire(session.mailbox, repr(session), before_s)\n",
        "                pass\n",
        RECOVERY,
    ),
    Mutant(
        "ages are taken from the wall clock",
        "broker/intake.py",
        "        now.steady_s,\n",
        "        now.wall_s,\n",
        RECOVERY,
    ),
    # --- requests and work
    Mutant(
        "a large request is handed out before it is in the journal",
        "broker/pool.py",
        "        return self.size_bytes <= PASSED_BYTES\n",
        "        return True\n",
        POOL,
    ),
    Mutant(
        "a request that is known is handed out again",
        "broker/pool.py",
        "        if known is not None:\n            self._adopt(caller, known)\n            return\n",
        "",
        POOL,
    ),
    Mutant(
        "answers are not remembered for callers that come back",
        "broker/pool.py",
        '            self._remember(request, one.answer._replace(pointer=pointer, body=b""))\n',
        "            self._past.pop(request.msg_id, None)\n",
        POOL,
    ),
    Mutant(
        "more than the credit is handed out",
        "broker/workers.py",
        "        level = load if load < self.credit and",
        "        level = load if load <= self.credit and",
        POOL,
    ),
    Mutant(
        "what a worker has from before does not count",
        "broker/workers.py",
        "        load = len(self.hand) + len(self.claims)\n",
        "        load = len(self.hand)\n",
        POOL,
    ),
    Mutant(
        "a caller gets its own request",
        "broker/workers.py",
        "            if first.caller.sender_id != session_id:\n",
        "            if True:\n",
        POOL,
    ),
    Mutant(
        "what was put aside is forgotten",
        "broker/workers.py",
        "                if oldest is None or first.order < oldest.order:\n",
        "                if False:\n",
        POOL,
    ),
    Mutant(
        "what was put aside loses its turn",
        "broker/workers.py",
        "                if oldest is None or first.order < oldest.order:\n",
        "                if oldest is None:\n",
        POOL,
    ),
    Mutant(
        "what a dead worker had goes behind the others",
        "broker/pool.py",
        "        self._board.wait(request, front=True)\n",
        "        self._board.wait(request)\n",
        POOL,
    ),
    Mutant(
        "a worker whose process lives is not expected back",
        "broker/pool.py",
        "        if gone or not self._owner_lives(worker.owner):\n",
        "        if True:\n",
        POOL,
    ),
    Mutant(
        "a worker is expected back for ever",
        "broker/pool.py",
        "            if now.mono_s >= worker.until_s or not",
        "            if not",
        POOL,
    ),
    Mutant(
        "a caller is expected back for ever",
        "broker/pool.py",
        "        while self._orphans and now.mono_s >= self._orphans[0].until_s:\n            self._give_up_caller()\n",
        "",
        POOL,
    ),
    Mutant(
        "a worker that comes back keeps what it does not name",
        "broker/pool.py",
        "            elif request.msg_id not in holding:\n",
        "            elif False:\n",
        POOL,
    ),
    Mutant(
        "a worker that has answered is not asked again",
        "broker/pool.py",
        "in answered:\n                self._board.hand(worker, request)\n",
        "in answered:\n                pass\n",
        POOL,
    ),
    Mutant(
        "a worker that was given up goes on with what another has",
        "broker/pool.py",
        "        if unwanted:\n",
        "        if False:\n",
        POOL,
    ),
    Mutant(
        "the other worker does not hear that one was faster",
        "broker/pool.py",
        "            if holder is not None and holder.conn is not None:\n",
        "            if False:\n",
        POOL,
    ),
    Mutant(
        "anybody's answer counts",
        "broker/pool.py",
        "        if holder is not worker and (session.session_id not in request.had or",
        "        if holder is not worker and (",
        POOL,
    ),
    Mutant(
        "no request is poisoned",
        "broker/pool.py",
        "        if request.tries >= MAX_TRIES:\n",
        "        if False:\n",
        POOL,
    ),
    Mutant(
        "a new broker waits for nobody",
        "broker/pool.py",
        "        if request.again and self.aftermath.expects(request.group.name):\n",
        "        if False:\n",
        POOL,
    ),
    Mutant(
        "claims are passed over",
        "broker/pool.py",
        "        claim = self.aftermath.settle(request.msg_id) if request.again else None\n",
        "        claim = None\n",
        POOL,
    ),
    Mutant(
        "what nobody says again is kept in hand",
        "broker/aftermath.py",
        "            if not answered:\n                unwanted.",
        "            if False:\n                unwanted.",
        POOL,
    ),
    Mutant(
        "what the journal refuses is not refused",
        "broker/core.py",
        "                self.pool.journal_failed(reason)\n",
        "",
        POOL,
    ),
    Mutant(
        "a segment that a request points into is not kept",
        "broker/core.py",
        "        parts = (self.delivery, self._store, self.pool)\n",
        "        parts = (self.delivery, self._store)\n",
        POOL,
    ),
    Mutant(
        "a withdrawn request stays in hand",
        "broker/pool.py",
        "                self._out.reply(worker.conn.route, protocol.Withdrawn(tuple(msg_ids)))\n",
        "                pass\n",
        POOL,
    ),
    Mutant(
        "a worker works on what it has in hand once more",
        "client/work.py",
        "        if msg_id in self._holding:\n            return False\n",
        "",
        f"tests/client/test_core.py {POOL}",
    ),
    Mutant(
        "work of an ended connection is taken",
        "client/core.py",
        "        if self.phase is Phase.READY and self._hands.take(work.msg_id):\n",
        "        if self._hands.take(work.msg_id):\n",
        f"tests/client/test_core.py {POOL}",
    ),
    # --- files
    Mutant(
        "changes are forgotten when a commit fails",
        "broker/database.py",
        "error:\n            self._roll_back()\n            raise dbfile",
        "error:\n            self._roll_back()\n            self._changed.clear()\n            raise dbfile",
        DATABASE,
    ),
    Mutant(
        "a checksum is not compared",
        "readback.py",
        "zlib.crc32(line) != ",
        "zlib.crc32(line) < 0 != ",
        JOURNAL,
    ),
    Mutant(
        "a failed write is not cut off",
        "journal.py",
        "                os.ftruncate(self._fd, self._size)\n            except OSError:\n",
        "                pass\n            except OSError:\n",
        JOURNAL,
    ),
    Mutant(
        "a torn tail is not cut off",
        "journal.py",
        "                    os.ftruncate(fd, end)\n",
        "",
        JOURNAL,
    ),
    Mutant(
        "what unread mail points to is deleted",
        "journal.py",
        "            if needed is None or 0 < serial < needed:\n",
        "            if needed is None or 0 < serial:\n",
        JOURNAL,
    ),
)


class Outcome(NamedTuple):
    """What the tests said to one mutant."""

    mutant: Mutant
    red: str  #: the first test that failed; "" if the mutant lives
    took_s: float


def check(mutant: Mutant, root: Path = ROOT) -> str:
    """The source with the change; raises `ValueError` where the line is not there, or not once."""
    source = (root / "zmqbus" / mutant.path).read_text("utf-8")
    if source.count(mutant.old) != 1:
        raise ValueError(f"{mutant.name}: {mutant.path} has this {source.count(mutant.old)} times:\n{mutant.old}")
    return source.replace(mutant.old, mutant.new)


def attempt(mutant: Mutant, copy: Path) -> Outcome:
    """Changes the copy, runs the tests, and changes it back."""
    path = copy / "zmqbus" / mutant.path
    original = path.read_text("utf-8")
    path.write_text(check(mutant, copy), "utf-8")
    started_s = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider"]
    try:
        done = subprocess.run(
            [*command, *mutant.tests.split()],
            cwd=copy,
            env={**os.environ, "CI": "1", "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        found = re.search(r"^(?:FAILED|ERROR) (?:tests/)?(\S+)", done.stdout, re.MULTILINE)
        red = found[1] if found else "" if done.returncode == 0 else f"exit {done.returncode}"
    except subprocess.TimeoutExpired:
        red = "hangs"
    finally:
        path.write_text(original, "utf-8")
    return Outcome(mutant, red, time.monotonic() - started_s)


def main(names: list[str]) -> int:
    """Tries all mutants, or those whose names contain one of these words; status 1 if one lives."""
    chosen = [mutant for mutant in MUTANTS if not names or any(name in mutant.name for name in names)]
    living = 0
    with tempfile.TemporaryDirectory(prefix="zmqbus-mutants-") as directory:
        copy = Path(directory) / "tree"
        ignored = shutil.ignore_patterns(".git", ".venv", "__pycache__", ".hypothesis", ".*_cache")
        shutil.copytree(ROOT, copy, symlinks=True, ignore=ignored)
        for mutant in chosen:
            outcome = attempt(mutant, copy)
            living += not outcome.red
            print(f"{mutant.name:<70} {mutant.path:<22} {outcome.red or 'LIVES'}  ({outcome.took_s:.0f} s)", flush=True)
    print(f"{len(chosen)} mutants, {living} alive")
    return 1 if living else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

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
INTAKE = "tests/broker/test_intake.py"
WINDOW = "tests/broker/test_window.py"
RECORD = "tests/test_record.py"
INBOUND = "tests/client/test_inbound.py"
RECEIVER = "tests/client/test_receiver.py"
SPEAKER = "tests/client/test_speaker.py"
GATHERING = "tests/client/test_gathering.py"
PROTOCOL = "tests/test_protocol.py"
STAGED = "tests/broker/test_staged.py"
BROADCAST_RUNS = "tests/broker/test_broadcast_runs.py"
DRIVER = "tests/client/test_driver.py"
AWAITS = "tests/broker/test_awaits.py"
FATES = "tests/broker/test_fates.py"
SPOOLED = (
    "tests/broker/test_intake.py tests/broker/test_spooled.py tests/client/test_spool.py tests/client/test_link.py"
)
CONSOLE_TICKETS = "tests/console/test_tickets.py"
CONSOLE_GUARD = "tests/console/test_guard.py"
CONSOLE_CONNECTIONS = "tests/console/test_connections.py"


class Mutant(NamedTuple):
    """One line taken out, or turned."""

    name: str
    path: str  # below zmqbus/
    old: str
    new: str
    tests: str


MUTANTS = (
    # --- who gets into the console
    Mutant(
        "whoever knows the id of a visitor is that visitor",
        "console/tickets.py",
        "        if not _equal(mac, visitor.request_proof(nonce, method, target)):\n            return None\n",
        "",
        CONSOLE_TICKETS,
    ),
    Mutant(
        "the head of a link opens the console without its secret",
        "console/tickets.py",
        '        if not _equal(proof, sign(secret, "enter", nonce)):\n            return Entry("unknown")\n',
        "",
        CONSOLE_TICKETS,
    ),
    Mutant(
        "a link opens the console twice",
        "console/tickets.py",
        "        self._used[number] = until_s\n",
        "",
        CONSOLE_TICKETS,
    ),
    Mutant(
        "what the list of processes shows of a link opens it for everybody",
        "console/tickets.py",
        "        if known[-1] and not same_user:\n",
        "        if False:\n",
        CONSOLE_TICKETS,
    ),
    Mutant(
        "the flag that a link is for one user can be taken off",
        "console/tickets.py",
        '    return hmac.new(secret, b"link\\0" + head, sha256).digest()\n',
        '    return hmac.new(secret, b"link\\0" + head[:-_FLAG_BYTES], sha256).digest()\n',
        CONSOLE_TICKETS,
    ),
    Mutant(
        "a proof for one request is good for another",
        "console/tickets.py",
        '        return sign(self.key, "request", nonce, method, target)\n',
        '        return sign(self.key, "request", nonce)\n',
        CONSOLE_TICKETS,
    ),
    Mutant(
        "answers do not prove that they are the console's",
        "console/guard.py",
        "                    *([] if verdict.proof is None else [(PROOF_HEADER.encode(), verdict.proof.encode())]),\n",
        "",
        CONSOLE_GUARD,
    ),
    Mutant(
        "any name in front of the console's is the console's",
        "console/guard.py",
        "    if host not in names:\n",
        "    if not host.endswith(tuple(names)):\n",
        CONSOLE_GUARD,
    ),
    Mutant(
        "another user keeps a connection to the console",
        "console/connections.py",
        "            connection.transport.abort()\n            return\n",
        "",
        CONSOLE_CONNECTIONS,
    ),
    Mutant(
        "half requests take all connections of the console",
        "console/connections.py",
        "            self._end(next(iter(self._unproven)))\n",
        "            pass\n",
        CONSOLE_CONNECTIONS,
    ),
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
        "broker/fates.py",
        "        settled[msg_id] = fate\n",
        "",
        "tests/broker/test_fates.py tests/contract/test_repeats.py",
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
        "broker/fates.py",
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
        "broker/fates.py",
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
        " and not self._by_dealer and not self._backlog\n",
        " and not self._backlog\n",
        f"{MAILBOX} {CORE}",
    ),
    Mutant(
        "a broadcast is published past what waits",
        "broker/mailbox.py",
        " and not self._by_dealer and not self._backlog\n",
        " and not self._by_dealer\n",
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
        "        return self.open and same and ",
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
        "        if number != self._first:\n            self._taken_numbers.update(range(number, number + messages))\n"
        "            return\n",
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
        "            self.total + self._reserved + messages > MAX_MESSAGES\n            or ",
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
        "a process of another PID namespace is taken for dead",
        "process.py",
        "    if process.machine and process.machine == here.machine and process.boot != here.boot:\n",
        "    if process.machine and process.machine == here.machine:\n",
        "tests/test_process.py tests/session/test_state.py",
    ),
    Mutant(
        "a hidden process is taken for dead",
        "process.py",
        "        return Life.UNKNOWN if table.exists(process.pid) else Life.ENDED\n",
        "        return Life.ENDED\n",
        "tests/test_process.py tests/session/test_state.py",
    ),
    Mutant(
        "the same pid elsewhere shares its files",
        "session/owned.py",
        "            return own\n    return plain\n",
        "            pass\n    return plain\n",
        "tests/session/test_owned.py tests/session/test_state.py",
    ),
    Mutant(
        "an init owns all orphans",
        "session/owner.py",
        "        if _is_init(process, cmdline):\n",
        "        if process.pid < 0:\n",
        "tests/session/test_owner.py",
    ),
    Mutant(
        "a broker is started in a sandbox",
        "network.py",
        "    if served_open:\n",
        "    if False:\n",
        "tests/test_network.py",
    ),
    Mutant(
        "a hook's budget is over with the clock",
        "cli/hook.py",
        "        if self._ticks >= self._allowed * slower or elapsed_s > LIMIT_S:\n",
        "        if elapsed_s >= self._allowed * TICK_S:\n",
        "tests/cli/test_hook.py",
    ),
    Mutant(
        "a hook's budget has no end in a crowd",
        "cli/hook.py",
        "        if self._ticks >= self._allowed * slower or elapsed_s > LIMIT_S:\n",
        "        if self._ticks >= self._allowed * slower:\n",
        "tests/cli/test_hook.py",
    ),
    Mutant(
        "hooks speak for a session that was disconnected",
        "cli/hook.py",
        " or joined.held or joined.identity.left:\n",
        " or joined.held:\n",
        "tests/real/test_hook.py",
    ),
    Mutant(
        "a preview shows what a listener has in hand",
        "broker/reading.py",
        "        return None if taken else session.mailbox\n",
        "        return session.mailbox\n",
        "tests/contract/test_reading.py",
    ),
    Mutant(
        "what was marked read is still counted",
        "broker/mailbox.py",
        "[seq for seq, _ in found])\n        self._backlog -= len(found)\n",
        "[seq for seq, _ in found])\n",
        "tests/contract/test_reading.py",
    ),
    Mutant(
        "the beginning of another record is shown",
        "readback.py",
        '        if head is None or head.msg_id != msg_id or head.fmt != "text":\n',
        '        if head is None or head.fmt != "text":\n',
        JOURNAL,
    ),
    Mutant(
        "PYTHONPATH comes before the standard library",
        "bootstrap.py",
        "    sys.path[:] = standard + ([packages] if packages else []) + [own] + rest\n",
        "    sys.path[:] = rest + standard + ([packages] if packages else []) + [own]\n",
        "tests/test_bootstrap.py",
    ),
    Mutant(
        "the current directory is imported from",
        "bootstrap.py",
        "        if not os.path.isabs(entry) or entry in relative:\n",
        "        if not os.path.isabs(entry):\n",
        "tests/test_bootstrap.py",
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
        "broker/awaits.py",
        "            self._store.save_awaited(Awaited(wanted.msg_id, who.sender_id, who.sender_name))\n",
        "            pass\n",
        RECOVERY,
    ),
    Mutant(
        "an answer under way is not held for a command that is cut off",
        "broker/core.py",
        "                self.delivery.detach(mailbox, self.awaits.hold)\n",
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
        "broker/staged.py",
        "        now.steady_s,\n        size_bytes,\n",
        "        now.wall_s,\n        size_bytes,\n",
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
    # --- runs: what is done in one piece is done to each
    Mutant(
        "of a run, ids that are known are accepted anew",
        "broker/intake.py",
        "        if not self._delivery.all_new(msg_ids) or not",
        "        if not",
        INTAKE,
    ),
    Mutant(
        "of a run, ids that are staged are accepted anew",
        "broker/intake.py",
        " or not self._places.keys().isdisjoint(msg_ids):\n",
        ":\n",
        INTAKE,
    ),
    Mutant(
        "the bodies of a run are not looked at",
        "broker/intake.py",
        "            if not all(map(bytes.isascii, bodies)):\n",
        "            if not bodies:\n",
        INTAKE,
    ),
    Mutant(
        "a run of another format is written as text",
        "broker/intake.py",
        "        if fmt != _TEXT or not (to_many",
        "        if not (to_many",
        INTAKE,
    ),
    Mutant(
        "a run to oneself is accepted",
        "broker/intake.py",
        "            if session is who.session:\n",
        "            if session is None:\n",
        INTAKE,
    ),
    Mutant(
        "a run goes over the limit of a mailbox",
        "broker/intake.py",
        "        if any(session.mailbox.full(size_bytes, len(bodies)) for session in receivers):\n",
        "        if not bodies:\n",
        INTAKE,
    ),
    Mutant(
        "a run has as many ids as it likes",
        "broker/intake.py",
        "        if len(msg_ids) != len(bodies) or len(bodies) > protocol.MAX_RUN:\n",
        "        if len(bodies) > protocol.MAX_RUN:\n",
        INTAKE,
    ),
    Mutant(
        "a run is as long as it likes",
        "broker/intake.py",
        "        if len(msg_ids) != len(bodies) or len(bodies) > protocol.MAX_RUN:\n",
        "        if len(msg_ids) != len(bodies):\n",
        INTAKE,
    ),
    Mutant(
        "one bad id of a run ends the others",
        "broker/intake.py",
        "                except ProtocolError as error:\n"
        "                    self._out.refuse(who.route, msg_id, error)\n",
        "                except ProtocolError:\n                    raise\n",
        INTAKE,
    ),
    Mutant(
        "a run that is staged keeps no room",
        "broker/intake.py",
        "            session.mailbox.reserve(size_bytes, len(bodies))\n",
        "            session.mailbox.reserve(0, 0)\n",
        INTAKE,
    ),
    Mutant(
        "the room of a staged run is not given back",
        "broker/intake.py",
        "                    session.mailbox.release(message.size_bytes, len(message.sends.msg_ids))\n",
        "                    pass\n",
        INTAKE,
    ),
    Mutant(
        "a run takes the places of those before it",
        "broker/intake.py",
        "                place += len(msg_ids)\n",
        "                place = len(msg_ids)\n",
        f"{INTAKE} tests/contract/test_runs.py",
    ),
    Mutant(
        "ids may be there twice",
        "ids.py",
        "        and len(set(texts)) == len(texts)\n",
        "",
        f"{PROTOCOL} {INTAKE}",
    ),
    Mutant(
        "a message is as many runs as it likes",
        "codec.py",
        "                if count > MAX_BATCH:\n",
        "                if count < 0:\n",
        PROTOCOL,
    ),
    Mutant(
        "runs are batched as single messages",
        "codec.py",
        "            number = len(envelope[-1])\n",
        "",
        PROTOCOL,
    ),
    Mutant(
        "runs weigh nothing in a batch",
        "codec.py",
        "            weight_bytes = sum(map(len, envelope[-1]))\n",
        "            weight_bytes = 0\n",
        PROTOCOL,
    ),
    Mutant(
        "a run passes the backlog",
        "broker/mailbox.py",
        "        if not self.open or self._backlog:\n            return 0\n",
        "        if not self.open:\n            return 0\n",
        MAILBOX,
    ),
    Mutant(
        "a run goes over the credit in messages",
        "broker/mailbox.py",
        "        count = min(len(run), CREDIT_MESSAGES - len(self.window))\n",
        "        count = len(run)\n",
        MAILBOX,
    ),
    Mutant(
        "a run goes over the credit in bytes",
        "broker/mailbox.py",
        "            if left_bytes < 0:\n                return number\n",
        "",
        MAILBOX,
    ),
    Mutant(
        "a run counts as stored",
        "broker/mailbox.py",
        "        self._loose += len(run)\n",
        "",
        MAILBOX,
    ),
    Mutant(
        "a broadcast is published past a run",
        "broker/mailbox.py",
        "        self._by_dealer += len(run)\n",
        "",
        MAILBOX,
    ),
    Mutant(
        "whoever repeats one of a run that is apart is not heard",
        "broker/window.py",
        "        return self if self._items is None else self._items[msg_id]\n",
        "        return self\n",
        f"{WINDOW} {INTAKE}",
    ),
    Mutant(
        "the rest of a run keeps the number of its first",
        "broker/window.py",
        "        self.seq += count\n",
        "",
        WINDOW,
    ),
    Mutant(
        "all of a run leaves with its first",
        "broker/window.py",
        "            run = run.take(count)\n",
        "            self._pieces.popleft()\n            self._runs -= 1\n",
        WINDOW,
    ),
    Mutant(
        "a part of a run points to the wrong records",
        "broker/window.py",
        "        self.pointers, self.tallies = self.pointers[count:], self.tallies[count:]\n",
        "        self.tallies = self.tallies[count:]\n",
        WINDOW,
    ),
    Mutant(
        "what is read of a run is not counted",
        "broker/delivery.py",
        "                consumer.fetching.count += count\n",
        "                pass\n",
        "tests/contract/test_runs.py",
    ),
    Mutant(
        "a run is not known when it is said again",
        "broker/delivery.py",
        "            self._open.update(dict.fromkeys(ready.msg_ids, ready))\n",
        "",
        f"{INTAKE} tests/contract/test_runs.py",
    ),
    Mutant(
        "what of a run goes beyond the credit is lost",
        "broker/delivery.py",
        "            for entry in run.entries():\n                self.to_one(now, session, entry, run.origin)\n",
        "            pass\n",
        "tests/contract/test_runs.py",
    ),
    Mutant(
        "of a run names no broadcast before it",
        "broker/delivery.py",
        "                ready.seq,\n                mailbox.after,\n",
        "                ready.seq,\n                0,\n",
        "tests/contract/test_runs.py",
    ),
    Mutant(
        "what was taken of a run is handed out again",
        "client/inbound.py",
        "            or not self._taken_ids.isdisjoint(run.msg_ids)\n        ):\n            for deliver",
        "        ):\n            for deliver",
        INBOUND,
    ),
    Mutant(
        "a run overtakes what is held",
        "client/inbound.py",
        "            or self._held_delivers\n            or self._held_casts\n            or (run",
        "            or (run",
        INBOUND,
    ),
    Mutant(
        "a run overtakes the broadcast before it",
        "client/inbound.py",
        "            or (run.after and run.after not in self._seen)\n",
        "",
        INBOUND,
    ),
    Mutant(
        "an empty run is handed out",
        "client/inbound.py",
        "        if not run.msg_ids or len(run.msg_ids) != len(run.bodies):\n"
        "            return  # no broker says that\n        if",
        "        if len(run.msg_ids) != len(run.bodies):\n            return\n        if",
        INBOUND,
    ),
    Mutant(
        "what was never handed out is settled",
        "client/inbound.py",
        "        end = min(number + messages, self._number + 1)\n",
        "        end = number + messages\n",
        INBOUND,
    ),
    Mutant(
        "what was given back is settled",
        "client/inbound.py",
        "        number = max(number, self._first)\n",
        "",
        INBOUND,
    ),
    Mutant(
        "what is settled twice is kept",
        "client/inbound.py",
        "            self._taken_numbers.difference_update(range(number, number + messages))  # settled twice\n",
        "            pass\n",
        INBOUND,
    ),
    Mutant(
        "what is left of a run is not owed",
        "client/inbound.py",
        "self._handed.appendleft((0, bcast + messages, rest) if",
        "bool((0, bcast + messages, rest) if",
        INBOUND,
    ),
    Mutant(
        "what was taken of a run is not remembered",
        "client/core.py",
        "        self._taken_ids.add_all(msg_ids)\n",
        "",
        CLIENT,
    ),
    Mutant(
        "what was taken of a run that is taken back is forgotten",
        "client/receiver.py",
        "                            self._unsure.update(dict.fromkeys(batch.msg_ids[batch.told : batch.at]))\n",
        "                            pass\n",
        RECEIVER,
    ),
    Mutant(
        "a run that comes again is not compared with what is in hand",
        "client/receiver.py",
        "        known = (self._tickets, self._taken, self._unsure)\n",
        "        known = (self._tickets, self._taken)\n",
        RECEIVER,
    ),
    Mutant(
        "what is unsure is not acknowledged under its new lease",
        "client/receiver.py",
        "            self._taken[message.msg_id] = message.ticket\n            return False\n        self._inbox",
        "            return False\n        self._inbox",
        RECEIVER,
    ),
    Mutant(
        "what is unsure stays so for ever",
        "client/receiver.py",
        "                self._unsure.clear()\n",
        "",
        RECEIVER,
    ),
    Mutant(
        "of a run in hand, the core is told of the same again",
        "client/receiver.py",
        "                for batch in self._batches:\n                    batch.told = batch.at\n",
        "",
        RECEIVER,
    ),
    Mutant(
        "an answer becomes part of a run",
        "client/gathering.py",
        " or reply_to is not None or again:",
        " or again:",
        GATHERING,
    ),
    Mutant(
        "what was said before becomes part of a run",
        "client/gathering.py",
        " or reply_to is not None or again:",
        " or reply_to is not None:",
        GATHERING,
    ),
    Mutant(
        "large bodies become part of a run",
        "client/gathering.py",
        "        if max(map(len, bodies)) > INLINE_BYTES:\n            said += run\n            continue\n",
        "",
        GATHERING,
    ),
    Mutant(
        "ids in the texts of a run are written as they are",
        "record.py",
        "    texts = _hide_marks(texts)\n",
        "",
        RECORD,
    ),
    Mutant(
        "ids in a text are written as they are",
        "record.py",
        "_hide_mark(quote(_text(body)))",
        "quote(_text(body))",
        RECORD,
    ),
    Mutant(
        "ids in a large text are written as they are",
        "record.py",
        "    return _hide_marks(quoted)\n",
        "    return quoted\n",
        RECORD,
    ),
    Mutant(
        "ids do not show that they are ids",
        "ids.py",
        " - len(ID_MARK) - self._WIDTH) + ID_MARK\n",
        " - self._WIDTH)\n",
        "tests/test_protocol.py tests/test_journal.py",
    ),
    # --- a command that cannot say what it has done
    Mutant(
        "a message is read though it could not be printed",
        "output.py",
        "            raise OutputFailed(error) from None\n",
        "            return len(data)\n",
        "tests/test_output.py tests/real/test_surroundings.py",
    ),
    Mutant(
        "an ignored signal is not ignored",
        "wakeup.py",
        " if not is_ignored(number)\n",
        "\n",
        "tests/test_wakeup.py",
    ),
    Mutant(
        "line ends of all scripts are written as they are in a run",
        "record.py",
        "    plain = texts.isascii() and between",
        "    plain = between",
        RECORD,
    ),
    Mutant(
        "room that was found lasts for ever",
        "client/speaker.py",
        "            if self._room < 0 or self._room_bytes < 0:\n",
        "            if self._room_bytes < 0:\n",
        SPEAKER,
    ),
    Mutant(
        "room for bytes that was found lasts for ever",
        "client/speaker.py",
        "            if self._room < 0 or self._room_bytes < 0:\n",
        "            if self._room < 0:\n",
        SPEAKER,
    ),
    Mutant(
        "requests that are put down are not counted",
        "client/speaker.py",
        "            self._put_asked += len(puts)\n",
        "",
        SPEAKER,
    ),
    Mutant(
        "a request that was given up goes out",
        "client/speaker.py",
        "                self._dropped.add(msg_id)  # it stands among others, and is passed over there\n",
        "                pass\n",
        SPEAKER,
    ),
    Mutant(
        "more answers are awaited than may be",
        "client/speaker.py",
        "                if self._awaited >= MAX_AWAITED:\n                    break\n",
        "",
        SPEAKER,
    ),
    # --- runs of broadcasts, gathering, streams
    Mutant(
        "a run of broadcasts is taken before it is welcome",
        "client/core.py",
        "                        if self.phase is Phase.READY:\n"
        "                            self._inbound.broadcast_all(",
        "                        if self.phase is not Phase.OFFLINE:\n"
        "                            self._inbound.broadcast_all(",
        CLIENT,
    ),
    Mutant(
        "a run is published past the credit in messages",
        "broker/mailbox.py",
        "            and len(self.window) + len(run) <= CREDIT_MESSAGES\n",
        "",
        MAILBOX,
    ),
    Mutant(
        "a run is published past the credit in bytes",
        "broker/mailbox.py",
        "            and self._window_bytes + run.weight_bytes <= CREDIT_BYTES\n        )",
        "        )",
        MAILBOX,
    ),
    Mutant(
        "a run is published past what is under way",
        "broker/mailbox.py",
        "            self._in_line(run.common.scope, run.common.target)\n            and len",
        "            self.open\n            and len",
        MAILBOX,
    ),
    Mutant(
        "a published run counts as sent by DEALER",
        "broker/mailbox.py",
        "        if not run.bcast:\n            self._by_dealer += len(run)\n            return\n",
        "        if run.seq:\n            self._by_dealer += len(run)\n            return\n",
        MAILBOX,
    ),
    Mutant(
        "a published run leaves with its first number",
        "broker/mailbox.py",
        "    if bcasts.issuperset(range(run.bcast, run.bcast + len(run))):\n",
        "    if run.bcast in bcasts:\n",
        MAILBOX,
    ),
    Mutant(
        "a published run leaves past one that is missing",
        "broker/mailbox.py",
        "    while run.bcast + count in bcasts:\n        count += 1\n",
        "    count = len(bcasts.intersection(range(run.bcast, run.bcast + len(run))))\n",
        MAILBOX,
    ),
    Mutant(
        "the acknowledgement of the DEALER takes what was published",
        "broker/mailbox.py",
        "    if not run.bcast:\n        return min(",
        "    if seq:\n        return min(",
        MAILBOX,
    ),
    Mutant(
        "numbers of a run that has left are kept",
        "broker/mailbox.py",
        "            self._published.difference_update(numbers)\n",
        "            pass\n",
        MAILBOX,
    ),
    Mutant(
        "the rest of a published run keeps the number of its first",
        "broker/window.py",
        "        self.bcast += count if self.bcast else 0\n",
        "",
        WINDOW,
    ),
    Mutant(
        "the rest of a published run counts for those before it",
        "broker/window.py",
        "        self.pointers, self.tallies = self.pointers[count:], self.tallies[count:]\n",
        "        self.pointers = self.pointers[count:]\n",
        WINDOW,
    ),
    Mutant(
        "another format is gathered as text",
        "broker/staged.py",
        "        send.fmt != _TEXT\n        or ",
        "        ",
        STAGED,
    ),
    Mutant(
        "an answer is gathered with others",
        "broker/staged.py",
        "        or send.reply_to is not None\n",
        "",
        STAGED,
    ),
    Mutant(
        "what is said again is gathered with others",
        "broker/staged.py",
        "        or send.again\n",
        "",
        STAGED,
    ),
    Mutant(
        "what is for a group is gathered",
        "broker/staged.py",
        "        or send.scope == Scope.GROUP\n",
        "",
        STAGED,
    ),
    Mutant(
        "what some go without is gathered",
        "broker/staged.py",
        "        or message.full\n",
        "",
        STAGED,
    ),
    Mutant(
        "what is awaited is gathered with others",
        "broker/staged.py",
        "        or message.waiter is not None\n",
        "",
        STAGED,
    ),
    Mutant(
        "large bodies are gathered",
        "broker/staged.py",
        "        or len(send.body) > protocol.INLINE_BYTES\n",
        "",
        STAGED,
    ),
    Mutant(
        "a body in a file is gathered without it",
        "broker/staged.py",
        "        or len(send.body) < message.size_bytes  # it is in a file\n",
        "",
        STAGED,
    ),
    Mutant(
        "what two senders have said is gathered",
        "broker/staged.py",
        "    return message.sender.route, record.ts,",
        "    return record.ts,",
        STAGED,
    ),
    Mutant(
        "what was said at different times is gathered",
        "broker/staged.py",
        "sender.route, record.ts, record[3:6]",
        "sender.route, record[3:6]",
        STAGED,
    ),
    Mutant(
        "what was said under another name is gathered",
        "broker/staged.py",
        "record.ts, record[3:6], send.scope",
        "record.ts, send.scope",
        STAGED,
    ),
    Mutant(
        "what is for others is gathered",
        "broker/staged.py",
        " send.target, receivers\n",
        " send.target\n",
        STAGED,
    ),
    Mutant(
        "what is gathered is as long as it likes",
        "broker/staged.py",
        "range(0, len(alike), MAX_RUN))",
        "range(0, len(alike), len(alike)))",
        STAGED,
    ),
    Mutant(
        "what is gathered is cut, and the rest dropped",
        "broker/staged.py",
        "range(0, len(alike), MAX_RUN))",
        "range(0, MAX_RUN, MAX_RUN))",
        STAGED,
    ),
    Mutant(
        "a run is published to one whose SUB is not in force",
        "broker/delivery.py",
        "not (conn.attached and conn.related and session.mailbox.may_publish_run(run))",
        "not (conn.related and session.mailbox.may_publish_run(run))",
        BROADCAST_RUNS,
    ),
    Mutant(
        "a run is published to one who cannot take it",
        "broker/delivery.py",
        " and session.mailbox.may_publish_run(run)):\n",
        "):\n",
        BROADCAST_RUNS,
    ),
    Mutant(
        "a run is published to a client of another release",
        "broker/delivery.py",
        "(conn.attached and conn.related and session",
        "(conn.attached and session",
        "tests/broker/test_core.py",
    ),
    Mutant(
        "a run is delivered to a client of another release",
        "broker/delivery.py",
        "if consumer is not None and consumer.related else 0",
        "if consumer is not None else 0",
        "tests/broker/test_core.py",
    ),
    Mutant(
        "a run is said to a broker of another release",
        "client/core.py",
        "welcome is not None and welcome.release == self._version",
        "welcome is not None",
        "tests/client/test_core.py",
    ),
    Mutant(
        "a run that is not published keeps its number",
        "broker/delivery.py",
        "                run.bcast = 0\n                return False\n",
        "                return False\n",
        BROADCAST_RUNS,
    ),
    Mutant(
        "mailboxes share one run",
        "broker/delivery.py",
        "append_run(run.twin(), now.mono_s)",
        "append_run(run, now.mono_s)",
        BROADCAST_RUNS,
    ),
    Mutant(
        "a run takes one number",
        "broker/delivery.py",
        "        self.bcast += len(run)\n",
        "        self.bcast += 1\n",
        BROADCAST_RUNS,
    ),
    Mutant(
        "a run is not spared to its sender",
        "broker/delivery.py",
        "        spared = (*((own.peer,) if own is not None else ()), *self",
        "        spared = (*(), *self",
        BROADCAST_RUNS,
    ),
    Mutant(
        "a run is not spared to who lingers",
        "broker/delivery.py",
        " if own is not None else ()), *self._lingering.values())",
        " if own is not None else ()),)",
        BROADCAST_RUNS,
    ),
    Mutant(
        "a run names none before it",
        "broker/delivery.py",
        "            self._epoch, first, prev, spared,",
        "            self._epoch, first, 0, spared,",
        BROADCAST_RUNS,
    ),
    Mutant(
        "the run before is not named",
        "broker/delivery.py",
        "        prev = self._channels.get(channel, 0)\n"
        "        self._channels[channel] = self.bcast\n"
        "        broadcasts",
        "        prev = self._channels.get(channel, 0)\n        broadcasts",
        BROADCAST_RUNS,
    ),
    Mutant(
        "what is taken of a published run is not counted",
        "broker/delivery.py",
        "                for tally in item.tallies:\n                    self._count(tally, delivered=True)\n",
        "",
        BROADCAST_RUNS,
    ),
    Mutant(
        "a published run is answered by receipts, too",
        "broker/delivery.py",
        "                if item.tallies:\n                    continue\n",
        "",
        BROADCAST_RUNS,
    ),
    Mutant(
        "a published run is not known when it is said again",
        "broker/delivery.py",
        "        self._open.update(zip(run.msg_ids, run.tallies, strict=True))\n",
        "",
        BROADCAST_RUNS,
    ),
    Mutant(
        "a run of broadcasts goes over the rate",
        "broker/intake.py",
        "            if len(recent) + len(bodies) > BROADCASTS_PER_MINUTE:\n                return None\n",
        "",
        BROADCAST_RUNS,
    ),
    Mutant(
        "broadcasts in a run do not count",
        "broker/intake.py",
        "            recent.extend([now.mono_s] * len(bodies))\n",
        "",
        BROADCAST_RUNS,
    ),
    Mutant(
        "what cannot be published as a run is lost",
        "broker/intake.py",
        "            for entry in run.entries():\n                self._delivery.to_many(",
        "            for entry in ():\n                self._delivery.to_many(",
        BROADCAST_RUNS,
    ),
    Mutant(
        "a group's run goes to one member",
        "broker/intake.py",
        " or not (to_many or sends.scope == _SESSION) or not protocol",
        " or not protocol",
        BROADCAST_RUNS,
    ),
    Mutant(
        "what a group has on its way is no load",
        "broker/mailbox.py",
        "        return self.total + self._reserved\n",
        "        return self.total\n",
        f"{MAILBOX} {BROADCAST_RUNS}",
    ),
    Mutant(
        "broadcasts of another broker are handed out in a run",
        "client/inbound.py",
        "            or run.epoch != self._epoch\n",
        "",
        INBOUND,
    ),
    Mutant(
        "broadcasts from before the lease are handed out in a run",
        "client/inbound.py",
        "            or run.bcast <= self._since\n            or channel",
        "            or channel",
        INBOUND,
    ),
    Mutant(
        "a run for another channel is handed out",
        "client/inbound.py",
        "            or channel != protocol.channel(run.scope, run.target)\n",
        "",
        INBOUND,
    ),
    Mutant(
        "a gap before a run is passed over",
        "client/inbound.py",
        "            or run.prev > self._last_on.get(channel, self._since)\n",
        "",
        INBOUND,
    ),
    Mutant(
        "a run that it is spared is handed out",
        "client/inbound.py",
        "            or self._peer in run.spared\n",
        "",
        INBOUND,
    ),
    Mutant(
        "a run passes what is asked for",
        "client/inbound.py",
        "            or self._asked\n            or self._held_delivers",
        "            or self._held_delivers",
        INBOUND,
    ),
    Mutant(
        "a run of broadcasts passes held messages",
        "client/inbound.py",
        "            or self._asked\n            or self._held_delivers\n            or self._held_casts\n",
        "            or self._asked\n            or self._held_casts\n",
        INBOUND,
    ),
    Mutant(
        "what was seen of a run is handed out again",
        "client/inbound.py",
        "            or self._seen.has_any(numbers.start, numbers.stop)\n",
        "",
        INBOUND,
    ),
    Mutant(
        "what was taken of a run of broadcasts is handed out again",
        "client/inbound.py",
        "            or not self._taken_ids.isdisjoint(run.msg_ids)\n        ):\n            for cast",
        "        ):\n            for cast",
        INBOUND,
    ),
    Mutant(
        "a run of broadcasts is not the last on its channel",
        "client/inbound.py",
        "        self._last_on[channel] = numbers[-1]\n",
        "",
        INBOUND,
    ),
    Mutant(
        "a run of broadcasts is not seen",
        "client/inbound.py",
        "        self._seen.add_all(numbers.start, numbers.stop)\n",
        "",
        INBOUND,
    ),
    Mutant(
        "numbers of runs are never forgotten",
        "client/numbers.py",
        "        while self._count > REMEMBERED:\n",
        "        while False:\n",
        INBOUND,
    ),
    Mutant(
        "each of a run names the one before the run",
        "client/inbound.py",
        "        prev = bcast\n",
        "",
        INBOUND,
    ),
    Mutant(
        "an empty run of broadcasts is handed out",
        "client/inbound.py",
        "        if not run.msg_ids or len(run.msg_ids) != len(run.bodies):\n"
        "            return  # no broker says that\n"
        "        numbers",
        "        if len(run.msg_ids) != len(run.bodies):\n            return\n        numbers",
        INBOUND,
    ),
    Mutant(
        "a message is given to nobody",
        "client/receiver.py",
        "        if self._waiting and len(self._inbox) == 1",
        "        if len(self._inbox) == 1",
        RECEIVER,
    ),
    Mutant(
        "what the program acknowledges is given to it",
        "client/receiver.py",
        " and not self._manual and not self._given:",
        " and not self._given:",
        RECEIVER,
    ),
    Mutant(
        "a second one is given before the first is taken",
        "client/receiver.py",
        " and not self._manual and not self._given:",
        " and not self._manual:",
        RECEIVER,
    ),
    Mutant(
        "one of several is given",
        "client/receiver.py",
        "        if self._waiting and len(self._inbox) == 1 and",
        "        if self._waiting and self._inbox and",
        RECEIVER,
    ),
    Mutant(
        "what was given is not acknowledged",
        "client/receiver.py",
        "                self._taken[first.msg_id] = first.ticket\n                self._given",
        "                self._given",
        RECEIVER,
    ),
    Mutant(
        "what was given comes after what came later",
        "client/receiver.py",
        "            if self._given:\n                return",
        "            if self._given and not self._inbox:\n                return",
        RECEIVER,
    ),
    Mutant(
        "what was given does not end the wait",
        "client/receiver.py",
        "            while not self._inbox and not self._given:\n",
        "            while not self._inbox:\n",
        RECEIVER,
    ),
    Mutant(
        "a wait that is interrupted goes on",
        "client/receiver.py",
        "                finally:\n                    self._waiting -= 1\n",
        "                finally:\n                    pass\n",
        RECEIVER,
    ),
    Mutant(
        "what is taken of a run is unread",
        "client/receiver.py",
        "sum(len(one.msg_ids) - one.at if",
        "sum(len(one.msg_ids) if",
        RECEIVER,
    ),
    Mutant(
        "the first of a stream waits for the thread",
        "client/driver.py",
        "        alone = not self._link.core.unconfirmed or time",
        "        alone = time",
        DRIVER,
    ),
    Mutant(
        "in a stream each goes out by itself",
        "client/driver.py",
        " or time.monotonic() - self._said_s > STREAM_S\n",
        " or True\n",
        DRIVER,
    ),
    Mutant(
        "a stream never ends",
        "client/driver.py",
        " or time.monotonic() - self._said_s > STREAM_S\n",
        "\n",
        DRIVER,
    ),
    Mutant(
        "any number is gathered",
        "client/driver.py",
        "        if alone or gathered >= GATHER:\n",
        "        if alone:\n",
        DRIVER,
    ),
    Mutant(
        "a sleeping thread is not woken for a stream",
        "client/driver.py",
        "            self._gathering = True\n            if self._asleep_until_s:\n                self._wake()\n",
        "            self._gathering = True\n",
        DRIVER,
    ),
    Mutant(
        "who waits does not hurry",
        "client/driver.py",
        "        if self._gathering:\n            try:\n                self.say()\n",
        "        if self._gathering:\n            try:\n                pass\n",
        DRIVER,
    ),
    Mutant(
        "the thread does not say what was gathered",
        "client/driver.py",
        "                if self._gathering:\n"
        "                    self._gathering = False\n"
        "                    self._carry_out(self._application.speak(self._link.core))\n",
        "                if self._gathering:\n                    self._gathering = False\n",
        DRIVER,
    ),
    Mutant(
        "what was put down is forgotten if a speaker fails",
        "client/driver.py",
        "            effects = speak(link.core) if speak is not None else []\n            self._gathering = False  #",
        "            self._gathering = False\n"
        "            effects = speak(link.core) if speak is not None else []\n"
        "            #",
        DRIVER,
    ),
    Mutant(
        "messages to a group become a run",
        "client/gathering.py",
        " or scope == Scope.GROUP",
        "",
        GATHERING,
    ),
    Mutant(
        "an answer that is held waits for ever",
        "broker/awaits.py",
        "                for item in expected.held:\n                    self._without_waiter(now, expected",
        "                for item in ():\n                    self._without_waiter(now, expected",
        AWAITS,
    ),
    Mutant(
        "what is held is not handed to who comes back",
        "broker/awaits.py",
        "        for item in expected.held:\n            self._to_waiter(",
        "        for item in ():\n            self._to_waiter(",
        AWAITS,
    ),
    Mutant(
        "a receipt names none of those that share it",
        "broker/fates.py",
        "        return answer._replace(msg_ids=(msg_id,)) if",
        "        return answer if",
        FATES,
    ),
    Mutant(
        "fates are kept for ever",
        "broker/fates.py",
        "        settled.update(dict.fromkeys(msg_ids, fate))\n"
        "        while len(settled) > REMEMBERED_FATES:\n"
        "            settled.popitem(last=False)\n",
        "        settled.update(dict.fromkeys(msg_ids, fate))\n",
        FATES,
    ),
    Mutant(
        "a broadcast of an earlier broker is taken up twice",
        "broker/fates.py",
        "self._earlier_casts.pop(msg_id, ()), ",
        "self._earlier_casts.get(msg_id, ()), ",
        FATES,
    ),
    Mutant(
        "a run is new though one of it waits",
        "broker/fates.py",
        "        known = (self._settled, self._earlier, self._earlier_casts, self._earlier_full)\n",
        "        known = (self._settled, self._earlier)\n",
        FATES,
    ),
    # --- what others may not see, take or make us run
    Mutant(
        "what a command prints is not made safe below all of it",
        "output.py",
        'map(sanitise, line.split("\\t"))',
        'line.split("\\t")',
        "tests/test_output.py",
    ),
    Mutant(
        "an error shows what it quotes as it is",
        "errors.py",
        "        return sanitise(text)\n",
        "        return text\n",
        "tests/test_display.py",
    ),
    Mutant(
        "JSON holds what terminals obey",
        "display.py",
        "    return text if text.isascii() and text.isprintable() else _escaped().sub(_escape, text)\n",
        "    return text\n",
        "tests/test_display.py",
    ),
    Mutant(
        "a line of a text passes for a header",
        "display.py",
        "INDENT + line if line.startswith(HEADER) else line for line",
        "line for line",
        "tests/test_display.py",
    ),
    Mutant(
        "a text stays in the process list",
        "cmdline.py",
        '    os.pwrite(memory, MASK.ljust(size, b"\\0")[:size], place)\n',
        "    return\n",
        "tests/test_cmdline.py",
    ),
    Mutant(
        "the venv below the current directory is run",
        "bootstrap.py",
        '    if given and not given.startswith("~") and not os.path.isabs(given):\n',
        "    if False:\n",
        "tests/test_bootstrap.py",
    ),
    Mutant(
        "the venv below a directory that others can write to is run",
        "bootstrap.py",
        "            if open_to_others or found.st_uid",
        "            if found.st_uid",
        "tests/test_bootstrap.py",
    ),
    Mutant(
        "a text that cannot be read is an empty one",
        "client/messages.py",
        "        if isinstance(self._value, ZmqbusError):\n            raise self._value\n        if self.fmt",
        "        if self.fmt",
        "tests/client/test_messages.py",
    ),
    Mutant(
        "a name is told before it is stored",
        "broker/core.py",
        "                self._renames_kept(reason)\n",
        "                self._renames_kept(None)\n",
        CORE,
    ),
    Mutant(
        "whom the disk keeps a broadcast from is told that its mailbox is full",
        "broker/delivery.py",
        "            tally.unsaved += (session.name,)\n",
        "            tally.full += (session.name,)\n",
        CORE,
    ),
    Mutant(
        "a patient client ends when its port is held",
        "client/link.py",
        "            if not self.patient:\n                raise\n",
        "            if isinstance(error, PortHeld) or not self.patient:\n                raise\n",
        "tests/client/test_link.py",
    ),
    Mutant(
        "a client stays at a port that its broker has left",
        "client/link.py",
        "        if port != self._port and not self._connected:\n",
        "        if False:\n",
        "tests/client/test_link.py",
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

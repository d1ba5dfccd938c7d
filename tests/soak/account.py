"""The account of a soak run: compares what happened to every message with what was promised.

Pure: computes an `Account` from a `History`. Each fault names the message, the receiver and the reason.

| fault | meaning |
|---|---|
| lost | reported as delivered or queued, and never shown to one of its receivers |
| duplicated | shown twice to one receiver, and not excepted |
| unmarked | shown again by a listener, excepted, but without `queued=` |
| reordered | shown after a later one of the same run |
| invented | shown and never sent, or shown to another receiver, under another id, or with another text |
| denied | refused, and shown nevertheless |
| refused | refused for a reason that the run does not cause |
| stranded | a sender found no broker, and none was stopped: a dead one is replaced at once |

*Excepted* is a message shown a second time if the process that showed it first was killed between two system calls: the
write of the line, which the harness has read, and the entry in the shown log. The shown log of a dead agent is lost as
well. So its successor is shown the line again if the broker was killed, stopped or disconnected before the listener's
acknowledgement, and agent and listener died around that time; likewise if the broker was killed after the
acknowledgement and before the receipt to the sender, who repeats the message to a broker that cannot know what the dead
agent has shown (docs/guarantees.md, 7).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any, NamedTuple

from tests.soak.history import EVERYONE, Answer, Blow, History, Sent, Shown

#: A process killed within this time, s, after the harness read its line was killed between write and entry: some
#: microseconds on an idle machine, some turns of the scheduler on a busy one.
INSTANT_S = 0.25
#: A receipt may overtake the line in the harness, which reads a dozen pipes in turn. More than this, s, is reported; no
#: verdict depends on it.
EARLY_S = 2.0
#: An acknowledgement to a broker that was hit, or over a wire that was cut, is at most so late, s: the longest stop,
#: and another connection. If the agent dies before that, the entry in its shown log is lost.
UNACKNOWLEDGED_S = 20.0
#: How long, s, the listener and the commands of an agent may go on after its death: a listener looks every second.
OUTLIVES_S = 3.0
#: Refusals that a run causes: too many broadcasts, full mailboxes, commands of a session whose listener was killed.
EXPECTED_REFUSALS = ("rate_limited", "not_connected")
#: A sender that sent within this time, s, of the broker's death was waiting for it.
BUSY_S = 0.5
#: The longest time, s, for which a process is stopped.
LONGEST_STOP_S = 15.0
#: A stop or a cut within this time, s, may be the reason why no broker answers: a client gives up after five seconds,
#: and again for each further try.
EXCUSED_S = 25.0
#: The story of a message includes blows within this time, s, around its events.
AROUND_S = 2.0

FAULTS = ("lost", "duplicated", "unmarked", "reordered", "invented", "denied", "refused", "stranded")


class Fault(NamedTuple):
    """One broken promise."""

    kind: str  #: one of FAULTS
    label: str
    receiver: str
    why: str


class Account(NamedTuple):
    """The figures of a run, and every fault."""

    sent: int
    broadcasts: int
    spilled: int  #: over 64 KiB
    delivered: int  #: directed messages reported so
    queued: int
    tallies: int  #: broadcasts whose tally came
    refused: Counter[str]  #: by code
    unsure: int  #: messages without a receipt, and how many of those
    unsure_shown: int  #: were shown
    owed: int  #: promised showings: one for each receiver of a reported message
    shown: int  #: all showings
    again: int  #: excepted second showings among them
    partial: list[str]  #: labels of broadcasts without a tally that only some receivers were shown
    miscounted: int  #: tallies that count fewer sessions than there are receivers
    early: int  #: reported as delivered, and read by the harness at least EARLY_S later
    early_max_s: float
    blows: Counter[str]  #: "kill broker" → how often
    recovery_s: list[float]  #: from a broker's death to the next receipt of an undisturbed sender
    faults: list[Fault]

    def count(self, kind: str) -> int:
        """Returns the number of faults of this kind."""
        return sum(fault.kind == kind for fault in self.faults)

    def as_json(self) -> dict[str, Any]:
        """Returns the account in JSON types."""
        return {
            **self._asdict(),
            "refused": dict(self.refused),
            "blows": dict(self.blows),
            "faults": [fault._asdict() for fault in self.faults],
            **{kind: self.count(kind) for kind in FAULTS if kind != "refused"},
        }


def settle(history: History) -> Account:
    """Returns the account of a finished run, in which every receiver has come back and read all its mail."""
    sent = {message.label: message for message in history.sent}
    answers = {answer.label: answer for answer in history.answers}
    first: dict[tuple[str, str], Shown] = {}
    faults: list[Fault] = []
    again = 0
    kills: dict[int, list[float]] = defaultdict(list)
    for blow in history.blows:
        if blow.what == "kill":
            kills[blow.pid].append(blow.at_s)
    died = _deaths_before_an_acknowledgement(history)
    broker_killed_s = [blow.at_s for blow in history.blows if (blow.what, blow.whom) == ("kill", "broker")]
    # Only first showings have an order: a second one is duplicated or excepted.
    highest: dict[tuple[str, str], Sent] = {}
    for shown in history.shown:
        message = sent.get(shown.label)
        if (wrong := _what_is_wrong(history, message, shown)) is not None:
            faults.append(Fault("invented", shown.label, shown.receiver, wrong))
            continue
        assert message is not None
        key = (shown.receiver, shown.label)
        if (before := first.get(key)) is not None:
            told_s = answers[shown.label].at_s if shown.label in answers else shown.at_s
            excuses = died[shown.receiver] + _deaths_around_a_kill(
                history, shown.receiver, [at_s for at_s in broker_killed_s if before.at_s < at_s < told_s]
            )
            kind, why = _shown_again(before, shown, kills.get(before.pid, ()), excuses)
            again += kind != "duplicated"
            if kind:
                faults.append(Fault(kind, shown.label, shown.receiver, why))
            continue
        first[key] = shown
        last = highest.get((shown.receiver, message.run))
        if last is None or last.number < message.number:
            highest[shown.receiver, message.run] = message
        else:
            faults.append(Fault("reordered", shown.label, shown.receiver, f"shown after {last.label}"))
    owed = 0
    miscounted = early = unsure_shown = 0
    partial: list[str] = []
    early_max_s = 0.0
    for message in history.sent:
        answer = answers.get(message.label)
        audience = _audience(history, message)
        reached = [receiver for receiver in audience if (receiver, message.label) in first]
        if answer is None:
            unsure_shown += bool(reached)
            if 0 < len(reached) < len(audience):
                partial.append(message.label)
        elif answer.kind == "refused":
            faults += [Fault("denied", message.label, receiver, answer.detail) for receiver in reached]
            if answer.detail.partition(" ")[0] not in EXPECTED_REFUSALS:
                faults.append(Fault("refused", message.label, message.target, answer.detail))
        else:
            audience = [receiver for receiver in audience if receiver not in answer.full]
            owed += len(audience)
            for receiver in audience:
                if receiver not in reached:
                    faults.append(Fault("lost", message.label, receiver, f"it was reported as {_told(answer)}"))
            if answer.kind == "tally":
                miscounted += answer.delivered + answer.queued < len(audience)  # programs count as well
            elif answer.kind == "delivered" and reached:
                late_s = first[reached[0], message.label].at_s - answer.at_s
                early += late_s > EARLY_S
                early_max_s = max(early_max_s, late_s)
    faults += _stranded(history)
    kinds = Counter(answer.kind for answer in answers.values())
    return Account(
        sent=len(history.sent),
        broadcasts=sum(message.target == EVERYONE for message in history.sent),
        spilled=sum(message.size_bytes > 65_536 for message in history.sent),
        delivered=kinds["delivered"],
        queued=kinds["queued"],
        tallies=kinds["tally"],
        refused=Counter(a.detail.partition(" ")[0] for a in answers.values() if a.kind == "refused"),
        unsure=len(history.sent) - len(answers),
        unsure_shown=unsure_shown,
        owed=owed,
        shown=len(history.shown),
        again=again,
        partial=partial,
        miscounted=miscounted,
        early=early,
        early_max_s=early_max_s,
        blows=Counter(f"{blow.what} {_kind_of(blow.whom)}" for blow in history.blows),
        recovery_s=_recoveries(history),
        faults=faults,
    )


def _audience(history: History, message: Sent) -> list[str]:
    if message.target != EVERYONE:
        return [message.target]
    return [receiver for receiver in history.receivers if receiver != history.own.get(message.sender)]


def _what_is_wrong(history: History, message: Sent | None, shown: Shown) -> str | None:
    if message is None:
        return f"nobody sent it: msg={shown.msg_id}, {shown.fault or 'no such label'}"
    if shown.fault:
        return shown.fault
    if shown.receiver not in _audience(history, message):
        return f"it was for {message.target}"
    if message.msg_id and message.msg_id != shown.msg_id:
        return f"it was sent as {message.msg_id} and shown as {shown.msg_id}"
    return None


def _deaths_before_an_acknowledgement(history: History) -> dict[str, list[tuple[float, float]]]:
    """For each receiver: when an acknowledgement may have been delayed, and when its agent died after that."""
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    hindrances = [blow for blow in history.blows if blow.what in ("kill", "stop", "cut", "wire")]
    for death in history.blows:
        if death.what == "die":
            found[death.whom] += [
                (blow.at_s, death.at_s)
                for blow in hindrances
                if blow.whom in ("broker", death.whom) and 0 < death.at_s - blow.at_s < UNACKNOWLEDGED_S
            ]
    return found


def _deaths_around_a_kill(history: History, receiver: str, killed_s: list[float]) -> list[tuple[float, float]]:
    """Pairs each of these kills of the broker with each death of the receiver's agent."""
    return [
        (at_s, death.at_s)
        for death in history.blows
        if (death.what, death.whom) == ("die", receiver)
        for at_s in killed_s
    ]


def _shown_again(
    before: Shown, shown: Shown, killed_s: Iterable[float], died: Iterable[tuple[float, float]]
) -> tuple[str, str]:
    """Classifies a second showing: "" (excepted), "unmarked" or "duplicated"; and the reason."""
    if any(
        abs(hit_s - before.at_s) < UNACKNOWLEDGED_S and before.at_s - OUTLIVES_S < death_s < shown.at_s
        for hit_s, death_s in died
    ):
        return ("", "") if shown.queued else ("unmarked", f"by the {shown.by} {shown.pid}, the successor of a dead one")
    after_s = [at_s - before.at_s for at_s in killed_s]
    # A line read after the kill was written before it. A pid is not reused within the minutes of a run.
    if not any(late_s < INSTANT_S for late_s in after_s):
        fate = f"which was killed {after_s[0]:.3f} s later" if after_s else "which was not killed"
        return "duplicated", (
            f"first by the {before.by} {before.pid}, {fate}; {shown.at_s - before.at_s:.3f} s later by the {shown.by} "
            f"{shown.pid}"
        )
    if not shown.queued:
        return "unmarked", f"by the {shown.by} {shown.pid}, {shown.at_s - before.at_s:.3f} s after the first time"
    return "", ""


def _stranded(history: History) -> list[Fault]:
    excuses = [blow for blow in history.blows if blow.what in ("stop", "cut", "wire")]
    return [
        Fault("stranded", "", blow.whom, f"at {blow.at_s:.3f}: {blow.detail}")
        for blow in history.blows
        if blow.what == "gave up"
        and not any(
            excuse.whom in ("broker", blow.whom) and 0 < blow.at_s - excuse.at_s < EXCUSED_S for excuse in excuses
        )
    ]


def _told(answer: Answer) -> str:
    if answer.kind == "tally":
        return f"broadcast, delivered={answer.delivered} queued={answer.queued}"
    return f"{answer.kind} {answer.detail}".strip()


def _kind_of(whom: str) -> str:
    """`s0` → sender, `r3` → listener, `inbox of r3` → inbox."""
    word = whom.partition(" ")[0]
    kinds = {"r": "listener", "s": "sender", "w": "worker", "q": "requester"}
    return kinds.get(word[0], word) if word[1:].isdigit() else word


def _recoveries(history: History) -> list[float]:
    """Times from each death of the broker to the next receipt of each sender that was sending and undisturbed.

    Senders that act as sessions are left out: they also wait for the session's listener.
    """
    said: dict[str, list[float]] = defaultdict(list)
    answered: dict[str, list[float]] = defaultdict(list)
    troubled: dict[str, list[float]] = defaultdict(list)
    sender_of = {message.label: message.sender for message in history.sent}
    for message in history.sent:
        said[message.sender].append(message.at_s)
    for answer in history.answers:
        answered[sender_of[answer.label]].append(answer.at_s)
    for blow in history.blows:
        if blow.what in ("kill", "stop", "cut", "wire", "end"):
            troubled[blow.whom].append(blow.at_s)
    found: list[float] = []
    for death_s in (blow.at_s for blow in history.blows if blow.what == "kill" and blow.whom == "broker"):
        for sender in set(answered) - set(history.own):
            after_s = min((at_s for at_s in answered[sender] if at_s > death_s), default=death_s)
            others_s = [at_s for at_s in (*troubled[sender], *troubled["broker"]) if at_s != death_s]
            if any(abs(at_s - death_s) < BUSY_S for at_s in said[sender]) and not any(
                death_s - LONGEST_STOP_S < at_s < after_s for at_s in others_s
            ):
                found.append(round(after_s - death_s, 3))
    return sorted(found)


# --- to be read -------------------------------------------------------------------------------------------------


def table(account: Account) -> str:
    """Formats the account as lines of text."""
    shown = {
        "sent": f"{account.sent:,}, of them {account.broadcasts:,} broadcasts, {account.spilled:,} over 64 KiB",
        "delivered": f"{account.delivered:,}",
        "queued": f"{account.queued:,}",
        "tallies": f"{account.tallies:,} ({account.miscounted} count less than the receivers)",
        "refused": ", ".join(f"{count:,} {code}" for code, count in account.refused.most_common()) or "0",
        "unsure": f"{account.unsure:,}, {account.unsure_shown:,} of them shown, {len(account.partial)} to some only",
        "shown": f"{account.shown:,}, {account.owed:,} promised; {account.again} again (killed between write and note)",
        "told early": f"{account.early} over {EARLY_S:g} s; at most {account.early_max_s:.2f} s before it was read",
        "recovery": _spread(account.recovery_s),
        "blows": ", ".join(f"{count} {what}" for what, count in sorted(account.blows.items())) or "none",
        **{kind.upper(): str(account.count(kind)) for kind in FAULTS},
    }
    return "\n".join(f"{name:<12}{text}" for name, text in shown.items())


def _spread(values: list[float]) -> str:
    if not values:
        return "not measured"
    return f"median {values[len(values) // 2]:.2f} s, at most {values[-1]:.2f} s ({len(values)} times)"


def tell(history: History, label: str) -> str:
    """Formats the story of one message, with the blows around it."""
    events: list[tuple[float, str]] = []
    for message in history.sent:
        if message.label == label:
            events.append(
                (message.at_s, f"{message.sender} sends msg={message.msg_id or '?'} to {message.target}, "
                 f"{message.size_bytes} bytes")
            )  # fmt: skip
    for answer in history.answers:
        if answer.label == label:
            events.append((answer.at_s, f"its sender hears: {_told(answer)}"))
    for shown in history.shown:
        if shown.label == label:
            mark = ", marked as queued" if shown.queued and shown.by == "listener" else ""
            events.append((shown.at_s, f"{shown.receiver} is shown it by the {shown.by} {shown.pid}{mark}"))
    told = {message.target for message in history.sent if message.label == label}
    near = {"broker", *told, *(message.sender for message in history.sent if message.label == label)}
    for blow in history.blows:
        concerned = EVERYONE in told or blow.whom in near or blow.whom.rpartition(" ")[2] in near
        if concerned and any(abs(blow.at_s - at_s) < AROUND_S for at_s, _ in events):
            events.append((blow.at_s, _tell_blow(blow)))
    return "\n".join(f"  {at_s:12.3f}  {text}" for at_s, text in sorted(set(events)))


def _tell_blow(blow: Blow) -> str:
    return f"({blow.what} {blow.whom}{f' {blow.pid}' if blow.pid else ''}{f': {blow.detail}' if blow.detail else ''})"

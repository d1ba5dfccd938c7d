"""The account: it finds each fault in a history that has it, and none in one that has not."""

from __future__ import annotations

import json

import pytest

from tests.soak.account import EARLY_S, FAULTS, INSTANT_S, Account, settle, table, tell
from tests.soak.history import (
    EVERYONE,
    Answer,
    Blow,
    History,
    Sent,
    Shown,
    make_text,
    read_line,
    read_notes,
    read_text,
)

RECEIVERS = ("r0", "r1", "r2")
PID = 100


class Told:
    """Makes a history, an instant a step."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.history = History(RECEIVERS, [], [], [], [], {"s1": "r0"})

    def sends(self, label: str, target: str = "r0", size: int = 100) -> Told:
        self.history.sent.append(Sent(label, f"id{label}", target, size, self._tick()))
        return self

    def hears(self, label: str, kind: str = "delivered", detail: str = "", **counts) -> Told:
        self.history.answers.append(Answer(label, kind, detail, self._tick(), **counts))
        return self

    def is_shown(
        self,
        label: str,
        receiver: str = "r0",
        *,
        pid: int = PID,
        by: str = "listener",
        queued: bool = False,
        fault: str = "",
        msg_id: str | None = None,
    ) -> Told:
        msg_id = f"id{label}" if msg_id is None else msg_id
        self.history.shown.append(Shown(receiver, label, msg_id, self._tick(), pid, by, queued, fault))
        return self

    def hit(self, what: str, whom: str, pid: int = PID, after_s: float = 0.01) -> Told:
        self.history.blows.append(Blow(self._tick(after_s), what, whom, pid))
        return self

    def later(self, seconds: float) -> Told:
        self.now_s += seconds
        return self

    def settled(self) -> Account:
        return settle(self.history)

    def _tick(self, after_s: float = 0.01) -> float:
        self.now_s += after_s
        return self.now_s


def faults(told: Told) -> list[tuple[str, str, str]]:
    return [fault[:3] for fault in told.settled().faults]


# --- messages to one ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["delivered", "queued"])
def test_reported_and_shown_is_in_order(kind):
    told = Told().sends("s0.1:1").is_shown("s0.1:1").hears("s0.1:1", kind)
    account = told.settled()
    assert account.faults == []
    assert (account.sent, account.shown, account.owed, account.unsure) == (1, 1, 1, 0)
    assert (account.delivered, account.queued) == ((1, 0) if kind == "delivered" else (0, 1))


@pytest.mark.parametrize("kind", ["delivered", "queued"])
def test_reported_and_never_shown_is_lost(kind):
    assert faults(Told().sends("s0.1:1").hears("s0.1:1", kind)) == [("lost", "s0.1:1", "r0")]


def test_shown_to_another_is_lost_and_invented():
    told = Told().sends("s0.1:1", "r0").is_shown("s0.1:1", "r1").hears("s0.1:1")
    assert sorted(faults(told)) == [("invented", "s0.1:1", "r1"), ("lost", "s0.1:1", "r0")]


def test_unsure_may_be_shown_or_not():
    account = Told().sends("s0.1:1").sends("s0.1:2").is_shown("s0.1:2").settled()
    assert account.faults == []
    assert (account.unsure, account.unsure_shown, account.owed) == (2, 1, 0)


def test_refused_is_not_owed():
    account = Told().sends("s0.1:1").hears("s0.1:1", "refused", "rate_limited the mailbox is full").settled()
    assert account.faults == []
    assert account.refused == {"rate_limited": 1}


def test_refused_and_shown_is_denied():
    told = Told().sends("s0.1:1").is_shown("s0.1:1").hears("s0.1:1", "refused", "rate_limited the mailbox is full")
    assert faults(told) == [("denied", "s0.1:1", "r0")]


def test_refused_for_no_reason_that_the_run_gives():
    told = Told().sends("s0.1:1").hears("s0.1:1", "refused", "unknown_peer no session answers to r0")
    assert faults(told) == [("refused", "s0.1:1", "r0")]


# --- twice ----------------------------------------------------------------------------------------------------------


def test_shown_twice_is_duplicated():
    told = Told().sends("s0.1:1").is_shown("s0.1:1").hears("s0.1:1").is_shown("s0.1:1", queued=True)
    assert faults(told) == [("duplicated", "s0.1:1", "r0")]


@pytest.mark.parametrize("by", ["listener", "inbox"])
def test_again_after_a_kill_at_that_instant_is_excepted(by):
    told = Told().sends("s0.1:1").is_shown("s0.1:1", by=by).hit("kill", "r0").later(3)
    account = told.is_shown("s0.1:1", pid=101, queued=True).hears("s0.1:1").settled()
    assert account.faults == []
    assert account.again == 1


def test_the_successor_of_a_dead_agent_may_be_shown_what_could_not_be_acknowledged():
    def kinds(*blows: tuple[str, str], queued: bool = True) -> list[str]:
        told = Told().sends("s0.1:1").hears("s0.1:1").is_shown("s0.1:1")
        for what, whom in blows:
            told.hit(what, whom, pid=9, after_s=1.0)
        return [kind for kind, *_ in faults(told.is_shown("s0.1:1", pid=2 * PID, queued=queued))]

    assert kinds(("kill", "broker"), ("die", "r0")) == []
    assert kinds(("cut", "r0"), ("die", "r0")) == []
    assert kinds(("kill", "broker"), ("die", "r0"), queued=False) == ["unmarked"]
    assert kinds(("kill", "broker"), ("die", "r1")) == ["duplicated"]
    assert kinds(("cut", "r1"), ("die", "r0")) == ["duplicated"]


def test_a_successor_may_be_shown_what_a_killed_broker_had_not_told_the_sender():
    def kinds(*, heard_before: bool, broker: str = "broker", queued: bool = True) -> list[str]:
        told = Told().sends("s0.1:1").is_shown("s0.1:1").hit("die", "r0", pid=9)
        if heard_before:
            told.hears("s0.1:1")
        told.hit("kill", broker, pid=8, after_s=1.0)
        if not heard_before:
            told.hears("s0.1:1", "queued")
        return [kind for kind, *_ in faults(told.is_shown("s0.1:1", pid=2 * PID, queued=queued))]

    assert kinds(heard_before=False) == []
    assert kinds(heard_before=False, queued=False) == ["unmarked"]
    assert kinds(heard_before=True) == ["duplicated"]
    assert kinds(heard_before=False, broker="s1") == ["duplicated"]


def test_a_kill_that_is_noted_before_its_last_line_was_read_counts():
    told = Told().sends("s0.1:1").hit("kill", "r0").is_shown("s0.1:1").is_shown("s0.1:1", pid=101, queued=True)
    assert faults(told) == []


def test_again_after_a_later_kill_is_duplicated():
    told = Told().sends("s0.1:1").is_shown("s0.1:1").hit("kill", "r0", after_s=INSTANT_S + 0.01)
    assert faults(told.is_shown("s0.1:1", pid=101, queued=True)) == [("duplicated", "s0.1:1", "r0")]


def test_a_kill_of_another_excepts_nothing():
    told = Told().sends("s0.1:1").is_shown("s0.1:1").hit("kill", "broker", 50).hit("stop", "r0")
    assert faults(told.is_shown("s0.1:1", pid=101, queued=True)) == [("duplicated", "s0.1:1", "r0")]


def test_again_without_the_mark_is_unmarked():
    told = Told().sends("s0.1:1").is_shown("s0.1:1").hit("kill", "r0").is_shown("s0.1:1", pid=101)
    assert faults(told) == [("unmarked", "s0.1:1", "r0")]


def test_the_exception_holds_once():
    told = Told().sends("s0.1:1").is_shown("s0.1:1").hit("kill", "r0").is_shown("s0.1:1", pid=101, queued=True)
    assert told.settled().again == 1
    other = Told().sends("s0.1:1").sends("s0.1:2").is_shown("s0.1:1").is_shown("s0.1:2", pid=101).hit("kill", "r0")
    assert faults(other.is_shown("s0.1:2", pid=102, queued=True)) == [("duplicated", "s0.1:2", "r0")]


# --- order ----------------------------------------------------------------------------------------------------------


def test_shown_after_a_later_one_is_reordered():
    told = Told().sends("s0.1:1").sends("s0.1:2").sends("s0.1:3")
    assert faults(told.is_shown("s0.1:2").is_shown("s0.1:3").is_shown("s0.1:1")) == [("reordered", "s0.1:1", "r0")]


def test_order_holds_between_messages_to_one_and_to_all():
    told = Told().sends("s0.1:1", EVERYONE).sends("s0.1:2", "r1")
    told.is_shown("s0.1:1", "r0").is_shown("s0.1:2", "r1").is_shown("s0.1:1", "r1").is_shown("s0.1:1", "r2")
    assert faults(told) == [("reordered", "s0.1:1", "r1")]


def test_no_order_between_runs_or_receivers():
    told = Told().sends("s0.1:1").sends("s0.1:2", "r1").sends("s0.2:1").sends("s1.1:1", "r1").sends("s0.2:9")
    for label, receiver in (("s0.2:1", "r0"), ("s0.1:2", "r1"), ("s0.1:1", "r0"), ("s1.1:1", "r1"), ("s0.2:9", "r0")):
        told.is_shown(label, receiver)
    assert faults(told) == []


def test_what_is_shown_again_is_no_matter_of_order():
    told = Told().sends("s0.1:1").sends("s0.1:2").is_shown("s0.1:1").is_shown("s0.1:2").hit("kill", "r0")
    assert faults(told.is_shown("s0.1:1", pid=101, queued=True).is_shown("s0.1:2", pid=101, queued=True)) == []


# --- inventions -----------------------------------------------------------------------------------------------------


def test_shown_and_never_sent_is_invented():
    assert faults(Told().is_shown("s0.1:1")) == [("invented", "s0.1:1", "r0")]


def test_another_id_is_an_invention():
    told = Told().sends("s0.1:1").is_shown("s0.1:1", msg_id="another")
    assert faults(told) == [("invented", "s0.1:1", "r0")]


def test_an_id_that_only_the_command_knew_is_none():
    told = Told()
    told.history.sent.append(Sent("cmd.1:1", "", "r0", 100, told.now_s))
    assert faults(told.is_shown("cmd.1:1", msg_id="whatever")) == []


def test_another_text_is_an_invention():
    told = Told().sends("s0.1:1").is_shown("s0.1:1", fault="it is not the text that was sent")
    assert faults(told) == [("invented", "s0.1:1", "r0")]


# --- without a broker -----------------------------------------------------------------------------------------------


def test_who_finds_no_broker_where_one_died_is_stranded():
    assert faults(Told().hit("kill", "broker").later(5).hit("gave up", "s0")) == [("stranded", "", "s0")]
    assert faults(Told().hit("stop", "s1").later(5).hit("gave up", "s0")) == [("stranded", "", "s0")]
    assert faults(Told().hit("stop", "broker").later(60).hit("gave up", "command")) == [("stranded", "", "command")]


@pytest.mark.parametrize(("what", "whom"), [("stop", "broker"), ("stop", "s0"), ("cut", "s0"), ("wire", "s0")])
def test_who_finds_a_broker_that_stands_still_is_not(what, whom):
    assert faults(Told().hit(what, whom).later(5).hit("gave up", "s0")) == []


# --- messages to all ------------------------------------------------------------------------------------------------


def to_all(sender: str, *receivers: str) -> Told:
    told = Told().sends(f"{sender}.1:1", EVERYONE)
    for receiver in receivers:
        told.is_shown(f"{sender}.1:1", receiver)
    return told


def test_a_broadcast_is_owed_to_every_receiver():
    account = to_all("s0", *RECEIVERS).hears("s0.1:1", "tally", delivered=2, queued=1).settled()
    assert account.faults == []
    assert (account.owed, account.tallies, account.miscounted, account.broadcasts) == (3, 1, 0, 1)
    assert faults(to_all("s0", "r0", "r2").hears("s0.1:1", "tally", delivered=3)) == [("lost", "s0.1:1", "r1")]


def test_a_broadcast_is_not_for_the_session_that_says_it():
    account = to_all("s1", "r1", "r2").hears("s1.1:1", "tally", delivered=2).settled()
    assert (account.faults, account.owed, account.miscounted) == ([], 2, 0)
    assert faults(to_all("s1", *RECEIVERS).hears("s1.1:1", "tally", delivered=2)) == [("invented", "s1.1:1", "r0")]


def test_a_full_mailbox_is_owed_nothing():
    account = to_all("s0", "r0", "r2").hears("s0.1:1", "tally", delivered=2, full=("r1",)).settled()
    assert (account.faults, account.owed, account.miscounted) == ([], 2, 0)


def test_a_tally_that_does_not_add_up_is_counted():
    assert to_all("s0", *RECEIVERS).hears("s0.1:1", "tally", delivered=2).settled().miscounted == 1


def test_a_broadcast_that_nobody_was_told_about_may_reach_some():
    account = to_all("s0", "r1").settled()
    assert (account.faults, account.unsure, account.unsure_shown, account.partial) == ([], 1, 1, ["s0.1:1"])
    assert to_all("s0", *RECEIVERS).settled().partial == []


# --- figures --------------------------------------------------------------------------------------------------------


def test_told_early():
    told = Told().sends("s0.1:1").hears("s0.1:1").later(EARLY_S).is_shown("s0.1:1")
    account = told.settled()
    assert account.early == 1
    assert account.early_max_s == pytest.approx(EARLY_S + 0.01)


def test_blows_are_counted_by_kind():
    told = Told().hit("kill", "r0").hit("kill", "r2").hit("kill", "s1").hit("kill", "broker").hit("stop", "broker")
    account = told.hit("kill", "inbox of r1").hit("kill", "command").settled()
    assert account.blows == {
        "kill listener": 2,
        "kill sender": 1,
        "kill broker": 1,
        "stop broker": 1,
        "kill inbox": 1,
        "kill command": 1,
    }


def test_recovery_is_measured_for_senders_that_were_left_alone():
    told = Told().sends("s4.1:1").later(60)
    for sender in range(4):
        told.sends(f"s{sender}.1:1", "r1")
    told.hit("kill", "broker").hit("stop", "s2").later(1)
    for sender in range(5):
        told.hears(f"s{sender}.1:1", "queued")
    # s1 speaks as a session, s2 was stopped, s4 had not said anything for a minute.
    assert told.settled().recovery_s == [pytest.approx(1.02), pytest.approx(1.05)]


@pytest.mark.parametrize("what", ["kill", "stop", "cut", "wire", "end"])
def test_recovery_is_not_measured_where_something_else_was_in_the_way(what):
    told = Told().sends("s0.1:1").hit("kill", "broker").hit(what, "s0").later(1).hears("s0.1:1")
    assert told.settled().recovery_s == []
    told = Told().hit("stop", "broker").later(10).sends("s0.1:1").hit("kill", "broker").later(1).hears("s0.1:1")
    assert told.settled().recovery_s == []


def test_the_table_and_the_json_name_every_fault():
    told = Told().sends("s0.1:1").hears("s0.1:1").is_shown("s0.1:2")
    account = told.settled()
    lines = dict(line.split(maxsplit=1) for line in table(account).splitlines())
    assert lines["LOST"] == lines["INVENTED"] == "1"
    assert set(FAULTS) == {name.lower() for name in lines if name.isupper()}
    made = json.loads(json.dumps(account.as_json()))
    assert made["lost"] == 1
    assert {fault["kind"] for fault in made["faults"]} == {"lost", "invented"}


def test_the_history_of_a_message_tells_what_was_done_around_it():
    told = Told().sends("s0.1:1").is_shown("s0.1:1").hit("kill", "r0").hit("kill", "r1", 7).hears("s0.1:1", "queued")
    text = tell(told.later(60).hit("kill", "broker", 8).history, "s0.1:1")
    assert [line.split("  ")[-1] for line in text.splitlines()] == [
        "s0 sends msg=ids0.1:1 to r0, 100 bytes",
        "r0 is shown it by the listener 100",
        "(kill r0 100)",
        "its sender hears: queued",
    ]


# --- reading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 40, 100, 70_000])
def test_a_text_says_which_message_it_is(size):
    text = make_text("s0.1:17", "r3", size)
    assert len(text) == size or size < 30
    assert read_text(text, cut=False) == ("s0.1:17", "r3", "")
    assert read_text(text[:400], cut=True) == ("s0.1:17", "r3", "")


def test_a_text_that_was_changed_is_found():
    text = make_text("s0.1:17", "r3", 300)
    assert read_text(text[:-1], cut=False)[2]
    assert read_text(text.replace("7", "8", 3)[:200], cut=True)[2] or read_text(text[:200], cut=False)[2]
    assert read_text(f"{text[:100]}x{text[101:]}", cut=True)[2]
    assert read_text("hello", cut=False)[2]


def header(label: str, fields: str = "") -> str:
    return f'[inter-session msg=abcdefgh1234 from="s0"{fields}] {make_text(label, "r3", 60)}'


def in_json(label: str) -> str:
    return json.dumps({"msg_id": "abcdefgh1234", "from_name": "s0", "text": make_text(label, "r3", 60)})


PIDS = {"listener": 5, "inbox": 6}


def test_lines_of_a_listener():
    (shown,), rest = read_line("r3", header("s0.1:1"), 1.0, PIDS)
    assert (shown, rest) == (Shown("r3", "s0.1:1", "abcdefgh1234", 1.0, 5, "listener", False, ""), [])
    (shown,), _ = read_line("r3", header("s0.1:1", " to=all queued=4s"), 1.0, PIDS)
    assert shown.queued
    cut = header("s0.1:1").replace("]", " truncated=70000]").removesuffix("1:1 ")
    (shown,), _ = read_line("r3", cut, 1.0, PIDS)
    assert not shown.fault
    assert read_line("r3", "[inter-session msg=abcdefgh1234 cont] full text 2.0 MB at /x", 1.0, PIDS) == ([], [])
    digest = "[inter-session] 30 more messages waiting from 2 sessions; read them with: zmqbus inbox"
    assert read_line("r3", digest, 1.0, PIDS) == ([], [digest])


def test_lines_of_an_inbox():
    (shown,), rest = read_line("r3", in_json("s0.1:1"), 1.0, PIDS)
    assert (shown, rest) == (Shown("r3", "s0.1:1", "abcdefgh1234", 1.0, 6, "inbox", True, ""), [])


def test_half_a_line_is_not_shown_and_does_not_hide_the_next():
    torn = in_json("s0.1:1")[:50]
    for whole in (in_json("s0.1:2"), header("s0.1:2")):
        (shown,), rest = read_line("r3", torn + whole, 1.0, PIDS)
        assert (shown.label, rest) == ("s0.1:2", [torn])


def test_the_notes_of_a_sender():
    sent, answers, blows = read_notes(
        "s0",
        "o 1.0 1001\ns 1.5 s0.1001:1 aaaa r3 100\ns 2.0 s0.1001:2 bbbb * 200\ns 2.1 s0.1001:3 cccc r1 50\nd 3.0 aaaa\n"
        "b 4.0 bbbb 3 2 r1,r2\nq 4.5 cccc busy\ns 5.0 s0.1001:4 dddd r3 66\ne 6.0 dddd rate_limited too many\n"
        "x 7.0 broker_unavailable it does not answer\ns 8.0 s0.1001:5 eeee r3 1",
    )
    assert [message.label for message in sent] == [f"s0.1001:{number}" for number in (1, 2, 3, 4)]
    assert (sent[1].target, sent[1].run, sent[1].number, sent[1].sender) == ("*", "s0.1001", 2, "s0")
    assert answers == [
        Answer("s0.1001:1", "delivered", "", 3.0),
        Answer("s0.1001:2", "tally", "", 4.0, 3, 2, ("r1", "r2")),
        Answer("s0.1001:3", "queued", "busy", 4.5),
        Answer("s0.1001:4", "refused", "rate_limited too many", 6.0),
    ]
    assert [(blow.what, blow.whom) for blow in blows] == [("connected", "s0"), ("gave up", "s0")]

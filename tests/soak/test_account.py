"""The account of a soak run: it finds each kind of fault in a history that has it, and none in one that has not.

Histories are written as stories of steps, separated by semicolons, each a hundredth of a second after the one before:

    send LABEL [TARGET]          a message leaves; LABEL is its number, or `<sender>.<run>:<number>`; TARGET r0, or *
    hear LABEL KIND [DETAIL …]   its sender gets a receipt, a tally or a refusal
    show LABEL [key=value …]     a receiver shows it; keys: at (r0), pid (100), by (listener), queued, fault, id
    hit WHAT WHOM [PID]          something is done to a process
    wait SECONDS
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.soak.account import EARLY_S, FAULTS, INSTANT_S, Account, settle, table, tell
from tests.soak.history import Answer, Blow, History, Sent, Shown, make_text, read_line, read_notes, read_text

STEP_S = 0.01
RECEIVERS = ("r0", "r1", "r2")
AGAIN = "show 1 pid=101 queued=1"


def history(story: str) -> History:
    """The history that a story tells; the sender s1 speaks as the session r0."""
    found = History(RECEIVERS, [], [], [], [], {"s1": "r0"})
    now_s = 1000.0
    for step in story.split(";"):
        kind, first, *more = step.split()
        now_s += float(first) if kind == "wait" else STEP_S
        label = f"s0.1:{first}" if first.isdigit() else first
        match kind:
            case "send":
                found.sent.append(Sent(label, f"id{label}", more[0] if more else "r0", 100, now_s))
            case "hear":
                counts: dict[str, Any] = {}
                if more[0] == "tally":
                    counts = {"delivered": int(more[1]), "queued": int(more[2]), "full": tuple(more[3:])}
                found.answers.append(Answer(label, more[0], "" if counts else " ".join(more[1:]), now_s, **counts))
            case "show":
                keys = dict(word.split("=", 1) for word in more)
                found.shown.append(
                    Shown(
                        *(keys.get("at", "r0"), label, keys.get("id", f"id{label}"), now_s, int(keys.get("pid", 100))),
                        *(keys.get("by", "listener"), "queued" in keys, keys.get("fault", "")),
                    )
                )
            case "hit":
                whom, pid = (" ".join(more[:-1]), int(more[-1])) if more[-1].isdigit() else (" ".join(more), 100)
                found.blows.append(Blow(now_s, first.replace("-", " "), whom, pid))
    return found


def account_of(story: str) -> Account:
    return settle(history(story))


def faults(story: str) -> list[str]:
    """Each fault as `kind label receiver`, sorted."""
    return sorted(" ".join(fault[:3]).replace("s0.1:", "") for fault in account_of(story).faults)


@pytest.mark.parametrize(
    ("story", "expected"),
    [
        # Lost: reported, and never shown to its receiver.
        ("send 1; show 1; hear 1 delivered", []),
        ("send 1; show 1; hear 1 queued", []),
        ("send 1; hear 1 delivered", ["lost 1 r0"]),
        ("send 1; hear 1 queued", ["lost 1 r0"]),
        ("send 1; show 1 at=r1; hear 1 delivered", ["invented 1 r1", "lost 1 r0"]),
        # Refused: not owed, and neither shown nor without a known reason.
        ("send 1; hear 1 refused rate_limited full", []),
        ("send 1; show 1; hear 1 refused rate_limited full", ["denied 1 r0"]),
        ("send 1; hear 1 refused unknown_peer no session", ["refused 1 r0"]),
        # Invented: never sent, under another id, or with another text.
        ("show 1", ["invented 1 r0"]),
        ("send 1; show 1 id=another", ["invented 1 r0"]),
        ("send 1; show 1 fault=changed", ["invented 1 r0"]),
        # Reordered: shown after a later message of the same run.
        ("send 1; send 2; send 3; show 2; show 3; show 1", ["reordered 1 r0"]),
        ("send 1 *; send 2 r1; show 1; show 2 at=r1; show 1 at=r1; show 1 at=r2", ["reordered 1 r1"]),
        ("send 1; send s0.2:1; send s0.2:2; show s0.2:1; show 1; show s0.2:2", []),
        ("send 1; send 2 r1; show 2 at=r1; show 1", []),
        (f"send 1; send 2; show 1; show 2; hit kill r0; {AGAIN}; show 2 pid=101 queued=1", []),
    ],
)
def test_faults_of_single_messages(story, expected):
    assert faults(story) == expected


@pytest.mark.parametrize(
    ("story", "expected"),
    [
        ("send 1; show 1; hear 1 delivered; show 1 queued=1", "duplicated"),
        # A process killed within an instant of its line may show it again, marked, and once.
        (f"send 1; show 1; hit kill r0; wait 3; {AGAIN}; hear 1 delivered", ""),
        (f"send 1; show 1 by=inbox; hit kill r0; wait 3; {AGAIN}; hear 1 delivered", ""),
        (f"send 1; hit kill r0; show 1; {AGAIN}", ""),
        (f"send 1; show 1; wait {INSTANT_S}; hit kill r0; {AGAIN}", "duplicated"),
        (f"send 1; show 1; hit kill broker 50; hit stop r0; {AGAIN}", "duplicated"),
        ("send 1; show 1; hit kill r0; show 1 pid=101", "unmarked"),
        (f"send 1; show 1; hit kill r0 99; {AGAIN}", "duplicated"),
        # The successor of a dead agent may be shown what that one could not acknowledge.
        *(
            (f"send 1; hear 1 delivered; show 1; wait 1; {blows}; {again}", expected)
            for blows, again, expected in (
                ("hit kill broker 9; wait 1; hit die r0 9", AGAIN, ""),
                ("hit cut r0 9; wait 1; hit die r0 9", AGAIN, ""),
                ("hit kill broker 9; wait 1; hit die r0 9", "show 1 pid=101", "unmarked"),
                ("hit kill broker 9; wait 1; hit die r1 9", AGAIN, "duplicated"),
                ("hit cut r1 9; wait 1; hit die r0 9", AGAIN, "duplicated"),
            )
        ),
        # And what the broker was killed with before it told the sender.
        (f"send 1; show 1; hit die r0 9; wait 1; hit kill broker 8; hear 1 queued; {AGAIN}", ""),
        ("send 1; show 1; hit die r0 9; wait 1; hit kill broker 8; hear 1 queued; show 1 pid=101", "unmarked"),
        # The listener of a dead agent shows what it has for a moment longer.
        (f"send 1; hit die r0 9; wait 2; show 1; hit kill broker 8; hear 1 queued; {AGAIN}", ""),
        (f"send 1; hit die r0 9; wait 4; show 1; hit kill broker 8; hear 1 queued; {AGAIN}", "duplicated"),
        (f"send 1; show 1; hit die r0 9; hear 1 delivered; wait 1; hit kill broker 8; {AGAIN}", "duplicated"),
        (f"send 1; show 1; hit die r0 9; wait 1; hit kill s1 8; hear 1 queued; {AGAIN}", "duplicated"),
    ],
)
def test_message_shown_twice(story, expected):
    account = account_of(story)
    assert [fault.kind for fault in account.faults] == ([expected] if expected else [])
    assert account.again == (expected != "duplicated")


@pytest.mark.parametrize(
    ("story", "stranded"),
    [
        ("hit kill broker; wait 5; hit gave-up s0", True),
        ("hit stop s1; wait 5; hit gave-up s0", True),
        ("hit stop broker; wait 60; hit gave-up s0", True),
        ("hit stop broker; wait 5; hit gave-up s0", False),
        *((f"hit {what} s0; wait 5; hit gave-up s0", False) for what in ("stop", "cut", "wire")),
    ],
)
def test_sender_that_finds_no_broker_is_stranded_unless_one_was_stopped(story, stranded):
    assert faults(story) == ["stranded  s0"] * stranded


class TestBroadcasts:
    @pytest.mark.parametrize(
        ("story", "expected"),
        [
            ("send 1 *; show 1; show 1 at=r1; show 1 at=r2; hear 1 tally 2 1", []),
            ("send 1 *; show 1; show 1 at=r2; hear 1 tally 3 0", ["lost 1 r1"]),
            ("send 1 *; show 1; show 1 at=r2; hear 1 tally 2 0 r1", []),  # r1 was named as full
            ("send s1.1:1 *; show s1.1:1 at=r1; show s1.1:1 at=r2; hear s1.1:1 tally 2 0", []),
            ("send s1.1:1 *; show s1.1:1", ["invented s1.1:1 r0"]),  # the session's own
        ],
    )
    def test_broadcast_is_owed_to_every_other_session(self, story, expected):
        assert faults(story) == expected

    def test_counts(self):
        account = account_of("send 1 *; show 1; show 1 at=r1; show 1 at=r2; hear 1 tally 2 0")
        assert (account.owed, account.tallies, account.broadcasts, account.miscounted) == (3, 1, 1, 1)

    def test_unreported_broadcast_may_reach_some(self):
        account = account_of("send 1 *; show 1 at=r1")
        assert (account.faults, account.unsure, account.unsure_shown, account.partial) == ([], 1, 1, ["s0.1:1"])


class TestFigures:
    def test_messages_without_a_receipt_are_counted_as_unsure(self):
        account = account_of("send 1; send 2; show 2")
        assert (account.faults, account.unsure, account.unsure_shown, account.owed) == ([], 2, 1, 0)

    def test_early_receipts_are_counted(self):
        account = account_of(f"send 1; hear 1 delivered; wait {EARLY_S}; show 1")
        assert account.early == 1
        assert account.early_max_s == pytest.approx(EARLY_S + STEP_S)

    def test_blows_are_counted_by_kind(self):
        account = account_of("hit kill r0; hit kill r2; hit kill s1; hit kill broker; hit kill inbox of r1")
        assert account.blows == {"kill listener": 2, "kill sender": 1, "kill broker": 1, "kill inbox": 1}

    def test_recovery_is_measured_for_undisturbed_senders(self):
        sends = "; ".join(f"send s{number}.1:1 r1" for number in range(4))
        hears = "; ".join(f"hear s{number}.1:1 queued" for number in range(5))
        account = account_of(f"send s4.1:1; wait 60; {sends}; hit kill broker; hit stop s2; wait 1; {hears}")
        # s1 speaks as a session, s2 was stopped, s4 had sent nothing for a minute.
        assert account.recovery_s == [pytest.approx(1.02), pytest.approx(1.05)]

    def test_table_and_json_name_every_fault(self):
        account = account_of("send 1; hear 1 delivered; show 2")
        lines = dict(line.split(maxsplit=1) for line in table(account).splitlines())
        assert lines["LOST"] == lines["INVENTED"] == "1"
        assert set(FAULTS) == {name.lower() for name in lines if name.isupper()}
        assert {fault["kind"] for fault in json.loads(json.dumps(account.as_json()))["faults"]} == {"lost", "invented"}

    def test_story_of_a_message_includes_what_happened_around_it(self):
        story = "send 1; show 1; hit kill r0; hit kill r1 7; hear 1 queued; wait 60; hit kill broker 8"
        assert [line.split("  ")[-1] for line in tell(history(story), "s0.1:1").splitlines()] == [
            "s0 sends msg=ids0.1:1 to r0, 100 bytes",
            "r0 is shown it by the listener 100",
            "(kill r0 100)",
            "its sender hears: queued",
        ]


class TestReading:
    @pytest.mark.parametrize("size", [1, 40, 100, 70_000])
    def test_text_names_its_message(self, size):
        text = make_text("s0.1:17", "r3", size)
        assert len(text) == size or size < 30
        assert read_text(text, cut=False) == ("s0.1:17", "r3", "")
        assert read_text(text[:400], cut=True) == ("s0.1:17", "r3", "")

    def test_changed_text_is_found(self):
        text = make_text("s0.1:17", "r3", 300)
        assert read_text(text[:-1], cut=False)[2]
        assert read_text(f"{text[:100]}x{text[101:]}", cut=True)[2]
        assert read_text("hello", cut=False)[2]

    def test_lines_of_listener_and_inbox(self):
        (shown,), rest = read_line("r3", LINE, 1.0, PIDS)
        assert (shown, rest) == (Shown("r3", "s0.1:1", "abcdefgh1234", 1.0, 5, "listener", False, ""), [])
        (shown,), _ = read_line("r3", LINE.replace("]", " to=all queued=4s]", 1), 1.0, PIDS)
        assert shown.queued
        (shown,), _ = read_line("r3", LINE.replace("]", " truncated=70000]").removesuffix("1:1 "), 1.0, PIDS)
        assert not shown.fault
        (shown,), rest = read_line("r3", OBJECT, 1.0, PIDS)
        assert (shown, rest) == (Shown("r3", "s0.1:1", "abcdefgh1234", 1.0, 6, "inbox", True, ""), [])
        assert read_line("r3", "[inter-session msg=abcdefgh1234 cont] full text 2.0 MB at /x", 1.0, PIDS) == ([], [])
        digest = "[inter-session] 30 more messages waiting from 2 sessions; read them with: zmqbus inbox"
        assert read_line("r3", digest, 1.0, PIDS) == ([], [digest])

    @pytest.mark.parametrize("whole", ["LINE", "OBJECT"])
    def test_torn_line_is_not_shown_and_does_not_hide_the_next(self, whole):
        torn = OBJECT[:50]
        (shown,), rest = read_line("r3", torn + globals()[whole], 1.0, PIDS)
        assert (shown.label, rest) == ("s0.1:1", [torn])

    def test_notes_of_a_sender(self):
        sent, answers, blows = read_notes(
            "s0",
            "o 1.0 1001\ns 1.5 s0.1001:1 aaaa r3 100\ns 2.0 s0.1001:2 bbbb * 200\ns 2.1 s0.1001:3 cccc r1 50\n"
            "d 3.0 aaaa\nb 4.0 bbbb 3 2 r1,r2\nq 4.5 cccc busy\ns 5.0 s0.1001:4 dddd r3 66\n"
            "e 6.0 dddd rate_limited too many\nx 7.0 broker_unavailable it does not answer\ns 8.0 s0.1001:5 eeee r3 1",
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


PIDS = {"listener": 5, "inbox": 6}
LINE = f'[inter-session msg=abcdefgh1234 from="s0"] {make_text("s0.1:1", "r3", 60)}'
OBJECT = json.dumps({"msg_id": "abcdefgh1234", "from_name": "s0", "text": make_text("s0.1:1", "r3", 60)})

"""Sends hostile envelopes to the real core of a broker, and checks that only their sender is affected.

    python -m tests.fuzz.play --envelopes 600000 --seed 7

Messages are decoded and handled as in the broker's shell, and the answers of the core are encoded as on the wire. In
between, two sessions exchange messages, which have to arrive once and in order.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import tracemalloc

from tests.fuzz.envelopes import Fuzzer
from zmqbus.testing import SimNet
from zmqbus.wire.verbs import Role

#: How many hostile messages are sent between two checks.
ROUND = 50
#: The most memory, bytes, that the broker may keep afterwards: dedup window, sessions, refusals, mailboxes.
MAX_BYTES = 200 * 1024 * 1024


class Player:
    """A bus with two honest sessions, and a hostile client in each role."""

    def __init__(self, seed: int) -> None:
        self.net = SimNet()
        self.fuzzer = Fuzzer(seed)
        self._said = 0
        self._received = 0
        self.honest = [
            self.net.session(name, role=Role.PROGRAM, project="/honest") for name in ("honest-a", "honest-b")
        ]
        self._entered = 0
        self._enter()
        self.net.settle()

    def _enter(self) -> None:
        """Connects new hostile clients, since their messages may have ended the ones before."""
        self._entered += 1
        rogue = self.net.session(f"rogue-{self._entered}", role=Role.PROGRAM)
        guest = self.net.guest(f"guest-{self._entered}")
        self.rogues = [rogue, guest, self.net.observer(), self.net.helper(rogue)]

    def play(self, envelopes: int) -> None:
        """Sends so many envelopes; raises `AssertionError` if an honest session is affected."""
        for count, frames in enumerate(self.fuzzer.messages(envelopes), start=1):
            rogue = self.fuzzer.chance.choice(self.rogues)
            rogue.raw(frames)
            if count % ROUND == 0:
                self.prove()
                self._enter()

    def prove(self) -> None:
        """Checks that the honest sessions can exchange messages."""
        for sender, receiver in (self.honest, self.honest[::-1]):
            self._said += 1
            body = b"honest %d" % self._said
            sender.send(receiver.persona.name or "", body)
            self.net.settle()
            mine = [one for one in receiver.bodies if one.startswith(b"honest ")]
            assert mine == [body], (mine, body)
            receiver.take_all()
            self.net.settle()
            assert sender.core.unconfirmed == 0
            assert not sender.closed and not receiver.closed
        self.net.advance(0.1)


def run(envelopes: int, seed: int) -> Player:
    """Plays so many envelopes; raises `AssertionError` if a check fails."""
    tracemalloc.start()
    try:
        player = Player(seed)
        player.play(envelopes)
        player.prove()
        kept_bytes = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert kept_bytes < MAX_BYTES, f"{kept_bytes >> 20} MiB are kept"
    return player


def main() -> int:
    parser = argparse.ArgumentParser(description="Plays hostile envelopes to a broker's core.")
    parser.add_argument("--envelopes", type=int, default=600_000)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    options = parser.parse_args()
    print(f"seed {options.seed}, {options.envelopes:,} envelopes", flush=True)
    began_s = time.monotonic()
    player = run(options.envelopes, options.seed)
    print(f"{player.fuzzer.envelopes:,} envelopes, {player.net.broker!r}, {time.monotonic() - began_s:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())

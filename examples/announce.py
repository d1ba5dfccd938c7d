#!/usr/bin/env python3
"""A script that is no session announces something to every session.

    python examples/announce.py "freeze at 17:00"
    python examples/announce.py --topic deploys "v2.3 is out"

It speaks under a name, needs no listener, is not listed, and is gone when it has spoken. Those who are away get the
message when they come back; the receipt says how many took it now.
"""

from __future__ import annotations

import argparse
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))  # for a checkout; harmless elsewhere

from zmqbus import settings
from zmqbus.client import bodies
from zmqbus.client.command import guest
from zmqbus.errors import ZmqbusError


def main() -> int:
    """Announces, and says how many heard it."""
    parser = argparse.ArgumentParser(description="Announce something to every session.")
    parser.add_argument("text")
    parser.add_argument("--topic", help="only to those who joined this topic")
    parser.add_argument("--as", dest="name", default="announcer", help="the name to speak under")
    options = parser.parse_args()
    try:
        with guest(settings.load(), options.name) as bus:
            receipt = bus.broadcast(bodies.from_text(options.text, to_many=True), topic=options.topic)
    except ZmqbusError as error:
        print(f"error: {error.code}: {error}", file=sys.stderr)
        return 1
    print(f"announced to {receipt.delivered} sessions; {receipt.queued} will hear it later (msg={receipt.msg_id})")
    return 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""A script that is no session announces something to every session.

    python examples/announce.py "freeze at 17:00"
    python examples/announce.py --topic deploys "v2.3 is out"
    python examples/announce.py --project "I rebase main in five minutes"

It speaks as a guest: it needs no listener, is not listed, and is gone when it has spoken. Those who are away get the
message when they come back; the receipt says how many took it now.
"""

from __future__ import annotations

import argparse
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))  # for a checkout; harmless elsewhere

import zmqbus


def main() -> int:
    """Announces, and says how many heard it."""
    parser = argparse.ArgumentParser(description="Announce something to every session.")
    parser.add_argument("text", nargs="?", default="status: just trying announce.py; nothing to do")
    audience = parser.add_mutually_exclusive_group()
    audience.add_argument("--topic", help="only to those who joined this topic")
    audience.add_argument("--project", action="store_true", help="only to the sessions of this project")
    options = parser.parse_args()
    try:
        with zmqbus.connect() as bus:
            receipt = bus.broadcast(options.text, topic=options.topic, project=options.project)
    except zmqbus.ZmqbusError as error:
        print(f"error: {error.code}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(f"announced to {receipt.delivered} sessions; {receipt.queued} will hear it later (msg={receipt.msg_id})")
    if receipt.full:
        print(f"without: {', '.join(receipt.full)}, whose mailboxes are full", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Announces something to every session, from a script without a session of its own.

    python examples/announce.py "freeze at 17:00"
    python examples/announce.py --topic deploys "v2.3 is out"
    python examples/announce.py --project "I rebase main in five minutes"

The script sends as a guest: it needs no listener, is not listed, and leaves after sending. Sessions that are away get
the message when they come back; the receipt says how many got it now.
"""

from __future__ import annotations

import argparse
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))  # for a checkout; harmless elsewhere

import zmqbus


def main() -> int:
    """Announces the text and prints how many sessions got it; returns the exit status."""
    parser = argparse.ArgumentParser(description="Announce something to every session.")
    parser.add_argument("text", nargs="?", default="status: this is a test of announce.py; ignore it")
    audience = parser.add_mutually_exclusive_group()
    audience.add_argument("--topic", help="only to subscribers of this topic")
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
    print(f"announced to {receipt.delivered} sessions; {receipt.queued} will get it later (msg={receipt.msg_id})")
    if receipt.full:
        print(f"not sent to {', '.join(receipt.full)}: their mailboxes are full", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())

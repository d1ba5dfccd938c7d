"""The command line of the soak run: `make soak`, or `python -m tests.soak.run --help`.

Prints the account, and exits with status 1 if a promise was broken. Ctrl-C ends the run early, with its account.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.conftest import _Ports
from tests.soak import labour
from tests.soak.account import Account, settle, table, tell
from tests.soak.chaos import Chaos
from tests.soak.history import History
from tests.soak.schedule import Numbers, Setup
from tests.soak.wire import PORTS

#: Messages a second that two cores carry under all these faults: 50,000 in ten minutes.
RATE = 90
#: How many faults are printed with their stories; the JSON has all.
TOLD = 12


def run(setup: Setup) -> tuple[Chaos, History, Account]:
    """Carries out a whole run, which leaves nothing but its directory."""
    with Chaos(setup) as chaos:
        chaos.run()
    history = chaos.history()  # after the end of all processes, whose last lines count
    chaos.failures += [f"{fault.kind} {fault.label}: {fault.why}" for fault in chaos.labour().faults]
    return chaos, history, settle(history)


def verdict(setup: Setup, chaos: Chaos, history: History, account: Account, told: int = TOLD) -> str:
    """Formats the account, with the story of each fault."""
    largest, median = chaos.memory_mib()
    lines = [
        f"{'seed':<12}{setup.seed}, {setup.duration_s:g} s, {setup.receivers} receivers, {setup.senders} senders",
        table(account),
        labour.table(chaos.labour()),
        f"{'broker':<12}{len(chaos.rss_bytes)} processes seen, at most {largest:.1f} MiB, median {median:.1f} MiB",
        *(f"{'FAILURE':<12}{failure}" for failure in chaos.failures),
    ]
    for fault in account.faults[:told]:
        lines += [f"{fault.kind} {fault.label or '?'} at {fault.receiver}: {fault.why}", tell(history, fault.label)]
    if len(account.faults) > told:
        lines.append(f"… and {len(account.faults) - told} more faults")
    if account.faults or chaos.failures:
        lines += ["printed, and no messages:", *(f"  {line}" for line in chaos.lines[-30:])]
    return "\n".join(lines)


def as_json(setup: Setup, chaos: Chaos, history: History, account: Account) -> dict[str, Any]:
    """Returns everything known about the run, for later analysis."""
    largest, median = chaos.memory_mib()
    each = [[round(sample / 2**20, 1) for sample in (one[0], one[-1])] for one in chaos.rss_bytes.values()]
    labels = [fault.label for fault in account.faults] + account.partial
    return {
        "seed": setup.seed,
        "duration_s": setup.duration_s,
        "numbers": setup.numbers._asdict(),
        "account": account.as_json(),
        "labour": chaos.labour()._asdict() | {"faults": [fault._asdict() for fault in chaos.labour().faults]},
        "failures": chaos.failures,
        # The first and the last sample of each process.
        "broker_mib": {"max": round(largest, 1), "median": round(median, 1), "each": each},
        "lines": chaos.lines,
        "histories": {label: tell(history, label).splitlines() for label in labels},
    }


def main(argv: list[str] | None = None) -> int:
    """Parses the arguments, and runs."""
    parser = argparse.ArgumentParser(prog="soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0, help="how long the schedule lasts (600)")
    parser.add_argument("--seed", type=int, default=None, help="of the schedule (drawn and printed)")
    parser.add_argument("--messages", type=int, default=None, help=f"to be sent ({RATE} a second)")
    parser.add_argument("--receivers", type=int, default=6)
    parser.add_argument("--senders", type=int, default=4)
    parser.add_argument("--workers", type=int, default=3, help="workers of the group (3; 0: no requests)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep data, notes and logs there after a failure")
    for field in Numbers._fields:
        parser.add_argument(f"--{field.replace('_', '-')}", type=int, metavar="N", help="how many in the whole run")
    options = parser.parse_args(argv)
    if options.receivers < 3 or options.senders < 1:
        parser.error("at least 3 receivers and 1 sender")
    numbers = Numbers().scaled(options.seconds)
    given = {field: getattr(options, field) for field in Numbers._fields if getattr(options, field) is not None}
    ports = _Ports()
    base = Path(tempfile.mkdtemp(prefix="zb-soak-"))
    setup = Setup(
        base=base,
        port=next(port for port in iter(ports.take, 0) if port < PORTS.start),
        seed=options.seed if options.seed is not None else random.SystemRandom().randrange(10**6),
        duration_s=options.seconds,
        messages=options.messages or int(options.seconds * RATE),
        numbers=numbers._replace(**given),
        receivers=options.receivers,
        senders=options.senders,
        workers=options.workers,
        tell=lambda text: print(text, flush=True),
    )
    print(f"seed {setup.seed}: {setup.numbers}", flush=True)
    started_s = time.monotonic()
    wrong = True
    try:
        chaos, history, account = run(setup)
        print(f"\n{verdict(setup, chaos, history, account)}\n{'took':<12}{time.monotonic() - started_s:.0f} s")
        if options.json:
            options.json.write_text(json.dumps(as_json(setup, chaos, history, account), indent=1))
        wrong = bool(account.faults or chaos.failures)
    finally:
        if wrong and options.keep:
            kept = options.keep / f"soak-{setup.seed}"
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(base, kept)
            print(f"kept in {kept}")
        shutil.rmtree(base, ignore_errors=True)
        ports.close()
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())

"""Checks the key files."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator

from zmqbus.doctor.report import Finding, command, fault, ok, warning
from zmqbus.errors import ZmqbusError
from zmqbus.security.keys import NEW_KEYS_PREFIX, broker_keys
from zmqbus.settings import Settings


def keys(settings: Settings, kill: str | None, *, is_served: bool) -> Iterator[Finding]:
    """Checks that the keys are complete and match. `kill`: command that ends the broker; None if it cannot from
    here."""
    path = settings.paths.keys
    for name in sorted(glob.glob(os.path.join(glob.escape(settings.data_dir), f"{NEW_KEYS_PREFIX}*"))):
        yield warning(
            "keys", f"{name} was left by a process that was killed while making keys", command("rm", "-r", name)
        )
    if not os.path.isdir(path):
        yield ok("keys", "none yet; they are made at the first use")
        return
    try:
        broker_keys(settings.data_dir)
    except ZmqbusError as error:
        says, remove = str(error).partition("; ")[0], command("rm", "-r", path)
        if is_served and kill is None:
            # The broker would go on with the removed keys.
            yield fault("keys", f"{says}; end the broker where it runs (another PID namespace), then run: {remove}")
        else:
            yield fault("keys", says, f"{kill}; {remove}" if is_served else remove)
    else:
        yield ok("keys", path)

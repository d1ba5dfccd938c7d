"""Finds the broker by its files, and tells why it cannot be reached.

A pid file and a held lock on the data directory are a sign to try to connect, no more. A client that gets no answer
launches a broker all the same (`zmqbus.client.launch`).

This module is apart from `launch` because every command imports it, and few launch a broker.
"""

from __future__ import annotations

import fcntl
import os

from zmqbus.errors import BrokerUnavailable
from zmqbus.settings import Settings
from zmqbus.system import network, pidfile


def broker_pid(settings: Settings) -> int | None:
    """Returns the pid of the broker of this data directory, None if there is none. To be shown only: it may belong to
    another PID namespace; for more, use `find_broker`."""
    served = find_broker(settings)
    return None if served is None else served.pid


def find_broker(settings: Settings) -> pidfile.Served | None:
    """Returns what the files of the broker that these settings lead to say of it, None if there is none.

    That is the broker on the settings' port; if nobody chose the port, the broker that the data directory names: only
    this user can write there, and whatever answers on that port must prove with its key that it is the broker.
    """
    served = pidfile.read(settings.paths, settings.port)
    if (served is None and settings.port_chosen) or not is_elected(settings):
        return None
    return served or next((other for _, other in pidfile.read_all(settings.paths) if other is not None), None)


def at_broker(settings: Settings) -> Settings:
    """Returns the settings with the port on which the broker is found, or is to be started."""
    served = find_broker(settings)
    return settings if served is None else settings._replace(port=served.port)


def check_reach(settings: Settings, served: pidfile.Served | None) -> None:
    """Raises `BrokerUnavailable` where the broker is in another network, whose loopback cannot be reached from here.

    `served`: the result of `find_broker`; if that is None, the pid file of the port counts. Compares the networks, and
    tries the port only where they differ: somebody may forward it."""
    served = served or pidfile.read(settings.paths, settings.port)
    here = network.here()
    if served is None or not served.network.differs(here) or network.try_port(served.port) is network.Port.OPEN:
        return
    if served.network.boot == here.boot:
        where = "in another network than this shell (one of them is in a sandbox or a container),"
    else:
        where = "on another machine, or in a virtual one,"
    raise BrokerUnavailable(
        f"the broker of {settings.data_dir} (pid {served.pid} there) runs {where} so its port {served.port} cannot "
        f"be reached from here. {network.GET_OUT}; or set INTER_SESSION_DATA_DIR to a directory of its own"
    )


def check_loopback(port: int) -> None:
    """Raises `BrokerUnavailable` if this process may not use the loopback, or there is none."""
    found = network.try_port(port)
    if found is network.Port.FORBIDDEN:
        raise BrokerUnavailable(network.FORBIDDEN_TEXT)
    if found is network.Port.UNREACHABLE:
        raise BrokerUnavailable(f"127.0.0.1 cannot be reached: the loopback of this network is down. {network.GET_OUT}")


def is_elected(settings: Settings) -> bool:
    """Returns whether a process holds the election lock of `broker.shell.daemon`. A pid alone proves nothing: it may be
    a zombie's, or reused. (This takes the lock shared, for microseconds; a candidate that meets it looks again.)"""
    try:
        descriptor = os.open(settings.data_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False

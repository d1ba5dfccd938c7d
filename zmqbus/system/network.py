"""The network that this process is in: whether it is the broker's, and whether a broker may be started in it.

Theory of operation
===================

The broker's lock is seen through the file system, its port through a network namespace. In a sandbox or a container the
two may differ: the lock says that there is a broker, and 127.0.0.1 is another loopback. Then nobody answers there, for
however long it is waited, and the broker is healthy. So the broker writes down which network it serves (`here`), and
whoever finds another one than its own tries the port once (somebody may forward it) and otherwise says so at once.

The other way round, a broker that is started in the network of a sandbox holds the lock and serves nobody but that
sandbox. A network of its own is nothing bad in itself: where all sessions live in one container, everything works. What
sandboxes for commands have (bubblewrap's `--unshare-net`, as Claude Code and Codex use it) is a network with nothing
but a loopback. No agent can live in there without help from outside, so a broker is refused there (`why_closed`) if
anything says that the sessions are elsewhere:

* an agent's sandbox says so in the environment;
* an ancestor of this process is in another network, as far as that can be seen;
* the user namespace has one user id only, as sandboxes without privileges have it, and containers have not;
* the last broker of the data directory served a network with more than a loopback.

Otherwise (a machine without a network card, a build in a container without network) it is started. And a setting lets
it start in any case (INTER_SESSION_LOOPBACK_ONLY).

Some sandboxes leave the network as it is and forbid the system calls: `try_port` tells that apart from a port at which
nobody listens. Systems without network namespaces have the network "", which is the same as every other.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from enum import Enum

from zmqbus.process import ancestors, this_machine
from zmqbus.tuples import NamedTuple

#: How to leave the network of a sandbox, for messages.
GET_OUT = (
    "Run the command outside of the sandbox (Claude Code: put zmqbus into sandbox.excludedCommands), or give the "
    "container its host's network"
)
#: What to say where the loopback may not be used.
FORBIDDEN_TEXT = (
    "this shell may not connect to 127.0.0.1: a sandbox forbids it. Allow local connections in its settings, or run "
    "the command outside of it (Claude Code: put zmqbus into sandbox.excludedCommands; Codex: approve it)"
)
#: How long a connection over the loopback may take, s. A listener whose queue is full does not answer at all.
CONNECT_S = 0.25
#: /proc/net/dev has a line of some 120 bytes for each interface. Nothing else that is read here is longer.
MAX_BYTES = 64 * 1024

#: What a kernel puts into each new network by itself, connected to nothing.
_EMPTY = frozenset(
    ("lo", "tunl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "sit0", "ip6tnl0", "ip6gre0", "teql0")
)
#: Set by the sandboxes of Claude Code and of Codex for the commands that run in them.
_SANDBOXED = ("SANDBOX_RUNTIME", "CODEX_SANDBOX_NETWORK_DISABLED")
#: What a sandbox answers that forbids the call: EPERM and EACCES (seccomp, Seatbelt, Landlock), or no such family.
_FORBIDDEN = frozenset((errno.EPERM, errno.EACCES, errno.EAFNOSUPPORT, errno.ENOSYS))
#: What the kernel answers where even the loopback is down.
_NO_ROUTE = frozenset((errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL))


class Network(NamedTuple):
    """A network, told apart from others. Both fields are "" where there are no network namespaces."""

    namespace: str = ""  #: inode of the network namespace
    boot: str = ""  #: boot id of the kernel that has it

    @property
    def text(self) -> str:
        """How it is written down."""
        return f"{self.namespace}:{self.boot}"

    @classmethod
    def parse(cls, text: str) -> Network:
        """The network that a text stands for."""
        namespace, _, boot = text.partition(":")
        return cls(namespace, boot)

    def differs(self, other: Network) -> bool:
        """Whether both are certainly not the same."""
        return bool(self.namespace and other.namespace) and self != other


class Port(Enum):
    """What is found at a port of the loopback."""

    OPEN = "open"
    REFUSED = "refused"  #: nobody listens
    FORBIDDEN = "forbidden"  #: this process may not connect
    UNREACHABLE = "unreachable"  #: this network has no loopback


def here() -> Network:
    """The network of this process."""
    try:
        namespace = os.readlink("/proc/self/ns/net").partition("[")[2].rstrip("]")
    except OSError:
        return Network()
    return Network(namespace, this_machine().place().boot)


def has_only_loopback() -> bool:
    """Whether this network has no interface that could lead anywhere; False where that cannot be seen."""
    try:
        with open("/proc/self/net/dev", "rb") as file:
            lines = file.read(MAX_BYTES).decode("utf-8", "replace").splitlines()[2:]
    except OSError:
        return False
    names = {line.partition(":")[0].strip() for line in lines}
    return bool(names) and names <= _EMPTY


def why_closed(environ: Mapping[str, str], served: Network, *, served_open: bool) -> str:
    """Why no broker may be started in this network: a part of a sentence; "": it may.

    `served` is the network of the last broker (`Network()`: not known), which had more than a loopback if
    `served_open`.
    """
    me = here()
    if not me.namespace or me == served or not has_only_loopback():
        return ""
    for variable in _SANDBOXED:
        if environ.get(variable):
            return f"{variable} is set"
    if served_open:  # guards: broker start [off]
        return "the last broker served another one"
    if _has_one_id():
        return "it is a sandbox's: there is one user id"
    if _is_cut_off(me):
        return "the processes that have started this one are in another one"
    return ""


def _has_one_id() -> bool:
    try:
        with open("/proc/self/uid_map", "rb") as file:
            return sum(int(line.split()[2]) for line in file.read(MAX_BYTES).splitlines()) == 1
    except (OSError, ValueError, IndexError):
        return False


def _is_cut_off(me: Network) -> bool:
    """Whether a process above this one is in another network."""
    for process in ancestors():
        try:
            if os.readlink(f"/proc/{process.pid}/ns/net") != f"net:[{me.namespace}]":
                return True
        except OSError:
            continue  # another user's, or one with more privileges
    return False


def try_port(port: int, timeout_s: float = CONNECT_S) -> Port:
    """Connects to a port of the loopback, and hangs up."""
    import socket  # 5 ms, which only those pay who find no broker

    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.settimeout(timeout_s)
            probe.connect(("127.0.0.1", port))
            # A closed port of the ephemeral range may have been given to this very socket.
            return Port.REFUSED if probe.getsockname() == probe.getpeername() else Port.OPEN
    except TimeoutError:
        return Port.OPEN  # its queue is full
    except OSError as error:
        if error.errno in _FORBIDDEN:
            return Port.FORBIDDEN
        return Port.UNREACHABLE if error.errno in _NO_ROUTE else Port.REFUSED

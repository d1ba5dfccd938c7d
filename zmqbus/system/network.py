"""The network of this process: whether it is the broker's, and whether a broker may be started in it.

Theory of operation
===================

A process sees the broker's lock through the file system, and its port through a network namespace. In a sandbox or a
container the two may differ: the lock is held, but 127.0.0.1 is another loopback, where a healthy broker never answers.
So the broker records which network it serves (`here`). A client in another network tries the port once (it may be
forwarded), and otherwise reports that at once.

Conversely, a broker started in the network of a sandbox would hold the lock and serve only that sandbox. A network of
its own is no fault in itself: if all sessions live in one container, everything works. But sandboxes for commands
(bubblewrap's `--unshare-net`, as Claude Code and Codex use it) have a network with only a loopback. No agent can live
in there without help from outside, so a broker is refused there (`refusal_reason`) on any sign that the sessions are
elsewhere:

* the environment has the variable of an agent's sandbox;
* an ancestor of this process is in another network, as far as that is visible;
* the user namespace has only one user id, as sandboxes without privileges have, and containers do not;
* the last broker of the data directory served a network with more than a loopback.

Otherwise (a machine without a network card, a build in a container without network) the broker starts. A setting starts
it in any case (INTER_SESSION_LOOPBACK_ONLY).

Some sandboxes leave the network as it is and forbid the system calls: `try_port` distinguishes that from a port on
which nobody listens. Systems without network namespaces have the network "", which equals every other.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from enum import Enum

from zmqbus.process import ancestors, this_machine
from zmqbus.tuples import NamedTuple

#: Advice for messages: how to leave the network of a sandbox.
GET_OUT = (
    "Run the command outside of the sandbox (Claude Code: put zmqbus into sandbox.excludedCommands), or give the "
    "container its host's network"
)
#: The message where the loopback may not be used.
FORBIDDEN_TEXT = (
    "this shell may not connect to 127.0.0.1: a sandbox forbids it. Allow local connections in its settings, or run "
    "the command outside of it (Claude Code: put zmqbus into sandbox.excludedCommands; Codex: approve it)"
)
#: Timeout of a connection over the loopback, s. A listener whose queue is full does not answer at all.
CONNECT_S = 0.25
#: /proc/net/dev has a line of some 120 bytes for each interface. The other files read here are shorter.
MAX_BYTES = 64 * 1024

#: Interfaces that a kernel makes in each new network, connected to nothing.
_EMPTY = frozenset(
    ("lo", "tunl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "sit0", "ip6tnl0", "ip6gre0", "teql0")
)
#: Set by the sandboxes of Claude Code and of Codex for the commands that run in them.
_SANDBOXED = ("SANDBOX_RUNTIME", "CODEX_SANDBOX_NETWORK_DISABLED")
#: Errors of a sandbox that forbids the call: EPERM and EACCES (seccomp, Seatbelt, Landlock), or no such family.
_FORBIDDEN = frozenset((errno.EPERM, errno.EACCES, errno.EAFNOSUPPORT, errno.ENOSYS))
#: Errors of the kernel where even the loopback is down.
_NO_ROUTE = frozenset((errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL))


class Network(NamedTuple):
    """Identifies a network. Both fields are "" where there are no network namespaces."""

    namespace: str = ""  #: inode of the network namespace
    boot: str = ""  #: boot id of the kernel that has it

    @property
    def text(self) -> str:
        """The form in which it is stored."""
        return f"{self.namespace}:{self.boot}"

    @classmethod
    def parse(cls, text: str) -> Network:
        """The network from its stored form."""
        namespace, _, boot = text.partition(":")
        return cls(namespace, boot)

    def differs(self, other: Network) -> bool:
        """Whether both are certainly different."""
        return bool(self.namespace and other.namespace) and self != other


class Port(Enum):
    """The result of a connection to a port of the loopback."""

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
    """Whether this network has no interface to anywhere else; False where that is not visible."""
    try:
        with open("/proc/self/net/dev", "rb") as file:
            lines = file.read(MAX_BYTES).decode("utf-8", "replace").splitlines()[2:]
    except OSError:
        return False
    names = {line.partition(":")[0].strip() for line in lines}
    return bool(names) and names <= _EMPTY


def refusal_reason(environ: Mapping[str, str], served: Network, *, served_open: bool) -> str:
    """Why no broker may be started in this network, as a clause for a message; "" if one may.

    `served` is the network of the last broker (`Network()` if unknown); `served_open` says that it had more than a
    loopback.
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
    """Whether an ancestor of this process is in another network."""
    for process in ancestors():
        try:
            if os.readlink(f"/proc/{process.pid}/ns/net") != f"net:[{me.namespace}]":
                return True
        except OSError:
            continue  # another user's, or one with more privileges
    return False


def try_port(port: int, timeout_s: float = CONNECT_S) -> Port:
    """Connects to a port of the loopback and closes the connection."""
    import socket  # 5 ms, paid only where no broker answers

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

"""Who this process is on the bus: its settings, its owner, and the session that it acts as.

`identify` answers that once for a command, in this order:

1. the data directory, and an owner that the environment names (`settings.locate`);
2. the processes that may own this one, nearest first (`zmqbus.session.owner`);
3. the plugin's options that the hook of the first owner's session has stored (`zmqbus.session.plugin_options`);
4. the settings that follow from flags, environment and those options.

The `Caller` that it returns looks up the session whenever it is asked for one, because a session may end or be renamed
meanwhile. A command acts as the session of the first owner that has one; the list of owners ends where the processes of
another agent begin, so a command never speaks as that agent.

Nothing here imports pyzmq before a bus is asked for: a hook leaves without one in most cases.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from zmqbus.errors import NotConnected
from zmqbus.process import Process
from zmqbus.security.private_files import open_file
from zmqbus.session.owner import find_owners
from zmqbus.session.owner_files import LOCK, STATE, OwnerFiles, files_of, is_anothers, is_held
from zmqbus.session.plugin_options import await_options, hand_on, with_options
from zmqbus.session.state import Identity, SessionState, load_state, read_identity
from zmqbus.settings import Settings, load, locate, warn_on_stderr, where_am_i
from zmqbus.text import wording
from zmqbus.tuples import NamedTuple

if TYPE_CHECKING:
    from zmqbus.client.core import Persona
    from zmqbus.client.oneshot import OneShotClient
    from zmqbus.wire.verbs import Role


class Found(NamedTuple):
    """The result of looking for a live session."""

    state: SessionState | None  #: None: there is none
    files: OwnerFiles | None  #: of its owner
    stale: bool = False  #: only the remains of a session were there, and were removed


class Joined(NamedTuple):
    """An owner that has, or had, a session."""

    files: OwnerFiles
    identity: Identity | None  #: None: its first listener is just starting
    held: bool  #: a listener holds the lock

    @property
    def is_away(self) -> bool:
        """Whether the session has no listener."""
        return self.identity is not None and not self.held

    @property
    def takes_mail(self) -> bool:
        """Whether hooks and waiter show this session's mail: no listener runs, and the user has not disconnected it."""
        # guards: hooks [and not self.identity.left =>]
        return self.is_away and self.identity is not None and not self.identity.left


def identify(
    flags: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
    *,
    warn: Callable[[str], None] = warn_on_stderr,
    hands_on: bool = False,
    wait_s: float = 0.0,
) -> Caller:
    """Finds out who this process is; each setting is loaded once, and `warn` is called as in `settings.load`.

    `environ` is the process's own unless another is given.
    `hands_on`: this is the hook of a session's start, so it first stores the plugin's options for the session's other
    processes. `wait_s`: how long to wait for that hook. The owners are found before, because the process that started
    this one may end meanwhile.

    Raises `InvalidOption` for a flag that cannot be used, `Unauthorized` for files that others could have written.
    """
    env = os.environ if environ is None else environ
    location = locate(env, warn)
    owners = find_owners(location.owner_pid_override, env)
    if hands_on:
        hand_on(location.data_dir, owners[0], env)
    elif wait_s:
        await_options(location.data_dir, owners[0], wait_s)
    files = files_of(location.data_dir, owners[0])
    return Caller(load(flags, with_options(files, env), warn, location), files, owners[1:])


class Caller:
    """This process, as the bus sees it."""

    def __init__(self, settings: Settings, files: OwnerFiles, others: Iterable[Process] = ()) -> None:
        """`files` are those of the owner; `others` are the owners whose session may be used where it has none."""
        self.settings = settings
        self.files = files
        self._others = tuple(others)

    def __repr__(self) -> str:
        return f"<Caller of owner {self.files.owner.pid} and {len(self._others)} others>"

    @property
    def owner(self) -> Process:
        """The process whose life bounds a session that this process connects."""
        return self.files.owner

    def candidates(self) -> Iterator[OwnerFiles]:
        """The files of all owners whose session this process may use, nearest first. Raises `Unauthorized`."""
        yield self.files
        for owner in self._others:
            yield files_of(self.settings.data_dir, owner)

    def session(self) -> Found:
        """Looks for the live session of this process. See `find_session`."""
        return find_session(self.candidates())

    def joined(self) -> Joined | None:
        """Looks for a session of this process, live or not. See `find_joined`."""
        return find_joined(self.candidates())

    def act(self) -> tuple[SessionState, OneShotClient]:
        """A bus on which this process acts as its session. Raises `NotConnected` where no listener runs.

        It uses the port in the state file, which is right where this shell's environment may not be.
        """
        state, files, _ = self.session()
        if state is None or files is None:
            raise NotConnected(f"not connected; run {wording.command('connect')} first")
        return state, bus_of(self.settings, files, state.identity, state.cwd, state.project)

    def read(self) -> OneShotClient:
        """A bus on which this process reads what waits for its session, or leaves it; no listener has to run.

        Raises `NotConnected` where this owner never had a session.
        """
        joined = self.joined()
        if joined is None or joined.identity is None or joined.held:
            return self.act()[1]
        from zmqbus.session.shown_log import Shown
        from zmqbus.session.wake import take_shown

        take_shown(joined.files, Shown(joined.files, joined.identity.session_id))
        return bus_of_away(self.settings, joined)

    def note_disconnected(self) -> None:
        """Stores that the session of this process, which has no listener, was disconnected: no hook joins for it.

        Does nothing where there is no session, or a listener after all. Raises as `ListenerLock.acquire`.
        """
        joined = self.joined()
        if joined is None or not joined.is_away:
            return
        from zmqbus.session.lock import AlreadyListening, ListenerLock

        try:
            with ListenerLock.acquire(self.settings.data_dir, joined.files.owner) as lock:
                lock.note_left()
        except AlreadyListening:
            return


def find_session(candidates: Iterable[OwnerFiles]) -> Found:
    """Looks for a live session of the first owner that has one, and removes the state files of dead listeners.

    `stale` is set only where no live session was found. Raises `Unauthorized` as `load_state` does.
    """
    stale = False
    for files in candidates:
        state, was_stale = _session_of(files)
        if state is not None:
            return Found(state, files)
        stale = stale or was_stale
    return Found(None, None, stale)


def find_joined(candidates: Iterable[OwnerFiles]) -> Joined | None:
    """The first owner that has or had a session, or is just starting one; None: none of them.

    A listener of the nearest owner hides the other owners, even where its session has no name yet: mail of a session
    above it is not its business. Raises `Unauthorized` as `load_state` does.
    """
    for files in candidates:
        path = files.path(LOCK)
        try:
            fd = open_file(path, os.O_RDONLY)
        except FileNotFoundError:
            continue
        try:
            identity = read_identity(fd, files)
        finally:
            os.close(fd)
        if identity is not None and identity.name is None:
            identity = None
        held = is_held(path)
        if identity is not None or held:
            return Joined(files, identity, held)
    return None


def is_listening(data_dir: str, owner: Process) -> bool:
    """Whether a listener of this owner runs. Raises `Unauthorized` where others could have made its lock."""
    return is_held(files_of(data_dir, owner).path(LOCK))


def bus_of(
    settings: Settings,
    files: OwnerFiles,
    identity: Identity,
    cwd: str,
    project: str,
    *,
    starts: bool = True,
    patient: bool = False,
) -> OneShotClient:
    """A bus on which this process acts as the session of these files, whether its listener runs or not.

    `starts`, `patient`: see `OneShotClient`.
    """
    from zmqbus.client.oneshot import OneShotClient
    from zmqbus.session.shown_log import Shown
    from zmqbus.wire.verbs import Role

    persona = persona_of(Role.HELPER, identity, files.owner, cwd, project)
    shown = Shown(files, identity.session_id)
    port = identity.port or settings.port
    return OneShotClient(settings._replace(port=port), persona, shown, starts=starts, patient=patient)


def persona_of(role: Role, identity: Identity, owner: Process, cwd: str, project: str) -> Persona:
    """This process as the broker sees it, in the role of the session's listener or helper."""
    from zmqbus.client.core import Persona

    return Persona(
        role=role,
        session_id=identity.session_id,
        token=identity.token,
        name=identity.name,
        label=identity.label,
        cwd=cwd,
        project=project,
        pid=os.getpid(),
        owner=owner.text,
    )


def bus_of_away(settings: Settings, joined: Joined, *, starts: bool = True, patient: bool = False) -> OneShotClient:
    """A bus on which this process acts as a session that has no listener, from its own directory."""
    assert joined.identity is not None
    return bus_of(settings, joined.files, joined.identity, *where_am_i(), starts=starts, patient=patient)


def _session_of(files: OwnerFiles) -> tuple[SessionState | None, bool]:
    """The live session of one owner, or whether there were remains of a dead one."""
    state = load_state(files.data_dir, files.stem)
    if state is None and not os.path.lexists(files.path(STATE)):
        return None, False
    if is_held(files.path(LOCK)):
        # A listener that outlives its owner for some seconds may hold the lock of a pid that is already used again.
        return (state if state is not None and state.owner.is_same(files.owner) else None), False
    if state is not None and is_anothers(state.owner, files.owner):
        return None, False
    from zmqbus.session.leftovers import remove_stale_state

    return None, remove_stale_state(files.data_dir, files.stem)

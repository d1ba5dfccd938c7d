"""Settings (flags, environment, defaults) and the paths that follow from them.

Each setting is one row of `_RULES`: which flag, which environment variables in which order, how a value is read, and
what holds when nothing is set. `load` walks the sources of a row from the first to the last and takes the first value
that parses. The rules that hold for every row:

* A variable that does not parse is passed over with one warning, and the next source is tried. A wrong variable in some
  shell profile may cost its user a line on stderr, never the session. A flag that does not parse is an error
  (`InvalidOption`): somebody has just typed it, and to go on with another value would be to do something else than was
  asked for.
* An environment value that is empty or blank counts as not set, without a warning: that is how shells and plugin
  manifests say "no value". A flag was typed, so an empty one is a value: it clears a label, and is wrong elsewhere.
* The name and the label are handed on as they came. What is wrong with them is an error with a line of its own, and it
  is the command that prints it.
* Paths are made absolute, but links in them are not resolved: a data directory that is a link has to be seen, and
  refused, by `zmqbus.security.private_files`.

Every command loads this module, the short-lived ones too; it imports nothing that the interpreter has not loaded.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, Literal

from zmqbus.errors import InvalidOption
from zmqbus.tuples import NamedTuple

DEFAULT_PORT = 9473
DEFAULT_IDLE_SHUTDOWN_MIN = 10
DEFAULT_OWNER_CHECK_INTERVAL_S = 10
DEFAULT_DATA_DIR = "~/.claude/data/inter-session"
DEFAULT_DURABILITY = "process"

#: What `Settings.durability` can be: survive the death of processes, or the loss of power too.
DURABILITIES = ("process", "power")

#: Port 0 means "any" to the kernel, and a well-known port cannot be any.
MIN_PORT, MAX_PORT = 1, 65535
#: Ten years. Over that nobody means a duration, and 0 says "never".
MAX_IDLE_SHUTDOWN_MIN = 10 * 366 * 24 * 60
#: Looking more often than this would be a busy loop; tests go down to here.
MIN_OWNER_CHECK_INTERVAL_S = 0.01
#: In milliseconds this still fits the C int that poll() takes.
MAX_OWNER_CHECK_INTERVAL_S = 1_000_000.0
#: 0 and negative numbers name process groups, not processes: they must never reach kill(). pid_t is a C int.
MIN_PID, MAX_PID = 1, 2**31 - 1
#: So much of a refused value is shown in its warning, in characters of its repr.
SHOWN_VALUE_CHARS = 80

#: Makes the value out of a source's text, or raises ValueError. Gets the environment too, for the home that `~` means.
_Parser = Callable[[str, Mapping[str, str]], Any]


class Paths(NamedTuple):
    """Where everything in the data directory is. Only names: nothing here looks at the disk or creates anything."""

    data_dir: str

    @property
    def keys(self) -> str:
        """Directory of the CURVE keys."""
        return os.path.join(self.data_dir, "keys")

    @property
    def log(self) -> str:
        """The journal of all messages; its rotated files are `<log>.1` to `<log>.5`."""
        return os.path.join(self.data_dir, "messages.log")

    @property
    def database(self) -> str:
        """The mailboxes, an SQLite database."""
        return os.path.join(self.data_dir, "mailboxes.sqlite3")

    @property
    def search_index(self) -> str:
        """The index of all texts, an SQLite database made out of the log."""
        return os.path.join(self.data_dir, "search.sqlite")

    @property
    def broker_log(self) -> str:
        """What the broker has to say about itself."""
        return os.path.join(self.data_dir, "broker.log")

    @property
    def spool(self) -> str:
        """Directory of the files in which programs put large bodies down for the broker."""
        return os.path.join(self.data_dir, "spool")

    def pid_file(self, port: int) -> str:
        """The pid, as text, of the broker that serves `port`."""
        return os.path.join(self.data_dir, f"server.{port}.pid")

    def process_file(self, port: int) -> str:
        """Which process that is, in what place, and which network it serves."""
        return os.path.join(self.data_dir, f"server.{port}.process")

    @property
    def network(self) -> str:
        """Which network the last broker has served."""
        return os.path.join(self.data_dir, "network")

    @property
    def clients(self) -> str:
        """Directory of the locks and state files of listeners, named after their owners' pids."""
        return os.path.join(self.data_dir, "clients")

    @property
    def labels(self) -> str:
        """The labels remembered for projects."""
        return os.path.join(self.data_dir, "clients", "labels.json")

    @property
    def venv(self) -> str:
        """The virtual environment that install-deps makes."""
        return os.path.join(self.data_dir, "venv")


class Settings(NamedTuple):
    """What holds for this process. `load` makes one; the fields of a loaded one are in range, name and label apart."""

    port: int  # of the router, 1 to 65535
    idle_shutdown_s: float  # 0 = never
    data_dir: str  # absolute, `~` expanded, links not resolved
    name: str | None  # as given, unchecked; None = not given
    label: str | None  # as given, unchecked; None = not given, "" = none wanted
    owner_pid_override: int | None  # None = found by walking up the process tree
    owner_check_interval_s: float
    no_reexec: bool
    durability: Literal["process", "power"]
    loopback_only: bool  # start a broker in a network that has nothing but a loopback, whatever speaks against it
    #: Whether somebody chose the port. The well-known one is only where to begin: where another program holds it, the
    #: broker takes another one, and clients find it by the pid file (`client.launch.find_broker`).
    port_chosen: bool = True

    @property
    def paths(self) -> Paths:
        """Where the files of this data directory are."""
        return Paths(self.data_dir)


class Location(NamedTuple):
    """The two settings that lead to what a session's hook has stored, which may hold values for the others."""

    data_dir: str
    owner_pid_override: int | None


class _Rule(NamedTuple):
    field: str  # of Settings
    flag: str | None  # key in the mapping of flags
    variables: tuple[str, ...]  # of the environment: the first that is set and parses
    parse: _Parser
    says: str  # what a value must be, for the warning
    default: object  # as a source would give it; None = None


def _port(text: str, environ: Mapping[str, str]) -> int:
    return _whole(text, MIN_PORT, MAX_PORT)


def _minutes_as_seconds(text: str, environ: Mapping[str, str]) -> float:
    return _number(text, 0.0, MAX_IDLE_SHUTDOWN_MIN) * 60.0


def _interval_s(text: str, environ: Mapping[str, str]) -> float:
    return _number(text, MIN_OWNER_CHECK_INTERVAL_S, MAX_OWNER_CHECK_INTERVAL_S)


def _pid(text: str, environ: Mapping[str, str]) -> int:
    return _whole(text, MIN_PID, MAX_PID)


def _as_given(text: str, environ: Mapping[str, str]) -> str:
    return text


def _switch(text: str, environ: Mapping[str, str]) -> bool:
    word = text.strip().lower()
    if word in ("1", "true", "yes", "on"):
        return True
    if word in ("0", "false", "no", "off", ""):
        return False
    raise ValueError(text)


def _durability(text: str, environ: Mapping[str, str]) -> str:
    word = text.strip().lower()
    if word not in DURABILITIES:
        raise ValueError(text)
    return word


def _directory(text: str, environ: Mapping[str, str]) -> str:
    if not text or "\0" in text:
        raise ValueError(text)
    if text == "~" or text.startswith("~/"):
        text = _home(environ).rstrip("/") + text[1:] or "/"
    elif text.startswith("~"):
        text = os.path.expanduser(text)  # the home of another account, from the user database
        if text.startswith("~"):
            raise ValueError(text)  # no such account; a directory called "~bob" is not what was meant
    # abspath also takes off a trailing slash, which would make lstat() look through a link instead of at it.
    return os.path.abspath(text)


_RULES = (
    _Rule(
        "port",
        "port",
        ("CLAUDE_PLUGIN_OPTION_PORT", "INTER_SESSION_PORT"),
        _port,
        f"must be a whole number from {MIN_PORT} to {MAX_PORT}",
        DEFAULT_PORT,
    ),
    _Rule(
        "idle_shutdown_s",
        "idle_shutdown_minutes",
        ("CLAUDE_PLUGIN_OPTION_IDLE_SHUTDOWN_MINUTES", "INTER_SESSION_IDLE_MINUTES"),
        _minutes_as_seconds,
        f"must be a number of minutes from 0 (never) to {MAX_IDLE_SHUTDOWN_MIN}",
        DEFAULT_IDLE_SHUTDOWN_MIN,
    ),
    _Rule(
        "data_dir",
        None,
        ("INTER_SESSION_DATA_DIR",),
        _directory,
        "must be the path of a directory, best an absolute one",
        DEFAULT_DATA_DIR,
    ),
    _Rule("name", "name", ("INTER_SESSION_NAME",), _as_given, "", None),
    _Rule("label", "label", ("INTER_SESSION_LABEL",), _as_given, "", None),
    _Rule(
        "owner_pid_override",
        None,
        ("INTER_SESSION_PPID_OVERRIDE",),
        _pid,
        "must be the id of a process, a whole number from 1",
        None,
    ),
    _Rule(
        "owner_check_interval_s",
        None,
        ("INTER_SESSION_OWNER_CHECK_INTERVAL_S",),
        _interval_s,
        f"must be a number of seconds from {MIN_OWNER_CHECK_INTERVAL_S} to {MAX_OWNER_CHECK_INTERVAL_S:.0f}",
        DEFAULT_OWNER_CHECK_INTERVAL_S,
    ),
    _Rule(
        "no_reexec",
        None,
        ("INTER_SESSION_NO_REEXEC",),
        _switch,
        "must be one of 1, true, yes, on, 0, false, no, off",
        "off",
    ),
    _Rule(
        "durability",
        None,
        ("INTER_SESSION_DURABILITY",),
        _durability,
        "must be one of " + ", ".join(DURABILITIES),
        DEFAULT_DURABILITY,
    ),
    _Rule(
        "loopback_only",
        None,
        ("INTER_SESSION_LOOPBACK_ONLY",),
        _switch,
        "must be one of 1, true, yes, on, 0, false, no, off",
        "off",
    ),
)


def warn_on_stderr(text: str) -> None:
    """Prints a warning, where there is somebody to read it."""
    stream = sys.stderr
    if stream is None:  # a detached process without one; print() would turn to stdout, which is the agent's channel
        return
    try:
        stream.write(f"warning: {text}\n")
        stream.flush()
    except (OSError, ValueError):
        # The reader of stderr has gone, or the stream is closed: a warning that nobody can see must not end the work.
        return


def locate(environ: Mapping[str, str] | None = None, warn: Callable[[str], None] = warn_on_stderr) -> Location:
    """Loads the two settings that `load` takes as `location`. Warns as `load` does, and raises nothing."""
    env = os.environ if environ is None else environ
    return Location(*(_resolve(rule, {}, env, warn) for rule in _RULES if rule.field in Location._fields))


def load(
    flags: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
    warn: Callable[[str], None] = warn_on_stderr,
    location: Location | None = None,
) -> Settings:
    """The settings that hold for `flags` (first) and `environ` (then; default: the process's own).

    `flags` knows `port`, `idle_shutdown_minutes`, `name` and `label`, as text or as numbers; None is "not given", and
    other keys are left alone, so that the whole of a parsed command line can be handed in. Each variable that is
    passed over calls `warn` once with a line that names it, its value and what that must be. `location` holds what
    `locate` has loaded already. Raises `InvalidOption` for a flag that cannot be used, and nothing else.
    """
    given = {} if flags is None else flags
    env = os.environ if environ is None else environ
    values: dict[str, Any] = {} if location is None else location._asdict()
    for rule in _RULES:
        if rule.field not in values:
            values[rule.field] = _resolve(rule, given, env, warn)
    return Settings(**values, port_chosen=values["port"] != DEFAULT_PORT)


def _resolve(rule: _Rule, flags: Mapping[str, object], environ: Mapping[str, str], warn: Callable[[str], None]) -> Any:
    if rule.flag is not None and (given := flags.get(rule.flag)) is not None:
        try:
            return rule.parse(str(given), environ)
        except ValueError:
            raise InvalidOption(f"--{rule.flag.replace('_', '-')} {rule.says}, not {_shown(given)}") from None
    for variable in rule.variables:
        text = environ.get(variable, "")
        if not text or text.isspace():
            continue
        try:
            return rule.parse(text, environ)
        except (ValueError, OSError):  # OSError: a relative path, and the current directory has been removed
            warn(f"ignoring {variable}={_shown(text)}: it {rule.says}")
    return None if rule.default is None else rule.parse(str(rule.default), environ)


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # an int with more digits than the interpreter is willing to write out
        text = f"<{type(value).__name__}>"
    return text if len(text) <= SHOWN_VALUE_CHARS else text[: SHOWN_VALUE_CHARS - 1] + "…"


def _whole(text: str, least: int, most: int) -> int:
    digits = text.strip()
    # int() alone would also take "9_473", "+9473" and the digits of other scripts.
    if not (digits.isascii() and digits.isdigit()):
        raise ValueError(text)
    number = int(digits)
    if not least <= number <= most:
        raise ValueError(text)
    return number


def _number(text: str, least: float, most: float) -> float:
    if "_" in text or not text.isascii():  # float() takes these, nobody means them
        raise ValueError(text)
    number = float(text)
    if not least <= number <= most:  # NaN compares false with everything, so it ends here too
        raise ValueError(text)
    return abs(number)  # "-0" is 0


def _home(environ: Mapping[str, str]) -> str:
    home = environ.get("HOME", "")
    if os.path.isabs(home) and "\0" not in home:
        return home
    import pwd  # only for the rare process without a usable HOME

    try:
        return pwd.getpwuid(os.getuid()).pw_dir or "/"
    except KeyError:  # a container's uid without an account
        return "/"


class Place(NamedTuple):
    """Where a process works, as others are told: both are valid Unicode (`shown_path`)."""

    cwd: str  # "": the current directory is gone, or cannot be seen
    project: str  # as `find_project` finds it; "" likewise


def where_am_i() -> Place:
    """The current directory and its project. Never raises: a directory can be removed under a process that is in it,
    and most of what a command does needs none. Whoever does need one looks for "", and says what to do."""
    try:
        cwd = os.getcwd()
    except OSError:  # removed, or below a directory that may not be read
        return Place("", "")
    return Place(shown_path(cwd), find_project(cwd))


def shown_path(path: str) -> str:
    """A path as text that is valid Unicode. Its bytes need not be UTF-8; those that are not become `\\xNN`, so that two
    directories remain two."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return os.fsencode(path).decode("utf-8", "backslashreplace")
    return path


#: What a command says that needs a directory and has none.
NO_DIRECTORY = "the current directory is gone (it was deleted, or may not be read); cd to another one"


def find_project(cwd: str) -> str:
    """The root of the git work tree that contains `cwd`, or `cwd` outside one; absolute, links resolved.

    A work tree is known by the `.git` in its root: a directory, or a file in linked work trees and submodules. The
    innermost one wins, as it does for git. Runs no process, and what cannot be read or is not there is no work tree:
    for an absolute `cwd` it raises nothing. It is text that can travel: `shown_path`.
    """
    return shown_path(_find_project(cwd))


def _find_project(cwd: str) -> str:
    start = os.path.realpath(cwd)
    directory = start
    while not os.path.exists(os.path.join(directory, ".git")):
        parent = os.path.dirname(directory)
        if parent == directory:
            return start
        directory = parent
    return directory

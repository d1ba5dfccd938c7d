"""Settings (flags, environment, defaults) and the paths that follow from them.

Each setting is one row of `_RULES`: its flag, its environment variables in order, its parser and its default. `load`
walks the sources of a row from the first to the last and takes the first value that parses. Rules for every row:

* A variable that does not parse is ignored with one warning, and the next source is tried. A wrong variable in some
  shell profile may cost its user a line on stderr, never the session. A flag that does not parse is an error
  (`InvalidOption`): the user has just typed it, and another value would be something else than was asked for.
* An environment value that is empty or blank counts as not set, without a warning: that is how shells and plugin
  manifests say "no value". An empty flag was typed, so it is a value: it clears a label, and is wrong elsewhere.
* The name and the label are passed on unchecked. The command checks them, and prints a line of its own if they are
  invalid.
* Paths are made absolute, but links in them are not resolved: `zmqbus.security.private_files` has to see, and refuse, a
  data directory that is a link.

Every command loads this module, so it imports nothing that the interpreter has not loaded already.
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

#: Values of `Settings.durability`: survive the death of processes, or the loss of power too.
DURABILITIES = ("process", "power")

#: Port 0 means "any" to the kernel, and a well-known port cannot be any.
MIN_PORT, MAX_PORT = 1, 65535
#: Ten years. Nobody means a longer duration, and 0 says "never".
MAX_IDLE_SHUTDOWN_MIN = 10 * 366 * 24 * 60
#: A shorter interval would be a busy loop; tests go down to this.
MIN_OWNER_CHECK_INTERVAL_S = 0.01
#: In milliseconds this still fits the C int that poll() takes.
MAX_OWNER_CHECK_INTERVAL_S = 1_000_000.0
#: 0 and negative numbers name process groups, not processes: they must never reach kill(). pid_t is a C int.
MIN_PID, MAX_PID = 1, 2**31 - 1
#: Characters of the repr of a refused value that its warning shows.
SHOWN_VALUE_CHARS = 80

#: Parses the text of a source, or raises ValueError. Takes the environment too, for the home of `~`.
_Parser = Callable[[str, Mapping[str, str]], Any]


class Paths(NamedTuple):
    """Paths of everything in the data directory. Nothing here looks at the disk or creates anything."""

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
        """The search index of all texts, an SQLite database made from the log."""
        return os.path.join(self.data_dir, "search.sqlite")

    @property
    def broker_log(self) -> str:
        """The broker's own log."""
        return os.path.join(self.data_dir, "broker.log")

    @property
    def spool(self) -> str:
        """Directory of spool files, in which programs leave large bodies for the broker."""
        return os.path.join(self.data_dir, "spool")

    def pid_file(self, port: int) -> str:
        """The file with the pid, as text, of the broker that serves `port`."""
        return os.path.join(self.data_dir, f"server.{port}.pid")

    def process_file(self, port: int) -> str:
        """The file with that broker's process, its place, and the network that it serves."""
        return os.path.join(self.data_dir, f"server.{port}.process")

    @property
    def network(self) -> str:
        """The file with the network that the last broker has served."""
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
    """The settings of this process. All fields that `load` returns are in range, except name and label."""

    port: int  # of the router, 1 to 65535
    idle_shutdown_s: float  # 0 = never
    data_dir: str  # absolute, `~` expanded, links not resolved
    name: str | None  # as given, unchecked; None = not given
    label: str | None  # as given, unchecked; None = not given, "" = no label
    owner_pid_override: int | None  # None = found by walking up the process tree
    owner_check_interval_s: float
    no_reexec: bool
    durability: Literal["process", "power"]
    loopback_only: bool  # start a broker even in a network that has only a loopback
    #: Whether the user chose the port. The well-known one is only the first to try: if another program holds it, the
    #: broker takes another one, and clients find that in the pid file (`client.locate.find_broker`).
    port_chosen: bool = True

    @property
    def paths(self) -> Paths:
        """Paths in this data directory."""
        return Paths(self.data_dir)


class Location(NamedTuple):
    """The two settings that lead to the options that a session's hook has stored, which may set the others."""

    data_dir: str
    owner_pid_override: int | None


class _Rule(NamedTuple):
    field: str  # of Settings
    flag: str | None  # key in the mapping of flags
    variables: tuple[str, ...]  # of the environment: the first that is set and parses
    parse: _Parser
    says: str  # the rule for its values, for the warning
    default: object  # in the form of a source; None = None


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
            raise ValueError(text)  # no such account; nobody means a directory called "~bob"
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
    """Prints a warning, if somebody can read it."""
    stream = sys.stderr
    if stream is None:  # a detached process; print() would write to stdout, which is the agent's channel
        return
    try:
        stream.write(f"warning: {text}\n")
        stream.flush()
    except (OSError, ValueError):
        # The reader of stderr has gone, or the stream is closed: a warning that nobody sees must not end the work.
        return


def locate(environ: Mapping[str, str] | None = None, warn: Callable[[str], None] = warn_on_stderr) -> Location:
    """Loads the two settings that `load` takes as `location`. Warns as `load` does; raises nothing."""
    env = os.environ if environ is None else environ
    return Location(*(_resolve(rule, {}, env, warn) for rule in _RULES if rule.field in Location._fields))


def load(
    flags: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
    warn: Callable[[str], None] = warn_on_stderr,
    location: Location | None = None,
) -> Settings:
    """The settings from `flags` first, then from `environ` (default: that of this process), then the defaults.

    `flags` may hold `port`, `idle_shutdown_minutes`, `name` and `label`, as text or as numbers; None means "not given",
    and other keys are ignored, so a whole parsed command line can be passed. Calls `warn` once for each variable that
    is ignored, with a line that names it, its value and the rule for it. `location` is the result of `locate`, where
    that was called before. Raises `InvalidOption` for a flag that cannot be used, and nothing else.
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
    """Where a process works, as other sessions see it: both are valid Unicode (`shown_path`)."""

    cwd: str  # "": the current directory is gone or unreadable
    project: str  # as `find_project` finds it; "" likewise


def where_am_i() -> Place:
    """The current directory and its project. Never raises.

    A directory can be removed while a process is in it, and most commands need none; the others check for "".
    """
    try:
        cwd = os.getcwd()
    except OSError:  # removed, or below a directory that may not be read
        return Place("", "")
    return Place(shown_path(cwd), find_project(cwd))


def shown_path(path: str) -> str:
    """A path as valid Unicode. Bytes that are not UTF-8 become `\\xNN`, so that two directories remain two."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return os.fsencode(path).decode("utf-8", "backslashreplace")
    return path


#: The error of a command that needs a current directory and has none.
NO_DIRECTORY = "the current directory is gone (it was deleted, or may not be read); cd to another one"


def find_project(cwd: str) -> str:
    """The root of the git work tree that contains `cwd`, or `cwd` outside one; absolute, links resolved.

    A work tree has `.git` in its root: a directory, or a file in linked work trees and submodules. The innermost one
    wins, as it does for git. Runs no process. A directory that is missing or unreadable is no work tree, so nothing is
    raised for an absolute `cwd`. The result is valid Unicode (`shown_path`).
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

"""What comes before each command: an interpreter that is new enough, the dependencies, and quiet ends.

The scripts in bin/ are started by whatever `python3` is first on the PATH, and often before anything was installed. So
everything here runs on the standard library alone, and this file is readable for python 3.6 too: an interpreter that is
too old has to get as far as saying so. In order:

1. `sys.path` is put in order: the standard library first, then this package, then the rest. Otherwise a directory in
   PYTHONPATH that holds a `typing.py` or another `zmq` decides what is imported here. Relative entries are dropped: an
   empty one means the current directory, which is anybody's repository.
2. `<data dir>/venv`, which install-deps makes, is used when it is complete. Made by the same version of python, it only
   has to be put on `sys.path`, behind the standard library and in front of all other packages, which costs nothing; a
   second start of the interpreter would cost 10 to 20 ms.
   Its .pth files are not read, since none of the three dependencies has one. Made by another version, its extension
   modules would not load here, so its own python is started instead, in place of this process. A venv that is broken,
   half made or gone is passed over: the dependencies may be installed elsewhere, and step 4 tells when they are not.
   Code is only taken from a data directory that belongs to this user and is open to nobody else (0700), below
   directories that nobody else can write to; and never from one that is named relative to the current directory, which
   may be anybody's repository.
3. Python older than 3.10, and no venv with a newer one: one line that says so, exit status 1.
4. The command's module is imported and runs. Where a dependency is missing, the listener says so on stdout, which the
   agent reads, and ends with 0, because for a monitor that is no failure; all others are commands, and fail.
   The collector of cycles rests meanwhile: what an import makes stays.
5. Ctrl-C, and an output that cannot be written (`output`: a reader that has gone, a full disk, a stream that was closed
   from the start) end the command without a traceback. Any other exception is a fault of ours and is shown in full; by
   the listener on stdout as well, in a line.
6. A command that is done, and has closed what it had, leaves at once: python would take 4 to 8 ms to take itself apart.
"""

import os
import sys

from zmqbus.system import streams
from zmqbus.text import wording

#: The oldest python that the package runs on, as in pyproject.toml.
OLDEST_PYTHON = (3, 10)

#: As in zmqbus.settings; see `find_data_dir`.
DATA_DIR_VARIABLE = "INTER_SESSION_DATA_DIR"
DEFAULT_DATA_DIR = "~/.claude/data/inter-session"
NO_REEXEC_VARIABLE = "INTER_SESSION_NO_REEXEC"

#: As whom the kernel shows users that a container has no number for (/proc/sys/kernel/overflowuid).
UNKNOWN_UID = 65534

#: Written last into a finished venv: one without it was left by an interrupted install.
VENV_MARKER = "zmqbus-installed"

#: Holds the pid of a process that has changed over to the venv's python, so it does not do so twice. It is the pid
#: because children inherit the variable and have to decide for themselves.
REEXEC_VARIABLE = "INTER_SESSION_REEXEC_PID"

#: Exit statuses that shells use for a command ended by SIGINT and by SIGPIPE.
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141
#: and ours, for an output that cannot be written for another reason.
EXIT_OUTPUT = 1

_DEPENDENCIES = ("zmq", "msgpack", "psutil")
_MISSING = "dependencies missing \u2014 run {}"
MISSING = _MISSING.format("/inter-session install-deps")
#: It puts a new venv in the place of the old one, so it should not stand on it.
_WITHOUT_VENV = ("install_deps",)
#: These have no thread, no child and nothing open when they return: their connections are closed and their context is
#: terminated (`client.link`), files are closed where they were opened, and the output is flushed.
_DONE_WHEN_THEY_RETURN = ("send", "broadcast", "list", "status", "inbox", "rename", "disconnect", "hook")


def main(command: str) -> None:
    """What a script in bin/ does: runs the command with the process's arguments, and ends the process."""
    argv = sys.argv[1:]
    status = run(command, argv)
    _leave(command, argv, status)
    sys.exit(status)


def run(command: str, argv: "list[str]") -> int:
    """Runs `zmqbus.cli.<command>.main(argv)` on the right python with the dependencies; returns the exit status.

    May not return: the process may go on as the python of the venv, from the start of the same script.
    """
    streams.install()
    wording.set_script(command != "main")
    _order_path()
    subcommand = _subcommand(command, argv)
    if subcommand not in _WITHOUT_VENV:
        _use_venv(argv)
    if sys.version_info[:2] < OLDEST_PYTHON:
        return _refuse_old_python(subcommand)
    return _run_command(command, subcommand, argv)


def console() -> int:
    """The `zmqbus` command of an installed package: its own environment has the dependencies, so no venv is used."""
    streams.install()
    _order_path()
    argv = sys.argv[1:]
    status = _run_command("main", _subcommand("main", argv), argv)
    _leave("main", argv, status)
    return status


def module() -> None:
    """What `python -m zmqbus` does: as `console` where this python has the dependencies, with the venv elsewhere."""
    from importlib.util import find_spec

    if all(find_spec(name) for name in _DEPENDENCIES):
        sys.exit(console())
    main("main")


def _leave(command: str, argv: "list[str]", status: int) -> None:
    """Ends the process where that is all that is left to do. Else it returns, and python ends it in its own way."""
    # Not under a debugger or a profiler, which want to see the end.
    if _subcommand(command, argv) in _DONE_WHEN_THEY_RETURN and sys.gettrace() is None and sys.getprofile() is None:
        sys.stderr.flush()
        os._exit(status)


def _refuse_old_python(subcommand: str) -> int:
    needs = "zmqbus needs python {}.{} or newer, and {} is {}".format(
        OLDEST_PYTHON[0], OLDEST_PYTHON[1], sys.executable or "this", sys.version.split()[0]
    )
    script = sys.argv[0] or "<script>"
    if subcommand == "hook":
        _tell_at_start(
            "cannot work: {}; with a newer one, run {} once: what it installs is used from then on".format(
                needs, os.path.join(os.path.dirname(os.path.abspath(script)), "install_deps.py")
            )
        )
        return 0  # a hook never fails the session that it is a guest in
    if subcommand == "connect":
        _say("cannot connect: {}; run it with a newer one, for example: python3.12 {}".format(needs, script))
    else:
        _complain("error: {}; run it with a newer one, for example: python3.12 {}".format(needs, script))
    return 1


def _tell_at_start(text: str) -> None:
    """What a hook says at the start of a session, about itself; nothing at other events."""
    import json

    try:
        event = json.loads(sys.stdin.read())
        if event.get("hook_event_name") == "SessionStart":
            context = {"hookEventName": "SessionStart", "additionalContext": "[inter-session] " + text}
            print(json.dumps({"hookSpecificOutput": context}), flush=True)
    except (AttributeError, OSError, RuntimeError, ValueError, streams.OutputFailed):  # no event, or nobody there
        pass


def _say(text: str) -> None:
    """A line of the listener: standard output is all that an agent sees of it."""
    try:
        print("[inter-session] " + text, flush=True)
    except streams.OutputFailed as failed:
        _report_output(failed)


def _subcommand(command: str, argv: "list[str]") -> str:
    """The module behind `zmqbus <subcommand>`; the command itself for all scripts that are one command."""
    if command != "main":
        return command
    for word in argv:
        if not word.startswith("-"):
            return word.replace("-", "_")
    return command


def _run_command(command: str, subcommand: str, argv: "list[str]") -> int:
    status = 0
    try:
        status = _call(command, argv)
        sys.stdout.flush()
        refused = streams.failure()  # told to somebody who has kept it to himself, as argparse does
        if refused is not None:
            raise streams.OutputFailed(refused)
        return status
    except streams.OutputFailed as failed:
        reported = _report_output(failed)
        return status or reported
    except KeyboardInterrupt:
        _drop_output()
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        if not (_has_no_reader(sys.stdout) or _has_no_reader(sys.stderr)):
            raise  # not our output: a fault in the command
        _drop_output()
        return EXIT_BROKEN_PIPE
    except ImportError as error:
        if not _is_dependency(error):
            if subcommand == "connect":
                _say("cannot connect: a fault of zmqbus itself (ImportError: {})".format(error))
            raise
        return _report_missing(subcommand, error)
    except Exception as error:
        if subcommand == "connect":
            _say("cannot connect: a fault of zmqbus itself ({}: {})".format(type(error).__name__, error))
        raise


def _call(command: str, argv: "list[str]") -> int:
    import gc
    from importlib import import_module

    try:
        collects = gc.isenabled()
        gc.disable()
        try:
            module = import_module("zmqbus.cli." + command)
        finally:
            if collects:
                gc.enable()
        return int(module.main(argv) or 0)
    except SystemExit as end:  # argparse, after --help and usage errors; caught so that the output is flushed here
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        _complain(str(end.code))
        return 1


def _is_dependency(error: ImportError) -> bool:
    name = error.name or ""
    if isinstance(error, ModuleNotFoundError):
        # Exactly: a module that is missing inside a package that is there is a wrong import, not a missing package.
        return name in _DEPENDENCIES
    # There, but it cannot be loaded, as after a change of the system's libraries: the same cure.
    return name.partition(".")[0] in _DEPENDENCIES


def _report_missing(subcommand: str, error: ImportError) -> int:
    missing = _MISSING.format(wording.command("install-deps"))
    if subcommand == "connect":
        _say(missing)
        return 0
    _complain("error: not_installed: {} ({})".format(missing, error))
    return 1


def _report_output(failed: streams.OutputFailed) -> int:
    """Says that the output could not be written; returns the exit status. Nothing is said of a reader that has gone,
    unless the command has done something that it could not tell."""
    reason = failed.reason.strerror or failed.reason
    if failed.done:
        _complain(
            "error: output: this was carried out and need not be repeated, but could not be printed ({}): {}".format(
                reason, failed.done
            )
        )
    elif not failed.closed_pipe:
        _complain("error: output: {}; {}".format(failed, failed.hint))
    return EXIT_BROKEN_PIPE if failed.closed_pipe else EXIT_OUTPUT


def _complain(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _drop_output() -> None:
    """Writes out what is kept, as far as anybody takes it: left to the end, python would show a traceback."""
    try:
        sys.stdout.flush()
    except (streams.OutputFailed, OSError, ValueError):
        pass


def _has_no_reader(stream: "object") -> bool:
    import select  # only for these rare ends

    poller = select.poll()
    try:
        poller.register(stream.fileno(), 0)  # type: ignore[attr-defined]
    except (OSError, ValueError, AttributeError):  # closed, none at all, or nothing with a file under it
        return False
    # Nothing is asked for: errors and hang-ups are always told.
    return bool(poller.poll(0))


def _order_path(packages: str = "") -> None:
    """Puts the standard library first, then `packages` (of the venv), then where this package is, then the rest. What
    PYTHONPATH names by a relative path is dropped."""
    library = os.path.dirname(os.__file__)
    own = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    relative = _relative_entries() - {own}
    standard, rest = [], []
    for entry in sys.path:
        if not os.path.isabs(entry) or entry in relative:  # guards: import path [or entry in relative =>]
            continue
        # Its directory, the one of its extension modules, and the archive that python looks into before both.
        if entry in (library, os.path.join(library, "lib-dynload")) or (
            entry.endswith(".zip") and os.path.dirname(entry) == os.path.dirname(library)
        ):
            standard.append(entry)
        elif entry not in (packages, own):
            rest.append(entry)
    # guards: import path [standard => rest + standard]
    sys.path[:] = standard + ([packages] if packages else []) + [own] + rest


def _relative_entries() -> "set[str]":
    """What python has made of the relative entries of PYTHONPATH."""
    given = os.environ.get("PYTHONPATH", "")
    try:
        return {os.path.abspath(part) for part in given.split(os.pathsep) if given and not os.path.isabs(part)}
    except OSError:  # there is no current directory
        return set()


def _use_venv(argv: "list[str]") -> None:
    """Makes the packages of `<data dir>/venv` importable, if it is complete; or becomes its python."""
    # Taken out of the environment: our children start afresh.
    changed_over = os.environ.pop(REEXEC_VARIABLE, "") == str(os.getpid())
    data_dir = find_data_dir()
    venv = os.path.join(data_dir, "venv")
    if not os.path.exists(os.path.join(venv, VENV_MARKER)) or _is_switched_off() or not _is_trusted(data_dir, venv):
        return
    packages = site_packages(venv)
    if packages and _is_same_python(venv):
        _order_path(packages)
        return
    python = os.path.join(venv, "bin", "python")
    if changed_over or not os.access(python, os.X_OK):
        if packages:  # its own python, of an implementation that `_is_same_python` does not know
            _order_path(packages)
        return
    os.environ[REEXEC_VARIABLE] = str(os.getpid())
    try:
        os.execv(python, [python, os.path.abspath(sys.argv[0]), *argv])
    except OSError:  # for another machine, or its interpreter was removed: go on without it
        del os.environ[REEXEC_VARIABLE]


def find_data_dir() -> str:
    """The data directory, as `zmqbus.settings` finds it.

    What it says in the usual cases is repeated here, because importing it takes 5 ms, which are for nothing where this
    process becomes another python. The rare rest is left to it, and a test compares the two.
    """
    given = os.environ.get(DATA_DIR_VARIABLE, "")
    if not given.strip():
        given = DEFAULT_DATA_DIR
    if given.startswith("~/"):
        given = os.path.join(os.environ.get("HOME", ""), given[2:].lstrip("/"))
    if os.path.isabs(given):
        return os.path.abspath(given)
    if sys.version_info[:2] < OLDEST_PYTHON:
        return os.path.abspath(os.path.expanduser(given))  # it could not read the settings
    from zmqbus import settings

    return settings.load(warn=_ignore).data_dir


def _is_switched_off() -> bool:
    if not os.environ.get(NO_REEXEC_VARIABLE, "").strip():
        return False
    if sys.version_info[:2] < OLDEST_PYTHON:
        return True  # it could not read the settings
    from zmqbus import settings

    return settings.load(warn=_ignore).no_reexec


def _ignore(warning: str) -> None:
    """Leaves the warnings about settings to the command, which loads them again."""


def _is_trusted(data_dir: str, venv: str) -> bool:
    """Whether only this user can have put code there. Says what to do where that is not so."""
    fault = _fault_of(data_dir, venv)
    if fault:
        _complain("warning: the venv in {!r} is not used: {}".format(data_dir, fault))
    return not fault


def _fault_of(data_dir: str, venv: str) -> str:
    """Why code from this venv is not to be run, and what to do; "" where nothing speaks against it."""
    given = os.environ.get(DATA_DIR_VARIABLE, "").strip()
    # guards: import path: never run a venv of the current directory [off]
    if given and not given.startswith("~") and not os.path.isabs(given):
        return (
            "INTER_SESSION_DATA_DIR is a relative path, and so means whatever directory this was started in; set it to "
            "an absolute one"
        )
    try:
        own = [os.lstat(data_dir), os.stat(venv), os.stat(os.path.join(venv, VENV_MARKER))]
        if any(found.st_uid != os.geteuid() for found in own) or own[0].st_mode & 0o077:
            return (
                "it belongs to another user, or is open to others; mend it: chmod 700 {!r}, or set "
                "INTER_SESSION_DATA_DIR to a directory of your own".format(data_dir)
            )
        for directory in sorted(set(_parents(data_dir)) | set(_parents(os.path.realpath(venv)))):
            found = os.stat(directory)
            # Who may write to a directory puts another one in the place of what is in it; not so where it is "sticky",
            # as /tmp is. Its owner may, too. (The last is how a container shows users that it does not know.)
            open_to_others = found.st_mode & 0o022 and not found.st_mode & 0o1000
            # guards: import path: never run a venv that others can write to [open_to_others or =>]
            if open_to_others or found.st_uid not in (os.geteuid(), 0, UNKNOWN_UID):
                return (
                    "{0!r} above it belongs to another user, or can be written to by others; mend it: chmod go-w "
                    "{0!r}, or set INTER_SESSION_DATA_DIR to a directory of your own".format(directory)
                )
    except OSError:  # removed this instant
        return "it was removed or changed at this moment; try again"
    return ""


def _parents(path: str) -> "list[str]":
    """The directories above a path, links resolved."""
    found = []
    place = os.path.realpath(path)
    while place != os.path.dirname(place):
        place = os.path.dirname(place)
        found.append(place)
    return found


def site_packages(venv: str) -> str:
    """Where packages for the running python would be in `venv`; "" where there is no such directory."""
    # A free-threaded build has a directory of its own, since its extension modules are others.
    free_threaded = "t" if "t" in getattr(sys, "abiflags", "") else ""
    name = "python{}.{}{}".format(sys.version_info[0], sys.version_info[1], free_threaded)
    path = os.path.join(venv, "lib", name, "site-packages")
    return path if os.path.isdir(path) else ""


def _is_same_python(venv: str) -> bool:
    """Whether `venv` was made by the running version (major.minor) of the same implementation."""
    if sys.implementation.name != "cpython":
        return False
    try:
        with open(os.path.join(venv, "pyvenv.cfg"), encoding="utf-8") as file:
            lines = file.read().splitlines()
    except (OSError, ValueError):
        return False
    for line in lines:
        name, _, version = (part.strip() for part in line.partition("="))
        # The venv module writes the first, uv and virtualenv the second.
        if name in ("version", "version_info"):
            return version.split(".")[:2] == [str(part) for part in sys.version_info[:2]]
    return False

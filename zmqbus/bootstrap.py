"""Start a command: find a recent interpreter and the dependencies, run the command, and end without a traceback.

The scripts in bin/ run under the first `python3` on the PATH, often before anything was installed. So this module uses
the standard library alone and is valid for python 3.6 too: an interpreter that is too old has to report that. In order:

1. `sys.path` is ordered: the standard library first, then this package, then the rest. Otherwise a directory in
   PYTHONPATH with a `typing.py` or another `zmq` would replace the real module. Relative entries are dropped: an empty
   one means the current directory, which is anybody's repository.
2. `<data dir>/venv`, which install-deps makes, is used if it is complete. Made by the same version of python, it is put
   on `sys.path` after the standard library and before all other packages, which costs nothing; a second start of the
   interpreter would cost 10 to 20 ms. Its .pth files are not read, since none of the three dependencies has one. Made
   by another version, its extension modules would not load here, so its own python replaces this process. A venv that
   is broken, incomplete or gone is ignored: the dependencies may be installed elsewhere, and step 4 reports when they
   are not. Code is loaded only from a data directory that belongs to this user and is open to nobody else (0700), below
   directories that nobody else can write to; and never from a path relative to the current directory, which may be
   anybody's repository.
3. Python older than 3.10, and no venv with a newer one: one line on stderr, exit status 1.
4. The command's module is imported and runs. If a dependency is missing, the listener reports that on stdout, which the
   agent reads, and exits with 0, because for a monitor that is no failure; all other commands fail. Garbage collection
   is off during the import: imported objects stay anyway.
5. Ctrl-C and an output that cannot be written (`streams`: a reader that has gone, a full disk, a stream that was closed
   from the start) end the command without a traceback. Any other exception is a bug and is shown in full; the listener
   prints a line on stdout as well.
6. A command that is done and has closed everything exits at once: the interpreter would take 4 to 8 ms to shut down.
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

#: The uid that stands for users without an id in a container (/proc/sys/kernel/overflowuid).
UNKNOWN_UID = 65534

#: The file that completes a venv: without it, an install was interrupted.
VENV_MARKER = "zmqbus-installed"

#: The pid of a process that has become the venv's python, so that it does not do so twice. A pid, because children
#: inherit the variable and have to decide for themselves.
REEXEC_VARIABLE = "INTER_SESSION_REEXEC_PID"

#: Exit statuses of shells for a command ended by SIGINT and by SIGPIPE,
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141
#: and ours, for an output that cannot be written for another reason.
EXIT_OUTPUT = 1

_DEPENDENCIES = ("zmq", "msgpack", "psutil")
_MISSING = "dependencies missing \u2014 run {}"
MISSING = _MISSING.format("/inter-session install-deps")
#: This command replaces the venv, so it must not use it.
_WITHOUT_VENV = ("install_deps",)
#: Commands without threads, children or open files when they return: their connections are closed, their context is
#: terminated (`client.transport`), and the output is flushed.
_DONE_WHEN_THEY_RETURN = ("send", "broadcast", "list", "status", "inbox", "rename", "disconnect", "hook", "approve")


def main(command: str) -> None:
    """Entry point of the scripts in bin/: runs the command with this process's arguments and ends the process."""
    argv = sys.argv[1:]
    status = run(command, argv)
    _leave(command, argv, status)
    sys.exit(status)


def run(command: str, argv: "list[str]") -> int:
    """Runs `zmqbus.cli.<command>.main(argv)` on the right python with the dependencies; returns the exit status.

    May not return: the process may become the python of the venv and start the same script again.
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
    """Entry point of the installed `zmqbus` command, whose own environment has the dependencies: uses no venv."""
    streams.install()
    _order_path()
    argv = sys.argv[1:]
    status = _run_command("main", _subcommand("main", argv), argv)
    _leave("main", argv, status)
    return status


def module() -> None:
    """Entry point of `python -m zmqbus`: like `console` if this python has the dependencies, else with the venv."""
    from importlib.util import find_spec

    if all(find_spec(name) for name in _DEPENDENCIES):
        sys.exit(console())
    main("main")


def _leave(command: str, argv: "list[str]", status: int) -> None:
    """Exits at once if the command has nothing left to clean up; otherwise returns."""
    # Not under a debugger or a profiler, which need the normal exit.
    if _subcommand(command, argv) in _DONE_WHEN_THEY_RETURN and sys.gettrace() is None and sys.getprofile() is None:
        sys.stderr.flush()
        os._exit(status)


def _refuse_old_python(subcommand: str) -> int:
    needs = "zmqbus needs python {}.{} or newer, and {} is {}".format(
        OLDEST_PYTHON[0], OLDEST_PYTHON[1], sys.executable or "this", sys.version.split()[0]
    )
    script = sys.argv[0] or "<script>"
    if subcommand == "approve":
        return 0  # the user is asked
    if subcommand == "hook":
        _tell_at_start(
            "cannot work: {}; with a newer one, run {} once: its venv is used from then on".format(
                needs, os.path.join(os.path.dirname(os.path.abspath(script)), "install_deps.py")
            )
        )
        return 0  # a hook never makes its session fail
    if subcommand == "connect":
        _say("cannot connect: {}; run it with a newer one, for example: python3.12 {}".format(needs, script))
    else:
        _complain("error: {}; run it with a newer one, for example: python3.12 {}".format(needs, script))
    return 1


def _tell_at_start(text: str) -> None:
    """Prints the message of a hook at the start of a session; nothing at other events."""
    import json

    try:
        event = json.loads(sys.stdin.read())
        if event.get("hook_event_name") == "SessionStart":
            context = {"hookEventName": "SessionStart", "additionalContext": "[inter-session] " + text}
            print(json.dumps({"hookSpecificOutput": context}), flush=True)
    except (AttributeError, OSError, RuntimeError, ValueError, streams.OutputFailed):  # no event, or no reader
        pass


def _say(text: str) -> None:
    """Prints a line of the listener on standard output, which is all that an agent sees of it."""
    try:
        print("[inter-session] " + text, flush=True)
    except streams.OutputFailed as failed:
        _report_output(failed)


def _subcommand(command: str, argv: "list[str]") -> str:
    """The module of `zmqbus <subcommand>`; the command itself for scripts with only one command."""
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
        refused = streams.failure()  # raised once already, but caught, as argparse does
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
            raise  # not our output: a bug in the command
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
    except SystemExit as end:  # argparse, after --help and usage errors; the caller flushes the output
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        _complain(str(end.code))
        return 1


def _is_dependency(error: ImportError) -> bool:
    name = error.name or ""
    if isinstance(error, ModuleNotFoundError):
        # Exactly: a missing module inside an installed package is a wrong import, not a missing package.
        return name in _DEPENDENCIES
    # Installed, but it cannot be loaded, as after a change of the system's libraries: the same remedy.
    return name.partition(".")[0] in _DEPENDENCIES


def _report_missing(subcommand: str, error: ImportError) -> int:
    missing = _MISSING.format(wording.command("install-deps"))
    if subcommand == "connect":
        _say(missing)
        return 0
    _complain("error: not_installed: {} ({})".format(missing, error))
    return 1


def _report_output(failed: streams.OutputFailed) -> int:
    """Reports on stderr that the output could not be written; returns the exit status.

    Prints nothing about a reader that has gone, unless the command could not print what it had done.
    """
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
    """Flushes standard output as far as possible: at the exit, python would show a traceback."""
    try:
        sys.stdout.flush()
    except (streams.OutputFailed, OSError, ValueError):
        pass


def _has_no_reader(stream: "object") -> bool:
    import select  # imported only for this rare case

    poller = select.poll()
    try:
        poller.register(stream.fileno(), 0)  # type: ignore[attr-defined]
    except (OSError, ValueError, AttributeError):  # closed, missing, or without a descriptor
        return False
    # With no events requested, poll reports errors and hang-ups.
    return bool(poller.poll(0))


def _order_path(packages: str = "") -> None:
    """Orders `sys.path`: the standard library, `packages` (of the venv), the directory of this package, the rest.

    Drops the relative entries of PYTHONPATH.
    """
    library = os.path.dirname(os.__file__)
    own = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    relative = _relative_entries() - {own}
    standard, rest = [], []
    for entry in sys.path:
        if not os.path.isabs(entry) or entry in relative:  # guards: import path [or entry in relative =>]
            continue
        # Its directory, the directory of its extension modules, and the archive that python searches before both.
        if entry in (library, os.path.join(library, "lib-dynload")) or (
            entry.endswith(".zip") and os.path.dirname(entry) == os.path.dirname(library)
        ):
            standard.append(entry)
        elif entry not in (packages, own):
            rest.append(entry)
    # guards: import path [standard => rest + standard]
    sys.path[:] = standard + ([packages] if packages else []) + [own] + rest


def _relative_entries() -> "set[str]":
    """The absolute paths that python has made of the relative entries of PYTHONPATH."""
    given = os.environ.get("PYTHONPATH", "")
    try:
        return {os.path.abspath(part) for part in given.split(os.pathsep) if given and not os.path.isabs(part)}
    except OSError:  # there is no current directory
        return set()


def _use_venv(argv: "list[str]") -> None:
    """Makes the packages of `<data dir>/venv` importable if it is complete; or becomes its python."""
    # Removed from the environment, so that children decide for themselves.
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
        if packages:  # this is its own python, of an implementation that `_is_same_python` does not know
            _order_path(packages)
        return
    os.environ[REEXEC_VARIABLE] = str(os.getpid())
    try:
        os.execv(python, [python, os.path.abspath(sys.argv[0]), *argv])
    except OSError:  # for another machine, or its interpreter was removed: continue without it
        del os.environ[REEXEC_VARIABLE]


def find_data_dir() -> str:
    """The data directory, as `zmqbus.settings` finds it.

    Repeats the rules for the usual cases, because importing that module takes 5 ms, which are lost if this process
    becomes another python. Leaves rare cases to it; a test compares the two.
    """
    given = os.environ.get(DATA_DIR_VARIABLE, "")
    if not given.strip():
        given = DEFAULT_DATA_DIR
    if given.startswith("~/"):
        given = os.path.join(os.environ.get("HOME", ""), given[2:].lstrip("/"))
    if os.path.isabs(given):
        return os.path.abspath(given)
    if sys.version_info[:2] < OLDEST_PYTHON:
        return os.path.abspath(os.path.expanduser(given))  # this python cannot load the settings
    from zmqbus import settings

    return settings.load(warn=_ignore).data_dir


def _is_switched_off() -> bool:
    if not os.environ.get(NO_REEXEC_VARIABLE, "").strip():
        return False
    if sys.version_info[:2] < OLDEST_PYTHON:
        return True  # this python cannot load the settings
    from zmqbus import settings

    return settings.load(warn=_ignore).no_reexec


def _ignore(warning: str) -> None:
    """Drops a warning about a setting: the command loads the settings again and prints it."""


def _is_trusted(data_dir: str, venv: str) -> bool:
    """Whether only this user can have put code there. Otherwise prints a warning with the remedy."""
    fault = _fault_of(data_dir, venv)
    if fault:
        _complain("warning: the venv in {!r} is not used: {}".format(data_dir, fault))
    return not fault


def _fault_of(data_dir: str, venv: str) -> str:
    """Why code from this venv must not be run, and what to do; "" if it may."""
    given = os.environ.get(DATA_DIR_VARIABLE, "").strip()
    # guards: import path: never run a venv of the current directory [off]
    if given and not given.startswith("~") and not os.path.isabs(given):
        return "INTER_SESSION_DATA_DIR is relative, so it depends on the current directory; set it to an absolute path"
    try:
        own = [os.lstat(data_dir), os.stat(venv), os.stat(os.path.join(venv, VENV_MARKER))]
        if any(found.st_uid != os.geteuid() for found in own) or own[0].st_mode & 0o077:
            return (
                "it belongs to another user, or is open to others; run: chmod 700 {!r}, or set "
                "INTER_SESSION_DATA_DIR to a directory of your own".format(data_dir)
            )
        for directory in sorted(set(_parents(data_dir)) | set(_parents(os.path.realpath(venv)))):
            found = os.stat(directory)
            # Anyone who may write to a directory can exchange its entries, unless it is "sticky" like /tmp; so can its
            # owner. (UNKNOWN_UID is how a container shows users without an id in it.)
            open_to_others = found.st_mode & 0o022 and not found.st_mode & 0o1000
            # guards: import path: never run a venv that others can write to [open_to_others or =>]
            if open_to_others or found.st_uid not in (os.geteuid(), 0, UNKNOWN_UID):
                return (
                    "{0!r} above it belongs to another user, or can be written to by others; run: chmod go-w "
                    "{0!r}, or set INTER_SESSION_DATA_DIR to a directory of your own".format(directory)
                )
    except OSError:  # removed at this moment
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
    """The directory in `venv` with packages for the running python; "" if there is none."""
    # A free-threaded build has a directory of its own, since its extension modules differ.
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

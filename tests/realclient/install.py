"""Installs Claude Code at one named release into a cache outside the tree, or says why it cannot.

`python -m tests.realclient.install` is for CI; the fixture `program` calls `installed`. The cache is
`~/.cache/zmqbus-tests`, or ZMQBUS_CLIENT_CACHE; ZMQBUS_CLIENT_VERSION names another release, or `latest`.
"""

from __future__ import annotations

import fcntl
import os
import platform
import pwd
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PACKAGE = "@anthropic-ai/claude-code"
#: The release that the suite was measured with.
VERSION = "2.1.332"

#: For downloading some 100 MB, s.
INSTALL_TIMEOUT_S = 240.0
#: For `claude --version` on a busy machine, s.
START_TIMEOUT_S = 90.0
#: Without these, npm retries for a minute when there is no network.
PATIENCE = ("--fetch-retries=1", "--fetch-retry-mintimeout=1000", "--fetch-retry-maxtimeout=2000")
#: The variables for reaching the registry, in lower case.
WAYS = {f"npm_config_{name}" for name in ("registry", "cafile", "proxy", "https_proxy", "noproxy")}
WAYS |= {"http_proxy", "https_proxy", "no_proxy", "node_extra_ca_certs", "ssl_cert_file"}


class Unavailable(Exception):
    """The client cannot be had here. Its text says why."""


def version() -> str:
    """The release of the client to test with."""
    return os.environ.get("ZMQBUS_CLIENT_VERSION") or VERSION


def cache() -> Path:
    """The directory that holds each installed release. HOME does not matter: the tests replace it."""
    given = os.environ.get("ZMQBUS_CLIENT_CACHE")
    return Path(given) if given else Path(pwd.getpwuid(os.getuid()).pw_dir, ".cache", "zmqbus-tests")


def installed() -> Path:
    """The client's program, installed if it is not in the cache yet. Raises `Unavailable`.

    Processes that call this at the same time install once. `latest` is asked of the registry each time.
    """
    place = cache() / f"claude-code-{version()}"
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with open(place.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if version() != "latest" and (found := _program(place)):
                return found
            _install(place)
    except OSError as error:
        raise Unavailable(f"the cache cannot be used: {error}") from error
    if found := _program(place):
        return found
    raise Unavailable(f"{PACKAGE} {version()} does not run on this machine")


def _install(place: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise Unavailable("there is no npm here, which the client is installed with")
    with tempfile.TemporaryDirectory() as home:
        env = {name: value for name, value in os.environ.items() if name.lower() in WAYS}
        env |= {"PATH": os.environ["PATH"], "HOME": home}
        command = [npm, "install", "--no-audit", "--no-fund", *PATIENCE, "--prefix", str(place)]
        place.mkdir(exist_ok=True)
        try:
            done = subprocess.run(
                [*command, f"{PACKAGE}@{version()}"],
                env=env,
                cwd=place,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                encoding="utf-8",
                timeout=INSTALL_TIMEOUT_S,
            )
        except subprocess.TimeoutExpired:
            raise Unavailable(f"npm does not get {PACKAGE} within {INSTALL_TIMEOUT_S:g} s") from None
    if done.returncode:
        raise Unavailable(f"npm cannot get {PACKAGE}: {done.stderr.strip().partition(chr(10))[0]}")


def _program(place: Path) -> Path | None:
    """The program that runs: the package's own if its install script ran, else the one for this machine."""
    machine = {"x86_64": "x64", "amd64": "x64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    native = f"{PACKAGE}-{platform.system().lower()}-{machine}"
    modules = place / "node_modules"
    for path in (modules / ".bin" / "claude", modules / native / "claude"):
        if path.exists() and _runs(path):
            return path
    return None


def _runs(path: Path) -> bool:
    with tempfile.TemporaryDirectory() as home:
        try:
            done = subprocess.run(
                [path, "--version"],
                env={"PATH": os.environ["PATH"], "HOME": home, "DISABLE_AUTOUPDATER": "1"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=START_TIMEOUT_S,
            )
        except (OSError, subprocess.TimeoutExpired):
            return False
    return done.returncode == 0 and done.stdout[:1].isdigit()


if __name__ == "__main__":
    try:
        print(installed())
    except Unavailable as error:
        print(f"the tests with the real client will be skipped: {error}", file=sys.stderr)

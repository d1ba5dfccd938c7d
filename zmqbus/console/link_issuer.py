"""Hands out links to the page: printed in the terminal, on Enter as well, or opened in a browser."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import TypeAlias

from zmqbus.console.auth import LINK_S, link, mint
from zmqbus.console.peers import Peers
from zmqbus.security.private_files import replace, unlink

#: Starts a process that opens a URL in a browser; its exit status says whether it could.
Opener: TypeAlias = Callable[[str], "subprocess.Popen[bytes]"]

#: How long to wait for the opener's exit status, and how often to check. A browser in the foreground does not exit.
OPENING_S, OPENING_CHECK_S = 15.0, 0.1
#: Pause before checking again whether this process is in the terminal's foreground; only then input is for it.
BACKGROUND_S = 1.0

NO_BROWSER = "No browser could be started here; open the link in one."


class LinkIssuer:
    """Makes the links of one console."""

    def __init__(self, data_dir: str, authority: str, secret: bytes, peers: Peers) -> None:
        """`authority`: host name and port of the page. `secret`: of the console's lock file."""
        self._authority = authority
        self._secret = secret
        self._peers = peers
        self._redirect_file = os.path.join(data_dir, f"console.{authority.rpartition(':')[2]}.html")

    def new_link(self, *, same_user: bool = False) -> str:
        """Makes a link; `same_user`: valid only on this user's connections."""
        return link(self._authority, mint(self._secret, time.time(), same_user=same_user))

    @contextlib.contextmanager
    def in_terminal(self, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        """Prints a link, and within the block another for each line typed in the terminal."""
        print_line(self.new_link())
        with _lines_typed(loop, lambda: print_line(self.new_link())) as has_terminal:
            more = "Enter prints another; Ctrl-C ends the console."
            if not has_terminal:
                more = "Another: zmqbus console --link"
            print_line(f"The link is good for one use, within {LINK_S // 60} minutes. {more}")
            yield

    async def in_browser(self, open_in: Opener) -> None:
        """Opens the page in a browser. The browser gets the URL as an argument, which every user of the machine can
        read in the list of processes.

        So the URL is a link that only works for this user's connections, if the kernel says whose they are (`peers`).
        Otherwise it names a file that only this user can read and that redirects to the link. A sandboxed browser
        (snap) cannot read that file, but systems with such browsers have `peers`.
        """
        by_link = self._peers.works()
        url = self.new_link(same_user=True) if by_link else self._write_redirect()
        try:
            opener = open_in(url)
        except OSError:
            print_line(NO_BROWSER)
            return
        # Do not wait for its end: a browser may run until the user closes it.
        end_s = time.monotonic() + OPENING_S
        while opener.poll() is None and time.monotonic() < end_s:
            await asyncio.sleep(OPENING_CHECK_S)
        if opener.returncode:
            print_line(NO_BROWSER)
        elif not by_link:
            print_line("If the browser cannot read the file, open the link in it.")

    def close(self) -> None:
        """Removes the redirecting file, if there is one."""
        unlink(self._redirect_file)

    def _write_redirect(self) -> str:
        """Writes the file that redirects to a new link; returns its URL."""
        refresh = f"0; url={self.new_link()}"
        page = f'<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="{refresh}">'
        replace(self._redirect_file, page.encode())
        return f"file://{self._redirect_file}"


@contextlib.contextmanager
def _lines_typed(loop: asyncio.AbstractEventLoop, on_line: Callable[[], None]) -> Iterator[bool]:
    """Calls `on_line` for each line typed in the terminal; yields whether there is a terminal."""
    try:
        terminal = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else -1
    except (OSError, ValueError):  # closed
        terminal = -1
    if terminal < 0:
        yield False
        return

    def read_line() -> None:
        if not _in_foreground(terminal):
            loop.remove_reader(terminal)
            loop.call_later(BACKGROUND_S, loop.add_reader, terminal, read_line)
        elif _read(terminal):
            on_line()
        else:
            loop.remove_reader(terminal)  # the terminal was closed

    loop.add_reader(terminal, read_line)
    try:
        yield True
    finally:
        loop.remove_reader(terminal)


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:
        return b""


def _in_foreground(terminal: int) -> bool:
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False


def print_line(text: str) -> None:
    """Prints a line in the terminal; does nothing when standard output was closed, for the page still works."""
    try:
        print(text, flush=True)
    except (OSError, ValueError):
        return

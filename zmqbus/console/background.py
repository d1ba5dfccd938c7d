"""Background work of the console: threads that work only while a page is open."""

from __future__ import annotations

import threading


class BackgroundTask:
    """A thread that repeats `_work` while at least one page is open.

    Subclasses say when there is work, do one round of it, and release what they hold when the last page has closed.
    """

    def __init__(self, name: str) -> None:
        """`name`: of the thread."""
        self._changed = threading.Condition()
        # Guarded by the condition's lock.
        self._pages = 0
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=name)

    @property
    def is_running(self) -> bool:
        """Whether the thread has been started and has not ended."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Starts the thread, which sleeps until there is work."""
        self._thread.start()

    def close(self) -> None:
        """Ends the thread and waits for it. Idempotent."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    def set_pages(self, count: int) -> None:
        """Sets how many pages are open."""
        with self._changed:
            self._pages = count
            self._changed.notify_all()

    def _has_work(self) -> bool:
        """Whether to start a round. Called with the lock held."""
        return self._pages > 0

    def _must_hurry(self) -> bool:
        """Whether to end the pause between two rounds early. Called with the lock held."""
        return False

    def _work(self) -> float:
        """Does one round; returns how long to pause before the next, in seconds."""
        raise NotImplementedError

    def _release(self) -> None:
        """Releases files and connections; the next round opens them again."""
        raise NotImplementedError

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                pause_s = self._work()
                self._pause(pause_s)
        finally:
            self._release()

    def _wait_for_work(self) -> bool:
        """Waits until there is work; False once closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._has_work())
            return not self._closed

    def _pause(self, pause_s: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._must_hurry(), pause_s)
            if not self._pages:
                self._release()

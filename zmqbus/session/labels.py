"""Labels of projects, remembered from one session to the next.

One file, `clients/labels.json`, maps a project's path to its label. It is replaced as a whole, so a reader sees the old
file or the new one; a writer holds `labels.lock`, so that of two simultaneous changes neither is lost. A label that is
damaged or no longer valid counts as none.
"""

from __future__ import annotations

import fcntl
import json
import os

from zmqbus.errors import InvalidLabel
from zmqbus.security.private_files import file_error, load_json, open_file, replace, secure_dir
from zmqbus.settings import Paths
from zmqbus.wire.naming import check_label

#: Labels that are remembered; the least recently used are dropped.
MAX_LABELS = 1000
#: Room for a thousand labels with the paths of their projects.
MAX_LABELS_BYTES = 8 * 1024 * 1024


def load_label(data_dir: str, project: str) -> str | None:
    """The remembered label of a project, or None. Raises `Unauthorized` where others could have written it."""
    label = _load_labels(data_dir).get(project)
    if label is None:
        return None
    try:
        return check_label(label) or None
    except InvalidLabel:  # edited by hand, or by a release with another rule
        return None


def remember_label(data_dir: str, project: str, label: str | None) -> None:
    """Remembers the label of a project; None or "" removes it. Safe against simultaneous calls in other processes.

    Raises `Unauthorized` where the file is not private, `NotConnected` where it cannot be written.
    """
    paths = Paths(data_dir)
    secure_dir(data_dir)
    secure_dir(paths.clients)
    path = os.path.join(paths.clients, "labels.lock")
    fd = open_file(path, os.O_RDWR | os.O_CREAT)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)  # waits: it is held for one small read and write
        except OSError as error:
            raise file_error("lock", path, error) from error
        labels = _load_labels(data_dir)
        before = list(labels.items())
        labels.pop(project, None)
        if label:
            labels[project] = label  # at the end: the least recently used come first
        for oldest in list(labels)[:-MAX_LABELS]:
            del labels[oldest]
        if list(labels.items()) != before:
            replace(paths.labels, json.dumps(labels, indent=0).encode())
    finally:
        os.close(fd)


def _load_labels(data_dir: str) -> dict[str, str]:
    record = load_json(Paths(data_dir).labels, MAX_LABELS_BYTES)
    if not isinstance(record, dict):
        return {}
    return {project: label for project, label in record.items() if isinstance(label, str)}

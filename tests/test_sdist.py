"""The sdist: it holds every file of the repository, builds the wheel, and its tests can be collected."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT_S = 180.0
#: Made by the build, or by working in the checkout.
GENERATED = ("PKG-INFO", "setup.cfg", "zmqbus.egg-info/")
IGNORED = shutil.ignore_patterns(
    ".git", ".venv*", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis", "build", "dist"
)

pytestmark = pytest.mark.slow


def run(command: list[str], directory: Path) -> str:
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stdout[-4_000:] + done.stderr[-4_000:]
    return done.stdout


def build(kind: str, source: Path, target: Path) -> Path:
    """Builds an sdist or a wheel without a package index, and returns its path."""
    script = f"import sys; from setuptools import build_meta; print(build_meta.build_{kind}(sys.argv[1]))"
    return target / run([sys.executable, "-c", script, str(target)], source).splitlines()[-1]


def files_below(directory: Path) -> Iterator[str]:
    """Yields the relative paths of all files and links, without following links."""
    for parent, directories, files in os.walk(directory):
        directories.sort()
        links = [name for name in directories if os.path.islink(os.path.join(parent, name))]
        yield from (str(Path(parent, name).relative_to(directory)) for name in sorted([*files, *links]))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what git tracks, or of this directory where it is an unpacked sdist."""
    copy = tmp_path_factory.mktemp("sdist") / "source"
    if not (ROOT / ".git").exists():
        shutil.copytree(ROOT, copy, symlinks=True, ignore=IGNORED)
        for name in GENERATED[:2]:
            (copy / name).unlink()
        return copy
    for name in filter(None, run(["git", "ls-files", "-z"], ROOT).split("\0")):
        if os.path.lexists(ROOT / name):  # not deleted since the last commit
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name, follow_symlinks=False)
    return copy


@pytest.fixture(scope="module")
def expected(source: Path) -> list[str]:
    return list(files_below(source))


@pytest.fixture(scope="module")
def unpacked(source: Path, expected: list[str]) -> Path:
    """The root of an unpacked sdist. `expected` is listed before the build adds files to the source."""
    target = source.parent / "built"
    target.mkdir()
    with tarfile.open(build("sdist", source, target)) as archive:
        archive.extractall(target, filter="data")
    return next(path for path in target.iterdir() if path.is_dir())


def test_sdist_holds_every_file_of_the_repository(expected: list[str], unpacked: Path) -> None:
    found = [name for name in files_below(unpacked) if not name.startswith(GENERATED)]
    assert sorted(found) == sorted(expected)


def test_sdist_keeps_the_links_of_the_plugin(unpacked: Path) -> None:
    for place in ("plugin", "plugin/skills/inter-session"):
        for name in ("bin", "zmqbus", "requirements.txt"):
            link = unpacked / place / name
            assert link.is_symlink()
            assert link.resolve() == (unpacked / name).resolve()


def test_wheel_built_from_the_sdist_holds_the_package_alone(unpacked: Path) -> None:
    with zipfile.ZipFile(build("wheel", unpacked, unpacked.parent)) as wheel:
        names = [name for name in wheel.namelist() if ".dist-info/" not in name]
    package = [f"zmqbus/{name}" for name in files_below(unpacked / "zmqbus")]
    assert sorted(names) == sorted(package)


def test_quick_tests_are_collected_in_the_unpacked_sdist(unpacked: Path) -> None:
    options = ["--collect-only", "-q", "-m", "not slow", "-p", "no:cacheprovider", "-p", "no:xdist"]
    command = [sys.executable, "-m", "pytest", *options]
    assert "error" not in run(command, unpacked).splitlines()[-1]

"""The digest and the comparison, whichever module of this python they come from."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from zmqbus.security import digest


@pytest.mark.parametrize("text", [b"", b"abc", bytes(range(256)) * 41])
def test_the_digest_is_that_of_hashlib(text):
    assert digest.sha256(text).hexdigest() == hashlib.sha256(text).hexdigest()
    assert digest.sha256(text).digest() == hashlib.sha256(text).digest()


def test_the_digest_of_the_standard():
    """FIPS 180-4: the example of one block."""
    assert digest.sha256(b"abc").hexdigest().startswith("ba7816bf8f01cfea414140de5dae2223")


@pytest.mark.parametrize(
    ("one", "other", "same"), [("ab", "ab", True), ("ab", "ac", False), ("ab", "abc", False), ("", "", True)]
)
def test_secrets_are_compared(one, other, same):
    assert digest.compare_digest(one, other) is same


def test_a_python_without_its_own_digest_uses_hashlib():
    """A name that `sys.modules` maps to None cannot be imported."""
    lacking = "import sys; sys.modules.update(dict.fromkeys(('_sha2', '_sha256', '_operator')));"
    # hashlib and hmac themselves come first: parts of the standard library want what is taken away.
    program = (
        f"import hashlib, hmac; {lacking} from zmqbus.security import digest as d; print(d.sha256 is hashlib.sha256)"
    )
    result = subprocess.run(
        [
            sys.executable,
            "-c",
            program + "; print(d.compare_digest is hmac.compare_digest, d.compare_digest('a', 'a'))",
        ],
        env={**os.environ, "PYTHONPATH": str(Path(digest.__file__).parents[2])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.split() == ["True", "True", "True"]

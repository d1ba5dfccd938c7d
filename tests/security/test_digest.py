"""SHA-256 from whichever module of this python has it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from zmqbus.security import digest


@pytest.mark.parametrize("text", [b"", b"abc", bytes(range(256)) * 41])
def test_digest_equals_that_of_hashlib(text: bytes) -> None:
    assert digest.sha256(text).hexdigest() == hashlib.sha256(text).hexdigest()
    assert digest.sha256(text).digest() == hashlib.sha256(text).digest()


@pytest.mark.parametrize(
    ("lacking", "expected"), [((), "False"), (("_sha2", "_sha256"), "True")], ids=["its own", "hashlib"]
)
def test_openssl_is_loaded_only_without_a_digest_of_its_own(lacking: tuple[str, ...], expected: str) -> None:
    """The private modules exist on every supported CPython; `sys.modules` maps a name to None to hide it."""
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({lacking!r})); from zmqbus.security.digest import sha256;"
        "print('_hashlib' in sys.modules, sha256(b'abc').hexdigest()[:8])"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(digest.__file__).parents[2])}
    result = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
    assert result.stdout.split() == [expected, "ba7816bf"]

"""SHA-256 and the comparison of secrets, without OpenSSL.

`hashlib` and `hmac` load libcrypto, 4 MB of which stay resident in the broker, for a digest a session. Python has a
SHA-256 of its own, for where there is no OpenSSL; its module's name has changed once (3.12), and a build may be without
it. So both names are tried, as the standard library's `random` does for SHA-512, and then `hashlib` does it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hashlib import sha256
    from hmac import compare_digest
else:
    try:
        from _sha2 import sha256
    except ImportError:
        try:
            from _sha256 import sha256  # python 3.10 and 3.11
        except ImportError:
            from hashlib import sha256
    try:
        from _operator import _compare_digest as compare_digest  # what `hmac` falls back on itself
    except ImportError:
        from hmac import compare_digest

__all__ = ["compare_digest", "sha256"]

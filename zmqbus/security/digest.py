"""SHA-256 without OpenSSL.

`hashlib` loads libcrypto. For a digest or two that costs each command 3.4 ms of processor time (`send`, medians of 25
interleaved runs: 60.0 ms without it, 63.4 ms with it; 1.28 and 1.34 times `python -c "import zmq, msgpack"`, where 1.3
is the bound) and the broker 3.8 MB that stay resident. CPython has a SHA-256 of its own, in a private module whose name
changed in 3.12, and a build may lack it. So both names are tried, as `random` does for SHA-512, then `hashlib`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hashlib import sha256
else:
    try:
        from _sha2 import sha256
    except ImportError:
        try:
            from _sha256 import sha256  # python 3.10 and 3.11
        except ImportError:
            from hashlib import sha256

__all__ = ["sha256"]

"""The CURVE keys of a data directory: made once, read, and put on a client's socket.

The user is the unit of trust: any process of the user may use the bus, and nobody else may connect to it, read it or
pose as the broker. The broker has one pair of keys, and all clients of the user share another. A client knows the
broker's public key, so no other program on the port can pass for the broker; and the broker lets in only the clients'
public key (`zap`). `private_files` keeps the key files from other users.

*Keys are made once.* Thirty processes may start on an empty data directory. Each that finds no keys makes a whole set
in a directory of its own and renames that into place. Renaming onto a directory that is not empty fails, so there is
one winner, and the losers use its set. No reader ever sees half a set; a damaged set is therefore an error, and not
replaced: a running broker would keep the old one and shut out every client with new keys.

Every command imports this module, so it imports nothing costly, zmq included, before a function needs it. The files
have the format of `zmq.auth`, two lines; they are written and read here because that package imports logging and
asyncio (5 ms, and 1 MB).
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

from zmqbus.errors import BrokerUnavailable, Unauthorized
from zmqbus.security.private_files import DIR_MODE, check_private_dir, open_private, secure_dir, shell_quoted
from zmqbus.settings import Paths
from zmqbus.tuples import NamedTuple

if TYPE_CHECKING:
    import zmq

#: A key is 32 bytes, in Z85: 5 characters for every 4 bytes.
KEY_CHARS = 40
#: A certificate is about 400 bytes. A larger file is something else, and not read.
MAX_CERTIFICATE_BYTES = 4096
#: A set is made in a directory with this prefix beside `keys/` and then renamed. A process that was killed may leave
#: such a directory, which nobody uses.
NEW_KEYS_PREFIX = "keys.new-"


class KeyPair(NamedTuple):
    """A public CURVE key and its secret key, in Z85 (40 bytes each)."""

    public: bytes
    secret: bytes

    def __repr__(self) -> str:
        # A repr ends up in logs.
        return f"KeyPair(public={self.public!r}, secret=…)"


class ClientKeys(NamedTuple):
    """The keys of a client, in Z85: the broker's public key and the pair that all clients of the user share."""

    server_public: bytes
    public: bytes
    secret: bytes

    def __repr__(self) -> str:
        return f"ClientKeys(server_public={self.server_public!r}, public={self.public!r}, secret=…)"


class BrokerKeys(NamedTuple):
    """The keys of the broker, in Z85: its own pair, and the public keys of the clients that it lets in."""

    public: bytes
    secret: bytes
    allowed_clients: frozenset[bytes]

    def __repr__(self) -> str:
        return f"BrokerKeys(public={self.public!r}, secret=…, allowed_clients={sorted(self.allowed_clients)!r})"


def client_keys(data_dir: str) -> ClientKeys:
    """The keys for a client of this data directory; makes the directory and the set if they are missing.

    Raises `Unauthorized` if permissions are wrong or the set is damaged, `BrokerUnavailable` if no set can be made.
    """
    directory = _key_dir(data_dir)
    own = _read_pair(directory, "client")
    return ClientKeys(_read_certificate(directory, "broker.key")[0], own.public, own.secret)


def broker_keys(data_dir: str) -> BrokerKeys:
    """The keys for the broker of this data directory; otherwise like `client_keys`.

    Reads the whole set, because only the broker can report which file does not fit the others: a client would only see
    handshakes that never end.
    """
    directory = _key_dir(data_dir)
    pairs = {who: _read_pair(directory, who) for who in ("broker", "client")}
    for who, pair in pairs.items():
        if _read_certificate(directory, f"{who}.key")[0] != pair.public:
            raise _damaged(directory, f"{who}.key", f"does not belong to {who}.key_secret")
    return BrokerKeys(*pairs["broker"], frozenset((pairs["client"].public,)))


def _key_dir(data_dir: str) -> str:
    """The directory with the keys, checked; makes it if it is missing."""
    secure_dir(data_dir)
    directory = Paths(data_dir).keys
    try:
        check_private_dir(directory)
    except FileNotFoundError:
        _make_keys(data_dir, directory)
        check_private_dir(directory)
    return directory


def _make_keys(data_dir: str, directory: str) -> None:
    try:
        new = os.path.join(data_dir, NEW_KEYS_PREFIX + os.urandom(8).hex())
        os.mkdir(new, DIR_MODE)
        try:
            os.chmod(new, DIR_MODE)
            for who in ("broker", "client"):
                _write_pair(os.path.join(new, who))
            os.rename(new, directory)
        except OSError as error:
            # Another process was faster, or something else has the name: the caller checks.
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise
        finally:
            _remove(new)
    except OSError as error:
        raise BrokerUnavailable(
            f"no keys can be made in {data_dir}: {error.strerror}; make room on its disk, or make it writable"
        ) from None


def _write_pair(path: str) -> None:
    """Writes two certificates as `zmq.auth.create_certificates` does, without the 1 MB that its imports take."""
    import zmq

    public, secret = zmq.curve_keypair()
    for suffix, kind, keys in (
        (".key", "Public", {"public": public}),
        (".key_secret", "**Secret**", {"public": public, "secret": secret}),
    ):
        lines = [f"#   ZeroMQ CURVE {kind} Certificate of zmqbus", "", "metadata", "curve"]
        lines += [f'    {name}-key = "{key.decode()}"' for name, key in keys.items()]
        with open(open_private(path + suffix, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "w", encoding="ascii") as file:
            file.write("\n".join(lines) + "\n")


def _remove(directory: str) -> None:
    """Removes a set that was not renamed into place; the doctor reports any remains."""
    try:
        for name in os.listdir(directory):
            os.unlink(os.path.join(directory, name))
        os.rmdir(directory)
    except OSError:
        pass  # mostly: it has been renamed into place


def _read_pair(directory: str, who: str) -> KeyPair:
    import zmq

    name = f"{who}.key_secret"
    public, secret = _read_certificate(directory, name)
    if secret is None:
        raise _damaged(directory, name, "holds no secret key")
    # 10 µs. Without this check, one damaged character looks like a broker that never answers.
    if zmq.curve_public(secret) != public:
        raise _damaged(directory, name, "holds two keys that do not belong together")
    return KeyPair(public, secret)


def _read_certificate(directory: str, name: str) -> tuple[bytes, bytes | None]:
    """The public key and, where there is one, the secret key of a `zmq.auth` certificate.

    Stricter than the reader of `zmq.auth` only where that accepts keys that CURVE refuses.
    """
    try:
        fd = open_private(os.path.join(directory, name), os.O_RDONLY)
    except FileNotFoundError:
        raise _damaged(directory, name, "is missing") from None
    try:
        content = os.read(fd, MAX_CERTIFICATE_BYTES + 1)
    finally:
        os.close(fd)
    if len(content) > MAX_CERTIFICATE_BYTES:
        raise _damaged(directory, name, "is not a certificate")
    keys: dict[bytes, bytes] = {}
    for line in content.splitlines():
        field, equals, value = line.strip().partition(b"=")
        field = field.rstrip()
        if equals and field in (b"public-key", b"secret-key"):
            key = value.strip(b" \t'\"")
            if not _is_key(key):
                raise _damaged(directory, name, f"holds an invalid {field.decode()}")
            keys.setdefault(field, key)
    if b"public-key" not in keys:
        raise _damaged(directory, name, "holds no public key")
    return keys[b"public-key"], keys.get(b"secret-key")


def _is_key(text: bytes) -> bool:
    from zmq.utils import z85

    if len(text) != KEY_CHARS:
        return False
    try:
        z85.decode(text)
    except Exception:  # KeyError for a character, struct.error for a group over 32 bits
        return False
    return True


def _damaged(directory: str, name: str, fault: str) -> Unauthorized:
    data_dir = os.path.dirname(directory)
    return Unauthorized(
        f"the key file {os.path.join(directory, name)} {fault}; stop the broker (its pid is in "
        f"{os.path.join(data_dir, 'server.<port>.pid')}), then run: rm -r {shell_quoted(directory)} "
        "— new keys are made at the next start"
    )


def curve_client(socket: zmq.Socket[Any], keys: ClientKeys) -> None:
    """Makes the socket a client of the broker with these keys. Call it before the socket connects."""
    # Without it, any program on the port would pass for the broker.
    socket.curve_serverkey = keys.server_public
    # Without these two, libzmq refuses to connect with CURVE; with others, the broker refuses us.
    socket.curve_publickey = keys.public
    socket.curve_secretkey = keys.secret

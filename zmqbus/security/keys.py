"""The CURVE keys of a data directory: made once, read, and put on a client's socket.

The broker has a pair of keys, and all clients of the user share another one. The client knows the broker's public key,
so nobody else who holds the port can pass for it; and the broker lets in the client's public key only (`zap`).

*Keys are made once.* Thirty processes may start on an empty data directory. Each that finds no keys makes a whole set
in a directory of its own and renames that into place. Renaming onto a directory with something in it fails, so there
is one winner, and the losers use its set. No reader ever sees half a set; a damaged set is therefore an error, and not
remade: a running broker would go on with the old one, and every client with new keys would be shut out.

Every command imports this module, so it imports nothing costly, zmq included, before a function needs it. The files are
in the format of `zmq.auth`; they are written and read here, because that package brings logging and asyncio along
(5 ms, and 1 MB), and the format is two lines.
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
#: A certificate is about 400 bytes. What is larger is something else, and not worth reading.
MAX_CERTIFICATE_BYTES = 4096
#: Under such a name beside `keys/` a set is made before it is renamed. One that stays was left by a process that was
#: killed; nobody uses it.
NEW_KEYS_PREFIX = "keys.new-"


class KeyPair(NamedTuple):
    """A CURVE key and its counterpart, in Z85 (40 bytes each)."""

    public: bytes
    secret: bytes

    def __repr__(self) -> str:
        # What is printed ends up in logs.
        return f"KeyPair(public={self.public!r}, secret=…)"


class ClientKeys(NamedTuple):
    """What a client needs: the broker's public key and the pair that all clients of the user share. Z85."""

    server_public: bytes
    public: bytes
    secret: bytes

    def __repr__(self) -> str:
        return f"ClientKeys(server_public={self.server_public!r}, public={self.public!r}, secret=…)"


class BrokerKeys(NamedTuple):
    """What the broker needs: its own pair, and the public keys of those it lets in. Z85."""

    public: bytes
    secret: bytes
    allowed_clients: frozenset[bytes]

    def __repr__(self) -> str:
        return f"BrokerKeys(public={self.public!r}, secret=…, allowed_clients={sorted(self.allowed_clients)!r})"


def client_keys(data_dir: str) -> ClientKeys:
    """The keys that a client of this data directory needs; makes the directory and the set if there are none.

    Raises `Unauthorized` where permissions are wrong or the set is damaged, `BrokerUnavailable` where none can be made.
    """
    directory = _key_dir(data_dir)
    own = _read_pair(directory, "client")
    return ClientKeys(_read_certificate(directory, "broker.key")[0], own.public, own.secret)


def broker_keys(data_dir: str) -> BrokerKeys:
    """The keys that the broker of this data directory needs; otherwise like `client_keys`.

    Reads the whole set: the broker is the one that can say which file does not fit the others, while a client would
    see no more than handshakes that never end.
    """
    directory = _key_dir(data_dir)
    pairs = {who: _read_pair(directory, who) for who in ("broker", "client")}
    for who, pair in pairs.items():
        if _read_certificate(directory, f"{who}.key")[0] != pair.public:
            raise _damaged(directory, f"{who}.key", f"does not belong to {who}.key_secret")
    return BrokerKeys(*pairs["broker"], frozenset((pairs["client"].public,)))


def _key_dir(data_dir: str) -> str:
    """The directory with the keys, checked, and made if there is none."""
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
            # These say that another process was faster, or that something else has the name: the caller looks.
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise
        finally:
            _remove(new)
    except OSError as error:
        raise BrokerUnavailable(
            f"no keys can be made in {data_dir}: {error.strerror}; make room on its disk, or make it writable"
        ) from None


def _write_pair(path: str) -> None:
    """Two certificates as `zmq.auth.create_certificates` writes them, without that module: what it imports would stay
    in the broker that has made the keys, with 1 MB."""
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
    """A set that has no name yet; one that cannot be removed stays, and the doctor tells of it."""
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
    # 10 µs. Without it, one damaged character shows as a broker that never answers.
    if zmq.curve_public(secret) != public:
        raise _damaged(directory, name, "holds two keys that do not belong together")
    return KeyPair(public, secret)


def _read_certificate(directory: str, name: str) -> tuple[bytes, bytes | None]:
    """The public key and, where there is one, the secret key of a `zmq.auth` certificate. Agrees with its own reader,
    but for what that one lets pass and CURVE would not."""
    try:
        fd = open_private(os.path.join(directory, name), os.O_RDONLY)
    except FileNotFoundError:
        raise _damaged(directory, name, "is missing") from None
    try:
        content = os.read(fd, MAX_CERTIFICATE_BYTES + 1)
    finally:
        os.close(fd)
    if len(content) > MAX_CERTIFICATE_BYTES:
        raise _damaged(directory, name, "is no certificate")
    keys: dict[bytes, bytes] = {}
    for line in content.splitlines():
        field, equals, value = line.strip().partition(b"=")
        field = field.rstrip()
        if equals and field in (b"public-key", b"secret-key"):
            key = value.strip(b" \t'\"")
            if not _is_key(key):
                raise _damaged(directory, name, f"holds a {field.decode()} that is none")
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
    """Makes the socket a client of the broker with these keys. To be called before it connects."""
    # Without it, anyone who holds the port would be believed to be the broker.
    socket.curve_serverkey = keys.server_public
    # Without these two, libzmq refuses to connect with CURVE; with others, the broker refuses us.
    socket.curve_publickey = keys.public
    socket.curve_secretkey = keys.secret

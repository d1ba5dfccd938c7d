"""Who gets in: permissions of files, the CURVE keys, and the answer to each handshake (ZAP).

Theory of operation
===================

*The user is the unit of trust.* Whatever runs as the user may use the bus; nobody else may connect to it, read it, or
pose as the broker. Two things carry that rule:

* **Files.** The data directory is 0700 and every file in it 0600, and none of them is a link: a link could have been
  laid by whoever may write to the directory above, and "0600" says nothing about where it leads. What does not fit is
  refused, never mended: the contents may have been read by then, and only the user can say whether that matters. The
  error names the command that mends it.
* **Keys.** Both sockets speak CURVE. The broker has a pair of keys, and all clients of the user share another one. The
  client knows the broker's public key, so nobody else who holds the port can pass for it; and the broker lets in the
  client's public key only.

*Keys are made once.* Thirty processes may start on an empty data directory. Each that finds no keys makes a whole set
in a directory of its own and renames that into place. Renaming onto a directory with something in it fails, so there
is one winner, and the losers use its set. No reader ever sees half a set; a set that is found damaged is therefore an
error, and not remade: a running broker would go on with the old one, and everybody with new keys would be shut out.

*ZAP* (RFC 27) is how libzmq asks who may come in: a request to an inproc socket for each handshake. It has to be there,
for without a handler libzmq lets in everyone who knows the broker's *public* key. The handlers that come with pyzmq
want a thread or an event loop (theirs is a coroutine), and the broker is one thread with a poller; so the rule is a
pure function here, and the handler one more socket in the broker's poll.

Each command imports this module, so it imports nothing costly, zmq included, before a function needs it. The files are
in the format of `zmq.auth`; they are written and read here, because that package brings logging and asyncio along
(5 ms, and 1 MB), and the format is two lines.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Any

from zmqbus.errors import BrokerUnavailable, Unauthorized
from zmqbus.settings import Paths
from zmqbus.tuples import NamedTuple

if TYPE_CHECKING:
    import zmq

DIR_MODE = 0o700
FILE_MODE = 0o600
#: Any of these bits lets somebody else in.
_OTHERS = 0o077

#: A key is 32 bytes, in Z85: 5 characters for every 4 bytes.
KEY_CHARS = 40
RAW_KEY_BYTES = 32
#: A certificate is about 400 bytes. What is larger is something else, and not worth reading.
MAX_CERTIFICATE_BYTES = 4096
#: Under such a name beside `keys/` a set is made before it is renamed. One that stays was left by a process that was
#: killed; nobody uses it.
NEW_KEYS_PREFIX = "keys.new-"

ZAP_ENDPOINT = "inproc://zeromq.zap.01"
#: libzmq sends it along with each request; that it is set at all is what matters (see `curve_server`).
ZAP_DOMAIN = b"zmqbus"
ZAP_VERSION = b"1.0"
#: version, request id, domain, address, identity, mechanism; the credentials follow.
_ZAP_FIXED_FRAMES = 6
#: Handshakes answered in one go. More are waiting only in a flood, and then the messages of those who are in go first.
MAX_HANDSHAKES = 100
#: A handler's socket that has answered so many gives way to another one (see `ZapHandler.renew`): 0.6 MB.
RENEW_AFTER = 100
#: And is closed so much later: libzmq finds the handler and writes its request in one go, within microseconds. (In a
#: storm, what has not been let go of yet makes holes that stay: with 0.2 s they were 4 MB for 1,000 sessions.)
RETIRED_S = 0.05


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


# --- permissions ------------------------------------------------------------------------------------------------


def secure_dir(path: str) -> None:
    """Makes sure that `path` is a directory of the user's own that nobody else can enter.

    Makes it, and the directories above that are missing, with mode 0700. Raises `Unauthorized` if it is there and is a
    link, no directory, somebody else's, or open to others (what is there is never changed), or if it may not be made;
    `BrokerUnavailable` if the system cannot make it now.
    """
    # lstat follows a link whose name ends with a slash.
    path = path.rstrip("/") or "/"
    try:
        _check(path, os.lstat(path), directory=True)
        return
    except FileNotFoundError:
        pass
    except OSError as error:
        raise _no_dir(path, error) from None
    try:
        _make_dirs(path)
        _check(path, os.lstat(path), directory=True)
    except OSError as error:
        raise _no_dir(path, error) from None


def check_private_file(path: str) -> None:
    """Raises `Unauthorized` unless `path` is a regular file of the user's own that nobody else can read or write.

    Raises FileNotFoundError if there is none. Whoever wants to open the file takes `open_private`, which checks what it
    has opened; what this one has seen may be another file by then.
    """
    _check(path, os.lstat(path), directory=False)


def open_private(path: str, flags: int) -> int:
    """Opens a private file with `flags` of `os.open`, and returns the descriptor (not inherited by other programs).

    A file that `O_CREAT` makes is 0600, whatever the umask. Raises `Unauthorized` for a file that `check_private_file`
    would refuse, before anything in it is changed; any other OSError (no such file, disk full) passes through.
    """
    # O_NOFOLLOW refuses a link as the last part of the path. O_NONBLOCK keeps a FIFO from holding us up before we can
    # see what it is; to regular files it means nothing. O_TRUNC has to wait until we know whose file it is.
    safe = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    try:
        fd = os.open(path, (flags | safe) & ~os.O_TRUNC, FILE_MODE)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EMLINK, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENXIO):
            raise
        try:
            check_private_file(path)
        except PermissionError:
            _check_above(path)
            raise
        raise Unauthorized(f"{path} cannot be opened: {error.strerror}; make it yours to read and write") from None
    try:
        found = os.fstat(fd)
        _check(path, found, directory=False)
        if flags & os.O_CREAT and found.st_mode & FILE_MODE != FILE_MODE:
            os.fchmod(fd, FILE_MODE)  # a umask like 0777 took bits away that the next to open it will need
        if flags & os.O_TRUNC:
            os.ftruncate(fd, 0)
    except BaseException:
        os.close(fd)
        raise
    return fd


def read_small(path: str, limit_bytes: int) -> bytes:
    """What a small file of the data directory holds, whoever made it; for what proves nothing by itself (a pid).

    Never waits: a link, a FIFO or a device in its place is refused, and so is what is longer than `limit_bytes`. Raises
    OSError.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
        data = os.read(fd, limit_bytes + 1)
    finally:
        os.close(fd)
    if len(data) > limit_bytes:
        raise OSError(errno.EFBIG, "too large", path)
    return data


def _check(path: str, found: os.stat_result, *, directory: bool) -> None:
    what, mode = ("directory", DIR_MODE) if directory else ("file", FILE_MODE)
    user = os.geteuid()
    if stat.S_ISLNK(found.st_mode):
        cure = "remove it"
        if directory:
            cure += ", or set INTER_SESSION_DATA_DIR to the directory that is meant"
        raise Unauthorized(f"{path} is a symbolic link, which is never followed here; {cure}")
    if not (stat.S_ISDIR(found.st_mode) if directory else stat.S_ISREG(found.st_mode)):
        raise Unauthorized(f"{path} is not a {what}; move it out of the way")
    if found.st_uid != user:
        if is_unmapped(found.st_uid):
            raise Unauthorized(
                f"{path} belongs to a user who has no id in this user namespace (uid {found.st_uid} stands for all of "
                "them): this shell is in a sandbox or a container. Run the command outside of it, give the container "
                "the user's own id (podman: --userns=keep-id), or set INTER_SESSION_DATA_DIR to a directory in it"
            )
        raise Unauthorized(
            f"{path} belongs to another user (uid {found.st_uid}, you are {user}); "
            f"if it is to be yours, run: sudo chown {user} {_quoted(path)}; "
            "else set INTER_SESSION_DATA_DIR to a directory of your own"
        )
    if found.st_mode & _OTHERS:
        raise Unauthorized(
            f"{path} is open to other users (mode {stat.S_IMODE(found.st_mode):04o}); "
            f"run: chmod {mode:o} {_quoted(path)}"
        )


def _check_above(path: str) -> None:
    """Raises `Unauthorized` where the lowest directory above `path` that can be seen is not the user's own."""
    while (parent := os.path.dirname(path)) != path:
        path = parent
        try:
            found = os.lstat(path)
        except PermissionError:
            continue
        _check(path, found, directory=True)
        return


def is_unmapped(uid: int) -> bool:
    """Whether a file's uid is the one that stands for all users who have none in this user namespace."""
    try:
        with open("/proc/sys/kernel/overflowuid", "rb") as file:
            if int(file.read(32)) != uid:
                return False
        with open("/proc/self/uid_map", "rb") as file:
            ranges = [[int(word) for word in line.split()] for line in file.read(65536).splitlines()]
    except (OSError, ValueError):
        return False
    # Where all ids are mapped, as in the first namespace, it is a user like others.
    return not any(first <= uid < first + count for first, _, count in ranges)


def _make_dirs(path: str) -> None:
    parent = os.path.dirname(path)
    if parent != path and not os.path.isdir(parent):
        # These are made as private as the last one: a parent that others may write to would let them exchange it.
        _make_dirs(parent)
    try:
        os.mkdir(path, DIR_MODE)
    except FileExistsError:
        return  # another process was faster; the caller looks at what is there
    if os.lstat(path).st_mode & DIR_MODE != DIR_MODE:
        os.chmod(path, DIR_MODE)  # the umask took bits away


def _no_dir(path: str, error: OSError) -> Unauthorized | BrokerUnavailable:
    kind = BrokerUnavailable if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO) else Unauthorized
    return kind(
        f"the directory {path} cannot be made: {error.strerror}; "
        "set INTER_SESSION_DATA_DIR to a directory that you may write to"
    )


def _quoted(path: str) -> str:
    """For a POSIX shell. Always in quotes, so that a command in a sentence has a visible end."""
    return "'" + path.replace("'", "'\"'\"'") + "'"


# --- keys -------------------------------------------------------------------------------------------------------


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
        found = os.lstat(directory)
    except FileNotFoundError:
        _make_keys(data_dir, directory)
        found = os.lstat(directory)
    _check(directory, found, directory=True)
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
        f"{os.path.join(data_dir, 'server.<port>.pid')}), then run: rm -r {_quoted(directory)} "
        "— new keys are made at the next start"
    )


# --- sockets ----------------------------------------------------------------------------------------------------


def curve_client(socket: zmq.Socket[Any], keys: ClientKeys) -> None:
    """Makes the socket a client of the broker with these keys. To be called before it connects."""
    # Without it, anyone who holds the port would be believed to be the broker.
    socket.curve_serverkey = keys.server_public
    # Without these two, libzmq refuses to connect with CURVE; with others, the broker refuses us.
    socket.curve_publickey = keys.public
    socket.curve_secretkey = keys.secret


def curve_server(socket: zmq.Socket[Any], keys: BrokerKeys) -> None:
    """Makes the socket a server that talks CURVE only, and asks the context's `ZapHandler`. To be called before it
    binds."""
    # Without it, a client with no mechanism (NULL) would get in.
    socket.curve_server = True
    # Without it, no handshake can be answered. (The public key follows from it.)
    socket.curve_secretkey = keys.secret
    # Without these two, libzmq takes a context that has no handler (yet, or no more) to mean that all may come in.
    socket.zap_domain = ZAP_DOMAIN
    # Declared as a draft, though the stable builds have it too. In one without it, the handler that has to be there
    # anyway does the refusing; this was for the day when it is missing.
    _enforces_domain(socket)


def _enforces_domain(socket: zmq.Socket[Any]) -> bool:
    """Has the socket refuse all while there is no handler; whether this libzmq can."""
    import zmq

    try:
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
    except zmq.ZMQError:
        return False
    return True


# --- ZAP --------------------------------------------------------------------------------------------------------


def zap_reply(frames: list[bytes], allowed: frozenset[bytes]) -> list[bytes] | None:
    """The answer to a request of RFC 27, both without their routing envelope.

    Lets in (200, user id "user") who has proved with CURVE that it holds one of the `allowed` keys (Z85) and comes from
    this machine; refuses all others (400) with a reason. A request that breaks the RFC gets 500, or None where it has
    not even an id to answer to. Never raises.
    """
    if len(frames) < 2:
        return None
    if frames[0] != ZAP_VERSION:
        return _zap_answer(frames[1], b"500", b"unknown version of ZAP")
    if len(frames) < _ZAP_FIXED_FRAMES:
        return _zap_answer(frames[1], b"500", b"frames are missing")
    _, request_id, _, address, _, mechanism, *credentials = frames
    if mechanism != b"CURVE":
        return _zap_answer(request_id, b"400", b"only CURVE is spoken here")
    if len(credentials) != 1 or len(credentials[0]) != RAW_KEY_BYTES:
        return _zap_answer(request_id, b"500", b"CURVE takes one key of 32 bytes")
    # The sockets are bound to loopback, so no other address occurs; should a change ever open them, this stays shut.
    if not address.startswith(b"127."):
        return _zap_answer(request_id, b"400", b"not from this machine")

    from zmq.utils import z85

    # A public key is no secret, so the time that the comparison takes tells nothing.
    if z85.encode(credentials[0]) not in allowed:
        return _zap_answer(request_id, b"400", b"unknown key")
    return _zap_answer(request_id, b"200", b"OK", user=b"user")


def _zap_answer(request_id: bytes, status: bytes, text: bytes, user: bytes = b"") -> list[bytes]:
    return [ZAP_VERSION, request_id, status, text, user, b""]


class ZapHandler:
    """Answers the handshakes of all sockets of a context. Its owner polls `sockets` for input and calls `handle`.

    Has to be there before the first socket of the context binds: handshakes that come earlier are refused.
    """

    def __init__(self, context: zmq.Context[Any], allowed: frozenset[bytes]) -> None:
        import zmq

        self._context = context
        self.allowed = allowed
        #: Handshakes answered with anything but 200.
        self.refused = 0
        self._again: type[Exception] = zmq.Again
        self._error: type[Exception] = zmq.ZMQError
        self._dont_wait = zmq.DONTWAIT
        self._answered = 0  # by the socket
        self._retired_s = 0.0
        self._retired: zmq.Socket[bytes] | None = None
        #: Where handshakes are asked for now.
        self.socket = self._open()
        #: What is to be polled; others after a `renew` that says so.
        self.sockets: tuple[zmq.Socket[bytes], ...] = (self.socket,)
        try:
            self._may_renew = _enforces_domain(self.socket)  # else all would get in while no socket is bound
            self.socket.bind(ZAP_ENDPOINT)
        except BaseException:
            self.socket.close()
            raise

    def __repr__(self) -> str:
        return f"<ZapHandler: {len(self.allowed)} keys allowed, {self.refused} handshakes refused>"

    def _open(self) -> zmq.Socket[bytes]:
        import zmq

        socket: zmq.Socket[bytes] = self._context.socket(zmq.ROUTER)
        # Without it, ending the context could wait for answers to peers that have gone.
        socket.linger = 0
        return socket

    def handle(self) -> int:
        """Answers what is waiting, `MAX_HANDSHAKES` at most, without ever blocking; returns how many it took."""
        taken = 0
        for socket in self.sockets:
            while taken < MAX_HANDSHAKES and self._answer(socket):
                taken += 1
        return taken

    def _answer(self, socket: zmq.Socket[bytes]) -> bool:
        """Answers one request; whether there was one."""
        try:
            message = socket.recv_multipart(self._dont_wait)
        except self._again:
            return False
        # The envelope: the way back, ended by an empty frame.
        body = message.index(b"") + 1 if b"" in message else len(message)
        answer = zap_reply(message[body:], self.allowed)
        self._answered += 1
        if answer is None or answer[2] != b"200":
            self.refused += 1
        if answer is not None:
            # A ROUTER drops what it cannot deliver (here: the peer hung up), so this does not block either.
            socket.send_multipart(message[:body] + answer, self._dont_wait)
        return True

    def renew(self, now_s: float) -> bool:
        """Lets go of what connections that are in still hold here; to be called now and then, with the monotonic time.
        Returns whether there are other `sockets` than before.

        libzmq connects to the handler anew for each handshake, and keeps that as long as the peer is connected, though
        nothing will pass there again: 34 KB, of which 6 KB are touched. It ends with the socket that answered. So that
        one is replaced; and closed when whoever had found it has had his answer. A handshake that falls between the
        unbind and the bind is refused (`ZAP_ENFORCE_DOMAIN`), and its peer comes again within 40 ms.
        """
        if self._retired is not None:
            if now_s - self._retired_s < RETIRED_S:
                return False
            if self._answer(self._retired):  # a pause kept it from being answered before, and there may be more
                self._retired_s = now_s
                return False
            self._retired.close()
            self._retired = None
            self.sockets = (self.socket,)
            return True
        if self._answered < RENEW_AFTER or not self._may_renew:
            return False
        try:
            fresh = self._open()
        except self._error:
            return False  # no file or socket is left: the old one goes on
        self.socket.unbind(ZAP_ENDPOINT)
        fresh.bind(ZAP_ENDPOINT)
        self._retired, self._retired_s = self.socket, now_s
        self.socket, self._answered = fresh, 0
        self.sockets = (fresh, self._retired)
        return True

    def close(self) -> None:
        """Frees the endpoint. Handshakes from now on are refused."""
        for socket in self.sockets:
            socket.close()

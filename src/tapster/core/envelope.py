"""Encryption at rest: a master key wraps tenants' data keys, and these seal files.

A sealed file is a header and chunks of AES-256-GCM, as in STREAM (Hoang, Reyhanitabar, Rogaway,
Vizar: "Online Authenticated-Encryption and its Nonce-Reuse Misuse-Resistance", CRYPTO 2015): the
nonce of a chunk is a prefix, its number and whether it is the last, so chunks cannot be left out,
repeated, swapped or cut off. Each file has a key of its own, by HKDF-SHA256 (RFC 5869) from the
data key and a salt, as in Tink's streaming AEAD.
"""

import base64
import hashlib
import io
import secrets
import shlex
import struct
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from tapster.contract.errors import TapsterError
from tapster.core.blobs import write_atomically
from tapster.core.settings import Settings

MAGIC: Final = b"TAPSEAL\x01"
CHUNK: Final = 256 << 10
KEY_BYTES: Final = 32
NAME_FILE: Final = "master-key.name"
_TAG: Final = 16
# Magic, the data key's id, salt, prefix of the nonces.
_HEADER: Final = struct.Struct("8s19s32s7s")
HEADER_BYTES: Final = _HEADER.size
_COMMAND_SECONDS: Final = 30.0
_MOST_CHUNKS: Final = 1 << 32


@dataclass(frozen=True)
class DataKey:
    """A tenant's key: `id` stands in the header of every file that it seals."""

    id: str
    secret: bytes = field(repr=False)


class Keyring(Protocol):
    """Where tenants' data keys come from. Both raise TapsterError(not_found) for a lost tenant."""

    def current(self, tenant: str) -> DataKey:
        """The key that new content of a tenant is sealed with."""
        ...

    def find(self, tenant: str, identifier: str) -> DataKey:
        """The key that was used."""
        ...


class Master:
    """The key that wraps data keys. `name` tells it from others without giving it away."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self.name = hashlib.sha256(b"tapster master key\0" + secret).hexdigest()[:16]

    @property
    def spelled(self) -> bytes:
        """The key in hex, as a file may hold it."""
        return self._secret.hex().encode()

    def leave_name(self, home: Path) -> None:
        """Say in a home under which master key its data keys are: for people, and doctor."""
        path = home / NAME_FILE
        if not path.exists() or path.read_text().strip() != self.name:
            write_atomically(path, self.name.encode() + b"\n")

    def wrap(self, tenant: str, key: DataKey) -> str:
        """A data key, for nobody but the holder of this master key; text that may be stored."""
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        nonce = secrets.token_bytes(12)
        sealed = AESGCM(self._secret).encrypt(nonce, key.secret, _bound("key", tenant, key.id))
        return f"{key.id}:{self.name}:{base64.b64encode(nonce + sealed).decode()}"

    def unwrap(self, tenant: str, wrapped: str) -> DataKey:
        """The data key in what `wrap` gave. Raises TapsterError(unavailable)."""
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        identifier, name, text = wrapped.split(":")
        if name != self.name:
            raise TapsterError(
                "unavailable",
                f"tenant {tenant!r} has a data key that another master key wraps ({name})",
                hint=f"this one is {self.name}: set the master key that was set before, or it as"
                " TAPSTER_MASTER_KEY_PREVIOUS_FILE beside the new one",
            )
        data = base64.b64decode(text)
        try:
            secret = AESGCM(self._secret).decrypt(
                data[:12], data[12:], _bound("key", tenant, identifier)
            )
        except InvalidTag:
            raise TapsterError("unavailable", "a stored data key is damaged") from None
        return DataKey(identifier, secret)


class Masters:
    """The master key in force; and the previous one, while data keys may still be wrapped by it."""

    def __init__(self, current: Master, previous: Master | None = None) -> None:
        self.current = current
        self.previous = previous
        self._by_name = {each.name: each for each in (previous, current) if each is not None}

    @property
    def name(self) -> str:
        """The name of the one in force."""
        return self.current.name

    @property
    def names(self) -> frozenset[str]:
        """The names of both."""
        return frozenset(self._by_name)

    def opens(self, wrapped: str) -> bool:
        """Whether one of them has wrapped this data key."""
        return wrapper_of(wrapped) in self._by_name

    def unwrap(self, tenant: str, wrapped: str) -> DataKey:
        """See Master; by whichever of them has wrapped it."""
        master = self._by_name.get(wrapper_of(wrapped), self.current)
        return master.unwrap(tenant, wrapped)


def wrapper_of(wrapped: str) -> str:
    """The name of the master key that has wrapped a data key."""
    return wrapped.split(":")[1]


def encrypting(settings: Settings) -> bool:
    """Whether a master key is set."""
    return any(_sources(settings, "master_key").values())


def master_of(settings: Settings) -> Master | None:
    """The master key from where the settings say it is; None when none is set.

    It is 32 bytes, as they are (in a file) or spelled in hex or base64. Raises TapsterError.
    """
    return _master(settings, "master_key")


def masters_of(settings: Settings) -> Masters | None:
    """The master key and the previous one, as `master_of`.

    Raises TapsterError(invalid) for a previous one without one in force.
    """
    current, previous = master_of(settings), _master(settings, "master_key_previous")
    if current is not None:
        return Masters(current, previous)
    if previous is not None:
        raise TapsterError(
            "invalid",
            "a previous master key is set, and none that takes its place",
            hint="set TAPSTER_MASTER_KEY_FILE; to go on with the previous one, to that",
            field="master_key_file",
        )
    return None


def new_data_key() -> DataKey:
    """A key of 256 random bits."""
    return DataKey(f"dk_{secrets.token_hex(8)}", secrets.token_bytes(KEY_BYTES))


class Sealer:
    """Seals what it is fed into a file that is open for writing; nothing is valid before `end`.

    `place` are the words that say where the content belongs (tenant, key, file name): it opens
    nowhere else.
    """

    def __init__(self, target: BinaryIO, key: DataKey, *place: str) -> None:
        salt, self._prefix = secrets.token_bytes(32), secrets.token_bytes(7)
        header = _HEADER.pack(MAGIC, key.id.encode(), salt, self._prefix)
        self._target = target
        self._cipher = _cipher(key, salt)
        self._bound = header + _bound("file", *place)
        self._number = 0
        self._waiting = bytearray()
        target.write(header)

    def feed(self, data: bytes | memoryview) -> None:
        """Seal more."""
        self._waiting += data
        while len(self._waiting) > CHUNK:  # the last chunk is known at the end only
            piece = bytes(self._waiting[:CHUNK])
            del self._waiting[:CHUNK]
            self._write(piece, last=False)

    def end(self) -> None:
        """Write the last chunk, which may be empty."""
        self._write(bytes(self._waiting), last=True)

    def _write(self, piece: bytes, *, last: bool) -> None:
        nonce = _nonce(self._prefix, self._number, last)
        self._target.write(self._cipher.encrypt(nonce, piece, self._bound))
        self._number += 1


def seal(source: BinaryIO, target: BinaryIO, key: DataKey, *place: str) -> int:
    """Seal all of `source` into `target`; returns the bytes read. See Sealer."""
    sealer, size = Sealer(target, key, *place), 0
    while piece := source.read(CHUNK):
        sealer.feed(piece)
        size += len(piece)
    sealer.end()
    return size


def opened(source: BinaryIO, find: Callable[[str], DataKey], *place: str) -> Iterator[bytes]:
    """The content of a sealed file in pieces, each authentic by the time it is given.

    `find` gives the data key by its id. Raises TapsterError(unprocessable) when anything was
    altered, moved from another place, or cut off: then what came before must not be used.
    """
    from cryptography.exceptions import InvalidTag

    header = source.read(_HEADER.size)
    if len(header) < _HEADER.size or not header.startswith(MAGIC):
        raise damaged()
    _, identifier, salt, prefix = _HEADER.unpack(header)
    if not identifier.isascii():
        raise damaged()
    cipher = _cipher(find(identifier.decode()), salt)
    bound = header + _bound("file", *place)
    piece, number = source.read(CHUNK + _TAG), 0
    while True:
        following = source.read(CHUNK + _TAG)
        if number >= _MOST_CHUNKS:
            raise damaged()
        try:
            yield cipher.decrypt(_nonce(prefix, number, not following), piece, bound)
        except InvalidTag:
            raise damaged() from None
        if not following:
            return
        piece, number = following, number + 1


def sealed_bytes(data: bytes, key: DataKey, *place: str) -> bytes:
    """A small content, sealed."""
    target = io.BytesIO()
    seal(io.BytesIO(data), target, key, *place)
    return target.getvalue()


def opened_bytes(data: bytes, find: Callable[[str], DataKey], *place: str) -> bytes:
    """See `opened`."""
    return b"".join(opened(io.BytesIO(data), find, *place))


def sealed_with(beginning: bytes) -> str:
    """The id of the data key in the header of a sealed content; "" if that is no header."""
    if len(beginning) < _HEADER.size or not beginning.startswith(MAGIC):
        return ""
    _, identifier, _, _ = _HEADER.unpack_from(beginning)
    return str(identifier.decode("ascii", "replace"))


def is_sealed(path: Path) -> bool:
    """Whether a file begins as sealed ones do."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def damaged() -> TapsterError:
    """What to say of sealed content that does not open."""
    return TapsterError(
        "unprocessable",
        "the stored content does not open: it was damaged, altered or moved",
        hint="bring it back from a backup, or make it again",
    )


def _master(settings: Settings, stem: str) -> Master | None:
    chosen = {name: text for name, text in _sources(settings, stem).items() if text}
    if not chosen:
        return None
    if len(chosen) > 1:
        raise TapsterError(
            "invalid", f"the master key is set in two places: {' and '.join(chosen)}", field="home"
        )
    name, text = chosen.popitem()
    if name.endswith("_file"):
        data = _read(text, name)
    else:
        data = _asked(text, name) if name.endswith("_command") else text.encode()
    return Master(_parsed(data, name))


def _sources(settings: Settings, stem: str) -> dict[str, str]:
    names = (stem, f"{stem}_file", f"{stem}_command")
    return {name: getattr(settings, name) for name in names}


def _read(path: str, name: str) -> bytes:
    try:
        return Path(path).expanduser().read_bytes()
    except OSError as error:
        raise TapsterError(
            "invalid",
            f"the master key's file cannot be read: {error.strerror}",
            hint="make one with `openssl rand -hex 32`, readable by this user only",
            field=name,
        ) from None


def _asked(command: str, name: str) -> bytes:
    try:
        done = subprocess.run(
            shlex.split(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            timeout=_COMMAND_SECONDS,
            check=True,
        )
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise TapsterError(
            "unavailable",
            f"the command that gives the master key failed: {type(error).__name__}",
            hint="run it by hand; it must print 64 hexadecimal digits and exit with 0",
            field=name,
        ) from None
    return done.stdout


def _parsed(data: bytes, name: str) -> bytes:
    """The 32 bytes that a key spells."""
    if len(data) == KEY_BYTES:
        return data
    text = data.strip()
    for spelling in (bytes.fromhex, lambda word: base64.b64decode(word, validate=True)):
        try:
            found = spelling(text.decode("ascii"))
        except ValueError:
            continue
        if len(found) == KEY_BYTES:
            return found
    raise TapsterError(
        "invalid",
        "the master key is not 32 bytes, in hex (64 digits) or base64",
        hint="make one with `openssl rand -hex 32`",
        field=name,
    )


def _cipher(key: DataKey, salt: bytes) -> "_Cipher":
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    derive = HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=salt, info=b"tapster sealed file")
    return AESGCM(derive.derive(key.secret))


def _nonce(prefix: bytes, number: int, last: bool) -> bytes:
    return prefix + number.to_bytes(4, "big") + bytes([last])


def _bound(*words: str) -> bytes:
    """Words spelled so that no others are spelled alike."""
    spelled = [word.encode() for word in words]
    return b"".join(len(word).to_bytes(4, "big") + word for word in spelled)


class _Cipher(Protocol):
    def encrypt(self, nonce: bytes, data: bytes, associated_data: bytes) -> bytes: ...

    def decrypt(self, nonce: bytes, data: bytes, associated_data: bytes) -> bytes: ...

"""Passwords: Argon2id hashes, made and compared a few at a time, however many ask."""

import threading
from functools import lru_cache
from typing import Any, Final

from tapster.contract.errors import TapsterError

SHORTEST: Final = 12
LONGEST: Final = 256
_AT_ONCE: Final = 2
_PATIENCE: Final = 10.0
# Each takes 64 MiB and a core for a twentieth of a second (RFC 9106, second recommended option).
_turns: Final = threading.BoundedSemaphore(_AT_ONCE)


def hashed(password: str, name: str = "") -> str:
    """The hash to store. Raises TapsterError(invalid) for one that is easily guessed."""
    if not SHORTEST <= len(password) <= LONGEST or password.lower() == name:
        raise TapsterError(
            "invalid",
            f"a password has {SHORTEST} to {LONGEST} characters, and is not the member's name",
            hint="a few words that nobody else would put together are good",
            field="password",
        )
    with _Turn():
        return str(_hasher().hash(password))


def matches(stored: str | None, password: str) -> bool:
    """Whether a password is the stored one; takes as long when none is stored."""
    from argon2.exceptions import InvalidHashError, VerificationError

    with _Turn():
        try:
            good = bool(_hasher().verify(stored or _nobodys(), password[:LONGEST]))
        except (VerificationError, InvalidHashError, UnicodeEncodeError):
            return False
    return good and stored is not None


class _Turn:
    """A place among the few who may hash. Raises TapsterError(unavailable) when none gets free."""

    def __enter__(self) -> None:
        if not _turns.acquire(timeout=_PATIENCE):
            raise TapsterError(
                "unavailable", "too many sign in at once", hint="try again", retry_after=1.0
            )

    def __exit__(self, *_: object) -> None:
        _turns.release()


@lru_cache(maxsize=1)
def _hasher() -> Any:
    from argon2 import PasswordHasher
    from argon2.profiles import RFC_9106_LOW_MEMORY

    return PasswordHasher.from_parameters(RFC_9106_LOW_MEMORY)


@lru_cache(maxsize=1)
def _nobodys() -> str:
    return str(_hasher().hash("the password of whoever is not there"))

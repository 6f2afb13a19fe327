"""A data-plane worker that lets everybody in, limits nobody and counts at nobody's expense.

`tenants.py` starts it in place of `tapster.serving.worker`, to measure what these things cost.
"""

from typing import Any, Final

from tapster.contract.control import DEFAULT_TENANT
from tapster.contract.plan import KeyGrant, Price, TenantGrant
from tapster.serving import worker
from tapster.serving.accounts import Accounts
from tapster.serving.gate import Gate, Pass
from tapster.serving.limits import Limiter


class Nobody:
    """The account of everything."""

    meters = None
    till = None
    price = Price()

    def served(self, requests: int, rows: int, compute: int, cached: int = 0) -> None:
        """Forget it."""

    def failed(self) -> None:
        """Forget it."""

    def opened(self) -> None:
        """There is nowhere to count."""


NOBODY: Final = Nobody()
ANYBODY: Final = Pass(KeyGrant("any", "", DEFAULT_TENANT, ("*",)), TenantGrant(DEFAULT_TENANT))


def main() -> None:
    """Run such a worker."""
    stubs: dict[Any, dict[str, Any]] = {
        Gate: {"admit": lambda self, header: ANYBODY},
        Accounts: {
            "find": lambda self, holder, target: NOBODY,
            "unserved": lambda self, holder, endpoint: NOBODY,
        },
        Limiter: {"submit": lambda self, work, runs: runs.submit(work)},
    }
    for kind, methods in stubs.items():
        for name, stub in methods.items():
            if not hasattr(kind, name):
                raise AttributeError(f"{kind.__name__} has no {name} to be stubbed out")
            setattr(kind, name, stub)
    worker.main()


if __name__ == "__main__":
    main()

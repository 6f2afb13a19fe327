"""Running a package: one file a runtime, one way to open, check and replay a package.

A runtime turns verified bytes into something that maps arrays to arrays. It never unpickles.
"""

from collections.abc import Sequence
from typing import Protocol

from tapster.contract.inference import Array
from tapster.contract.manifest import Manifest, Signature


class LoadedModel(Protocol):
    """A model in memory, safe to call from several threads at once until `close`."""

    signature: Signature

    def run(
        self, inputs: dict[str, Array], outputs: Sequence[str], deadline: float | None = None
    ) -> list[Array]:
        """The named outputs for a batch, in that order; none named means the signature's.

        `deadline` is on the monotonic clock. Raises TapsterError(invalid) for inputs that the
        graph refuses and TapsterError(deadline).
        """
        ...

    def close(self) -> None:
        """Give the memory back."""
        ...


class Runtime(Protocol):
    """Loads the packages whose manifest names it."""

    name: str

    def describe(self, files: dict[str, bytes], model_file: str) -> Signature:
        """What a model that is no package yet takes and gives, by its own account.

        Raises TapsterError(unprocessable). Like `load`, it may run what is in the files: unless
        `inline` holds, both are called in a process of the model's own only.
        """
        ...

    def load(self, manifest: Manifest, files: dict[str, bytes], threads: int) -> LoadedModel:
        """Load from verified bytes. Raises TapsterError(unprocessable)."""
        ...

    def inline(self, manifest: Manifest, files: dict[str, bytes]) -> bool:
        """Whether the graph is vetted to run in the server's own process."""
        ...

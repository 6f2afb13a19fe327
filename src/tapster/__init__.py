"""Tapster: Model-as-a-Service you install with pip.

`tapster.connect()` gives a client of the running server, or of one that it starts for you.
"""

from typing import Final

from tapster.client import Client, connect
from tapster.contract.errors import TapsterError

__all__ = ["Client", "TapsterError", "__version__", "connect"]
__version__: Final = "0.1.0"

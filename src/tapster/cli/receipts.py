"""Receipts of erasures: whether one is what an installation has signed."""

import json
from typing import Any

from tapster.contract.errors import TapsterError


def check(text: str, key: str) -> dict[str, Any]:
    """A receipt whose signature is right, by `key` unless that is "".

    Raises TapsterError(invalid) for what is no receipt, and (unprocessable) for a wrong signature.
    """
    from tapster.core.crypto import verify

    try:
        receipt = json.loads(text)
        told = {name: value for name, value in receipt.items() if name != "signature"}
        public, signature = str(receipt["public_key"]), str(receipt["signature"])
    except (ValueError, KeyError, AttributeError):
        raise TapsterError("invalid", "this is no receipt of an erasure") from None
    if key and public != key:
        raise TapsterError("unprocessable", f"the receipt is signed by another key: {public[:64]}")
    spelled = json.dumps(told, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    if not verify(public, signature, spelled):
        raise TapsterError("unprocessable", "the receipt is not what was signed")
    document: dict[str, Any] = receipt
    return document

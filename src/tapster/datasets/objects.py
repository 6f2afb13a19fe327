"""Fetches s3:// objects to the job's own folder. Endpoint and keys come from AWS_* variables."""

import os
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from tapster.contract.errors import TapsterError
from tapster.core.blobs import storage_error
from tapster.datasets.files import File
from tapster.datasets.tables import Advance


def fetch(url: str, folder: Path, advance: Advance) -> list[File]:
    """The object at a URL, or every object under one that ends in "/", in the order of keys.

    Raises TapsterError: not_found for a bucket or key that is not there, forbidden, unavailable
    if the store cannot be reached, storage_full.
    """
    bucket, _, key = url.removeprefix("s3://").partition("/")
    key = unquote(key)
    if not bucket or not key:
        raise TapsterError(
            "invalid", f"{url!r} names no object", hint="give s3://BUCKET/KEY", field="url"
        )
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return _fetch(_store(bucket), key, folder, advance)
    except OSError as error:
        if error.errno:
            raise storage_error(error) from error
        raise _refused(url, bucket, error) from None
    except Exception as error:
        if isinstance(error, TapsterError):
            raise
        raise _refused(url, bucket, error) from None


def _store(bucket: str) -> Any:
    from datetime import timedelta

    from obstore.store import S3Store

    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    config: dict[str, Any] = {"region": os.environ.get("AWS_REGION", "us-east-1")}
    if endpoint:
        config["endpoint"] = endpoint
    return S3Store(
        bucket,
        **config,
        client_options={
            "allow_http": bool(endpoint and endpoint.startswith("http://")),
            "connect_timeout": timedelta(seconds=10),
        },
        retry_config={"max_retries": 2, "retry_timeout": timedelta(seconds=20)},
    )


def _fetch(store: Any, key: str, folder: Path, advance: Advance) -> list[File]:
    if key.endswith("/"):
        found = [meta for page in store.list(prefix=key) for meta in page]
        keys = sorted((m["path"], m["size"]) for m in found if m["size"])
        if not keys:
            raise TapsterError(
                "not_found",
                f"there are no objects under {key!r}",
                hint="check the URL",
                field="url",
            )
    else:
        keys = [(key, store.head(key)["size"])]
    total, done, files = sum(size for _, size in keys), 0, []
    for position, (path, _) in enumerate(keys):
        target = folder / f"{position:06}"
        with target.open("wb") as file:
            for chunk in store.get(path).stream(min_chunk_size=4 << 20):
                file.write(chunk)
                done += len(chunk)
                advance(min(1.0, done / max(1, total)), f"{done / 1e6:,.1f} MB fetched")
        files.append(File(target, path.rpartition("/")[2]))
    return files


def _refused(url: str, bucket: str, error: Exception) -> TapsterError:
    text = str(error)
    if "NoSuchBucket" in text:
        return TapsterError(
            "not_found", f"there is no bucket {bucket!r}", hint="check the URL", field="url"
        )
    if type(error).__name__ in {"NotFoundError", "FileNotFoundError"} or "NoSuchKey" in text:
        return TapsterError(
            "not_found", f"there is no object {url}", hint="check the bucket and key", field="url"
        )
    if any(
        word in text for word in ("403", "401", "AccessDenied", "InvalidAccessKey", "Signature")
    ):
        return TapsterError(
            "forbidden",
            f"the object store refused access to {url}",
            hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for the server",
            field="url",
        )
    return TapsterError(
        "unavailable",
        f"the object store that holds {url} does not answer",
        hint="check AWS_ENDPOINT_URL, AWS_REGION and the network of the server",
        field="url",
    )

"""Manifests: one spelling, read back as written."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tapster.contract.manifest import (
    Column,
    FileEntry,
    Lineage,
    Manifest,
    Signature,
    TensorSpec,
    Tolerance,
    decode,
    encode,
)

names = st.text(min_size=1, max_size=20)
scalars = st.one_of(st.text(max_size=10), st.integers(-(2**53), 2**53), st.booleans())
manifests = st.builds(
    Manifest,
    name=names,
    task=st.sampled_from(["binary", "multiclass", "regression", "other"]),
    runtime=names,
    model_file=names,
    signature=st.builds(
        Signature,
        inputs=st.lists(
            st.builds(
                TensorSpec,
                name=names,
                datatype=st.sampled_from(["FP32", "BYTES", "INT64"]),
                shape=st.lists(st.integers(-1, 9), max_size=3).map(tuple),
            ),
            max_size=2,
        ).map(tuple),
        outputs=st.just(()),
        columns=st.lists(
            st.builds(
                Column,
                name=names,
                kind=st.sampled_from(["number", "boolean", "date", "datetime", "text"]),
                tensor=names,
                position=st.integers(0, 9),
            ),
            max_size=3,
        ).map(tuple),
        classes=st.lists(scalars, max_size=3).map(tuple),
    ),
    tolerance=st.builds(Tolerance, atol=st.floats(0, 1), rtol=st.floats(0, 1)),
    files=st.dictionaries(names, st.builds(FileEntry, sha256=names, size=st.integers(0, 9))),
    lineage=st.builds(Lineage, dataset=names, parameters=st.dictionaries(names, scalars)),
    metrics=st.dictionaries(names, st.floats(allow_nan=False, allow_infinity=False)),
)


@settings(max_examples=60, deadline=None)
@given(manifests)
def test_a_manifest_reads_back_as_it_was_written(manifest: Manifest) -> None:
    data = encode(manifest)
    assert decode(data) == manifest
    assert encode(decode(data)) == data


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"name": 1}', b"\xff"])
def test_what_is_no_manifest(data: bytes) -> None:
    with pytest.raises((msgspec.MsgspecError, UnicodeDecodeError)):
        decode(data)

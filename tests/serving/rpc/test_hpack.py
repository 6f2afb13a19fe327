"""Header compression: the examples of RFC 7541, bounds, and what may not be."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tapster.serving.rpc.frames import (
    COMPRESSION_ERROR,
    ENHANCE_YOUR_CALM,
    PROTOCOL_ERROR,
    PeerError,
    StreamError,
)
from tapster.serving.rpc.hpack import TABLE_BYTES, Decoder, encode, encode_static

EXAMPLE = (b":authority", b"www.example.com")
GET = [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), EXAMPLE]
FIRST = "828684410f7777772e6578616d706c652e636f6d"


def literal(name: bytes, value: bytes) -> bytes:
    """A field that the table keeps."""
    return b"\x40%c%b%c%b" % (len(name), name, len(value), value)


@pytest.mark.parametrize(
    "blocks",
    [
        (FIRST, "828684be58086e6f2d6361636865"),
        ("828684418cf1e3c2e5f23a6ba0ab90f4ff", "828684be5886a8eb10649cbf"),
    ],
    ids=["plain", "Huffman"],
)
def test_the_examples_of_the_standard(blocks: tuple[str, str]) -> None:
    decoder = Decoder(1000)
    assert decoder.decode(bytes.fromhex(blocks[0])) == (GET, True)
    second = [*GET, (b"cache-control", b"no-cache")]
    assert decoder.decode(bytes.fromhex(blocks[1])) == (second, True)
    third = "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf"
    fields, _ = decoder.decode(bytes.fromhex(third))
    assert fields[1:3] == [(b":scheme", b"https"), (b":path", b"/index.html")]
    assert fields[3:] == [EXAMPLE, (b"custom-key", b"custom-value")]


@given(
    st.lists(
        st.tuples(
            st.sampled_from([b"grpc-status", b"content-type", b":path", b"x-y"]),
            st.binary(max_size=400).filter(lambda text: not set(text) & {0, 10, 13}),
        )
    )
)
@settings(max_examples=50, deadline=None)
def test_what_is_encoded_is_decoded(fields: list[tuple[bytes, bytes]]) -> None:
    block = b"".join(encode(name, value) for name, value in fields)
    decoder = Decoder(1 << 20)
    assert decoder.decode(block) == (fields, True)
    assert decoder.revision == 0


def test_static_fields_take_a_byte() -> None:
    assert encode_static(b":status", b"200") == b"\x88"
    with pytest.raises(ValueError, match="not in tuple"):
        encode_static(b":status", b"201")


def test_the_table_forgets_its_oldest_entries() -> None:
    decoder = Decoder(1 << 20)
    size = len(b"name") + 100 + 32
    room = TABLE_BYTES // size
    for index in range(room + 1):
        decoder.decode(literal(b"name", b"%0100d" % index))
    revision = decoder.revision
    assert decoder.decode(bytes([0x80 | 62]))[0] == [(b"name", b"%0100d" % room)]
    assert decoder.decode(bytes([0x80 | 62 + room - 1]))[0] == [(b"name", b"%0100d" % 1)]
    assert decoder.revision == revision
    with pytest.raises(PeerError) as caught:
        decoder.decode(bytes([0x80 | 62 + room]))
    assert caught.value.code == COMPRESSION_ERROR
    assert decoder.decode(b"\x20" + literal(b"a", b"b")) == ([(b"a", b"b")], True)
    with pytest.raises(PeerError):
        decoder.decode(b"\xbe")


def test_fields_beyond_the_limit_are_left_out_and_the_table_stays_true() -> None:
    decoder = Decoder(200)
    block = literal(b"big", b"x" * 100) + b"\xbe"
    fields, fits = decoder.decode(block)
    assert not fits
    assert fields == [(b"big", b"x" * 100)]
    assert decoder.decode(b"\xbe") == ([(b"big", b"x" * 100)], True)
    with pytest.raises(PeerError) as caught:  # a few bytes that would be many fields
        decoder.decode(block + b"\xbe" * 1000)
    assert caught.value.code == ENHANCE_YOUR_CALM


@pytest.mark.parametrize(
    "block",
    [
        "80",  # index 0
        "be",  # nothing is in the table
        "ff8080808001",  # a number without end
        "ffffffffff0f",
        "40",  # cut short
        "400161",
        "4001610562",
        "7f",
        "400184ffffffff00",  # Huffman: the end mark, as a whole
        "40016182ffff",  # Huffman: padding of more than seven bits
        "4001618118",  # Huffman: padding that is not all ones
        "3fe21f",  # a table of 4097 bytes
        "8220",  # a table resized after the first field
    ],
)
def test_what_is_no_block_is_refused(block: str) -> None:
    with pytest.raises(PeerError) as caught:
        Decoder(1000).decode(bytes.fromhex(block))
    assert caught.value.code == COMPRESSION_ERROR


@pytest.mark.parametrize("name", [b"X-Upper", b"with space", b"", b"nul\0", b"a:b", b"\xc3\xa9"])
def test_names_are_tokens_in_lower_case(name: bytes) -> None:
    decoder = Decoder(1000)
    spelled = b"\x00%c%b\x01v" % (len(name), name)
    with pytest.raises(StreamError) as caught:
        decoder.decode(spelled + literal(b"kept", b"1"))
    assert caught.value.code == PROTOCOL_ERROR
    assert decoder.decode(b"\xbe") == ([(b"kept", b"1")], True)
    with pytest.raises(PeerError):
        decoder.decode(b"\x40" + spelled[1:])


@pytest.mark.parametrize("value", [b"a\0", b"a\r\nb: c", b"\n"])
def test_values_have_no_line_breaks(value: bytes) -> None:
    with pytest.raises(StreamError):
        Decoder(1000).decode(b"\x00\x01a%c%b" % (len(value), value))

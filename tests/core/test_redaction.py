"""What patterns take out, whatever stands around it; and expressions that cannot be."""

import re
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tapster.contract.errors import TapsterError
from tapster.core.crypto import new_key
from tapster.core.redaction import PATTERNS, Redactor, check

ALL = Redactor(PATTERNS)
AROUND = st.text(max_size=30)
WORDS = st.text(st.characters(categories=("L", "Zs", "P"), exclude_characters="@%"), max_size=30)


def _luhn(digits: str) -> str:
    """Digits and the one that makes them a card's."""
    for last in "0123456789":
        every = [int(each) for each in digits + last]
        doubled = [sum(divmod(2 * each, 10)) for each in every[-2::-2]]
        if (sum(doubled) + sum(every[-1::-2])) % 10 == 0:
            return digits + last
    raise AssertionError


@st.composite
def cards(draw: Any) -> str:
    length = draw(st.integers(12, 18))
    digits = draw(st.sampled_from("23456")) + draw(
        st.text("0123456789", min_size=length - 1, max_size=length - 1)
    )
    number = _luhn(digits)
    between: str = draw(st.sampled_from(["", " ", "-", "\u00a0"]))
    return between.join(re.findall(".{1,4}", number))


@st.composite
def accounts(draw: Any) -> str:
    country, length = draw(st.sampled_from([("DE", 22), ("GB", 22), ("NO", 15), ("FR", 27)]))
    rest = draw(st.text("0123456789ABCDEFGHIJ", min_size=length - 4, max_size=length - 4))
    spelled = "".join(str(int(each, 36)) for each in rest + country + "00")
    number = f"{country}{98 - int(spelled) % 97:02d}{rest}"
    between: str = draw(st.sampled_from(["", " "]))
    return between.join(re.findall(".{1,4}", number))


@settings(max_examples=80, deadline=None)
@given(AROUND, st.emails(), AROUND)
def test_no_address_survives(before: str, address: str, after: str) -> None:
    assert address not in ALL.text(before + address + after)


@settings(max_examples=80, deadline=None)
@given(AROUND, cards(), AROUND)
def test_no_card_survives(before: str, card: str, after: str) -> None:
    left = ALL.text(before + card + after)
    digits = re.sub(r"\D", "", card)
    assert digits not in re.sub(r"[\s\-\u00a0]", "", left)


@settings(max_examples=80, deadline=None)
@given(WORDS, accounts(), WORDS)
def test_no_account_survives(before: str, account: str, after: str) -> None:
    assert account not in ALL.text(f"{before} {account} {after}")
    assert account.lower() not in ALL.text(f"{before} {account.lower()} {after}")


@settings(max_examples=60, deadline=None)
@given(AROUND, st.sampled_from(["tap_", "tas_"]).map(new_key), AROUND)
def test_no_key_of_ours_survives_whatever_was_chosen(before: str, key: str, after: str) -> None:
    assert key not in Redactor(()).text(before + key + after)


@settings(max_examples=60, deadline=None)
@given(WORDS, st.ip_addresses().map(str), WORDS)
def test_no_address_of_a_machine_survives(before: str, address: str, after: str) -> None:
    assert address not in ALL.text(f"{before} {address} {after}") or address == "::"


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(exclude_characters='"['), max_size=200))
def test_what_was_redacted_stays_as_it_is(text: str) -> None:
    """Beside a quote or bracket of its own a mask may look like a part of an address."""
    once = Redactor(["email"]).text(text)
    assert Redactor(["email"]).text(once) == once


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("write to jo@example.com.", "write to [email]"),
        ("jo+x@exämple.org", "[email]"),
        ("a=1&mail=jo%40example.com", "[email]"),
        ("4111 1111 1111 1111 and 4111 1111 1111 1112", "[card] and 4111 1111 1111 1112"),
        ("\uff14111111111111111", "[card]"),
        ("DE89 3704 0044 0532 0130 00 as always", "[iban] as always"),
        ("from 10.1.2.3 to 2001:db8::1", "from [ip] to [ip]"),
        ("at 12:30:45, version 1.2.3", "at 12:30:45, version 1.2.3"),
        ("+49 30 1234567, (555) 123-4567, 030/123456", "[phone], [phone], [phone]"),
        ("Authorization: Bearer abc.def, ok", "[secret], ok"),
        ('{"password": "two words", "a": 1}', '{"[secret]", "a": 1}'),
        ("password=hunter2; ok", "[secret]; ok"),
        ("https://joe:hunter2@example.com/", "https[secret]example.com/"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln", "[secret]"),
        ("2024-01-02T03:04:05 3.14159 1234567.89", "2024-01-02T03:04:05 3.14159 1234567.89"),
        ("a plain sentence, with 42 numbers", "a plain sentence, with 42 numbers"),
        ("half \ud800 a@b.c", "half ? [email]"),
    ],
)
def test_examples(text: str, left: str) -> None:
    assert ALL.text(text) == left


def test_only_what_was_chosen_is_taken_out() -> None:
    text = "jo@example.com 4111 1111 1111 1111 emp-12"
    assert Redactor(["card"]).text(text) == "jo@example.com [card] emp-12"
    assert Redactor([], [r"emp-\d+"]).text(text).endswith("[redacted]")
    almost = "DE88 3704 0044 0532 0130 00"
    assert Redactor(["iban"]).text(almost) == almost, "its check digits are another's"


@pytest.mark.parametrize(
    "expression",
    ["(", "(?=a)", r"(a)\1", "((a{1,100}){1,100}){1,100}", "a*", "", "a" * 501, "a\0", "\ud800"],
)
def test_expressions_that_cannot_be_are_refused(expression: str) -> None:
    with pytest.raises(TapsterError) as refused:
        check([], [expression])
    assert (refused.value.code, refused.value.field) == ("invalid", "expressions")


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ("(a+)+$", "a" * 16_000 + "b"),
        ("(a|aa)+$", "a" * 16_000 + "b"),
        ("(.*)(.*)(.*)x", "y" * 16_000),
        (r"\d{1,500}z", "1" * 16_000),
    ],
)
def test_no_expression_takes_for_ever(expression: str, text: str) -> None:
    check([], [expression])
    began = time.monotonic()
    assert Redactor([], [expression]).text(text) == text
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("text", ["4", "a@", "DE11", "1.2.3.4:", "+1 ", "1:", "a", "tap_"])
def test_no_text_takes_for_ever(text: str) -> None:
    began = time.monotonic()
    ALL.text(text * (16_000 // len(text)))
    assert time.monotonic() - began < 30

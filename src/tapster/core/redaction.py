"""Text with what nobody should read taken out of it: by patterns that come along, or by one's own.

Every expression runs on RE2, in time linear in the text, whatever the expression is. What only
looks like a card or an account is told from one by its check digits (ISO/IEC 7812-1, ISO 13616).
"""

import ipaddress
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, Final

from tapster.contract.errors import TapsterError

# In the order they are applied: a mask that is there already matches none that follow.
PATTERNS: Final[dict[str, str]] = {
    "secret": "our keys, bearer tokens, passwords and keys of others; always on",
    "email": "addresses of e-mail",
    "iban": "numbers of bank accounts (IBAN)",
    "card": "numbers of payment cards",
    "ip": "IP addresses, version 4 and 6",
    "phone": "numbers of telephones, international or with separators",
}
ALWAYS: Final = "secret"
OWN: Final = "[redacted]"
MOST_EXPRESSIONS: Final = 20
LONGEST_EXPRESSION: Final = 500
# Bytes that RE2 may use for one expression.
_MEMORY: Final = 1 << 20

_SECRET: Final = "|".join((
    r"ta[ps]_[\w\-]{12,}|\b(?:gh[oprsu]|glpat|sk|pk|rk|xox[abeoprs])[_-][\w\-]{12,}",
    r"github_pat_\w{20,}|AKIA[0-9A-Z]{16}|AIza[\w\-]{30,}",
    r"eyJ[\w\-]{4,}\.[\w\-]+(?:\.[\w\-]*)?",
    r"(?i:bearer|basic)\s+[\w\-.~+/=]{8,}",
    r"(?i:api[_-]?key|access[_-]?key|token|password|passwd|pwd|secret|authorization)"
    r"[\"']?\s*[:=]\s*(?:\"[^\"]*|'[^']*|(?i:(?:bearer|basic)\s+)?[^\s\"',;&]+)",
    r"://[^\s/@:]*:[^\s/@]+@",
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----(?s:.*?)(?:-----END [A-Z ]*PRIVATE KEY-----|\z)",
))  # fmt: skip
_EMAIL: Final = (
    r'(?:"[^"]*"|[^\pZ\s@<>"(),:;\[\]\\]+)(?:@|%40|\x{ff20})[\[\pL\pN_][\pL\pN\pM_.:\-\]]*'
)
_RUN: Final = r"[A-Za-z0-9](?:[ \-]?[A-Za-z0-9]){14,}"
_DIGITS: Final = r"\p{Nd}(?:[\s\-\x{a0}\x{2010}-\x{2015}]?\p{Nd}){12,}"
_ADDRESS: Final = r"[0-9A-Fa-f]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*|\d{1,3}(?:\.\d{1,3}){3}"
_PHONE: Final = "|".join((
    r"(?:\+|\b00)[1-9](?:[\s./()\-\x{a0}]{0,2}\p{Nd}){6,15}",
    r"\(?\b\p{Nd}{3}\)?[\s.\-]{1,2}\p{Nd}{3}[\s.\-]\p{Nd}{4}\b",
    r"\(?\b0\p{Nd}{1,5}\)?[\s/\-]{1,2}\p{Nd}(?:[\s\-]?\p{Nd}){4,9}\b",
))  # fmt: skip
# Characters of an account's number, by country (SWIFT's IBAN registry).
_LENGTHS: Final = {
    country: length
    for length, countries in {
        15: "NO", 16: "BE", 18: "DK FI FO GL NL SD FK", 19: "MK SI", 20: "AT BA EE KZ LT LU XK MN",
        21: "CH HR LI LV", 22: "BG BH CR DE GB GE IE ME RS VA", 23: "AE GI IL IQ OM TL SO",
        24: "AD CZ ES MD PK RO SA SE SK TN VG", 25: "LY PT ST", 26: "IS TR",
        27: "FR GR IT MC MR SM BI DJ", 28: "AL AZ BY CY DO GT HN HU LB NI PL SV",
        29: "BR EG PS QA UA", 30: "JO KW MU YE", 31: "MT SC", 32: "LC", 33: "RU",
    }.items()
    for country in countries.split()
}  # fmt: skip


def check(patterns: Iterable[str], expressions: Iterable[str]) -> None:
    """Raise TapsterError(invalid) for a pattern that does not come along, and for an expression
    that RE2 does not take or that matches nothing at all, which is everywhere."""
    for name in patterns:
        if name not in PATTERNS:
            raise TapsterError(
                "invalid",
                f"there is no pattern {name[:100]!r}",
                hint=f"there are: {', '.join(PATTERNS)}",
                field="patterns",
            )
    given = list(expressions)
    if len(given) > MOST_EXPRESSIONS:
        raise _refused(f"there are more than {MOST_EXPRESSIONS} expressions")
    for text in given:
        if not 0 < len(text) <= LONGEST_EXPRESSION or not text.isprintable():
            raise _refused(f"an expression is 1 to {LONGEST_EXPRESSION} printable characters")
        _compiled_own(text)


class Redactor:
    """Takes out what patterns and expressions match, and puts a word for it there."""

    def __init__(self, patterns: Iterable[str], expressions: Iterable[str] = ()) -> None:
        chosen = {ALWAYS, *patterns}
        self._steps = [_STEPS[name] for name in PATTERNS if name in chosen]
        self._own = [_compiled_own(text) for text in expressions]

    def text(self, text: str) -> str:
        """The text without it."""
        try:
            for step in self._steps:
                text = step(text)
            for own in self._own:
                text = own.sub(OWN, text)
        except UnicodeEncodeError:  # half of a surrogate pair, which is no character
            return self.text(text.encode(errors="replace").decode())
        return text


def _compiled_own(text: str) -> Any:
    import re2

    options = re2.Options()
    options.log_errors = False
    options.max_mem = _MEMORY
    try:
        found = re2.compile(text, options)
    except (re2.error, UnicodeEncodeError) as error:
        said = error.args[0] if isinstance(error, re2.error) else "it is not Unicode text"
        reason = said.decode(errors="replace") if isinstance(said, bytes) else str(said)
        raise _refused(f"the expression {text[:60]!r} cannot be used: {reason[:120]}") from None
    if found.search("") is not None:
        raise _refused(f"the expression {text[:60]!r} matches where nothing is")
    return found


def _refused(message: str) -> TapsterError:
    return TapsterError(
        "invalid",
        message,
        hint="expressions are those of RE2: no backreferences, no look-around",
        field="expressions",
    )


@cache
def _compiled(text: str) -> Any:
    import re2

    return re2.compile(text)


def _masking(name: str, expression: str) -> Callable[[str], str]:
    """Replaces all that an expression matches."""

    def step(text: str) -> str:
        found: str = _compiled(expression).sub(f"[{name}]", text)
        return found

    return step


def _checking(
    expression: str, check: Callable[[str], str], needs: frozenset[str] = frozenset()
) -> Callable[[str], str]:
    """Has `check` look at all that an expression matches, and say what is to be there."""

    def step(text: str) -> str:
        if needs and needs.isdisjoint(text):
            return text
        found: str = _compiled(expression).sub(lambda match: check(match.group()), text)
        return found

    return step


def _without_cards(text: str) -> str:
    """A run of digits and separators without numbers that may be a card's: 13 to 19 digits that
    begin as issuers' do, the last by Luhn's formula."""
    places = [at for at, character in enumerate(text) if character.isdecimal()]
    digits = [int(text[at]) for at in places]
    return _masked(text, "[card]", places, (
        (start, start + length)
        for start in range(len(digits) - 12)
        if 2 <= digits[start] <= 6
        for length in range(min(19, len(digits) - start), 12, -1)
        if _luhn(digits[start : start + length])
    ))  # fmt: skip


def _luhn(digits: list[int]) -> bool:
    doubled = sum(2 * digit - 9 * (digit > 4) for digit in digits[-2::-2])
    return (doubled + sum(digits[::-2])) % 10 == 0


def _without_accounts(text: str) -> str:
    places = [at for at, character in enumerate(text) if character.isalnum()]
    letters = "".join(text[at] for at in places).upper()
    return _masked(text, "[iban]", places, (
        (start, start + length)
        for start in range(len(letters) - 14)
        if (length := _LENGTHS.get(letters[start : start + 2], 0))
        and letters[start + 2 : start + 4].isdecimal()
        and _mod97(letters[start : start + length], length)
    ))  # fmt: skip


def _mod97(letters: str, length: int) -> bool:
    if len(letters) < length:
        return False
    return int("".join(str(int(each, 36)) for each in letters[4:] + letters[:4])) % 97 == 1


def _masked(text: str, mask: str, places: list[int], spans: Iterable[tuple[int, int]]) -> str:
    """`text` with a mask where spans of `places` are; spans that touch each other share one."""
    parts: list[str] = []
    end = 0
    for first, behind in spans:
        start, stop = places[first], places[behind - 1] + 1
        if start >= end or not parts:
            parts += [text[end:start], mask]
        end = max(end, stop)
    return "".join((*parts, text[end:]))


def _without_addresses(text: str) -> str:
    for shorter in (text, text.rstrip(".:"), text.strip(".:")):
        try:
            ipaddress.ip_address(shorter)
        except ValueError:
            continue
        return text.replace(shorter, "[ip]", 1)
    if text.count(".") == 3 and ":" in text:  # an address and a port, or what stands before
        return "[ip]"
    return text


_NUMERALS: Final = frozenset("0123456789")
_STEPS: Final[dict[str, Callable[[str], str]]] = {
    "secret": _masking("secret", _SECRET),
    "email": _masking("email", _EMAIL),
    "iban": _checking(_RUN, _without_accounts, _NUMERALS),
    "card": _checking(_DIGITS, _without_cards),
    "ip": _checking(_ADDRESS, _without_addresses, frozenset(".:")),
    "phone": _masking("phone", _PHONE),
}

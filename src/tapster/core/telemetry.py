"""Structured logs: one line an event on stderr, as JSON or for people to read, without secrets.

Every line has the time (UTC), the level, the process it came from and the event. Nothing that a
caller sent can end a line or pass for one: control characters are escaped, texts are cut. What
looks like a key or a password is blotted out wherever it stands.

Lines are formatted and written by a thread, so a log that nobody reads holds nobody up; lines
that find the queue full are counted, and the count is logged.
"""

import json
import logging
import os
import queue
import re
import sys
import threading
import time
import traceback
from contextlib import suppress
from functools import lru_cache
from math import isfinite
from types import TracebackType
from typing import Any, Final, TextIO

JSON: Final = "json"
TEXT: Final = "text"
LONGEST: Final = 2_000
SHORT: Final = 64
LONGEST_TRACE: Final = 8_000
MAX_QUEUE: Final = 10_000
FLUSH_SECONDS: Final = 2.0

_UNSAFE: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]"
)
_SECRETS: Final = (
    (re.compile(r"(ta[ps]_)[\w-]{6,}"), r"\1***"),
    (re.compile(r"(?i)\b(bearer|basic)(\s+)[^\s\"',;]+"), r"\1\2***"),
    (re.compile(r"(://[^\s/:@]*:)\S+@"), r"\1***@"),
)


class Logger:
    """A structured logger: `log.info("event", name=value)`; values are numbers or short texts."""

    def __init__(self, name: str) -> None:
        self._log = logging.getLogger(name)

    def debug(self, event: str, **fields: object) -> None:
        """What only a developer wants to know."""
        self._say(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: object) -> None:
        """Something happened as it should."""
        self._say(logging.INFO, event, fields)

    def warning(self, event: str, **fields: object) -> None:
        """Something is amiss, and the server helps itself."""
        self._say(logging.WARNING, event, fields)

    def error(self, event: str, **fields: object) -> None:
        """Something failed."""
        self._say(logging.ERROR, event, fields)

    def failure(self, event: str, error: BaseException | None, **fields: object) -> None:
        """Something failed, by an exception that is logged with where it was raised."""
        self._say(logging.ERROR, event, fields, error)

    def exception(self, event: str, **fields: object) -> None:
        """Something failed, with the exception being handled."""
        self._say(logging.ERROR, event, fields, sys.exception())

    def enabled(self, level: int) -> bool:
        """Whether events of a level are written."""
        return self._log.isEnabledFor(level)

    def _say(
        self, level: int, event: str, fields: dict[str, object], error: BaseException | None = None
    ) -> None:
        if self._log.isEnabledFor(level):
            self._log.log(level, "%s", event, extra={"fields": fields}, exc_info=error)


def logger(name: str) -> Logger:
    """The structured logger of a module."""
    return Logger(name)


def configure(level: str, form: str, process: str) -> None:
    """Send this process's logs, warnings and uncaught exceptions to stderr.

    `form` is json, text, or auto: text on a terminal, else JSON. `process` says who writes.
    """
    if form not in {JSON, TEXT}:
        form = TEXT if sys.stderr.isatty() else JSON
    writer = Writer(sys.stderr, form, process)
    number = getattr(logging, level.upper(), logging.INFO)
    logging.basicConfig(handlers=[writer], level=number, force=True)
    logging.getLogger("alembic").setLevel(max(number, logging.WARNING))
    logging.captureWarnings(True)
    # Lines do not say where in the code they were written: finding out costs half the time.
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    sys.excepthook = _uncaught
    threading.excepthook = lambda last: _uncaught(last.exc_type, last.exc_value, last.exc_traceback)


def document(record: logging.LogRecord, process: str) -> dict[str, Any]:
    """A record as it is logged: time, level, process, event, then its fields."""
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    found: dict[str, Any] = {
        "time": f"{moment}.{int(record.msecs):03d}Z",
        "level": record.levelname.lower(),
        "process": process,
        "event": clean(record.getMessage()),
    }
    for name, value in getattr(record, "fields", {}).items():
        plain = isinstance(value, int | None) or (isinstance(value, float) and isfinite(value))
        found[name] = value if plain else clean(str(value))
    if record.exc_info and record.exc_info[0] is not None:
        lines = "".join(traceback.format_exception(*record.exc_info)).splitlines()
        found["exception"] = "\n".join(clean(line) for line in lines)[-LONGEST_TRACE:]
    return found


def clean(text: str) -> str:
    """A text as it may stand in a log: on one line, of bounded length, without secrets."""
    return _cleaned_before(text) if len(text) <= SHORT else _clean(text)


def _clean(text: str) -> str:
    text = text[: 2 * LONGEST]
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    if len(text) > LONGEST:
        text = text[: LONGEST - 3] + "..."
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


_cleaned_before: Final = lru_cache(4096)(_clean)


def spell(found: dict[str, Any], form: str) -> str:
    """A document as one line of JSON, or as text, where a traceback follows indented."""
    if form == JSON:
        return json.dumps(found)
    rest = dict(found)
    moment, level, process, event = (rest.pop(n) for n in ("time", "level", "process", "event"))
    trace = rest.pop("exception", "")
    words = "".join(f"  {name}={_word(value)}" for name, value in rest.items())
    line = f"{moment} {level:7} {process}: {event}{words}"
    return line + "".join(f"\n    | {each}" for each in trace.splitlines())


class Writer(logging.Handler):
    """Formats and writes records in a thread of its own."""

    def __init__(self, stream: TextIO, form: str, process: str) -> None:
        super().__init__()
        self._stream = stream
        self._form = form
        self._process = process
        self._queue: queue.SimpleQueue[logging.LogRecord | threading.Event] = queue.SimpleQueue()
        self._dropped = 0
        threading.Thread(target=self._write_on, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a record."""
        if self._queue.qsize() < MAX_QUEUE:
            self._queue.put(record)
        else:
            self._dropped += 1

    def flush(self) -> None:
        """Wait until what is queued is written, for a moment at most."""
        written = threading.Event()
        self._queue.put(written)
        written.wait(FLUSH_SECONDS)

    def _write_on(self) -> None:
        while True:
            entry = self._queue.get()
            if isinstance(entry, threading.Event):
                entry.set()
                continue
            self._write(entry)
            if self._dropped and self._queue.qsize() < MAX_QUEUE // 2:
                count, self._dropped = self._dropped, 0
                lost = logging.LogRecord(__name__, logging.WARNING, "", 0, "", (), None)
                lost.msg, lost.fields = "log lines were dropped", {"count": count}
                self._write(lost)

    def _write(self, record: logging.LogRecord) -> None:
        try:
            line = spell(document(record, self._process), self._form)
        except Exception as error:
            line = json.dumps({"level": "error", "event": f"a line cannot be logged: {error!r}"})
        data = (line + "\n").encode(errors="backslashreplace")
        with suppress(OSError, ValueError):
            while data:
                try:
                    data = data[os.write(self._stream.fileno(), data) :]
                except BlockingIOError:
                    time.sleep(0.01)


def _word(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text[1:-1] if isinstance(value, str) and re.fullmatch(r"[\w./:@+-]+", value) else text


def _uncaught(
    kind: type[BaseException], error: BaseException | None, trace: TracebackType | None
) -> None:
    if issubclass(kind, KeyboardInterrupt | SystemExit):
        sys.__excepthook__(kind, error or kind(), trace)
        return
    logging.getLogger(__name__).critical(
        "%s", "uncaught exception", exc_info=(kind, error or kind(), trace)
    )

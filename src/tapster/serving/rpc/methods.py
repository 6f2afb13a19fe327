"""What a method is: who may call it and what answers."""

from collections.abc import Callable
from typing import Any

from tapster.serving.gate import PREDICT, Pass
from tapster.serving.rest.service import Service
from tapster.serving.rpc.calls import Wire
from tapster.serving.tracing import Operation

Answers = Callable[[Service, Pass | None, Any], Any]


class Method:
    """A method, by what answers it; just one of the three is given.

    `large` says that messages may be as large as bodies: only what carries tensors. `wire` reads
    and writes inference. `answers` gives the answer to any other single message, or
    what to await for it, from the worker, the caller's pass (None where anybody may call) and the
    request, whose class is `request`. `session` begins a call of many messages. `operation` is
    what traces call it.
    """

    __slots__ = ("answers", "large", "operation", "public", "request", "right", "session", "wire")

    operation: Operation

    def __init__(
        self,
        *,
        wire: Wire | None = None,
        answers: Answers | None = None,
        request: Any = None,
        session: Callable[..., Any] | None = None,
        large: bool = False,
        public: bool = False,
        right: str = PREDICT,
    ) -> None:
        self.wire = wire
        self.large = large
        self.answers = answers
        self.request = request
        self.session = session
        self.public = public
        self.right = right

"""Paths to what they ask for. A path is looked at once; the answers are kept, within a bound."""

import re
from typing import Final
from urllib.parse import unquote

import httptools

from tapster.serving.gate import MANAGE, METRICS, PREDICT

MAX_KEPT: Final = 2048
PUBLIC: Final = frozenset({b"/", b"/v2/health/live", b"/v2/health/ready"})

_VERSION: Final = r"(?:/versions/(?P<version>[^/:]+))?"
_OPEN: Final = re.compile(
    rf"/v2/models/(?P<name>[^/]+?){_VERSION}(?P<verb>/infer|/ready|/stats)?", re.DOTALL
)
_REPOSITORY: Final = re.compile(
    r"/v2/repository/models/(?P<name>[^/]+)/(?P<verb>load|unload)", re.DOTALL
)
_TENSORFLOW: Final = re.compile(
    rf"/v1/models/(?P<name>[^/:]+)(?:{_VERSION}|/labels/(?P<label>[^/:]+))"
    r"(?P<verb>/metadata|:predict|:classify|:regress)?",
    re.DOTALL,
)
_OPENAI: Final = re.compile(r"/openai/v1/models/(?P<name>[^/:]+)(?P<verb>)", re.DOTALL)
_PLAIN: Final = re.compile(r"/v1/endpoints/(?P<name>[^/]+)(?P<verb>/predict)", re.DOTALL)
_FIXED: Final = {
    "/": "v1.live",  # KServe's protocol v1
    "/v2": "v2.server",
    "/v2/": "v2.server",
    "/v2/health/live": "v2.live",
    "/v2/health/ready": "v2.ready",
    "/v2/repository/index": "v2.index",
    "/v1/models": "v1.models",
    "/openai/v1/models": "v1.models",
    "/metrics": "metrics",
    "/debug/slow": "debug.slow",
    "/debug/profile": "debug.profile",
}
_PATTERNS: Final = (
    (_PLAIN, {"/predict": "plain.predict"}),
    (_OPENAI, {"": "v1.status"}),
    (_REPOSITORY, {"load": "v2.load", "unload": "v2.unload"}),
    (
        _OPEN,
        {"": "v2.model", "/ready": "v2.model_ready", "/infer": "v2.infer", "/stats": "v2.stats"},
    ),
    (
        _TENSORFLOW,
        {
            "": "v1.status",
            "/metadata": "v1.metadata",
            ":predict": "v1.predict",
            ":classify": "v1.classify",
            ":regress": "v1.regress",
        },
    ),
)
# Every path there is, for the table of rights; tests compare it with the patterns.
_OF_OPEN: Final = tuple(
    f"/v2/models/{{name}}{version}{verb}"
    for version in ("", "/versions/{version}")
    for verb in ("", "/ready", "/infer", "/stats")
)
_OF_TENSORFLOW: Final = tuple(
    f"/v1/models/{{name}}{which}{verb}"
    for which in ("", "/versions/{version}", "/labels/{label}")
    for verb in ("", "/metadata", ":predict", ":classify", ":regress")
)
TEMPLATES: Final = (
    *_FIXED,
    "/v1/endpoints/{name}/predict",
    "/openai/v1/models/{name}",
    "/v2/repository/models/{name}/load",
    "/v2/repository/models/{name}/unload",
    *_OF_OPEN,
    *_OF_TENSORFLOW,
)
KINDS: Final = frozenset(_FIXED.values()).union(*(kinds.values() for _, kinds in _PATTERNS))
CALLS: Final = frozenset({"v2.infer", "v1.predict", "v1.classify", "v1.regress", "plain.predict"})
WATCHING: Final = frozenset({"metrics", "debug.slow", "debug.profile"})
MANAGING: Final = frozenset({"v2.load", "v2.unload"})
POSTS: Final = CALLS | MANAGING | {"v2.index"}


class Route:
    """What a path asks for: the kind of request, and the endpoint, version or label it names."""

    __slots__ = ("call", "kind", "label", "method", "name", "public", "right", "version")

    def __init__(
        self, kind: str, *, name: str = "", version: str = "", label: str = "", public: bool = False
    ) -> None:
        self.kind = kind
        self.name = name
        self.version = version
        self.label = label
        self.public = public
        self.call = kind in CALLS
        self.method = b"POST" if kind in POSTS else b"GET"
        self.right = METRICS if kind in WATCHING else MANAGE if kind in MANAGING else PREDICT


UNKNOWN: Final = Route("unknown")
UNKNOWN_PLAIN: Final = Route("plain.unknown")


class Routes:
    """Routes by request target, as it came."""

    def __init__(self) -> None:
        self._kept: dict[bytes, Route] = {}

    def find(self, target: bytes) -> Route:
        """The route of a request target (a path with or without query, or an absolute URL)."""
        route = self._kept.get(target)
        if route is None:
            route = _parse(target)
            if len(target) <= 512:
                if len(self._kept) >= MAX_KEPT:
                    self._kept.clear()
                self._kept[target] = route
        return route


def _parse(target: bytes) -> Route:
    try:
        raw = httptools.parse_url(target).path or b""
        path = unquote(raw.decode("ascii"), errors="strict")
    except (httptools.HttpParserError, UnicodeDecodeError):
        return UNKNOWN
    if path in _FIXED:
        return Route(_FIXED[path], public=raw in PUBLIC)
    for pattern, kinds in _PATTERNS:
        if found := pattern.fullmatch(path):
            parts = found.groupdict(default="")
            return Route(
                kinds[parts["verb"]],
                name=parts["name"],
                version=parts.get("version", ""),
                label=parts.get("label", ""),
            )
    return UNKNOWN_PLAIN if path.startswith("/v1/endpoints") else UNKNOWN

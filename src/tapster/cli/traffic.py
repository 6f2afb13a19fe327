"""Endpoints as tables and lines for people: what serves, with which share, how it does."""

from collections.abc import Iterator
from typing import Any

from tapster.cli.payloads import described as logged
from tapster.cli.tables import calls, facts, table, when
from tapster.contract.control import Endpoint

Held = dict[str, Any] | None


def described(held: Held) -> str:
    """A set of versions in one line."""
    if held is None:
        return ""
    variants = held.get("variants") or [{**held, "weight": 100, "shadow": False}]
    answering = [each for each in variants if not each["shadow"]]
    shadows = [_ref(each) for each in variants if each["shadow"]]
    if held.get("kind") == "ensemble":
        text = " + ".join(f"{each['weight']:g} x {_ref(each)}" for each in answering)
    elif len(answering) == 1:
        text = _ref(answering[0])
    else:
        text = ", ".join(f"{_ref(each)} {each['weight']:.4g}%" for each in answering)
    return text + (f"; shadow {', '.join(shadows)}" if shadows else "")


def _ref(held: dict[str, Any]) -> str:
    alias = f" ({held['alias']})" if held.get("alias") else ""
    return f"{held['model']}@{held['version']}{alias}"


def endpoints(found: list[Endpoint]) -> Any:
    """Endpoints."""
    return table(
        ["NAME", "OWNER", "STATUS", "SERVES", "LOADING", "BEFORE", "SINCE"],
        (
            [
                e.name,
                e.tenant,
                e.status,
                described(e.serving),
                described(e.pending),
                described(e.previous),
                when(e.updated),
            ]
            for e in found
        ),
    )


def endpoint(seen: Endpoint, rest_url: str) -> Any:
    """Everything about one endpoint."""
    from rich.console import Group

    known: dict[str, Any] = {
        "name": seen.name,
        "owner": seen.tenant,
        "shared with": ", ".join("all" if each == "*" else each for each in seen.shared),
        "status": seen.status,
        "serves": described(seen.serving),
        "loading": described(seen.pending),
        "before": described(seen.previous),
        "since": when(seen.updated),
        **{name: _setting(name, value) for name, value in seen.options.items()},
        "usage": seen.usage,
        "payloads": logged(seen.logging) if seen.logging else "not logged",
    }
    known |= {f"error.{part}": value for part, value in (seen.error or {}).items()}
    parts: list[Any] = [facts(known)]
    if seen.rollout is not None:
        parts += [facts(dict(_rollout(seen.rollout))), _steps(seen.rollout)]
    if seen.traffic:
        parts.append(_traffic(seen.traffic))
    return Group(*parts, calls(seen.name, rest_url))


def deployed(live: Endpoint, rest_url: str) -> str:
    """What to say after a switch."""
    text = f"endpoint {live.name} serves {described(live.serving)}"
    if live.rollout is not None and live.rollout["state"] == "running":
        text += f"\n{progress(live)}\nwatch it:        tapster endpoints show {live.name}"
    return f"{text}\n{calls(live.name, rest_url)}"


def progress(seen: Endpoint) -> str:
    """A rollout in one line."""
    rollout = seen.rollout
    if rollout is None:
        return f"{seen.name}: no canary"
    ref = f"{rollout['model']}@{rollout['version']}"
    if rollout["state"] != "running":
        reason = f": {rollout['reason']}" if rollout["reason"] else ""
        return f"{seen.name}: canary {ref} {rollout['state']}{reason}"
    line = f"{seen.name}: canary {ref} at {rollout['weight']:g}% of {_spelled(rollout)}"
    return f"{line}, waits for {rollout['waits_for']}"


def _spelled(rollout: dict[str, Any]) -> str:
    return ", ".join(f"{step:g}" for step in rollout["steps"])


def _setting(name: str, value: Any) -> str:
    """An option with its unit; its default says what it means."""
    if name == "memory":
        return f"{value} bytes" if value else "as installed"
    if name == "window" and value is None:
        return "chosen by the worker"
    if name in {"cache", "idle"} and not value:
        return "never"
    return f"{value:g} s" if name in {"deadline", "window", "cache", "idle"} else str(value)


def _rollout(rollout: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    yield "canary", f"{rollout['model']}@{rollout['version']}"
    yield "state", rollout["state"]
    yield "at", f"{rollout['weight']:g}% of {_spelled(rollout)}"
    yield "waits for", rollout["waits_for"]
    yield "reason", rollout["reason"]


def _steps(rollout: dict[str, Any]) -> Any:
    """What both sides have answered in each step."""
    lines = [{"weight": step["weight"], **step} for step in rollout["history"]]
    if "now" in rollout:
        lines.append({"weight": rollout["weight"], "verdict": "now", **rollout["now"]})
    return table(
        ["STEP", "SIDE", "REQUESTS", "ERRORS", "P50", "P95", "P99", "VERDICT"],
        (
            [f"{line['weight']:g}%", side, *_figures(line[side]), line["verdict"]]
            for line in lines
            for side in ("canary", "stable")
        ),
    )


def _traffic(lines: list[dict[str, Any]]) -> Any:
    shadowed = any(line["role"] == "shadow" for line in lines)
    names = ("same", "different", "broken", "dropped") if shadowed else ()
    return table(
        ["VERSION", "ROLE", "REQUESTS", "ERRORS", "P50", "P95", "P99", *map(str.upper, names)],
        (
            [
                f"{line['model']}@{line['version']}" if "model" in line else line["version"],
                line["role"],
                *_figures(line),
                *(line.get(name) for name in names),
            ]
            for line in lines
        ),
    )


def _figures(line: dict[str, Any]) -> list[Any]:
    times = [line[name] for name in ("p50", "p95", "p99")]
    spelled = ["" if each is None else f"{1000 * each:.3g} ms" for each in times]
    return [line["requests"], line["errors"], *spelled]

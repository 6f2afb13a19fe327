"""The command line: parse, one client call, print.

`--json` prints one document on stdout; exit 0 done, 1 refused or failed, 2 usage.
"""

import os
import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import typer

from tapster.contract.errors import TapsterError

# Words for people, which may be empty.
_WORDS: Final = frozenset({"--title", "--name", "--description"})


def build() -> typer.Typer:
    """The tree of commands."""
    from tapster.cli import (
        audit,
        data,
        deploying,
        endpoints,
        entering,
        installation,
        invoices,
        jobs,
        keys,
        limits,
        members,
        models,
        payloads,
        prices,
        tenants,
        training,
        trust,
    )

    app = typer.Typer(
        name="tapster",
        help="From a data file to a model that many customers call.",
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    installation.add_to(app)
    app.add_typer(data.app, name="data")
    training.add_to(app)
    app.add_typer(models.app, name="models")
    deploying.add_to(app)
    endpoints.add_to(app)
    payloads.add_to(endpoints.app)
    app.add_typer(endpoints.app, name="endpoints")
    app.add_typer(payloads.app, name="payloads")
    app.add_typer(jobs.app, name="jobs")
    jobs.add_to(app)
    app.add_typer(trust.app, name="trust")
    app.add_typer(tenants.app, name="tenants")
    app.add_typer(members.app, name="members")
    app.add_typer(members.roles, name="roles")
    app.add_typer(keys.app, name="keys")
    entering.add_to(app)
    invoices.add_to(app)
    app.add_typer(prices.app, name="prices")
    app.add_typer(invoices.app, name="invoices")
    app.add_typer(limits.app, name="limits")
    app.add_typer(audit.app, name="audit")
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    from tapster.cli.output import say, tell

    given = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in given
    try:
        _check_empty(given)
        code = build()(given or ["--help"], prog_name="tapster", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except TapsterError as error:
        tell(error, as_json)
        return 1
    except typer.TyperException as error:
        tell(_usage(error, given), as_json)
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        say("interrupted")
        return 1
    except BrokenPipeError:
        # whoever read our output has enough; nothing more can be said there
        sys.stdout = None
        return 1
    except Exception as error:
        if os.environ.get("TAPSTER_DEBUG"):
            raise
        tell(_unexpected(error), as_json)
        return 1


def _check_empty(given: list[str]) -> None:
    """Raise BadParameter for an empty value: of `--tenant "$T"` without a T it would mean another
    tenant than the one that was meant, and an empty path this folder."""
    for before, each in pairwise(["", *given]):
        option, sign, value = each.partition("=") if each.startswith("--") else (before, "=", each)
        if sign and not value and option not in _WORDS:
            what = repr(option) if option.startswith("-") else "an argument"
            raise typer.BadParameter(f"{what} is empty")


def _usage(error: typer.TyperException, given: list[str]) -> TapsterError:
    path = getattr(getattr(error, "ctx", None), "command_path", "tapster")
    return TapsterError("invalid", error.format_message(), hint=f"see: {path} --help")


def _unexpected(error: Exception) -> TapsterError:
    return TapsterError(
        "internal",
        f"an unexpected {type(error).__name__}: {error}",
        hint="this is a fault of Tapster's; set TAPSTER_DEBUG=1 to see where",
    )

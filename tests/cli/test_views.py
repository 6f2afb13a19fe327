"""Tables and bars: complete, and inert whatever the data says."""

import io

import msgspec
from rich.console import Console

from tapster.cli.bills import invoice
from tapster.cli.evaluations import confusion, leaderboard, view
from tapster.cli.output import inert
from tapster.cli.profiles import bars
from tapster.cli.tables import predictions, size, table
from tapster.contract.control import ModelVersion


def _printed(renderable: object) -> str:
    stream = io.StringIO()
    Console(file=stream, width=160, markup=False, highlight=False, emoji=False).print(renderable)
    return stream.getvalue()


def test_bars_show_every_count_that_is_not_zero() -> None:
    assert bars([0, 1, 8, 4]) == " ▁█▄"
    assert bars([0, 1, 100_000]) == " ▁█"
    assert bars([]) == bars([0, 0]).strip()
    assert len(bars(list(range(100)))) == 20


def test_names_are_shown_and_not_obeyed() -> None:
    name = "[bold red]x[/] :smile: \x1b[2J <b>"
    shown = _printed(table(["NAME"], [[name]]))
    assert "[bold red]x[/] :smile: \ufffd[2J <b>" in shown
    assert inert("a\x07b\tc\u202e") == "a\ufffdb\tc\ufffd"


def test_predictions_show_the_likeliest_labels_first() -> None:
    shown = _printed(predictions([{"prediction": "b", "probabilities": {"a": 0.25, "b": 0.75}}]))
    assert "b 75.0%  a 25.0%" in shown


def test_leaderboards_and_matrices_name_their_rows() -> None:
    row = {"rank": 1, "algorithm": "knn", "metric": "log_loss", "value": 0.25, "std": None}
    shown = _printed(leaderboard([{**row, "folds": 5, "state": "scored", "reason": ""}]))
    assert "LOG_LOSS" in shown
    assert "0.2500" in shown
    assert "knn" in shown
    matrix = _printed(confusion(["cat", "dog"], [[5, 1], [0, 7]]))
    cells = [line.split() for line in matrix.splitlines()]
    assert ["cat", "5", "1"] in cells
    assert ["dog", "0", "7"] in cells
    assert "--json" in str(confusion(list(range(50)), [[0] * 50] * 50))


def test_sizes_are_decimal() -> None:
    assert [size(n) for n in (0, 999, 1000, 2.5e6)] == ["0 B", "999 B", "1.0 KB", "2.5 MB"]


def test_an_invoice_names_the_model_where_there_is_one() -> None:
    line = {"owner": "o", "endpoint": "e", "rates": {}, "above": 0, "requests": 0, "rows": 0}
    line |= {"tokens": 0, "compute_seconds": 0.0, "amount": "0.00"}
    lines = [{**line, "model": "m", "version": "1"}, {**line, "model": "", "version": ""}]
    bill = {"number": "n", "month": "2026-11", "status": "final", "lines": lines}
    shown = _printed(
        invoice({**bill, "total": "0.00", "currency": "EUR", "showback": {"lines": []}})
    )
    assert "m@1" in shown
    assert " @ " not in shown


def test_a_model_without_a_known_origin_has_no_empty_table() -> None:
    given = dict.fromkeys(("model", "task", "runtime", "digest", "description"), "m")
    lent = msgspec.convert(
        {**given, "version": 1, "bytes": 1, "signature": {}, "lineage": {}, "metrics": {},
         "tags": {}, "aliases": [], "created": 0.0, "signer": "k", "owner": "o"},
        ModelVersion,
    )  # fmt: skip
    assert "nothing there" not in _printed(view(lent, {}, {}))

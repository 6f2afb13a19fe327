"""Tables and bars: complete, and inert whatever the data says."""

import io

from rich.console import Console

from tapster.cli.evaluations import confusion, leaderboard
from tapster.cli.output import inert
from tapster.cli.profiles import bars
from tapster.cli.tables import predictions, size, table


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

"""CSV on the plain wire: typed by the model's columns, errors by line and column, CSV back."""

import csv
import gzip
import io
from typing import Any

import pytest

from tests.serving.conftest import Answer, Plane
from tests.serving.rest.test_plain import MIXED, SUM
from tests.serving.rest.test_tf_serving import QUOTED, ROW

HEADER = 'size,city,member,since,"<b>""quoted""\'; 😀"\r\n'


def send(plane: Plane, path: str, text: str | bytes, **headers: str) -> Answer:
    body = text.encode() if isinstance(text, str) else text
    return plane.call("POST", path, body, Content_Type="text/csv", **headers)


def test_values_are_what_the_columns_say(plane: Plane) -> None:
    rows: list[dict[str, Any]] = [
        ROW,
        ROW | {"city": "", "member": False, "size": -1e-3},
        ROW | {"since": None, "size": None, "member": None},
        ROW | {QUOTED: 'a "b", c\r\nd', "city": "São Paulo"},
    ]
    wanted = plane.call("POST", MIXED, {"rows": rows}).json()
    lines = (
        "0.5,Turin,true,1970-01-01,\r\n",
        '-1e-3,,FALSE,1970-01-01,""\r\n',
        "\r\n,Turin,,,\r\n",
        '0.5,São Paulo,1,1970-01-01,"a ""b"", c\r\nd"\r\n',
    )
    table = HEADER + "".join(lines)
    kept = table.replace("\r\n", "\n")
    for text in (table, "\ufeff" + table, kept, table[:-2], "\r\n\n" + table):
        answer = send(plane, MIXED, text)
        assert answer.status == 200, answer
        assert answer.json() == wanted
    other_order = "gamma,alpha,beta\n3,1,2\nNaN,4,5\n"
    assert send(plane, SUM, other_order).body == (
        b'{"predictions":[{"prediction":7.0},{"prediction":NaN}]}'
    )
    kinds = ("text/csv; charset=utf-8", "TEXT/CSV; header=present")
    for kind in kinds:
        assert plane.call("POST", SUM, other_order.encode(), Content_Type=kind).status == 200


def table_of(answer: Answer) -> list[dict[str, str]]:
    assert answer.status == 200, answer
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    return list(csv.DictReader(io.StringIO(answer.body.decode())))


def test_predictions_come_as_csv_to_those_who_want_it(plane: Plane) -> None:
    rows = [ROW, ROW | {"city": "Rome", "member": False}]
    wanted = plane.call("POST", MIXED, {"rows": rows}).json()["predictions"]
    found = table_of(plane.call("POST", MIXED, {"rows": rows}, Accept="text/csv, */*;q=0.1"))
    assert [
        {
            "prediction": row["prediction"],
            "probabilities": {c: float(row[f"probability_{c}"]) for c in ("no", "yes")},
        }
        for row in found
    ] == wanted
    answer = send(plane, SUM, "alpha,beta,gamma\n1,2,3\nNaN,1,1\n", Accept="text/csv")
    assert table_of(answer) == [{"prediction": "7.0"}, {"prediction": "NaN"}]
    error = send(plane, SUM, "alpha\n1\n", Accept="text/csv")
    assert (error.status, error.headers["content-type"]) == (400, "application/json")
    for other in ("/v2/models/sum/infer", "/v1/models/sum:predict"):
        assert send(plane, other, "alpha,beta,gamma\n1,2,3\n").status == 415


def test_large_tables(plane: Plane) -> None:
    count = 50_000
    text = "alpha,beta,gamma\n" + "".join(f"{n},0.5,-1\n" for n in range(count))
    wanted = [str(n + 0.5) for n in range(count)]
    answer = send(plane, SUM, text, Accept="text/csv", Accept_Encoding="gzip")
    assert answer.headers["content-encoding"] == "gzip"
    answer.body = gzip.decompress(answer.body)
    assert [row["prediction"] for row in table_of(answer)] == wanted
    packed = gzip.compress(text.encode())
    again = send(plane, SUM, packed, Content_Encoding="gzip").json()["predictions"]
    assert [str(row["prediction"]) for row in again] == wanted
    broken = text.replace("\n49999,", "\nx,")
    assert "line 50001, column 'alpha'" in send(plane, SUM, broken).json()["error"]["message"]


@pytest.mark.parametrize(
    ("text", "words", "field"),
    [
        ("", "the header lacks columns 'alpha', 'beta', 'gamma'", "alpha"),
        ("alpha,beta,gamma\n", "no rows", ""),
        ("alpha,beta,gamma\n\n\n", "no rows", ""),
        ("alpha,beta\n1,2\n", "the header lacks column 'gamma'", "gamma"),
        ("alpha,beta,gama\n1,2,3\n", "'gama' that the model does not know", "gamma"),
        ("alpha,beta,gamma,alpha\n1,2,3,4\n", "'alpha' twice", "alpha"),
        ("alpha;beta;gamma\n1;2;3\n", "no column of the model", ""),
        ("1,2,3\n4,5,6\n", "lacks columns", "alpha"),
        ("alpha,beta,gamma\n1,2\n", "line 2 has 2 values, the header 3", "line 2"),
        ("alpha,beta,gamma\n1,2,3\n1,2,3,4\n", "line 3 has 4 values", "line 3"),
        ("alpha,beta,gamma\n1,2,3\n\n1,two,3\n", "line 4, column 'beta'", "line 4, beta"),
        ("alpha,beta,gamma\n1,2,inf\n", "column 'gamma': expected a finite", "line 2, gamma"),
        ("alpha,beta,gamma\n1,2,1e39\n", "fits in a 32-bit float", "line 2, gamma"),
        ("alpha,beta,gamma\n1,2,1_000\n", "expected a number", "line 2, gamma"),
        ('alpha,beta,gamma\n1,2,"3\n', "line 2", ""),
        ('alpha,beta,gamma\n1,"2"x,3\n', "line 2", ""),
        (b"alpha,beta,gamma\n1,2,\xff\n", "not UTF-8", ""),
        (b"\xff\xfea\x00", "not UTF-8", ""),
        ("alpha,beta,gamma\n1,2," + "3" * 200_000 + "\n", "line 2", ""),
    ],
)  # fmt: skip
def test_errors_name_line_and_column(
    plane: Plane, text: str | bytes, words: str, field: str
) -> None:
    answer = send(plane, SUM, text)
    assert answer.status == 400, answer
    error = answer.json()["error"]
    assert words in error["message"]
    assert error["field"] == field
    assert len(answer.body) < 1000


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("0.5,Turin,maybe,1970-01-01,\n", "line 2, column 'member': expected true or false"),
        ("0.5,Turin,true,yesterday,\n", "line 2, column 'since': expected a date"),
        ("0.5,Turin,true,1970-02-30,\n", "line 2, column 'since': expected a date"),
        ("0.5,Turin,true,1970-01-01,\nx,Turin,true,1970-01-01,\n", "line 3, column 'size'"),
    ],
)
def test_errors_of_each_kind_of_column(plane: Plane, row: str, words: str) -> None:
    assert words in send(plane, MIXED, HEADER + row).json()["error"]["message"]

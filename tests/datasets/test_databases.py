"""Tables and queries of real SQLite and PostgreSQL databases, read and never written."""

import datetime as dt
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tapster.contract.errors import TapsterError
from tapster.datasets import service
from tests.datasets.conftest import TENANT, Desk

ODD = 'odd "table"; --'


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    path = tmp_path / "shop.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE orders (id INT, price REAL, note TEXT, day TEXT, mixed)")
        rows = [
            (
                i,
                i / 2,
                f"note {i}" if i % 3 else "",
                f"2024-01-{i % 28 + 1:02}",
                i if i % 2 else "x",
            )
            for i in range(1000)
        ]
        connection.executemany("INSERT INTO orders VALUES (?, ?, ?, ?, ?)", rows)
        connection.execute("INSERT INTO orders VALUES (NULL, NULL, NULL, NULL, NULL)")
        connection.execute('CREATE TABLE "odd ""table""; --" ("<b>""x""</b>" INTEGER, "😀" TEXT)')
        connection.execute("""INSERT INTO "odd ""table""; --" VALUES (1, 'DROP TABLE x')""")
        connection.execute("CREATE TABLE vacant (a)")
        connection.execute("CREATE TABLE binary_too (a BLOB)")
        connection.execute("INSERT INTO binary_too VALUES (x'00ff')")
    connection.close()
    return path


def test_a_table_of_sqlite(desk: Desk, shop: Path) -> None:
    result = desk.add("t", url=f"sqlite:///{shop}", table="orders")
    assert desk.types("t") == {
        "id": "integer", "price": "number", "note": "text", "day": "date", "mixed": "text",
    }  # fmt: skip
    frame = desk.frame("t")
    assert frame.height == result["rows"] == 1001
    assert frame.row(1) == (1, 0.5, "note 1", dt.date(2024, 1, 2), "1")
    assert frame.row(0)[2] is None
    assert frame.row(1000) == (None,) * 5


def test_a_query_and_odd_names(desk: Desk, shop: Path) -> None:
    url = f"sqlite:///{shop}"
    desk.add("q", url=url, query="-- the last\nSELECT max(id) AS m, 'x;y' AS s FROM orders")
    assert desk.frame("q").rows(named=True) == [{"m": 999, "s": "x;y"}]
    desk.add("o", url=url, table=ODD)
    assert desk.frame("o").rows(named=True) == [{'<b>"x"</b>': 1, "😀": "DROP TABLE x"}]


def test_the_same_rows_are_the_same_version(desk: Desk, shop: Path) -> None:
    url = f"sqlite:///{shop}"
    first = desk.add("t", url=url, table="orders")
    assert desk.add("t", url=url, query="SELECT * FROM orders")["version"] == first["version"]
    assert desk.add("t", url=url, query="SELECT * FROM orders LIMIT 9")["version"] == 2


@pytest.mark.parametrize(
    "query",
    [
        "DELETE FROM orders",
        "SELECT 1; DELETE FROM orders",
        "WITH x AS (SELECT 1) DELETE FROM orders",
        "SELECT load_extension('x')",
        "ATTACH DATABASE '/tmp/x.db' AS x",
        "PRAGMA writable_schema=1",
        "VACUUM INTO '/tmp/x.db'",
    ],
)
def test_a_query_of_sqlite_only_reads(query: str, desk: Desk, shop: Path) -> None:
    before = shop.read_bytes()
    with pytest.raises(TapsterError) as caught:
        desk.add("t", url=f"sqlite:///{shop}", query=query)
    assert (caught.value.code, caught.value.field) == ("invalid", "query")
    assert shop.read_bytes() == before


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        ({"table": "order"}, "not_found", "no table 'order'"),
        ({"table": "vacant"}, "invalid", "no rows"),
        ({"table": "binary_too"}, "invalid", "column 'a' holds bytes values"),
        ({"query": "SELECT nope FROM orders"}, "invalid", "no such column: nope"),
        ({"query": "SELECT 1 AS a, 2 AS a"}, "invalid", "two columns named 'a'"),
        ({}, "invalid", "either a table or a query"),
        ({"table": "a", "query": "SELECT 1"}, "invalid", "either a table or a query"),
    ],
)
def test_bad_requests(
    options: dict[str, str], code: str, says: str, desk: Desk, shop: Path
) -> None:
    with pytest.raises(TapsterError, match=says) as caught:
        desk.add("t", url=f"sqlite:///{shop}", **options)
    assert caught.value.code == code


def test_the_least_whole_number_leaves_the_others_exact(desk: Desk, shop: Path) -> None:
    numbers = [-(1 << 63), (1 << 53) + 1, (1 << 63) - 1]
    query = (
        f"SELECT CAST('{numbers[0]}' AS INT) AS n UNION ALL VALUES ({numbers[1]}), ({numbers[2]})"
    )
    desk.add("n", url=f"sqlite:///{shop}", query=query)
    assert desk.types("n") == {"n": "integer"}
    assert desk.frame("n")["n"].to_list() == numbers


def test_comments_before_a_query_are_read_in_no_time(desk: Desk, shop: Path) -> None:
    url, comments = f"sqlite:///{shop}", "/* a */--b\n/**/" * 30
    desk.add("q", url=url, query=f"{comments}SELECT id FROM orders")
    with pytest.raises(TapsterError, match="does not begin with SELECT"):
        desk.add("q", url=url, query=f"{comments}DELETE FROM orders")


def test_only_real_sqlite_files_that_are_not_ours(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "x.db").write_text("root:x:0:0")
    with pytest.raises(TapsterError, match="not an SQLite database"):
        desk.add("t", url=f"sqlite:///{tmp_path / 'x.db'}", table="t")
    with pytest.raises(TapsterError, match="no readable file"):
        desk.add("t", url=f"sqlite:///{tmp_path / 'y.db'}", table="t")
    assert not (tmp_path / "y.db").exists()
    own = desk.parts.settings.home / "tapster.db"
    (tmp_path / "link.db").symlink_to(own)
    for path in (own, tmp_path / "link.db"):
        with pytest.raises(TapsterError, match="Tapster's own") as caught:
            desk.add("t", url=f"sqlite:///{path}", table="keys")
        assert caught.value.code == "forbidden"


@pytest.fixture
def pg(postgresql: str) -> str:
    with psycopg.connect(postgresql, autocommit=True) as connection:
        connection.execute("DROP SCHEMA IF EXISTS s CASCADE; DROP TABLE IF EXISTS orders")
        connection.execute(
            "CREATE TABLE orders (id bigint, price numeric(10, 2), ok boolean, day date, "
            'at timestamptz, "<b>""x""</b>" text, doc text)'
        )
        connection.execute(
            "INSERT INTO orders SELECT i, i / 4.0, i % 2 = 0, date '2024-01-01' + i % 9, "
            "timestamptz '2024-01-01 00:00+02', 'w' || i, NULL FROM generate_series(1, 2000) i"
        )
        connection.execute("CREATE SCHEMA s; CREATE TABLE s.t (a int); INSERT INTO s.t VALUES (7)")
        connection.execute("CREATE TABLE s.j (a jsonb); INSERT INTO s.j VALUES ('{}')")
    return postgresql


def test_a_table_of_postgresql(desk: Desk, pg: str) -> None:
    assert desk.add("t", url=pg, table="orders")["rows"] == 2000
    assert list(desk.types("t").values()) == [
        "integer", "number", "boolean", "date", "datetime", "text", "text",
    ]  # fmt: skip
    row = desk.frame("t").row(1)
    assert row == (2, 0.5, True, dt.date(2024, 1, 3), dt.datetime(2023, 12, 31, 22), "w2", None)
    assert desk.frame("t").columns[5] == '<b>"x"</b>'
    desk.add("s", url=pg, table="s.t")
    desk.add("q", url=pg, query="SELECT count(*) FILTER (WHERE doc LIKE '%x%') AS n FROM orders;")
    assert desk.frame("s").rows() == [(7,)]
    assert desk.frame("q").rows() == [(0,)]


@pytest.mark.parametrize(
    "query",
    [
        "SELECT 1; DROP TABLE orders",
        "SELECT 1; COMMIT; DROP TABLE orders",
        "WITH x AS (DELETE FROM orders RETURNING *) SELECT * FROM x",
        "SELECT nextval('sq')",
        "SELECT * FROM nope",
    ],
)
def test_a_query_of_postgresql_only_reads(query: str, desk: Desk, pg: str) -> None:
    with psycopg.connect(pg, autocommit=True) as connection:
        connection.execute("CREATE SEQUENCE IF NOT EXISTS sq")
    with pytest.raises(TapsterError) as caught:
        desk.add("t", url=pg, query=query)
    assert (caught.value.code, caught.value.field) == ("invalid", "query")
    with psycopg.connect(pg) as connection:
        assert connection.execute("SELECT count(*) FROM orders").fetchone() == (2000,)


def test_what_postgresql_cannot_give(desk: Desk, pg: str) -> None:
    with pytest.raises(TapsterError, match="no table 'order'") as caught:
        desk.add("t", url=pg, table="order")
    assert caught.value.code == "not_found"
    with pytest.raises(TapsterError, match="column 'a' holds dict values"):
        desk.add("t", url=pg, table="s.j")


def test_an_unreachable_database_is_told_without_its_password(desk: Desk) -> None:
    url = "postgresql://me:hunter2@127.0.0.1:1/shop?connect_timeout=2"
    job = desk.submit("t", url=url, table="t")
    assert "hunter2" not in json.dumps(job.spec)
    assert job.spec["url"] == "postgresql://me:***@127.0.0.1:1/shop"
    with pytest.raises(TapsterError, match="cannot be read") as caught:
        desk.do(job)
    assert caught.value.code == "unavailable"
    assert "hunter2" not in str(caught.value.as_dict())


def test_a_password_is_no_part_of_what_is_registered(desk: Desk, pg: str) -> None:
    url = pg + ("&" if "?" in pg else "?") + "application_name=x"
    desk.do(desk.submit("t", url=url, table="orders"))
    with desk.parts.db.read() as tx:
        source = service.resolve(tx, TENANT, "t").source
    assert "application_name" not in json.dumps(source)


@pytest.fixture
def bucket(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    import boto3

    for name, value in {
        "AWS_ENDPOINT_URL": s3,
        "AWS_ACCESS_KEY_ID": "k",
        "AWS_SECRET_ACCESS_KEY": "s",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="tapster-data")
    yield client
    client.close()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_objects_of_s3(desk: Desk, bucket: Any, monkeypatch: pytest.MonkeyPatch, put: Any) -> None:
    path = put("a b.csv", "x,y\n1,a\n2,b\n")
    bucket.upload_file(str(path), "tapster-data", "in/a b.csv")
    bucket.put_object(Bucket="tapster-data", Key="in/b.csv", Body=b"x,y\n3,c\n")
    one = desk.add("t", url="s3://tapster-data/in/a b.csv")
    assert desk.add("t", path)["version"] == one["version"] == 1
    desk.add("t", url="s3://tapster-data/in/")
    assert desk.frame("t").rows() == [(1, "a"), (2, "b"), (3, "c")]
    for url, says in {
        "s3://tapster-data/nope.csv": "no object s3://tapster-data/nope.csv",
        "s3://tapster-none/a.csv": "no bucket 'tapster-none'|no object s3://tapster-none/a.csv",
        "s3://tapster-data/none/": "no objects under",
        "s3://tapster-data": "names no object",
    }.items():
        with pytest.raises(TapsterError, match=says):
            desk.add("u", url=url)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(TapsterError, match="does not answer") as caught:
        desk.add("u", url="s3://tapster-data/in/b.csv")
    assert caught.value.code == "unavailable"


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:///shop.db",
        "s3://bucket/key",
        "postgresql:///shop",
        "postgresql://ann@db.example/shop",
        "postgresql://:secret@db.example/shop",
        "postgresql://ann:secret@/shop",
        "postgresql://ann:secret@db.example,/shop",
        "postgresql://ann:secret@%2Fvar%2Frun/shop",
        "postgresql://ann:secret@db.example/shop?host=/var/run",
        "postgresql://ann:secret@db.example/shop?passfile=/home/ann/.pgpass",
        "postgresql://ann:secret@db.example/shop?sslmode=require&service=x",
    ],
)
def test_another_tenant_reads_nothing_as_the_server(url: str, shop: Path, tmp_path: Path) -> None:
    url = url.replace("shop.db", str(shop))
    spec: dict[str, Any] = {
        "name": "x", "upload": "", "url": url, "query": "", "schema": {}, "format": "",
        "infinities": "refuse", "table": "" if url.startswith("s3:") else "orders",
    }  # fmt: skip
    assert service.check_import(spec, tmp_path / "home")["name"] == "x", (
        "the installation itself may"
    )
    with pytest.raises(TapsterError) as caught:
        service.check_import(spec, tmp_path, "acme")
    assert (caught.value.code, caught.value.field) == ("forbidden", "url")
    assert str(shop) not in caught.value.message


def test_another_tenant_reads_a_database_that_it_may(tmp_path: Path) -> None:
    for place in ("db.example", "db.example:5433", "[::1]:5433"):
        url = f"postgresql://ann:secret@{place}/shop?sslmode=require"
        spec: dict[str, Any] = {
            "name": "x", "upload": "", "url": url, "query": "", "schema": {}, "format": "",
            "infinities": "refuse", "table": "orders",
        }  # fmt: skip
        assert service.check_import(spec, tmp_path, "acme")["url"] == url

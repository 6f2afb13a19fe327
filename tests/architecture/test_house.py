"""The rules of the house that a machine can check."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest

import tapster

SOURCE = Path(tapster.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
# A query that reads or writes across tenants says so, for a reader to see.
ACROSS = re.compile(r"\b(any|every|all|whichever|over all) tenants?\b|tenant's", re.IGNORECASE)
QUERIES = {"select", "update", "delete"}


def _functions(path: Path) -> Iterator[ast.FunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            yield node


def _calls(function: ast.FunctionDef) -> set[str]:
    return {
        node.func.id
        for node in ast.walk(function)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_imports_follow_the_order_of_the_house() -> None:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports"))],
        cwd=SOURCE.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_every_query_filters_by_tenant_or_says_that_it_does_not() -> None:
    loose = []
    for path in SOURCE.rglob("store.py"):
        for function in _functions(path):
            if not _calls(function) & QUERIES:
                continue
            bound = ".c.tenant ==" in ast.unparse(function) or ".c.tenant, " in ast.unparse(
                function
            )
            if not bound and not ACROSS.search(ast.get_docstring(function) or ""):
                loose.append(f"{path.relative_to(SOURCE)}:{function.lineno} {function.name}")
    assert loose == []


def test_sql_is_written_in_stores_only() -> None:
    allowed = {"sqlalchemy.Connection", "sqlalchemy.exc.DBAPIError", "sqlalchemy.exc.DataError"}
    strays = [
        f"{path.relative_to(SOURCE)}: {name}"
        for path in FILES
        if path.name != "store.py" and "core" not in path.relative_to(SOURCE).parts
        for name in _imports(path)
        if name.startswith("sqlalchemy") and name not in allowed
    ]
    assert strays == []


def test_pickle_stays_in_the_conversion_of_a_jobs_own_object() -> None:
    risky = ("pickle", "joblib", "dill", "cloudpickle", "marshal", "shelve")
    found = {
        path.relative_to(SOURCE).as_posix()
        for path in FILES
        for name in _imports(path)
        if name.split(".")[0] in risky
    }
    assert found <= {"training/conversion.py", "cli/demo.py", "cli/peer.py"}


@pytest.mark.parametrize(
    ("module", "banned"),
    [
        ("tapster", "numpy polars sklearn httpx fastapi sqlalchemy onnx onnxruntime typer rich"),
        ("tapster.cli", "numpy polars sklearn fastapi sqlalchemy onnx onnxruntime httpx"),
        ("tapster.supervisor", "numpy polars sklearn fastapi sqlalchemy onnx onnxruntime httpx"),
        ("tapster.app", "polars sklearn onnx onnxruntime optuna torch pandas scipy"),
        ("tapster.serving.worker", "polars sklearn fastapi pydantic sqlalchemy httpx onnx scipy"),
    ],
)
def test_a_process_imports_only_what_it_needs(module: str, banned: str) -> None:
    code = f"import sys, {module}; print(*sorted(set({banned.split()!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_files_stay_small_and_documented() -> None:
    long = [str(path) for path in FILES if path.read_text().count("\n") > 450]
    silent = [str(path) for path in FILES if ast.get_docstring(ast.parse(path.read_text())) is None]
    assert (long, silent) == ([], [])


def test_names_say_what_they_are() -> None:
    vague = {"utils", "helpers", "manager", "base", "common", "misc"}
    names = {path.stem for path in FILES} | {path.parent.name for path in FILES}
    assert names & vague == set()
    inside = {path.stem for path in FILES} - {"__init__", "__main__"}
    assert inside & set(sys.stdlib_module_names) == set()


def test_every_library_is_named_in_pyproject() -> None:
    project = tomllib.loads((SOURCE.parents[1] / "pyproject.toml").read_text())["project"]
    lines = list(chain(project["dependencies"], *project["optional-dependencies"].values()))
    named = {re.split(r"[<>=\[]", line)[0].replace("-", "_") for line in lines}
    spelled = {
        "argon2": "argon2_cffi",
        "google": "protobuf",
        "re2": "google_re2",
        "sklearn": "scikit_learn",
        "xgboost": "xgboost_cpu",
    }
    used = {name.split(".")[0] for path in FILES for name in _imports(path)}
    foreign = used - set(sys.stdlib_module_names) - {"tapster"}
    assert {spelled.get(name, name) for name in foreign} - named == set()


def test_threads_find_their_types_worked_out() -> None:
    """msgspec 0.22 crashes when two threads work out one type at its first use."""
    late = [
        f"{path.relative_to(SOURCE)}:{node.lineno}"
        for path in FILES
        if path.relative_to(SOURCE).parts[0] in {"serving", "runtimes", "contract"}
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).startswith("msgspec.")
        and ast.unparse(node.func).endswith("decode")
        and any(keyword.arg == "type" for keyword in node.keywords)
    ]
    assert late == []

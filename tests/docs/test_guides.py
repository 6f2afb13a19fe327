"""The guides do what they show, and everything there is has its place in one."""

import importlib
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer.main

from tapster.cli import build
from tapster.contract.errors import CODES
from tapster.core import plugins
from tapster.core.settings import Settings
from tapster.datasets.declarations import OPERATIONS
from tapster.training import trainers
from tapster.training.vocabulary import EVERY_METRIC
from tests.conftest import Server
from tests.docs import guide_pages

DOCS = Path(__file__).parents[2] / "docs"
FIRST = "getting-started.md"
GUIDES = (
    "guides/data.md",
    "guides/training.md",
    "guides/packages.md",
    "guides/serving.md",
    "guides/traffic.md",
    "guides/sharing.md",
    "guides/tenants.md",
    "guides/limits.md",
    "guides/billing.md",
    "guides/metering.md",
    "guides/engine.md",
    "guides/fairness.md",
    "guides/isolation.md",
    "guides/faults.md",
    "guides/observability.md",
    "guides/audit.md",
    "guides/privacy.md",
    "guides/payloads.md",
    "guides/operations.md",
    "plugins.md",
)
GOES_ON_FROM = {
    "guides/serving.md": "guides/training.md",
    "guides/traffic.md": "guides/training.md",
    "guides/engine.md": "guides/training.md",
    "guides/fairness.md": "guides/training.md",
    "guides/isolation.md": "",
    "guides/privacy.md": "",
}
# Pages that are read with a server of their own, and how it is set up.
SETTINGS = {"guides/isolation.md": {"TAPSTER_PYTHON_MODELS": "true"}}


class Reader:
    """Somebody who follows pages in one folder, each once."""

    def __init__(self, folder: Path, server: Server) -> None:
        self.folder, self.server = folder, server
        self.read_pages: set[str] = set()

    def follow(self, page: str) -> int:
        """Do what a page says, after the page it goes on from; how many steps that was."""
        if page != FIRST and (before := GOES_ON_FROM.get(page, FIRST)):
            self.follow(before)
        found = guide_pages.steps((DOCS / page).read_text())
        if page not in self.read_pages:
            self.read_pages.add(page)
            for step in found:
                guide_pages.run(step, self.folder, self.server)
        return len(found)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory, server: Server) -> Reader:
    return Reader(tmp_path_factory.mktemp("reader"), server)


@pytest.mark.parametrize("page", [FIRST, *(page for page in GUIDES if page not in SETTINGS)])
def test_a_page_does_what_it_shows(page: str, reader: Reader) -> None:
    assert reader.follow(page) > 0


@pytest.mark.parametrize("page", SETTINGS)
def test_a_page_with_settings_does_what_it_shows(page: str, tmp_path: Path) -> None:
    running = Server(tmp_path / "home", SETTINGS[page]).start()
    (tmp_path / "reader").mkdir()
    try:
        assert Reader(tmp_path / "reader", running).follow(page) > 0
    finally:
        assert running.stop() == 0


def test_every_page_is_read() -> None:
    assert {f"guides/{page.name}" for page in (DOCS / "guides").glob("*.md")} < set(GUIDES)
    index = (DOCS / "README.md").read_text()
    missing = [page for page in DOCS.rglob("*.md") if str(page.relative_to(DOCS)) not in index]
    assert [page.name for page in missing if page.parent.name != "adr"] == ["README.md"]


def test_every_setting_is_explained() -> None:
    text = (DOCS / "guides/operations.md").read_text()
    names = [f"TAPSTER_{item.name.upper()}" for item in fields(Settings)]
    assert [name for name in names if f"`{name}`" not in text] == []


def test_every_error_code_is_explained() -> None:
    text = (DOCS / "guides/serving.md").read_text()
    assert [code for code in CODES if f"`{code}`" not in text] == []


def test_every_command_is_shown_somewhere() -> None:
    text = "".join(page.read_text() for page in [DOCS / FIRST, *(DOCS / g for g in GUIDES)])
    reference = (DOCS / "reference/cli.md").read_text()
    commands = [row[4:-1] for row in reference.splitlines() if row.startswith("## `")]
    words = [
        " ".join(w for w in row.split() if w == w.lower() and "[" not in w) for row in commands
    ]
    assert len(words) > 25
    assert [command for command in words if command not in text] == []


def _commands(command: Any, path: str = "tapster") -> dict[str, set[str]]:
    """Every command by its words, with its options."""
    children = getattr(command, "commands", None)
    if not children:
        return {path: {name for parameter in command.params for name in parameter.opts}}
    found = {path: {"--version"}}
    for name, child in children.items():
        found |= _commands(child, f"{path} {name}")
    return found


def test_every_command_line_that_is_shown_can_be_typed() -> None:
    known = _commands(typer.main.get_command(build()))
    wrong, seen = [], 0
    for page in [DOCS.parent / "README.md", *DOCS.rglob("*.md")]:
        for row in re.findall(r"^(?:[$>] )?(tapster .*)$", page.read_text(), re.MULTILINE):
            words = row.partition("#")[0].split()
            name = next((" ".join(words[:n]) for n in (3, 2) if " ".join(words[:n]) in known), "")
            options = {word.partition("=")[0] for word in words if re.match("--[a-z]", word)}
            seen += 1
            wrong += [row] if not name or options - known[name] else []
    assert seen > 60
    assert wrong == []


def test_every_step_of_a_recipe_is_explained() -> None:
    text = (DOCS / "guides/data.md").read_text()
    assert [name for name in OPERATIONS if f"`{name}`" not in text] == []
    parameters = {key for operation in OPERATIONS.values() for key in operation.parameters}
    assert sorted(key for key in parameters if f"`{key}`" not in text) == []


def test_every_algorithm_and_metric_is_named() -> None:
    text = (DOCS / "guides/training.md").read_text()
    assert [name for name in (*trainers.names(), *EVERY_METRIC) if f"`{name}`" not in text] == []


def test_every_seam_is_described() -> None:
    text = (DOCS / "plugins.md").read_text()
    seams = {
        "tapster.trainers": "tapster.training.trainers:Trainer",
        "tapster.runtimes": "tapster.runtimes:Runtime",
        "tapster.executors": "tapster.jobs.executors:Executor",
        "tapster.blob_stores": "tapster.core.blobs:BlobStore",
    }
    for group, protocol in seams.items():
        module, _, name = protocol.partition(":")
        methods = [m for m in vars(getattr(importlib.import_module(module), name)) if m[0] != "_"]
        assert plugins.names(group)
        assert 1 <= len(methods) <= 5
        assert [word for word in (group, *methods) if f"`{word}" not in text] == []


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        (["a ... c"], ["a b c"], True),
        (["a ... c"], ["a b d"], False),
        (["a", "...", "d"], ["a", "b", "c", "d"], True),
        (["a", "..."], ["a"], True),
        (["a"], ["a", "b"], False),
    ],
)
def test_shown_output_is_compared(shown: list[str], printed: list[str], same: bool) -> None:
    assert guide_pages.matches(shown, printed) is same

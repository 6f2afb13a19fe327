"""What the documents claim is so."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.conftest import Server

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
EXAMPLES = sorted(
    ROOT.glob("examples/*.py"), key=lambda path: (path.stem != "quickstart", path.stem)
)


def _generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_what_the_code_says() -> None:
    for name, text in _generator().pages().items():
        written = (ROOT / "docs" / "reference" / name).read_text()
        assert written == text, f"{name} is stale: run `make docs`"


def test_links_between_pages_lead_somewhere() -> None:
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in PAGES
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text())
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert broken == []


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(example: Path, server: Server) -> None:
    done = subprocess.run(
        [sys.executable, str(example)],
        env={
            "PATH": str(Path(sys.executable).parent),
            "TAPSTER_URL": server.url,
            "TAPSTER_KEY": server.key,
            "TAPSTER_HOME": str(server.home),
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_the_readme_names_the_two_commands_and_stays_short() -> None:
    readme = (ROOT / "README.md").read_text()
    assert "make demo" in readme
    assert "make test" in readme
    assert readme.count("\n") < 150
    assert "make test" in (ROOT / ".ci" / "run").read_text()

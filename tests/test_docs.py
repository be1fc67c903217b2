"""Documentation that is tested."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bed.node import PACKAGES

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def test_the_tables_of_the_readme_are_those_of_the_program() -> None:
    """Options and exit codes stand in the README as the program has them."""
    subprocess.run([sys.executable, "-m", "cogapp", "-I", ".", "--check", "README.md"], cwd=ROOT, check=True)


def test_ci_runs_the_command_of_the_readme() -> None:
    """The test command of the README is what CI runs, step by step."""
    (command,) = re.findall(r"## Test it\n\n```console\n(.*)\n```", (ROOT / "README.md").read_text())
    ci = (ROOT / ".ci" / "run").read_text().replace(" --quiet", "")

    assert [step in ci.splitlines() for step in command.split(" && ")] == [True, True, True]


def test_ci_installs_the_packages_of_the_readme() -> None:
    """The packages that a real cluster needs are the same in the README, in CI, and where their absence is told."""
    (packages,) = re.findall(r"\napt-get install (.*)\n", (ROOT / "README.md").read_text())
    ci = (ROOT / ".ci" / "run").read_text()

    assert f" {packages}\n" in ci
    assert set(packages.split()) == PACKAGES - {"dpkg", "util-linux"}  # which every Debian has


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link of a page names a file."""
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())

    assert [link for link in links if not (page.parent / link).exists()] == []


def test_every_rule_of_the_design_has_a_test() -> None:
    """Each rule of docs/design.md that is stated there has a test named after it."""
    rules = re.findall(r"^- \*\*R(\d+) ", (ROOT / "docs" / "design.md").read_text(), re.MULTILINE)
    tests = "\n".join(file.read_text() for file in ROOT.glob("tests/**/test_*.py"))

    assert len(rules) > 10
    assert [rule for rule in rules if f"def test_r{rule}_" not in tests] == []

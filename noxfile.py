"""The only entry point: `nox` checks and tests everything, `nox -s demo` shows it at work."""

import os
import tempfile
import tomllib
from pathlib import Path

import nox

nox.needs_version = ">=2024.10.9"
nox.options.sessions = ["lint", "types", "layers", "tests", "cluster"]
nox.options.reuse_venv = "yes"
nox.options.default_venv_backend = "uv"

PYTHON_FILES = ("job", "tests", "docs", "examples", "noxfile.py")
NEVER_IMPORTED = ("aiohttp", "aiohttp-retry", "rich")
"""What dependencies name for what is not used of them: kubernetes.aio, and the colours of typer."""
LOCKED = {
    "requirements.txt": (),
    "requirements-image.txt": (
        "--no-default-groups",
        "--all-extras",
        *(f"--prune={package}" for package in NEVER_IMPORTED),
    ),
    "requirements-build.txt": ("--only-group=build",),
}
"""The files with pins and hashes, and the part of the resolution that each has."""


def install(session: nox.Session) -> None:
    """Install the locked dependencies, and the program itself from this folder."""
    session.install("--require-hashes", "-r", "requirements.txt")
    session.install("--no-deps", "-e", ".")


@nox.session
def lint(session: nox.Session) -> None:
    """Style, spelling, and formatting."""
    install(session)
    session.run("ruff", "check", *PYTHON_FILES)
    session.run("ruff", "format", "--check", *PYTHON_FILES)
    pages = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "cronjob.yaml", "Dockerfile")
    session.run("codespell", "job", "tests", "docs", "examples", *pages)


@nox.session
def types(session: nox.Session) -> None:
    """Check types, strictly."""
    install(session)
    session.run("mypy", "job", "tests", "docs", "examples")


@nox.session
def layers(session: nox.Session) -> None:
    """Check that dependencies point one way."""
    install(session)
    session.run("lint-imports")


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests; the first time this builds etcd and kube-apiserver, which takes some minutes."""
    install(session)
    session.run("python", "-m", "tests.bed.binaries")
    session.run("pytest", "-m", "not long and not cluster", *session.posargs)


@nox.session
def cluster(session: nox.Session) -> None:
    """Test the image, and the CronJob's ticks in a real cluster; wants root and Debian's packages, and says which."""
    if os.geteuid() != 0:
        session.skip("a node wants root")
    install(session)
    session.run("python", "-m", "tests.bed.node", "pytest", "-m", "cluster and not long", *session.posargs)


@nox.session
def long(session: nox.Session) -> None:
    """Run the tests that take many minutes; as root, all those in a real cluster, too."""
    install(session)
    # 5: nothing of what was asked for is here.
    found = (0, 5)
    session.run("pytest", "-m", "long and not cluster", "--log-cli-level=INFO", *session.posargs, success_codes=found)
    if os.geteuid() != 0:
        session.warn("the tests in a real cluster were left out: a node wants root")
        return
    session.run(
        "python", "-m", "tests.bed.node", "pytest", "-m", "cluster", "-v", *session.posargs, success_codes=found
    )


@nox.session
def coverage(session: nox.Session) -> None:
    """Run the tests, the processes that they start included, and report the branches that nothing reaches."""
    install(session)
    session.run("coverage", "erase")
    session.run("coverage", "run", "-m", "pytest", "-m", "not long and not cluster", *session.posargs)
    session.run("coverage", "combine", "--quiet")
    session.run("coverage", "report")


@nox.session
def demo(session: nox.Session) -> None:
    """Show three runs against a real control plane on this machine: a first one, a resumed one, an expired one."""
    install(session)
    session.run("python", "-m", "examples.three_runs", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure what a run costs, beside what others take; `-- --check` compares with the bounds."""
    install(session)
    session.run("python", "-m", "tests.benchmarks", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Write the generated parts of the documentation anew."""
    install(session)
    session.run("python", "-m", "docs.generate")
    session.run("python", "-m", "cogapp", "-I", ".", "-r", "README.md")


@nox.session
def lock(session: nox.Session) -> None:
    """Resolve the dependencies anew, and write requirements.txt and, of the same resolution, what the image needs."""
    pyproject = Path("pyproject.toml").read_text()
    with tempfile.TemporaryDirectory() as folder:
        # In a folder of its own, since a uv.lock names the registry that it was made with.
        project = Path(folder)
        (project / "pyproject.toml").write_text(pyproject)
        (project / "README.md").touch()

        def uv(*arguments: str) -> str:
            command = ("uv", *arguments, f"--directory={folder}")
            return str(session.run(*command, silent=True, external=True, env={"VIRTUAL_ENV": ""}))

        # What builds the program has no place in the development's environment: pip and uv get it by themselves.
        uv("add", "--no-sync", "--raw", "--group=build", *tomllib.loads(pyproject)["build-system"]["requires"])
        for name, part in LOCKED.items():
            exported = uv("export", "--quiet", "--no-header", "--no-emit-project", "--no-annotate", *part)
            Path(name).write_text(f"# Written by `nox -s lock` from pyproject.toml.\n{exported}")

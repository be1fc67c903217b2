"""Tests of the image itself: what it is, what is in it, and that the program starts without what was left out."""

from __future__ import annotations

import ast
import tarfile
import tomllib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

from tests.bed.image import REPOSITORY, Image
from tests.image.conftest import Files
from tests.image.container import NOBODY, Containers

pytestmark = pytest.mark.cluster

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
PACKAGES = "opt/workflow-watcher/lib/python3.11/site-packages"
PYTHON = "/opt/workflow-watcher/bin/python"
OPEN = ("tmp", "var/tmp", "var/lock", "run/lock", "home/nonroot")
"""Of the base image, and below a root file system that is read-only: where everybody may write, or its user."""
MOST_COMPRESSED_BYTES = 75_000_000
"""cronjob.yaml leaves twenty seconds to a pod's start: on a node that pulls 5 MB/s most of them go into this."""
SHELLS = {"sh", "bash", "dash", "ash", "busybox", "zsh", "toybox"}
PACKAGE_MANAGERS = {"apt", "apt-get", "dpkg", "pip", "pip3", "uv"}
CREDENTIALS_OF_AMAZON = ("sts", "sso", "sso-oidc", "signin")
HELP = sorted((REPOSITORY / "tests" / "cli").glob("*-help.txt"))
_EXTENSION = ".cpython-311-x86_64-linux-gnu.so"


def imports() -> Iterator[str]:
    """Every statement by which the program imports something that is not its own, types included."""
    for file in sorted((REPOSITORY / "job").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            origin = node.module if isinstance(node, ast.ImportFrom) else names[0] if names else None
            typing_only = str(origin).startswith("mypy_boto3")  # stubs, which are no code
            if names and not typing_only and str(origin).partition(".")[0] not in ("job", "__future__"):
                yield ast.unparse(node)


def extension_modules(files: Files) -> Iterator[str]:
    """The names of all that were compiled to machine code, where PyPI's packages are."""
    for path in files:
        if path.startswith(PACKAGES) and path.endswith(".so"):
            yield path.removeprefix(f"{PACKAGES}/").removesuffix(_EXTENSION).removesuffix(".abi3.so").replace("/", ".")


def test_it_says_what_it_is(image: Image) -> None:
    """Labels, user, folder and entry point are those that a kubelet, a scanner and cronjob.yaml rely on."""
    labels = {
        name.removeprefix("org.opencontainers.image."): text
        for name, text in image.settings["Labels"].items()
        if name.startswith("org.opencontainers.image.")
    }

    assert labels == {
        "title": PROJECT["name"],
        "description": PROJECT["description"],
        "version": PROJECT["version"],
        "revision": "unreleased",
        "created": "1970-01-01T00:00:00Z",
    }
    assert image.settings["User"] == f"{NOBODY}:{NOBODY}"
    assert (image.settings["Entrypoint"], image.settings.get("Cmd")) == (["workflow-watcher"], None)
    assert image.settings["WorkingDir"] == "/"


def test_the_digest_is_that_of_the_archive(image: Image) -> None:
    """What a pod names is the hash of the manifest's bytes, which is also the name of the file that they are in."""
    with tarfile.open(image.archive) as archive:
        assert f"blobs/{image.digest.replace(':', '/')}" in archive.getnames()
    assert image.pinned == f"localhost/workflow-watcher@{image.digest}"


def test_nothing_in_it_can_be_changed_by_its_user(files: Files) -> None:
    """Files belong to root, and nobody else may write them; there is nothing that gives its rights away."""
    inside = {path: file for path, file in files.items() if path not in OPEN}

    assert [path for path, file in inside.items() if NOBODY in (file.uid, file.gid)] == []
    assert [path for path, file in inside.items() if file.mode & 0o002 and not file.issym()] == []
    assert [path for path, file in files.items() if file.mode & 0o6000 and file.isfile()] == []
    assert [path for path, file in files.items() if "SCHILY.xattr.security.capability" in file.pax_headers] == []


def test_there_is_no_shell_and_no_package_manager(files: Files) -> None:
    """Nothing by the name of one, in any folder; and no pip as a module."""
    names = {PurePosixPath(path).name for path, file in files.items() if not file.isdir()}

    assert names & (SHELLS | PACKAGE_MANAGERS) == set()
    assert [path for path in files if path.startswith((f"{PACKAGES}/pip", f"{PACKAGES}/setuptools"))] == []


def test_every_source_has_its_byte_code(files: Files) -> None:
    """Python's own library and that of others: nobody could write it later, and every start would compile again."""
    library = {PurePosixPath(path) for path in files if path.startswith(("usr/lib/python3.11/", PACKAGES))}
    sources = {path for path in library if path.suffix == ".py"}
    compiled = {path for path in library if path.suffix == ".pyc"}

    assert len(sources) > 1_000
    assert compiled == {path.parent / "__pycache__" / f"{path.stem}.cpython-311.pyc" for path in sources}


def test_it_is_small(image: Image) -> None:
    """What is pulled stays within what a pod's start leaves time for."""
    assert image.compressed_bytes < MOST_COMPRESSED_BYTES


def test_it_tells_its_version(containers: Containers) -> None:
    """The entry point is found, and is the program of the label."""
    outcome = containers.run("--version")

    assert (outcome.code, outcome.stdout.decode(), outcome.stderr) == (0, f"{PROJECT['version']}\n", "")


def test_it_runs_as_anybody(containers: Containers) -> None:
    """A cluster that gives each namespace a user of its own starts it as one that the image does not know."""
    containers.user = 1_000_650_000
    outcome = containers.run("--version")

    assert (outcome.code, outcome.stderr) == (0, "")


@pytest.mark.parametrize("golden", HELP, ids=lambda path: path.stem)
def test_its_help_is_that_of_the_program(containers: Containers, golden: Path) -> None:
    """To the letter, though what would colour it is not in the image."""
    outcome = containers.run(golden.stem.removesuffix("-help"), "--help", environment={"COLUMNS": "80"})

    assert (outcome.code, outcome.stderr) == (0, "")
    assert outcome.stdout.decode() == golden.read_text()


def test_a_mistyped_option_is_told(containers: Containers) -> None:
    """As outside of the image: one line, and 2."""
    outcome = containers.run("run", "--windw=5s")

    assert (outcome.code, outcome.stdout) == (2, b"")
    assert "--windw" in outcome.stderr


def test_all_that_the_program_imports_is_there(containers: Containers) -> None:
    """Also what it imports only when something has failed, and what extension modules there are."""
    statements = sorted(set(imports()))
    script = containers.files / "imports.py"
    script.write_text("\n".join(statements))
    outcome = containers.run("-W", "error::ImportWarning", "/etc/watcher/imports.py", program=PYTHON)

    assert any("kubernetes" in statement for statement in statements)
    assert (outcome.code, outcome.stderr) == (0, "")


def test_every_extension_module_loads(containers: Containers, files: Files) -> None:
    """What lies in them for debuggers was cut out, which must have left the rest whole."""
    names = sorted(extension_modules(files))
    script = containers.files / "extensions.py"
    script.write_text(f"import importlib\nfor name in {names!r}:\n    importlib.import_module(name)\n")
    outcome = containers.run("/etc/watcher/extensions.py", program=PYTHON)

    assert len(names) > 10
    assert (outcome.code, outcome.stderr) == (0, "")


@pytest.mark.parametrize("service", CREDENTIALS_OF_AMAZON)
def test_credentials_of_amazon_can_be_asked_for(containers: Containers, service: str) -> None:
    """The services that hand out credentials are described, as the queues are; hardly any other one is."""
    script = containers.files / "client.py"
    script.write_text(
        "import botocore.session, sys\n"
        "botocore.session.get_session().create_client(sys.argv[1], region_name='eu-west-1')\n"
    )
    outcome = containers.run("/etc/watcher/client.py", service, program=PYTHON)

    assert (outcome.code, outcome.stderr) == (0, "")


def test_a_traceback_has_its_lines(containers: Containers) -> None:
    """The sources are there, ours and those of others, and byte code names the paths at which they are."""
    script = containers.files / "traceback.py"
    script.write_text("from job.settings import parse_duration\nparse_duration(None)\n")
    outcome = containers.run("/etc/watcher/traceback.py", program=PYTHON)

    *_, where, line, _ = [text for text in outcome.stderr.splitlines() if "^^^" not in text]
    assert where.startswith(f'  File "/{PACKAGES}/job/settings.py", line ')
    assert "value" in line or "text" in line, outcome.stderr

"""The images that a node of the bed runs, built without an engine and without a registry.

`python -m tests.bed.image` builds both, that of the Dockerfile and the pause image, and says how large they are. It
needs root, buildah, and Debian's tools for file systems: what the Dockerfile starts from is not pulled. In its place
stand the same packages from Debian's archive. How this machine reaches Debian's and Python's packages is mounted into
the build, and becomes no part of the image.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from tests.bed.cache import built_once, cache_folder, run_with_progress

REPOSITORY = Path(__file__).parents[2]
WATCHER, PAUSE = "localhost/workflow-watcher:test", "localhost/pause:1"
_SOURCES = (
    *("Dockerfile", ".dockerignore", "requirements-build.txt", "requirements-image.txt", "pyproject.toml", "README.md"),
    "job/**/*.py",
)
_PROGRAMS = {"buildah": "buildah", "mmdebstrap": "mmdebstrap", "dpkg-deb": "dpkg", "gcc": "gcc"}
"""What it takes, and Debian's package of it."""
PACKAGES = frozenset({*_PROGRAMS.values(), "libc6-dev"})
_RELEASE = "bookworm"
_BUILDER = ("binutils", "python3-venv")
_BASE = (
    *("base-files", "media-types", "netbase", "tzdata", "ca-certificates", "libc6", "libssl3", "gcc-12-base"),
    *("libgcc-s1", "libgomp1", "libstdc++6", "libbz2-1.0", "libcom-err2", "libcrypt1", "libdb5.3", "libexpat1"),
    *("libffi8", "libgssapi-krb5-2", "libk5crypto3", "libkeyutils1", "libkrb5-3", "libkrb5support0", "liblzma5"),
    *("libncursesw6", "libnsl2", "libpython3.11-minimal", "libpython3.11-stdlib", "libreadline8", "libsqlite3-0"),
    *("libtinfo6", "libtirpc3", "libuuid1", "python3-distutils", "python3.11-minimal", "zlib1g"),
)
"""https://github.com/GoogleContainerTools/distroless: static, base, cc and python3, each with all before it."""
_UNREAD = ("man", "locale", "lintian", "bug")
_BASE_CONTAINERFILE = """\
FROM scratch
ADD base.tar /
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt LANG=C.UTF-8
USER 65532
WORKDIR /home/nonroot
ENTRYPOINT ["/usr/bin/python3.11"]
"""
_BUILDER_CONTAINERFILE = "FROM scratch\nADD builder.tar /\n"
_PAUSE_CONTAINERFILE = 'FROM scratch\nCOPY pause /pause\nENTRYPOINT ["/pause"]\n'
_PAUSE_C = """\
#include <signal.h>
#include <unistd.h>
int main(void) { signal(SIGTERM, _exit); signal(SIGINT, _exit); for (;;) pause(); }
"""
_VARIABLE = "BED_WATCHER_IMAGE"
_KEPT = 3
"""Archives of earlier states of the sources: another test run may be at work with one."""
_STAGES = ("library", "program")
"""Those of the Dockerfile that no other one is made from: with names, their layers stay in the store as a cache."""


@dataclass(frozen=True)
class Image:
    """One image, as an archive of the Open Container Initiative's form that `ctr images import` takes."""

    reference: str
    """As a pod names it by its tag."""
    archive: Path
    digest: str
    """Of its manifest: the same in every registry and in containerd."""

    @property
    def pinned(self) -> str:
        """As a pod names it by its digest."""
        return f"{self.reference.rpartition(':')[0]}@{self.digest}"

    @property
    def import_command(self) -> list[str]:
        """For `ctr -n k8s.io`: a kubelet then finds it under both names, if it is to pull only what is not present."""
        return ["images", "import", "--digests", f"--base-name={self.reference.rpartition(':')[0]}", str(self.archive)]

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What the digest is of; the layers' sizes are those of their compressed form."""
        return dict(json.loads(self._blob(self.digest)))

    @cached_property
    def settings(self) -> dict[str, Any]:
        """User, Entrypoint, Env, Labels, WorkingDir."""
        return dict(json.loads(self._blob(self.manifest["config"]["digest"]))["config"])

    @property
    def compressed_bytes(self) -> int:
        """What is pulled."""
        return sum(layer["size"] for layer in self.manifest["layers"])

    @property
    def unpacked_bytes(self) -> int:
        """What lies on a node's disk, in all layers."""
        return sum(member.size for layer in self.layers() for member in layer)

    def layers(self) -> Iterator[tarfile.TarFile]:
        """The layers, from the lowest to the highest; each is closed with the next."""
        with tarfile.open(self.archive) as archive:
            for layer in self.manifest["layers"]:
                with tarfile.open(fileobj=archive.extractfile(_blob_path(layer["digest"]))) as opened:
                    yield opened

    def unpack(self, folder: Path) -> None:
        """Lay the image's file system out in a new folder."""
        for layer in self.layers():
            # None of them removes anything: nothing after a FROM is more than COPY.
            layer.extractall(folder, numeric_owner=True, filter="fully_trusted")

    def _blob(self, digest: str) -> bytes:
        with tarfile.open(self.archive) as archive:
            blob = archive.extractfile(_blob_path(digest))
            assert blob is not None
            return blob.read()


def missing() -> list[str]:
    """What this machine lacks for building images, in words; nothing if they can be built."""
    found = lacking(_PROGRAMS)
    if not Path("/usr/include/stdio.h").exists():
        found.append("the headers of C (apt-get install libc6-dev)")
    if os.geteuid() != 0:
        found.append("root, for the owners of files and for buildah's mounts")
    return found


def lacking(programs: Mapping[str, str]) -> list[str]:
    """Which of these are not in the PATH, with Debian's package of each."""
    return [f"{name} (apt-get install {package})" for name, package in programs.items() if shutil.which(name) is None]


def found_by() -> dict[str, str]:
    """Variables by which processes in another network find the image as it is now, whatever becomes of the sources."""
    return {_VARIABLE: str(watcher_image().archive)}


def watcher_image() -> Image:
    """Build the Dockerfile's image from what the sources are now, or find it."""
    if archive := os.environ.get(_VARIABLE):
        return _read(Path(archive), WATCHER)
    # Read once: somebody may be writing them.
    files = sorted(file for pattern in _SOURCES for file in REPOSITORY.glob(pattern))
    sources = {str(file.relative_to(REPOSITORY)): file.read_bytes() for file in files}
    recipe = (_BASE_CONTAINERFILE, _BUILDER_CONTAINERFILE, *_BASE, *_BUILDER)
    key = _key(*recipe, *(f"{name}\n{text.decode()}" for name, text in sources.items()))
    return _built("workflow-watcher", key, WATCHER, partial(_build_watcher, sources))


def pause_image() -> Image:
    """The image of the process that holds a pod's namespaces."""
    return _built("pause", _key(_PAUSE_C, _PAUSE_CONTAINERFILE), PAUSE, _build_pause)


def _built(name: str, key: str, reference: str, build: Callable[[Path], None]) -> Image:
    archive = built_once(_folder() / f"{name}-{key}.tar", build)
    archive.touch()  # used now
    for old in sorted(_folder().glob(f"{name}-*.tar"), key=lambda file: -file.stat().st_mtime)[_KEPT:]:
        old.unlink(missing_ok=True)
    return _read(archive, reference)


def _read(archive: Path, reference: str) -> Image:
    with tarfile.open(archive) as opened:
        index = opened.extractfile("index.json")
        assert index is not None
        return Image(reference, archive, str(json.load(index)["manifests"][0]["digest"]))


def _build_watcher(sources: Mapping[str, bytes], target: Path) -> None:
    version = tomllib.loads(sources["pyproject.toml"].decode())["project"]["version"]
    stand_ins = {
        "BUILDER": ("builder", _BUILDER_CONTAINERFILE, _make_builder, _key(*_BUILDER)),
        "BASE": ("base", _BASE_CONTAINERFILE, _make_base, _key(*_BASE)),
    }
    arguments = {"VERSION": version, "REVISION": "unreleased", "CREATED": "1970-01-01T00:00:00Z"}
    with _store() as buildah, tempfile.TemporaryDirectory() as folder:
        context = Path(folder, "context")
        for path, content in sources.items():
            (context / path).parent.mkdir(parents=True, exist_ok=True)
            (context / path).write_bytes(content)
        for argument, (name, containerfile, make, key) in stand_ins.items():
            arguments[argument] = f"localhost/stand-in-{name}:{_key(key, containerfile)}"
            if not _in_store(buildah, arguments[argument]):
                tar = built_once(_folder() / f"{name}-{key}.tar", make)
                _build_small(buildah, arguments[argument], containerfile, {f"{name}.tar": tar})
        command = [*buildah, "bud", "--layers", "--pull=never", "--network=host", "--timestamp=0"]
        command += [f"--volume={source}:{inside}:ro" for source, inside in _reaching_packages(Path(folder))]
        command += [f"--build-arg={name}={value}" for name, value in arguments.items()]
        for stage in _STAGES:
            target_stage = [f"--target={stage}", f"--tag=localhost/stage-{stage}", str(context)]
            run_with_progress([*command, *target_stage], f"the stage {stage} of the image")
        run_with_progress([*command, f"--tag={WATCHER}", str(context)], "the image of workflow-watcher")
        _push(buildah, WATCHER, target)


def _build_pause(target: Path) -> None:
    with _store() as buildah, tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder, "pause.c"), Path(folder, "pause")
        source.write_text(_PAUSE_C)
        run_with_progress(["gcc", "-static", "-Os", "-s", "-o", str(program), str(source)], "pause")
        _build_small(buildah, PAUSE, _PAUSE_CONTAINERFILE, {"pause": program})
        _push(buildah, PAUSE, target)


def _make_builder(target: Path) -> None:
    """The file system of debian:12-slim, and what the Dockerfile adds to it."""
    options = ["--variant=minbase", "--format=tar", f"--include={','.join(_BUILDER)}"]
    options += [f"--dpkgopt=path-exclude=/usr/share/{unread}/*" for unread in _UNREAD]
    run_with_progress(["mmdebstrap", *options, _RELEASE, str(target)], "the stand-in for the image that builds")


def _make_base(target: Path) -> None:
    """The file system of distroless/python3-debian12: files of packages, and nothing that was ever run."""
    with tempfile.TemporaryDirectory() as folder:
        root, archives = Path(folder, "root"), Path(folder, "archives")
        hook = f'cp -r "$1/var/cache/apt/archives" {shlex.quote(str(archives))}'
        options = ["--variant=extract", "--format=null", f"--include={','.join(_BASE)}", f"--extract-hook={hook}"]
        run_with_progress(["mmdebstrap", *options, _RELEASE, "-"], "the packages of the stand-in base image")
        for package in sorted(archives.glob("*.deb")):
            if package.name.partition("_")[0] in _BASE:  # the others are what they depend on, dpkg and so on
                subprocess.run(["dpkg-deb", "--extract", str(package), str(root)], check=True)
        for unread in _UNREAD:
            shutil.rmtree(root / "usr/share" / unread, ignore_errors=True)
        for name in ("python", "python3"):
            (root / "usr/bin" / name).symlink_to("/usr/bin/python3.11")
        authorities = sorted((root / "usr/share/ca-certificates/mozilla").glob("*.crt"))
        bundle = root / "etc/ssl/certs/ca-certificates.crt"
        bundle.parent.mkdir(parents=True, exist_ok=True)
        bundle.write_text("".join(file.read_text() for file in authorities))
        (root / "etc/passwd").write_text(
            "root:x:0:0:root:/root:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin\n"
        )
        (root / "etc/group").write_text("root:x:0:\nnonroot:x:65532:\n")
        home = root / "home/nonroot"
        home.mkdir(0o700, parents=True)
        os.chown(home, 65532, 65532)
        (root / "tmp").chmod(0o1777)
        run_with_progress(["tar", "-C", str(root), "-cf", str(target), "."], "the stand-in base image")


@contextmanager
def _store() -> Iterator[list[str]]:
    """The command of buildah, with a store of its own that nobody else uses meanwhile."""
    folder = _folder() / "store"
    folder.mkdir(parents=True, exist_ok=True)
    with (_folder() / "store.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        buildah = ["env", "BUILDAH_ISOLATION=chroot", "STORAGE_DRIVER=overlay", "buildah"]
        buildah += ["--root", str(folder), "--runroot", str(_folder() / "run")]
        try:
            yield buildah
        finally:
            # What a stage copied from stays mounted, and what has lost its name to a newer build stays on disk.
            for tidy in (["rm", "--all"], ["rmi", "--prune"]):
                subprocess.run([*buildah, *tidy], check=False, stdout=subprocess.DEVNULL)


def _build_small(buildah: Sequence[str], reference: str, containerfile: str, files: dict[str, Path]) -> None:
    with tempfile.TemporaryDirectory(dir=_folder()) as folder:
        Path(folder, "Containerfile").write_text(containerfile)
        for name, file in files.items():
            Path(folder, name).hardlink_to(file) if file.is_relative_to(_folder()) else shutil.copy(file, folder)
        run_with_progress([*buildah, "bud", "--timestamp=0", f"--tag={reference}", folder], reference)


def _push(buildah: Sequence[str], reference: str, target: Path) -> None:
    run_with_progress([*buildah, "push", reference, f"oci-archive:{target}:{reference}"], f"the archive of {reference}")


def _in_store(buildah: Sequence[str], reference: str) -> bool:
    return bool(_answer([*buildah, "images", "--quiet", "--filter", f"reference={reference}"]).strip())


def _reaching_packages(folder: Path) -> Iterator[tuple[Path, str]]:
    """What of this machine makes its pip and its apt reach their packages, and where a build looks for it."""
    yield Path("/etc/ssl/certs"), "/etc/ssl/certs"
    if Path("/etc/pip.conf").exists():
        yield Path("/etc/pip.conf"), "/etc/pip.conf"
    options = {name[4:].lower().replace("_", "-"): text for name, text in os.environ.items() if name[:4] == "PIP_"}
    chosen = folder / "pip.conf"  # that of the user, which wins over the machine's, as the environment does
    chosen.write_text("".join(["[global]\n", *(f"{name} = {text}\n" for name, text in options.items())]))
    yield chosen, "/root/.config/pip/pip.conf"
    acquire = folder / "apt.conf"
    acquire.write_text(_answer(["apt-config", "dump", "Acquire"]))
    yield acquire, "/etc/apt/apt.conf.d/zz-machine"


def _answer(command: list[str]) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def _folder() -> Path:
    folder = cache_folder() / "images"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _key(*ingredients: str) -> str:
    return hashlib.sha256("\0".join(ingredients).encode()).hexdigest()[:12]


def _blob_path(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def main() -> int:
    """Build or find both images, and print what they are."""
    if found := missing():
        sys.stderr.write(f"no images can be built here; missing: {'; '.join(found)}\n")
        return 1
    for build in (pause_image, watcher_image):
        began = time.monotonic()
        image = build()
        seconds = time.monotonic() - began
        sizes = f"{image.compressed_bytes / 1e6:.1f} MB compressed, {image.unpacked_bytes / 1e6:.1f} MB unpacked"
        sys.stdout.write(f"{image.pinned}\n  {image.archive}\n  {sizes}, {seconds:.1f} s\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

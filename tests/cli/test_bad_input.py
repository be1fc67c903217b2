"""Tests of what cannot work: the exit code says who must act, one or two lines say what, and nothing is written."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from job.checkpoint import Scope
from job.ports import Identity
from tests.bed.cluster import Cluster
from tests.bed.control_plane import ControlPlane
from tests.fakes.api_faults import EXPIRED_WATCH, watches
from tests.fakes.api_proxy import ApiProxy
from tests.program import Outcome, Program
from tests.wire.told import SinkFile, acknowledged, changes, edit_checkpoint, gaps, ids

USAGE, TEMPORARY, ACTION_NEEDED = 2, 75, 78


def assert_refused(outcome: Outcome, code: int, *words: str) -> None:
    """Refused with this exit code, in one log line of at most two lines of text with all these words."""
    assert outcome.code == code, outcome.stderr
    assert outcome.stdout == b""
    (line,) = outcome.lines
    message = line["message"]
    assert [word for word in words if word not in message] == [], message
    assert len(message.splitlines()) <= 2
    assert "Traceback" not in outcome.stderr


def files(folder: Path) -> dict[str, bytes]:
    """Everything in a folder."""
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--sink=kafka://broker/topic"], ["kafka://broker/topic", "stdout:", "file:"]),
        (["--sink=changes.jsonl"], ["changes.jsonl", "file:"]),
        (["--sink=file:changes.txt"], ["changes.txt", ".jsonl"]),
        (["--sink=file://host/changes.jsonl"], ["file://host/changes.jsonl", "file:PATH"]),
        (["--sink=file:"], ["file:"]),
        (["--sink=stdout:changes"], ["stdout:changes"]),
        (["--checkpoint=s4://bucket/object"], ["s4://bucket/object", "file:"]),
        (["--checkpoint=file:"], ["'file:' lacks a path"]),
        (["--checkpoint=checkpoint.json.gz"], ["checkpoint.json.gz", "file:"]),
        (["--window=55"], ["'55'", "55s"]),
        (["--window=1m-5s"], ["'1m-5s'", "4m30s"]),
        (["--window="], ["duration", "55s"]),
        (["--window=2s"], ["2s", "3s", "0s"]),
        (["--resource=workflows"], ["'workflows'", "plural.version.group", "pods.v1"]),
        (["--resource=Workflow.v1alpha1.argoproj.io"], ["'Workflow.v1alpha1.argoproj.io'", "plural.version.group"]),
        (["--resource-version=latest"], ["'latest'", "resourceVersion"]),
        (["--namespace=Not_A_Name"], ["'Not_A_Name'", "namespace"]),
        (["--namespace=argo", "--all-namespaces"], ["--namespace", "--all-namespaces"]),
        (["--selector=a in b"], ["'a in b'", "selector"]),
        (["--initial=all"], ["--initial", "'all'", "publish", "skip"]),
        (["--log-format=xml"], ["--log-format", "'xml'", "json", "console"]),
        (["--windw=5s"], ["--windw", "--window"]),
        (["argo"], ["argo"]),
    ],
    ids=lambda value: "_".join(value) if value and value[0].startswith("--") else "",
)
def test_a_value_that_cannot_be_meant_is_a_usage_error(options: list[str], words: list[str], tmp_path: Path) -> None:
    """A wrong option is named with what it should be, before anything is opened."""
    outcome = Program(None, tmp_path).run(*options)

    assert_refused(outcome, USAGE, *words)
    assert files(tmp_path) == {}


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"WATCHER_WINDWO": "5s"}, ["WATCHER_WINDWO", "WATCHER_WINDOW"]),
        ({"WATCHER_WINDOW": "5"}, ["'5'", "55s"]),
        ({"WATCHER_INITIAL": "all"}, ["WATCHER_INITIAL", "'all'", "publish", "skip"]),
    ],
    ids=["unknown", "bad-duration", "bad-choice"],
)
def test_a_wrong_variable_is_a_usage_error(environment: dict[str, str], words: list[str], tmp_path: Path) -> None:
    """A misspelt variable does not turn into a default, nor does a value that cannot be meant."""
    outcome = Program(None, tmp_path).run(environment=environment)

    assert_refused(outcome, USAGE, *words)
    assert files(tmp_path) == {}


def test_variables_that_kubernetes_makes_for_services_pass(program: Program) -> None:
    """A Service that is called `watcher` does not keep the program from running in its namespace."""
    made = {
        "WATCHER_SERVICE_HOST": "10.0.0.1",
        "WATCHER_SERVICE_PORT": "80",
        "WATCHER_SERVICE_PORT_HTTP": "80",
        "WATCHER_PORT": "tcp://10.0.0.1:80",
        "WATCHER_PORT_80_TCP_ADDR": "10.0.0.1",
        "WATCHER_UI_SERVICE_HOST": "10.0.0.2",
    }

    assert program.run("--window=0s", environment=made).code == 0


class TestKubeconfig:
    """Kubeconfigs that lead nowhere."""

    def test_a_missing_one_is_named(self, tmp_path: Path) -> None:
        """A kubeconfig that does not exist is named, with the option that names another."""
        outcome = Program(tmp_path / "absent", tmp_path).run()

        assert_refused(outcome, USAGE, str(tmp_path / "absent"), "--kubeconfig")

    @pytest.mark.parametrize(
        "content",
        [
            pytest.param(b"", id="empty"),
            pytest.param(b"{ not: yaml", id="no-yaml"),
            pytest.param(b"- a\n- list\n", id="a-list"),
            pytest.param(b"\x00\xff\x80", id="binary"),
            pytest.param(b"apiVersion: v1\nkind: Config\n", id="without-contexts"),
            pytest.param(b"apiVersion: v1\ncontexts: [{name: a, context: {cluster: c, user: u}}]\n", id="no-current"),
            pytest.param(
                b"current-context: a\ncontexts: [{name: a, context: {cluster: c, user: u}}]\nclusters: []\nusers: []\n",
                id="without-the-cluster",
            ),
        ],
    )
    def test_one_that_cannot_be_used_is_named(self, content: bytes, tmp_path: Path) -> None:
        """A file that is no kubeconfig, or an incomplete one, is named with what is wrong."""
        path = tmp_path / "kubeconfig"
        path.write_bytes(content)

        outcome = Program(path, tmp_path).run()

        assert_refused(outcome, USAGE, str(path))

    def test_an_unknown_context_is_named(self, control_plane: ControlPlane, tmp_path: Path) -> None:
        """A context that the kubeconfig does not have is named."""
        outcome = Program(control_plane.kubeconfig(), tmp_path).run("--context=elsewhere")

        assert_refused(outcome, USAGE, "elsewhere", "kubeconfig")


class TestCluster:
    """What the API server does not have or does not allow."""

    def test_a_refused_token_is_told_from_missing_rights(self, control_plane: ControlPlane, tmp_path: Path) -> None:
        """Credentials that are expired, or another cluster's, are told as such, with a command that shows it."""
        program = Program(control_plane.kubeconfig(token="expired"), tmp_path)

        outcome = program.run("--window=3s", program.checkpoint)

        assert_refused(outcome, ACTION_NEEDED, "credentials", "expired", "kubectl get workflows.argoproj.io -n default")
        assert files(tmp_path) == {}

    def test_a_missing_right_to_list_is_named(
        self, control_plane: ControlPlane, namespace: str, tmp_path: Path, sink_file: SinkFile
    ) -> None:
        """Verb, resource and namespace are named, and the kubectl command that shows the same."""
        program = Program(control_plane.kubeconfig("nobody", namespace=namespace), tmp_path)

        outcome = program.run("--window=3s", program.checkpoint, sink_file.option)

        assert_refused(
            outcome,
            ACTION_NEEDED,
            f"list workflows.argoproj.io -n {namespace}",
            f"kubectl auth can-i list workflows.argoproj.io -n {namespace}",
        )
        assert files(tmp_path) == {}

    def test_a_missing_right_to_watch_is_named(
        self, control_plane: ControlPlane, cluster: Cluster, namespace: str, tmp_path: Path
    ) -> None:
        """Who may list and not watch is told so, also when the listing has been published by then."""
        cluster.bind("watcher2", namespace, ["list"])
        program = Program(control_plane.kubeconfig("watcher2", namespace=namespace), tmp_path)

        outcome = program.run("--window=10s", program.checkpoint)

        assert (outcome.code, outcome.messages) == (ACTION_NEEDED, [])
        assert f"kubectl auth can-i watch workflows.argoproj.io -n {namespace}" in outcome.stderr
        assert "Traceback" not in outcome.stderr

    def test_a_resource_that_is_not_served_is_named(self, program: Program) -> None:
        """A resource without a definition, or a misspelt one, is named with where to look."""
        outcome = program.run("--window=3s", "--resource=workflow.v1alpha1.argoproj.io", program.checkpoint)

        assert_refused(
            outcome,
            ACTION_NEEDED,
            "workflow.v1alpha1.argoproj.io",
            "CustomResourceDefinition",
            "--resource",
            "kubectl api-resources",
        )
        assert not program.checkpoint_file.exists()

    def test_a_namespace_that_does_not_exist_is_named(self, program: Program) -> None:
        """A misspelt namespace is no empty one."""
        outcome = program.run("--window=3s", "--namespace=absent", program.checkpoint)

        assert_refused(outcome, ACTION_NEEDED, "namespace absent does not exist", "--namespace")
        assert not program.checkpoint_file.exists()

    def test_a_cluster_scoped_resource_has_no_namespace(self, program: Program) -> None:
        """A namespace beside a resource that belongs to none is told with the option to use instead."""
        outcome = program.run("--window=3s", "--resource=namespaces.v1", "--namespace=default", program.checkpoint)

        assert_refused(outcome, ACTION_NEEDED, "namespaces.v1", "no namespace", "--all-namespaces")
        assert not program.checkpoint_file.exists()


class TestCheckpoint:
    """Checkpoints that must not be used: they are named, and stay as they are."""

    @pytest.mark.parametrize(
        "content",
        [
            pytest.param(b"", id="empty"),
            pytest.param(b"hello", id="no-gzip"),
            pytest.param(gzip.compress(b'{"schema":1,"scope":{}}')[:-12], id="truncated"),
            pytest.param(gzip.compress(b"[]"), id="no-object"),
            pytest.param(gzip.compress(b'{"schema":1}'), id="incomplete"),
        ],
    )
    def test_one_that_cannot_be_read_is_not_absent(
        self, content: bytes, program: Program, cluster: Cluster, namespace: str
    ) -> None:
        """A damaged checkpoint stops the run before anything is published: it is never taken for a first run."""
        cluster.create(namespace, "a")
        program.checkpoint_file.write_bytes(content)

        outcome = program.run("--window=3s", program.checkpoint)

        assert_refused(outcome, ACTION_NEEDED, str(program.checkpoint_file), "cannot be read")
        assert program.checkpoint_file.read_bytes() == content

    def test_one_that_was_cut_off_is_not_absent(self, program: Program, cluster: Cluster, namespace: str) -> None:
        """A checkpoint that lost its last byte is refused like any other damage."""
        cluster.create(namespace, "a")
        program.run("--window=0s", program.checkpoint)
        content = program.checkpoint_file.read_bytes()[:-1]
        program.checkpoint_file.write_bytes(content)

        outcome = program.run("--window=3s", program.checkpoint)

        assert_refused(outcome, ACTION_NEEDED, str(program.checkpoint_file), f"{len(content)} bytes")
        assert program.checkpoint_file.read_bytes() == content

    def test_one_of_a_newer_schema_is_left_alone(self, program: Program, namespace: str) -> None:
        """A checkpoint of a later release is refused with both schemas."""
        content = gzip.compress(json.dumps({"schema": 2, "scope": "of another shape"}).encode())
        program.checkpoint_file.write_bytes(content)

        outcome = program.run("--window=3s", program.checkpoint)

        assert_refused(outcome, ACTION_NEEDED, str(program.checkpoint_file), "schema 2", "schema 1")
        assert program.checkpoint_file.read_bytes() == content

    @pytest.mark.parametrize(
        ("field", "options"),
        [
            ("namespace", ["--namespace=default"]),
            ("namespace", ["--all-namespaces"]),
            ("cluster", ["--cluster=other"]),
            ("resource", ["--resource=configmaps.v1"]),
            ("selector", ["--selector=team=a"]),
            ("sink", ["--sink=file:other.jsonl"]),
        ],
        ids=lambda value: value if isinstance(value, str) else value[0],
    )
    def test_r6_one_of_another_scope_names_both(
        self, field: str, options: list[str], program: Program, cluster: Cluster, namespace: str
    ) -> None:
        """A checkpoint that was made for another scope is refused with both values, and with what to do."""
        cluster.create(namespace, "a")
        program.run("--window=0s", program.checkpoint)
        content = program.checkpoint_file.read_bytes()
        theirs = getattr(program.saved.scope, field) or "(none)"

        outcome = program.run("--window=3s", program.checkpoint, *options)

        option, _, value = options[0].removeprefix("--").partition("=")
        ours = value.replace("other.jsonl", f"{program.folder}/other.jsonl") or option.replace("-", " ")
        assert_refused(outcome, ACTION_NEEDED, f"belongs to {field} {theirs}", ours, "--checkpoint")
        assert program.checkpoint_file.read_bytes() == content

    def test_r5_one_of_another_cluster_names_both(self, program: Program, cluster: Cluster, namespace: str) -> None:
        """A cluster of the same name that is another one is refused before its objects look deleted."""
        cluster.create(namespace, "a")
        program.run("--window=0s", program.checkpoint)
        actual = program.saved.identity
        edit_checkpoint(program, identity=Identity("another-uid", actual.definition))
        content = program.checkpoint_file.read_bytes()

        outcome = program.run("--window=3s", program.checkpoint)

        assert actual.cluster
        assert_refused(
            outcome, ACTION_NEEDED, str(program.checkpoint_file), "another-uid", actual.cluster, "kube-system"
        )
        assert program.checkpoint_file.read_bytes() == content

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (["--resource-version=1"], ["--resource-version", "first run", "exists already"]),
        ],
    )
    def test_r12_a_starting_point_is_for_a_first_run(
        self, options: list[str], words: list[str], program: Program, namespace: str
    ) -> None:
        """A version to start at beside a checkpoint is a usage error: one of the two would be ignored."""
        program.run("--window=0s", program.checkpoint)
        content = program.checkpoint_file.read_bytes()

        outcome = program.run("--window=3s", program.checkpoint, *options)

        assert_refused(outcome, USAGE, *words, str(program.checkpoint_file))
        assert program.checkpoint_file.read_bytes() == content

    def test_one_below_a_file_cannot_be_written(self, program: Program, cluster: Cluster, namespace: str) -> None:
        """A checkpoint whose folder is a file is refused before anything is published."""
        cluster.create(namespace, "a")
        (program.folder / "file").write_text("")

        outcome = program.run("--window=3s", f"--checkpoint=file:{program.folder}/file/checkpoint.json.gz")

        assert_refused(outcome, ACTION_NEEDED, f"{program.folder}/file/checkpoint.json.gz", "Not a directory")


class TestMassDeletion:
    """R5 where nothing proves which cluster it is."""

    @pytest.fixture
    def unprivileged(
        self, control_plane: ControlPlane, cluster: Cluster, namespace: str, tmp_path: Path, proxy: ApiProxy
    ) -> Program:
        """The program with the rights on Workflows only, and a checkpoint that knows twenty."""
        cluster.bind("watcher", namespace, ["list", "watch"])
        program = Program(control_plane.kubeconfig("watcher", namespace=namespace, server=proxy.url), tmp_path)
        for number in range(20):
            cluster.create(namespace, f"w-{number}")
        assert program.run("--window=0s", "--initial=skip", program.checkpoint).code == 0
        assert program.saved.identity == Identity()
        return program

    def test_r5_most_objects_gone_asks_a_person(
        self, unprivileged: Program, proxy: ApiProxy, cluster: Cluster, namespace: str
    ) -> None:
        """When more than half has vanished, and it may be another cluster, nothing is told but the way out."""
        for number in range(11):
            cluster.delete(namespace, f"w-{number}")
        before = unprivileged.checkpoint_file.read_bytes()
        proxy.inject(on=watches(), fault=EXPIRED_WATCH)

        outcome = unprivileged.run("--window=5s", "--recover=0s", unprivileged.checkpoint)

        assert (outcome.code, outcome.messages) == (ACTION_NEEDED, [])
        assert "11 of 20" in outcome.summary["message"]
        assert "kube-system" in outcome.summary["message"]
        assert unprivileged.checkpoint_file.read_bytes() == before

    def test_r5_half_of_the_objects_gone_is_told(
        self, unprivileged: Program, proxy: ApiProxy, cluster: Cluster, namespace: str
    ) -> None:
        """Up to half of the inventory may vanish without proof of the cluster's identity."""
        assert self.told(unprivileged, proxy, cluster, 10, "--recover=0s") == 10 * [("deleted", "inferred")]

    def test_r5_deletions_that_history_shows_are_told(
        self, unprivileged: Program, proxy: ApiProxy, cluster: Cluster, namespace: str
    ) -> None:
        """Who has the state that the checkpoint is about is the same cluster: all objects may be gone by now."""
        assert self.told(unprivileged, proxy, cluster, 20) == 20 * [("deleted", "recovered")]

    def told(
        self, program: Program, proxy: ApiProxy, cluster: Cluster, gone: int, *options: str
    ) -> list[tuple[str, str]]:
        """What a run tells whose version has expired, after so many objects are gone."""
        for number in range(gone):
            cluster.delete(program.saved.scope.namespace, f"w-{number}")
        proxy.inject(on=watches(), fault=EXPIRED_WATCH)
        outcome = program.run("--window=0s", *options, program.checkpoint)
        assert outcome.code == 0
        return [(change, provenance) for change, _, provenance in changes(outcome.messages)]

    def test_r5_an_identity_is_adopted_when_it_is_first_seen(
        self, unprivileged: Program, program: Program, proxy: ApiProxy, cluster: Cluster, namespace: str
    ) -> None:
        """A checkpoint of an unknown cluster takes on the identity that a later run may read, and keeps it."""
        program.run("--window=0s", program.checkpoint)
        adopted = program.saved.identity
        unprivileged.run("--window=0s", program.checkpoint)

        system = cluster.request("GET", "/api/v1/namespaces/kube-system")
        assert adopted.cluster == system["metadata"]["uid"]
        assert adopted.definition
        assert program.saved.identity == adopted


class TestSink:
    """Sinks that take nothing."""

    def test_a_folder_that_is_missing_is_named(self, program: Program, cluster: Cluster, namespace: str) -> None:
        """A sink file in a missing folder is refused: nothing counts as told, and a gap announces what follows."""
        cluster.create(namespace, "a")
        folder = program.folder / "absent"
        options = ["--window=0s", program.checkpoint, f"--sink=file:{folder}/a.jsonl"]

        refused = program.run(*options)
        listed = program.saved.listed
        cluster.create(namespace, "b")
        folder.mkdir()
        accepted = program.run(*options)

        assert (refused.code, refused.stdout, refused.summary["published"]) == (ACTION_NEEDED, b"", {})
        assert f"{folder}/a.jsonl" in refused.summary["message"]
        stored = [json.loads(line) for line in (folder / "a.jsonl").read_bytes().splitlines()]
        assert accepted.code == 0
        assert changes(stored) == [("added", "a", "initial"), ("added", "b", "initial")]
        assert [(gap["reason"], gap["from"]) for gap in gaps(stored)] == [("interrupted", str(listed))]

    def test_a_reader_that_goes_away_stops_the_run(self, program: Program, cluster: Cluster, namespace: str) -> None:
        """After `| head -1` the run ends with 75, what was written is saved, and the next run goes on behind it."""
        created = [cluster.create(namespace, "w-0", size_bytes=40_000)]
        with program.start("--window=60s", program.checkpoint) as running:
            assert running.process.stdout
            first = json.loads(running.process.stdout.readline())
            running.process.stdout.close()
            created += [cluster.create(namespace, f"w-{number}", size_bytes=40_000) for number in range(1, 5)]
            running.process.wait(30)
            assert running.process.stderr
            summary = json.loads(running.process.stderr.read().splitlines()[-1])
        saved = acknowledged(program)

        later = program.run("--window=0s", program.checkpoint)

        assert (running.process.returncode, summary["saved"]) == (TEMPORARY, True)
        assert "standard output" in summary["message"]
        assert first["k8suid"] == created[0]["metadata"]["uid"]
        assert 1 <= len(saved) < len(created)
        told = [id_.partition("/")[0] for id_ in ids(later.messages)]
        assert [*saved, *told] == [thing["metadata"]["uid"] for thing in created]


def test_scope_has_no_field_that_is_not_tested() -> None:
    """Every field of the scope has an example above."""
    assert set(Scope.__struct_fields__) == {"cluster", "resource", "namespace", "selector", "sink"}

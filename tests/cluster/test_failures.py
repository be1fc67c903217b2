"""Runs that are ended, and runs that fail: what Kubernetes says of them, and what the next tick makes of it."""

from __future__ import annotations

import json

import pytest

from tests.bed.node import NAME as NODE, Node
from tests.bed.pubsub import PubSub
from tests.cluster.deployment import COMPLETE, NAME, Deployment, Ended
from tests.cluster.work import Work

pytestmark = [pytest.mark.cluster, pytest.mark.long, pytest.mark.timeout(900)]

POLICY, EXHAUSTED = ("Failed", "PodFailurePolicy"), ("Failed", "BackoffLimitExceeded")
MEGABYTE = 1_000_000


def test_the_deadline(deployment: Deployment, work: Work) -> None:
    """A run that activeDeadlineSeconds ends by SIGTERM leaves a clean checkpoint, from which the next tick resumes."""
    deployment.tick()
    deployment.change_job(activeDeadlineSeconds=30)
    deployment.set_environment(WATCHER_WINDOW="55s")
    ended = deployment.tick()
    saved = deployment.saved
    deployment.apply()
    work.stop()
    after = deployment.tick()

    assert ended.verdict == ("Failed", "DeadlineExceeded")
    assert (ended.summary["exit_code"], ended.summary["saved"]) == (0, True)
    assert ended.summary["to"] == str(saved.version)
    assert_resumed(after, deployment, work)


def test_a_drain(deployment: Deployment, work: Work) -> None:
    """A node drain ends a run by SIGTERM with a clean checkpoint, from which the next tick resumes."""
    deployment.tick()
    deployment.set_environment(WATCHER_WINDOW="55s")
    with deployment.ticking() as name:
        deployment.wait_for(work.create("told-before-the-drain"))
        with deployment.drained(NODE):
            ended = deployment.ended(name)
    deployment.apply()
    work.stop()
    after = deployment.tick()

    assert ended.verdict == COMPLETE
    assert "DisruptionTarget" in {condition["type"] for condition in ended.pods[0]["status"]["conditions"]}
    assert (ended.summary["exit_code"], ended.summary["saved"]) == (0, True)
    assert_resumed(after, deployment, work)


def test_out_of_memory(deployment: Deployment, work: Work, node: Node) -> None:
    """After a run that was OOMKilled in the middle of its work the next tick resumes, and nothing is lost."""
    deployment.tick()
    deployment.set_environment(WATCHER_WINDOW="55s")
    with deployment.ticking() as name:
        deployment.wait_for(work.create("told-before-the-end"))
        (pod,) = deployment.look_at(name).pods
        (container,) = pod["status"]["containerStatuses"]
        node.leave_memory(pod["metadata"]["uid"], container["containerID"].removeprefix("containerd://"), MEGABYTE)
        for number in range(10):
            work.create(f"large-{number}", size_bytes=MEGABYTE)
        killed = deployment.ended(name)
    deployment.apply()
    work.stop()
    after = deployment.tick()

    assert killed.verdict == EXHAUSTED
    assert (killed.terminated["exitCode"], killed.terminated["reason"]) == (137, "OOMKilled")
    assert_resumed(after, deployment, work)


def test_a_right_that_is_gone(deployment: Deployment, work: Work) -> None:
    """A right that is gone is exit code 78: the Job's reason is PodFailurePolicy, and its message names the code."""
    deployment.tick()
    deployment.kubectl("delete", "rolebinding", NAME)
    failed = deployment.tick()
    deployment.apply()
    work.stop()
    after = deployment.tick()

    assert_a_person_must_act(failed)
    assert "cannot list resource" in failed.terminated["message"]
    assert_resumed(after, deployment, work)


def test_a_topic_that_is_gone(deployment: Deployment, work: Work, pubsub: PubSub) -> None:
    """A topic that is gone is exit code 78: the Job's reason is PodFailurePolicy, and its message names the code."""
    deployment.tick()
    pubsub.delete_topic(deployment.topic)
    failed = deployment.tick()

    assert_a_person_must_act(failed)
    assert f"projects/p/topics/{deployment.namespace} does not exist" in failed.terminated["message"]


def test_a_broker_that_hangs(deployment: Deployment, work: Work, pubsub: PubSub) -> None:
    """A broker that hangs is exit code 75: the Job's reason is another, and the next tick goes on."""
    deployment.tick()
    with pubsub.frozen():
        failed = deployment.tick()
    work.stop()
    after = deployment.tick()

    assert failed.verdict == EXHAUSTED
    assert failed.terminated["exitCode"] == 75
    assert json.loads(failed.terminated["message"]) == failed.summary
    assert_resumed(after, deployment, work)


def assert_a_person_must_act(failed: Ended) -> None:
    """The Job says so, in a way that an alert can look for."""
    assert failed.verdict == POLICY
    assert "exit code 78" in failed.condition["message"]
    assert failed.terminated["exitCode"] == 78
    assert json.loads(failed.terminated["message"]) == failed.summary


def assert_resumed(after: Ended, deployment: Deployment, work: Work) -> None:
    """The next tick went on from the checkpoint, and with it everything is told."""
    assert after.verdict == COMPLETE
    # After two minutes the API server may have forgotten what etcd still knows.
    assert after.summary["start"] in {"resumed", "expired"}
    assert after.summary["gaps"] == []
    assert work.untold(deployment.messages()) == []

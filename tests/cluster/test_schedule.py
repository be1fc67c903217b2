"""The schedule and the runs by hand."""

from __future__ import annotations

import json
import re
import textwrap
from datetime import timedelta
from itertools import pairwise

import pytest

from tests.bed.waiting import wait_until
from tests.cluster.audit import Audit, Request
from tests.cluster.deployment import A_TICK, COMPLETE, NAME, OFTEN, Deployment
from tests.cluster.work import Work
from tests.manifest import MANIFEST
from tests.wire.told import id_of, ids

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

MINUTE = timedelta(minutes=1)
OVERTAKEN = "this run stopped, and saved nothing more"


def test_ticks(deployment: Deployment, work: Work, audit: Audit) -> None:
    """Three ticks run on the minute, with the Role's rights and nothing more, and finish; they tell the truth."""
    with deployment.scheduled():
        wait_until(lambda: len(deployment.jobs()) == 2, 2 * A_TICK, "two ticks", every=OFTEN)
        work.stop()
        wait_until(lambda: len(deployment.jobs()) == 3, A_TICK, "a third", every=OFTEN)
    ticks = [deployment.ended(name) for name in sorted(deployment.jobs())]

    assert [tick.verdict for tick in ticks] == [COMPLETE] * 3
    assert [after.scheduled - before.scheduled for before, after in pairwise(ticks)] == [MINUTE] * 2
    assert [tick for tick in ticks[1:] if tick.created - tick.scheduled >= MINUTE] == []
    assert [tick.summary["start"] for tick in ticks] == ["first", "resumed", "resumed"]
    assert [json.loads(tick.terminated["message"]) for tick in ticks] == [tick.summary for tick in ticks]
    assert work.untold(deployment.messages()) == []
    assert audit.requests(deployment.namespace, NAME) == {
        Request("list", "workflows", deployment.namespace, "", allowed=True),
        Request("watch", "workflows", deployment.namespace, "", allowed=True),
        # The identity, for which the manifest has the optional rights.
        Request("get", "namespaces", "kube-system", "kube-system", allowed=False),
        Request("get", "customresourcedefinitions", "", "workflows.argoproj.io", allowed=False),
    }


@pytest.mark.long
def test_forbid(deployment: Deployment, work: Work) -> None:
    """Forbid holds a tick back while a run goes on, and the missed tick starts late, as soon as that has ended."""
    deployment.change_job(activeDeadlineSeconds=70 + 20 + 48)
    deployment.set_environment(WATCHER_WINDOW="70s")
    with deployment.scheduled(owing=False):
        wait_until(lambda: len(deployment.jobs()) == 1, A_TICK, "a tick", every=OFTEN)
        (name,) = deployment.jobs()
        first = deployment.ended(name)
        wait_until(lambda: len(deployment.jobs()) == 2, A_TICK, "the missed tick", every=OFTEN)
    deployment.set_environment(WATCHER_WINDOW="0s")
    (name,) = deployment.jobs() - {first.name}
    work.stop()
    second = deployment.ended(name)

    assert (first.verdict, second.verdict) == (COMPLETE, COMPLETE)
    assert second.scheduled - first.scheduled == MINUTE
    assert second.created >= first.finished
    assert second.summary["start"] == "resumed"
    assert work.untold(deployment.messages()) == []


@pytest.mark.long
def test_a_run_by_hand_beside_a_tick(deployment: Deployment, work: Work) -> None:
    """Of a tick and a Job by hand beside it one saves, and the other is fenced, with exit code 0; nothing is lost."""
    deployment.tick()
    deployment.set_environment(WATCHER_WINDOW="20s")
    with deployment.ticking() as name:
        deployment.kubectl("create", "job", "by-hand", f"--from=cronjob/{NAME}")
        both = [deployment.ended(name), deployment.ended("by-hand")]
    work.stop()
    deployment.set_environment(WATCHER_WINDOW="0s")
    last = deployment.tick()

    assert [job.verdict for job in (*both, last)] == [COMPLETE] * 3, [job.log for job in both]
    assert [job.terminated["exitCode"] for job in both] == [0, 0]
    assert len([job for job in both if OVERTAKEN in str(job.summary["notes"])]) == 1
    assert last.summary["start"] == "resumed"
    assert work.untold(deployment.messages()) == []


@pytest.mark.long
def test_backfill(deployment: Deployment) -> None:
    """The backfill Job of the manifest's comment, by variables only, tells all that exists and moves no checkpoint."""
    created = [deployment.admin.create(deployment.namespace, f"a-{number}") for number in range(300)]
    deployment.tick()
    told, generation = len(deployment.messages()), deployment.generation
    comment = MANIFEST.read_text(encoding="utf-8").partition("\napiVersion")[0].replace("# ", "").replace("#", "")
    (command,) = re.findall(r"^ *kubectl create job -n NAMESPACE backfill .*(?:\n .*)*", comment, re.MULTILINE)

    deployment.shell(textwrap.dedent(command).replace("NAMESPACE", deployment.namespace))
    backfill = deployment.ended("backfill")

    messages = deployment.messages()[told:]
    assert backfill.verdict == COMPLETE
    assert {(message["type"], message["provenance"]) for message in messages} == {
        ("io.argoproj.workflows.added", "replay")
    }
    assert sorted(ids(messages)) == sorted(id_of(answer) for answer in created)
    assert json.loads(backfill.terminated["message"]) == backfill.summary
    assert deployment.generation == generation


@pytest.mark.long
def test_doctor(deployment: Deployment) -> None:
    """A doctor's Job ends well before the first run, and with 78 when a right is gone, naming the rule to add."""
    command = (
        "kubectl create job {name} --from=cronjob/workflow-watcher --dry-run=client -o yaml |"
        " kubectl set env --local -f - WATCHER_COMMAND=doctor -o yaml | kubectl create -f -"
    )
    deployment.shell(command.format(name="well"))
    well = deployment.ended("well")
    deployment.kubectl("delete", "rolebinding", NAME)
    deployment.shell(command.format(name="ill"))
    ill = deployment.ended("ill")

    assert (well.verdict, well.summary["fail"]) == (COMPLETE, 0), well.log
    assert ill.verdict == ("Failed", "PodFailurePolicy")
    assert "{apiGroups: [argoproj.io], resources: [workflows], verbs: [list]}" in ill.log
    assert json.loads(ill.terminated["message"]) == ill.summary

"""Tests of what a run is told."""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import timedelta
from pathlib import PurePath

import msgspec
import pytest
from hypothesis import given, strategies as st

from job import wiring
from job.change import Resource
from job.checkpoint import Scope
from job.errors import UsageError
from job.ports import Sink, Store
from job.settings import (
    Address,
    check_environment,
    completed,
    default_checkpoint,
    parse_address,
    parse_duration,
    parse_namespace,
    parse_resource,
    parse_version,
    parse_window,
)
from tests.fakes.access import nobody

SCOPE = Scope("prod", "workflows.v1alpha1.argoproj.io", "argo", "", "stdout:")
SCHEMES = {"stdout", "file", "pubsub", "gs", "redis"}


@pytest.mark.parametrize(
    ("text", "seconds"), [("0s", 0), ("55s", 55), ("4m30s", 270), ("1h", 3600), ("1h0m1s", 3601), ("90m", 5400)]
)
def test_a_duration_has_units(text: str, seconds: int) -> None:
    """Hours, minutes and seconds, in this order, each at most once."""
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "55", "s", "5 s", "1d", "30s4m", "1s1s", "-1s", "1.5s", "+1s", "1S"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    """A number alone could mean anything."""
    with pytest.raises(UsageError, match="duration"):
        parse_duration(text)


@given(st.from_regex(r"(\d+h)?(\d+m)?(\d+s)?", fullmatch=True))
def test_any_duration_is_read_or_refused(text: str) -> None:
    """Also one that no clock can count."""
    with suppress(UsageError):
        parse_duration(text)


def test_a_duration_that_no_clock_can_count_is_refused() -> None:
    """It is not a bug of ours."""
    with pytest.raises(UsageError):
        parse_duration("99999999999999h")


@pytest.mark.parametrize("text", ["0s", "3s", "55s", "0h0m0s"])
def test_r10_a_window_is_nothing_or_three_seconds_and_more(text: str) -> None:
    """The API server can watch for as long."""
    assert parse_window(text) == parse_duration(text)


@pytest.mark.parametrize("text", ["1s", "2s"])
def test_r10_a_window_without_a_bookmark_is_refused(text: str) -> None:
    """Below three seconds the API server sends none."""
    with pytest.raises(UsageError, match="3s"):
        parse_window(text)


@pytest.mark.parametrize(
    ("text", "resource"),
    [
        ("workflows.v1alpha1.argoproj.io", Resource("workflows", "v1alpha1", "argoproj.io")),
        ("pods.v1", Resource("pods", "v1", "")),
        ("pods.v1.", Resource("pods", "v1", "")),
        ("deployments.v1.apps", Resource("deployments", "v1", "apps")),
    ],
)
def test_a_resource_is_spelt_as_kubectl_does(text: str, resource: Resource) -> None:
    """plural.version.group, the group empty for the core; spelt again it means the same."""
    assert parse_resource(text) == resource
    assert parse_resource(str(resource)) == resource


@pytest.mark.parametrize(
    "text", ["", "pods", "workflows.argoproj.io", "Pods.v1", "pods.v1/apps", "pods.1", ".v1", "pods..v1"]
)
def test_what_is_no_resource_is_refused(text: str) -> None:
    """A name without a version would have to be guessed."""
    with pytest.raises(UsageError, match=r"plural\.version\.group"):
        parse_resource(text)


@given(st.from_regex(r"[a-z][a-z0-9-]*\.v[0-9]+\.[a-z0-9.-]*", fullmatch=True))
def test_what_is_read_as_a_resource_is_spelt_the_same(text: str) -> None:
    """The checkpoint's scope has the resource's own spelling, and is read from it again."""
    try:
        resource = parse_resource(text)
    except UsageError:
        return
    assert parse_resource(str(resource)) == resource


@pytest.mark.parametrize("text", ["argo", "a", "0", "a-b", "a" * 63])
def test_a_namespace_is_a_dns_label(text: str) -> None:
    """As the API server has it."""
    assert parse_namespace(text) == text


@pytest.mark.parametrize("text", ["", "A", "-a", "a-", "a.b", "a/b", "a" * 64, "a\n"])
def test_what_no_namespace_can_be_called_is_refused(text: str) -> None:
    """It would become a part of a path."""
    with pytest.raises(UsageError, match="namespace"):
        parse_namespace(text)


@pytest.mark.parametrize("text", ["1", "294", str(2**128 - 1)])
def test_a_version_is_a_number_above_nothing(text: str) -> None:
    """Up to 128 bits."""
    assert parse_version(text) == int(text)


@pytest.mark.parametrize(
    "text", ["", "0", "01", "-1", "1.0", "abc", "1 ", "\u0661", "9" * 5000], ids=lambda text: text[:8]
)
def test_what_is_no_version_is_refused(text: str) -> None:
    """0 would mean any version at all; what is longer than any version is no number to read."""
    with pytest.raises(UsageError, match="resourceVersion"):
        parse_version(text)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("stdout:", Address("stdout", "")),
        ("file:changes.jsonl", Address("file", "changes.jsonl")),
        ("file:/var/a:b?c.jsonl", Address("file", "/var/a:b?c.jsonl")),
        ("gs://bucket/a/b.json.gz", Address("gs", "//bucket/a/b.json.gz")),
        (
            "pubsub://p/t?ordering=8&region=us-east1",
            Address("pubsub", "//p/t", {"ordering": "8", "region": "us-east1"}),
        ),
    ],
)
def test_an_address_is_a_scheme_and_a_place_and_options(text: str, address: Address) -> None:
    """What stands behind the `?` of a URL are options; a path may have one in it."""
    assert parse_address(text, "sink", SCHEMES) == address
    assert str(address) == text


@pytest.mark.parametrize(
    "text",
    ["", "stdout", "ftp:x", "changes.jsonl", "gs:b?a", "pubsub://p/t?a", "pubsub://p/t?a=", "pubsub://p/t?a=1&a=2"],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    """The value is named, so that it can be found."""
    with pytest.raises(UsageError) as refused:
        parse_address(text, "sink", SCHEMES - {"gs"})

    assert repr(text) in str(refused.value)


@pytest.mark.parametrize(
    "text",
    [
        "redis://user:SECRET@host/0?key=a",
        "redis://user:SECRET@host/0?key",
        "redis://:SE?CRET@host/0?key=a",
        "redis://:SE/CRET@host/0?key=a",
        "redis://user/SECRET@host/0?key=a",
        "amqp://user:SECRET@host/queue",
        "sqs:https://SECRET@sqs.eu-west-1.amazonaws.com/123456789012/changes",
        "tcp://SECRET@localhost:9000",
    ],
)
def test_a_log_in_does_not_belong_into_a_url_and_is_not_repeated(text: str) -> None:
    """What was typed is logged, and so is the checkpoint; the pages that say where it belongs are named."""
    with pytest.raises(UsageError, match=r"docs/stores\.md") as refused:
        parse_address(text, "sink", SCHEMES | {"redis", "sqs", "tcp"})

    assert not re.search("SE|CRET", str(refused.value))


@pytest.mark.parametrize(
    "text", ["gs://bucket/folder/name@1", "gs://bucket/a:b@c", "redis://host:6379/0?key=a:b@c/", "file:/tmp/a@b"]
)
def test_a_name_may_have_an_at_sign(text: str) -> None:
    """Behind the host it is no log-in."""
    assert str(parse_address(text, "sink", SCHEMES)) == text


@pytest.mark.parametrize(
    ("place", "sort"), [("pubsub://p/topic?password=SECRET", "sink"), ("gs://bucket/o?password=SECRET", "checkpoint")]
)
def test_an_option_that_no_adapter_has_is_named_and_its_value_is_not(place: str, sort: str) -> None:
    """It may be one that must not be shown."""
    with pytest.raises(UsageError, match="'password'") as refused:
        made(place, sort)

    assert place.partition("?")[0] in str(refused.value)
    assert "SECRET" not in str(refused.value)


def test_an_option_that_nobody_reads_is_refused() -> None:
    """A misspelt one must not turn into a default."""
    address = Address("pubsub", "//p/t", {"order": "8"})
    address.allow("order")

    with pytest.raises(UsageError, match="'order'"):
        address.allow("ordering", "region")


def test_the_place_of_an_address_has_no_options() -> None:
    """The checkpoint belongs to a topic, however it is written to (R6)."""
    assert Address("pubsub", "//p/t", {"ordering": "8"}).place == "pubsub://p/t"


@pytest.mark.parametrize(
    ("place", "sort"),
    [
        ("stdout:x", "sink"),
        ("file:", "sink"),
        ("file:changes.json", "sink"),
        ("file://host/changes.jsonl", "sink"),
        *(
            (f"pubsub:{rest}", "sink")
            for rest in (
                "",
                "topic",
                "//",
                "//p",
                "//p/",
                "//P/topic",
                "//p/1topic",
                "//p/to",
                "//p/google",
                "//p/topics/t",
                "//p/topic?ordering=0",
                "//p/topic?ordering=1001",
                "//p/topic?ordering=x",
                "//p/topic?region=us",
            )
        ),
        ("file:", "checkpoint"),
        ("file://host/path", "checkpoint"),
        *(
            (f"gs:{rest}", "checkpoint")
            for rest in ("", "bucket/object", "//", "//bucket", "//bucket/", "//Bucket/o", "//b/o")
        ),
    ],
)
def test_what_no_adapter_can_mean_is_refused(place: str, sort: str) -> None:
    """Before anything is opened, and with the value in the message."""
    with pytest.raises(UsageError) as refused:
        made(place, sort)

    assert place in str(refused.value)


@pytest.mark.parametrize(
    ("place", "sort"),
    [
        ("pubsub://my-project/changes", "sink"),
        ("pubsub://example.com:my-project/changes?ordering=1000&region=northamerica-northeast1", "sink"),
        ("gs://bucket/object", "checkpoint"),
        ("configmap://argo/workflow-watcher.v1", "checkpoint"),
        ("redis://host/0?key=a", "checkpoint"),
        ("rediss://[::1]:6380/15?key=a/b", "checkpoint"),
        ("sqs:https://sqs.eu-west-1.amazonaws.com/123456789012/changes.fifo", "sink"),
        ("tcp://localhost:1", "sink"),
        ("unix:relative.sock", "sink"),
        ("gs://my.bucket-1_x/a/b c/ü.json.gz", "checkpoint"),
    ],
)
def test_what_the_services_allow_is_taken(place: str, sort: str) -> None:
    """Names have the service's own rules."""
    assert made(place, sort)


def test_a_checkpoint_that_names_a_file_stays_as_it_is() -> None:
    """Only a folder is completed."""
    address = Address("file", "/state/checkpoint")

    assert completed(address, SCOPE) == address


def test_a_checkpoint_that_ends_in_a_slash_is_completed_with_the_scope() -> None:
    """Cluster, namespace and resource, so that one manifest serves many."""
    name = "prod/argo/workflows.argoproj.io.json.gz"

    assert str(completed(Address("file", "/state/"), SCOPE)) == f"file:/state/{name}"
    assert str(completed(Address("gs", "//bucket/"), SCOPE)) == f"gs://bucket/{name}"
    redis = parse_address("redis://host:6379/0?key=watcher/", "checkpoint", SCHEMES)
    assert str(completed(redis, SCOPE)) == f"redis://host:6379/0?key=watcher/{name}"


@pytest.mark.parametrize(
    ("field", "value"), [("cluster", "a/b"), ("namespace", ""), ("selector", "a=b"), ("resource", "pods.v1")]
)
def test_every_part_of_the_scope_has_a_name_of_its_own(field: str, value: str) -> None:
    """Two scopes never share a file, and no cluster's name leads to another folder."""
    other = msgspec.structs.replace(SCOPE, **{field: value})
    path = completed(Address("file", "/state/"), other).path

    assert path != completed(Address("file", "/state/"), SCOPE).path
    assert path.count("/") == 4


def test_the_default_checkpoint_is_named_by_the_sink_too() -> None:
    """Trying another sink by hand begins anew."""
    folder = PurePath("/home/me/.local/state/workflow-watcher")
    first = default_checkpoint(folder, SCOPE)
    second = default_checkpoint(folder, msgspec.structs.replace(SCOPE, sink="file:/a.jsonl"))

    assert first != second
    assert first.path.startswith(f"{folder}/")
    assert first.path.endswith("/prod/argo/workflows.argoproj.io.json.gz")


@pytest.mark.parametrize(
    "name", ["PATH", "WATCHER_SINK", "WATCHER_PORT", "WATCHER_PORT_8080_TCP_ADDR", "WATCHER_SERVICE_HOST", "WATCHERS"]
)
def test_a_known_or_foreign_variable_passes(name: str) -> None:
    """Ours, other programs', and those that Kubernetes makes for a Service called `watcher`."""
    check_environment([name], ["WATCHER_SINK"])


@pytest.mark.parametrize("name", ["WATCHER_SINKS", "WATCHER_", "WATCHER_sink", "WATCHER_SUPPORT"])
def test_a_misspelt_variable_is_refused(name: str) -> None:
    """It must not turn into a default."""
    with pytest.raises(UsageError, match=name):
        check_environment(["PATH", name], ["WATCHER_SINK"])


def made(place: str, sort: str) -> Sink | Store:
    """The adapter of an address."""
    if sort == "sink":
        return wiring.sink(parse_address(place, sort, wiring.SINKS), nobody())
    return wiring.store(parse_address(place, sort, wiring.STORES), nobody())

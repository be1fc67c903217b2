"""Write docs/messages.md: its text is here, its examples are the golden files of the tests.

python docs/generate.py            writes the page
python docs/generate.py --print    prints it
"""

import json
import sys
from pathlib import Path

PAGE = Path(__file__).with_name("messages.md")
GOLDEN = Path(__file__).parents[1] / "tests" / "golden" / "messages"

OPENING = """\
<!-- Made by docs/generate.py from tests/golden/messages. Change those. -->
# Messages

One change of one object is one message: a [CloudEvent 1.0](https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md)
whose data is the object. `stdout:` and `file:` carry structured JSON, one event a line. Pub/Sub will carry the same event in
binary mode: the data alone as the message, and each attribute as `ce-NAME`.

## What a consumer does

- **Deduplicate** by `source` and `id`. Delivery is at least once, and a repeat has the same id. Versions of one object come in
  their order; different objects in any order; repeats may come late, so an older version may follow a newer one.
- **Keep the latest** of each `k8suid` by (epoch, `resourceversion`), both compared as integers. The epoch is the number behind
  `~` in the id, 0 without one. A version has up to 128 bits: more than a double, and more than most integers, can hold. Never
  compare versions of two resources or two clusters, and never subtract them.
- **A deletion beats every version** of its `k8suid` in its epoch and before, and nothing of that object comes after it but
  repeats. An object that was created again under the same name has another `k8suid`.
- **Know how a change is known**, by `provenance`, where intermediate states matter:

  | `provenance` | the change is known | what lies before it |
  |---|---|---|
  | `observed` | from the watch | every version since the message before, unless a gap stands between |
  | `initial` | from the first run's listing: the object existed | unknown |
  | `inferred` | from a listing that differs from what was told before | a gap message says what may be missing |

- **A gap message** says that the API server had lost the history from version `from` (excluded) to `to` (included), last known
  to be current at `since`. The differences that a listing shows follow it as `inferred`. Nothing else is missing, and where
  there is no gap nothing is. A gap that is announced again, after a run that was killed, may have another `reason` and `since`.
  A consumer that keeps state treats what it was last told in the range of a gap, and is not told again after it, as gone.

  | `missing` | may never be told |
  |---|---|
  | `intermediate` | versions between those that are told, and objects that were both created and deleted in the gap |
  | `all` | anything: the history itself was replaced |

  | `reason` | what happened |
  |---|---|
  | `expired` | the API server refused to watch from the version: its history is minutes long |
  | `silent` | the API server closed the watch twice without a word |
  | `interrupted` | an earlier run stopped in the middle of a listing |
  | `rewound` | the cluster went back to an older state, from a backup; everything that is left is told in a new epoch |
  | `recreated` | the CustomResourceDefinition was deleted and created again |
  | `drifted` | the daily comparison found an event that the watch never had |

## Attributes

| attribute | meaning | stability |
|---|---|---|
| `specversion` | `1.0` | fixed |
| `id` | `UID/RESOURCEVERSION`; `UID/deleted` for a deletion, however it is known; `FROM-TO/gap`. After a rewind `~EPOCH` behind it | the same for the same change, for ever |
| `source` | `/clusters/CLUSTER/apis/GROUP/VERSION/PLURAL`, for the core group `/clusters/CLUSTER/api/VERSION/PLURAL` | fixed while cluster and resource are named the same |
| `type` | group reversed, plural, and `added`, `modified`, `deleted` or `gap`; core and other built-in groups without a dot under `io.k8s` | the change as this copy knows it: a repeat may say `added` where the first said `modified` |
| `subject` | `NAMESPACE/NAME`, the name alone for cluster-scoped objects; the namespace for a gap, absent for all namespaces | fixed |
| `datacontenttype` | `application/json` | fixed |
| `dataschema` | what the data is, see below; the number at its end goes up when it changes so that a reader could break | fixed for a schema |
| `k8suid` | the object's uid; absent for a gap | fixed |
| `resourceversion` | the object's version, the deletion's for one that was observed; absent for an inferred deletion and a gap | fixed |
| `phase` | `status.phase`, where that is a string; for subscription filters | fixed for an id |
| `provenance` | how this copy is known, see above | about this copy: a repeat may differ |

There is no `time`: a repeat of a message must be the same message. New attributes may be added; ignore what you do not know.

| `dataschema` | the data |
|---|---|
| `urn:workflow-watcher:object:1` | the object, byte for byte as the API server wrote it, but for `metadata.managedFields` and the annotation `kubectl.kubernetes.io/last-applied-configuration`. That of an observed deletion is the last state, with the deletion's `resourceVersion` in it |
| `urn:workflow-watcher:deletion:1` | `apiVersion`, `kind`, and `metadata` with namespace, name and uid: all that is certain of a deletion that was inferred |
| `urn:workflow-watcher:gap:1` | `reason`, `from`, `to`, `since`, `missing`: see above |

## One of each

The data is printed over several lines here; in a message everything stands on one.
"""

EXAMPLES = {
    "added-initial": ("Added, initial", "The first run found it."),
    "modified-observed": ("Modified, observed", "The watch showed it."),
    "modified-inferred": (
        "Modified, inferred",
        "After a gap: versions between this one and the last may never be told.",
    ),
    "deleted-observed": ("Deleted, observed", "The last object, with the version of its deletion."),
    "deleted-inferred": ("Deleted, inferred", "It is gone: when, and in which state, is not known."),
    "gap": ("Gap", "It stands before what is inferred because of it."),
    "core-resource": ("A resource of the core group", "`--resource pods.v1 --all-namespaces`"),
    "rewound": (
        "After a rewind",
        "The cluster was restored once: epoch 1. The same version may have other content than before.",
    ),
}


def page() -> str:
    """Compose the whole page."""
    parts = [OPENING]
    for name, (title, sentence) in EXAMPLES.items():
        message = json.loads((GOLDEN / f"{name}.json").read_text())
        printed = json.dumps(message, indent=2, ensure_ascii=False)
        parts.append(f"\n### {title}\n\n{sentence}\n\n```json\n{printed}\n```\n")
    return "".join(parts)


if __name__ == "__main__":
    if "--print" in sys.argv[1:]:
        sys.stdout.write(page())
    else:
        PAGE.write_text(page())

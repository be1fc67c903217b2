"""What a Python developer writes in 40 lines: the official client, the official publisher, a checkpoint in GCS.

python stock.py [key]
"""

import json
import os
import sys

from google.auth.credentials import AnonymousCredentials
from google.cloud import pubsub_v1, storage
from kubernetes import client, watch

ORDERED = "key" in sys.argv[1:]
TOPIC = "projects/proj-x/topics/topic-x"

configuration = client.Configuration()
configuration.host, configuration.ssl_ca_cert = os.environ["PEER_API"], os.environ["PEER_CA"]
configuration.api_key = {"authorization": "Bearer token"}
client.Configuration.set_default(configuration)
publisher = pubsub_v1.PublisherClient(publisher_options=pubsub_v1.types.PublisherOptions(ORDERED))
version, futures = "1000", []
events = watch.Watch().stream(
    client.CustomObjectsApi().list_cluster_custom_object,
    "argoproj.io",
    "v1alpha1",
    "workflows",
    resource_version=version,
    timeout_seconds=int(os.environ["PEER_WINDOW"]),
    allow_watch_bookmarks=True,
)
for event in events:
    found = event["object"]
    metadata = found["metadata"]
    version = metadata["resourceVersion"]
    if event["type"] == "BOOKMARK":
        continue
    future = publisher.publish(
        TOPIC,
        json.dumps(found).encode(),
        type=event["type"],
        name=metadata["name"],
        namespace=metadata["namespace"],
        uid=metadata["uid"],
        resourceVersion=version,
        **({"ordering_key": metadata["uid"]} if ORDERED else {}),
    )
    futures.append(future)
for future in futures:
    future.result()
bucket = storage.Client(project="p", credentials=AnonymousCredentials()).bucket("checkpoints")
bucket.blob("stock").upload_from_string(json.dumps({"resourceVersion": version}))

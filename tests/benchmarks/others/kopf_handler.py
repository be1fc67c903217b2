"""What a kopf user writes: a handler of every event, and the official publisher. `kopf run kopf_handler.py`."""

import json
import os

import kopf
from google.cloud import pubsub_v1

TOPIC = "projects/proj-x/topics/topic-x"
publisher = pubsub_v1.PublisherClient()


@kopf.on.login()
def login(**_):
    return kopf.ConnectionInfo(server=os.environ["PEER_API"], ca_path=os.environ["PEER_CA"], token="token")


@kopf.on.startup()
def configure(settings, **_):
    settings.posting.enabled = False
    settings.scanning.disabled = True


@kopf.on.event("argoproj.io", "v1alpha1", "workflows")
def on_event(event, meta, **_):
    data = json.dumps(dict(event["object"])).encode()
    publisher.publish(TOPIC, data, type=str(event["type"]), name=meta["name"], uid=meta["uid"])

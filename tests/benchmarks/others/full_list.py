"""What other watchers do after an expiry, as far as reading goes: all objects in one list, parsed.

python full_list.py [URL]: without a URL only what it imports.
"""

import json
import os
import sys

import urllib3

if len(sys.argv) > 1:
    pool = urllib3.PoolManager(ca_certs=os.environ["PEER_CA"])
    answer = pool.request("GET", sys.argv[1], headers={"Authorization": f"Bearer {os.environ['PEER_TOKEN']}"})
    print(len(json.loads(answer.data)["items"]))

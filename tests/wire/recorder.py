"""A command for `consume`: `recorder.py LOG [BEHAVIOUR]` records what it was given and how it ends.

One line for the beginning, one for the end, in the order of all commands that run: a line is one write.
"""

import json
import os
import random
import sys
import time
from pathlib import Path


def record(log: Path, **said: object) -> None:
    """Append one line."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(file, json.dumps({"id": os.environ["CE_ID"], "pid": os.getpid(), **said}).encode() + b"\n")
    os.close(file)


def main() -> int:
    """Behave as told."""
    log, behaviour = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else ""
    before = log.read_text().count(f'{{"id": "{os.environ["CE_ID"]}", ') // 2 if log.exists() else 0
    record(log, what="begun")
    code = 0
    if behaviour == "one-in-three":
        # Decided by what it is about, so that a test that fails does so again.
        code = int(random.Random(f"{os.environ['CE_ID']} {before}").random() < 1 / 3)
    elif behaviour.startswith("fail="):
        code = 3 if os.environ["CE_ID"] in behaviour.removeprefix("fail=").split(",") else 0
    elif behaviour.startswith("sleep="):
        time.sleep(float(behaviour.removeprefix("sleep=")))
    record(log, what="ended", code=code)
    return code


if __name__ == "__main__":
    sys.exit(main())

"""What `doctor` has said, and whether docs/doctor.md shows the same."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from job.ports import Check, Verdict
from tests.program import Outcome, Program

GOLDEN = Path(__file__).parents[1] / "golden" / "doctor.json"
_SAME = [
    (r"https?://127\.0\.0\.1:\d+", "https://10.0.0.1"),
    (r"\[Errno 111\] ", ""),
    (r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "UID"),
    (r"\bargo-\d+\b", "argo"),
    (r"127\.0\.0\.1(', port=|:)\d+", r"10.0.0.1\g<1>443"),
    (r"/tmp/[^ ]*/", "/var/lib/watcher/"),
    (r"v1\.\d+\.\d+\b", "v1.37.2"),
    (r"saved [0-9][-0-9T:.Z]*", "saved 2026-11-27T12:00:00Z"),
    (r"version \d+", "version 4711"),
    (r"of up to \d+ s", "of up to 58 s"),
    (r"(?<!min )\b\d+ s (ago|apart)", r"12 s \g<1>"),
    (r"\b\d+ s (ahead|behind)", r"3600 s \g<1>"),
]
"""What differs from one test to the next."""


class Diagnosis:
    """One run of `workflow-watcher doctor --json`."""

    def __init__(self, outcome: Outcome) -> None:
        self.code = outcome.code
        self.outcome = outcome
        self.checks = [
            Check(each["what"], Verdict(each["verdict"]), each["found"], each["next"])
            for each in map(json.loads, outcome.stdout.splitlines())
        ]

    def __getitem__(self, what: str) -> Check:
        (found,) = [check for check in self.checks if check.what == what]
        return found

    @property
    def failed(self) -> list[str]:
        return self.named(Verdict.FAIL)

    @property
    def warned(self) -> list[str]:
        return self.named(Verdict.WARN)

    def named(self, verdict: Verdict) -> list[str]:
        return [check.what for check in self.checks if check.verdict is verdict]


def diagnose(program: Program, *options: str, environment: Mapping[str, str] | None = None) -> Diagnosis:
    return Diagnosis(program.run("--json", *options, command="doctor", environment=environment))


def line(check: Check) -> str:
    """As people see it."""
    remedy = f" -> {check.remedy}" if check.remedy else ""
    return f"{check.verdict:4} {check.what}: {check.found}{remedy}"


def same(text: str) -> str:
    """The line with what differs from one test to the next made the same."""
    for pattern, instead in _SAME:
        text = re.sub(pattern, instead, text)
    return text


def documented(kind: str, *checks: Check) -> bool:
    """Whether docs/doctor.md, which is made from the golden file, shows these lines for this kind of set-up."""
    golden: dict[str, str] = json.loads(GOLDEN.read_text(encoding="utf-8"))
    shown = "\n".join(same(line(check)) for check in checks)
    assert shown == golden.get(kind)
    return True

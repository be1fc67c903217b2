"""Values that must not leave the cluster, by the names that they stand under (pure).

`docs/secrets.md` says what is covered and what cannot be. What cannot be read cannot be searched, and is not let
through: it is replaced as a whole.
"""

from __future__ import annotations

import base64
import fnmatch
import gzip
import re
from collections.abc import Sequence

import msgspec

from job.payload.nodes import UNREADABLE, CannotUnpack, unpacked

REDACTED = "REDACTED"

# A float is kept as it is written; integers are exact anyway.
_tree = msgspec.json.Decoder(float_hook=lambda text: msgspec.Raw(text.encode())).decode
_written = msgspec.json.Encoder().encode


class Redaction:
    """Replaces values of parameters, artifacts, environment and headers whose name matches one of the globs.

    Globs are `fnmatch`'s and ignore case. `result` names the result of a script or an HTTP template, too. The same
    input gives the same output. Where nothing matches, that is the input itself; else the order of members and the
    digits of floats stay, but an escaped character may come out unescaped.
    """

    def __init__(self, globs: Sequence[str]) -> None:
        self._names = re.compile("|".join(map(fnmatch.translate, globs)), re.IGNORECASE) if globs else None
        self._results = self._matches("result")

    def __bool__(self) -> bool:
        return self._names is not None

    def __call__(self, data: bytes) -> bytes:
        """The JSON object `data`, redacted; another one that only says so if it cannot be read."""
        if not self:
            return data
        try:
            tree = _tree(data)
            changed = self._redact(tree)
            changed = self._redact_compressed(tree) or changed
            return _written(tree) if changed else data
        except UNREADABLE:
            return _written({"redacted": "unreadable"})

    def _matches(self, name: object) -> bool:
        return self._names is not None and isinstance(name, str) and self._names.match(name) is not None

    def _redact(self, tree: object) -> bool:
        """Whether anything was replaced in the tree. A loop, as a tree may be thousands of levels deep."""
        changed = False
        left = [tree]
        while left:
            branch = left.pop()
            if isinstance(branch, dict):
                if self._matches(branch.get("name")):
                    changed = _replace(branch) or changed
                if self._results:
                    changed = _replace_member(branch.get("outputs"), "result") or changed
                left.extend(value for value in branch.values() if isinstance(value, (dict, list)))
            elif isinstance(branch, list):
                left.extend(value for value in branch if isinstance(value, (dict, list)))
        return changed

    def _redact_compressed(self, tree: object) -> bool:
        status = tree.get("status") if isinstance(tree, dict) else None
        packed = status.get("compressedNodes") if isinstance(status, dict) else None
        if not (isinstance(status, dict) and isinstance(packed, str) and packed):
            return False
        status["compressedNodes"] = self._repacked(packed)
        return bool(status["compressedNodes"] != packed)

    def _repacked(self, packed: str) -> str:
        try:
            nodes = _tree(unpacked(packed))
            if not self._redact(nodes):
                return packed
            text = _written(nodes)
        except (CannotUnpack, *UNREADABLE):
            return REDACTED
        return base64.b64encode(gzip.compress(text, mtime=0)).decode()


def _replace(named: dict[str, object]) -> bool:
    """Replace every value that a named thing of Argo's or Kubernetes' holds; whether there was one."""
    changed = [_replace_member(named, member) for member in ("value", "default")]
    choices = named.get("enum")
    if isinstance(choices, list):
        named["enum"] = [REDACTED] * len(choices)
        changed.append(bool(choices))
    else:
        changed.append(_replace_member(named, "enum"))
    changed.append(_replace_member(named.get("valueFrom"), "default"))
    changed.append(_replace_member(named.get("raw"), "data"))
    return any(changed)


def _replace_member(holder: object, member: str) -> bool:
    if not isinstance(holder, dict) or member not in holder:
        return False
    holder[member] = REDACTED
    return True

"""Credentials for adapters that are tested without any."""

from __future__ import annotations

from datetime import timedelta

from job.access import Access
from job.credentials import GoogleCredentials
from job.run.deadline import Deadline


def nobody() -> Access:
    """Google's are looked for when they are needed, and there is no cluster."""
    return Access(GoogleCredentials(Deadline(timedelta())))

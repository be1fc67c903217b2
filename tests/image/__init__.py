"""Tests of the image that cronjob.yaml runs."""

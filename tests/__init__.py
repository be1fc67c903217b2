"""The tests of workflow-watcher."""

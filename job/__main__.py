"""`python -m job` is `workflow-watcher`."""

from job.cli import main

if __name__ == "__main__":
    main()

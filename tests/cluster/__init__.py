"""The CronJob in a real cluster: what Kubernetes does with the manifest, and what the program does with Kubernetes."""

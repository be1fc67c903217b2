"""Turns the changes of a Kubernetes resource into messages, in a process that ends.

A run resumes from a resourceVersion that is kept outside the cluster, watches for a bounded window, hands every change
to a sink, and moves the checkpoint only over what the sink has acknowledged. Nothing is skipped silently: what the API
server no longer remembers is found again by comparing a listing with the inventory, and announced by a gap message.
"""

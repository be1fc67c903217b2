"""The test bed: real servers on this machine for the tests, without a cluster, a container or root.

`ControlPlane` is a real kube-apiserver with its etcd, brought up in a folder in a few seconds; `Cluster` is the
administrator's hand on it; `workflow` builds the objects. The servers are built once from the Go module beside this
file (`python -m tests.bed.binaries`) and kept in the user's cache folder.

The bed has no controllers of Kubernetes': no garbage collection, and a deleted namespace stays Terminating. Argo's own
is there for who asks for it, `WorkflowController`. All else that changes is what the test changes.
"""

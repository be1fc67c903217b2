// The workflow-controller of Argo Workflows, for one namespace and on one port of the loopback interface.
//
// The controller is upstream's; only this main is ours. Upstream's serves /healthz on port 6060 and metrics on port 9090
// of all interfaces, both fixed: two test runs could not have one each, and strangers could reach both.
package main

import (
	"context"
	"flag"
	"log"
	"net"
	"net/http"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/argoproj/argo-workflows/v3/pkg/client/clientset/versioned"
	"github.com/argoproj/argo-workflows/v3/workflow/common"
	"github.com/argoproj/argo-workflows/v3/workflow/controller"
)

func main() {
	kubeconfig := flag.String("kubeconfig", "", "how to reach the API server, as somebody who may do everything")
	namespace := flag.String("namespace", "", "the namespace of the Workflows and of the controller's ConfigMap")
	address := flag.String("listen", "", "host and port of /healthz")
	flag.Parse()

	// First of all: a port that is taken must be known before anything is done to a Workflow.
	listener, err := net.Listen("tcp", *address)
	orDie(err)
	config, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	orDie(err)
	// Upstream's limits; those of client-go are a quarter of them.
	config.QPS, config.Burst = 20, 30

	ctx := context.Background()
	argo, err := controller.NewWorkflowController(
		ctx, config, kubernetes.NewForConfigOrDie(config), versioned.NewForConfigOrDie(config),
		*namespace, *namespace, "", "", "text", common.ConfigMapName, false,
	)
	orDie(err)
	// Upstream's numbers of workers for Workflows, their deletion, pods, CronWorkflows and archiving.
	go argo.Run(ctx, 32, 4, 4, 8, 8)
	http.HandleFunc("/healthz", argo.Healthz)
	orDie(http.Serve(listener, nil))
}

func orDie(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

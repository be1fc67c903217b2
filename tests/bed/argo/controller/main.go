// The workflow-controller of Argo Workflows, with a main of our own: upstream's listens on fixed ports of all
// interfaces, for metrics and for its health. This one answers on the one address that it is given.
package main

import (
	"context"
	"flag"
	"log"
	"net/http"
	"os/signal"
	"syscall"

	wfclientset "github.com/argoproj/argo-workflows/v3/pkg/client/clientset/versioned"
	cmdutil "github.com/argoproj/argo-workflows/v3/util/cmd"
	"github.com/argoproj/argo-workflows/v3/workflow/controller"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

func main() {
	kubeconfig := flag.String("kubeconfig", "", "how to reach the cluster")
	namespace := flag.String("namespace", "", "whose Workflows it looks after")
	address := flag.String("address", "", "HOST:PORT of its /healthz")
	flag.Parse()

	cmdutil.SetLogLevel("warn")
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	config, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err != nil {
		log.Fatal(err)
	}
	config.QPS, config.Burst = 200, 400
	argo, err := controller.NewWorkflowController(
		ctx, config, kubernetes.NewForConfigOrDie(config), wfclientset.NewForConfigOrDie(config), *namespace, *namespace,
		"executor", "", "text", "workflow-controller-configmap", false,
	)
	if err != nil {
		log.Fatal(err)
	}
	http.HandleFunc("/healthz", argo.Healthz)
	go func() { log.Fatal(http.ListenAndServe(*address, nil)) }()
	argo.Run(ctx, 8, 4, 4, 4, 4)
}

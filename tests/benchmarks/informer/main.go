// What a Go developer would write: an informer, Google's Pub/Sub client, one message for each event.
package main

import (
	"context"
	"flag"
	"log"
	"time"

	"cloud.google.com/go/pubsub/v2"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

func main() {
	api := flag.String("api", "", "the API server's URL")
	authority := flag.String("ca", "", "its certificate authority's file")
	flag.Parse()
	ctx := context.Background()
	config := &rest.Config{Host: *api, BearerToken: "token", TLSClientConfig: rest.TLSClientConfig{CAFile: *authority}}
	client, err := pubsub.NewClient(ctx, "proj-x")
	if err != nil {
		log.Fatal(err)
	}
	topic := client.Publisher("projects/proj-x/topics/topic-x")
	send := func(kind string, found any) {
		if last, gone := found.(cache.DeletedFinalStateUnknown); gone {
			found = last.Obj
		}
		workflow := found.(*unstructured.Unstructured)
		data, err := workflow.MarshalJSON()
		if err != nil {
			log.Fatal(err)
		}
		result := topic.Publish(ctx, &pubsub.Message{Data: data, Attributes: map[string]string{
			"type": kind, "name": workflow.GetName(), "namespace": workflow.GetNamespace(),
			"uid": string(workflow.GetUID()), "resourceVersion": workflow.GetResourceVersion(),
		}})
		go func() {
			if _, err := result.Get(ctx); err != nil {
				log.Print(err)
			}
		}()
	}
	informers := dynamicinformer.NewDynamicSharedInformerFactory(dynamic.NewForConfigOrDie(config), 10*time.Minute)
	workflows := schema.GroupVersionResource{Group: "argoproj.io", Version: "v1alpha1", Resource: "workflows"}
	if _, err := informers.ForResource(workflows).Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(found any) { send("ADDED", found) },
		UpdateFunc: func(_, found any) { send("MODIFIED", found) },
		DeleteFunc: func(found any) { send("DELETED", found) },
	}); err != nil {
		log.Fatal(err)
	}
	informers.Start(ctx.Done())
	select {}
}

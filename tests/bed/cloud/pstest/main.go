// A Pub/Sub server for machines without Google's emulator: the one that Google's Go client is tested with.
package main

import (
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"cloud.google.com/go/pubsub/v2/pstest"
)

// It listens on a free port of the given address and prints both as its first line.
func main() {
	server := pstest.NewServerWithAddress(os.Args[1] + ":0")
	defer server.Close()
	fmt.Println(server.Addr)

	ended := make(chan os.Signal, 1)
	signal.Notify(ended, os.Interrupt, syscall.SIGTERM)
	<-ended
}

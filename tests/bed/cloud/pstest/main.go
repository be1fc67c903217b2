// A Pub/Sub server for machines without Google's emulator: the one that Google's Go client is tested with.
package main

import (
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"cloud.google.com/go/pubsub/v2/pstest"
)

// It listens on a free port of 127.0.0.1 and prints the address as its first line.
func main() {
	server := pstest.NewServer()
	defer server.Close()
	fmt.Println(server.Addr)

	ended := make(chan os.Signal, 1)
	signal.Notify(ended, os.Interrupt, syscall.SIGTERM)
	<-ended
}

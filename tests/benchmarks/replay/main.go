// Replays a recorded watch to whoever is measured, and counts what that one publishes.
//
// It stands for three servers, each on a free port of 127.0.0.1:
//
//   - the API server, over TLS: LIST gives the metadata of as many objects, at the version, that the driver has set;
//     WATCH sends the recorded frames as fast as they are read, numbered from the version that was asked for. A watch
//     that has sent frames ends behind the last of them; one with nothing to send lasts its timeoutSeconds.
//   - Pub/Sub, over gRPC: every request is stored, that is, counted.
//   - the driver's own, over plain HTTP: POST /begin?events=N&version=V&objects=O before each measurement, GET /counts after it.
//
// The addresses are written to a file, as JSON, when all of them are listened at.
package main

import (
	"bytes"
	"compress/gzip"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protowire"
)

const (
	begin    = 1000 // the version before the first frame
	messages = 2    // the field of PublishRequest that has the messages
	ids      = 1    // the field of PublishResponse that has their ids
	group    = "/apis/argoproj.io/v1alpha1"
)

// A frame is a recorded line, cut where its resourceVersion stands.
type frame struct{ before, after []byte }

// Counts is what one measurement has seen.
type Counts struct {
	Requests int     `json:"requests"`
	Messages int     `json:"messages"`
	Bytes    int     `json:"bytes"`
	Watched  float64 `json:"watched"` // Unix time at which the first watch was asked for
	First    float64 `json:"first"`   // Unix time of the first acknowledgement
	Last     float64 `json:"last"`    // Unix time of the last one
}

type server struct {
	mutex   sync.Mutex
	counts  Counts
	events  int // so many frames follow on version 1000
	version int // what LIST says
	objects int // how many it has
	frames  []frame
}

func now() float64 { return float64(time.Now().UnixNano()) / 1e9 }

// ServeHTTP is the API server.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	query := r.URL.Query()
	watch, _ := strconv.ParseBool(query.Get("watch"))
	switch path := r.URL.Path; {
	case strings.HasPrefix(path, group) && strings.HasSuffix(path, "/workflows"):
		if watch {
			s.watch(w, r)
		} else {
			s.list(w, r)
		}
	case watch: // kopf also watches namespaces and definitions, in which nothing happens
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	case path == "/api/v1/namespaces/kube-system":
		io.WriteString(w, `{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1","metadata":{"name":"kube-system","uid":"0f8b2b62-7d0b-4f39-9c0e-31d7e1a4a111"}}`)
	case answers[path] != "":
		io.WriteString(w, answers[path])
	default:
		w.WriteHeader(http.StatusNotFound)
		io.WriteString(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","code":404}`)
	}
}

// Discovery, and empty lists of what kopf looks at.
var answers = map[string]string{
	"/version": `{"major":"1","minor":"37","gitVersion":"v1.37.2"}`,
	"/api":     `{"kind":"APIVersions","versions":["v1"]}`,
	"/api/v1": `{"kind":"APIResourceList","groupVersion":"v1","resources":[` +
		`{"name":"namespaces","singularName":"namespace","namespaced":false,"kind":"Namespace","verbs":["get","list","watch"]},` +
		`{"name":"events","singularName":"event","namespaced":true,"kind":"Event","verbs":["create","get","list","watch"]}]}`,
	"/apis": `{"kind":"APIGroupList","apiVersion":"v1","groups":[{"name":"argoproj.io",` +
		`"versions":[{"groupVersion":"argoproj.io/v1alpha1","version":"v1alpha1"}],` +
		`"preferredVersion":{"groupVersion":"argoproj.io/v1alpha1","version":"v1alpha1"}}]}`,
	group: `{"kind":"APIResourceList","apiVersion":"v1","groupVersion":"argoproj.io/v1alpha1","resources":[` +
		`{"name":"workflows","singularName":"workflow","namespaced":true,"kind":"Workflow",` +
		`"verbs":["delete","get","list","patch","update","watch"],"shortNames":["wf"]}]}`,
	"/api/v1/namespaces": `{"kind":"NamespaceList","apiVersion":"v1","metadata":{"resourceVersion":"1"},"items":[]}`,
	"/apis/apiextensions.k8s.io/v1/customresourcedefinitions": `{"kind":"CustomResourceDefinitionList",` +
		`"apiVersion":"apiextensions.k8s.io/v1","metadata":{"resourceVersion":"1"},"items":[]}`,
}

// list gives a page of metadata, as long as the driver has said that there are objects.
func (s *server) list(w http.ResponseWriter, r *http.Request) {
	s.mutex.Lock()
	objects, version := s.objects, s.version
	s.mutex.Unlock()
	query := r.URL.Query()
	first, _ := strconv.Atoi(query.Get("continue"))
	last := objects
	if limit, _ := strconv.Atoi(query.Get("limit")); limit > 0 {
		last = min(first+limit, objects)
	}
	kind, of := "WorkflowList", "argoproj.io/v1alpha1"
	if strings.Contains(r.Header.Get("Accept"), "as=PartialObjectMetadataList") {
		kind, of = "PartialObjectMetadataList", "meta.k8s.io/v1"
	}
	page := fmt.Appendf(nil, `{"kind":%q,"apiVersion":%q,"metadata":{"resourceVersion":"%d"`, kind, of, version)
	if last < objects {
		page = fmt.Appendf(page, `,"continue":"%d","remainingItemCount":%d`, last, objects-last)
	}
	page = append(page, `},"items":[`...)
	for number := first; number < last; number++ {
		if number > first {
			page = append(page, ',')
		}
		page = fmt.Appendf(page, item, number, uint32(number)*2654435761, number, number%begin+1)
	}
	page = append(page, "]}"...)
	// As the API server: only what is longer than 128 KB.
	if strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") && len(page) > 128<<10 {
		w.Header().Set("Content-Encoding", "gzip")
		packed := gzip.NewWriter(w)
		defer packed.Close()
		packed.Write(page)
		return
	}
	w.Write(page)
}

// item has the metadata of a finished Workflow, as they come in a PartialObjectMetadataList.
const item = `{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1","metadata":{"name":"nightly-etl-%06d",` +
	`"namespace":"argo","uid":"%08x-67ad-4a1c-9bf0-%012x","resourceVersion":"%d","generation":7,` +
	`"creationTimestamp":"2026-11-01T02:00:00Z","labels":{"workflows.argoproj.io/completed":"true",` +
	`"workflows.argoproj.io/phase":"Succeeded","team":"data"},` +
	`"annotations":{"workflows.argoproj.io/pod-name-format":"v2"}}}`

func (s *server) watch(w http.ResponseWriter, r *http.Request) {
	asked := time.Now()
	query := r.URL.Query()
	if query.Get("sendInitialEvents") == "true" { // a server without this feature: the informer lists instead
		w.WriteHeader(http.StatusUnprocessableEntity)
		io.WriteString(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Invalid","code":422}`)
		return
	}
	s.mutex.Lock()
	if s.counts.Watched == 0 {
		s.counts.Watched = now()
	}
	end := begin + s.events
	s.mutex.Unlock()
	version, _ := strconv.Atoi(query.Get("resourceVersion"))
	seconds, err := strconv.Atoi(query.Get("timeoutSeconds"))
	if err != nil {
		seconds = 1800
	}
	w.(http.Flusher).Flush()
	if version < end {
		for ; version < end; version++ {
			next := s.frames[version%len(s.frames)]
			// One write for each frame, and so one chunk, as the API server does it.
			line := append(strconv.AppendInt(append([]byte(nil), next.before...), int64(version+1), 10), next.after...)
			if _, err := w.Write(line); err != nil {
				return
			}
			w.(http.Flusher).Flush()
		}
	} else {
		select {
		case <-r.Context().Done():
			return
		case <-time.After(time.Until(asked.Add(time.Duration(seconds) * time.Second))):
		}
	}
	if query.Get("allowWatchBookmarks") == "true" {
		fmt.Fprintf(w, `{"type":"BOOKMARK","object":{"kind":"Workflow","apiVersion":"argoproj.io/v1alpha1",`+
			`"metadata":{"resourceVersion":"%d","creationTimestamp":null}}}`+"\n", version)
	}
}

// Publish is every method of Pub/Sub: whatever is called, only messages are counted.
func (s *server) publish(_ any, stream grpc.ServerStream) error {
	var request []byte
	if err := stream.RecvMsg(&request); err != nil {
		return err
	}
	found := 0
	for rest := request; len(rest) > 0; {
		number, _, length := protowire.ConsumeField(rest)
		if length < 0 {
			return protowire.ParseError(length)
		}
		if number == messages {
			found++
		}
		rest = rest[length:]
	}
	s.mutex.Lock()
	stored := s.counts.Messages
	s.mutex.Unlock()
	answer := []byte{}
	for number := range found {
		answer = protowire.AppendTag(answer, ids, protowire.BytesType)
		answer = protowire.AppendString(answer, strconv.Itoa(stored+number))
	}
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.counts.Requests++
	s.counts.Messages += found
	s.counts.Bytes += len(request)
	s.counts.Last = now()
	if s.counts.First == 0 {
		s.counts.First = s.counts.Last
	}
	return stream.SendMsg(&answer)
}

// raw leaves requests as they are.
type raw struct{}

func (raw) Marshal(value any) ([]byte, error) { return *value.(*[]byte), nil }
func (raw) Unmarshal(data []byte, value any) error {
	*value.(*[]byte) = append([]byte(nil), data...)
	return nil
}
func (raw) Name() string { return "proto" }

// control is what the driver talks to.
func (s *server) control(w http.ResponseWriter, r *http.Request) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	switch r.URL.Path {
	case "/begin":
		events, err := strconv.Atoi(r.FormValue("events"))
		version, err2 := strconv.Atoi(r.FormValue("version"))
		objects, err3 := strconv.Atoi(r.FormValue("objects"))
		if err := errors.Join(err, err2, err3); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		s.events, s.version, s.objects, s.counts = events, version, objects, Counts{}
	case "/counts":
		if err := json.NewEncoder(w).Encode(s.counts); err != nil {
			log.Print(err)
		}
	default:
		http.NotFound(w, r)
	}
}

func load(path string) ([]frame, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	key := []byte(`"resourceVersion":"`)
	var frames []frame
	for line := range bytes.Lines(text) {
		before, after, found := bytes.Cut(line, key)
		end := bytes.IndexByte(after, '"')
		if !found || end < 0 {
			return nil, fmt.Errorf("%s: line %d has no version", path, len(frames)+1)
		}
		frames = append(frames, frame{line[:len(before)+len(key)], after[end:]})
	}
	if len(frames) == 0 {
		return nil, fmt.Errorf("%s is empty", path)
	}
	return frames, nil
}

// certificate is one that signs itself; its PEM goes to a file.
func certificate(path string) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "replay"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IPAddresses: []net.IP{net.ParseIP("127.0.0.1")}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return tls.Certificate{}, err
	}
	file := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, os.WriteFile(path, file, 0o600)
}

func serve() error {
	corpus := flag.String("corpus", "", "the recorded watch: a frame a line")
	authority := flag.String("ca", "", "where to write the certificate to")
	told := flag.String("addresses", "", "where to write the addresses to")
	flag.Parse()
	frames, err := load(*corpus)
	if err != nil {
		return err
	}
	trusted, err := certificate(*authority)
	if err != nil {
		return err
	}
	s := &server{frames: frames, version: begin}
	addresses := map[string]string{}
	listeners := map[string]net.Listener{}
	for _, name := range []string{"api", "sink", "control"} {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		listeners[name], addresses[name] = listener, listener.Addr().String()
	}
	sink := grpc.NewServer(grpc.ForceServerCodec(raw{}), grpc.UnknownServiceHandler(s.publish), grpc.MaxRecvMsgSize(64<<20))
	// As the API server: HTTP/2 for those who ask for it.
	api := &http.Server{Handler: s, TLSConfig: &tls.Config{Certificates: []tls.Certificate{trusted}}}
	ended := make(chan error)
	go func() { ended <- sink.Serve(listeners["sink"]) }()
	go func() { ended <- api.ServeTLS(listeners["api"], "", "") }()
	go func() { ended <- http.Serve(listeners["control"], http.HandlerFunc(s.control)) }()
	text, err := json.Marshal(addresses)
	if err != nil {
		return err
	}
	if err := os.WriteFile(*told+".partial", text, 0o600); err != nil {
		return err
	}
	if err := os.Rename(*told+".partial", *told); err != nil {
		return err
	}
	return <-ended
}

func main() {
	log.SetFlags(0)
	log.Fatal(serve())
}

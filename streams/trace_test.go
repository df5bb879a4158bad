package streams

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/topology"
)

const (
	tracedID  = "4bf92f3577b34da6a3ce929d0e0e4736"
	tracedBy  = "00f067aa0ba902b7"
	sampledBy = "00-" + tracedID + "-" + tracedBy + "-01"
)

// headerOf returns a header's value, "" for none.
func headerOf(r *kgo.Record, key string) string {
	for _, h := range r.Headers {
		if h.Key == key {
			return string(h.Value)
		}
	}
	return ""
}

// TestTraces follows a trace from an input record over a repartition topic to the output, of streams and of tables.
func TestTraces(t *testing.T) {
	for name, b := range map[string]*topology.Builder{"stream": wordCount("lines", "counts"), "table": func() *topology.Builder {
		b := topology.New()
		b.Table(linesTopic).GroupBy(func(_, v string) (string, string) { return v, v }).Count().As("counts").ToStream().To(countTopic)
		return b
	}()} {
		t.Run(name, func(t *testing.T) {
			brokers := fakeCluster(t, 2, "lines", "counts")
			spans := tracetest.NewInMemoryExporter()
			// What has no sampled context is not recorded.
			provider := sdktrace.NewTracerProvider(sdktrace.WithSyncer(spans), sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.NeverSample())))
			c := testConfig(brokers)
			c.Tracer = provider.Tracer("eddyline")
			a, stop := runApp(t, graphOf(t, b), c)
			ready(t, a)
			plain, traced := lineOf("plain"), lineOf("word")
			traced.Key = []byte("other")
			traced.Headers = []kgo.RecordHeader{{Key: "traceparent", Value: []byte(sampledBy)}, {Key: "kept", Value: []byte("1")}}
			send(t, brokers, plain, traced)
			out := map[string]*kgo.Record{}
			for _, r := range receive(t, brokers, "counts", 2) {
				out[string(r.Key)] = r
			}
			if err := stop(); err != nil {
				t.Fatal(err)
			}
			if h := out["plain"].Headers; len(h) != 0 {
				t.Errorf("a record without a context has the headers %v", h)
			}
			got := spans.GetSpans()
			if len(got) != 2 {
				t.Fatalf("%d spans, want one of the input and one of the repartition topic: %+v", len(got), got)
			}
			first, second := got[0], got[1]
			if first.Name != "process lines" || first.Parent.SpanID().String() != tracedBy || first.SpanContext.TraceID().String() != tracedID || !first.Parent.IsRemote() {
				t.Errorf("the first span is %+v", first)
			}
			if !strings.HasPrefix(second.Name, "process app-") || second.Parent.SpanID() != first.SpanContext.SpanID() {
				t.Errorf("the second span is %+v, want a child of %v", second, first.SpanContext)
			}
			if got, want := headerOf(out["word"], "traceparent"), "00-"+tracedID+"-"+second.SpanContext.SpanID().String()+"-01"; got != want {
				t.Errorf("the output has traceparent %s, want %s", got, want)
			}
			if headerOf(out["word"], "kept") != "1" || len(out["word"].Headers) != 2 {
				t.Errorf("the output has the headers %v", out["word"].Headers)
			}
			attributes := map[string]string{}
			for _, a := range second.Attributes {
				attributes[string(a.Key)] = a.Value.String()
			}
			if attributes["messaging.destination.name"] != strings.TrimPrefix(second.Name, "process ") || attributes["messaging.kafka.offset"] != "0" && attributes["messaging.kafka.offset"] != "1" ||
				!strings.HasPrefix(attributes["eddyline.task"], "1_") {
				t.Errorf("the second span has the attributes %v", attributes)
			}
		})
	}
}

// TestTraceOfFailure records that a record failed.
func TestTraceOfFailure(t *testing.T) {
	for name, fail := range map[string]func(string) (string, error){
		"error": func(string) (string, error) { return "", errors.New("out of order") },
		"panic": func(string) (string, error) { panic("out of order") },
	} {
		t.Run(name, func(t *testing.T) {
			brokers := fakeCluster(t, 1, "lines")
			b := topology.New()
			b.Stream(topology.NewTopic("lines", serde.String, serde.String)).
				TryMapValues(func(_ context.Context, v string) (string, error) { return fail(v) }, topology.OnError(topology.Skip))
			spans := tracetest.NewInMemoryExporter()
			c := testConfig(brokers)
			c.Tracer = sdktrace.NewTracerProvider(sdktrace.WithSyncer(spans)).Tracer("eddyline")
			a, stop := runApp(t, graphOf(t, b), c)
			ready(t, a)
			send(t, brokers, &kgo.Record{Topic: "lines", Key: []byte("k"), Value: []byte("x"), Timestamp: time.Now()})
			if err := a.WaitCommitted(t.Context(), "lines", 0, 1); err != nil {
				t.Fatal(err)
			}
			if err := stop(); err != nil {
				t.Fatal(err)
			}
			if got := spans.GetSpans(); len(got) != 1 || got[0].Status.Code != codes.Error || got[0].Status.Description == "" || got[0].Parent.IsValid() {
				t.Errorf("the spans are %+v", got)
			}
		})
	}
}

package streams

import (
	"context"
	"strconv"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/streams/task"
	"github.com/eddyline/eddyline/topology"
)

// traceOf returns what makes spans of a task's records, nil for none: see Config.Tracer.
func (a *App) traceOf(id task.ID) func(in *topology.Input) (serde.Headers, func(error)) {
	tracer := a.config.Tracer
	if tracer == nil {
		return nil
	}
	always := []attribute.KeyValue{
		attribute.String("messaging.system", "kafka"), attribute.String("messaging.operation.name", "process"),
		attribute.String("messaging.operation.type", "process"), attribute.String("messaging.consumer.group.name", a.config.ApplicationID),
		attribute.String("eddyline.task", id.String()),
	}
	internal := map[string]bool{}
	for _, s := range a.graph.Subtopologies() {
		for _, t := range s.Sources {
			internal[t.Name] = t.Internal
		}
	}
	return func(in *topology.Input) (serde.Headers, func(error)) {
		h := in.Headers
		ctx := contexts.Extract(context.Background(), (*headerCarrier)(&h))
		parent := trace.SpanContextFromContext(ctx)
		topic := a.topicName(in.Topic, internal[in.Topic])
		ctx, span := tracer.Start(ctx, "process "+topic, trace.WithSpanKind(trace.SpanKindConsumer), trace.WithAttributes(always...), trace.WithAttributes(
			attribute.String("messaging.destination.name", topic),
			attribute.String("messaging.destination.partition.id", strconv.Itoa(int(in.Partition))),
			attribute.Int64("messaging.kafka.offset", in.Offset),
		))
		if parent.IsValid() || span.SpanContext().IsSampled() { // else nobody follows it
			contexts.Inject(ctx, (*headerCarrier)(&h))
		}
		return h, func(err error) {
			if err != nil {
				span.SetStatus(codes.Error, err.Error())
			}
			span.End()
		}
	}
}

// contexts reads and writes the headers traceparent and tracestate.
var contexts propagation.TraceContext

// headerCarrier are headers as a [propagation.TextMapCarrier].
type headerCarrier serde.Headers

func (c *headerCarrier) Get(key string) string {
	v, _ := serde.Headers(*c).Get(key)
	return v
}

func (c *headerCarrier) Set(key, value string) {
	*c = headerCarrier(serde.Headers(*c).Without(key).With(key, value))
}

func (c *headerCarrier) Keys() (keys []string) {
	for h := range serde.Headers(*c).All() {
		keys = append(keys, h.Key)
	}
	return keys
}

package testkit_test

import (
	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/topology"
)

func headersStateless(b *topology.Builder, _ *vector) {
	s := b.Stream(topicOf("in"))
	s.MapValues(func(v text) text { return some(str(v) + "?") }).To(topicOf("out-first"))
	s.Process(func(ctx *topology.Context[text, text]) topology.Processor[text, text] {
		set := ctx.HeaderSetter()
		return func(r topology.Record[text, text]) error {
			var key []byte
			if !r.NoKey {
				key = []byte(r.Key.Value)
			}
			h := r.Headers.WithBytes("seen", key)
			if r.NoValue {
				h = h.Without("n")
			}
			set(h)
			ctx.Forward(r)
			ctx.Forward(r.WithHeaders(serde.HeadersOf(serde.Header{Key: "only", Value: []byte("1")})))
			return nil
		}
	}).Repartition(topicOf("r")).To(topicOf("out-process"))
	s.MapValues(func(v text) text { return some(str(v) + "!") }).
		FilterRecord(func(r topology.Record[text, text]) bool { return !r.NoKey }).
		SelectKey(func(v text) text { return v }).
		FlatMap(func(k, v text, emit func(text, text)) {
			emit(k, v)
			emit(v, k)
		}).To(topicOf("out"))
}

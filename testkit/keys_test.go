package testkit_test

import (
	"testing"
	"time"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/testkit"
	"github.com/eddyline/eddyline/topology"
)

// A source does not decode keys that nothing below it looks at. Whatever does look at them, wherever it is, sees them.
func TestKeysBehindValueOperators(t *testing.T) {
	in := topology.NewTopic("in", serde.String, serde.String)
	out := topology.NewTopic("out", serde.String, serde.String)
	values := func(b *topology.Builder, in topology.Topic[string, string]) topology.Stream[string, string] {
		return b.Stream(in).
			Filter(func(v string) bool { return v != "" }).
			MapValues(func(v string) string { return v }).
			FlatMapValues(func(v string) []string { return []string{v} })
	}
	var seen string
	see := func(key string) { seen += key }
	cases := map[string]struct {
		build func(b *topology.Builder)
		seen  string
		out   topology.Topic[string, string]
		key   string // of what is written there; none: nothing is
		at    int    // partition
	}{
		"nobody": {func(b *topology.Builder) { values(b, in).To(out) }, "", out, "k", -1},
		"a processor": {func(b *topology.Builder) {
			values(b, in).ForEach(func(k, _ string) { see(k) })
		}, "k", out, "", -1},
		"one of two": {func(b *topology.Builder) {
			s := values(b, in)
			s.To(out)
			s.Peek(func(k, _ string) { see(k) })
		}, "k", out, "k", -1},
		"between them": {func(b *topology.Builder) {
			values(b, in).FilterRecord(func(r topology.Record[string, string]) bool { see(r.Key); return true }).
				MapValues(func(v string) string { return v }).To(out)
		}, "k", out, "k", -1},
		"a timestamp": {func(b *topology.Builder) {
			values(b, in.Timestamps(func(r topology.Record[string, string], _ time.Time) (time.Time, bool) {
				see(r.Key)
				return time.UnixMilli(1), true
			})).To(out)
		}, "k", out, "k", -1},
		"a partitioner": {func(b *topology.Builder) {
			values(b, in).To(out.PartitionBy(func(k, _ string, _ int) int { return len(k) }))
		}, "", out, "k", 1},
		"the name of a topic": {func(b *topology.Builder) {
			values(b, in).ToDynamic(out, func(r topology.Record[string, string]) string { return r.Key })
		}, "", topology.NewTopic("k", serde.String, serde.String), "k", -1},
		"another serde": {func(b *topology.Builder) {
			values(b, in).To(topology.NewTopic("out", quoted{}, serde.String))
		}, "", out, `"k"`, -1},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			seen = ""
			b := topology.New()
			c.build(b)
			d := testkit.New(t, b, testkit.Partitions(3))
			d.Input(in).Send("k", "v")
			if seen != c.seen {
				t.Errorf("the key is seen as %q, want %q", seen, c.seen)
			}
			if c.key == "" {
				return
			}
			o := d.Output(c.out)
			if c.at >= 0 {
				o = o.Partition(c.at)
			}
			o.Want(c.key, "v")
		})
	}
}

// quoted is a serde whose bytes are not those of serde.String.
type quoted struct{}

func (quoted) Append(dst []byte, v string) ([]byte, error) { return append(dst, `"`+v+`"`...), nil }
func (quoted) Decode(b []byte) (string, error)             { return string(b[1 : len(b)-1]), nil }

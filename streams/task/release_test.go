package task_test

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/streams/task"
	"github.com/eddyline/eddyline/topology"
)

// A list of records is given back when nothing is needed of it any more: not while the last record that was not left out is
// processed, though the heads of several lists behind it were looked at by then.
func TestRelease(t *testing.T) {
	var seen []string
	b := topology.New()
	b.Stream(topology.NewTopic("in", serde.String, serde.Int64), topology.OnError(topology.Skip)).Process(
		func(c *topology.Context[string, int64]) topology.Processor[string, int64] {
			return func(topology.Record[string, int64]) error {
				at, _ := c.Origin()
				seen = append(seen, fmt.Sprint(at.Topic, "@", at.Offset))
				return nil
			}
		})
	g, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	in := task.Partition{Topic: "in"}
	released := 0
	tk, err := task.New(task.Config{
		Graph: g, Sub: g.Whole(), Inputs: []task.Input{{Partition: in, Source: g.Whole().Sources[0], Metadata: task.Metadata{PartitionTime: -1}}},
		Env: topology.Env{
			Context: context.Background(), Partitions: func(string, bool) int { return 1 },
			TopicName: func(t string, _ bool) string { return t }, Dropped: func(_, _ string) {},
		},
		Release: func(records []topology.Input) {
			clear(records)
			released++
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer tk.Close()
	var out topology.Outbox
	tk.Collect(&out, 0)
	offset := int64(0)
	for _, list := range [][]string{{"good one", "good two"}, {"bad"}, {"bad"}, {"good too"}, {"good end"}} {
		var records []topology.Input
		for _, v := range list {
			records = append(records, topology.Input{Topic: "in", Offset: offset, Value: []byte(v)})
			offset++
		}
		if err := tk.Add(in, records); err != nil {
			t.Fatal(err)
		}
	}
	for tk.Queued() {
		if _, err := tk.Process(); err != nil {
			t.Fatal(err)
		}
	}
	if want := []string{"in@0", "in@1", "in@4", "in@5"}; !slices.Equal(seen, want) {
		t.Errorf("processed %q, want %q", seen, want)
	}
	if released != 4 {
		t.Errorf("%d lists were given back, want 4: the last one is still held", released)
	}
	for range 10 {
		if err := tk.Add(in, []topology.Input{{Topic: "in", Offset: offset, Value: []byte("bad")}}); err != nil {
			t.Fatal(err)
		}
		offset++
	}
	if released < 4+8 {
		t.Errorf("of ten lists of records that were all left out %d were given back", released-4)
	}
}

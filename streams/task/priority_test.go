package task_test

import (
	"context"
	"slices"
	"testing"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/streams/task"
	"github.com/eddyline/eddyline/topology"
)

// Records of a larger priority come first, whatever their timestamps. Those of a smaller one wait until none of a larger one
// can be there, and nobody waits for them.
func TestPriority(t *testing.T) {
	text := func(name string) topology.Topic[string, string] {
		return topology.NewTopic(name, serde.String, serde.String)
	}
	b := topology.New()
	b.Streams(text("urgent").Priority(9).Also("urgent-too")).Merge(b.Stream(text("usual"))).Merge(b.Stream(text("idle").Priority(-1))).To(text("out"))
	g, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	var inputs []task.Input
	for _, s := range g.Whole().Sources {
		inputs = append(inputs, task.Input{Partition: task.Partition{Topic: s.Name}, Source: s, Metadata: task.Metadata{PartitionTime: -1}})
	}
	tk, err := task.New(task.Config{Graph: g, Sub: g.Whole(), Inputs: inputs, Env: topology.Env{
		Context: context.Background(), Partitions: func(string, bool) int { return 1 },
		TopicName: func(t string, _ bool) string { return t }, Dropped: func(_, _ string) {},
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer tk.Close()
	var out topology.Outbox
	tk.Collect(&out, 0)
	next := map[string]int64{}
	add := func(topic string, ms ...int64) {
		t.Helper()
		var list []topology.Input
		for _, at := range ms {
			list = append(list, topology.Input{Topic: topic, Offset: next[topic], Timestamp: at, Value: []byte(topic)})
			next[topic]++
		}
		if err := tk.Add(task.Partition{Topic: topic}, list); err != nil {
			t.Fatal(err)
		}
	}
	reached := func(topics ...string) {
		for _, name := range topics {
			tk.Position(task.Partition{Topic: name}, next[name], true)
		}
	}
	run := func(want ...string) {
		t.Helper()
		for tk.Ready() {
			if _, err := tk.Process(); err != nil {
				t.Fatal(err)
			}
		}
		var got []string
		for r := range out.From(0) {
			got = append(got, string(r.Value))
		}
		if !slices.Equal(got, want) {
			t.Errorf("processed %q, want %q", got, want)
		}
		out.Reset()
	}
	add("usual", 1, 2)
	run() // something urgent may be there
	add("urgent", 30, 10)
	run()
	add("urgent-too", 20)
	run("urgent-too") // the second input of the same priority may have an earlier one
	reached("urgent-too")
	run("urgent", "urgent")
	reached("urgent")
	run("usual", "usual") // though something idle may be there
	add("idle", 1)
	run()
	reached("usual")
	run("idle")
}

func TestPriorityOfOneTopic(t *testing.T) {
	in := topology.NewTopic("in", serde.String, serde.String)
	b := topology.New()
	b.Stream(in).Merge(b.Stream(in.Priority(1))).To(in.Rename("out"))
	if _, err := b.Build(); err == nil {
		t.Error("one topic has two priorities")
	}
}

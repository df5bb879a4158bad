package streams

import (
	"slices"
	"testing"

	"github.com/google/uuid"
)

func TestParseTransactionalID(t *testing.T) {
	const u = "0f8fad5b-d9cb-469f-a165-70867728950e"
	for _, test := range []struct {
		application, id string
		want            transactionalID
		ok              bool
	}{
		{"orders", "orders-" + u + "-0-0", transactionalID{"orders", u, 0, "0"}, true},
		{"orders", "orders-" + u + "-12-1", transactionalID{"orders", u, 12, "1"}, true},
		{"orders", "orders-" + u + "-3-offsets", transactionalID{"orders", u, 3, "offsets"}, true},
		{"orders", "orders-" + u + "-3", transactionalID{"orders", u, 3, ""}, true}, // Kafka Streams
		{"orders-eu", "orders-eu-" + u + "-0-0", transactionalID{"orders-eu", u, 0, "0"}, true},
		{"a-" + u + "-1", "a-" + u + "-1-" + u + "-0-0", transactionalID{"a-" + u + "-1", u, 0, "0"}, true},
		{"", "-" + u + "-0-0", transactionalID{"", u, 0, "0"}, true},

		{application: "orders", id: "orders-eu-" + u + "-0-0"},
		{application: "orders-eu", id: "orders-" + u + "-0-0"},
		{application: "a", id: "a-" + u + "-1-" + u + "-0-0"}, // of an application a-u-1
		{application: "a", id: "a-" + u + "-1-" + u + "-0"},
		{application: "a", id: "a-" + u},
		{application: "a", id: "a-" + u + "-"},
		{application: "a", id: "a-" + u + "--0"},
		{application: "a", id: "a-" + u + "-x-0"},
		{application: "a", id: "a-" + u + "--1-0"},
		{application: "a", id: "a-" + u + "-+1-0"},
		{application: "a", id: "a-" + u + "-01-0"},
		{application: "a", id: "a-" + u + "-0-2"},
		{application: "a", id: "a-" + u + "-0-plain"},
		{application: "a", id: "a-" + u + "-0-"},
		{application: "a", id: "a-" + u + "-0-0-0"},
		{application: "a", id: "a-" + u + "-99999999999999999999-0"},
		{application: "a", id: "a-0F8FAD5B-D9CB-469F-A165-70867728950E-0-0"},
		{application: "a", id: "a-0f8fad5bd9cb469fa16570867728950e-0-0"},
		{application: "a", id: "a-{f8fad5b-d9cb-469f-a165-70867728950}-0-0"},
		{application: "a", id: "a-"},
		{application: "a", id: "a"},
		{application: "a", id: ""},
	} {
		got, ok := parseTransactionalID(test.application, test.id)
		if ok != test.ok || ok && got != test.want {
			t.Errorf("parseTransactionalID(%q, %q) = %+v, %v, want %+v, %v",
				test.application, test.id, got, ok, test.want, test.ok)
		}
		if ok && got.String() != test.id {
			t.Errorf("%+v has the name %q, want %q", got, got.String(), test.id)
		}
	}
}

func FuzzParseTransactionalID(f *testing.F) {
	f.Add("orders", "orders-0f8fad5b-d9cb-469f-a165-70867728950e-0-offsets")
	f.Add("a-b", "a-b-0f8fad5b-d9cb-469f-a165-70867728950e-7")
	f.Fuzz(func(t *testing.T, application, id string) {
		if got, ok := parseTransactionalID(application, id); ok && (got.String() != id || got.application != application) {
			t.Errorf("parseTransactionalID(%q, %q) = %+v, which has another name", application, id, got)
		}
	})
}

func TestDepartedOf(t *testing.T) {
	live, gone := uuid.NewString(), uuid.NewString()
	got := departedOf("orders", []string{
		"orders-" + live + "-0-0", "orders-" + gone + "-1-offsets", "orders-" + gone + "-0-0", "orders-" + gone + "-0-0",
		"orders-eu-" + gone + "-0-0", "orders-" + gone + "-2",
	}, map[string]bool{live: true})
	want := []string{"orders-" + gone + "-0-0", "orders-" + gone + "-1-offsets", "orders-" + gone + "-2"}
	if !slices.Equal(got, want) {
		t.Errorf("departedOf = %v, want %v", got, want)
	}
}

// A member that is gone leaves a transaction open; a live one has one, too, and so has another application.
func TestFenceDeparted(t *testing.T) {
	onBrokers(t, func(b *bench) {
		live := b.producers
		gone := b.newProducers(uuid.NewString())
		other := b.newProducers(uuid.NewString())
		other.cfg.application += "-eu"
		for n, p := range []*producers{live, gone, other} {
			b.producers = p
			b.must(effect{do: doStart, slot: slotSecond})
			b.must(effect{do: doSend, slot: slotSecond, records: runs(b.records(b.out, n, 1))})
		}
		fenced, err := b.fencer().departed(b.Context(), map[string]bool{live.cfg.identity: true})
		want := transactionalID{b.app, gone.cfg.identity, 0, "1"}.String()
		if err != nil || len(fenced) != 1 || fenced[0] != want {
			b.Errorf("fenced %v, %v, want %v", fenced, err, want)
		}
		if open := b.openTxns(); len(open) != 2 {
			b.Errorf("open transactions %v, want those of the live member and of the other application", open)
		}
		b.producers = gone
		if a := b.send(slotSecond, b.records(b.out, 0, 1)); a.err == nil {
			b.Error("the departed member could still write")
		}
		b.producers = live
		b.must(effect{do: doSend, slot: slotSecond, records: runs(b.records(b.out, 2, 1))})
	})
}

// At a start, what the process before left open is ended, whatever producer it was.
func TestFenceOwn(t *testing.T) {
	onBrokers(t, func(b *bench) {
		b.must(effect{do: doStart, slot: slotOffsets})
		b.must(effect{do: doOffsets, slot: slotOffsets, batch: b.batch(5), member: b.member})
		b.must(effect{do: doStart, slot: slotFirst})
		b.must(effect{do: doSend, slot: slotFirst, records: runs(b.records(b.out, 0, 1))})
		if err := b.fencer().own(b.Context(), b.producers.cfg.identity, 2); err != nil {
			b.Fatal(err)
		}
		if open := b.openTxns(); len(open) > 0 {
			b.Errorf("open transactions %v", open)
		}
		b.wantCommitted(b.out, 0)
		b.wantOffset(-1)
	})
}

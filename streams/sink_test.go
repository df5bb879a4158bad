package streams

import (
	"slices"
	"testing"

	"github.com/eddyline/eddyline/topology"
)

// What a task wrote before it failed is left out of a burst, wherever the others wrote before and after it.
func TestBurstDrop(t *testing.T) {
	good, bad := new(running), new(running)
	b := new(burst)
	write := func(r *running, text string, collected bool) {
		b.out.Add(&topology.Output{Value: []byte(text)})
		if collected {
			b.collect(r)
		}
	}
	write(good, "a", true)
	write(bad, "b", true)
	write(bad, "c", false)
	b.drop(bad)
	write(good, "d", true)
	write(good, "e", true)
	var left []string
	for _, p := range b.parts {
		for i := p.from; i < p.to; i++ {
			left = append(left, string(b.out.At(i).Value))
		}
	}
	if want := []string{"a", "d", "e"}; !slices.Equal(left, want) {
		t.Errorf("the burst has %q, want %q", left, want)
	}
}

package testkit

import (
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/topology"
)

// Processor runs one processor alone, in a topology that has nothing else: records go in at In, what it forwards comes
// out at Out. Its context is the one that it has in an application. The driver beside it has its clock, its stores, what
// it scheduled, and whether it asked for a commit. Records need no serdes: they go in and out as they are.
type Processor[K, V, L, W any] struct {
	*Driver
	In  Input[K, V]
	Out Output[L, W] // what was forwarded; with Children, each has an output of its own: To

	children map[string]Output[L, W]
}

// ProcessorConfig is what a processor under test finds around it. The zero value is nothing.
type ProcessorConfig struct {
	Stores   []state.AnyStore          // that the processor uses, as in topology.Uses
	Children []string                  // the operators below it, for ForwardTo; none: one, which Out reads
	Prepare  func(b *topology.Builder) // adds what else it needs, such as serdes; nil for nothing
	Process  []topology.ProcessOption  // of the processor, such as topology.OnError
	Driver   []Option                  // of the driver
}

// NewProcessor runs the set-up function of a processor, as Stream.Process does.
func NewProcessor[K, V, L, W any](
	t testing.TB, setUp func(*topology.Context[L, W]) topology.Processor[K, V], c ProcessorConfig,
) *Processor[K, V, L, W] {
	t.Helper()
	return newProcessor(t, c, func(in topology.Stream[K, V], o []topology.ProcessOption) topology.Stream[L, W] {
		return in.Process(setUp, o...)
	})
}

// NewValueProcessor runs the set-up function of a processor that keeps the key, as Stream.ProcessValues does.
func NewValueProcessor[K, V, W any](
	t testing.TB, setUp func(*topology.ValueContext[W]) topology.Processor[K, V], c ProcessorConfig,
) *Processor[K, V, K, W] {
	t.Helper()
	return newProcessor(t, c, func(in topology.Stream[K, V], o []topology.ProcessOption) topology.Stream[K, W] {
		return in.ProcessValues(setUp, o...)
	})
}

// newProcessor makes the topology around a processor: a source, the processor, and a sink for each child.
func newProcessor[K, V, L, W any](
	t testing.TB, c ProcessorConfig, process func(topology.Stream[K, V], []topology.ProcessOption) topology.Stream[L, W],
) *Processor[K, V, L, W] {
	t.Helper()
	b := topology.New()
	if c.Prepare != nil {
		c.Prepare(b)
	}
	in := topology.NewTopic("in", hold[K](), hold[V]())
	out := topology.NewTopic("out", hold[L](), hold[W]())
	options := c.Process
	if len(c.Stores) > 0 {
		options = append([]topology.ProcessOption{topology.Uses(c.Stores...)}, options...)
	}
	forwarded := process(b.Stream(in), options)
	for _, child := range c.Children {
		forwarded.To(out.Rename(child), topology.Named(child))
	}
	if len(c.Children) == 0 {
		forwarded.To(out)
	}
	d := New(t, b, c.Driver...)
	p := &Processor[K, V, L, W]{Driver: d, In: d.Input(in), Out: d.Output(out), children: map[string]Output[L, W]{}}
	for _, child := range c.Children {
		p.children[child] = d.Output(out.Rename(child))
	}
	return p
}

// To returns what was forwarded to a child, by Forward or ForwardTo. It fails the test if there is no such child.
func (p *Processor[K, V, L, W]) To(child string) Output[L, W] {
	p.t.Helper()
	out, ok := p.children[child]
	if !ok {
		p.t.Fatalf("child %q: it is none of %s", child, list(p.children))
	}
	return out
}

// held is a serde that keeps the values themselves, and writes their numbers.
type held[T any] struct{ values *[]T }

func hold[T any]() serde.Serde[T] { return held[T]{new([]T)} }

func (h held[T]) Append(dst []byte, v T) ([]byte, error) {
	*h.values = append(*h.values, v)
	return binary.AppendUvarint(dst, uint64(len(*h.values)-1)), nil
}

func (h held[T]) Decode(b []byte) (v T, err error) {
	i, n := binary.Uvarint(b)
	if n <= 0 || i >= uint64(len(*h.values)) {
		return v, fmt.Errorf("decode %x: it is not one of the values that were sent or forwarded; use Send instead of SendBytes", b)
	}
	return (*h.values)[i], nil
}

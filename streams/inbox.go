package streams

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// inbox hands items from any goroutine to one. It takes as many as come: who fills it is bounded elsewhere, or rare.
type inbox[T any] struct {
	mu    sync.Mutex
	items []T
	any   atomic.Bool   // whether there are items, read without the lock
	bell  chan struct{} // has room for one ring
}

func newInbox[T any]() *inbox[T] { return &inbox[T]{bell: make(chan struct{}, 1)} }

// put adds an item.
func (b *inbox[T]) put(item T) {
	b.mu.Lock()
	b.items = append(b.items, item)
	b.mu.Unlock()
	b.any.Store(true)
	b.ring()
}

// ring ends a wait, now or the next one.
func (b *inbox[T]) ring() {
	select {
	case b.bell <- struct{}{}:
	default:
	}
}

// take returns what is there, in order. spare is used for what comes next; nobody else may hold it.
func (b *inbox[T]) take(spare []T) []T {
	if !b.any.Load() {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	items := b.items
	clear(spare[:cap(spare)])
	b.items = spare[:0]
	b.any.Store(false)
	return items
}

// empty reports whether nothing is there.
func (b *inbox[T]) empty() bool { return !b.any.Load() }

// wait returns when something is put, the bell is rung, ctx ends, or it is until; the zero time is never.
func (b *inbox[T]) wait(ctx context.Context, until time.Time) {
	if !b.empty() {
		return
	}
	if until.IsZero() {
		select {
		case <-b.bell:
		case <-ctx.Done():
		}
		return
	}
	d := time.Until(until)
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-b.bell:
	case <-ctx.Done():
	case <-t.C:
	}
}

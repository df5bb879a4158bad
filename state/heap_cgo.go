//go:build cgo

package state

// OffHeap tells whether memtables and block cache of [Pebble] lie outside of Go's heap.
const OffHeap = true

package task

import (
	"bytes"
	"reflect"
	"testing"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/topology"
)

// FuzzRetried reads whatever bytes as a record that waits: an error, or a record that is written as it was read.
func FuzzRetried(f *testing.F) {
	r := retried{attempts: 2, due: 5, first: 4, ordered: true, partitionTime: -1, in: topology.Input{
		Key: []byte("k"), Timestamp: 7, LeaderEpoch: -1, Headers: serde.HeadersOf(serde.Header{Key: "h"}, serde.Header{Key: "i", Value: []byte{}}),
	}}
	f.Add(r.append(make([]byte, 8)))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodeRetried(b)
		if err != nil {
			return
		}
		again, err := decodeRetried(r.append(make([]byte, 8)))
		if err != nil || !reflect.DeepEqual(r, again) {
			t.Errorf("%v, %v; want %v", again, err, r)
		}
	})
}

// FuzzRetryKey reads whatever bytes as the key of a record that waits.
func FuzzRetryKey(f *testing.F) {
	f.Add(retryKey("topic", 3, 7))
	f.Fuzz(func(t *testing.T, b []byte) {
		at, offset, err := parseRetryKey(b)
		if err == nil && !bytes.Equal(retryKey(at.Topic, at.Partition, offset), b) {
			t.Errorf("%v@%d is not %x", at, offset, b)
		}
	})
}

package task_test

import (
	"maps"
	"strings"
	"testing"

	"github.com/eddyline/eddyline/streams/task"
)

// The texts are what TopicPartitionMetadata.encode of Kafka Streams 4.3.1 returns. Its values are in no order; here they are in
// that of their names, and the third is as it came.
func TestMetadataText(t *testing.T) {
	for text, m := range map[string]task.Metadata{
		"AgAAAR9x+wTL": {PartitionTime: 1234567890123},
		"Av//////////": {PartitionTime: -1},
		"AgAAAR9x+wTLAAAAAQAAAARlbWl0AAAAAAAA6mA=": {PartitionTime: 1234567890123, Values: map[string]int64{"emit": 60000}},
	} {
		if got := m.Encode(); got != text {
			t.Errorf("%+v: %s, want %s", m, got, text)
		}
		if got, err := task.DecodeMetadata(text); err != nil || got.PartitionTime != m.PartitionTime || !maps.Equal(got.Values, m.Values) {
			t.Errorf("%s: %+v, %v, want %+v", text, got, err, m)
		}
	}
	const two = "AgAAAAAAAAAHAAAAAgAAAAVvdGhlcv//////////AAAAHEtTVFJFQU0tQUdHUkVHQVRFLTAwMDAwMDAwMDIAAAAAAAAABQ=="
	want := map[string]int64{"KSTREAM-AGGREGATE-0000000002": 5, "other": -1}
	if got, err := task.DecodeMetadata(two); err != nil || got.PartitionTime != 7 || !maps.Equal(got.Values, want) {
		t.Errorf("%s: %+v, %v, want %v at 7", two, got, err, want)
	}
}

// FuzzDecodeMetadata reads what anybody may have committed beside an offset: what is taken is written and read as the same.
func FuzzDecodeMetadata(f *testing.F) {
	for _, text := range []string{"", "AgAAAR9x+wTL", "AQAAAR9x+wTL", "AgAAAR9x+wTLAAAAAQAAAARlbWl0AAAAAAAA6mA=", "AgAAAR9x+wTL/////w==", "?"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		m, err := task.DecodeMetadata(text)
		if err != nil {
			if m.PartitionTime != -1 || m.Values != nil {
				t.Errorf("%q: %+v beside an error", text, m)
			}
			return
		}
		again, err := task.DecodeMetadata(m.Encode())
		if err != nil || again.PartitionTime != m.PartitionTime {
			t.Fatalf("%q: %+v, written and read %+v, %v", text, m, again, err)
		}
		if len(text) < 2000 && !strings.ContainsAny(text, "\r\n") && !maps.Equal(again.Values, m.Values) {
			t.Errorf("%q: %+v, written and read %+v", text, m, again)
		}
	})
}

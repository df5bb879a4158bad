package task

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"slices"
)

// Metadata stands beside a committed offset, in Kafka Streams' format, so that either can go on from the other's:
//
//	base64 of: 1 byte magic (2) | 8 bytes partition time | optional map: 4 bytes count, then for each
//	entry 4 bytes length of the key, key, 8 bytes value
type Metadata struct {
	PartitionTime int64            // the largest timestamp processed from the partition; -1 for none
	Values        map[string]int64 // of operators, such as when they last emitted final results
}

const metadataMagic = 2

// maxMetadataBytes is what a broker accepts by default (offset.metadata.max.bytes).
const maxMetadataBytes = 4096

// Encode returns the text. Values that would make it longer than a broker takes are left out, the last by name first.
func (m Metadata) Encode() string {
	b := binary.BigEndian.AppendUint64([]byte{metadataMagic}, uint64(m.PartitionTime))
	names := make([]string, 0, len(m.Values))
	bytes := len(b) + 4
	for name := range m.Values {
		names = append(names, name)
		bytes += 12 + len(name)
	}
	slices.Sort(names)
	for len(names) > 0 && base64.StdEncoding.EncodedLen(bytes) > maxMetadataBytes {
		bytes -= 12 + len(names[len(names)-1])
		names = names[:len(names)-1]
	}
	if len(names) > 0 {
		b = binary.BigEndian.AppendUint32(b, uint32(len(names)))
		for _, name := range names {
			b = binary.BigEndian.AppendUint32(b, uint32(len(name)))
			b = append(b, name...)
			b = binary.BigEndian.AppendUint64(b, uint64(m.Values[name]))
		}
	}
	return base64.StdEncoding.EncodeToString(b)
}

// DecodeMetadata reads the text beside an offset. Empty text is no metadata. An error means that another program wrote
// it: the metadata is then that of a partition of which nothing is known.
func DecodeMetadata(text string) (Metadata, error) {
	none := Metadata{PartitionTime: -1}
	if text == "" {
		return none, nil
	}
	b, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return none, fmt.Errorf("decode offset metadata: %w", err)
	}
	if len(b) < 9 || b[0] != 1 && b[0] != metadataMagic {
		return none, fmt.Errorf("decode offset metadata: %d bytes of an unknown version", len(b))
	}
	m := Metadata{PartitionTime: int64(binary.BigEndian.Uint64(b[1:]))}
	if b = b[9:]; len(b) < 4 {
		return m, nil
	}
	n := binary.BigEndian.Uint32(b)
	b = b[4:]
	if uint64(n)*12 > uint64(len(b)) {
		return none, fmt.Errorf("decode offset metadata: %d values in %d bytes", n, len(b))
	}
	m.Values = make(map[string]int64, n)
	for range n {
		if len(b) < 4 {
			return none, fmt.Errorf("decode offset metadata: it ends within a value")
		}
		size := uint64(binary.BigEndian.Uint32(b))
		if b = b[4:]; size+8 > uint64(len(b)) {
			return none, fmt.Errorf("decode offset metadata: it ends within a value")
		}
		m.Values[string(b[:size])] = int64(binary.BigEndian.Uint64(b[size:]))
		b = b[size+8:]
	}
	return m, nil
}

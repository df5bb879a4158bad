package streams

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"sync"

	"github.com/twmb/franz-go/pkg/kbin"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/streams/task"
	"github.com/eddyline/eddyline/topology"
)

// batches reads what a broker answered for a partition, batch after batch, straight into inputs. The client's own reader
// passes each record through one of its kind, whose time has nanoseconds: a timestamp after 2262, such as one in
// microseconds by mistake, comes out as another.
type batches struct {
	name      string // the graph's name of the topic
	partition int32
	next      int64 // where the reading stands
	epoch     int32 // of the leader that wrote the last batch before it, control batches too; -1 if none was read
	unpack    kgo.Decompressor
	committed bool // leave out records of aborted transactions

	room int64 // bytes of records that are wanted; what is left is read again then
	full bool  // a batch was left

	records []topology.Input
	bytes   int64 // of them

	aborted []kmsg.FetchResponseTopicPartitionAbortedTransaction // that did not begin yet, by offset
	aborts  map[int64]bool                                       // producers whose records are of one that did
}

// The parts of a batch of records, magic 2. Those before it have magic at the same place.
const (
	batchLengthAt  = 8  // of what follows
	batchEpochAt   = 12 // of the leader
	batchMagicAt   = 16
	batchCRCAt     = 17 // of what follows
	batchAttrsAt   = 21
	batchLastAt    = 23 // offset, after the first
	batchFirstMsAt = 27
	batchMaxMsAt   = 35
	batchIDAt      = 43 // of the producer
	batchCountAt   = 57
	batchHeadBytes = 61

	attrsCodec         = 0x07
	attrsLogAppendTime = 0x08
	attrsTransactional = 0x10
	attrsControl       = 0x20

	leastRecordBytes = 7
	leastHeaderBytes = 2
)

var (
	castagnoli      = crc32.MakeTable(crc32.Castagnoli)
	errBatchCorrupt = errors.New("a batch of records is corrupt")
)

// inputLists are slices for inputs that nobody has any more.
var inputLists sync.Pool

// manyInputs is how many inputs are worth a slice that is used again.
const manyInputs = 256

// newInputs returns an empty slice for n inputs.
func newInputs(n int) []topology.Input {
	if n < manyInputs {
		return make([]topology.Input, 0, n)
	}
	if list, ok := inputLists.Get().(*[]topology.Input); ok && cap(*list) >= n && cap(*list) <= 4*n {
		return *list
	}
	return make([]topology.Input, 0, n)
}

// freeInputs takes back a slice that newInputs made.
func freeInputs(list []topology.Input) {
	if cap(list) >= manyInputs {
		clear(list)
		list = list[:0]
		inputLists.Put(&list)
	}
}

// count returns how many records an answer has, as far as its batches say.
func count(in []byte) (n int) {
	most := len(in) / leastRecordBytes
	for len(in) >= batchHeadBytes && in[batchMagicAt] == 2 {
		size := int64(int32(binary.BigEndian.Uint32(in[batchLengthAt:]))) + batchEpochAt
		if size < batchHeadBytes || size > int64(len(in)) {
			break
		}
		n += max(0, int(int32(binary.BigEndian.Uint32(in[batchCountAt:]))))
		in = in[size:]
	}
	return min(n, most)
}

// read decodes all that came. On an error the batches before the one that it is about were read.
func (b *batches) read(p *kmsg.FetchResponseTopicPartition) error {
	if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
		return err
	}
	b.records = newInputs(count(p.RecordBatches))
	b.aborted = slices.Clone(p.AbortedTransactions)
	slices.SortFunc(b.aborted, func(x, y kmsg.FetchResponseTopicPartitionAbortedTransaction) int {
		return cmp.Compare(x.FirstOffset, y.FirstOffset)
	})
	for in := p.RecordBatches; len(in) > batchMagicAt && !b.full; {
		size := int64(int32(binary.BigEndian.Uint32(in[batchLengthAt:]))) + batchEpochAt
		if size > int64(len(in)) {
			return nil // cut off: it comes whole next time
		}
		if size <= batchMagicAt {
			return b.corrupt(in, "it has %d bytes", size)
		}
		var err error
		switch magic := in[batchMagicAt]; {
		case magic < 2:
			err = b.messages(p, in[:size])
		case magic > 2:
			err = fmt.Errorf("a batch of records has format %d, which is not known", magic)
		case size < batchHeadBytes:
			err = b.corrupt(in, "it has %d bytes", size)
		default:
			err = b.batch(in[:size])
		}
		if err != nil {
			return err
		}
		in = in[size:]
	}
	return nil
}

func (b *batches) corrupt(batch []byte, format string, args ...any) error {
	return fmt.Errorf("%w: at offset %d, %s", errBatchCorrupt, int64(binary.BigEndian.Uint64(batch)), fmt.Sprintf(format, args...))
}

// batch decodes one of the format that brokers write since Kafka 0.11.
func (b *batches) batch(in []byte) error {
	first := int64(binary.BigEndian.Uint64(in))
	last := first + int64(int32(binary.BigEndian.Uint32(in[batchLastAt:])))
	if last < b.next {
		return nil
	}
	if crc32.Checksum(in[batchAttrsAt:], castagnoli) != binary.BigEndian.Uint32(in[batchCRCAt:]) {
		return b.corrupt(in, "its checksum is not that of its bytes")
	}
	attrs := binary.BigEndian.Uint16(in[batchAttrsAt:])
	for len(b.aborted) > 0 && b.aborted[0].FirstOffset <= last {
		if b.aborts == nil {
			b.aborts = map[int64]bool{}
		}
		b.aborts[b.aborted[0].ProducerID] = true
		b.aborted = b.aborted[1:]
	}
	producer := int64(binary.BigEndian.Uint64(in[batchIDAt:]))
	if attrs&attrsTransactional == 0 || attrs&attrsControl != 0 || !b.committed || !b.aborts[producer] {
		raw := in[batchHeadBytes:]
		if codec := kgo.CompressionCodecType(attrs & attrsCodec); codec != 0 {
			var err error
			if raw, err = b.decompress(raw, codec, last+1); err != nil || b.full {
				return err
			}
		}
		if err := b.decode(in, raw, attrs, producer); err != nil {
			return err
		}
	}
	b.next = max(b.next, last+1)
	b.epoch = int32(binary.BigEndian.Uint32(in[batchEpochAt:]))
	return nil
}

// decompress returns the records of a batch, unless there is no room for any more: a megabyte that a broker sends may
// become any number of them.
func (b *batches) decompress(raw []byte, codec kgo.CompressionCodecType, next int64) ([]byte, error) {
	if len(b.records) > 0 && b.bytes >= b.room {
		b.full = true
		return nil, nil
	}
	out, err := b.unpack.Decompress(raw, codec)
	return out, tooLarge(err, next)
}

// tooLarge says what to do if err is of a batch that is larger than it may be. next is the offset behind it.
func tooLarge(err error, next int64) error {
	if errors.Is(err, kgo.ErrMaxDecompress) {
		return fmt.Errorf("%w: raise it, or leave the batch out by setting the group's offset to %d (%w)", ErrBatchTooLarge, next, err)
	}
	return err
}

// decode takes the records of a batch.
func (b *batches) decode(in, raw []byte, attrs uint16, producer int64) error {
	first, firstMs := int64(binary.BigEndian.Uint64(in)), int64(binary.BigEndian.Uint64(in[batchFirstMsAt:]))
	count := int(int32(binary.BigEndian.Uint32(in[batchCountAt:])))
	if count < 0 || count > len(raw)/leastRecordBytes {
		return b.corrupt(in, "it says that it has %d records, and has %d bytes of them", count, len(raw))
	}
	had, bytes := len(b.records), int64(0)
	b.records = slices.Grow(b.records, count)
	of := topology.Input{Topic: b.name, Partition: b.partition, LeaderEpoch: int32(binary.BigEndian.Uint32(in[batchEpochAt:]))}
	c := cursor{b: raw}
	for i := range count {
		length := c.varint()
		end := int64(c.at) + length
		c.skip(1) // attributes, of which there are none
		ms := firstMs + c.varint()
		offset := first + c.varint()
		key, value := c.bytes(), c.bytes()
		headers := c.headers()
		if c.bad || int64(c.at) != end {
			b.records = b.records[:had]
			return b.corrupt(in, "its record %d cannot be read", i)
		}
		if attrs&attrsControl != 0 {
			if i == 0 && len(key) >= 4 && key[2] == 0 && key[3] == 0 { // the type: abort
				delete(b.aborts, producer)
			}
			continue
		}
		if offset < b.next {
			continue
		}
		if attrs&attrsLogAppendTime != 0 {
			ms = int64(binary.BigEndian.Uint64(in[batchMaxMsAt:]))
		}
		b.records = append(b.records, of)
		to := &b.records[len(b.records)-1]
		to.Offset, to.Timestamp, to.Key, to.Value, to.Headers = offset, ms, key, value, headers
		bytes += int64(task.Size(to))
	}
	if c.at < len(raw) {
		b.records = b.records[:had]
		return b.corrupt(in, "%d bytes are left behind its records", len(raw)-c.at)
	}
	b.bytes += bytes
	return nil
}

// cursor reads the parts of records. Behind the end, or what cannot be, it is bad and gives zeros.
type cursor struct {
	b   []byte
	at  int
	bad bool
}

func (c *cursor) varint() int64 {
	v, n := kbin.Varlong(c.b[c.at:])
	if n <= 0 {
		c.bad = true
		return 0
	}
	c.at += n
	return v
}

func (c *cursor) skip(n int64) {
	if n < 0 || n > int64(len(c.b)-c.at) {
		c.bad = true
		return
	}
	c.at += int(n)
}

// bytes returns what a length is written before, nil for Kafka's null.
func (c *cursor) bytes() []byte {
	n, at := c.varint(), c.at
	if n < 0 {
		return nil
	}
	c.skip(n)
	return c.b[at:c.at:c.at]
}

func (c *cursor) headers() serde.Headers {
	n := c.varint()
	if n == 0 {
		return serde.Headers{}
	}
	if n < 0 || n > int64(len(c.b)-c.at)/leastHeaderBytes {
		c.bad = true
		return serde.Headers{}
	}
	list := make([]serde.Header, n)
	for i := range list {
		list[i] = serde.Header{Key: string(c.bytes()), Value: c.bytes()}
	}
	return serde.HeadersOf(list...)
}

// messages decodes a message of the formats before, or one that packs several.
func (b *batches) messages(p *kmsg.FetchResponseTopicPartition, in []byte) error {
	one := *p
	one.RecordBatches = in
	o := kgo.ProcessFetchPartitionOpts{Offset: b.next, Topic: b.name, Partition: b.partition}
	part, next := kgo.ProcessFetchPartition(o, &one, b.unpack, nil)
	if part.Err != nil {
		return tooLarge(part.Err, int64(binary.BigEndian.Uint64(in))+1)
	}
	for _, r := range part.Records {
		ms := r.Timestamp.UnixMilli()
		if r.Timestamp.IsZero() { // magic 0 has none
			ms = -1
		}
		b.records = append(b.records, topology.Input{
			Topic: b.name, Partition: b.partition, Offset: r.Offset, LeaderEpoch: r.LeaderEpoch, Timestamp: ms, Key: r.Key, Value: r.Value,
		})
		b.bytes += int64(task.Size(&b.records[len(b.records)-1]))
	}
	b.next = next
	return nil
}

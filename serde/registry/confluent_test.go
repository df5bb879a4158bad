package registry_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"math/big"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/sr"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/serde/avro"
	"github.com/eddyline/eddyline/serde/jsonschema"
	"github.com/eddyline/eddyline/serde/protobuf"
	"github.com/eddyline/eddyline/serde/registry"
	"github.com/eddyline/eddyline/serde/registry/registrytest"
)

// recorded is what another client wrote: testdata/confluent.json says which.
type recorded struct {
	Schemas []sr.SubjectSchema
	Cases   []recordedCase
}

type recordedCase struct {
	Name, Topic, Bytes string
	Key                bool
	Value              json.RawMessage
	Headers            [][2]string
}

func load(t *testing.T) (r recorded) {
	t.Helper()
	b, err := os.ReadFile("testdata/confluent.json")
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	if err != nil {
		t.Fatal(err)
	}
	return r
}

type customer struct {
	Name string `avro:"name"`
}

type order struct {
	ID       int64            `avro:"id"`
	Customer customer         `avro:"customer"`
	Note     *string          `avro:"note"`
	At       time.Time        `avro:"at"`
	Price    *big.Rat         `avro:"price"`
	Lines    []map[string]int `avro:"lines"`
}

type click struct {
	Page string `json:"page"`
	MS   int    `json:"ms"`
}

// What Confluent's serializers for Python write is read, and the same bytes are written.
func TestConfluentBytes(t *testing.T) {
	all := load(t)
	server := registrytest.New(t)
	schemas := map[string]sr.SubjectSchema{}
	for _, s := range all.Schemas {
		server.Put(s)
		schemas[s.Subject] = s
	}
	c := registry.New(registry.Config{URLs: []string{server.URL}})
	refs := registry.Options{References: schemas["topic-value"].References}
	asHeader := func(o registry.Options) registry.Options { o.HeaderIDs = true; return o }
	note := "now"
	bought := order{7, customer{"Ada"}, &note, time.Unix(1700000000, 0).UTC(), big.NewRat(1234, 100), []map[string]int{{"a": 1}}}
	same := func(a, b *big.Rat) bool { return a.Cmp(b) == 0 }
	js, jo := schemas["clicks-value"].Schema.Schema, registry.Options{}
	for _, x := range all.Cases {
		t.Run(x.Name, func(t *testing.T) {
			switch x.Name {
			case "avro":
				check(t, x, avro.New[order](c, schemas["topic-value"].Schema.Schema, refs), bought, cmp.Comparer(same))
			case "avro, id in a header":
				check(t, x, avro.New[order](c, schemas["topic-value"].Schema.Schema, asHeader(refs)), bought, cmp.Comparer(same))
			case "avro key":
				check(t, x, avro.New[string](c, `"string"`, jo), "k1")
			case "avro, subject by record":
				check(t, x, avro.New[customer](c, schemas["shop.Customer"].Schema.Schema, registry.Options{Subject: registry.RecordName}), customer{"Bob"})
			case "protobuf, first message":
				check(t, x, protobuf.New[*descriptorpb.FileDescriptorSet](c, registry.Options{UseLatest: true}), message(t, x, &descriptorpb.FileDescriptorSet{}), equalMessages)
			case "protobuf, other message":
				check(t, x, protobuf.New[*descriptorpb.FileOptions](c, registry.Options{UseLatest: true}), message(t, x, &descriptorpb.FileOptions{}), equalMessages)
			case "protobuf, nested message":
				check(t, x, protobuf.New[*descriptorpb.DescriptorProto_ExtensionRange](c, registry.Options{UseLatest: true}), message(t, x, &descriptorpb.DescriptorProto_ExtensionRange{}), equalMessages)
			case "protobuf, id in a header":
				check(t, x, protobuf.New[*descriptorpb.DescriptorProto_ExtensionRange](c, registry.Options{UseLatest: true, HeaderIDs: true}), message(t, x, &descriptorpb.DescriptorProto_ExtensionRange{}), equalMessages)
			case "json":
				check(t, x, jsonschema.New[click](c, js, jo), click{"/a", 12})
			case "json, id in a header":
				check(t, x, jsonschema.New[click](c, js, asHeader(jo)), click{"/a", 12})
			default:
				t.Error("no test reads it")
			}
		})
	}
}

var equalMessages = cmp.Comparer(func(a, b proto.Message) bool { return proto.Equal(a, b) })

// message reads a message as the serializer was given it.
func message[M proto.Message](t *testing.T, x recordedCase, m M) M {
	t.Helper()
	var text string
	err := json.Unmarshal(x.Value, &text)
	if err == nil {
		var b []byte
		if b, err = hex.DecodeString(text); err == nil {
			err = proto.Unmarshal(b, m)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func check[T any](t *testing.T, x recordedCase, s serde.Serde[T], want T, o ...cmp.Option) {
	t.Helper()
	of, err := serde.ForTopic(t.Context(), s, x.Topic, x.Key)
	if err != nil {
		t.Fatal(err)
	}
	data, err := hex.DecodeString(x.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	headers := serde.HeadersOf(serde.Header{Key: "other", Value: []byte("1")})
	for _, h := range x.Headers {
		v, err := hex.DecodeString(h[1])
		if err != nil {
			t.Fatal(err)
		}
		headers = headers.WithBytes(h[0], v)
	}
	got, err := serde.DecodeRecord(of, data, headers)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, o...); diff != "" {
		t.Errorf("read (-want +got):\n%s", diff)
	}
	// Ids that are in the headers of another record must not stay.
	stale := headers.WithBytes("__value_schema_id", []byte("old"))
	b, h, err := serde.AppendRecord(of, nil, want, stale)
	if x.Key {
		h = h.Without("__value_schema_id")
	}
	if err != nil {
		t.Fatal(err)
	}
	if strings.HasPrefix(x.Name, "json") { // Python puts spaces into JSON
		b, data = compact(b), compact(data)
	}
	if !bytes.Equal(b, data) {
		t.Errorf("wrote %x, want %x", b, data)
	}
	if diff := cmp.Diff(all(headers), all(h)); diff != "" {
		t.Errorf("headers (-want +got):\n%s", diff)
	}
}

func compact(b []byte) []byte { return bytes.ReplaceAll(b, []byte(" "), nil) }

func all(h serde.Headers) (list []serde.Header) {
	for x := range h.All() {
		list = append(list, x)
	}
	return list
}

package registry_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bufbuild/protocompile"
	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/sr"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/serde/avro"
	"github.com/eddyline/eddyline/serde/jsonschema"
	"github.com/eddyline/eddyline/serde/protobuf"
	"github.com/eddyline/eddyline/serde/registry"
	"github.com/eddyline/eddyline/serde/registry/registrytest"
)

var auto = registry.Options{AutoRegister: true}

func of[T any](t *testing.T, s serde.Serde[T], topic string) serde.Serde[T] {
	t.Helper()
	x, err := serde.ForTopic(t.Context(), s, topic, false)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func write[T any](t *testing.T, s serde.Serde[T], v T) []byte {
	t.Helper()
	b, err := s.Append(nil, v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func reads[T any](t *testing.T, s serde.Serde[T], b []byte, want T, o ...cmp.Option) {
	t.Helper()
	got, err := s.Decode(b)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, o...); diff != "" {
		t.Errorf("read (-want +got):\n%s", diff)
	}
}

type userV1 struct {
	Name string `avro:"name" json:"name"`
	Age  int32  `avro:"age" json:"age"`
}

type userV2 struct {
	FullName string `avro:"fullName"`
	Age      int64  `avro:"age"`
	Mail     string `avro:"mail"`
}

const (
	avroV1 = `{"type":"record","name":"User","namespace":"n","fields":[{"name":"name","type":"string"},{"name":"age","type":"int"}]}`
	avroV2 = `{"type":"record","name":"User","namespace":"n","fields":[{"name":"mail","type":"string","default":"-"},
		{"name":"fullName","aliases":["name"],"type":"string"},{"name":"age","type":"long"}]}`
	avroV3 = `{"type":"record","name":"User","namespace":"n","fields":[{"name":"name","type":"string"},{"name":"born","type":"int"}]}`
)

// A newer reader fills in, renames and widens; one without a type reads what was written; an incompatible schema is refused.
func TestAvroEvolves(t *testing.T) {
	server := registrytest.New(t)
	c := registry.New(registry.Config{URLs: []string{server.URL}})
	v1, v2 := of(t, avro.New[userV1](c, avroV1, auto), "users"), of(t, avro.New[userV2](c, avroV2, auto), "users")
	old := write(t, v1, userV1{"Ada", 36})
	reads(t, v2, old, userV2{"Ada", 36, "-"})
	written := write(t, v2, userV2{"Bob", 1, "b@x"})
	reads(t, v2, written, userV2{"Bob", 1, "b@x"})
	generic := of(t, avro.Generic(c, registry.Options{}), "users")
	reads[any](t, generic, old, map[string]any{"name": "Ada", "age": int32(36)})
	reads[any](t, generic, written, map[string]any{"fullName": "Bob", "age": int64(1), "mail": "b@x"})
	if b := write[any](t, generic, map[string]any{"fullName": "Bob", "age": int64(1), "mail": "b@x"}); string(b) != string(written) {
		t.Errorf("the generic serde wrote %x, want %x", b, written)
	}
	_, err := of(t, avro.New[map[string]any](c, avroV3, auto), "users").Append(nil, map[string]any{"name": "C", "born": 1})
	if !errors.Is(err, sr.ErrIncompatibleSchema) && (err == nil || !strings.Contains(err.Error(), "incompatible")) {
		t.Errorf("a schema without a default for its new field: %v", err)
	}
	if !errors.Is(err, serde.ErrUnavailable) {
		t.Errorf("%v counts as the record's fault", err)
	}
	inferred := of(t, avro.New[userV1](c, "", auto), "others")
	reads(t, inferred, write(t, inferred, userV1{"D", 4}), userV1{"D", 4})
	plain := of(t, avro.Plain[userV1](avroV1), "others")
	reads(t, plain, write(t, plain, userV1{"D", 4}), userV1{"D", 4})
	raw := of(t, avro.New[[]byte](c, `"bytes"`, auto), "raw")
	if b := write(t, raw, []byte("xyz")); string(b[5:]) != "xyz" {
		t.Errorf("bytes were written as %q", b[5:])
	}
	reads(t, raw, write(t, raw, []byte("xyz")), []byte("xyz"))
	if b, err := plain.Decode(old); err == nil {
		t.Errorf("a plain serde read %v from bytes with an id", b)
	}
	if _, err := v1.Decode([]byte(`{"name":"x"}`)); err == nil || !strings.Contains(err.Error(), "without a schema registry") {
		t.Errorf("JSON was read: %v", err)
	}
	if _, err := v1.Decode([]byte{0, 0, 0, 9, 9, 1}); !errors.Is(err, sr.ErrSchemaNotFound) || errors.Is(err, serde.ErrUnavailable) {
		t.Errorf("an unknown id: %v, want the record's fault", err)
	}
}

func TestSubjects(t *testing.T) {
	for name, want := range map[string][2]string{
		"topic":        {registry.TopicName("t", "n.User", true), "t-key"},
		"topic value":  {registry.TopicName("t", "n.User", false), "t-value"},
		"record":       {registry.RecordName("t", "n.User", false), "n.User"},
		"topic record": {registry.TopicRecordName("t", "n.User", false), "t-n.User"},
	} {
		if want[0] != want[1] {
			t.Errorf("%s: %q, want %q", name, want[0], want[1])
		}
	}
	c := registry.New(registry.Config{})
	s := avro.New[string](c, `"string"`, registry.Options{Subject: registry.RecordName})
	if _, err := serde.ForTopic(t.Context(), s, "t", false); err == nil {
		t.Error("a schema without a name has a subject by its record")
	}
}

// An id and a registration are asked for once; without AutoRegister the schema has to be there.
func TestCachesAndRegisters(t *testing.T) {
	server := registrytest.New(t)
	c := registry.New(registry.Config{URLs: []string{server.URL}})
	strict := of(t, avro.New[userV1](c, avroV1, registry.Options{}), "users")
	if _, err := strict.Append(nil, userV1{}); !errors.Is(err, serde.ErrUnavailable) || !strings.Contains(err.Error(), "AutoRegister") {
		t.Errorf("write by a schema that is not registered: %v", err)
	}
	b := write(t, of(t, avro.New[userV1](c, avroV1, auto), "users"), userV1{"A", 1})
	before := server.Requests()
	for range 3 {
		reads(t, strict, b, userV1{"A", 1})
		write(t, strict, userV1{"A", 1})
		reads(t, of(t, avro.New[userV1](c, avroV1, auto), "other"), b, userV1{"A", 1})
	}
	if n := server.Requests() - before; n != 2 { // the schema of the id, and the registration
		t.Errorf("%d requests, want 2", n)
	}
}

// A registry that is away for a while is waited for; one that stays away is not the record's fault.
func TestRetries(t *testing.T) {
	var busy atomic.Int32
	server := registrytest.New(t)
	server.Refuse = func(*http.Request) int {
		if busy.Add(-1) >= 0 {
			return http.StatusServiceUnavailable
		}
		return 0
	}
	c := registry.New(registry.Config{URLs: []string{"http://127.0.0.1:1", server.URL}, RetryFor: time.Minute})
	busy.Store(1)
	b := write(t, of(t, avro.New[userV1](c, avroV1, auto), "users"), userV1{"A", 1})
	busy.Store(1 << 30)
	away := registry.New(registry.Config{URLs: []string{"http://u:secret@" + strings.TrimPrefix(server.URL, "http://")}, RetryFor: -1})
	_, err := of(t, avro.New[userV1](away, avroV1, auto), "users").Decode(b)
	if !errors.Is(err, serde.ErrUnavailable) || strings.Contains(err.Error(), "secret") {
		t.Errorf("a registry that is away: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	s, err := serde.ForTopic(ctx, avro.New[userV1](registry.New(registry.Config{URLs: []string{server.URL}}), avroV1, auto), "users", false)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := s.Decode(b); err == nil {
		t.Error("a task that has ended read a schema")
	}
}

func TestAuthentication(t *testing.T) {
	server := registrytest.New(t)
	server.Refuse = func(r *http.Request) int {
		user, password, _ := r.BasicAuth()
		if user == "u" && password == "p" || r.Header.Get("Authorization") == "Bearer t1" {
			return 0
		}
		return http.StatusUnauthorized
	}
	token := func(context.Context) (string, error) { return "t1", nil }
	for _, x := range []struct {
		config registry.Config
		ok     bool
	}{
		{registry.Config{User: "u", Password: "p"}, true},
		{registry.Config{Token: token}, true},
		{registry.Config{User: "u", Password: "wrong"}, false},
		{registry.Config{}, false},
	} {
		x.config.URLs, x.config.RetryFor = []string{server.URL}, -1
		_, err := of(t, avro.New[userV1](registry.New(x.config), avroV1, auto), "users").Append(nil, userV1{})
		if (err == nil) != x.ok || err != nil && (!errors.Is(err, serde.ErrUnavailable) || strings.Contains(err.Error(), "wrong")) {
			t.Errorf("%+v: %v", x.config.User, err)
		}
	}
}

const jsonV1 = `{"title":"User","type":"object","properties":{"name":{"type":"string"},"age":{"type":"integer","minimum":0}},"required":["name"]}`

func TestJSONSchema(t *testing.T) {
	server := registrytest.New(t)
	c := registry.New(registry.Config{URLs: []string{server.URL}})
	s := of(t, jsonschema.New[userV1](c, jsonV1, auto), "users")
	b := write(t, s, userV1{"A", 1})
	reads(t, s, b, userV1{"A", 1})
	reads(t, of(t, jsonschema.New[map[string]any](c, jsonV1, auto), "users"), b, map[string]any{"name": "A", "age": 1.0})
	if _, err := s.Append(nil, userV1{"A", -1}); err == nil || errors.Is(err, serde.ErrUnavailable) {
		t.Errorf("a value that the schema forbids: %v", err)
	}
	if _, err := s.Decode(append(b[:5:5], `{"age":3}`...)); err == nil {
		t.Error("read a value without what the schema requires")
	}
	narrower := strings.Replace(jsonV1, `"minimum":0`, `"minimum":18`, 1)
	if _, err := of(t, jsonschema.New[userV1](c, narrower, auto), "users").Append(nil, userV1{"A", 20}); err == nil {
		t.Error("a schema that forbids old values was registered")
	}
	refs := registry.Options{AutoRegister: true, References: []registry.Reference{{Name: "user.json", Subject: "users-value", Version: 1}}}
	pair := of(t, jsonschema.New[[]userV1](c, `{"type":"array","items":{"$ref":"user.json"}}`, refs), "pairs")
	reads(t, pair, write(t, pair, []userV1{{"A", 1}}), []userV1{{"A", 1}})
	if _, err := pair.Append(nil, []userV1{{"A", -1}}); err == nil {
		t.Error("a value that the schema referred to forbids was written")
	}
	plain := of(t, jsonschema.Plain[userV1](jsonV1), "users")
	reads(t, plain, write(t, plain, userV1{"A", 1}), userV1{"A", 1})
}

// messages compiles files, and returns a message of the last one.
func messageOf(t *testing.T, name protoreflect.Name, files map[string]string, main string) protoreflect.MessageDescriptor {
	t.Helper()
	all, err := (&protocompile.Compiler{Resolver: protocompile.WithStandardImports(&protocompile.SourceResolver{
		Accessor: protocompile.SourceAccessorFromMap(files),
	})}).Compile(t.Context(), main)
	if err != nil {
		t.Fatal(err)
	}
	return all[0].Messages().ByName(name)
}

// Imports are registered before the file; fields go by number; another message of the topic is not taken for this one.
func TestProtobuf(t *testing.T) {
	server := registrytest.New(t)
	c := registry.New(registry.Config{URLs: []string{server.URL}})
	files := map[string]string{
		"money.proto": `syntax = "proto3"; package shop; message Money { int64 cents = 1; }`,
		"order.proto": `syntax = "proto3"; package shop; import "money.proto"; import "google/protobuf/duration.proto";
			message Other { string x = 1; }
			message Order { string id = 1; Money price = 2; google.protobuf.Duration wait = 3; }`,
		"order2.proto": `syntax = "proto3"; package shop; import "money.proto"; import "google/protobuf/duration.proto";
			message Other { string x = 1; }
			message Order { string number = 1; Money price = 2; google.protobuf.Duration wait = 3; string note = 4; }`,
		"order3.proto": `syntax = "proto3"; package shop; message Other { string x = 1; } message Order { int64 id = 1; }`,
	}
	d1, d2 := messageOf(t, "Order", files, "order.proto"), messageOf(t, "Order", files, "order2.proto")
	v1, v2 := of(t, protobuf.Dynamic(c, d1, auto), "orders"), of(t, protobuf.Dynamic(c, d2, auto), "orders")
	m := dynamicpb.NewMessage(d1)
	m.Set(d1.Fields().ByName("id"), protoreflect.ValueOfString("o1"))
	b := write(t, v1, m)
	if string(b[5:7]) != "\x02\x02" {
		t.Errorf("index %x, want one step, to the second message", b[5:7])
	}
	reads(t, v1, b, m, equalMessages)
	newer, err := v2.Decode(b)
	if err != nil || newer.Get(d2.Fields().ByName("number")).String() != "o1" {
		t.Errorf("a newer reader got %v, %v", newer, err)
	}
	write(t, v2, newer)
	if _, err := of(t, protobuf.Dynamic(c, messageOf(t, "Order", files, "order3.proto"), auto), "orders").Append(nil, dynamicpb.NewMessage(d1)); err == nil {
		t.Error("a schema that changes the type of a field was registered")
	}
	other := of(t, protobuf.Dynamic(c, messageOf(t, "Other", files, "order.proto"), auto), "orders")
	if _, err := other.Decode(b); err == nil || !strings.Contains(err.Error(), "it is a shop.Order, want shop.Other") {
		t.Errorf("a message of another name: %v", err)
	}
	// Java registers a file as text.
	server.Put(sr.SubjectSchema{Subject: "texts-value", ID: 99, Schema: sr.Schema{
		Schema: files["order.proto"], Type: sr.TypeProtobuf, References: []sr.SchemaReference{{Name: "money.proto", Subject: "money.proto", Version: 1}},
	}})
	reads(t, v1, append([]byte{0, 0, 0, 0, 99}, b[5:]...), m, equalMessages)
	plain := protobuf.Plain[*durationpb.Duration]()
	reads(t, plain, write(t, plain, durationpb.New(time.Second)), durationpb.New(time.Second), equalMessages)
	dynamic := protobuf.PlainDynamic(d1)
	reads(t, dynamic, write(t, dynamic, m), m, equalMessages)
}

// The registry of the tests refuses what the real one does.
func TestCompatibilityLevels(t *testing.T) {
	const closed = `{"type":"object","properties":{"a":{"type":"string"}},"additionalProperties":false}`
	const more = `{"type":"object","properties":{"a":{"type":"string"},"b":{"type":"string"}},"additionalProperties":false}`
	for _, x := range []struct {
		level     string
		kind      sr.SchemaType
		old, next string
		ok        bool
	}{
		{"BACKWARD", sr.TypeAvro, avroV1, avroV2, true},
		{"FORWARD", sr.TypeAvro, avroV1, avroV2, false},
		{"FULL", sr.TypeAvro, avroV1, avroV2, false},
		{"NONE", sr.TypeAvro, avroV1, avroV3, true},
		{"BACKWARD", sr.TypeJSON, closed, more, true},
		{"FORWARD", sr.TypeJSON, closed, more, false},
		{"FORWARD", sr.TypeJSON, more, closed, true},
		{"BACKWARD", sr.TypeProtobuf, `syntax="proto3"; message M { int32 a = 1; }`, `syntax="proto3"; message M { int64 a = 1; string b = 2; }`, true},
		{"BACKWARD", sr.TypeProtobuf, `syntax="proto3"; message M { int32 a = 1; }`, `syntax="proto3"; message M { string a = 1; }`, false},
		{"BACKWARD", sr.TypeProtobuf, `syntax="proto3"; message M { int32 a = 1; }`, `syntax="proto3"; message N { int32 a = 1; }`, false},
	} {
		server := registrytest.New(t)
		server.SetCompatibility("", x.level)
		c := registry.New(registry.Config{URLs: []string{server.URL}})
		_, err := c.Register(t.Context(), "s", registry.Schema{Schema: x.old, Type: x.kind}, false)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Register(t.Context(), "s", registry.Schema{Schema: x.next, Type: x.kind}, false); (err == nil) != x.ok {
			t.Errorf("%s: %s after %s: %v", x.level, x.next, x.old, err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 1, 2, 2, 1})
	f.Add([]byte{1, 0, 0, 0, 1})
	f.Add([]byte{})
	server := registrytest.New(f)
	c := registry.New(registry.Config{URLs: []string{server.URL}})
	if _, err := c.Register(f.Context(), "s", registry.Schema{Schema: avroV1}, false); err != nil {
		f.Fatal(err)
	}
	s, err := serde.ForTopic(f.Context(), avro.New[userV1](c, avroV1, registry.Options{}), "t", false)
	if err != nil {
		f.Fatal(err)
	}
	p, err := serde.ForTopic(f.Context(), protobuf.New[*durationpb.Duration](c, registry.Options{}), "t", false)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) >= 5 { // ids that the registry has; others would ask it
			b = append([]byte{0, 0, 0, 0, 1}, b[5:]...)
		}
		s.Decode(b) // no panic
		p.Decode(b)
	})
}

// Package jsonschema writes values as JSON that a JSON Schema describes, with a schema registry or without. What JSON is
// without a schema, serde.JSON writes.
package jsonschema

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/twmb/franz-go/pkg/sr"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/serde/registry"
)

// New returns a serde that writes a T as encoding/json does, with ids of a registry. Each value is checked: what is
// written by the schema given, what is read by the schema that it was written by. T takes from newer values the fields that
// it has, and older ones leave those that they lack as they are in a zero T. T can be map[string]any.
func New[T any](c *registry.Client, schema string, o registry.Options) serde.Serde[T] {
	f := registry.Format[T]{Schema: registry.Schema{Schema: schema, Type: sr.TypeJSON}, Record: title(schema)}
	f.Writer = func(r *registry.Registered) (func([]byte, T) ([]byte, error), error) {
		s, err := compile(r)
		return func(dst []byte, v T) ([]byte, error) { return write(s, dst, v) }, err
	}
	f.Reader = func(r *registry.Registered, _ []int) (func([]byte) (T, error), error) {
		s, err := compile(r)
		return func(b []byte) (T, error) { return read[T](s, b) }, err
	}
	return registry.Of(c, o, f)
}

// Plain returns a serde that writes a T as encoding/json does, and nothing else, and checks by the schema what it writes
// and reads.
func Plain[T any](schema string) serde.Serde[T] {
	s, err := compile(&registry.Registered{Schema: registry.Schema{Schema: schema}})
	return &plain[T]{s, err}
}

type plain[T any] struct {
	schema *jsonschema.Schema
	err    error
}

// ForTopic implements [serde.TopicSerde]: a fault of the schema shows when a task starts.
func (p *plain[T]) ForTopic(context.Context, string, bool) (serde.Serde[T], error) { return p, p.err }

func (p *plain[T]) Append(dst []byte, v T) ([]byte, error) {
	if p.err != nil {
		return dst, p.err
	}
	return write(p.schema, dst, v)
}

func (p *plain[T]) Decode(b []byte) (v T, err error) {
	if p.err != nil {
		return v, p.err
	}
	return read[T](p.schema, b)
}

// title is the name that the strategies by record go by: Confluent takes the title.
func title(schema string) string {
	var s struct {
		Title string `json:"title"`
	}
	if json.Unmarshal([]byte(schema), &s) != nil {
		return ""
	}
	return s.Title
}

// root is where a schema is compiled: what it refers to is found by names beside it.
const root = "registry:///"

// nowhere loads nothing: a schema is complete with its references.
type nowhere struct{}

func (nowhere) Load(url string) (any, error) {
	return nil, fmt.Errorf("JSON Schema refers to %s, which is not among its references", url)
}

// compile reads a schema and what it refers to.
func compile(r *registry.Registered) (*jsonschema.Schema, error) {
	c := jsonschema.NewCompiler()
	c.DefaultDraft(jsonschema.Draft7)
	c.UseLoader(nowhere{})
	for _, u := range append(r.Uses, registry.Used{Name: "schema", Schema: r.Schema}) {
		doc, err := jsonschema.UnmarshalJSON(bytes.NewReader([]byte(u.Schema.Schema)))
		if err == nil {
			err = c.AddResource(address(u.Name), doc)
		}
		if err != nil {
			return nil, fmt.Errorf("JSON Schema %q: %w", u.Name, err)
		}
	}
	return c.Compile(address("schema"))
}

// address is where a reference of that name points to.
func address(name string) string {
	if bytes.Contains([]byte(name), []byte("://")) {
		return name
	}
	return root + name
}

func write[T any](s *jsonschema.Schema, dst []byte, v T) ([]byte, error) {
	b, err := json.Marshal(v)
	if err == nil {
		err = check(s, b)
	}
	if err != nil {
		return dst, fmt.Errorf("encode %T as JSON: %w", v, err)
	}
	return append(dst, b...), nil
}

func read[T any](s *jsonschema.Schema, b []byte) (v T, err error) {
	if err = check(s, b); err == nil {
		err = json.Unmarshal(b, &v)
	}
	if err != nil {
		return v, fmt.Errorf("decode %T from JSON: %w", v, err)
	}
	return v, nil
}

func check(s *jsonschema.Schema, b []byte) error {
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(b))
	if err != nil {
		return err
	}
	return s.Validate(doc)
}

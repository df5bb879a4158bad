// Package avro writes values in Avro's binary form, with a schema registry or without.
//
// Go types are structs whose fields have the tag `avro:"name"`, as generators of Go code from Avro schemas write them too, or
// map[string]any for records of which no Go type is known; twmb/avro says which Go types fit which schemas.
package avro

import (
	"context"
	"errors"
	"fmt"
	"reflect"

	"github.com/twmb/avro"
	"github.com/twmb/franz-go/pkg/sr"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/serde/registry"
)

// New returns a serde that writes T by a schema, with ids of a registry. What others wrote by older or newer schemas is
// read as Avro resolves them: fields that T's schema adds have their defaults, others are left out, names follow aliases,
// numbers get wider. An empty schema is made from T.
//
// A schema of "bytes" is written without Avro's length, as Java's serializer does.
func New[T any](c *registry.Client, schema string, o registry.Options) serde.Serde[T] {
	f := format[T](schema)
	f.Writer = func(r *registry.Registered) (func([]byte, T) ([]byte, error), error) {
		s, err := parse[T](r)
		return appender[T](s), err
	}
	f.Reader = func(r *registry.Registered, _ []int) (func([]byte) (T, error), error) {
		writer, err := parse[T](r)
		if err != nil {
			return nil, err
		}
		reader, err := own[T](schema, r, o.References)
		if err != nil {
			return nil, err
		}
		s, err := avro.Resolve(writer, reader)
		if err != nil {
			return nil, err
		}
		return decoder[T](s, isBytes(writer)), nil
	}
	return registry.Of(c, o, f)
}

// Generic returns a serde that reads any schema of a registry, each value as what the schema that it was written by says:
// records as map[string]any. It writes by the latest schema of the subject.
func Generic(c *registry.Client, o registry.Options) serde.Serde[any] {
	o.UseLatest = true
	return registry.Of(c, o, registry.Format[any]{
		Writer: func(r *registry.Registered) (func([]byte, any) ([]byte, error), error) {
			s, err := parse[any](r)
			return appender[any](s), err
		},
		Reader: func(r *registry.Registered, _ []int) (func([]byte) (any, error), error) {
			s, err := parse[any](r)
			if err != nil {
				return nil, err
			}
			return decoder[any](s, isBytes(s)), nil
		},
	})
}

// Plain returns a serde that writes T by a schema, and nothing else: reader and writer have to have the same one. An empty
// schema is made from T.
func Plain[T any](schema string) serde.Serde[T] {
	s, err := own[T](schema, nil, nil)
	return &plain[T]{s, appender[T](s), decoder[T](s, false), err}
}

type plain[T any] struct {
	schema *avro.Schema
	write  func([]byte, T) ([]byte, error)
	read   func([]byte) (T, error)
	err    error // of the schema
}

// ForTopic implements [serde.TopicSerde]: a fault of the schema shows when a task starts.
func (p *plain[T]) ForTopic(context.Context, string, bool) (serde.Serde[T], error) { return p, p.err }

func (p *plain[T]) Append(dst []byte, v T) ([]byte, error) {
	if p.err != nil {
		return dst, p.err
	}
	dst, err := p.schema.AppendEncode(dst, v)
	return dst, encoding(v, err)
}

func (p *plain[T]) Decode(b []byte) (v T, err error) {
	if p.err != nil {
		return v, p.err
	}
	return p.read(b)
}

// format has the schema that T is written by.
func format[T any](schema string) registry.Format[T] {
	f := registry.Format[T]{Schema: registry.Schema{Schema: schema, Type: sr.TypeAvro}}
	s, err := avro.Parse(schema)
	if schema == "" {
		if s, err = inferred[T](); err == nil {
			f.Schema.Schema = s.String()
		}
	}
	if err == nil {
		f.Record = fullName(s)
	} else if schema != "" {
		f.Record = nameIn(schema)
	}
	return f
}

// own returns the schema of T. As a part of a registered one it may use what that refers to.
func own[T any](schema string, r *registry.Registered, refs []registry.Reference) (*avro.Schema, error) {
	if schema == "" {
		return inferred[T]()
	}
	var cache avro.SchemaCache
	if len(refs) > 0 {
		for _, u := range r.Uses {
			if _, err := cache.Parse(u.Schema.Schema); err != nil {
				return nil, fmt.Errorf("schema %q, which it refers to: %w", u.Name, err)
			}
		}
	}
	s, err := cache.Parse(schema)
	if err != nil {
		return nil, fmt.Errorf("read the Avro schema of %v: %w", reflect.TypeFor[T](), err)
	}
	return s, nil
}

func inferred[T any]() (*avro.Schema, error) {
	s, err := avro.SchemaFor[T]()
	if err != nil {
		return nil, fmt.Errorf("make an Avro schema of %v; give it one: %w", reflect.TypeFor[T](), err)
	}
	return s, nil
}

// parse reads a registered schema and what it refers to.
func parse[T any](r *registry.Registered) (*avro.Schema, error) {
	var cache avro.SchemaCache
	for _, u := range r.Uses {
		if _, err := cache.Parse(u.Schema.Schema); err != nil {
			return nil, fmt.Errorf("schema %q, which it refers to: %w", u.Name, err)
		}
	}
	return cache.Parse(r.Schema.Schema)
}

func appender[T any](s *avro.Schema) func([]byte, T) ([]byte, error) {
	if s == nil {
		return nil
	}
	if isBytes(s) {
		return func(dst []byte, v T) ([]byte, error) {
			b, ok := any(v).([]byte)
			if !ok {
				return dst, fmt.Errorf("encode %T as Avro bytes: want []byte", v)
			}
			return append(dst, b...), nil
		}
	}
	return func(dst []byte, v T) ([]byte, error) {
		dst, err := s.AppendEncode(dst, v)
		return dst, encoding(v, err)
	}
}

func encoding[T any](v T, err error) error {
	if err != nil {
		return fmt.Errorf("encode %T as Avro: %w", v, err)
	}
	return nil
}

var errRest = errors.New("bytes are left behind the value")

func decoder[T any](s *avro.Schema, raw bool) func([]byte) (T, error) {
	return func(b []byte) (v T, err error) {
		if raw {
			if p, ok := any(&v).(*[]byte); ok {
				*p = append([]byte{}, b...)
				return v, nil
			}
			if p, ok := any(&v).(*any); ok {
				*p = append([]byte{}, b...)
				return v, nil
			}
		}
		rest, err := s.Decode(b, &v, avro.SkipUnknown())
		if err == nil && len(rest) > 0 {
			err = errRest
		}
		if err != nil {
			return v, fmt.Errorf("decode %T from Avro: %w", v, err)
		}
		return v, nil
	}
}

func isBytes(s *avro.Schema) bool {
	root := s.Root()
	return root.Type == "bytes" && root.LogicalType == ""
}

// fullName returns the name of a record, with its namespace; "" of others.
func fullName(s *avro.Schema) string {
	root := s.Root()
	return joinName(root.Namespace, root.Name)
}

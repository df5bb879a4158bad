// Package protobuf writes messages in Protobuf's binary form, with a schema registry or without: of Go types that protoc
// generated, or dynamic ones of a descriptor.
package protobuf

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/bufbuild/protocompile"
	"github.com/twmb/franz-go/pkg/sr"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/serde/registry"
)

// New returns a serde of a message type that protoc generated, M being a pointer, with ids of a registry. The schema is the
// message's file; files that it imports are registered, or looked up, before it, under subjects that are their paths. What
// others wrote by older or newer schemas is read as Protobuf does, by the numbers of fields; a message of another name is
// an error.
func New[M proto.Message](c *registry.Client, o registry.Options) serde.Serde[M] {
	var m M
	t := m.ProtoReflect().Type()
	return of(c, o, t.Descriptor(), func() M { return t.New().Interface().(M) })
}

// Dynamic is New for a message that is known by its descriptor alone.
func Dynamic(c *registry.Client, d protoreflect.MessageDescriptor, o registry.Options) serde.Serde[*dynamicpb.Message] {
	return of(c, o, d, func() *dynamicpb.Message { return dynamicpb.NewMessage(d) })
}

// Plain returns a serde of a message type that protoc generated, and writes nothing else.
func Plain[M proto.Message]() serde.Serde[M] { return plain[M]{} }

type plain[M proto.Message] struct{}

func (plain[M]) Append(dst []byte, m M) ([]byte, error) { return write(dst, m) }

func (plain[M]) Decode(b []byte) (M, error) {
	var none M
	m := none.ProtoReflect().Type().New().Interface().(M)
	return m, read(b, m)
}

// PlainDynamic is Plain for a message that is known by its descriptor alone.
func PlainDynamic(d protoreflect.MessageDescriptor) serde.Serde[*dynamicpb.Message] {
	return serde.Func(write[*dynamicpb.Message], func(b []byte) (*dynamicpb.Message, error) {
		m := dynamicpb.NewMessage(d)
		return m, read(b, m)
	})
}

func write[M proto.Message](dst []byte, m M) ([]byte, error) {
	b, err := proto.MarshalOptions{Deterministic: true}.MarshalAppend(dst, m)
	if err != nil {
		return dst, fmt.Errorf("encode %s: %w", m.ProtoReflect().Descriptor().FullName(), err)
	}
	return b, nil
}

func read(b []byte, m proto.Message) error {
	if err := proto.Unmarshal(b, m); err != nil {
		return fmt.Errorf("decode %s: %w", m.ProtoReflect().Descriptor().FullName(), err)
	}
	return nil
}

func of[M proto.Message](c *registry.Client, o registry.Options, d protoreflect.MessageDescriptor, make func() M) serde.Serde[M] {
	return registry.Of(c, o, registry.Format[M]{
		Schema: registry.Schema{Type: sr.TypeProtobuf}, Record: string(d.FullName()), Index: indexOf(d),
		Prepare: func(ctx context.Context, c *registry.Client) (registry.Schema, error) {
			return prepare(ctx, c, d.ParentFile(), o)
		},
		Writer: func(r *registry.Registered) (func([]byte, M) ([]byte, error), error) { return write[M], nil },
		Reader: func(r *registry.Registered, index []int) (func([]byte) (M, error), error) {
			name, err := messageName(r, index)
			if err != nil {
				return nil, err
			}
			if name != d.FullName() {
				return nil, fmt.Errorf("it is a %s, want %s", name, d.FullName())
			}
			return func(b []byte) (M, error) {
				m := make()
				return m, read(b, m)
			}, nil
		},
	})
}

// indexOf returns the way to a message in its file: which of the file's messages, which of those within it, and so on.
func indexOf(d protoreflect.MessageDescriptor) []int {
	var way []int
	for {
		way = append(way, d.Index())
		parent, ok := d.Parent().(protoreflect.MessageDescriptor)
		if !ok {
			slices.Reverse(way)
			return way
		}
		d = parent
	}
}

// prepare returns the schema of a file, after the files that it imports were registered or looked up.
func prepare(ctx context.Context, c *registry.Client, f protoreflect.FileDescriptor, o registry.Options) (registry.Schema, error) {
	s := registry.Schema{Type: sr.TypeProtobuf}
	b, err := proto.Marshal(protodesc.ToFileDescriptorProto(f))
	if err != nil {
		return s, fmt.Errorf("descriptor of %q: %w", f.Path(), err)
	}
	s.Schema = base64.StdEncoding.EncodeToString(b) // as good as its text: the registry takes both
	imports := f.Imports()
	for i := range imports.Len() {
		path := imports.Get(i).Path()
		if wellKnown(path) {
			continue
		}
		used, err := prepare(ctx, c, imports.Get(i).FileDescriptor, o)
		if err != nil {
			return s, err
		}
		if o.AutoRegister {
			if _, err := c.Register(ctx, path, used, o.Normalize); err != nil {
				return s, err
			}
		}
		_, version, err := c.LookUp(ctx, path, used, o.Normalize)
		if err != nil {
			return s, fmt.Errorf("file %q, which %q imports: %w", path, f.Path(), err)
		}
		s.References = append(s.References, registry.Reference{Name: path, Subject: path, Version: version})
	}
	return s, nil
}

// wellKnown tells whether a file is everywhere, so that no registry needs to have it.
func wellKnown(path string) bool {
	return strings.HasPrefix(path, "google/protobuf/") || strings.HasPrefix(path, "google/type/") || strings.HasPrefix(path, "confluent/")
}

// messageName returns the full name of a message of a registered file.
func messageName(r *registry.Registered, index []int) (protoreflect.FullName, error) {
	f, err := file(r)
	if err != nil {
		return "", err
	}
	messages := f.Messages()
	var d protoreflect.MessageDescriptor
	for _, i := range index {
		if i >= messages.Len() {
			return "", fmt.Errorf("message %v of it does not exist", index)
		}
		d = messages.Get(i)
		messages = d.Messages()
	}
	return d.FullName(), nil
}

const rootFile = "schema.proto"

// file reads a registered schema, a text or a descriptor, and what it imports.
func file(r *registry.Registered) (protoreflect.FileDescriptor, error) {
	texts := map[string]registry.Schema{rootFile: r.Schema}
	for _, u := range r.Uses {
		texts[u.Name] = u.Schema
	}
	find := protocompile.ResolverFunc(func(path string) (protocompile.SearchResult, error) {
		s, ok := texts[path]
		if !ok {
			if wellKnown(path) {
				return protocompile.SearchResult{}, protoregistry.NotFound
			}
			return protocompile.SearchResult{}, fmt.Errorf("it imports %q, which is not among its references", path)
		}
		if d := descriptor(s.Schema); d != nil {
			d.Name = &path
			return protocompile.SearchResult{Proto: d}, nil
		}
		return protocompile.SearchResult{Source: io.Reader(bytes.NewReader([]byte(s.Schema)))}, nil
	})
	files, err := (&protocompile.Compiler{Resolver: protocompile.WithStandardImports(find)}).Compile(context.Background(), rootFile)
	if err != nil {
		return nil, fmt.Errorf("read the Protobuf schema: %w", err)
	}
	return files[0], nil
}

// descriptor reads a schema that is a descriptor in base64; nil for a text.
func descriptor(schema string) *descriptorpb.FileDescriptorProto {
	b, err := base64.StdEncoding.DecodeString(schema)
	if err != nil {
		return nil
	}
	var d descriptorpb.FileDescriptorProto
	if proto.Unmarshal(b, &d) != nil {
		return nil
	}
	return &d
}

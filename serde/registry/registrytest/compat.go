package registrytest

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"slices"

	"github.com/bufbuild/protocompile"
	"github.com/twmb/avro"
	"github.com/twmb/franz-go/pkg/sr"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
)

// parsed is a schema of one of the types.
type parsed struct {
	kind  sr.SchemaType
	avro  *avro.Schema
	json  any
	proto protoreflect.FileDescriptor
}

func (s *Server) parse(x sr.Schema) (p parsed, err error) {
	uses, err := s.uses(x)
	if err != nil {
		return p, err
	}
	p.kind = x.Type
	switch x.Type {
	case sr.TypeAvro:
		var cache avro.SchemaCache
		for _, u := range uses {
			if _, err := cache.Parse(u.text); err != nil {
				return p, err
			}
		}
		p.avro, err = cache.Parse(x.Schema)
	case sr.TypeJSON:
		err = json.Unmarshal([]byte(x.Schema), &p.json)
	case sr.TypeProtobuf:
		p.proto, err = parseProto(x.Schema, uses)
	}
	return p, err
}

const rootFile = "schema.proto"

func parseProto(text string, uses []used) (protoreflect.FileDescriptor, error) {
	files := map[string]string{rootFile: text}
	for _, u := range uses {
		files[u.name] = u.text
	}
	find := protocompile.ResolverFunc(func(path string) (protocompile.SearchResult, error) {
		text, ok := files[path]
		if !ok {
			return protocompile.SearchResult{}, fmt.Errorf("no file %q", path)
		}
		if b, err := base64.StdEncoding.DecodeString(text); err == nil {
			var d descriptorpb.FileDescriptorProto
			if err := proto.Unmarshal(b, &d); err != nil {
				return protocompile.SearchResult{}, err
			}
			d.Name = &path
			return protocompile.SearchResult{Proto: &d}, nil
		}
		return protocompile.SearchResult{Source: io.Reader(bytes.NewReader([]byte(text)))}, nil
	})
	all, err := (&protocompile.Compiler{Resolver: protocompile.WithStandardImports(find)}).Compile(context.Background(), rootFile)
	if err != nil {
		return nil, err
	}
	return all[0], nil
}

// canonical is the same text for schemas that differ in their form only.
func (p parsed) canonical() string {
	switch p.kind {
	case sr.TypeJSON:
		b, _ := json.Marshal(p.json) // it was made from JSON
		return string(b)
	case sr.TypeProtobuf:
		d := protodesc.ToFileDescriptorProto(p.proto)
		d.SourceCodeInfo, d.Name = nil, nil
		b, _ := proto.MarshalOptions{Deterministic: true}.Marshal(d) // it is complete
		return string(b)
	}
	return string(p.avro.Canonical()) + defaults(p.avro.String())
}

// defaults adds to Avro's canonical form what that leaves out and matters for compatibility: all of it, in one order.
func defaults(schema string) string {
	var v any
	if json.Unmarshal([]byte(schema), &v) != nil {
		return schema
	}
	b, _ := json.Marshal(plainTypes(v))
	return string(b)
}

// plainTypes writes {"type": "int"} as "int".
func plainTypes(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k, x := range v {
			v[k] = plainTypes(x)
		}
		if t, ok := v["type"]; ok && len(v) == 1 {
			return t
		}
	case []any:
		for i, x := range v {
			v[i] = plainTypes(x)
		}
	}
	return v
}

// reads returns why p cannot read what old has written.
func (p parsed) reads(old parsed) []string {
	switch p.kind {
	case sr.TypeJSON:
		return jsonReads("$", p.json, old.json)
	case sr.TypeProtobuf:
		return protoReads(p.proto.Messages(), old.proto.Messages())
	}
	if err := avro.CheckCompatibility(old.avro, p.avro); err != nil {
		return []string{err.Error()}
	}
	return nil
}

// jsonReads compares what matters most of JSON Schema: types, required and added properties, closed content models, enums
// and bounds.
func jsonReads(at string, reader, writer any) (problems []string) {
	r, okR := reader.(map[string]any)
	w, okW := writer.(map[string]any)
	if !okR || !okW {
		return nil // true and false
	}
	say := func(format string, args ...any) { problems = append(problems, at+": "+fmt.Sprintf(format, args...)) }
	for _, t := range listOf(w["type"]) {
		types := listOf(r["type"])
		if len(types) > 0 && !slices.Contains(types, t) && !(t == "integer" && slices.Contains(types, any("number"))) {
			say("type %v is no longer allowed", t)
		}
	}
	for _, e := range listOf(w["enum"]) {
		if len(listOf(r["enum"])) > 0 && !slices.Contains(listOf(r["enum"]), e) {
			say("value %v is no longer allowed", e)
		}
	}
	if r["enum"] != nil && w["enum"] == nil {
		say("values were narrowed to an enum")
	}
	for _, bound := range []string{"maxLength", "maximum", "maxItems", "exclusiveMaximum"} {
		if x, ok := r[bound].(float64); ok {
			if y, had := w[bound].(float64); !had || x < y {
				say("%s was lowered", bound)
			}
		}
	}
	for _, bound := range []string{"minLength", "minimum", "minItems", "exclusiveMinimum"} {
		if x, ok := r[bound].(float64); ok {
			if y, had := w[bound].(float64); !had || x > y {
				say("%s was raised", bound)
			}
		}
	}
	if !reflect.DeepEqual(r["pattern"], w["pattern"]) && r["pattern"] != nil {
		say("pattern was changed")
	}
	return append(problems, propertiesRead(at, r, w)...)
}

func propertiesRead(at string, r, w map[string]any) (problems []string) {
	say := func(format string, args ...any) { problems = append(problems, at+": "+fmt.Sprintf(format, args...)) }
	rp, _ := r["properties"].(map[string]any)
	wp, _ := w["properties"].(map[string]any)
	required, was := listOf(r["required"]), listOf(w["required"])
	for _, name := range required {
		x, _ := rp[name.(string)].(map[string]any)
		if !slices.Contains(was, name) && x["default"] == nil {
			say("property %q became required", name)
		}
	}
	open := func(s map[string]any) bool { return s["additionalProperties"] != false }
	for name := range wp {
		if _, ok := rp[name]; !ok && !open(r) {
			say("property %q was removed from a closed object", name)
		}
	}
	for name, x := range rp {
		if y, ok := wp[name]; ok {
			problems = append(problems, jsonReads(at+"."+name, x, y)...)
		} else if sub, isObject := x.(map[string]any); open(w) && (!isObject || len(sub) > 0) {
			say("property %q was added to an open object", name)
		}
	}
	if open(w) && !open(r) {
		say("the object was closed")
	}
	if x, ok := r["items"]; ok {
		problems = append(problems, jsonReads(at+"[]", x, w["items"])...)
	}
	return problems
}

func listOf(v any) []any {
	switch v := v.(type) {
	case nil:
		return nil
	case []any:
		return v
	}
	return []any{v}
}

// protoReads compares messages by the rules of Confluent's registry: messages stay, fields of a number keep their name's
// type or a type of the same bytes, required fields are neither added nor removed, fields do not move into a oneof of others.
func protoReads(reader, writer protoreflect.MessageDescriptors) (problems []string) {
	for i := range writer.Len() {
		w := writer.Get(i)
		r := reader.ByName(w.Name())
		if r == nil {
			problems = append(problems, fmt.Sprintf("message %s was removed", w.FullName()))
			continue
		}
		fields := w.Fields()
		for j := range fields.Len() {
			f := fields.Get(j)
			g := r.Fields().ByNumber(f.Number())
			switch {
			case g == nil && f.Cardinality() == protoreflect.Required:
				problems = append(problems, fmt.Sprintf("required field %s was removed", f.FullName()))
			case g != nil && wire(g) != wire(f):
				problems = append(problems, fmt.Sprintf("field %s was %s and is %s", f.FullName(), wire(f), wire(g)))
			}
		}
		for j := range r.Fields().Len() {
			g := r.Fields().Get(j)
			if g.Cardinality() == protoreflect.Required && fields.ByNumber(g.Number()) == nil {
				problems = append(problems, fmt.Sprintf("required field %s was added", g.FullName()))
			}
		}
		problems = append(problems, protoReads(r.Messages(), w.Messages())...)
	}
	return problems
}

// wire is a name for all types that have the same bytes.
func wire(f protoreflect.FieldDescriptor) string {
	switch f.Kind() {
	case protoreflect.Int32Kind, protoreflect.Int64Kind, protoreflect.Uint32Kind, protoreflect.Uint64Kind, protoreflect.BoolKind, protoreflect.EnumKind:
		return "varint"
	case protoreflect.Sint32Kind, protoreflect.Sint64Kind:
		return "zigzag"
	case protoreflect.StringKind, protoreflect.BytesKind:
		return "bytes"
	case protoreflect.Fixed32Kind, protoreflect.Sfixed32Kind:
		return "fixed32"
	case protoreflect.Fixed64Kind, protoreflect.Sfixed64Kind:
		return "fixed64"
	case protoreflect.MessageKind, protoreflect.GroupKind:
		return string(f.Message().FullName())
	}
	return f.Kind().String()
}

package serde

import (
	"encoding/json"
	"reflect"
)

// Text returns a serde of the same bytes as s whose values are text in JSON: what [encoding/json] makes of the value. A
// string, and what JSON writes as one, may also come without its quotes. It is for tools, which know a store or a topic
// by its name only.
func Text[T any](s Serde[T]) Serde[json.RawMessage] {
	return Func(func(dst []byte, text json.RawMessage) ([]byte, error) {
		v, err := fromText[T](text)
		if err != nil {
			return nil, err
		}
		return s.Append(dst, v)
	}, func(b []byte) (json.RawMessage, error) {
		v, err := s.Decode(b)
		if err != nil {
			return nil, err
		}
		return json.Marshal(v)
	})
}

// fromText reads a value from JSON, or from a string without quotes.
func fromText[T any](text []byte) (v T, err error) {
	quoted := len(text) > 0 && text[0] == '"'
	if quoted || reflect.TypeFor[T]().Kind() != reflect.String {
		if err = json.Unmarshal(text, &v); err == nil || quoted {
			return v, err
		}
	}
	q, quoteErr := json.Marshal(string(text))
	if quoteErr != nil {
		return v, quoteErr
	}
	if json.Unmarshal(q, &v) == nil {
		return v, nil
	}
	if err == nil {
		err = json.Unmarshal(q, &v)
	}
	return v, err
}

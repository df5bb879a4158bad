package serde

import "iter"

// Header is one header of a record. A nil Value is Kafka's null.
type Header struct {
	Key   string
	Value []byte
}

// Headers are the headers of a record, in order; a key may come more than once. They do not change: With and Without
// return others. The zero Headers are none.
type Headers struct{ p *[]Header }

// HeadersOf returns headers that own list.
func HeadersOf(list ...Header) Headers {
	if len(list) == 0 {
		return Headers{}
	}
	return Headers{&list}
}

// Own returns the same headers in a cell of their own, which [Replace] can change without a trace in h. Package topology
// gives records such a cell where a processor may replace the headers that others still have to see.
func Own(h Headers) Headers {
	l := h.list()
	return Headers{&l}
}

// Replace makes h, and every copy of it, the headers of with. The zero Headers, which have no cell, stay none.
func Replace(h, with Headers) {
	if h.p != nil {
		*h.p = with.list()
	}
}

// Len returns how many headers there are.
func (h Headers) Len() int { return len(h.list()) }

// Get returns the text of the last header of that key, or false.
func (h Headers) Get(key string) (string, bool) {
	l := h.list()
	for i := len(l) - 1; i >= 0; i-- {
		if l[i].Key == key {
			return string(l[i].Value), true
		}
	}
	return "", false
}

// All iterates over the headers in order. The values must not be changed.
func (h Headers) All() iter.Seq[Header] {
	return func(yield func(Header) bool) {
		for _, x := range h.list() {
			if !yield(x) {
				return
			}
		}
	}
}

// With returns the headers and one more, at the end.
func (h Headers) With(key, value string) Headers { return h.WithBytes(key, []byte(value)) }

// WithBytes is With for a value of bytes, nil being Kafka's null. It keeps value.
func (h Headers) WithBytes(key string, value []byte) Headers {
	l := h.list()
	return HeadersOf(append(l[:len(l):len(l)], Header{key, value})...)
}

// Without returns the headers less all of that key.
func (h Headers) Without(key string) Headers {
	var l []Header
	for _, x := range h.list() {
		if x.Key != key {
			l = append(l, x)
		}
	}
	return HeadersOf(l...)
}

func (h Headers) list() []Header {
	if h.p == nil {
		return nil
	}
	return *h.p
}

package state

import (
	"encoding/json"
	"reflect"
	"time"

	"github.com/eddyline/eddyline/serde"
)

// Options are what every store declaration has. Zero fields are the defaults.
type Options struct {
	InMemory  bool // keep the store in memory, and restore it from its changelog at each start
	NoCache   bool // every update goes on at once, instead of the last one of each key at a commit
	Changelog Changelog
}

// Changelog says how a store's changes are logged.
type Changelog struct {
	Off    bool              // no changelog topic: the state is lost with the machine
	Config map[string]string // of the topic, over Eddyline's and the broker's defaults
	// Topic is one that the topology reads, and that holds the store's content, bytes and timestamps as the store's own: a
	// processor below it fills the store and changes nothing on the way. It takes the place of the changelog (KIP-813), and
	// no other processor may write the store.
	Topic string
}

// KeyValue declares a key-value store. The same value materialises a table (In), is opened in a processor, read in a test
// and queried.
type KeyValue[K, V any] struct {
	Name  string         // "" is a generated one
	Key   serde.Serde[K] // nil: the operator's
	Value serde.Serde[V]
	// MaxEntries is how many keys the store keeps at most: the one used least recently leaves. 0: all.
	MaxEntries int
	// KeepHeaders keeps the headers of the record that wrote a row, in the store and in the changelog (KIP-1271). For
	// stores of processors, not of tables.
	KeepHeaders bool
	Options
}

// Window declares a store of values by key and start of a window.
type Window[K, V any] struct {
	Name       string
	Key        serde.Serde[K]
	Value      serde.Serde[V]
	Size       time.Duration // of the windows
	Retention  time.Duration // how long a window is kept after its start, by stream time; 0: Size, or what the operator needs
	Duplicates bool          // keep all values of a key and start, not only the last; then there is no Get
	Options
}

// Session declares a store of sessions.
type Session[K, V any] struct {
	Name      string
	Key       serde.Serde[K]
	Value     serde.Serde[V]
	Retention time.Duration // how long a session is kept after its end, by stream time; 0: what the operator needs
	Options
}

// Versioned declares a store that keeps the history of each key.
type Versioned[K, V any] struct {
	Name    string
	Key     serde.Serde[K]
	Value   serde.Serde[V]
	History time.Duration // how far back it answers, by stream time
	Options
}

// Declaration is what a store declaration says beside its types.
type Declaration struct {
	Kind       Kind
	Name       string
	Size       time.Duration
	Retention  time.Duration // or history
	Duplicates bool
	MaxEntries int
	// KeepHeaders says that headers stand before each value.
	KeepHeaders bool
	Options
}

// Kind is the kind of a declared store.
type Kind uint8

// The kinds of declared stores.
const (
	KindKeyValue Kind = iota
	KindWindow
	KindSession
	KindVersioned
)

// AnyStore is a declaration of any kind and types.
type AnyStore interface{ Declare() Declaration }

// TableStore is a declaration that a table of K and V can be kept in: a [KeyValue] or a [Versioned].
type TableStore[K, V any] interface {
	AnyStore
	tableStore(K, V)
	Serdes() (serde.Serde[K], serde.Serde[V])
}

// WindowedStore is a declaration that a windowed table can be kept in: a [Window] or a [Session].
type WindowedStore[K, V any] interface {
	AnyStore
	windowedStore(K, V)
	Serdes() (serde.Serde[K], serde.Serde[V])
}

// Declare returns what the declaration says beside its types.
func (s KeyValue[K, V]) Declare() Declaration {
	return Declaration{Kind: KindKeyValue, Name: s.Name, MaxEntries: s.MaxEntries, KeepHeaders: s.KeepHeaders, Options: s.Options}
}

// Declare returns what the declaration says beside its types.
func (s Window[K, V]) Declare() Declaration {
	return Declaration{
		Kind: KindWindow, Name: s.Name, Size: s.Size, Retention: s.Retention, Duplicates: s.Duplicates, Options: s.Options,
	}
}

// Declare returns what the declaration says beside its types.
func (s Session[K, V]) Declare() Declaration {
	return Declaration{Kind: KindSession, Name: s.Name, Retention: s.Retention, Options: s.Options}
}

// Declare returns what the declaration says beside its types.
func (s Versioned[K, V]) Declare() Declaration {
	return Declaration{Kind: KindVersioned, Name: s.Name, Retention: s.History, Options: s.Options}
}

// Serdes returns the serdes of the declaration.
func (s KeyValue[K, V]) Serdes() (serde.Serde[K], serde.Serde[V])  { return s.Key, s.Value }
func (s Window[K, V]) Serdes() (serde.Serde[K], serde.Serde[V])    { return s.Key, s.Value }
func (s Session[K, V]) Serdes() (serde.Serde[K], serde.Serde[V])   { return s.Key, s.Value }
func (s Versioned[K, V]) Serdes() (serde.Serde[K], serde.Serde[V]) { return s.Key, s.Value }

// Text returns the serdes of the declaration, and those of their text in JSON. lookup returns the serde of a Go type that
// has none here and none of its own, or nil.
func (s KeyValue[K, V]) Text(lookup func(reflect.Type) any) (keys, values any, keysText, valuesText serde.Serde[json.RawMessage]) {
	return text(s.Key, s.Value, lookup)
}

// Text returns the serdes of the declaration, as that of a [KeyValue] does.
func (s Window[K, V]) Text(lookup func(reflect.Type) any) (keys, values any, keysText, valuesText serde.Serde[json.RawMessage]) {
	return text(s.Key, s.Value, lookup)
}

// Text returns the serdes of the declaration, as that of a [KeyValue] does.
func (s Session[K, V]) Text(lookup func(reflect.Type) any) (keys, values any, keysText, valuesText serde.Serde[json.RawMessage]) {
	return text(s.Key, s.Value, lookup)
}

// Text returns the serdes of the declaration, as that of a [KeyValue] does.
func (s Versioned[K, V]) Text(lookup func(reflect.Type) any) (keys, values any, keysText, valuesText serde.Serde[json.RawMessage]) {
	return text(s.Key, s.Value, lookup)
}

func text[K, V any](k serde.Serde[K], v serde.Serde[V], lookup func(reflect.Type) any) (keys, values any, keysText, valuesText serde.Serde[json.RawMessage]) {
	if k = orKnown(k, lookup); k != nil {
		keys, keysText = k, serde.Text(k)
	}
	if v = orKnown(v, lookup); v != nil {
		values, valuesText = v, serde.Text(v)
	}
	return keys, values, keysText, valuesText
}

func orKnown[T any](s serde.Serde[T], lookup func(reflect.Type) any) serde.Serde[T] {
	if s != nil {
		return s
	}
	if known, ok := lookup(reflect.TypeFor[T]()).(serde.Serde[T]); ok {
		return known
	}
	s, _ = serde.Default[T]()
	return s
}

func (KeyValue[K, V]) tableStore(K, V)   {}
func (Versioned[K, V]) tableStore(K, V)  {}
func (Window[K, V]) windowedStore(K, V)  {}
func (Session[K, V]) windowedStore(K, V) {}

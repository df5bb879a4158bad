package topology

import (
	"time"

	"github.com/eddyline/eddyline/state"
)

// Option changes an operator. Every operator takes options last.
type Option interface {
	ProcessOption
	TableJoinOption
	SuppressOption
	option()
}

// ProcessOption is an option of Process, ProcessValues and of tables' ProcessValues: any [Option], and Uses.
type ProcessOption interface {
	apply(*options)
	processOption()
}

// TableJoinOption is an option of a join with a table: any [Option], and Grace.
type TableJoinOption interface {
	apply(*options)
	tableJoinOption()
}

// SuppressOption is an option of Suppress: any [Option], and a Buffer.
type SuppressOption interface {
	apply(*options)
	suppressOption()
}

type options struct {
	handling
	name   string
	uses   []state.AnyStore
	buffer Buffer
	grace  *time.Duration
}

type optionFunc func(*options)

func (f optionFunc) apply(o *options) { f(o) }
func (optionFunc) option()            {}
func (optionFunc) processOption()     {}
func (optionFunc) tableJoinOption()   {}
func (optionFunc) suppressOption()    {}

func (usesOption) processOption()    {}
func (Buffer) suppressOption()       {}
func (graceOption) tableJoinOption() {}

// Named names the operator, and what it makes on its way: its repartition topic, the stores of a join. A name that
// changes the place of an internal topic or store makes a running application start it anew, so give names before the
// first deployment.
func Named(name string) Option { return optionFunc(func(o *options) { o.name = name }) }

// OnError says what becomes of a record that the operator fails on. Default: what the application's Config says, Fail
// unless set.
func OnError(p ErrorPolicy) Option { return optionFunc(func(o *options) { o.policy = p }) }

func optionsOf[O interface{ apply(*options) }](list []O) options {
	var o options
	for _, x := range list {
		x.apply(&o)
	}
	return o
}

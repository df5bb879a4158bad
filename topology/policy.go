package topology

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/eddyline/eddyline/serde"
)

// Class says at what a record failed.
type Class uint8

// The classes of failures.
const (
	DecodeError      Class = iota // its bytes cannot be read, or its timestamp is not valid
	ProcessingError               // an operator's function failed or panicked
	PunctuationError              // a punctuation failed; there is no record
	EncodeError                   // what came out cannot be written
	SendError                     // the broker refuses what came out
)

func (c Class) String() string {
	return [...]string{"decode", "processing", "punctuation", "encode", "send"}[c]
}

func (c Class) reason() string {
	return [...]string{DropDecode, DropProcessing, DropProcessing, DropEncode, DropEncode}[c]
}

// Origin is where an input record came from.
type Origin struct {
	Topic     string
	Partition int32
	Offset    int64
}

// Failure is what an [ErrorPolicy] decides on.
type Failure struct {
	Err       error
	Class     Class
	Origin    Origin // of the input record; no topic, and -1 twice, in a punctuation
	Task      string
	Operator  string
	Key       []byte // of the input record, as it came; nil if absent
	Value     []byte
	Headers   Headers
	Timestamp time.Time // of the input record; the punctuation's
	Attempt   int       // 1 at first
}

// ErrorPolicy says what becomes of a record that an operator fails on. The actions are policies; so is a PolicyFunc.
type ErrorPolicy interface {
	decide(ctx context.Context, f Failure) Action
}

// Action is what becomes of a record that failed.
type Action uint8

// The actions.
const (
	// Fail stops the task, and with it the application, without committing the record.
	Fail Action = iota
	// Skip leaves the record out as if it had never been there: what it wrote before the failure, to stores and topics,
	// is rolled back. A failure on what the record cache sends on, which is of many records, is handled as SkipNode; so is
	// DeadLetter as DeadLetterNode.
	Skip
	// SkipNode leaves out what the failing operator would have made of the record. What was written before, and what
	// other operators make of it, stays: Kafka Streams' way.
	SkipNode
	// DeadLetter is Skip, and sends the record as it came to the dead letter topic, in the same transaction.
	DeadLetter
	// DeadLetterNode is SkipNode with a dead letter, as Kafka Streams writes it: key and value are absent if anything was
	// written to a topic for the record before it failed.
	DeadLetterNode
)

func (a Action) decide(context.Context, Failure) Action { return a }

// node returns the action for the failing operator alone.
func (a Action) node() Action {
	switch a {
	case Skip:
		return SkipNode
	case DeadLetter:
		return DeadLetterNode
	}
	return a
}

// PolicyFunc decides by a function. It may block; ctx ends with the task.
type PolicyFunc func(ctx context.Context, f Failure) Action

func (p PolicyFunc) decide(ctx context.Context, f Failure) Action { return p(ctx, f) }

// StepError is a failure that ends a Step: the task rolls it back, or stops.
type StepError struct {
	Failure Failure
	Action  Action // Fail, Skip or DeadLetter
}

func (e *StepError) Error() string {
	f := e.Failure
	if f.Origin.Topic == "" {
		return fmt.Sprintf("operator %s: %s: %v", f.Operator, f.Class, f.Err)
	}
	return fmt.Sprintf("record %s/%d@%d: operator %s: %s: %v",
		f.Origin.Topic, f.Origin.Partition, f.Origin.Offset, f.Operator, f.Class, f.Err)
}

func (e *StepError) Unwrap() error { return e.Failure.Err }

// failed asks the policy what becomes of the record at hand, on which node n failed. Nil: go on after n.
func (c *Chain) failed(n *node, class Class, cause error) error {
	var ended *StepError
	if errors.As(cause, &ended) { // below, and decided there
		return ended
	}
	f := c.failure(n, class, cause)
	if errors.Is(cause, serde.ErrUnavailable) { // the record is not to blame
		return &StepError{f, Fail}
	}
	action := c.policy(n, class).decide(c.Context, f)
	switch {
	case c.flushing: // what many records have done is on its way: none of it can be rolled back alone
		action = action.node()
	case class == DecodeError: // nothing was done for the record yet
		action = action.node()
	}
	switch action {
	case DeadLetterNode:
		if c.cur.sent {
			f.Key, f.Value = nil, nil
		}
		c.DeadLetter(f)
		fallthrough
	case SkipNode:
		return c.dropped(n, class.reason())
	default:
		return &StepError{f, action}
	}
}

func (c *Chain) policy(n *node, class Class) ErrorPolicy {
	if n.policy != nil {
		return n.policy
	}
	if c.Policy != nil {
		if p := c.Policy(class); p != nil {
			return p
		}
	}
	return Fail
}

func (c *Chain) failure(n *node, class Class, cause error) Failure {
	f := Failure{Err: cause, Class: class, Origin: c.origin(), Task: c.Task, Operator: n.name, Timestamp: msTime(c.cur.ts), Attempt: 1}
	if in := c.cur.in; in != nil {
		f.Key, f.Value, f.Headers, f.Timestamp = in.Key, in.Value, in.Headers, msTime(in.Timestamp)
	}
	return f
}

// catches tells whether a panic in n must be caught at n, because the rest of the record's way goes on after it.
func (c *Chain) catches(n *node, class Class) bool {
	a, fixed := c.policy(n, class).(Action)
	return !fixed || a == SkipNode || a == DeadLetterNode
}

// guarded catches panics of n's functions where its policy may go on after n.
func guarded[K, V any](c *Chain, n *node, f forward[K, V]) forward[K, V] {
	if !c.catches(n, ProcessingError) {
		return f
	}
	return func(r rec[K, V]) (err error) {
		defer c.catch(n, &err)
		return f(r)
	}
}

// guardedChange is guarded for changes of a table.
func guardedChange[K, V any](c *Chain, n *node, f forwardChange[K, V]) forwardChange[K, V] {
	if !c.catches(n, ProcessingError) {
		return f
	}
	return func(r change[K, V]) (err error) {
		defer c.catch(n, &err)
		return f(r)
	}
}

// catch is deferred: it turns a panic of n's functions into n's failure. Others go on upwards.
func (c *Chain) catch(n *node, err *error) {
	if p := recover(); p != nil {
		if c.at != n {
			panic(p)
		}
		*err = c.failed(n, ProcessingError, panicError(p))
	}
}

// DeadLetter writes the input record of a failure to the dead letter topic, with headers that say why (KIP-1034).
func (c *Chain) DeadLetter(f Failure) {
	if c.DeadLetters == "" {
		return
	}
	h := f.Headers.
		With("__streams.errors.exception", fmt.Sprintf("%T", rootOf(f.Err))).
		With("__streams.errors.message", message(f.Err)).
		With("__streams.errors.stacktrace", f.Operator).
		WithBytes("__streams.errors.topic", topicBytes(f.Origin)).
		With("__streams.errors.partition", fmt.Sprint(f.Origin.Partition)).
		With("__streams.errors.offset", fmt.Sprint(f.Origin.Offset))
	c.out.Records = append(c.out.Records, Output{
		Topic: c.DeadLetters, Partition: c.byKey(c.DeadLetters, false, f.Key), Timestamp: f.Timestamp.UnixMilli(), Headers: h,
		Key: c.out.arena.copy(f.Key), Value: c.out.arena.copy(f.Value),
	})
}

// panicked is a panic of a user's function as an error.
type panicked struct{ err error }

func (p *panicked) Error() string { return "panic: " + p.err.Error() }
func (p *panicked) Unwrap() error { return p.err }

func panicError(p any) error {
	err, ok := p.(error)
	if !ok {
		err = fmt.Errorf("%v", p)
	}
	return &panicked{err}
}

// message is what an error says; of a panic what it was called with.
func message(err error) string {
	var p *panicked
	if errors.As(err, &p) {
		err = p.err
	}
	return err.Error()
}

// topicBytes is a topic's name, null where there is none.
func topicBytes(o Origin) []byte {
	if o.Topic == "" {
		return nil
	}
	return []byte(o.Topic)
}

func rootOf(err error) error {
	for {
		next := errors.Unwrap(err)
		if next == nil {
			return err
		}
		err = next
	}
}

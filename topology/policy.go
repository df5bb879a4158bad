package topology

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
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
	SendError                     // the topic does not take what came out: it is larger than its max.message.bytes
)

func (c Class) String() string {
	return [...]string{"decode", "processing", "punctuation", "encode", "send"}[c]
}

// reasonOf returns what a record that is left out because of a failure is counted as.
func reasonOf(c Class, err error) string {
	if errors.Is(err, ErrFuture) {
		return DropFuture
	}
	return [...]string{DropDecode, DropProcessing, DropPunctuation, DropEncode, DropSend}[c]
}

// ErrFuture reports that the timestamp of an input record lies further ahead of the clock than the application allows. It is a
// [DecodeError] of the source, whose policy says what becomes of the record: one that was let in would close the windows of
// all others.
var ErrFuture = errors.New("timestamp too far in the future")

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
	Attempt   int       // 1 at first, more for a record that is tried again by [Retry]
	First     time.Time // when the record failed first, by the wall clock
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
	// DeadLetter is Skip, and sends the record as it came to the dead letter topic, in the same transaction. Beside Kafka
	// Streams' headers it has "eddyline.errors." operator, class, attempt, and first.failure in milliseconds since 1970.
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
	Again   *Retry // the record is to be tried again, as it says; Action is Skip
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
	if ended, ok := errors.AsType[*StepError](cause); ok { // below, and decided there
		return ended
	}
	if errors.Is(cause, ErrRecordTooLarge) {
		class = SendError
	}
	f := c.failure(n, class, cause)
	action, again := c.decide(c.policy(n, class), &f)
	switch {
	case again != nil:
		return &StepError{f, Skip, again}
	case errors.Is(cause, serde.ErrUnavailable): // the record is not to blame
		return &StepError{f, Fail, nil}
	}
	ours := action == DeadLetter
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
		c.DeadLetter(f, ours)
		fallthrough
	case SkipNode:
		c.tell(f, ours || action == DeadLetterNode)
		return c.dropped(n, reasonOf(class, cause))
	default:
		return &StepError{f, action, nil}
	}
}

// decide asks a policy, which may want the record to be tried again. One that panics, or answers with no action, has
// decided to fail.
func (c *Chain) decide(p ErrorPolicy, f *Failure) (action Action, again *Retry) {
	defer func() {
		if p := recover(); p != nil {
			f.Err, action = fmt.Errorf("%w; its error policy: %w", f.Err, panicError(p)), Fail
		}
	}()
	for {
		r, ok := p.(Retry)
		if !ok {
			break
		}
		if f.Attempt <= r.Times && c.mayRetry() {
			return Skip, &r
		}
		p = r.then()
	}
	if action = p.decide(c.Context, *f); action > DeadLetterNode {
		return Fail, nil
	}
	return action, nil
}

// told is what was logged of the failures of an operator in a class.
type told struct {
	next   int64 // when the next may be logged
	hidden int   // how many were not, since the last one
}

type tellKey struct {
	operator string
	class    Class
}

// tellEvery is how often a failure of an operator in a class is logged at most, in milliseconds.
const tellEvery = 10_000

// tell logs a record that is left out: where it came from and what kind of error it was, never what it holds, and so not
// what the error says. Of many it logs a sample.
func (c *Chain) tell(f Failure, sent bool) {
	if c.Logger == nil {
		return
	}
	k := tellKey{f.Operator, f.Class}
	t := c.tells[k]
	if t == nil {
		if c.tells == nil {
			c.tells = map[tellKey]*told{}
		}
		t = new(told)
		c.tells[k] = t
	}
	if c.early(t.next, tellEvery) {
		t.hidden++
		return
	}
	c.Logger.Warn("a record is left out", "operator", f.Operator, "class", f.Class.String(), "topic", f.Origin.Topic,
		"partition", f.Origin.Partition, "offset", f.Origin.Offset, "attempt", f.Attempt, "error type", fmt.Sprintf("%T", rootOf(f.Err)),
		"dead letter", sent && c.DeadLetters != "", "not logged before", t.hidden)
	t.next, t.hidden = c.now+tellEvery, 0
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
	f := Failure{Err: cause, Class: class, Origin: c.origin(), Task: c.Task, Operator: n.name, Timestamp: msTime(c.cur.ts),
		Attempt: max(1, c.attempt), First: msTime(c.now)}
	if c.attempt > 0 {
		f.First = msTime(c.first)
	}
	if in := c.cur.in; in != nil {
		f.Key, f.Value, f.Headers, f.Timestamp = in.Key, in.Value, in.Headers, msTime(in.Timestamp)
	}
	return f
}

// class is that of a panic in the node's functions.
func (n *node) class() Class {
	switch n.kind {
	case sourceNode:
		return DecodeError
	case sinkNode:
		return EncodeError
	}
	return ProcessingError
}

// catches tells whether a panic in n must be caught at n, because the rest of the record's way goes on after it.
func (c *Chain) catches(n *node) bool {
	a, fixed := c.policy(n, n.class()).(Action)
	return !fixed || a == SkipNode || a == DeadLetterNode
}

// guarded catches panics of n's functions where its policy may go on after n.
func guarded[K, V any](c *Chain, n *node, f forward[K, V]) forward[K, V] {
	if !c.catches(n) {
		return f
	}
	return func(r rec[K, V]) (err error) {
		defer c.catch(n, &err)
		return f(r)
	}
}

// guardedChange is guarded for changes of a table.
func guardedChange[K, V any](c *Chain, n *node, f forwardChange[K, V]) forwardChange[K, V] {
	if !c.catches(n) {
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
		*err = c.failed(n, n.class(), panicError(p))
	}
}

// DeadLetter writes the input record of a failure to the dead letter topic, with headers that say why (KIP-1034), and ours
// if they are asked for. A value, a key, or headers, that the topic would not take are left out: the coordinates say where they are.
func (c *Chain) DeadLetter(f Failure, ours bool) {
	if c.DeadLetters == "" {
		return
	}
	list := make([]serde.Header, 0, f.Headers.Len()+10)
	list = slices.AppendSeq(list, f.Headers.All())
	add := func(key, value string) { list = append(list, serde.Header{Key: key, Value: []byte(value)}) }
	add("__streams.errors.exception", fmt.Sprintf("%T", rootOf(f.Err)))
	add("__streams.errors.message", message(f.Err))
	add("__streams.errors.stacktrace", f.Operator)
	list = append(list, serde.Header{Key: "__streams.errors.topic", Value: topicBytes(f.Origin)})
	add("__streams.errors.partition", strconv.Itoa(int(f.Origin.Partition)))
	add("__streams.errors.offset", strconv.FormatInt(f.Origin.Offset, 10))
	if ours {
		add(HeaderOperator, f.Operator)
		add(HeaderClass, f.Class.String())
		add(HeaderAttempt, strconv.Itoa(f.Attempt))
		add(HeaderFirstFailure, strconv.FormatInt(f.First.UnixMilli(), 10))
	}
	out := Output{
		Topic: c.DeadLetters, Partition: c.byKey(c.DeadLetters, false, f.Key), Timestamp: min(max(0, f.Timestamp.UnixMilli()), latestMs), Headers: serde.HeadersOf(list...),
		Key: c.out.arena.copy(f.Key), Value: c.out.arena.copy(f.Value),
	}
	if c.fits(&out) != nil {
		out.Value, out.Headers = nil, out.Headers.With(HeaderLeftOut, "value")
	}
	if c.fits(&out) != nil {
		out.Key, out.Headers = nil, out.Headers.With(HeaderLeftOut, "key")
	}
	if c.fits(&out) != nil {
		out.Headers = shortened(out.Headers, f.Headers.Len()).With(HeaderLeftOut, "headers")
	}
	c.out.Add(&out)
}

// shortened returns headers without the first n, those of the record, and the others of at most a thousand bytes each: what an
// error says may be as long as the record.
func shortened(all Headers, n int) (out Headers) {
	const most = 1000
	for h := range all.All() {
		if n--; n < 0 {
			out = out.WithBytes(h.Key, h.Value[:min(len(h.Value), most):min(len(h.Value), most)])
		}
	}
	return out
}

// The headers of dead letters beside those of KIP-1034. They are there with [DeadLetter], not with [DeadLetterNode].
const (
	HeaderOperator     = "eddyline.errors.operator"      // that failed
	HeaderClass        = "eddyline.errors.class"         // a [Class]
	HeaderAttempt      = "eddyline.errors.attempt"       // how often it was tried
	HeaderFirstFailure = "eddyline.errors.first.failure" // milliseconds since 1970
	// HeaderLeftOut tells that the dead letter topic would not have taken the record: "value", once more "key", and once more
	// "headers", those of the record.
	HeaderLeftOut = "eddyline.errors.left.out"
)

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

// latestMs is the last timestamp that every client can read: nanoseconds since 1970 end in 2262.
const latestMs = math.MaxInt64 / int64(time.Millisecond)

package topology

import (
	"cmp"
	"container/heap"
	"slices"
	"time"
)

// TimeKind is the clock that a schedule follows.
type TimeKind uint8

const (
	// StreamTime is the largest timestamp that the task has processed: it stands still without input.
	StreamTime TimeKind = iota
	// WallClock is the machine's time.
	WallClock
)

// punctuation is a schedule of a processor, at its next due time.
type punctuation struct {
	n         *node
	number    int // of the chain's schedules
	due       int64
	everyMs   int64
	f         func(now time.Time) error
	cancelled bool
}

// schedule is a heap of punctuations by due time; of equal ones the heap decides.
type schedule []*punctuation

func (s schedule) Len() int           { return len(s) }
func (s schedule) Less(i, j int) bool { return s[i].due < s[j].due }
func (s schedule) Swap(i, j int)      { s[i], s[j] = s[j], s[i] }
func (s *schedule) Push(x any)        { *s = append(*s, x.(*punctuation)) }

func (s *schedule) Pop() any {
	old := *s
	p := old[len(old)-1]
	*s = old[:len(old)-1]
	return p
}

// run calls what is due at now, each once, and moves it to its next time on its grid after now.
func (s *schedule) run(c *Chain, now int64) error {
	for s.Len() > 0 && (*s)[0].due <= now {
		p := heap.Pop(s).(*punctuation)
		if p.cancelled {
			continue
		}
		if err := c.punctuate(p, now); err != nil {
			return err
		}
		if p.cancelled {
			continue
		}
		p.due = p.after(now)
		heap.Push(s, p)
	}
	return nil
}

// arrange gives schedules that were made at set-up the order of the nodes: nodes are linked from the sinks backwards.
func (s *schedule) arrange(nodes []*node) {
	made := slices.Clone(*s)
	slices.SortFunc(made, func(a, b *punctuation) int {
		return cmp.Or(cmp.Compare(slices.Index(nodes, a.n), slices.Index(nodes, b.n)), cmp.Compare(a.number, b.number))
	})
	*s = (*s)[:0]
	for _, p := range made {
		heap.Push(s, p)
	}
}

// after returns the next time of p's grid after now.
func (p *punctuation) after(now int64) int64 {
	if next := p.due + p.everyMs; now < next {
		return next
	}
	return p.due + ((now-p.due)/p.everyMs+1)*p.everyMs
}

// punctuate calls a processor's function. It has no input record, and no headers.
func (c *Chain) punctuate(p *punctuation, now int64) (err error) {
	c.cur = current{ts: now}
	c.at = p.n
	defer func() {
		if r := recover(); r != nil {
			err = c.failed(c.at, PunctuationError, panicError(r))
		}
	}()
	if err := p.f(msTime(now)); err != nil {
		return c.failed(p.n, PunctuationError, err)
	}
	return c.takeFailure()
}

// addSchedule calls f on a grid. A start in the past moves to the next time on its grid.
func (c *Chain) addSchedule(n *node, kind TimeKind, start *int64, everyMs int64, f func(now time.Time) error) *punctuation {
	c.schedules++
	p := &punctuation{n: n, number: c.schedules, everyMs: everyMs, f: f}
	now, s := c.time, &c.stream
	if kind == WallClock {
		now, s = c.now, &c.wall
		p.due = now + everyMs
	}
	if start != nil {
		p.due = *start
		if p.due < now {
			p.due = p.after(now)
		}
	}
	heap.Push(s, p)
	return p
}

// PunctuateStream runs what stream time has made due. It is called after records, inside a Step.
func (c *Chain) PunctuateStream() error {
	if c.time < 0 {
		return nil
	}
	return c.stream.run(c, c.time)
}

// PunctuateWall runs what the wall clock of this Step has made due.
func (c *Chain) PunctuateWall() error { return c.wall.run(c, c.now) }

// StreamDue tells whether a punctuation waits for the stream time reached.
func (c *Chain) StreamDue() bool {
	return len(c.stream) > 0 && c.time >= 0 && c.stream[0].due <= c.time
}

// NextWall returns when the wall clock next makes a punctuation due, in milliseconds, or false for never.
func (c *Chain) NextWall() (ms int64, ok bool) {
	if len(c.wall) == 0 {
		return 0, false
	}
	return c.wall[0].due, true
}

// Schedule is what a processor has scheduled.
type Schedule struct {
	Operator string
	Kind     TimeKind
	Every    time.Duration
	Next     time.Time // 1970: at the first record
}

// Schedules returns what the processors have scheduled and not cancelled, by next time, stream time first.
func (c *Chain) Schedules() (all []Schedule) {
	for kind, s := range []schedule{StreamTime: c.stream, WallClock: c.wall} {
		first := len(all)
		for _, p := range s {
			if !p.cancelled {
				all = append(all, Schedule{p.n.name, TimeKind(kind), time.Duration(p.everyMs) * time.Millisecond, msTime(p.due)})
			}
		}
		slices.SortStableFunc(all[first:], func(a, b Schedule) int { return a.Next.Compare(b.Next) })
	}
	return all
}

package streams

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"

	"github.com/eddyline/eddyline/streams/console"
)

// problems keeps the last warnings and errors of the log, for the console.
type problems struct {
	mu   sync.Mutex
	last []console.Event // the newest last
}

const mostProblems = 50

// recent returns what was logged last, the newest first.
func (p *problems) recent() []console.Event {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := append([]console.Event{}, p.last...)
	slices.Reverse(all)
	return all
}

func (p *problems) keep(e console.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.last) == mostProblems {
		p.last = slices.Delete(p.last, 0, 1)
	}
	p.last = append(p.last, e)
}

// problemLog is the application's log, which notes warnings and errors on their way.
type problemLog struct {
	slog.Handler
	problems *problems
	attrs    string // that each record has, as text
}

// WithAttrs implements [slog.Handler].
func (h problemLog) WithAttrs(attrs []slog.Attr) slog.Handler {
	text := h.attrs
	for _, a := range attrs {
		text += " " + a.Key + "=" + a.Value.String()
	}
	return problemLog{h.Handler.WithAttrs(attrs), h.problems, text}
}

// WithGroup implements [slog.Handler].
func (h problemLog) WithGroup(name string) slog.Handler {
	return problemLog{h.Handler.WithGroup(name), h.problems, h.attrs}
}

// Enabled implements [slog.Handler]. Warnings are kept also where nobody else wants them.
func (h problemLog) Enabled(ctx context.Context, l slog.Level) bool {
	return l >= slog.LevelWarn || h.Handler.Enabled(ctx, l)
}

// Handle implements [slog.Handler].
func (h problemLog) Handle(ctx context.Context, r slog.Record) error {
	if r.Level >= slog.LevelWarn {
		var b strings.Builder
		b.WriteString(r.Message)
		r.Attrs(func(a slog.Attr) bool {
			fmt.Fprintf(&b, " %s=%v", a.Key, a.Value)
			return true
		})
		h.problems.keep(console.Event{At: r.Time, Text: b.String() + h.attrs, Bad: r.Level >= slog.LevelError})
	}
	if !h.Handler.Enabled(ctx, r.Level) {
		return nil
	}
	return h.Handler.Handle(ctx, r)
}

package streams

import (
	"context"
	"fmt"
	"slices"
)

// crew returns the workers that get tasks. It may be called from any goroutine.
func (a *App) crew() []*worker {
	if all := a.workers.Load(); all != nil {
		return *all
	}
	return nil
}

// mostWorkers is how many a process can have.
const mostWorkers = 1 << 10

// SetWorkers changes the number of workers of a running application to n, and moves tasks accordingly: they are committed
// and opened again, with the state that is here. It returns once workers that are too many have ended, or with the error of
// ctx if that ends before; then they end later. It may be called at any time, from any goroutine; Config.Workers is what an
// application begins with, and what its share of Config.MemoryBytes per worker comes from.
func (a *App) SetWorkers(ctx context.Context, n int) error {
	if n < 1 || n > mostWorkers {
		return fmt.Errorf("change the number of workers to %d: use 1 to %d", n, mostWorkers)
	}
	if err := a.Ready(ctx); err != nil {
		return err
	}
	select {
	case a.resizing <- struct{}{}:
	case <-a.ended:
		return ErrNotRunning
	case <-ctx.Done():
		return fmt.Errorf("change the number of workers: %w", ctx.Err())
	}
	if err := a.storage.dir.UseSlots(n); err != nil {
		<-a.resizing
		return err
	}
	done := make(chan struct{})
	a.notes.put(resize{n, func() {
		<-a.resizing
		close(done)
	}})
	select {
	case <-done:
		return nil
	case <-a.ended:
		return ErrNotRunning
	case <-ctx.Done():
		return fmt.Errorf("change the number of workers: %w", ctx.Err())
	}
}

// resize changes the number of workers. No other change is under way.
type resize struct {
	n    int
	done func()
}

func (r resize) noted(a *App) {
	crew := a.crew()
	if a.stopping || r.n == len(crew) {
		r.done()
		return
	}
	a.log.Info("the number of workers changes", "from", len(crew), "to", r.n)
	if r.n < len(crew) {
		a.leaving = slices.Clone(crew[r.n:])
		crew = slices.Clone(crew[:r.n])
		a.workers.Store(&crew)
		a.resized = r.done
	} else {
		crew = slices.Clone(crew)
		for i := len(crew); i < r.n; i++ {
			w := a.hire(i, r.n)
			crew = append(crew, w)
			a.begin(w)
		}
		a.workers.Store(&crew)
		r.done()
	}
	a.spread()
	a.group.setWorkers(r.n)
}

// spread moves tasks from workers that leave, and from those that have more than others.
func (a *App) spread() {
	of := map[*worker][]*owned{}
	for _, id := range sorted(a.tasks) {
		if o := a.tasks[id]; !o.going {
			of[o.worker] = append(of[o.worker], o)
		}
	}
	fewest := func() *worker {
		return slices.MinFunc(a.crew(), func(v, w *worker) int { return len(of[v]) - len(of[w]) })
	}
	move := func(from *worker) {
		last := len(of[from]) - 1
		o, to := of[from][last], fewest()
		of[from], of[to] = of[from][:last], append(of[to], o)
		a.homes[o.id] = to
		o.again = o.epoch
		a.giveBack(o, false, nil)
	}
	for _, w := range a.leaving {
		for len(of[w]) > 0 {
			move(w)
		}
	}
	for _, w := range a.crew() {
		for len(of[w]) > len(of[fewest()])+1 {
			move(w)
		}
	}
}

// dismiss has workers end that leave and have no tasks any more.
func (a *App) dismiss() {
	for _, w := range a.leaving {
		busy := false
		for _, o := range a.tasks {
			busy = busy || o.worker == w
		}
		if !busy && !w.dismissed {
			w.dismissed = true
			w.inbox.put(finish{})
		}
	}
}

// left tells that a worker has ended before the application does.
type left struct{ w *worker }

func (n left) noted(a *App) {
	i := slices.Index(a.leaving, n.w)
	if i < 0 {
		return
	}
	a.leaving = slices.Delete(a.leaving, i, i+1)
	a.metrics.gone(n.w.meter)
	a.serving.Go(func() {
		ctx, cancel := context.WithTimeout(a.life, a.config.TransactionTimeout)
		defer cancel()
		if err := n.w.send.close(ctx); err != nil && a.life.Err() == nil {
			a.log.Warn("a worker has ended, and its producers have not", "error", err)
		}
	})
	if len(a.leaving) == 0 {
		a.resized()
	}
}

// begin starts a worker.
func (a *App) begin(w *worker) {
	a.working.Go(func() {
		w.run(a.life)
		close(w.over)
		a.notes.put(left{w})
	})
}

package streams

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// killLoad returns how many words are counted and how many faults there are, few unless the environment asks for more: the
// full test has EDDYLINE_TEST_WORDS=1000000 EDDYLINE_TEST_KILLS=20. The load lasts about as long as the faults do.
func killLoad(t *testing.T) (words, rate, kills int) {
	kills = numberOf(t, "EDDYLINE_TEST_KILLS", 5)
	words = numberOf(t, "EDDYLINE_TEST_WORDS", 100_000)
	return words, words / (kills * 4), kills
}

// targets are the commit states in which a process dies, in turn; "" stands for a moment of chance.
var targets = []string{"SENDING", "OFFSETS", "", "ENDING", "APPLY"}

// die kills the process, in the commit state that it was told of at its start, or at once. It returns the states that the
// workers were in at the end.
func (p *process) die(after time.Duration) []string {
	time.Sleep(after) // of work
	if p.c.Die == "" {
		p.cmd.Process.Kill() // it may have ended
	} else {
		p.signal(syscall.SIGUSR1)
		select {
		case <-p.done:
		case <-time.After(10 * time.Second):
		}
	}
	states := p.kill()
	var list []string
	for _, w := range slices.Sorted(maps.Keys(states)) {
		list = append(list, states[w])
	}
	return list
}

var restoreLine = regexp.MustCompile(`msg=restore .*task=(\S+) store=\S+ from=(\d+) to=(\d+)`)

// restores returns what a process has said of its restores: how many there were, how many from the beginning, and how
// many records they read.
func (p *process) restores() (n, fromZero int, records int64) {
	for _, l := range p.said("msg=restore ") {
		m := restoreLine.FindStringSubmatch(l)
		if m == nil {
			continue
		}
		var from, to int64
		fmt.Sscan(m[2], &from)
		fmt.Sscan(m[3], &to)
		n++
		if from == 0 {
			fromZero++
		}
		records += to - from
	}
	return n, fromZero, records
}

// TestBrokerKills kills one of two instances again and again while there is input left, and starts it anew. Every count
// of every word comes out once and in order.
func TestBrokerKills(t *testing.T) {
	for _, g := range []Guarantee{ExactlyOnce, AtLeastOnce} {
		t.Run(g.String(), func(t *testing.T) {
			b := newTrial(t)
			b.loose = g == AtLeastOnce
			words, rate, kills := killLoad(t)
			ps := [2]*process{}
			for i := range ps {
				c := b.child(filepath.Join(t.TempDir(), fmt.Sprint(i)))
				c.Least, c.Die = g, targets[i]
				ps[i] = startProcess(t, fmt.Sprint("instance ", i), c)
			}
			b.load(words, rate)
			hit := map[string]int{}
			for round := range kills {
				for _, p := range ps {
					p.waitRunning(t)
				}
				i := round % 2
				states := ps[i].die(time.Duration(500+rand.IntN(1500)) * time.Millisecond)
				open := b.openTransactions()
				counted, fed, ended := b.progress()
				t.Logf("kill %d of instance %d: %d of %d words counted, commit states %v, open transactions %d, input left %v",
					round+1, i, counted, fed, states, len(open), !ended)
				for _, s := range states {
					hit[s]++
				}
				if ended {
					t.Errorf("kill %d: no input was left; feed more words", round+1)
				}
				c := ps[i].c
				c.Die = targets[(round+2)%len(targets)]
				ps[i] = startProcess(t, fmt.Sprint("instance ", i), c)
				ps[i].waitRunning(t)
				n, zero, records := ps[i].restores()
				t.Logf("  restored %d stores, %d of them from the beginning, %d records", n, zero, records)
			}
			b.finish(60 * time.Second)
			t.Logf("commit states hit: %v; repeated counts: %d", hit, b.dups)
			for _, s := range targets[:min(kills, len(targets))] {
				if s != "" && hit[s] == 0 {
					t.Errorf("no kill has hit %s", s)
				}
			}
			for _, p := range ps {
				if err := p.stop(); err != nil {
					t.Errorf("stop %s: %v\n%s", p.name, err, p.log())
				}
			}
			if open := b.openTransactions(); len(open) > 0 {
				t.Errorf("transactions are open after the stop: %v", open)
			}
		})
	}
}

// TestBrokerCheckpoint kills an instance after its state was flushed: it goes on from there, not from the beginning.
func TestBrokerCheckpoint(t *testing.T) {
	b := newTrial(t)
	c := b.child(filepath.Join(t.TempDir(), "a"))
	c.Flush = 200 * time.Millisecond
	p := startProcess(t, "a", c)
	b.load(40_000, 20_000)
	p.waitRunning(t)
	b.finish(30 * time.Second)
	time.Sleep(2 * time.Second) // for two flushes: nothing that can be seen from outside tells of them
	p.kill()
	p = startProcess(t, "a again", c)
	p.waitRunning(t)
	n, zero, records := p.restores()
	if zero > 0 || records > 1000 {
		t.Errorf("%d stores restored, %d of them from the beginning, %d records:\n%s", n, zero, records, p.log())
	}
	if err := p.stop(); err != nil {
		t.Errorf("stop: %v\n%s", err, p.log())
	}
}

// TestBrokerWiped kills an instance and takes its state directory away: all is restored from the changelogs.
func TestBrokerWiped(t *testing.T) {
	b := newTrial(t)
	_, _, kills := killLoad(t)
	c := b.child(filepath.Join(t.TempDir(), "a"))
	p := startProcess(t, "a", c)
	b.load(20_000*kills, 8_000)
	for range kills {
		p.waitRunning(t)
		time.Sleep(time.Second) // of work
		p.kill()
		if err := os.RemoveAll(c.Dir); err != nil {
			t.Fatal(err)
		}
		p = startProcess(t, "a again", c)
		p.waitRunning(t)
		if n, zero, _ := p.restores(); n != trialPartitions || zero != n {
			t.Errorf("%d stores restored, %d of them from the beginning, want all of %d:\n%s", n, zero, trialPartitions, p.log())
		}
	}
	b.finish(60 * time.Second)
	if err := p.stop(); err != nil {
		t.Errorf("stop: %v\n%s", err, p.log())
	}
}

// TestBrokerPaused stops an instance for longer than its session, in the middle of whatever it does, and lets it go on:
// its tasks went to the other one, and what it still wanted to commit is refused.
func TestBrokerPaused(t *testing.T) {
	for _, g := range []Guarantee{ExactlyOnce, AtLeastOnce} {
		t.Run(g.String(), func(t *testing.T) {
			b := newTrial(t)
			b.loose = g == AtLeastOnce
			pauses := max(1, numberOf(t, "EDDYLINE_TEST_KILLS", 5)/5)
			ps := [2]*process{}
			for i := range ps {
				c := b.child(filepath.Join(t.TempDir(), fmt.Sprint(i)))
				c.Least = g
				ps[i] = startProcess(t, fmt.Sprint("instance ", i), c)
			}
			b.load(60_000*pauses, 4_000)
			for round := range pauses {
				for _, p := range ps {
					p.waitRunning(t)
				}
				p := ps[round%2]
				eventually(t, 30*time.Second, p.name+" has tasks", func() bool { return p.owned() > 0 })
				time.Sleep(time.Duration(500+rand.IntN(1000)) * time.Millisecond) // of work
				p.signal(syscall.SIGSTOP)
				time.Sleep(p.c.Session + 3*time.Second)
				counted, fed, _ := b.progress()
				p.signal(syscall.SIGCONT)
				eventually(t, 30*time.Second, "the instance learns that its tasks are lost", func() bool {
					return len(p.said("msg=\"tasks lost")) > round/2
				})
				t.Logf("pause %d: %d of %d words counted when it went on", round+1, counted, fed)
			}
			b.finish(60 * time.Second)
			for _, p := range ps {
				if err := p.stop(); err != nil {
					t.Errorf("stop %s: %v\n%s", p.name, err, p.log())
				}
			}
			if strings.Contains(ps[0].log(), "level=ERROR") {
				t.Errorf("an error was logged:\n%s", ps[0].log())
			}
		})
	}
}

// TestBrokerCrash kills the broker under two instances, and starts it again. EDDYLINE_KAFKA is the script that does it;
// nobody else may use that broker.
func TestBrokerCrash(t *testing.T) {
	script := os.Getenv("EDDYLINE_KAFKA")
	if script == "" {
		t.Skip("EDDYLINE_KAFKA is not set: set it to .ci/kafka/kafka.sh, whose broker is killed")
	}
	b := newTrial(t)
	_, _, kills := killLoad(t)
	ps := [2]*process{}
	for i := range ps {
		ps[i] = startProcess(t, fmt.Sprint("instance ", i), b.child(filepath.Join(t.TempDir(), fmt.Sprint(i))))
	}
	for _, p := range ps {
		p.waitRunning(t)
	}
	b.load(60_000*kills, 2_000)
	for range kills {
		time.Sleep(time.Duration(1000+rand.IntN(2000)) * time.Millisecond) // of work
		for _, command := range []string{"crash", "start"} {
			if out, err := exec.Command(script, command).CombinedOutput(); err != nil {
				t.Fatalf("%s %s: %v\n%s", script, command, err, out)
			}
		}
		counted, _, _ := b.progress()
		eventually(t, 60*time.Second, "the count goes on", func() bool {
			n, fed, ended := b.progress()
			return n > counted+1000 || ended && n == fed
		})
	}
	b.finish(60 * time.Second)
	for _, p := range ps {
		if err := p.stop(); err != nil {
			t.Errorf("stop %s: %v\n%s", p.name, err, p.log())
		}
	}
}

var tasksField = regexp.MustCompile(`msg="tasks (assigned|revoked|lost)[^"]*" .*tasks="?\[([^\]]*)\]`)

// owned returns how many tasks a process has been given and not lost or been asked to give back, by what it has said.
func (p *process) owned() (n int) {
	for _, l := range p.said("msg=\"tasks") {
		m := tasksField.FindStringSubmatch(l)
		switch {
		case m == nil:
		case m[1] == "assigned":
			n += len(strings.Fields(m[2]))
		default:
			n -= len(strings.Fields(m[2]))
		}
	}
	return n
}

func (p *process) signal(s syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatal(err)
	}
}

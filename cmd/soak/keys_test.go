package main

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
)

// TestKillManyKeys kills an instance that counts few keys and one that counts many: the output flows again as soon, since
// nothing is read that was on disk. EDDYLINE_SOAK_KEYS is how many are many, EDDYLINE_SOAK_KILLS how often each is killed.
func TestKillManyKeys(t *testing.T) {
	few, many := 5_000, number(t, "EDDYLINE_SOAK_KEYS", 100_000)
	short := killed(t, few)
	long := killed(t, many)
	t.Logf("output flows again after %v with %d keys, after %v with %d", short, few, long, many)
	if os.Getenv("EDDYLINE_SOAK_TIMES") != "" && long > short+500*time.Millisecond {
		t.Error("the number of keys matters")
	}
}

// killed returns the median time from SIGKILL until output flows again.
func killed(t *testing.T, keys int) time.Duration {
	x := newTrial(t, "exactly_once", 2)
	x.model.only = "sut-out-count"
	x.fill(keys)
	for _, in := range x.instances {
		in.flags = []string{"--topologies=count"}
		in.start()
	}
	x.caughtUp()
	for _, in := range x.instances { // all state is on disk after a clean stop
		in.stop()
		in.start()
	}
	x.from = time.Now().Add(-time.Minute)
	x.begin()
	x.flows(time.Now(), time.Minute)
	var all []time.Duration
	for i := range number(t, "EDDYLINE_SOAK_KILLS", 2) {
		in := x.instances[i%2]
		before := len(in.said())
		began := time.Now()
		in.kill()
		time.Sleep(2 * time.Second) // as long as it takes a supervisor
		in.start()
		took := x.flows(began, time.Minute)
		read := restored(t, in.said()[before:])
		t.Logf("%v, with %d records of the changelog read", took, read)
		if read > 10_000 { // what may be written within flushInterval and a pause of this machine
			t.Errorf("%d records were restored, of %d keys", read, keys)
		}
		all = append(all, took)
	}
	x.finish()
	return median(all)
}

var restoredRecords = regexp.MustCompile(`msg=restored .*records=(\d+)`)

// restored returns how many records an instance has restored, by its log.
func restored(t *testing.T, lines []string) (n int) {
	t.Helper()
	for _, line := range lines {
		if m := restoredRecords.FindStringSubmatch(line); m != nil {
			i, err := strconv.Atoi(m[1])
			if err != nil {
				t.Fatal(err)
			}
			n += i
		}
	}
	return n
}

// fill writes a record for each of so many keys, which are not accounts of the model, an hour ago.
func (x *trial) fill(keys int) {
	x.t.Helper()
	at := time.Now().Add(-time.Hour)
	for i := range keys {
		key := fmt.Sprintf("f%07d", i)
		x.produce("sut-in", partitionOf(key), key, fmt.Sprintf("%d,1,1,%s", i, key), at)
	}
	x.must(x.client.Flush(x.t.Context()))
}

// caughtUp waits until the application has committed all of its input.
func (x *trial) caughtUp() {
	x.t.Helper()
	admin := kadm.NewClient(x.client)
	x.eventually(10*time.Minute, "the input is counted", func() bool {
		x.check()
		ends, err := admin.ListEndOffsets(x.t.Context(), "sut-in")
		x.must(err)
		committed, err := admin.FetchOffsets(x.t.Context(), x.app)
		x.must(err)
		for p := range int32(partitions) {
			end, ok := ends.Lookup("sut-in", p)
			at, there := committed.Lookup("sut-in", p)
			if !ok || end.Err != nil || !there || at.At < end.Offset {
				return false
			}
		}
		return true
	})
}

package streams

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
)

// TestBrokerQuota has the broker slow every client down, because of a quota: the application gets slower, and does nothing else.
func TestBrokerQuota(t *testing.T) {
	b := newTrial(t)
	admin := kadm.NewClient(b.client)
	any := kadm.ClientQuotaEntity{{Type: "client-id", Name: nil}}
	set := func(ops ...kadm.AlterClientQuotaOp) {
		t.Helper()
		changed, err := admin.AlterClientQuotas(context.Background(), []kadm.AlterClientQuotaEntry{{Entity: any, Ops: ops}})
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range changed {
			if c.Err != nil {
				t.Fatalf("%v: %s", c.Err, c.ErrMessage)
			}
		}
	}
	t.Cleanup(func() {
		set(kadm.AlterClientQuotaOp{Key: "producer_byte_rate", Remove: true}, kadm.AlterClientQuotaOp{Key: "consumer_byte_rate", Remove: true})
	})
	p := startProcess(t, "a", b.child(filepath.Join(t.TempDir(), "a")))
	p.waitRunning(t)
	set(kadm.AlterClientQuotaOp{Key: "producer_byte_rate", Value: 60_000}, kadm.AlterClientQuotaOp{Key: "consumer_byte_rate", Value: 60_000})
	began := time.Now()
	b.load(50_000, 0)
	b.finish(60 * time.Second)
	if took := time.Since(began); took < 5*time.Second {
		t.Errorf("it took %v: the quota had no effect", took)
	}
	if err := p.stop(); err != nil {
		t.Errorf("stop: %v\n%s", err, p.log())
	}
}

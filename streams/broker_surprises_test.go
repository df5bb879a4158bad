package streams

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
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

// TestBrokerFeatures lowers the version of transactions (KIP-890) and raises it again while two instances run.
func TestBrokerFeatures(t *testing.T) {
	b := newTrial(t)
	set := func(level int16, kind int8) {
		t.Helper()
		req := kmsg.NewPtrUpdateFeaturesRequest()
		f := kmsg.NewUpdateFeaturesRequestFeatureUpdate()
		f.Feature, f.MaxVersionLevel, f.UpgradeType = "transaction.version", level, kind
		req.FeatureUpdates = append(req.FeatureUpdates, f)
		resp, err := req.RequestWith(context.Background(), b.client)
		if err == nil {
			err = kerr.ErrorForCode(resp.ErrorCode)
		}
		if err != nil {
			t.Errorf("transaction.version %d: %v", level, err)
		}
	}
	const upgrade, downgrade, newest = 1, 2, 2
	t.Cleanup(func() { set(newest, upgrade) })
	ps := [2]*process{}
	for i, name := range []string{"a", "b"} {
		ps[i] = startProcess(t, name, b.child(filepath.Join(t.TempDir(), name)))
		ps[i].waitRunning(t)
	}
	b.load(120_000, 8_000)
	goesOn := func() {
		t.Helper()
		counted, _, _ := b.progress()
		eventually(t, 60*time.Second, "the count goes on", func() bool {
			n, fed, ended := b.progress()
			return n > counted+10_000 || ended && n == fed
		})
	}
	goesOn()
	set(1, downgrade)
	goesOn()
	if err := ps[0].stop(); err != nil {
		t.Errorf("stop: %v\n%s", err, ps[0].log())
	}
	ps[0] = startProcess(t, "a again", ps[0].c)
	ps[0].waitRunning(t)
	goesOn()
	set(newest, upgrade)
	goesOn()
	b.finish(60 * time.Second)
	for _, p := range ps {
		if err := p.stop(); err != nil {
			t.Errorf("stop %s: %v\n%s", p.name, err, p.log())
		}
	}
}

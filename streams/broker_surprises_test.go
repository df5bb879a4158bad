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

// TestBrokerFeatures changes the version of transactions (KIP-890) down and up again, as a downgrade of the brokers begins and an
// upgrade ends, while two instances run. One of them starts anew at 0, with transactional ids that were last used at 2.
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
	b.load(1_000_000, 5_000)
	goesOn := func() {
		t.Helper()
		counted, _, _ := b.progress()
		eventually(t, 60*time.Second, "the count goes on", func() bool {
			n, _, _ := b.progress()
			return n > counted+5_000
		})
	}
	goesOn()
	set(1, downgrade)
	for _, p := range ps {
		eventually(t, 60*time.Second, p.name+" uses the old protocol in each worker", func() bool {
			return len(p.said("transaction.version is below 2")) == p.c.Workers
		})
	}
	goesOn()
	set(0, downgrade)
	goesOn()
	if err := ps[0].stop(); err != nil {
		t.Errorf("stop: %v\n%s", err, ps[0].log())
	}
	ps[0] = startProcess(t, "a again", ps[0].c)
	ps[0].waitRunning(t)
	goesOn()
	set(newest, upgrade)
	for _, p := range ps {
		eventually(t, 60*time.Second, p.name+" learns of the upgrade", func() bool {
			return len(p.said("transaction.version has changed", "to=2")) == 1
		})
	}
	goesOn()
	b.enough.Store(true)
	b.finish(60 * time.Second)
	for _, p := range ps {
		if err := p.stop(); err != nil {
			t.Errorf("stop %s: %v\n%s", p.name, err, p.log())
		}
		if stuck := p.said(errBusyID.Error()); len(stuck) > 0 {
			t.Errorf("%s: %q", p.name, stuck)
		}
	}
	if open := b.openTransactions(); len(open) > 0 {
		t.Errorf("transactions are open after the stop: %v", open)
	}
}

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
// upgrade ends, while two instances run.
func TestBrokerFeatures(t *testing.T) {
	b := newTrial(t)
	set := func(level int16, kind int8) error {
		req := kmsg.NewPtrUpdateFeaturesRequest()
		f := kmsg.NewUpdateFeaturesRequestFeatureUpdate()
		f.Feature, f.MaxVersionLevel, f.UpgradeType, f.AllowDowngrade = "transaction.version", level, kind, kind != 1
		req.FeatureUpdates = append(req.FeatureUpdates, f)
		resp, err := req.RequestWith(context.Background(), b.client)
		if err == nil {
			err = kerr.ErrorForCode(resp.ErrorCode)
		}
		return err
	}
	const upgrade, downgrade, newest = 1, 2, 2
	t.Cleanup(func() { set(newest, upgrade) })
	ps := [2]*process{}
	for i, name := range []string{"a", "b"} {
		ps[i] = startProcess(t, name, b.child(filepath.Join(t.TempDir(), name)))
		ps[i].waitRunning(t)
	}
	b.load(120_000, 8_000)
	for _, level := range []int16{1, 0, newest} {
		counted, _, _ := b.progress()
		kind := int8(downgrade)
		if level == newest {
			kind = upgrade
		}
		if err := set(level, kind); err != nil {
			t.Fatalf("transaction.version %d: %v", level, err)
		}
		eventually(t, 60*time.Second, "the count goes on", func() bool {
			n, fed, ended := b.progress()
			return n > counted+10_000 || ended && n == fed
		})
	}
	b.finish(60 * time.Second)
	for _, p := range ps {
		if err := p.stop(); err != nil {
			t.Errorf("stop %s: %v\n%s", p.name, err, p.log())
		}
	}
}

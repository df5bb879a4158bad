package streams

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// transactionVersion is the cluster's feature transaction.version (KIP-890), which may be changed while applications run.
// Clients learn of it when they connect: Kafka's brokers take both protocols from them at 1 and 2, and break the
// transactional ids of those who use the new one at 0.
type transactionVersion struct {
	level int16 // 0 where there is none
	known bool  // the brokers have the feature
}

// errBusyID reports that a transactional id cannot be used, because its coordinator waits for something that does not end.
var errBusyID = errors.New("the coordinator of the transactional id answers nothing but that it is busy: if transaction.version " +
	"was lowered to 0 while instances used 2, raise it to 1 or more and restart the brokers one by one")

// askTransactionVersion asks any broker.
func askTransactionVersion(ctx context.Context, client *kgo.Client) (v transactionVersion, err error) {
	const name = "transaction.version"
	resp, err := kmsg.NewPtrApiVersionsRequest().RequestWith(ctx, client)
	if err != nil {
		return v, fmt.Errorf("ask for %s: %w", name, err)
	}
	for _, f := range resp.SupportedFeatures {
		v.known = v.known || f.Name == name
	}
	for _, f := range resp.FinalizedFeatures {
		if f.Name == name {
			v.level = f.MaxVersionLevel
		}
	}
	return v, nil
}

// legacy reports whether groups and partitions are added to a transaction by requests of their own.
func (v transactionVersion) legacy() bool { return v.level < 2 }

// prepare makes a transactional id safe to be initialised below version 2. The coordinator keeps with the id under which
// version its last transaction was made; below version 1 it cannot write a 2 down. It then answers UNSUPPORTED_VERSION to
// InitProducerId, and CONCURRENT_TRANSACTIONS to everything after that until it is started again. AddOffsetsToTxn, which
// is of the old protocol, replaces the 2; InitProducerId aborts what it began.
func (v transactionVersion) prepare(ctx context.Context, client *kgo.Client, group, id string) error {
	if !v.known || !v.legacy() {
		return nil
	}
	err := insist(ctx, func() error {
		t, err := describeTransaction(ctx, client, id)
		if err != nil {
			return err
		}
		switch t.State {
		case "PrepareCommit", "PrepareAbort": // it keeps the version
			return kerr.ConcurrentTransactions
		case "Empty", "CompleteCommit", "CompleteAbort":
		default: // ended by InitProducerId, which writes its own version down
			return nil
		}
		req := kmsg.NewPtrAddOffsetsToTxnRequest()
		req.TransactionalID, req.Group, req.ProducerID, req.ProducerEpoch = id, group, t.ProducerID, t.ProducerEpoch
		resp, err := req.RequestWith(ctx, client)
		if err != nil || resp.ErrorCode == kerr.GroupAuthorizationFailed.Code { // which the commit tells of
			return err
		}
		return kerr.ErrorForCode(resp.ErrorCode)
	})
	if errors.Is(err, kerr.ConcurrentTransactions) {
		return fmt.Errorf("%w: %w", errBusyID, err)
	}
	return err
}

// describeTransaction returns what the coordinator says of a transactional id: nothing of one that it does not know, or
// may not tell of.
func describeTransaction(ctx context.Context, client *kgo.Client, id string) (t kmsg.DescribeTransactionsResponseTransactionState, err error) {
	req := kmsg.NewPtrDescribeTransactionsRequest()
	req.TransactionalIDs = []string{id}
	resp, err := req.RequestWith(ctx, client)
	if err != nil || len(resp.TransactionStates) == 0 {
		return t, err
	}
	t = resp.TransactionStates[0]
	if err := kerr.ErrorForCode(t.ErrorCode); kerr.IsRetriable(err) {
		return t, err
	}
	return t, nil
}

// explain says what a coordinator means that has the feature, and refuses InitProducerId as if it did not know it.
func (v transactionVersion) explain(err error) error {
	if v.known && errors.Is(err, kerr.UnsupportedVersion) {
		return fmt.Errorf("%w: %v", errBusyID, err) // not %w: transactions are not refused
	}
	return err
}

const transactionVersionLook = 5 * time.Second

// watchTransactionVersion has the producers connect anew when transaction.version passes 2, up or down. It ends with ctx.
func (a *App) watchTransactionVersion(ctx context.Context) {
	var last *transactionVersion
	for {
		v, err := askTransactionVersion(ctx, a.admin)
		if err == nil && last != nil && v.legacy() != last.legacy() {
			a.log.Info("transaction.version has changed: producers connect anew", "from", last.level, "to", v.level)
			for _, w := range a.crew() {
				w.inbox.put(reconnect{})
			}
		}
		if err == nil {
			last = &v
		}
		if pause(ctx, transactionVersionLook) != nil {
			return
		}
	}
}

// reconnect has a worker's producers made anew.
type reconnect struct{}

func (reconnect) take(w *worker) { w.commit.reconnect() }

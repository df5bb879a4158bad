package streams

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// transactionalID names the producer of a slot: APPLICATION-IDENTITY-WORKER-SLOT, where the identity is a uuid and the
// slot "0", "1" or "offsets". Kafka Streams has APPLICATION-UUID-THREAD; there, slot is empty.
type transactionalID struct {
	application string
	identity    string
	worker      int // or thread
	slot        string
}

func (t transactionalID) String() string {
	id := t.application + "-" + t.identity + "-" + strconv.Itoa(t.worker)
	if t.slot == "" {
		return id
	}
	return id + "-" + t.slot
}

// parseTransactionalID reads an id of an application, and returns false for any other. Application ids may have dashes
// and digits, and one may begin with another: only what this application could have made is its own.
func parseTransactionalID(application, id string) (transactionalID, bool) {
	const identityLen = 36 // a uuid in lower case, with dashes
	rest, ok := strings.CutPrefix(id, application+"-")
	if !ok || len(rest) <= identityLen || rest[identityLen] != '-' {
		return transactionalID{}, false
	}
	worker, slot, _ := strings.Cut(rest[identityLen+1:], "-")
	n, err := strconv.Atoi(worker)
	if err != nil {
		return transactionalID{}, false
	}
	t := transactionalID{application, rest[:identityLen], n, slot}
	return t, t.valid() && t.String() == id
}

// valid reports whether the parts are such as are used.
func (t transactionalID) valid() bool {
	u, err := uuid.Parse(t.identity)
	if err != nil || u.String() != t.identity || t.worker < 0 {
		return false
	}
	switch t.slot {
	case "", slotFirst.String(), slotSecond.String(), slotOffsets.String():
		return true
	}
	return false
}

// fencer ends transactions whose owner is gone, so that nobody has to wait for their time-out. It is safe for
// concurrent use.
type fencer struct {
	client      *kgo.Client
	application string
	timeout     time.Duration // transaction.timeout.ms
	mender      *mender       // is told what is ended; nil: there is none
}

// own initialises every transactional id that the first so many workers of an identity can have used, so that what an
// earlier run of this process left open is over. Call it before the first offsets are fetched, and before producers are
// started: it would fence those.
func (f *fencer) own(ctx context.Context, identity string, workers int) error {
	var ids []string
	for w := range workers {
		for s := slotFirst; s <= slotOffsets; s++ {
			ids = append(ids, transactionalID{f.application, identity, w, s.String()}.String())
		}
	}
	return f.fence(ctx, ids)
}

// departed ends the open transactions of members that are gone, and returns their transactional ids. live has the
// identities of the group's members; their transactions are left to them. Call it as a member: as long as Kafka Streams
// runs the application, this process is none, and the transactions are those of living threads. An error says what
// could not be found out or ended; the rest is done.
func (f *fencer) departed(ctx context.Context, live map[string]bool) ([]string, error) {
	open, err := f.open(ctx)
	gone := departedOf(f.application, open, live)
	return gone, errors.Join(err, f.fence(ctx, gone))
}

// departedOf returns the ids of the application whose identity is not live.
func departedOf(application string, ids []string, live map[string]bool) (gone []string) {
	for _, id := range ids {
		if t, ok := parseTransactionalID(application, id); ok && !live[t.identity] {
			gone = append(gone, id)
		}
	}
	slices.Sort(gone)
	return slices.Compact(gone)
}

// open returns the transactional ids with an open transaction whose names begin as the application's do. Those that a
// broker without an answer coordinates are missing, which the error says.
func (f *fencer) open(ctx context.Context) (ids []string, err error) {
	req := kmsg.NewPtrListTransactionsRequest()
	req.StateFilters = []string{"Ongoing"}
	var errs []error
	for _, shard := range f.client.RequestSharded(ctx, req) {
		if shard.Err != nil {
			errs = append(errs, shard.Err)
			continue
		}
		resp := shard.Resp.(*kmsg.ListTransactionsResponse)
		if err := kerr.ErrorForCode(resp.ErrorCode); err != nil {
			errs = append(errs, err)
		}
		for _, t := range resp.TransactionStates {
			if strings.HasPrefix(t.TransactionalID, f.application+"-") {
				ids = append(ids, t.TransactionalID)
			}
		}
	}
	if err := errors.Join(errs...); err != nil {
		return ids, fmt.Errorf("list open transactions: %w", err)
	}
	return ids, nil
}

// fence initialises producers of these ids, all at a time.
func (f *fencer) fence(ctx context.Context, ids []string) error {
	if len(ids) == 0 {
		return nil
	}
	version, err := askTransactionVersion(ctx, f.client)
	if err != nil {
		return err
	}
	errs := make([]error, len(ids))
	var wait sync.WaitGroup
	for i, id := range ids {
		wait.Go(func() { errs[i] = f.fenceOne(ctx, version, id) })
	}
	wait.Wait()
	return errors.Join(errs...)
}

func (f *fencer) fenceOne(ctx context.Context, version transactionVersion, id string) error {
	after := func() {}
	err := version.prepare(ctx, f.client, f.application, id)
	if err == nil && f.mender != nil && !version.legacy() {
		after = f.mender.before(ctx, f.client, id)
	}
	if err == nil {
		_, err = initProducer(ctx, f.client, id, f.timeout)
	}
	if err != nil {
		return fmt.Errorf("fence transactional id %s: %w", id, version.explain(err))
	}
	after()
	return nil
}

// initProducer is InitProducerId: it fences whoever has the id, and aborts the transaction that is open. It asks again
// until ctx ends, for example while the broker is still writing the markers of that transaction.
func initProducer(ctx context.Context, client *kgo.Client, id string, timeout time.Duration) (e producerEpoch, err error) {
	req := kmsg.NewPtrInitProducerIDRequest()
	req.TransactionalID = &id
	req.TransactionTimeoutMillis = int32(timeout.Milliseconds())
	req.ProducerID, req.ProducerEpoch = -1, -1
	err = insist(ctx, func() error {
		resp, err := req.RequestWith(ctx, client)
		if err != nil {
			return err
		}
		e = producerEpoch{resp.ProducerID, resp.ProducerEpoch}
		return kerr.ErrorForCode(resp.ErrorCode)
	})
	return e, err
}

// insist calls f again, with pauses, until it succeeds, its error is one that will not pass, or ctx ends.
func insist(ctx context.Context, f func() error) error {
	var pause time.Duration
	for {
		err := f()
		if err == nil || classify(reqInit, err) != retriable {
			return err
		}
		pause = next(pause, firstRetry, lastRetry)
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-time.After(pause):
		}
	}
}

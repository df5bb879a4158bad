package streams

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

func TestClassify(t *testing.T) {
	for _, test := range []struct {
		request request
		err     error
		want    verdict
	}{
		{reqInit, kerr.CoordinatorLoadInProgress, retriable},
		{reqInit, kerr.ProducerFenced, retriable}, // another start of the same id, of a process that is going
		{reqInit, io.EOF, retriable},
		{reqInit, kerr.TransactionalIDAuthorizationFailed, refused},
		{reqInit, kerr.UnsupportedVersion, refused},
		{reqInit, kerr.InvalidTransactionTimeout, hopeless},
		{reqProduce, kerr.InvalidProducerEpoch, fenced},
		{reqProduce, fmt.Errorf("%w (uncompressed_bytes=5)", kerr.MessageTooLarge), hopeless},
		{reqProduce, kerr.OutOfOrderSequenceNumber, definite},
		{reqProduce, kerr.UnsupportedVersion, definite},
		{reqProduce, kerr.NotEnoughReplicas, late},
		{reqProduce, kgo.ErrRecordTimeout, late},
		{reqProduce, fmt.Errorf("%w, last err: %w", kgo.ErrRecordTimeout, kerr.TopicAuthorizationFailed), hopeless},
		{reqProduce, context.DeadlineExceeded, late},
		{reqProduce, kgo.ErrClientClosed, definite},
		{reqAddOffsets, kerr.ConcurrentTransactions, retriable},
		{reqAddOffsets, kerr.NotCoordinator, retriable},
		{reqAddOffsets, kerr.ProducerFenced, fenced},
		{reqOffsets, kerr.IllegalGeneration, stale},
		{reqOffsets, kerr.RebalanceInProgress, stale},
		{reqOffsets, kerr.StaleMemberEpoch, stale},
		{reqOffsets, kerr.UnknownMemberID, fenced},
		{reqOffsets, kerr.FencedInstanceID, fenced},
		{reqOffsets, kerr.FencedMemberEpoch, fenced},
		{reqOffsets, kerr.CoordinatorNotAvailable, retriable},
		{reqOffsets, kerr.OffsetMetadataTooLarge, hopeless},
		{reqOffsets, kerr.UnsupportedVersion, definite},
		{reqOffsets, io.EOF, definite},
		{reqEnd, kerr.InvalidTxnState, definite},
		{reqEnd, kerr.OperationNotAttempted, definite},
		{reqEnd, errors.Join(kerr.TransactionAbortable, kerr.UnknownTopicID), definite},
		{reqEnd, kerr.UnsupportedVersion, definite},
		{reqEnd, kerr.ProducerFenced, fenced},
		{reqEnd, kerr.UnknownServerError, doubtful},
		{reqEnd, kerr.CoordinatorNotAvailable, doubtful},
		{reqEnd, kerr.NotCoordinator, doubtful},
		{reqEnd, kerr.RequestTimedOut, doubtful},
		{reqEnd, io.EOF, doubtful},
	} {
		if got := classify(test.request, test.err); got != test.want {
			t.Errorf("classify(%v, %v) = %v, want %v", test.request, test.err, got, test.want)
		}
	}
}

// No code of the brokers may pass EndTxn for a no unless it is known to be one.
func TestClassifyEndOnlyKnownCodesAreDefinite(t *testing.T) {
	for code := int16(-1); code < 200; code++ {
		if _, known := verdicts[reqEnd][code]; code == 0 || known {
			continue
		}
		if got := classify(reqEnd, kerr.ErrorForCode(code)); got != doubtful {
			t.Errorf("classify(%v, code %d) = %v, want %v", reqEnd, code, got, doubtful)
		}
	}
}

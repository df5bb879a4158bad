package streams

import (
	"context"
	"errors"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// request is a kind of request of a commit.
type request uint8

const (
	reqInit       request = iota // InitProducerId
	reqProduce                   // Produce
	reqAddOffsets                // AddOffsetsToTxn
	reqOffsets                   // TxnOffsetCommit; OffsetCommit without transactions
	reqEnd                       // EndTxn
	requestCount
)

func (r request) String() string {
	return [...]string{
		"initialise producer", "produce", "add offsets to transaction", "commit offsets", "end transaction",
	}[r]
}

// verdict is what an error says about the transaction, and so what comes next.
type verdict uint8

const (
	definite  verdict = iota // the transaction will not be committed: abort, and do the work again
	retriable                // nothing happened yet: the same request again
	stale                    // the group has a newer generation: again with that, if the tasks are still owned
	fenced                   // as definite; another member took the tasks or the transactional id over
	late                     // as definite; no answer in time
	hopeless                 // as definite, and doing the work again ends the same way: someone has to act
	doubtful                 // whether it is committed is unknown
	refused                  // transactions are not to be had here
)

func (v verdict) String() string {
	return [...]string{"definite", "retriable", "stale", "fenced", "late", "hopeless", "doubtful", "refused"}[v]
}

// verdicts says what the brokers' error codes mean, by request. A code that is not listed has the meaning that classify
// gives to unknown ones.
var verdicts = [requestCount]map[int16]verdict{
	reqInit: {
		kerr.InvalidTransactionTimeout.Code:          hopeless,
		kerr.InvalidRequest.Code:                     hopeless,
		kerr.UnsupportedVersion.Code:                 refused,
		kerr.UnsupportedForMessageFormat.Code:        refused,
		kerr.TransactionalIDAuthorizationFailed.Code: refused,
		kerr.ClusterAuthorizationFailed.Code:         refused,
	},
	reqProduce: {
		kerr.InvalidProducerEpoch.Code:               fenced,
		kerr.ProducerFenced.Code:                     fenced,
		kerr.UnknownTopicOrPartition.Code:            hopeless, // after the client's own retries
		kerr.UnknownTopicID.Code:                     hopeless,
		kerr.MessageTooLarge.Code:                    hopeless,
		kerr.RecordListTooLarge.Code:                 hopeless,
		kerr.InvalidTopicException.Code:              hopeless,
		kerr.InvalidRecord.Code:                      hopeless,
		kerr.InvalidTimestamp.Code:                   hopeless,
		kerr.InvalidRequiredAcks.Code:                hopeless,
		kerr.PolicyViolation.Code:                    hopeless,
		kerr.UnsupportedVersion.Code:                 definite, // of a coordinator; see transactionVersion.prepare
		kerr.UnsupportedForMessageFormat.Code:        hopeless,
		kerr.UnsupportedCompressionType.Code:         hopeless,
		kerr.TopicAuthorizationFailed.Code:           hopeless,
		kerr.ClusterAuthorizationFailed.Code:         hopeless,
		kerr.TransactionalIDAuthorizationFailed.Code: hopeless,
	},
	reqAddOffsets: {
		kerr.ConcurrentTransactions.Code:             retriable,
		kerr.InvalidProducerEpoch.Code:               fenced,
		kerr.ProducerFenced.Code:                     fenced,
		kerr.GroupAuthorizationFailed.Code:           hopeless,
		kerr.TransactionalIDAuthorizationFailed.Code: hopeless,
		kerr.UnsupportedVersion.Code:                 hopeless,
	},
	reqOffsets: {
		kerr.ConcurrentTransactions.Code:             retriable,
		kerr.IllegalGeneration.Code:                  stale,
		kerr.RebalanceInProgress.Code:                stale,
		kerr.StaleMemberEpoch.Code:                   stale,
		kerr.UnknownMemberID.Code:                    fenced,
		kerr.FencedInstanceID.Code:                   fenced,
		kerr.FencedMemberEpoch.Code:                  fenced,
		kerr.InvalidProducerEpoch.Code:               fenced,
		kerr.ProducerFenced.Code:                     fenced,
		kerr.OffsetMetadataTooLarge.Code:             hopeless,
		kerr.InvalidCommitOffsetSize.Code:            hopeless,
		kerr.InvalidGroupID.Code:                     hopeless,
		kerr.GroupAuthorizationFailed.Code:           hopeless,
		kerr.TopicAuthorizationFailed.Code:           hopeless,
		kerr.TransactionalIDAuthorizationFailed.Code: hopeless,
		kerr.UnsupportedVersion.Code:                 definite, // of a coordinator; see transactionVersion.prepare
		kerr.UnsupportedForMessageFormat.Code:        hopeless,
	},
	reqEnd: {
		kerr.InvalidTxnState.Code:                    definite,
		kerr.InvalidProducerIDMapping.Code:           definite,
		kerr.TransactionAbortable.Code:               definite,
		kerr.OperationNotAttempted.Code:              definite,
		kerr.InvalidProducerEpoch.Code:               fenced,
		kerr.ProducerFenced.Code:                     fenced,
		kerr.TransactionalIDAuthorizationFailed.Code: hopeless,
		kerr.UnsupportedVersion.Code:                 definite, // of a coordinator; see transactionVersion.prepare
	},
}

// classify says what err means as the answer to r; an err without a broker's code is that of a request which has no
// answer. The broker's retriable codes stand for requests that the client already sent again without success.
func classify(r request, err error) verdict {
	ke, answered := errors.AsType[*kerr.Error](err)
	if answered {
		if v, ok := verdicts[r][ke.Code]; ok {
			return v
		}
	}
	switch r {
	case reqInit:
		return retriable // nothing can be lost by asking again, and without a producer nothing goes on
	case reqProduce:
		if unanswered(err) || answered && ke.Retriable {
			return late
		}
	case reqAddOffsets, reqOffsets:
		if answered && ke.Retriable {
			return retriable
		}
	case reqEnd:
		// A coordinator that fails while it writes its decision answers with a retriable code, though the decision may
		// stand. So a code has to be known to mean no.
		return doubtful
	}
	return definite
}

// unanswered reports whether err stands for a request that was given up for want of time.
func unanswered(err error) bool {
	return errors.Is(err, errNoAnswer) || errors.Is(err, kgo.ErrRecordTimeout) || errors.Is(err, kgo.ErrRecordRetries) ||
		errors.Is(err, context.DeadlineExceeded)
}

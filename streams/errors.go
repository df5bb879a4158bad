package streams

import (
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kerr"
)

// ErrRunTwice reports that [App.Run] was called a second time. An App lives once: make another one with [New].
var ErrRunTwice = errors.New("an App runs once: make another one with New")

// ErrNotRunning reports that the application ended before it was ready. What [App.Run] returned says why.
var ErrNotRunning = errors.New("the application has ended")

// ErrUnreachable reports that no broker answered when the application started. Check Config.Brokers, the network, and
// that TLS and SASL are what the brokers expect; then start it again.
var ErrUnreachable = errors.New("no broker answers")

// ErrNoStart reports that a partition has no committed offset, or that the records there are gone, and that its topic is
// declared with [topology.NoStart]. Set the offsets of the consumer group, or declare where to start.
var ErrNoStart = errors.New("no offset to start from")

// ErrRecreated reports that a topic was deleted and created again while the application read it: offsets of the old one
// mean nothing in the new. Stop the application, reset it, and start it again.
var ErrRecreated = errors.New("the topic was deleted and created again")

// ErrBatchTooLarge reports that a batch of records is larger than Config.MaxBatchBytes once it is decompressed. Raise that, or
// leave the batch out: stop the application, and set the group's offset behind it.
var ErrBatchTooLarge = errors.New("a batch of records is larger than MaxBatchBytes when it is decompressed")

// ErrTimestamp reports that a record was to be written whose timestamp lies after April 2262, which the client cannot write.
// Most often it is one in microseconds: have the input topic's Timestamp extractor convert it, or Config.MostAhead and a
// policy leave such records out.
var ErrTimestamp = errors.New("a timestamp lies after the year 2262")

// ErrShutdown reports that the application did not stop within Config.ShutdownTimeout: what was not committed by then is
// processed again after the next start, nothing is lost.
var ErrShutdown = errors.New("not stopped in time")

// ErrApplicationStopped reports that another instance met an error after which none of them is to go on, and asked all to
// stop: see its log.
var ErrApplicationStopped = errors.New("another instance has stopped the whole application")

// ErrNotHere reports that another instance has the partition that a query is about: [App.Owner] says which one.
var ErrNotHere = errors.New("another instance has it")

// ErrNotReady reports that the state that a query is about is not ready: the group rebalances, or the state is restored.
// Try again a little later.
var ErrNotReady = errors.New("not ready: it is being restored, or moved to another instance")

// ErrNoStore reports a query of a store that the topology does not have, or that an operator keeps for itself.
var ErrNoStore = errors.New("the topology has no store of that name that can be queried")

// ErrOldBroker reports that the brokers lack something that the application needs. Upgrade them, or choose the guarantee or
// group protocol that they know.
var ErrOldBroker = errors.New("the brokers are too old")

// brokerRemedies say what to do about answers of brokers after which the same request is of no use.
var brokerRemedies = map[int16]string{
	kerr.TopicAuthorizationFailed.Code:           "grant the application's principal what it does on the topic: docs/security.md lists it",
	kerr.GroupAuthorizationFailed.Code:           "grant the application's principal read access to the group, which is named as the application id",
	kerr.TransactionalIDAuthorizationFailed.Code: "grant the application's principal write and describe access to transactional ids that begin with the application id",
	kerr.ClusterAuthorizationFailed.Code:         "grant the application's principal idempotent write access to the cluster",
	kerr.UnknownTopicOrPartition.Code:            "the topic does not exist any more: create it, and start again",
	kerr.UnknownTopicID.Code:                     "the topic does not exist any more: create it, and start again",
	kerr.MessageTooLarge.Code: "the topic takes less than when the application started: raise its max.message.bytes, or start again, so that the operator's " +
		"policy decides about such records",
	kerr.RecordListTooLarge.Code:     "raise the topic's segment.bytes",
	kerr.InvalidTimestamp.Code:       "the topic refuses the record's timestamp: see its message.timestamp.before.max.ms and message.timestamp.after.max.ms",
	kerr.PolicyViolation.Code:        "a policy of the brokers refuses it: ask who runs them",
	kerr.InvalidRecord.Code:          "the broker refuses the record: a compacted topic takes none without a key",
	kerr.OffsetMetadataTooLarge.Code: "raise the brokers' offset.metadata.max.bytes to 4096, their default",
	kerr.UnsupportedVersion.Code:     "upgrade the brokers",
}

// withRemedy adds to the error of a broker what to do about it.
func withRemedy(err error) error {
	if remedy := brokerRemedies[codeOf(err)]; remedy != "" {
		return fmt.Errorf("%w: %s", err, remedy)
	}
	return err
}

// missingOutput says that an output topic does not exist.
func missingOutput(topic string) error {
	return fmt.Errorf("write to topic %q: it does not exist; create it: Eddyline creates internal topics only", topic)
}

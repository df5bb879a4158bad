package streams

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/eddyline/eddyline/topology"
)

// topicKeeper sees to it that the topics of an application are there before it joins its group. Several instances may do
// so at the same time.
type topicKeeper struct {
	client *kgo.Client
	// replication is the replication factor of internal topics that are created; 0 and -1: the broker's default.
	replication int
	// strict leaves the creation of internal topics to an administrator: missing ones are an error.
	strict bool
	// patience is how long input topics are waited for until somebody creates them, and settling how long created ones
	// until the brokers know them, which takes busy brokers some time.
	patience, settling time.Duration
	logger             *slog.Logger
}

const topicPoll = 100 * time.Millisecond

// plan lays a graph over the topics that there are. Missing input topics are waited for; after that the error is a
// [topology.MissingTopicsError].
func (k *topicKeeper) plan(ctx context.Context, g *topology.Graph, o topology.PlanOptions) (*topology.Plan, error) {
	deadline, warned := time.Now().Add(k.patience), false
	for {
		counts, err := k.sources(ctx, g)
		if err != nil {
			return nil, err
		}
		plan, err := g.Plan(counts, o)
		missing, ok := errors.AsType[*topology.MissingTopicsError](err)
		if !ok || !time.Now().Before(deadline) {
			return plan, err
		}
		if !warned {
			warned = true
			k.logger.Warn("waiting for input topics to be created", "topics", missing.Topics, "at most", k.patience)
		}
		if err := pause(ctx, topicPoll); err != nil {
			return nil, errors.Join(missing, err)
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// sources returns the partition counts of what a graph reads; of all topics if it reads a pattern.
func (k *topicKeeper) sources(ctx context.Context, g *topology.Graph) (map[string]int, error) {
	var names []string
	pattern := false
	for _, s := range g.Subtopologies() {
		for _, t := range s.Sources {
			pattern = pattern || t.Pattern != nil
			if t.Pattern == nil && !t.Internal {
				names = append(names, t.Name)
			}
		}
	}
	if pattern {
		names = nil
	} else if len(names) == 0 {
		return nil, nil
	}
	return k.counts(ctx, names)
}

// counts returns the partition counts of those of the topics that exist; nil: of all.
func (k *topicKeeper) counts(ctx context.Context, names []string) (map[string]int, error) {
	req := kmsg.NewPtrMetadataRequest() // not through the administration client, which may answer from memory
	if names != nil {
		req.Topics = []kmsg.MetadataRequestTopic{}
	}
	for _, name := range names {
		topic := kmsg.NewMetadataRequestTopic()
		topic.Topic = kmsg.StringPtr(name)
		req.Topics = append(req.Topics, topic)
	}
	resp, err := req.RequestWith(ctx, k.client)
	if err != nil {
		return nil, fmt.Errorf("ask which topics exist: %w", err)
	}
	counts := map[string]int{}
	var faults []error
	for _, t := range resp.Topics {
		if t.Topic == nil {
			continue
		}
		switch err := kerr.ErrorForCode(t.ErrorCode); {
		case err == nil:
			counts[*t.Topic] = len(t.Partitions)
		case errors.Is(err, kerr.TopicAuthorizationFailed) && names != nil:
			faults = append(faults, fmt.Errorf("describe topic %q: %w; grant the application access to it", *t.Topic, err))
		case errors.Is(err, kerr.InvalidTopicException):
			faults = append(faults, fmt.Errorf("describe topic %q: %w; choose a legal name", *t.Topic, err))
		}
	}
	return counts, errors.Join(faults...)
}

// ensure creates the internal topics that are missing, and checks those that are there: partition counts have to be
// equal; other configuration is left as it was found, and differences are logged. The error joins all faults.
func (k *topicKeeper) ensure(ctx context.Context, topics []topology.InternalTopic) error {
	if len(topics) == 0 {
		return nil
	}
	var found []topology.InternalTopic // that were there before
	first := true
	for deadline := time.Now().Add(k.settling); ; first = false {
		missing, err := k.check(ctx, topics)
		if err != nil {
			return err
		}
		if first {
			found = slices.DeleteFunc(slices.Clone(topics), func(t topology.InternalTopic) bool {
				return slices.ContainsFunc(missing, func(m topology.InternalTopic) bool { return m.Name == t.Name })
			})
		}
		if len(missing) == 0 {
			return k.compare(ctx, found)
		}
		if k.strict {
			return fmt.Errorf("internal topics are missing, and are not to be created by the application; create them:\n%s", recipe(missing))
		}
		again, err := k.create(ctx, missing)
		switch {
		case err != nil:
			return err
		case !time.Now().Before(deadline):
			return errors.Join(fmt.Errorf("internal topics were created and are not known to the brokers within %v:\n%s",
				k.settling, recipe(missing)), again)
		}
		if err := pause(ctx, topicPoll); err != nil {
			return errors.Join(fmt.Errorf("create internal topics:\n%s", recipe(missing)), again, err)
		}
	}
}

// check returns the topics that are missing. Those with another number of partitions are an error.
func (k *topicKeeper) check(ctx context.Context, topics []topology.InternalTopic) (missing []topology.InternalTopic, err error) {
	var names []string
	for _, t := range topics {
		names = append(names, t.Name)
	}
	counts, err := k.counts(ctx, names)
	if err != nil {
		return nil, err
	}
	var faults []error
	for _, t := range topics {
		switch n := counts[t.Name]; {
		case n == 0:
			missing = append(missing, t)
		case n != t.Partitions:
			faults = append(faults, &countError{t, n})
		}
	}
	return missing, errors.Join(faults...)
}

// countError says why an internal topic with n partitions does not do, and what to do about it.
type countError struct {
	topic topology.InternalTopic
	n     int
}

func (e *countError) Error() string {
	what := "repartition topic"
	if e.topic.Store != "" {
		what = fmt.Sprintf("changelog of store %q", e.topic.Store)
	}
	return fmt.Sprintf("topic %q, the %s, has %d partitions, and the inputs make for %d: keys would be looked for where they are not; "+
		"if an input topic was given more partitions, reset the application, which deletes its internal topics and reads "+
		"its input again, or start it under a new application id", e.topic.Name, what, e.n, e.topic.Partitions)
}

// create asks for topics. One that another instance has created meanwhile is fine. again is why some have to be asked for
// once more; the error is of those for which that is of no use.
func (k *topicKeeper) create(ctx context.Context, topics []topology.InternalTopic) (again, err error) {
	req := kmsg.NewPtrCreateTopicsRequest()
	req.TimeoutMillis = 30_000
	for _, t := range topics {
		c := kmsg.NewCreateTopicsRequestTopic()
		c.Topic, c.NumPartitions, c.ReplicationFactor = t.Name, int32(t.Partitions), -1
		if k.replication > 0 {
			c.ReplicationFactor = int16(k.replication)
		}
		for _, name := range slices.Sorted(maps.Keys(t.Config)) {
			config := kmsg.NewCreateTopicsRequestTopicConfig()
			config.Name, config.Value = name, kmsg.StringPtr(t.Config[name])
			c.Configs = append(c.Configs, config)
		}
		req.Topics = append(req.Topics, c)
	}
	resp, err := req.RequestWith(ctx, k.client)
	if err != nil {
		return nil, fmt.Errorf("create internal topics:\n%s\n%w", recipe(topics), err)
	}
	var later, faults []error
	for _, t := range resp.Topics {
		switch err := kerr.ErrorForCode(t.ErrorCode); {
		case err == nil:
			k.logger.Info("created an internal topic", "topic", t.Topic)
		case errors.Is(err, kerr.TopicAlreadyExists):
		case kerr.IsRetriable(err), errors.Is(err, kerr.ThrottlingQuotaExceeded):
			later = append(later, fmt.Errorf("create topic %q: %w", t.Topic, err))
		default:
			faults = append(faults, refusedTopic(t, err))
		}
	}
	return errors.Join(later...), errors.Join(faults...)
}

// refusedTopic says what to do if the brokers do not create a topic.
func refusedTopic(t kmsg.CreateTopicsResponseTopic, err error) error {
	why := ""
	if t.ErrorMessage != nil {
		why = " (" + *t.ErrorMessage + ")"
	}
	remedy := "create it by hand"
	switch {
	case errors.Is(err, kerr.InvalidReplicationFactor):
		remedy = "set Config.ReplicationFactor to at most the number of brokers"
	case errors.Is(err, kerr.InvalidConfig):
		remedy = "correct Config.TopicConfig, or the configuration of the store's changelog"
	case errors.Is(err, kerr.TopicAuthorizationFailed), errors.Is(err, kerr.ClusterAuthorizationFailed):
		remedy = "grant the application the right to create topics that start with its application id, or create it by hand"
	}
	return fmt.Errorf("create topic %q: %w%s; %s", t.Topic, err, why, remedy)
}

// compare logs where the configuration of topics differs from what they would be created with.
func (k *topicKeeper) compare(ctx context.Context, topics []topology.InternalTopic) error {
	if len(topics) == 0 {
		return nil
	}
	want := map[string]map[string]string{}
	for _, t := range topics {
		want[t.Name] = t.Config
	}
	resources, err := kadm.NewClient(k.client).DescribeTopicConfigs(ctx, slices.Sorted(maps.Keys(want))...)
	if err != nil {
		k.logger.Info("the configuration of internal topics could not be compared", "error", err)
		return ctx.Err()
	}
	for _, r := range resources {
		if r.Err != nil {
			k.logger.Info("the configuration of an internal topic could not be compared", "topic", r.Name, "error", r.Err)
			continue
		}
		for _, c := range r.Configs {
			if value, ok := want[r.Name][c.Key]; ok && !sameConfig(c.Key, value, c.MaybeValue()) {
				k.logger.Warn("an internal topic is configured in another way than Eddyline would; it is left as it is",
					"topic", r.Name, "config", c.Key, "value", c.MaybeValue(), "Eddyline's", value)
			}
		}
	}
	return nil
}

// sameConfig compares values; of lists the order does not matter.
func sameConfig(key, a, b string) bool {
	if key != "cleanup.policy" {
		return a == b
	}
	sorted := func(s string) string {
		parts := strings.Split(strings.ReplaceAll(s, " ", ""), ",")
		slices.Sort(parts)
		return strings.Join(parts, ",")
	}
	return sorted(a) == sorted(b)
}

// recipe lists topics with what they are to be created with, one a line.
func recipe(topics []topology.InternalTopic) string {
	var lines []string
	for _, t := range topics {
		line := fmt.Sprintf("  %s: %d partitions", t.Name, t.Partitions)
		for _, name := range slices.Sorted(maps.Keys(t.Config)) {
			line += fmt.Sprintf(", %s=%s", name, t.Config[name])
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "\n")
}

package streams

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/topology"
)

// topicTest is an application id and a keeper of its topics.
type topicTest struct {
	*testing.T
	app    string
	keeper *topicKeeper
	admin  *kadm.Client
	log    *bytes.Buffer
	kafka  bool // not the embedded broker, which checks no configuration
}

func onTopicBrokers(t *testing.T, test func(k *topicTest)) {
	t.Run("embedded", func(t *testing.T) {
		cluster, err := kfake.NewCluster(kfake.NumBrokers(1))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(cluster.Close)
		test(newTopicTest(t, cluster.ListenAddrs()[0], false))
	})
	if address := os.Getenv("EDDYLINE_BROKERS"); address != "" {
		t.Run("kafka", func(t *testing.T) { test(newTopicTest(t, address, true)) })
	}
}

func newTopicTest(t *testing.T, address string, kafka bool) *topicTest {
	client, err := kgo.NewClient(kgo.SeedBrokers(address), kgo.MetadataMinAge(50*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	k := &topicTest{T: t, app: "app-" + uuid.NewString()[:8], admin: kadm.NewClient(client), log: new(bytes.Buffer), kafka: kafka}
	k.keeper = &topicKeeper{client: client, patience: 10 * time.Second, settling: 10 * time.Second, logger: slog.New(slog.NewTextHandler(k.log, nil))}
	return k
}

func (k *topicTest) create(name string, partitions int32, config map[string]*string) {
	k.Helper()
	r, err := k.admin.CreateTopics(k.Context(), partitions, 1, config, name)
	if err := errors.Join(err, r.Error()); err != nil {
		k.Fatal(err)
	}
}

// graph counts what a topic has by another key.
func (k *topicTest) graph() *topology.Graph {
	b := topology.New()
	b.Stream(topology.NewTopic(k.app+"-in", serde.String, serde.String)).GroupBy(func(v string) string { return v }).Count().As("n")
	g, err := b.Build()
	if err != nil {
		k.Fatal(err)
	}
	return g
}

func (k *topicTest) plan() *topology.Plan {
	k.Helper()
	p, err := k.keeper.plan(k.Context(), k.graph(), topology.PlanOptions{Application: k.app})
	if err != nil {
		k.Fatal(err)
	}
	return p
}

func (k *topicTest) says(err error, want ...string) {
	k.Helper()
	if err == nil {
		k.Fatal("no error")
	}
	for _, w := range want {
		if !strings.Contains(err.Error(), w) {
			k.Errorf("error %q does not say %q", err, w)
		}
	}
}

// Internal topics are created with what they need, by several instances at a time, and once only.
func TestTopicsCreated(t *testing.T) {
	t.Parallel()
	onTopicBrokers(t, func(k *topicTest) {
		k.create(k.app+"-in", 3, nil)
		p := k.plan()
		var wait sync.WaitGroup
		errs := make([]error, 5)
		for i := range errs {
			keeper := *k.keeper
			keeper.logger = slog.New(slog.DiscardHandler)
			wait.Go(func() { errs[i] = keeper.ensure(k.Context(), p.Internal) })
		}
		wait.Wait()
		if err := errors.Join(errs...); err != nil {
			k.Fatal(err)
		}
		k.log.Reset()
		if err := k.keeper.ensure(k.Context(), p.Internal); err != nil {
			k.Fatal(err)
		}
		if k.log.Len() > 0 {
			k.Errorf("a second time is not silent: %s", k.log)
		}
		for _, topic := range p.Internal {
			details, err := k.admin.ListTopics(k.Context(), topic.Name)
			if err != nil || len(details[topic.Name].Partitions) != 3 {
				k.Errorf("%s: %v, %v, want 3 partitions", topic.Name, details, err)
			}
			configs, err := k.admin.DescribeTopicConfigs(k.Context(), topic.Name)
			if err != nil {
				k.Fatal(err)
			}
			for _, c := range configs[0].Configs {
				if want, ok := topic.Config[c.Key]; ok && c.MaybeValue() != want {
					k.Errorf("%s: %s is %s, want %s", topic.Name, c.Key, c.MaybeValue(), want)
				}
			}
		}
	})
}

// What is there has to have the right number of partitions; its configuration is left as it is, and the difference logged.
func TestTopicsFound(t *testing.T) {
	t.Parallel()
	onTopicBrokers(t, func(k *topicTest) {
		k.create(k.app+"-in", 3, nil)
		p := k.plan()
		policy := "delete"
		k.create(k.app+"-n-changelog", 3, map[string]*string{"cleanup.policy": &policy})
		k.create(k.app+"-n-repartition", 2, nil)
		k.says(k.keeper.ensure(k.Context(), p.Internal), k.app+"-n-repartition", "has 2 partitions", "make for 3", "reset")

		if _, err := k.admin.DeleteTopics(k.Context(), k.app+"-n-repartition"); err != nil {
			k.Fatal(err)
		}
		for gone := false; !gone; { // the broker deletes in the background
			counts, err := k.keeper.counts(k.Context(), []string{k.app + "-n-repartition"})
			if err != nil {
				k.Fatal(err)
			}
			gone = len(counts) == 0
		}
		if err := k.keeper.ensure(k.Context(), p.Internal); err != nil {
			k.Fatal(err)
		}
		if log := k.log.String(); !strings.Contains(log, "config=cleanup.policy value=delete Eddyline's=compact") &&
			!strings.Contains(log, `config=cleanup.policy value=delete "Eddyline's"=compact`) {
			k.Errorf("the difference is not logged: %s", log)
		}
	})
}

// Where the application may create nothing, it says what is missing.
func TestTopicsStrict(t *testing.T) {
	t.Parallel()
	onTopicBrokers(t, func(k *topicTest) {
		k.create(k.app+"-in", 3, nil)
		p := k.plan()
		k.keeper.strict = true
		k.says(k.keeper.ensure(k.Context(), p.Internal), k.app+"-n-repartition: 3 partitions", k.app+"-n-changelog: 3 partitions",
			"cleanup.policy=compact", "create them")
		k.keeper.strict = false
		if err := k.keeper.ensure(k.Context(), p.Internal); err != nil {
			k.Fatal(err)
		}
		k.keeper.strict = true
		if err := k.keeper.ensure(k.Context(), p.Internal); err != nil {
			k.Error(err)
		}
	})
}

// Input topics are waited for, not for ever.
func TestTopicsAwaited(t *testing.T) {
	t.Parallel()
	onTopicBrokers(t, func(k *topicTest) {
		k.keeper.patience = 200 * time.Millisecond
		_, err := k.keeper.plan(k.Context(), k.graph(), topology.PlanOptions{Application: k.app})
		k.says(err, k.app+"-in", "create")
		if _, missing := errors.AsType[*topology.MissingTopicsError](err); !missing {
			k.Errorf("error %v", err)
		}

		waits := make(chan struct{}, 1)
		k.keeper.patience = 10 * time.Second
		k.keeper.logger = slog.New(&noticing{slog.DiscardHandler, "waiting for input topics", waits})
		planned := make(chan error, 1)
		go func() {
			_, err := k.keeper.plan(k.Context(), k.graph(), topology.PlanOptions{Application: k.app})
			planned <- err
		}()
		<-waits
		k.create(k.app+"-in", 1, nil)
		if err := <-planned; err != nil {
			k.Error(err)
		}

		ctx, cancel := context.WithCancel(k.Context())
		cancel()
		if _, err := k.keeper.plan(ctx, k.graph(), topology.PlanOptions{Application: k.app}); err == nil {
			k.Error("a canceled context is not noticed")
		}
	})
}

// What the brokers refuse is an error that says what to do.
func TestTopicsRefused(t *testing.T) {
	t.Parallel()
	onTopicBrokers(t, func(k *topicTest) {
		k.create(k.app+"-in", 3, nil)
		p := k.plan()
		k.keeper.replication = 3
		k.says(k.keeper.ensure(k.Context(), p.Internal), k.app+"-n-changelog", "INVALID_REPLICATION_FACTOR", "Config.ReplicationFactor")
		if !k.kafka {
			return
		}
		k.keeper.replication = 0
		p, err := k.keeper.plan(k.Context(), k.graph(), topology.PlanOptions{
			Application: k.app, TopicConfig: map[string]string{"cleanup.policies": "delete"},
		})
		if err != nil {
			k.Fatal(err)
		}
		k.says(k.keeper.ensure(k.Context(), p.Internal), "cleanup.policies", "Config.TopicConfig")
	})
}

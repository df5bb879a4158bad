package rabbitmq_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/eddyline/eddyline/connect"
	"github.com/eddyline/eddyline/connect/rabbitmq"
	"github.com/eddyline/eddyline/connect/routing"
	"github.com/eddyline/eddyline/serde"
)

// TestMain runs a bridge where a test asks for a process that it can kill.
func TestMain(m *testing.M) {
	if queue := os.Getenv("BRIDGE_QUEUE"); queue != "" {
		s := rabbitmq.Source{
			Broker: rabbitmq.Broker{URL: os.Getenv("EDDYLINE_RABBITMQ")}, Queue: queue, Topic: "out", Prefetch: prefetch,
			// Small requests, one at a time: being killed, it has records that were not sent.
			Client: []kgo.Opt{
				kgo.SeedBrokers(os.Getenv("BRIDGE_BROKERS")), kgo.ProducerBatchMaxBytes(1024), kgo.MaxProduceRequestsInflightPerBroker(1),
			},
		}
		if err := s.Run(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// address is that of the RabbitMQ that EDDYLINE_RABBITMQ names (.ci/rabbitmq.sh starts one).
func address(t *testing.T) string {
	t.Helper()
	a := os.Getenv("EDDYLINE_RABBITMQ")
	if a == "" {
		t.Skip("EDDYLINE_RABBITMQ is not set: .ci/rabbitmq.sh start prints it")
	}
	return a
}

// restart ends the broker by stop or crash, and starts it again.
func restart(t *testing.T, how string) {
	t.Helper()
	u, err := url.Parse(address(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, what := range []string{how, "start"} {
		cmd := exec.Command("../../.ci/rabbitmq.sh", what)
		cmd.Env = append(os.Environ(), "RABBITMQ_PORT="+u.Port())
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("rabbitmq.sh %s: %v\n%s", what, err, out)
		}
	}
}

// channel opens a connection of the test's own, and makes sure that queues and exchanges are new.
func channel(t *testing.T, queues, exchanges []string) *amqp.Channel {
	t.Helper()
	conn, err := amqp.Dial(address(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	ch, err := conn.Channel()
	if err != nil {
		t.Fatal(err)
	}
	for _, q := range queues {
		if _, err := ch.QueueDelete(q, false, false, false); err != nil {
			t.Fatal(err)
		}
	}
	for _, e := range exchanges {
		if err := ch.ExchangeDelete(e, false, false); err != nil {
			t.Fatal(err)
		}
	}
	return ch
}

// publish publishes messages, and waits until the broker has them.
func publish(t *testing.T, ch *amqp.Channel, exchange string, key func(i int) string, n int, message func(i int) amqp.Publishing) {
	t.Helper()
	if err := ch.Confirm(false); err != nil {
		t.Fatal(err)
	}
	var last *amqp.DeferredConfirmation
	for i := range n {
		m := message(i)
		m.DeliveryMode = amqp.Persistent
		c, err := ch.PublishWithDeferredConfirm(exchange, key(i), false, false, m)
		if err != nil {
			t.Fatal(err)
		}
		if i%500 == 499 || i == n-1 {
			if !c.Wait() {
				t.Fatal("a message was not confirmed")
			}
		}
		last = c
	}
	if last != nil && !last.Wait() {
		t.Fatal("a message was not confirmed")
	}
}

// kafka starts a cluster with topics of a number of partitions.
func kafka(t *testing.T, partitions int32, topics ...string) []string {
	t.Helper()
	return cluster(t, partitions, topics...).ListenAddrs()
}

func cluster(t *testing.T, partitions int32, topics ...string) *kfake.Cluster {
	t.Helper()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(partitions, topics...),
		kfake.BrokerConfigs(map[string]string{"group.initial.rebalance.delay.ms": "0", "max.message.bytes": "10000"}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	return cluster
}

func consumer(t *testing.T, brokers []string, topics ...string) *kgo.Client {
	t.Helper()
	c, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.ConsumeTopics(topics...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

const prefetch = 100

func headersOf(r *kgo.Record) map[string]string {
	h := map[string]string{}
	for _, x := range r.Headers {
		h[x.Key] = string(x.Value)
	}
	return h
}

// A queue is bridged to a topic while the broker stops and starts, dies and starts, and the bridge is killed and started
// again. Nothing is lost. A message is there twice only if the bridge was killed, or if the broker was and its queue is a
// classic one, which forgets acknowledgements then.
func TestSourceRestarts(t *testing.T) {
	t.Run("classic", func(t *testing.T) { sourceRestarts(t, "classic") })
	t.Run("quorum", func(t *testing.T) {
		if d := sourceRestarts(t, "quorum"); d["broker killed"] > prefetch {
			t.Errorf("%d messages are there twice after the broker was killed", d["broker killed"])
		}
	})
}

// pace has a cluster take records only when seen was called for those before, so that a bridge has all under way that it
// may, whenever a fault comes.
func pace(t *testing.T, c *kfake.Cluster) (seen func(n int)) {
	var mu sync.Mutex
	var ahead int
	moved := sync.NewCond(&mu)
	over := false
	t.Cleanup(func() { // before the cluster is closed, which waits
		mu.Lock()
		defer mu.Unlock()
		over = true
		moved.Broadcast()
	})
	c.ControlKey(int16(kmsg.Produce), func(req kmsg.Request) (kmsg.Response, error, bool) {
		n := 0
		for _, topic := range req.(*kmsg.ProduceRequest).Topics {
			for _, p := range topic.Partitions {
				var batch kmsg.RecordBatch
				if err := batch.ReadFrom(p.Records); err != nil {
					t.Error(err)
				}
				n += int(batch.NumRecords)
			}
		}
		c.SleepControl(func() {
			mu.Lock()
			defer mu.Unlock()
			for ahead > 0 && !over {
				moved.Wait()
			}
			ahead += n
		})
		return nil, nil, false
	})
	return func(n int) {
		mu.Lock()
		defer mu.Unlock()
		ahead -= n
		moved.Broadcast()
	}
}

// sourceRestarts returns how many messages are there twice, by what happened before.
func sourceRestarts(t *testing.T, kind string) (doubles map[string]int) {
	const n = 6000
	queue := "test-restarts-" + kind
	ch := channel(t, []string{queue}, nil)
	if _, err := ch.QueueDeclare(queue, true, false, false, false, amqp.Table{"x-queue-type": kind}); err != nil {
		t.Fatal(err)
	}
	publish(t, ch, "", func(int) string { return queue }, n, func(i int) amqp.Publishing {
		return amqp.Publishing{MessageId: fmt.Sprint("id-", i), Body: fmt.Append(nil, i)}
	})
	out := cluster(t, 3, "out")
	brokers := out.ListenAddrs()
	seen := pace(t, out)
	process := func() *exec.Cmd {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "BRIDGE_QUEUE="+queue, "BRIDGE_BROKERS="+strings.Join(brokers, ","))
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	bridge := process()
	defer func() {
		bridge.Process.Kill()
		bridge.Wait()
	}()
	faults := []struct {
		at    int // records
		what  string
		fault func()
	}{
		{n / 5, "broker stopped", func() { restart(t, "stop") }},
		{2 * n / 5, "bridge killed", func() {
			bridge.Process.Kill()
			bridge.Wait()
			bridge = process()
		}},
		{3 * n / 5, "broker killed", func() { restart(t, "crash") }},
	}
	c := consumer(t, brokers, "out")
	times, records := map[string]int{}, 0
	doubles = map[string]int{}
	phase := "start"
	for len(times) < n {
		fetches := c.PollFetches(t.Context())
		if err := fetches.Err(); err != nil {
			t.Fatal(err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			id := headersOf(r)[rabbitmq.HeaderMessageID]
			records++
			seen(1)
			if times[id]++; times[id] > 1 {
				doubles[phase]++
			}
		})
		if len(faults) > 0 && records >= faults[0].at {
			phase = faults[0].what
			faults[0].fault()
			faults = faults[1:]
		}
	}
	t.Logf("%d messages, doubles by what happened before: %v", n, doubles)
	if len(faults) > 0 {
		t.Errorf("all was over before: %s", faults[0].what)
	}
	if d := doubles["broker stopped"] + doubles["start"]; d > 0 {
		t.Errorf("%d messages are there twice, and nobody was killed", d)
	}
	if doubles["bridge killed"] > prefetch {
		t.Errorf("%d messages are there twice after the bridge was killed, more than were under way", doubles["bridge killed"])
	}
	// What is left in the queue would come again.
	ch = channel(t, nil, nil)
	for {
		q, err := ch.QueueDeclarePassive(queue, true, false, false, false, nil)
		if err != nil {
			t.Fatal(err)
		}
		if q.Messages == 0 {
			return doubles
		}
	}
}

// What Record or Kafka refuses goes to the dead letter exchange, or ends the bridge and stays in the queue. The rest goes on.
func TestSourceRefusals(t *testing.T) {
	const queue, dead = "test-refusals", "test-refusals-dead"
	ch := channel(t, []string{queue, dead}, nil)
	brokers := kafka(t, 1, "out")
	source := rabbitmq.Source{
		Broker: rabbitmq.Broker{URL: address(t), Declare: rabbitmq.Declarations{
			Queues: []rabbitmq.Queue{{Name: queue, DeadLetterKey: dead}, {Name: dead}},
		}},
		Queue: queue, Topic: "out", Reject: true, Client: []kgo.Opt{kgo.SeedBrokers(brokers...), kgo.ProducerBatchMaxBytes(5000)},
		Record: func(d amqp.Delivery) (connect.Record, error) {
			if string(d.Body) == "bad" {
				return connect.Record{}, errors.New("not understood")
			}
			return rabbitmq.RecordOf(d)
		},
	}
	ctx, cancel := context.WithCancel(t.Context())
	finished := make(chan error, 1)
	go func() { finished <- source.Run(ctx) }()
	wait(t, func() bool { // until it is declared
		probe := channel(t, nil, nil)
		_, err := probe.QueueDeclarePassive(dead, true, false, false, false, nil)
		return err == nil
	})
	bodies := []string{"one", "bad", strings.Repeat("large", 10_000), "two"}
	publish(t, ch, "", func(int) string { return queue }, len(bodies), func(i int) amqp.Publishing {
		return amqp.Publishing{Body: []byte(bodies[i])}
	})
	c := consumer(t, brokers, "out")
	var got []string
	for len(got) < 2 {
		c.PollFetches(t.Context()).EachRecord(func(r *kgo.Record) { got = append(got, string(r.Value)) })
	}
	if want := []string{"one", "two"}; !slices.Equal(got, want) {
		t.Errorf("the topic has %q, want %q", got, want)
	}
	if got := receive(t, ch, dead, 2); string(got[0].Body)+string(got[1].Body) != bodies[1]+bodies[2] && string(got[1].Body)+string(got[0].Body) != bodies[1]+bodies[2] {
		t.Errorf("dead letters are %.20q and %.20q", got[0].Body, got[1].Body)
	}
	cancel()
	if err := <-finished; err != nil {
		t.Error(err)
	}

	source.Reject = false
	publish(t, ch, "", func(int) string { return queue }, 1, func(int) amqp.Publishing { return amqp.Publishing{MessageId: "seven", Body: []byte("bad")} })
	if err := source.Run(t.Context()); err == nil || !strings.Contains(err.Error(), `id "seven"`) || !strings.Contains(err.Error(), "not understood") {
		t.Errorf("the bridge ended with %v", err)
	}
	if got := receive(t, ch, queue, 1); got[0].MessageId != "seven" {
		t.Errorf("%q is in the queue", got[0].MessageId)
	}
}

// receive takes n messages from a queue.
func receive(t *testing.T, ch *amqp.Channel, queue string, n int) []amqp.Delivery {
	t.Helper()
	const tag = "receive"
	deliveries, err := ch.ConsumeWithContext(t.Context(), queue, tag, true, false, false, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	var all []amqp.Delivery
	for d := range deliveries {
		if all = append(all, d); len(all) == n {
			if err := ch.Cancel(tag, false); err != nil { // or it would take what comes later
				t.Fatal(err)
			}
			return all
		}
	}
	t.Fatalf("the queue ended after %d messages", len(all))
	return nil
}

// wait waits for a condition.
func wait(t *testing.T, holds func() bool) {
	t.Helper()
	for tick := time.NewTicker(50 * time.Millisecond); !holds(); {
		select {
		case <-tick.C:
		case <-t.Context().Done():
			t.Fatal("it does not come to hold")
		}
	}
}

// Refusals are errors, and do not let anybody wait.
func TestRefused(t *testing.T) {
	brokers := kafka(t, 1, "out")
	channel(t, []string{"test-missing", "test-other"}, nil)
	wrong, err := url.Parse(address(t))
	if err != nil {
		t.Fatal(err)
	}
	wrong.User = url.UserPassword("guest", "wrong")
	for _, x := range []struct {
		broker rabbitmq.Broker
		queue  string
		want   string
	}{
		{rabbitmq.Broker{URL: address(t)}, "test-missing", "NOT_FOUND"},
		{rabbitmq.Broker{URL: wrong.String()}, "q", "username or password"},
		{rabbitmq.Broker{URL: address(t) + "nowhere"}, "q", "vhost"},
		{rabbitmq.Broker{URL: "http://x"}, "q", "no address of RabbitMQ"},
		{rabbitmq.Broker{URL: "amqp://u:s3cret%@h"}, "q", "no address of RabbitMQ"},
		{rabbitmq.Broker{URL: address(t)}, "", "needs a Queue"},
		{rabbitmq.Broker{URL: address(t), Declare: rabbitmq.Declarations{
			Queues: []rabbitmq.Queue{{Name: "test-other"}, {Name: "test-other", MaxPriority: 3}},
		}}, "test-other", "x-max-priority"},
	} {
		s := rabbitmq.Source{Broker: x.broker, Queue: x.queue, Topic: "out", Client: []kgo.Opt{kgo.SeedBrokers(brokers...)}}
		if err := s.Run(t.Context()); err == nil || !strings.Contains(err.Error(), x.want) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("queue %q: %v, want %q in it", x.queue, err, x.want)
		}
	}
}

// sinkTo runs a sink over topic "in" until the function that it returns is called.
func sinkTo(t *testing.T, brokers []string, s *rabbitmq.Sink) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	finished := make(chan error, 1)
	go func() {
		finished <- connect.Run(ctx, connect.SinkConfig{Group: "sink", Topics: []string{"in"}, Client: []kgo.Opt{kgo.SeedBrokers(brokers...), kgo.FetchMaxBytes(20_000)}}, s)
	}()
	return sync.OnceValue(func() error {
		cancel()
		return errors.Join(<-finished, s.Close())
	})
}

func produce(t *testing.T, brokers []string, records ...*kgo.Record) {
	t.Helper()
	p, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.DefaultProduceTopic("in"))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := p.ProduceSync(t.Context(), records...).FirstErr(); err != nil {
		t.Fatal(err)
	}
}

// A topic is published while the sink is stopped and started, and the broker stops and starts, dies and starts. Nothing is
// lost, the last of each key is the last, and stopping the sink makes no doubles.
func TestSinkRestarts(t *testing.T) {
	const keys, some, queue, exchange = 5, 2000, "test-sink", "test-sink-exchange"
	channel(t, []string{queue}, []string{exchange})
	brokers := kafka(t, 3, "in")
	sink := func() *rabbitmq.Sink {
		return &rabbitmq.Sink{
			Broker: rabbitmq.Broker{URL: address(t), Declare: rabbitmq.Declarations{
				Exchanges: []rabbitmq.Exchange{{Name: exchange, Kind: amqp.ExchangeFanout}},
				Queues:    []rabbitmq.Queue{{Name: queue}},
				Bindings:  []rabbitmq.Binding{{Exchange: exchange, Queue: queue}},
			}},
			Exchange: exchange,
		}
	}
	arrived := func() int {
		conn, err := amqp.Dial(address(t))
		if err != nil {
			return 0
		}
		defer conn.Close()
		ch, err := conn.Channel()
		if err != nil {
			return 0
		}
		q, err := ch.QueueDeclarePassive(queue, true, false, false, false, nil)
		if err != nil {
			return 0
		}
		return q.Messages
	}
	more := func() {
		t.Helper()
		n := arrived() + some
		wait(t, func() bool { return arrived() >= n })
	}
	enough, produced := make(chan struct{}), make(chan int)
	p, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.DefaultProduceTopic("in"))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	go func() { // some thousand a second, so that faults find the sink at work
		n := 0
		for tick := time.NewTicker(5 * time.Millisecond); ; {
			select {
			case <-enough:
				produced <- n
				return
			case <-tick.C:
				var records []*kgo.Record
				for range 20 {
					records = append(records, &kgo.Record{Key: fmt.Append(nil, "k", n%keys), Value: fmt.Append(nil, n)})
					n++
				}
				if err := p.ProduceSync(t.Context(), records...).FirstErr(); err != nil {
					t.Error(err)
				}
			}
		}
	}()
	stop := sinkTo(t, brokers, sink())
	more()
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	stop = sinkTo(t, brokers, sink())
	more()
	healthy := arrived()
	restart(t, "stop")
	more()
	restart(t, "crash")
	more()
	close(enough)
	n := <-produced

	ch := channel(t, nil, nil)
	deliveries, err := ch.ConsumeWithContext(t.Context(), queue, "", true, false, false, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	times, last, doubles, early := map[string]int{}, map[string]int{}, 0, 0
	i := 0
	for d := range deliveries {
		origin, _ := d.Headers[rabbitmq.HeaderOrigin].(string)
		if times[origin]++; times[origin] > 1 {
			doubles++
			if i < healthy {
				early++
			}
		} else {
			var at int
			if _, err := fmt.Sscan(string(d.Body), &at); err != nil {
				t.Fatal(err)
			}
			if before, ok := last[d.RoutingKey]; ok && at != before+keys {
				t.Fatalf("%d comes after %d", at, before)
			}
			last[d.RoutingKey] = at
		}
		if i++; len(times) == n {
			break
		}
	}
	t.Logf("%d records, %d doubles, %d of them before the broker was restarted", n, doubles, early)
	if early > 0 {
		t.Errorf("%d messages are there twice because the sink was stopped", early)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// A message that no queue is bound for is an error, or goes where Returned puts it.
func TestReturned(t *testing.T) {
	const queue, exchange = "test-returned", "test-returned-exchange"
	ch := channel(t, []string{queue}, []string{exchange})
	brokers := kafka(t, 1, "in")
	produce(t, brokers,
		&kgo.Record{Key: []byte("bound"), Value: []byte("1")}, &kgo.Record{Key: []byte("unbound"), Value: []byte("2")},
		&kgo.Record{Key: []byte("bound"), Value: []byte("3")}, &kgo.Record{Key: []byte("last"), Value: []byte("4")})
	s := &rabbitmq.Sink{
		Broker: rabbitmq.Broker{URL: address(t), Declare: rabbitmq.Declarations{
			Exchanges: []rabbitmq.Exchange{{Name: exchange, Kind: amqp.ExchangeDirect}},
			Queues:    []rabbitmq.Queue{{Name: queue}},
			Bindings:  []rabbitmq.Binding{{Exchange: exchange, Queue: queue, Key: "bound"}, {Exchange: exchange, Queue: queue, Key: "last"}},
		}},
		Exchange: exchange,
	}
	run := func(ctx context.Context) error {
		return connect.Run(ctx, connect.SinkConfig{Group: "sink", Topics: []string{"in"}, Client: []kgo.Opt{kgo.SeedBrokers(brokers...)}}, s)
	}
	if err := run(t.Context()); err == nil || !strings.Contains(err.Error(), `in/0/1`) || !strings.Contains(err.Error(), `routing key "unbound"`) {
		t.Errorf("the sink ended with %v", err)
	}
	receive(t, ch, queue, 3) // what was published behind it; it is published again

	var returned []string
	s.Returned = func(_ context.Context, r connect.Record, why amqp.Return) error {
		returned = append(returned, fmt.Sprintf("%s %s %d %s", rabbitmq.Origin(r), r.Value, why.ReplyCode, why.ReplyText))
		return nil
	}
	ctx, cancel := context.WithCancel(t.Context())
	finished := make(chan error, 1)
	go func() { finished <- run(ctx) }()
	receive(t, ch, queue, 3)
	cancel()
	if err := errors.Join(<-finished, s.Close()); err != nil {
		t.Error(err)
	}
	if want := []string{"in/0/1 2 312 NO_ROUTE"}; !slices.Equal(returned, want) {
		t.Errorf("returned were %q, want %q", returned, want)
	}
}

// Messages outlive their time to live as dead letters, and larger priorities come first.
func TestTTLAndPriority(t *testing.T) {
	const queue, dead, ranked = "test-ttl", "test-ttl-dead", "test-priority"
	ch := channel(t, []string{queue, dead, ranked}, nil)
	brokers := kafka(t, 1, "in")
	stop := sinkTo(t, brokers, &rabbitmq.Sink{
		Broker: rabbitmq.Broker{URL: address(t), Declare: rabbitmq.Declarations{Queues: []rabbitmq.Queue{
			{Name: queue, TTL: time.Hour, DeadLetterKey: dead}, {Name: dead}, {Name: ranked, MaxPriority: 9},
		}}},
		Message: func(r connect.Record) (rabbitmq.Message, error) {
			m, err := rabbitmq.MessageOf(r)
			if m.Key == queue {
				m.Expiration = rabbitmq.Expiration(time.Millisecond)
			}
			return m, err
		},
	})
	var records []*kgo.Record
	for _, p := range []string{"1", "9", "5", "0"} {
		records = append(records, &kgo.Record{Key: []byte(ranked), Value: []byte(p), Headers: []kgo.RecordHeader{{Key: rabbitmq.HeaderPriority, Value: []byte(p)}}})
	}
	produce(t, brokers, append(records, &kgo.Record{Key: []byte(queue), Value: []byte("short")})...)
	wait(t, func() bool {
		q, err := channel(t, nil, nil).QueueDeclarePassive(dead, true, false, false, false, nil)
		return err == nil && q.Messages == 1
	})
	d := receive(t, ch, dead, 1)[0]
	death, _ := d.Headers["x-death"].([]any)
	if len(death) != 1 || death[0].(amqp.Table)["reason"] != "expired" || death[0].(amqp.Table)["queue"] != queue {
		t.Errorf("the dead letter says %v", d.Headers)
	}
	// A bridge keeps why it died.
	r, err := rabbitmq.RecordOf(d)
	if err != nil {
		t.Fatal(err)
	}
	if why, _ := r.Headers.Get("x-death"); !strings.Contains(why, `"reason":"expired"`) {
		t.Errorf("the record's header is %q", why)
	}
	var got string
	for _, d := range receive(t, ch, ranked, 4) {
		got += string(d.Body)
	}
	if got != "9510" {
		t.Errorf("priorities came as %s", got)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// All kinds of exchanges are declared, and route as package routing does.
func TestExchanges(t *testing.T) {
	patterns := []string{"", "#", "*", "a", "a.*", "*.b", "a.#", "#.b", "a.#.b", "*.#.*", "#.a.#.b.#", "a.b", "*.*.*", "#.#", "a.", ".", "a*", "*.", "#.c.*"}
	keys := []string{"", "a", "b", "a.b", "a.", ".a", ".", "..", "a.b.c", "a.x.b", "b.a", "a.a.b.b", "x.c.y", "c.", "a*", "*.b", "#"}
	var queues []string
	d := rabbitmq.Declarations{Exchanges: []rabbitmq.Exchange{
		{Name: "test-topic", Kind: amqp.ExchangeTopic}, {Name: "test-headers", Kind: amqp.ExchangeHeaders}, {Name: "test-direct", Kind: amqp.ExchangeDirect, Alternate: "test-rest"},
		{Name: "test-rest", Kind: amqp.ExchangeFanout},
	}}
	queue := func(name string) string {
		queues = append(queues, name)
		d.Queues = append(d.Queues, rabbitmq.Queue{Name: name})
		return name
	}
	var bindings []routing.Binding[string]
	for i, p := range patterns {
		q := queue(fmt.Sprint("test-topic-", i))
		bindings = append(bindings, routing.Bind(p, q))
		d.Bindings = append(d.Bindings, rabbitmq.Binding{Exchange: "test-topic", Queue: q, Key: p})
	}
	all, any := queue("test-headers-all"), queue("test-headers-any")
	d.Bindings = append(d.Bindings,
		rabbitmq.Binding{Exchange: "test-headers", Queue: all, Headers: amqp.Table{"x-match": "all", "format": "pdf", "type": nil}},
		rabbitmq.Binding{Exchange: "test-headers", Queue: any, Headers: amqp.Table{"x-match": "any", "format": "pdf", "type": "log"}},
		rabbitmq.Binding{Exchange: "test-direct", Queue: queue("test-direct-a"), Key: "a"},
		rabbitmq.Binding{Exchange: "test-rest", Queue: queue("test-rest-all")})
	ch := channel(t, queues, []string{"test-topic", "test-headers", "test-direct", "test-rest"})
	brokers := kafka(t, 1, "in")
	header := func(key, value string) serde.Header { return serde.Header{Key: key, Value: []byte(value)} }
	lists := [][]serde.Header{nil, {header("format", "pdf")}, {header("type", "log")}, {header("format", "pdf"), header("type", "report")}, {header("format", "zip")}}

	want := map[string][]string{}
	var records []*kgo.Record
	send := func(exchange, key, body string, headers []serde.Header) {
		r := &kgo.Record{Key: []byte(key), Value: []byte(body), Headers: []kgo.RecordHeader{{Key: "exchange", Value: []byte(exchange)}}}
		for _, h := range headers {
			r.Headers = append(r.Headers, kgo.RecordHeader(h))
		}
		records = append(records, r)
	}
	table := routing.NewTable(bindings...)
	for _, k := range keys {
		send("test-topic", k, k, nil)
		for _, q := range table.All(k) {
			want[q] = append(want[q], k)
		}
	}
	inAll, inAny := routing.AllHeaders(header("format", "pdf"), serde.Header{Key: "type"}), routing.AnyHeader(header("format", "pdf"), header("type", "log"))
	for i, list := range lists {
		send("test-headers", "", fmt.Sprint(i), list)
		h := serde.HeadersOf(list...)
		if inAll(h) {
			want[all] = append(want[all], fmt.Sprint(i))
		}
		if inAny(h) {
			want[any] = append(want[any], fmt.Sprint(i))
		}
	}
	send("test-direct", "a", "1", nil)
	send("test-direct", "b", "2", nil)
	want["test-direct-a"], want["test-rest-all"] = []string{"1"}, []string{"2"}
	produce(t, brokers, records...)

	var mu sync.Mutex
	var returned []string
	stop := sinkTo(t, brokers, &rabbitmq.Sink{
		Broker: rabbitmq.Broker{URL: address(t), Declare: d},
		Message: func(r connect.Record) (rabbitmq.Message, error) {
			m, err := rabbitmq.MessageOf(r)
			m.Exchange, _ = r.Headers.Get("exchange")
			return m, err
		},
		Returned: func(_ context.Context, r connect.Record, _ amqp.Return) error {
			mu.Lock()
			defer mu.Unlock()
			returned = append(returned, string(r.Value))
			return nil
		},
	})
	wait(t, func() bool { // the last one
		q, err := channel(t, nil, nil).QueueDeclarePassive("test-rest-all", true, false, false, false, nil)
		return err == nil && q.Messages == 1
	})
	if err := stop(); err != nil {
		t.Error(err)
	}
	got := map[string][]string{}
	for _, q := range queues {
		for {
			m, ok, err := ch.Get(q, true)
			if err != nil {
				t.Fatal(err)
			}
			if !ok {
				break
			}
			got[q] = append(got[q], string(m.Body))
		}
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("patterns %q: package routing and the broker differ (-routing +broker):\n%s", slices.Collect(maps.Values(map[int][]string{0: patterns})), d)
	}
	if !slices.Equal(returned, []string{"0", "4"}) { // of the headers exchange; the topic exchange has #
		t.Errorf("returned were %q", returned)
	}
}

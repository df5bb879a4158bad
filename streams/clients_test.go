package streams

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/topology"
)

// Records of the Java producer, of librdkafka and of a client in Python, compressed in each way there is, are joined, and
// every pair is found: of librdkafka's default partitioner through Repartition, of others as they lie. EDDYLINE_KAFKA is
// kafka.sh, whose jars have the Java producer; EDDYLINE_PYTHON a Python that testdata/produce.py runs with.
func TestOtherClients(t *testing.T) {
	brokers := brokersOf(t)
	kafka, python := os.Getenv("EDDYLINE_KAFKA"), os.Getenv("EDDYLINE_PYTHON")
	if kafka == "" || python == "" {
		t.Skip("EDDYLINE_KAFKA or EDDYLINE_PYTHON is not set: set them to .ci/kafka/kafka.sh and to a python that has the clients of .ci/run")
	}
	const n, partitions = 2000, 6
	stamp := fmt.Sprint("clients-", time.Now().UnixNano())
	topic := func(name string) topology.Topic[string, string] {
		return topology.NewTopic(stamp+"-"+name, serde.String, serde.String)
	}
	java, rdkafka, murmur2, py, out := topic("java"), topic("librdkafka"), topic("murmur2"), topic("python"), topic("out")
	client := dial(t, brokers)
	created, err := kadm.NewClient(client).CreateTopics(t.Context(), partitions, 1, nil, java.Name(), rdkafka.Name(), murmur2.Name(), py.Name(), out.Name())
	if err == nil {
		err = created.Error()
	}
	if err != nil {
		t.Fatal(err)
	}

	for i, compression := range []string{"gzip", "snappy", "lz4", "zstd"} {
		var text strings.Builder
		for k := i; k < n; k += 4 {
			fmt.Fprintf(&text, "key-%d\tjava-%d\n", k, k)
		}
		cmd := exec.CommandContext(t.Context(), kafka, "produce", "--topic", java.Name(), "--reader-property", "parse.key=true", "--compression-codec", compression)
		cmd.Stdin = strings.NewReader(text.String())
		if b, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("the Java producer: %v\n%s", err, b)
		}
	}
	for client, topic := range map[string]string{"librdkafka": rdkafka.Name(), "librdkafka-murmur2": murmur2.Name(), "kafka-python": py.Name()} {
		cmd := exec.CommandContext(t.Context(), python, "testdata/produce.py", client, strings.Join(brokers, ","), topic, fmt.Sprint(n))
		if b, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", client, err, b)
		}
	}

	b := topology.New()
	both := func(l, r string) string { return l + " " + r }
	b.Table(java).
		Join(b.Stream(rdkafka).Repartition(topology.Topic[string, string]{}.Rename("moved")).ToTable(), both).
		Join(b.Table(murmur2), both).
		Join(b.Table(py), both).
		ToStream().To(out)
	c := testConfig(brokers)
	c.ApplicationID = stamp
	_, stop := runApp(t, graphOf(t, b), c)
	client.AddConsumeTopics(out.Name())
	found := map[string]string{}
	for len(found) < n {
		fetches := client.PollFetches(t.Context())
		if err := fetches.Err(); err != nil {
			t.Fatal(err)
		}
		fetches.EachRecord(func(r *kgo.Record) { found[string(r.Key)] = string(r.Value) })
	}
	for i := range n {
		want := fmt.Sprintf("java-%d librdkafka-%[1]d librdkafka-murmur2-%[1]d kafka-python-%[1]d", i)
		if got := found[fmt.Sprint("key-", i)]; got != want {
			t.Errorf("key-%d was joined to %q, want %q", i, got, want)
		}
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

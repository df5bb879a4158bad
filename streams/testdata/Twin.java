import java.time.Duration;
import java.util.List;
import java.util.Properties;
import org.apache.kafka.clients.consumer.ConsumerConfig;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.common.utils.Bytes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.KeyValue;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.Topology;
import org.apache.kafka.streams.kstream.*;
import org.apache.kafka.streams.kstream.Suppressed.BufferConfig;
import org.apache.kafka.streams.processor.api.ContextualFixedKeyProcessor;
import org.apache.kafka.streams.processor.api.FixedKeyRecord;
import org.apache.kafka.streams.state.KeyValueStore;
import org.apache.kafka.streams.state.WindowStore;

/**
 * The application of twin_test.go, on Kafka Streams. It says how its state changes, as Eddyline's does, and stops cleanly when it is
 * asked to.
 *
 *   Twin APPLICATION BROKERS GUARANTEE DIRECTORY
 *   Twin APPLICATION                                 prints the topology
 */
public final class Twin {
    static final Serde<String> S = Serdes.String();
    static final Serde<Long> L = Serdes.Long();
    static final Duration size = Duration.ofSeconds(2), grace = Duration.ofSeconds(1);

    public static void main(String[] args) {
        Topology topology = topology(args[0] + "-");
        if (args.length == 1) {
            System.out.print(topology.describe());
            return;
        }
        Properties p = new Properties();
        p.put(StreamsConfig.APPLICATION_ID_CONFIG, args[0]);
        p.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, args[1]);
        p.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, args[2]);
        p.put(StreamsConfig.STATE_DIR_CONFIG, args[3]);
        p.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, 2);
        p.put(StreamsConfig.COMMIT_INTERVAL_MS_CONFIG, 100);
        p.put(StreamsConfig.STATESTORE_CACHE_MAX_BYTES_CONFIG, 0);
        p.put(ConsumerConfig.SESSION_TIMEOUT_MS_CONFIG, 6000);
        p.put(ConsumerConfig.HEARTBEAT_INTERVAL_MS_CONFIG, 500);
        KafkaStreams streams = new KafkaStreams(topology, p);
        streams.setStateListener((to, from) -> System.err.println("msg=state from=" + from + " to=" + to));
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            boolean stopped = streams.close(Duration.ofSeconds(20));
            Runtime.getRuntime().halt(stopped ? 0 : 1);
        }));
        streams.start();
    }

    static Topology topology(String prefix) {
        StreamsBuilder b = new StreamsBuilder();
        KStream<String, String> visits = b.stream(prefix + "visits", Consumed.with(S, S));
        visits.flatMapValues(v -> List.of(v.split(" "))).groupBy((k, v) -> v, Grouped.with(S, S))
            .count(Materialized.<String, Long, KeyValueStore<Bytes, byte[]>>as("words").withKeySerde(S).withValueSerde(L))
            .toStream().to(prefix + "words", Produced.with(S, L));

        KGroupedStream<String, String> byKey = visits.groupByKey(Grouped.with(S, S));
        Serde<Windowed<String>> windows = WindowedSerdes.timeWindowedSerdeFrom(String.class, size.toMillis());
        KTable<Windowed<String>, Long> counts = byKey.windowedBy(TimeWindows.ofSizeAndGrace(size, grace))
            .count(Materialized.<String, Long, WindowStore<Bytes, byte[]>>as("windows").withKeySerde(S).withValueSerde(L));
        counts.toStream().to(prefix + "windows", Produced.with(windows, L));
        counts.suppress(Suppressed.untilWindowCloses(BufferConfig.unbounded())).toStream().to(prefix + "suppressed", Produced.with(windows, L));
        byKey.windowedBy(TimeWindows.ofSizeAndGrace(size, grace)).emitStrategy(EmitStrategy.onWindowClose())
            .count(Materialized.<String, Long, WindowStore<Bytes, byte[]>>as("closed").withKeySerde(S).withValueSerde(L).withRetention(Duration.ofHours(1)))
            .toStream().to(prefix + "closed", Produced.with(windows, L));
        byKey.windowedBy(SessionWindows.ofInactivityGapAndGrace(Duration.ofMillis(300), grace)).count(Materialized.with(S, L))
            .toStream().to(prefix + "sessions", Produced.with(WindowedSerdes.sessionWindowedSerdeFrom(String.class), L));
        visits.processValues(Clock::new).to(prefix + "clock", Produced.with(S, S));

        KStream<String, String> left = b.stream(prefix + "left", Consumed.with(S, S));
        KStream<String, String> right = b.stream(prefix + "right", Consumed.with(S, S));
        KTable<String, String> rows = b.table(prefix + "rows", Consumed.with(S, S));
        left.leftJoin(right, (l, r) -> l + "+" + (r == null ? "" : r),
            JoinWindows.ofTimeDifferenceAndGrace(Duration.ofMillis(500), Duration.ofMinutes(1)), StreamJoined.with(S, S, S))
            .to(prefix + "pairs", Produced.with(S, S));
        left.join(rows, (l, row) -> l + "+" + row, Joined.with(S, S, S)).to(prefix + "enriched", Produced.with(S, S));
        rows.groupBy((k, row) -> KeyValue.pair(row.substring(0, 1), row), Grouped.with(S, S)).count(Materialized.with(S, L))
            .toStream().to(prefix + "tally", Produced.with(S, L));
        return b.build();
    }

    /** Clock adds the task's stream time to each value. */
    static final class Clock extends ContextualFixedKeyProcessor<String, String, String> {
        @Override
        public void process(FixedKeyRecord<String, String> r) {
            context().forward(r.withValue(r.value() + " " + context().currentStreamTimeMs()));
        }
    }
}

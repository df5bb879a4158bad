import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.BufferedReader;
import java.io.File;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.time.Duration;
import java.time.Instant;
import java.util.ArrayList;
import java.util.HexFormat;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.header.internals.RecordHeaders;
import org.apache.kafka.common.serialization.ByteArraySerializer;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.common.utils.Bytes;
import org.apache.kafka.common.utils.Utils;
import org.apache.kafka.streams.KeyValue;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.TestInputTopic;
import org.apache.kafka.streams.Topology;
import org.apache.kafka.streams.TopologyConfig;
import org.apache.kafka.streams.TopologyTestDriver;
import org.apache.kafka.streams.kstream.*;
import org.apache.kafka.streams.kstream.Suppressed.BufferConfig;
import org.apache.kafka.streams.processor.PunctuationType;
import org.apache.kafka.streams.processor.api.ContextualFixedKeyProcessor;
import org.apache.kafka.streams.processor.api.ContextualProcessor;
import org.apache.kafka.streams.processor.api.FixedKeyProcessorContext;
import org.apache.kafka.streams.processor.api.FixedKeyRecord;
import org.apache.kafka.streams.processor.api.ProcessorContext;
import org.apache.kafka.streams.processor.api.Record;
import org.apache.kafka.streams.state.KeyValueStore;
import org.apache.kafka.streams.state.SessionStore;
import org.apache.kafka.streams.state.Stores;
import org.apache.kafka.streams.state.WindowStore;
import org.apache.kafka.streams.test.TestRecord;

/**
 * Runs plans, one JSON text a line on standard input, under Kafka Streams' test driver, and prints for each what Kafka Streams did: the vector
 * that testkit's TestReference replays. A plan is a list of operators over streams and tables of texts, and the steps that are done
 * with them; what an operator's name means is in operator() here and in reference_plan_test.go there.
 */
public final class Reference {
    static final ObjectMapper json = new ObjectMapper();
    static final HexFormat hex = HexFormat.of();
    static final Serde<String> S = Serdes.String();

    public static void main(String[] args) throws Exception {
        PrintStream out = System.out;
        System.setOut(System.err);
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line; (line = in.readLine()) != null;) {
            ObjectNode plan = (ObjectNode) json.readTree(line);
            File state = Files.createTempDirectory("reference").toFile();
            try {
                new Reference(plan).run(state);
            } catch (Exception | AssertionError e) {
                plan.put("error", e.toString());
            } finally {
                Utils.delete(state);
            }
            out.println(json.writeValueAsString(plan));
            out.flush();
        }
    }

    final ObjectNode plan;
    final List<Object> made = new ArrayList<>(); // what each operator made: KStream, KTable, windowed KTable, GlobalKTable
    StreamsBuilder builder;

    Reference(ObjectNode plan) { this.plan = plan; }

    void run(File state) {
        Properties p = new Properties();
        p.put(StreamsConfig.STATE_DIR_CONFIG, state.getPath());
        p.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, "none:1");
        p.put(StreamsConfig.DEFAULT_KEY_SERDE_CLASS_CONFIG, Serdes.StringSerde.class);
        p.put(StreamsConfig.DEFAULT_VALUE_SERDE_CLASS_CONFIG, Serdes.StringSerde.class);
        p.put("__emit.interval.ms.kstreams.outer.join.spurious.results.fix__", 0L);
        p.put("__emit.interval.ms.kstreams.windowed.aggregation__", 0L);
        plan.get("config").properties().forEach(e -> p.put(e.getKey(), e.getValue().asText()));
        builder = new StreamsBuilder(new TopologyConfig(new StreamsConfig(p)));
        for (JsonNode op : plan.get("plan")) made.add(operator(op));
        Topology t = builder.build(p);
        plan.put("describe", t.describe().toString());
        TopologyTestDriver.explicitCommits = "explicit".equals(plan.path("commit").asText());
        TopologyTestDriver.sent = new ArrayList<>();
        try (TopologyTestDriver d = new TopologyTestDriver(t, p, Instant.ofEpochMilli(plan.get("wallClockStart").asLong()))) {
            double dropped = 0;
            for (JsonNode s : plan.get("steps")) {
                step(d, s);
                double now = d.metrics().entrySet().stream().filter(e -> e.getKey().name().equals("dropped-records-total"))
                    .mapToDouble(e -> ((Number) e.getValue().metricValue()).doubleValue()).sum();
                ObjectNode o = (ObjectNode) s;
                if (now != dropped) o.put("dropped", (long) (now - dropped));
                dropped = now;
                ArrayNode outs = o.putArray("out"), internals = o.putArray("internal");
                for (ProducerRecord<byte[], byte[]> r : TopologyTestDriver.sent) {
                    boolean internal = r.topic().endsWith("-changelog") || r.topic().endsWith("-repartition") || r.topic().endsWith("-topic");
                    record(internal ? internals.addArray() : outs.addArray(), r);
                }
                TopologyTestDriver.sent.clear();
            }
        }
    }

    static void record(ArrayNode a, ProducerRecord<byte[], byte[]> r) {
        a.add(r.topic()).add(r.key() == null ? null : hex.formatHex(r.key())).add(r.value() == null ? null : hex.formatHex(r.value())).add(r.timestamp());
        if (r.headers().toArray().length == 0) return;
        ArrayNode hs = a.addArray();
        for (Header h : r.headers()) {
            ArrayNode one = hs.addArray().add(h.key());
            if (h.value() == null) one.addNull();
            else one.addObject().put("hex", hex.formatHex(h.value()));
        }
    }

    static void step(TopologyTestDriver d, JsonNode s) {
        if (s.has("pipe")) {
            JsonNode r = s.get("pipe");
            RecordHeaders hs = new RecordHeaders();
            if (r.size() > 4) r.get(4).forEach(h -> hs.add(h.get(0).asText(), h.get(1).asText().getBytes(StandardCharsets.UTF_8)));
            TestInputTopic<byte[], byte[]> in = d.createInputTopic(r.get(0).asText(), new ByteArraySerializer(), new ByteArraySerializer());
            in.pipeInput(new TestRecord<>(bytes(r.get(1)), bytes(r.get(2)), hs, r.get(3).asLong()));
        } else if (s.has("advanceWallClock")) {
            d.advanceWallClockTime(Duration.ofMillis(s.get("advanceWallClock").asLong()));
        } else {
            d.commitNow();
        }
    }

    static byte[] bytes(JsonNode n) { return n.isNull() ? null : hex.parseHex(n.asText()); }

    // Functions that both sides have.

    static int mod(String v, int m) {
        int sum = 0;
        for (int i = 0; v != null && i < v.length(); i++) sum += v.charAt(i);
        return sum % m;
    }

    static String str(Object v) { return v == null ? "null" : v.toString(); }

    static String tail(String s) { return s.substring(Math.max(0, s.length() - 16)); }

    /** value is what functions of an operator make of a value: now and then none. */
    static String value(int n, String v) {
        if (v == null) return n % 2 == 0 ? null : "none";
        return n % 3 == 0 && mod(v, 5) == 0 ? null : tail(v + (char) ('a' + n));
    }

    static String key(int n, String v) { return v == null || n % 3 == 0 && mod(v, 7) == 0 ? null : "k" + mod(v, 3); }

    static boolean keep(int n, String v) { return mod(v, n + 2) != 0; }

    static String pair(int n, Object l, Object r) {
        String s = str(l) + "/" + str(r);
        return n % 4 == 3 && mod(s, 3) == 0 ? null : tail(s);
    }

    static String added(int n, String agg, String v) {
        return n % 4 == 3 && mod(v, 5) == 0 ? null : tail(str(agg) + "+" + str(v));
    }

    static String removed(String agg, String v) { return tail(str(agg) + "-" + str(v)); }

    // Settings of an operator.

    /** plain operators are called without a Materialized: one without a name can make another number. */
    static boolean plain(JsonNode op) { return text(op, "store") == null && !op.path("uncached").asBoolean(); }

    static String text(JsonNode op, String field) { return op.hasNonNull(field) && !op.get(field).asText().isEmpty() ? op.get(field).asText() : null; }

    static Duration ms(JsonNode op, String field) { return Duration.ofMillis(op.path(field).asLong()); }

    static Named named(JsonNode op) { return text(op, "name") == null ? NamedNone.none() : Named.as(op.get("name").asText()); }

    /** NamedNone is how the DSL itself says that there is no name. */
    static final class NamedNone {
        static Named none() { return org.apache.kafka.streams.kstream.internals.NamedInternal.empty(); }
    }

    static Grouped<String, String> grouped(JsonNode op) { return Grouped.with(text(op, "group"), S, S); }

    static Materialized<String, String, KeyValueStore<Bytes, byte[]>> rows(JsonNode op) {
        String store = text(op, "store");
        if (store == null) return Materialized.with(S, S);
        if (op.path("history").asLong() > 0) return Materialized.<String, String>as(Stores.persistentVersionedKeyValueStore(store, ms(op, "history"))).withKeySerde(S).withValueSerde(S);
        if (op.path("inMemory").asBoolean()) return Materialized.<String, String>as(Stores.inMemoryKeyValueStore(store)).withKeySerde(S).withValueSerde(S);
        Materialized<String, String, KeyValueStore<Bytes, byte[]>> m = Materialized.<String, String, KeyValueStore<Bytes, byte[]>>as(store).withKeySerde(S).withValueSerde(S);
        return op.path("uncached").asBoolean() ? m.withCachingDisabled() : m;
    }

    static Materialized<String, Long, KeyValueStore<Bytes, byte[]>> counts(JsonNode op) {
        Materialized<String, Long, KeyValueStore<Bytes, byte[]>> m =
            text(op, "store") == null ? Materialized.with(S, Serdes.Long()) : Materialized.<String, Long, KeyValueStore<Bytes, byte[]>>as(op.get("store").asText()).withKeySerde(S).withValueSerde(Serdes.Long());
        return op.path("uncached").asBoolean() ? m.withCachingDisabled() : m;
    }

    static <V> Materialized<String, V, WindowStore<Bytes, byte[]>> windows(JsonNode op, Serde<V> s) {
        Materialized<String, V, WindowStore<Bytes, byte[]>> m =
            text(op, "store") == null ? Materialized.with(S, s) : Materialized.<String, V, WindowStore<Bytes, byte[]>>as(op.get("store").asText()).withKeySerde(S).withValueSerde(s);
        return op.path("uncached").asBoolean() ? m.withCachingDisabled() : m;
    }

    static <V> Materialized<String, V, SessionStore<Bytes, byte[]>> sessions(JsonNode op, Serde<V> s) {
        Materialized<String, V, SessionStore<Bytes, byte[]>> m =
            text(op, "store") == null ? Materialized.with(S, s) : Materialized.<String, V, SessionStore<Bytes, byte[]>>as(op.get("store").asText()).withKeySerde(S).withValueSerde(s);
        return op.path("uncached").asBoolean() ? m.withCachingDisabled() : m;
    }

    static JoinWindows within(JsonNode op) {
        return JoinWindows.ofTimeDifferenceAndGrace(Duration.ZERO, ms(op, "grace")).after(ms(op, "after")).before(ms(op, "before"));
    }

    static StreamJoined<String, String, String> joined(JsonNode op) {
        StreamJoined<String, String, String> j = StreamJoined.with(S, S, S);
        return text(op, "name") == null ? j : j.withName(op.get("name").asText());
    }

    @SuppressWarnings("unchecked")
    KStream<String, String> stream(JsonNode op, int i) { return (KStream<String, String>) made.get(op.get("in").get(i).asInt()); }

    @SuppressWarnings("unchecked")
    KTable<String, String> table(JsonNode op, int i) { return (KTable<String, String>) made.get(op.get("in").get(i).asInt()); }

    @SuppressWarnings("unchecked")
    KTable<Windowed<String>, String> windowed(JsonNode op) { return (KTable<Windowed<String>, String>) made.get(op.get("in").get(0).asInt()); }

    @SuppressWarnings("unchecked")
    Object operator(JsonNode op) {
        int n = op.path("n").asInt();
        boolean kept = text(op, "store") != null, plain = plain(op);
        switch (op.get("op").asText()) {
        case "stream": return builder.stream(op.get("topic").asText(), Consumed.with(S, S));
        case "table": return kept ? builder.table(op.get("topic").asText(), Consumed.with(S, S), rows(op)) : builder.table(op.get("topic").asText(), Consumed.with(S, S));
        case "global": return builder.globalTable(op.get("topic").asText(), Consumed.with(S, S));

        case "filter": return stream(op, 0).filter((k, v) -> keep(n, v), named(op));
        case "mapValues": return stream(op, 0).mapValues(v -> value(n, v), named(op));
        case "flatMapValues": return stream(op, 0).flatMapValues(v -> v == null ? List.of() : List.of(v, tail(v + n)), named(op));
        case "selectKey": return stream(op, 0).selectKey((k, v) -> key(n, v), named(op));
        case "map": return stream(op, 0).map((k, v) -> KeyValue.pair(key(n, v), value(n, v)), named(op));
        case "flatMap": return stream(op, 0).flatMap((k, v) -> v == null ? List.of() : List.of(KeyValue.pair(k, v), KeyValue.pair(key(n, v), tail(v + n))), named(op));
        case "merge": return stream(op, 0).merge(stream(op, 1), named(op));
        case "repartition": return stream(op, 0).repartition(text(op, "name") == null ? Repartitioned.with(S, S) : Repartitioned.<String, String>as(op.get("name").asText()).withKeySerde(S).withValueSerde(S));
        case "split": {
            Map<String, KStream<String, String>> all = (text(op, "name") == null ? stream(op, 0).split() : stream(op, 0).split(Named.as(op.get("name").asText())))
                .branch((k, v) -> mod(v, 3) == 0).branch((k, v) -> mod(v, 3) == 1).defaultBranch();
            return all;
        }
        case "branch": {
            Map<String, KStream<String, String>> all = (Map<String, KStream<String, String>>) made.get(op.get("in").get(0).asInt());
            return all.entrySet().stream().filter(e -> e.getKey().endsWith(String.valueOf(n))).findFirst().orElseThrow().getValue();
        }
        case "toTable": return kept ? stream(op, 0).toTable(named(op), rows(op)) : stream(op, 0).toTable(named(op), Materialized.with(S, S));
        case "process": {
            String store = op.get("store").asText();
            if (!op.path("shared").asBoolean()) builder.addStateStore(Stores.keyValueStoreBuilder(Stores.persistentKeyValueStore(store), S, S));
            return text(op, "name") == null ? stream(op, 0).process(() -> new Counter(store, n), store) : stream(op, 0).process(() -> new Counter(store, n), named(op), store);
        }
        case "processValues": {
            String store = op.get("store").asText();
            if (!op.path("shared").asBoolean()) builder.addStateStore(Stores.keyValueStoreBuilder(Stores.persistentKeyValueStore(store), S, S));
            return text(op, "name") == null ? stream(op, 0).processValues(() -> new ValueCounter(store, n), store) : stream(op, 0).processValues(() -> new ValueCounter(store, n), named(op), store);
        }
        case "to": stream(op, 0).to(op.get("topic").asText(), Produced.with(S, S)); return null;
        case "windowedTo": {
            Serde<Windowed<String>> keys = op.path("session").asBoolean() ? WindowedSerdes.sessionWindowedSerdeFrom(String.class) : WindowedSerdes.timeWindowedSerdeFrom(String.class, op.path("size").asLong());
            windowed(op).toStream().to(op.get("topic").asText(), Produced.with(keys, S));
            return null;
        }

        case "count": case "reduce": case "aggregate": {
            KGroupedStream<String, String> g = n % 2 == 0 ? stream(op, 0).groupByKey(grouped(op)) : stream(op, 0).groupBy((k, v) -> key(n, v), grouped(op));
            if (op.has("window")) return window(op, g, n);
            switch (op.get("op").asText()) {
            case "count": return (plain ? g.count(named(op)) : g.count(named(op), counts(op))).mapValues(String::valueOf);
            case "reduce": return plain && text(op, "name") == null ? g.reduce((a, v) -> added(n, a, v)) : g.reduce((a, v) -> added(n, a, v), named(op), rows(op));
            default: return plain && text(op, "name") == null ? g.aggregate(() -> n % 5 == 0 ? null : "i", (k, v, a) -> added(n, a, v)) : g.aggregate(() -> n % 5 == 0 ? null : "i", (k, v, a) -> added(n, a, v), named(op), rows(op));
            }
        }
        case "cogroup": {
            CogroupedKStream<String, String> c = stream(op, 0).groupByKey(Grouped.with(S, S)).<String>cogroup((k, v, a) -> added(n, a, v)).cogroup(stream(op, 1).groupByKey(Grouped.with(S, S)), (k, v, a) -> added(n + 1, a, v));
            if (!op.has("window")) return plain ? c.aggregate(() -> "i", named(op)) : c.aggregate(() -> "i", named(op), rows(op));
            JsonNode w = op.get("window");
            Merger<String, String> merge = (k, a, b) -> tail(str(a) + "&" + str(b));
            switch (w.get("kind").asText()) {
            case "session": return c.windowedBy(SessionWindows.ofInactivityGapAndGrace(ms(w, "size"), ms(w, "grace"))).aggregate(() -> "i", merge, named(op), sessions(op, S));
            case "sliding": return c.windowedBy(SlidingWindows.ofTimeDifferenceAndGrace(ms(w, "size"), ms(w, "grace"))).aggregate(() -> "i", named(op), windows(op, S));
            default: return c.windowedBy(TimeWindows.ofSizeAndGrace(ms(w, "size"), ms(w, "grace")).advanceBy(ms(w, "advance"))).aggregate(() -> "i", named(op), windows(op, S));
            }
        }

        case "join": return stream(op, 0).join(stream(op, 1), (l, r) -> pair(n, l, r), within(op), joined(op));
        case "leftJoin": return stream(op, 0).leftJoin(stream(op, 1), (l, r) -> pair(n, l, r), within(op), joined(op));
        case "outerJoin": return stream(op, 0).outerJoin(stream(op, 1), (l, r) -> pair(n, l, r), within(op), joined(op));
        case "joinTable": return stream(op, 0).join(table(op, 1), (l, r) -> pair(n, l, r), tableJoin(op));
        case "leftJoinTable": return stream(op, 0).leftJoin(table(op, 1), (l, r) -> pair(n, l, r), tableJoin(op));
        case "joinGlobal": return stream(op, 0).join((GlobalKTable<String, String>) made.get(op.get("in").get(1).asInt()), (k, v) -> key(n, v), (l, r) -> pair(n, l, r), named(op));
        case "leftJoinGlobal": return stream(op, 0).leftJoin((GlobalKTable<String, String>) made.get(op.get("in").get(1).asInt()), (k, v) -> key(n, v), (l, r) -> pair(n, l, r), named(op));

        case "tableFilter": return kept ? table(op, 0).filter((k, v) -> keep(n, v), named(op), rows(op)) : table(op, 0).filter((k, v) -> keep(n, v), named(op));
        case "tableMapValues": return kept ? table(op, 0).mapValues(v -> value(n, v), named(op), rows(op)) : table(op, 0).mapValues(v -> value(n, v), named(op));
        case "transformValues": return kept
            ? table(op, 0).transformValues(() -> new Transformer(n), rows(op), named(op))
            : table(op, 0).transformValues(() -> new Transformer(n), named(op));
        case "tableCount": return (plain ? regroup(op, n).count(named(op)) : regroup(op, n).count(named(op), counts(op))).mapValues(String::valueOf);
        case "tableReduce": return regroup(op, n).reduce((a, v) -> tail(str(a) + "+" + str(v)), (a, v) -> removed(a, v), named(op), rows(op));
        case "tableAggregate": return regroup(op, n).aggregate(() -> n % 5 == 0 ? null : "i", (k, v, a) -> added(n, a, v), (k, v, a) -> removed(a, v), named(op), rows(op));
        case "tableJoin": return kept ? table(op, 0).join(table(op, 1), (l, r) -> pair(n, l, r), named(op), rows(op)) : table(op, 0).join(table(op, 1), (l, r) -> pair(n, l, r), named(op));
        case "tableLeftJoin": return kept ? table(op, 0).leftJoin(table(op, 1), (l, r) -> pair(n, l, r), named(op), rows(op)) : table(op, 0).leftJoin(table(op, 1), (l, r) -> pair(n, l, r), named(op));
        case "tableOuterJoin": return kept ? table(op, 0).outerJoin(table(op, 1), (l, r) -> pair(n, l, r), named(op), rows(op)) : table(op, 0).outerJoin(table(op, 1), (l, r) -> pair(n, l, r), named(op));
        case "joinForeign": return plain
            ? table(op, 0).join(table(op, 1), v -> key(n, v), (l, r) -> pair(n, l, r), TableJoined.<String, String>as(text(op, "name")))
            : table(op, 0).join(table(op, 1), v -> key(n, v), (l, r) -> pair(n, l, r), TableJoined.<String, String>as(text(op, "name")), rows(op));
        case "leftJoinForeign": return plain
            ? table(op, 0).leftJoin(table(op, 1), v -> key(n, v), (l, r) -> pair(n, l, r), TableJoined.<String, String>as(text(op, "name")))
            : table(op, 0).leftJoin(table(op, 1), v -> key(n, v), (l, r) -> pair(n, l, r), TableJoined.<String, String>as(text(op, "name")), rows(op));
        case "suppress": return table(op, 0).suppress(suppressed(op));
        case "toStream": return table(op, 0).toStream(named(op));

        case "windowedFilter": return windowed(op).filter((k, v) -> keep(n, v), named(op));
        case "windowedMapValues": return windowed(op).mapValues(v -> value(n, v), named(op));
        case "windowedSuppress": return windowed(op).suppress(suppressed(op));
        case "suppressUntilClose": return windowed(op).suppress(Suppressed.untilWindowCloses(BufferConfig.unbounded()));
        case "windowedCount": return windowed(op).groupBy((k, v) -> KeyValue.pair("w" + k.window().start() % 4, v), grouped(op)).count(named(op), counts(op)).mapValues(String::valueOf);
        case "windowedToStream": return windowed(op).toStream(named(op)).selectKey((k, v) -> k.key() + "@" + k.window().start() + "-" + k.window().end());
        default: throw new IllegalArgumentException("operator " + op);
        }
    }

    KGroupedTable<String, String> regroup(JsonNode op, int n) { return table(op, 0).groupBy((k, v) -> KeyValue.pair(key(n, v), value(n + 1, v)), grouped(op)); }

    static Joined<String, String, String> tableJoin(JsonNode op) {
        Joined<String, String, String> j = Joined.with(S, S, S);
        if (text(op, "name") != null) j = j.withName(op.get("name").asText());
        return op.path("grace").asLong() > 0 ? j.withGracePeriod(ms(op, "grace")) : j;
    }

    static <K> Suppressed<K> suppressed(JsonNode op) {
        Suppressed<K> s = Suppressed.untilTimeLimit(ms(op, "size"), op.path("most").asInt() > 0 ? BufferConfig.maxRecords(op.get("most").asInt()).emitEarlyWhenFull() : BufferConfig.unbounded());
        return text(op, "name") == null ? s : s.withName(op.get("name").asText());
    }

    static KTable<Windowed<String>, String> window(JsonNode op, KGroupedStream<String, String> g, int n) {
        JsonNode w = op.get("window");
        EmitStrategy emit = w.path("onClose").asBoolean() ? EmitStrategy.onWindowClose() : EmitStrategy.onWindowUpdate();
        String kind = op.get("op").asText();
        if (w.get("kind").asText().equals("session")) {
            SessionWindowedKStream<String, String> s = g.windowedBy(SessionWindows.ofInactivityGapAndGrace(ms(w, "size"), ms(w, "grace"))).emitStrategy(emit);
            switch (kind) {
            case "count": return (plain(op) ? s.count(named(op)) : s.count(named(op), sessions(op, Serdes.Long()))).mapValues(String::valueOf);
            case "reduce": return plain(op) ? s.reduce((a, v) -> added(n, a, v), named(op)) : s.reduce((a, v) -> added(n, a, v), named(op), sessions(op, S));
            default: return plain(op)
                ? s.aggregate(() -> "i", (k, v, a) -> added(n, a, v), (k, a, b) -> tail(str(a) + "&" + str(b)), named(op))
                : s.aggregate(() -> "i", (k, v, a) -> added(n, a, v), (k, a, b) -> tail(str(a) + "&" + str(b)), named(op), sessions(op, S));
            }
        }
        TimeWindowedKStream<String, String> t;
        switch (w.get("kind").asText()) {
        case "sliding": t = g.windowedBy(SlidingWindows.ofTimeDifferenceAndGrace(ms(w, "size"), ms(w, "grace"))); break;
        case "unlimited": t = g.windowedBy(UnlimitedWindows.of().startOn(Instant.ofEpochMilli(w.get("size").asLong()))); break;
        default: t = g.windowedBy(TimeWindows.ofSizeAndGrace(ms(w, "size"), ms(w, "grace")).advanceBy(ms(w, "advance")));
        }
        if (w.path("onClose").asBoolean()) t = t.emitStrategy(emit);
        switch (kind) {
        case "count": return (plain(op) ? t.count(named(op)) : t.count(named(op), windows(op, Serdes.Long()))).mapValues(String::valueOf);
        case "reduce": return plain(op) ? t.reduce((a, v) -> added(n, a, v), named(op)) : t.reduce((a, v) -> added(n, a, v), named(op), windows(op, S));
        default: return plain(op) ? t.aggregate(() -> "i", (k, v, a) -> added(n, a, v), named(op)) : t.aggregate(() -> "i", (k, v, a) -> added(n, a, v), named(op), windows(op, S));
        }
    }

    /** Counter keeps the last value of a key, forwards both, and at every tick of stream time what it has. */
    static final class Counter extends ContextualProcessor<String, String, String, String> {
        final String name;
        final int n;
        KeyValueStore<String, String> store;

        Counter(String name, int n) { this.name = name; this.n = n; }

        @Override
        public void init(ProcessorContext<String, String> c) {
            super.init(c);
            store = c.getStateStore(name);
            if (n % 2 == 0) c.schedule(Duration.ofSeconds(7), PunctuationType.STREAM_TIME, at -> {
                try (var all = store.all()) {
                    while (all.hasNext()) {
                        var e = all.next();
                        c.forward(new Record<>(e.key, tail("tick" + e.value), at));
                    }
                }
            });
            if (n % 3 == 0) c.schedule(Duration.ofSeconds(5), PunctuationType.WALL_CLOCK_TIME, at -> c.forward(new Record<>("clock", "c" + at % 100000, at)));
        }

        @Override
        public void process(Record<String, String> r) {
            if (r.key() == null) return;
            String before = store.get(r.key());
            if (r.value() == null) store.delete(r.key());
            else store.put(r.key(), r.value());
            context().forward(r.withValue(pair(0, before, r.value())));
            if (mod(r.value(), 3) == 1) context().forward(r.withKey(key(n, r.value())).withTimestamp(r.timestamp() + 1000));
        }
    }

    static final class ValueCounter extends ContextualFixedKeyProcessor<String, String, String> {
        final String name;
        final int n;
        KeyValueStore<String, String> store;

        ValueCounter(String name, int n) { this.name = name; this.n = n; }

        @Override
        public void init(FixedKeyProcessorContext<String, String> c) {
            super.init(c);
            store = c.getStateStore(name);
        }

        @Override
        public void process(FixedKeyRecord<String, String> r) {
            if (r.key() == null) return;
            String before = store.get(r.key());
            if (r.value() == null) store.delete(r.key());
            else store.put(r.key(), tail(before + r.value()));
            context().forward(r.withValue(pair(n, before, r.value())));
        }
    }

    static final class Transformer implements ValueTransformerWithKey<String, String, String> {
        final int n;

        Transformer(int n) { this.n = n; }

        @Override public void init(org.apache.kafka.streams.processor.ProcessorContext c) { }

        @Override public String transform(String key, String v) { return value(n, v); }

        @Override public void close() { }
    }
}

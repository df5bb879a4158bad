import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.util.HexFormat;
import org.apache.kafka.common.compress.Compression;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.header.internals.RecordHeader;
import org.apache.kafka.common.record.TimestampType;
import org.apache.kafka.common.record.internal.CompressionType;
import org.apache.kafka.common.record.internal.MemoryRecords;
import org.apache.kafka.common.record.internal.MemoryRecordsBuilder;
import org.apache.kafka.common.record.internal.Record;

/**
 * Writes batches of records in each format that a topic can hold, as Kafka's own classes write them, and what these read
 * back: streams/testdata/batches.txt.
 *
 *   libs=$(.ci/kafka/kafka.sh classpath); java -cp "$libs" .ci/reference/Batches.java > streams/testdata/batches.txt
 */
public class Batches {
    static final long MICROS = 1_764_131_000_000_000L, NANOS = MICROS * 1000;

    public static void main(String[] args) {
        System.out.println("# Of Kafka 4.3.1: .ci/reference/Batches.java. A batch: name, bytes. A record: offset, timestamp, key, value, headers.");
        for (CompressionType type : CompressionType.values()) {
            for (byte magic = 0; magic <= 2; magic++) {
                if (type == CompressionType.ZSTD && magic < 2 || type == CompressionType.LZ4 && magic == 0) continue;
                long[] times = magic == 0 ? new long[] {-1, -1, -1} : new long[] {1_000, 3_000, 2_000};
                write("v" + magic + "-" + type.name, magic, type, TimestampType.CREATE_TIME, times);
            }
        }
        write("v1-log-append-time", (byte) 1, CompressionType.GZIP, TimestampType.LOG_APPEND_TIME, 5, 6, 7);
        write("v2-log-append-time", (byte) 2, CompressionType.GZIP, TimestampType.LOG_APPEND_TIME, 5, 6, 7);
        write("v1-no-timestamp", (byte) 1, CompressionType.NONE, TimestampType.CREATE_TIME, -1, -1, -1);
        write("v2-no-timestamp", (byte) 2, CompressionType.NONE, TimestampType.CREATE_TIME, -1, -1, -1);
        write("v2-microseconds", (byte) 2, CompressionType.NONE, TimestampType.CREATE_TIME, MICROS, MICROS + 1, 0);
        write("v2-nanoseconds", (byte) 2, CompressionType.NONE, TimestampType.CREATE_TIME, NANOS, Long.MAX_VALUE, NANOS);
    }

    static void write(String name, byte magic, CompressionType type, TimestampType ts, long... times) {
        ByteBuffer buffer = ByteBuffer.allocate(4096);
        MemoryRecordsBuilder b = MemoryRecords.builder(buffer, magic, Compression.of(type).build(), ts, 100L, 9_000L);
        byte[][][] records = {{"a".getBytes(), "one".getBytes()}, {null, new byte[0]}, {new byte[0], null}};
        for (int i = 0; i < records.length; i++) {
            Header[] headers = magic == 2 && i == 0 ? new Header[] {new RecordHeader("h", "x".getBytes()), new RecordHeader("null", null)} : new Header[0];
            b.appendWithOffset(100 + i, times[i], records[i][0], records[i][1], headers);
        }
        MemoryRecords built = b.build();
        ByteBuffer bytes = built.buffer().duplicate();
        byte[] all = new byte[bytes.remaining()];
        bytes.get(all);
        System.out.println(name + " " + HexFormat.of().formatHex(all));
        for (Record r : built.records()) {
            StringBuilder line = new StringBuilder("  " + r.offset() + " " + r.timestamp() + " " + text(r.key()) + " " + text(r.value()));
            for (Header h : r.headers()) line.append(" ").append(h.key()).append("=").append(h.value() == null ? "null" : "'" + new String(h.value()) + "'");
            System.out.println(line);
        }
    }

    static String text(ByteBuffer b) {
        return b == null ? "null" : "'" + StandardCharsets.UTF_8.decode(b.duplicate()) + "'";
    }
}

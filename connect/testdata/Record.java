import java.math.BigDecimal;
import java.util.*;
import org.apache.kafka.connect.data.Date;
import org.apache.kafka.connect.data.Decimal;
import org.apache.kafka.connect.data.Schema;
import org.apache.kafka.connect.data.SchemaBuilder;
import org.apache.kafka.connect.data.Struct;
import org.apache.kafka.connect.data.Time;
import org.apache.kafka.connect.data.Timestamp;
import org.apache.kafka.connect.json.JsonConverter;

/**
 * Writes what Kafka Connect's JsonConverter makes of a few values, one a line: name, tab, JSON.
 *
 *     java -cp 'libs/*' Record.java > json.txt      (libs: org.apache.kafka:connect-json:4.3.1 and what it needs)
 */
public class Record {
    static void print(String name, boolean schemas, String decimals, Schema schema, Object value) {
        JsonConverter c = new JsonConverter();
        c.configure(Map.of("schemas.enable", schemas, "decimal.format", decimals), false);
        System.out.println(name + "\t" + new String(c.fromConnectData("t", schema, value), java.nio.charset.StandardCharsets.UTF_8));
    }

    public static void main(String[] args) {
        Schema line = SchemaBuilder.struct().name("Line").field("sku", Schema.STRING_SCHEMA).field("n", Schema.INT32_SCHEMA).build();
        Schema order = SchemaBuilder.struct().name("shop.Order").version(2).doc("an order")
            .field("id", Schema.INT64_SCHEMA).field("price", Decimal.schema(2)).field("debt", Decimal.schema(3))
            .field("day", Date.SCHEMA).field("at", Time.SCHEMA).field("made", Timestamp.SCHEMA)
            .field("note", Schema.OPTIONAL_STRING_SCHEMA).field("blob", Schema.BYTES_SCHEMA).field("ok", Schema.BOOLEAN_SCHEMA)
            .field("weight", Schema.FLOAT64_SCHEMA)
            .field("lines", SchemaBuilder.array(line).build())
            .field("tags", SchemaBuilder.map(Schema.STRING_SCHEMA, Schema.INT16_SCHEMA).build()).build();
        Struct value = new Struct(order).put("id", 7L).put("price", new BigDecimal("12.34")).put("debt", new BigDecimal("-128.000"))
            .put("day", new java.util.Date(19675L * 86400000)).put("at", new java.util.Date(3723004)).put("made", new java.util.Date(1700000000123L))
            .put("note", null).put("blob", new byte[] {1, 2, (byte) 0xff}).put("ok", true).put("weight", 1.5)
            .put("lines", List.of(new Struct(line).put("sku", "a").put("n", 2))).put("tags", Map.of("x", (short) 3));
        print("with schema", true, "BASE64", order, value);
        print("without schema", false, "BASE64", order, value);
        print("numeric", true, "NUMERIC", order, value);
        print("text", true, "BASE64", Schema.STRING_SCHEMA, "hello");
        print("bare text", false, "BASE64", Schema.STRING_SCHEMA, "hello");
        print("null", true, "BASE64", Schema.OPTIONAL_INT32_SCHEMA, null);
        for (String n : new String[] {"0", "127", "128", "-1", "-128", "-129", "32768", "-32768", "123456789012345678901234567890"})
            print("decimal " + n, true, "BASE64", Decimal.schema(0), new BigDecimal(n));
    }
}

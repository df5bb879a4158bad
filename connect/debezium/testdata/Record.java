import io.debezium.engine.ChangeEvent;
import io.debezium.engine.DebeziumEngine;
import io.debezium.engine.format.Json;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.Statement;
import java.util.Properties;
import java.util.concurrent.Executors;

/**
 * Changes rows in a PostgreSQL with logical decoding on, and writes what Debezium makes of it, one record a line: topic, tab, key, tab,
 * value; null for none.
 *
 *     java -cp 'libs/*' Record.java 127.0.0.1 5432 > postgres.txt
 *     (libs: io.debezium:debezium-embedded and debezium-connector-postgres 3.6.1.Final, and what they need)
 */
public class Record {
    public static void main(String[] args) throws Exception {
        Connection db = DriverManager.getConnection("jdbc:postgresql://" + args[0] + ":" + args[1] + "/postgres?user=test");
        Statement s = db.createStatement();
        s.execute("create table customers (id int primary key, name text, since date, credit numeric(9,2), seen timestamp)");
        s.execute("create table addresses (id int primary key, customer_id int, city text)");
        s.execute("alter table customers replica identity full");
        s.execute("insert into customers values (1, 'Ada', '2024-02-29', 12.34, '2024-03-01 10:00:00.123456'), (2, 'Bob', null, -0.05, null)");
        s.execute("insert into addresses values (10, 1, 'Ulm')");

        Properties p = new Properties();
        String[][] settings = {
            {"name", "engine"}, {"connector.class", "io.debezium.connector.postgresql.PostgresConnector"}, {"topic.prefix", "pg"},
            {"database.hostname", args[0]}, {"database.port", args[1]}, {"database.user", "test"}, {"database.password", ""},
            {"database.dbname", "postgres"}, {"plugin.name", "pgoutput"}, {"table.include.list", "public.customers,public.addresses"},
            {"offset.storage", "org.apache.kafka.connect.storage.MemoryOffsetBackingStore"}, {"provide.transaction.metadata", "true"},
            {"truncate.handling.mode", "include"}, {"skipped.operations", "none"}, {"poll.interval.ms", "50"}, {"offset.flush.interval.ms", "100"},
        };
        for (String[] x : settings) p.setProperty(x[0], x[1]);
        int[] customers = {0};
        Object done = new Object();
        DebeziumEngine<ChangeEvent<String, String>> engine = DebeziumEngine.create(Json.class).using(p).notifying(e -> {
            System.out.println(e.destination() + "\t" + e.key() + "\t" + e.value());
            synchronized (done) {
                if (e.destination().endsWith(".customers")) customers[0]++;
                done.notifyAll();
            }
        }).build();
        Executors.newSingleThreadExecutor(r -> { Thread t = new Thread(r); t.setDaemon(true); return t; }).execute(engine);
        await(done, customers, 2);
        db.setAutoCommit(false);
        s.execute("update customers set name = 'Ada L.', credit = 99999.99 where id = 1");
        s.execute("insert into addresses values (11, 2, 'Bonn')");
        s.execute("delete from customers where id = 2");
        db.commit();
        s.execute("alter table customers add column mail text");
        s.execute("insert into customers values (3, 'Cyd', '1969-12-31', 0, '1969-12-31 23:59:59.5', 'c@x')");
        s.execute("update customers set id = 4 where id = 3");
        db.commit();
        s.execute("truncate customers");
        db.commit();
        await(done, customers, 10); // 2 read, update, delete, tombstone, create, delete, tombstone, create, truncate
        Thread.sleep(1000); // for the records of the transactions
        System.out.flush();
        Runtime.getRuntime().halt(0);
    }

    static void await(Object done, int[] n, int want) throws InterruptedException {
        synchronized (done) {
            long end = System.currentTimeMillis() + 60000;
            while (n[0] < want) {
                if (System.currentTimeMillis() > end) throw new IllegalStateException(n[0] + " of " + want + " records");
                done.wait(1000);
            }
        }
    }
}

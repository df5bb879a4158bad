import io.debezium.engine.ChangeEvent;
import io.debezium.engine.DebeziumEngine;
import io.debezium.engine.format.Json;
import java.math.BigDecimal;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.Statement;
import java.sql.Types;
import java.time.LocalDate;
import java.time.LocalDateTime;
import java.util.Map;
import java.util.Properties;
import java.util.Random;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;

/**
 * Changes the rows of a table at random, and prints each record of Debezium's: topic, tab, key, tab, value; null for none. At the
 * end it prints the rows: =, tab, and the columns.
 *
 *     java -cp 'libs/*' Changes.java postgres|mariadb HOST PORT SEED
 */
public class Changes {
    static final int LAST = 1_000_000; // the id of the row that is written last

    public static void main(String[] args) throws Exception {
        boolean postgres = args[0].equals("postgres");
        String host = args[1], port = args[2];
        Random random = new Random(Long.parseLong(args[3]));
        Connection db = postgres
            ? DriverManager.getConnection("jdbc:postgresql://" + host + ":" + port + "/postgres?user=test")
            : DriverManager.getConnection("jdbc:mariadb://" + host + ":" + port + "/shop?user=test&password=test");
        Statement s = db.createStatement();
        String time = postgres ? "timestamp" : "datetime";
        s.execute("create table customers (id int primary key, name varchar(200), since date, credit numeric(9,2), seen " + time + "(6))");
        if (postgres) s.execute("alter table customers replica identity full");
        db.setAutoCommit(false);
        for (int i = 0; i < 50; i++) change(db, random);
        db.commit();

        Properties p = new Properties();
        p.putAll(Map.of("name", "engine", "topic.prefix", "db", "database.hostname", host, "database.port", port, "database.user", "test",
            "database.password", postgres ? "" : "test", "offset.storage", "org.apache.kafka.connect.storage.MemoryOffsetBackingStore",
            "poll.interval.ms", "50", "offset.flush.interval.ms", "100", "table.include.list", (postgres ? "public" : "shop") + ".customers"));
        p.putAll(postgres
            ? Map.of("connector.class", "io.debezium.connector.postgresql.PostgresConnector", "database.dbname", "postgres", "plugin.name", "pgoutput")
            : Map.of("connector.class", "io.debezium.connector.mariadb.MariaDbConnector", "database.server.id", "77",
                "schema.history.internal", "io.debezium.relational.history.MemorySchemaHistory", "include.schema.changes", "false"));
        CountDownLatch snapshot = new CountDownLatch(1), end = new CountDownLatch(1);
        DebeziumEngine<ChangeEvent<String, String>> engine = DebeziumEngine.create(Json.class).using(p).using((success, message, error) -> {
            System.err.println(message);
            if (error != null) error.printStackTrace();
            Runtime.getRuntime().halt(1);
        }).notifying(e -> {
            System.out.println(e.destination() + "\t" + e.key() + "\t" + e.value());
            snapshot.countDown();
            if (e.key() != null && e.key().contains("\"id\":" + LAST)) end.countDown();
        }).build();
        Executors.newSingleThreadExecutor(r -> { Thread t = new Thread(r); t.setDaemon(true); return t; }).execute(engine);
        if (!snapshot.await(60, TimeUnit.SECONDS)) throw new IllegalStateException("there is no snapshot");
        for (int i = 0; i < 400; i++) {
            change(db, random);
            if (random.nextInt(20) == 0) db.rollback();
            else if (random.nextInt(3) == 0) db.commit();
            if (i == 200) {
                db.commit();
                s.execute("alter table customers add column mail varchar(200)");
                db.commit();
            }
        }
        s.execute("insert into customers (id) values (" + LAST + ")");
        db.commit();
        if (!end.await(60, TimeUnit.SECONDS)) throw new IllegalStateException("the last row does not come");
        ResultSet rows = s.executeQuery("select id, name, since, credit, seen, mail from customers order by id");
        while (rows.next()) {
            LocalDateTime seen = rows.getObject(5, LocalDateTime.class);
            System.out.println("=\t" + rows.getInt(1) + "\t" + rows.getString(2) + "\t" + rows.getObject(3, LocalDate.class) + "\t" + rows.getBigDecimal(4)
                + "\t" + (seen == null ? "null" : seen.toLocalDate() + " " + seen.toLocalTime().toNanoOfDay()) + "\t" + rows.getString(6));
        }
        System.out.flush();
        Runtime.getRuntime().halt(0);
    }

    /** One statement. Few ids, so that rows come and go. */
    static void change(Connection db, Random random) throws Exception {
        int id = random.nextInt(30);
        boolean there;
        try (ResultSet r = db.createStatement().executeQuery("select 1 from customers where id = " + id)) {
            there = r.next();
        }
        if (there && random.nextInt(4) == 0) {
            db.createStatement().execute("delete from customers where id = " + id);
            return;
        }
        if (there && random.nextInt(6) == 0) { // another key
            int to = 100 + random.nextInt(1000);
            db.createStatement().execute("delete from customers where id = " + to);
            db.createStatement().execute("update customers set id = " + to + " where id = " + id);
            return;
        }
        String sql = there ? "update customers set name = ?, since = ?, credit = ?, seen = ? where id = " + id
            : "insert into customers (name, since, credit, seen, id) values (?, ?, ?, ?, " + id + ")";
        try (PreparedStatement q = db.prepareStatement(sql)) {
            String[] names = {"Ada", "Zoë \"the\" tab\\", "", "李", "a'b"};
            q.setString(1, random.nextInt(5) == 0 ? null : names[random.nextInt(names.length)] + random.nextInt(100));
            q.setObject(2, random.nextInt(5) == 0 ? null : LocalDate.of(1950 + random.nextInt(100), 1 + random.nextInt(12), 1 + random.nextInt(28)));
            if (random.nextInt(5) == 0) q.setNull(3, Types.NUMERIC);
            else q.setBigDecimal(3, BigDecimal.valueOf(random.nextInt(2_000_000) - 1_000_000, 2));
            q.setObject(4, random.nextInt(5) == 0 ? null : LocalDateTime.of(1950 + random.nextInt(100), 1 + random.nextInt(12), 1 + random.nextInt(28),
                random.nextInt(24), random.nextInt(60), random.nextInt(60), random.nextInt(1_000_000) * 1000));
            q.execute();
        }
    }
}

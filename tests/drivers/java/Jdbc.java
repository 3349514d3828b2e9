// pgjdbc through the pooler: statements that it names after five uses, batches, cursors by fetch size, COPY,
// savepoints, timeouts that cancel.

import java.io.ByteArrayOutputStream;
import java.io.StringReader;
import java.math.BigDecimal;
import java.nio.charset.StandardCharsets;
import java.sql.*;
import java.time.OffsetDateTime;
import java.time.ZoneOffset;
import java.util.*;
import java.util.concurrent.*;
import org.postgresql.PGConnection;

public class Jdbc {
    static int checks = 0;

    interface Act {
        void run() throws Exception;
    }

    static synchronized void check(Object got, Object expected, String what) {
        checks += 1;
        if (!Objects.equals(got, expected)) {
            throw new AssertionError(what + ": got " + got + ", expected " + expected);
        }
    }

    static void checkThrows(String state, Act act, String what) throws Exception {
        checks += 1;
        try {
            act.run();
        } catch (SQLException error) {
            if (state.equals(error.getSQLState())) {
                return;
            }
            throw error;
        }
        throw new AssertionError(what + ": no " + state);
    }

    static Connection open(String... properties) throws SQLException {
        Properties all = new Properties();
        all.setProperty("user", "app");
        for (int n = 0; n < properties.length; n += 2) {
            all.setProperty(properties[n], properties[n + 1]);
        }
        String address = System.getenv("PGHOST") + ":" + System.getenv("PGPORT");
        return DriverManager.getConnection("jdbc:postgresql://" + address + "/" + System.getenv("PGDATABASE"), all);
    }

    static Object value(Connection connection, String sql, Object... parameters) throws SQLException {
        try (PreparedStatement statement = connection.prepareStatement(sql)) {
            for (int n = 0; n < parameters.length; n += 1) {
                statement.setObject(n + 1, parameters[n]);
            }
            if (!statement.execute()) {
                return null;
            }
            ResultSet rows = statement.getResultSet();
            return rows.next() ? rows.getObject(1) : null;
        }
    }

    // Another client is in a transaction, with the server that was used last: all others get the next one.
    static void busy(Connection other, Act act) throws Exception {
        other.setAutoCommit(false);
        value(other, "SELECT 1");
        act.run();
        other.commit();
        other.setAutoCommit(true);
    }

    static void namedStatements(List<Connection> connections) throws Exception {
        List<PreparedStatement> statements = new ArrayList<>();
        for (int n = 0; n < connections.size(); n += 1) {
            statements.add(connections.get(n).prepareStatement("SELECT ?::int + " + n + ", ?::text"));
        }
        for (int repeat = 0; repeat < 12; repeat += 1) {
            for (int n = 0; n < statements.size(); n += 1) {
                statements.get(n).setInt(1, repeat);
                statements.get(n).setString(2, "é");
                ResultSet rows = statements.get(n).executeQuery();
                rows.next();
                check(rows.getInt(1), repeat + n, "a statement that gets a name after five uses");
                check(rows.getString(2), "é", "its second column");
            }
        }
        PreparedStatement statement = statements.get(0);
        busy(connections.get(1), () -> check(statement.executeQuery().next(), true, "on the other server"));
        for (PreparedStatement each : statements) {
            each.close();
        }
    }

    // More statements than its cache holds: it closes the oldest.
    static void manyStatements() throws Exception {
        try (Connection connection = open("prepareThreshold", "1", "preparedStatementCacheQueries", "5")) {
            for (int repeat = 0; repeat < 3; repeat += 1) {
                for (int n = 0; n < 20; n += 1) {
                    check(value(connection, "SELECT ?::int + " + n, repeat), repeat + n, "a statement after its eviction");
                }
            }
        }
    }

    static void transactions(Connection first, Connection second) throws Exception {
        value(first, "CREATE TABLE driver_jdbc (n int PRIMARY KEY, word text)");
        first.setAutoCommit(false);
        first.setTransactionIsolation(Connection.TRANSACTION_READ_COMMITTED);
        try (PreparedStatement insert = first.prepareStatement("INSERT INTO driver_jdbc VALUES (?, ?)")) {
            for (int n = 1; n <= 1000; n += 1) {
                insert.setInt(1, n);
                insert.setString(2, "word " + n);
                insert.addBatch();
            }
            check(insert.executeBatch().length, 1000, "a batch");
        }
        check(value(second, "SELECT count(*) FROM driver_jdbc"), 0L, "what another client sees of it");
        Savepoint savepoint = first.setSavepoint();
        checkThrows("23505", () -> value(first, "INSERT INTO driver_jdbc VALUES (?, ?)", 1, "again"), "an error");
        checkThrows("25P02", () -> value(first, "SELECT 1"), "behind the error");
        first.rollback(savepoint);
        try (PreparedStatement read = first.prepareStatement("SELECT n FROM driver_jdbc ORDER BY n")) {
            read.setFetchSize(77);
            int rows = 0;
            for (ResultSet all = read.executeQuery(); all.next(); ) {
                rows += all.getInt(1) == rows + 1 ? 1 : 0;
            }
            check(rows, 1000, "a result that is fetched in pieces");
        }
        first.commit();
        first.setAutoCommit(true);
        check(value(second, "SELECT count(*) FROM driver_jdbc"), 1000L, "after commit");
        try (PreparedStatement insert = second.prepareStatement("INSERT INTO driver_jdbc VALUES (?, 'x')")) {
            for (int n : new int[] {2000, 1, 2001}) {
                insert.setInt(1, n);
                insert.addBatch();
            }
            checkThrows("23505", insert::executeBatch, "an error in a batch");
        }
        check(value(second, "SELECT count(*) FROM driver_jdbc"), 1000L, "a batch is all or nothing");
        try (PreparedStatement insert =
                first.prepareStatement("INSERT INTO driver_jdbc VALUES (?, 'y')", Statement.RETURN_GENERATED_KEYS)) {
            insert.setInt(1, 3000);
            insert.executeUpdate();
            ResultSet keys = insert.getGeneratedKeys();
            keys.next();
            check(keys.getInt(1), 3000, "a generated key");
        }
        try (Statement several = first.createStatement()) {
            several.execute("SELECT 1; SELECT 2");
            check(several.getMoreResults(), true, "several statements");
        }
    }

    // With autosave it sets a savepoint before each query, and goes back to it after an error.
    static void autosave() throws Exception {
        try (Connection connection = open("autosave", "always")) {
            connection.setAutoCommit(false);
            for (int n = 0; n < 8; n += 1) {
                checkThrows("22012", () -> value(connection, "SELECT 1 / ?::int", 0), "an error with autosave");
                check(value(connection, "SELECT ?::int", n), n, "behind it in the same transaction");
            }
            connection.rollback();
        }
    }

    static void copy(Connection connection) throws Exception {
        StringBuilder lines = new StringBuilder();
        for (int n = 10000; n < 30000; n += 1) {
            lines.append(n).append("\tword ").append(n).append('\n');
        }
        var copies = connection.unwrap(PGConnection.class).getCopyAPI();
        long rows = copies.copyIn("COPY driver_jdbc FROM STDIN", new StringReader(lines.toString()));
        check(rows, 20000L, "COPY in");
        var out = new ByteArrayOutputStream();
        copies.copyOut("COPY (SELECT * FROM driver_jdbc WHERE n >= 10000 ORDER BY n) TO STDOUT", out);
        check(out.toString(StandardCharsets.UTF_8).equals(lines.toString()), true, "COPY there and back");
    }

    static void timeouts(Connection connection) throws Exception {
        try (PreparedStatement slow = connection.prepareStatement("SELECT pg_sleep(60)")) {
            slow.setQueryTimeout(1);
            checkThrows("57014", slow::executeQuery, "a query timeout, which cancels");
        }
        check(value(connection, "SELECT 1"), 1, "after a cancel");
        check(connection.isValid(5), true, "a look whether the connection lives");
    }

    static void types(Connection connection) throws Exception {
        var time = OffsetDateTime.of(2024, 2, 29, 23, 59, 59, 999999000, ZoneOffset.UTC);
        var uuid = UUID.fromString("00000000-0000-0001-8000-000000000001");
        // Text at first, and binary from the fifth use on.
        for (int n = 0; n < 8; n += 1) {
            try (PreparedStatement all = connection.prepareStatement(
                    "SELECT ?::timestamptz, ?::uuid, ?::numeric, ?::bytea, ?::int[], ?::float8, ?::text, ?::bool")) {
                all.setObject(1, time);
                all.setObject(2, uuid);
                all.setBigDecimal(3, new BigDecimal("12345678901234567890.0987654321"));
                all.setBytes(4, new byte[] {0, -1});
                all.setArray(5, connection.createArrayOf("int4", new Integer[] {1, null, 3}));
                all.setDouble(6, 0.1);
                all.setString(7, null);
                all.setBoolean(8, true);
                ResultSet row = all.executeQuery();
                row.next();
                check(row.getObject(1, OffsetDateTime.class), time, "timestamptz");
                check(row.getObject(2), uuid, "uuid");
                check(row.getBigDecimal(3), new BigDecimal("12345678901234567890.0987654321"), "numeric");
                check(Arrays.toString(row.getBytes(4)), "[0, -1]", "bytea");
                check(Arrays.toString((Object[]) row.getArray(5).getArray()), "[1, null, 3]", "an array");
                check(row.getDouble(6), 0.1, "float8");
                check(row.getString(7), null, "NULL");
                check(row.getBoolean(8), true, "bool");
            }
        }
        DatabaseMetaData about = connection.getMetaData();
        ResultSet columns = about.getColumns(null, "public", "driver_jdbc", null);
        check(columns.next() && columns.getString("COLUMN_NAME").equals("n"), true, "the catalog");
    }

    static void threads() throws Exception {
        ExecutorService threads = Executors.newFixedThreadPool(8);
        List<Future<Integer>> work = new ArrayList<>();
        for (int thread = 0; thread < 8; thread += 1) {
            int number = thread;
            work.add(threads.submit(() -> {
                int right = 0;
                try (Connection connection = open()) {
                    for (int n = 0; n < 30; n += 1) {
                        connection.setAutoCommit(n % 2 == 0);
                        right += value(connection, "SELECT ?::int * 100 + " + number, n).equals(n * 100 + number) ? 1 : 0;
                        if (n % 2 == 1) {
                            connection.commit();
                        }
                    }
                }
                return right;
            }));
        }
        for (Future<Integer> each : work) {
            check(each.get(), 30, "threads");
        }
        threads.shutdown();
    }

    static void levels(Connection first, Connection second) throws Exception {
        try (Connection other = open("ApplicationName", "driver jdbc")) {
            for (int n = 0; n < 8; n += 1) {
                check(value(other, "SHOW application_name"), "driver jdbc", "application_name");
                busy(first, () -> check(value(other, "SHOW application_name"), "driver jdbc", "on the other server"));
                check(value(second, "SHOW application_name"), "PostgreSQL JDBC Driver", "another client's");
            }
            other.setClientInfo("ApplicationName", "changed");
            busy(first, () -> check(value(other, "SHOW application_name"), "changed", "what was changed"));
        }
        first.setAutoCommit(false);
        first.setReadOnly(true);
        checkThrows("25006", () -> value(first, "DELETE FROM driver_jdbc"), "a transaction that only reads");
        first.rollback();
        first.setReadOnly(false);
        first.setAutoCommit(true);
    }

    static void ordinary() throws Exception {
        List<Connection> connections = new ArrayList<>();
        for (int n = 0; n < 6; n += 1) {
            connections.add(open());
        }
        namedStatements(connections);
        manyStatements();
        transactions(connections.get(0), connections.get(1));
        autosave();
        copy(connections.get(2));
        timeouts(connections.get(3));
        types(connections.get(4));
        threads();
        levels(connections.get(4), connections.get(5));
        value(connections.get(0), "DROP TABLE driver_jdbc");
        for (Connection connection : connections) {
            connection.close();
        }
    }

    static void sessionState() throws Exception {
        Connection second = open();
        try (Connection first = open("options", "-c statement_timeout=5s -c geqo=off")) {
            for (int n = 0; n < 8; n += 1) {
                busy(second, () -> check(value(first, "SHOW statement_timeout"), "5s", "an option of the start"));
                check(value(first, "SHOW geqo"), "off", "an option of the start");
                check(value(second, "SHOW geqo"), "on", "another client's");
            }
            // Digits of floating-point numbers, which it asks for at the start.
            check(value(first, "SHOW extra_float_digits"), "3", "what every login sets");
        }
        // HikariCP sets these behind each login.
        try (Connection first = open("readOnlyMode", "always")) {
            first.setTransactionIsolation(Connection.TRANSACTION_SERIALIZABLE);
            first.setReadOnly(true);
            value(second, "CREATE SCHEMA driver_jdbc_side");
            first.setSchema("driver_jdbc_side");
            for (int n = 0; n < 8; n += 1) {
                busy(second, () -> {
                    check(value(first, "SHOW transaction_isolation"), "serializable", "the level on the other server");
                    check(value(first, "SHOW transaction_read_only"), "on", "reading on the other server");
                    check(first.getSchema(), "driver_jdbc_side", "the schema on the other server");
                });
                check(value(second, "SHOW transaction_isolation"), "read committed", "another client's level");
                check(second.getSchema(), "public", "another client's schema");
            }
        }
        try (Connection first = open()) {
            // Flyway's lock.
            check(value(first, "SELECT pg_try_advisory_lock(16)"), true, "an advisory lock");
            check(value(second, "SELECT pg_try_advisory_lock(16)"), false, "the lock of another client");
            busy(second, () -> value(first, "CREATE TEMPORARY TABLE driver_jdbc_temp AS SELECT 3 AS n"));
            busy(second, () -> check(value(first, "SELECT n FROM driver_jdbc_temp"), 3, "a temporary table"));
            check(value(first, "SELECT pg_advisory_unlock(16)"), true, "the lock is given back");
            value(first, "LISTEN driver_jdbc");
            value(second, "NOTIFY driver_jdbc, 'word'");
            var heard = first.unwrap(PGConnection.class).getNotifications(5000);
            check(heard[0].getParameter(), "word", "a notification");
        }
        try (Connection first = open()) {
            // A result that outlives its transaction is a cursor WITH HOLD, or is read as a whole.
            first.setAutoCommit(false);
            first.setHoldability(ResultSet.HOLD_CURSORS_OVER_COMMIT);
            try (PreparedStatement read = first.prepareStatement("SELECT generate_series(1, 100)")) {
                read.setFetchSize(10);
                ResultSet rows = read.executeQuery();
                rows.next();
                first.commit();
                int left = 0;
                while (rows.next()) {
                    left += 1;
                }
                check(left, 99, "rows after commit");
            }
        }
        second.close();
    }

    static void schemaChange() throws Exception {
        try (Connection first = open("prepareThreshold", "1"); Connection second = open()) {
            value(first, "CREATE TABLE driver_jdbc_plan AS SELECT 1 AS n");
            String read = "SELECT * FROM driver_jdbc_plan";
            for (int n = 0; n < 3; n += 1) {
                check(value(first, read), 1, "a plan on the one server");
                busy(second, () -> check(value(first, read), 1, "a plan on the other server"));
            }
            value(second, "ALTER TABLE driver_jdbc_plan ALTER COLUMN n TYPE text");
            // It prepares anew by itself when a plan's result has changed.
            for (int n = 0; n < 3; n += 1) {
                check(value(first, read), "1", "a plan whose result has changed");
                busy(second, () -> check(value(first, read), "1", "the same on the other server"));
            }
        }
    }

    public static void main(String[] arguments) throws Exception {
        switch (arguments.length == 0 ? "" : arguments[0]) {
            case "" -> ordinary();
            case "session-state" -> sessionState();
            case "schema-change" -> schemaChange();
            default -> throw new IllegalArgumentException(arguments[0]);
        }
        System.out.println("ok " + checks + " checks");
    }
}

"""psycopg2 through the pooler: simple queries alone, a transaction by itself, cursors, COPY, asynchronous use."""

import io
import select
import threading
from contextlib import contextmanager

import psycopg2
import psycopg2.extensions
import psycopg2.extras
from checks import DSN, PART, check, check_raises, done, in_threads
from psycopg2 import errors
from psycopg2.pool import ThreadedConnectionPool


def connect(**options):
    connection = psycopg2.connect(DSN, **options)
    connection.autocommit = True
    return connection


def row(connection, sql, parameters=None):
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)
        return cursor.fetchone() if cursor.description else None


@contextmanager
def busy(other):
    """Another client is in a transaction, with the server that was used last: all others get the next one."""
    row(other, "BEGIN")
    yield
    row(other, "COMMIT")


def transactions(first, second):
    row(first, "CREATE TABLE driver_psycopg2 (n int PRIMARY KEY, word text)")
    first.autocommit = False
    with first, first.cursor() as cursor:
        cursor.execute("INSERT INTO driver_psycopg2 VALUES (%s, %s)", (1, "é"))
        check(row(second, "SELECT count(*) FROM driver_psycopg2"), (0,), "an open transaction from outside")
        cursor.execute("SAVEPOINT before")

        def duplicate():
            cursor.execute("INSERT INTO driver_psycopg2 VALUES (1)")

        check_raises(errors.UniqueViolation, duplicate, "an error")
        check_raises(errors.InFailedSqlTransaction, lambda: cursor.execute("SELECT 1"), "behind the error")
        cursor.execute("ROLLBACK TO before")
        psycopg2.extras.execute_values(
            cursor, "INSERT INTO driver_psycopg2 VALUES %s", [(n, str(n)) for n in range(2, 1001)]
        )
    check(row(second, "SELECT count(*) FROM driver_psycopg2"), (1000,), "after commit")
    first.set_session(isolation_level="SERIALIZABLE", readonly=True)
    check(row(first, "SHOW transaction_isolation"), ("serializable",), "the level of a session")
    check_raises(
        errors.ReadOnlySqlTransaction, lambda: row(first, "DELETE FROM driver_psycopg2"), "a readonly session"
    )
    first.rollback()
    check(row(second, "SHOW transaction_isolation"), ("read committed",), "another client's level")
    first.reset()
    first.autocommit = True


def cursors(connection):
    connection.autocommit = False
    with connection, connection.cursor("portal") as cursor:
        cursor.itersize = 99
        cursor.execute("SELECT n FROM driver_psycopg2 ORDER BY n")
        check([n for (n,) in cursor], list(range(1, 1001)), "a server-side cursor")
    connection.autocommit = True


def copy(connection):
    lines = "".join(f"{n}\tword {n}\n" for n in range(2000, 30000))
    with connection.cursor() as cursor:
        cursor.copy_from(io.StringIO(lines), "driver_psycopg2")
        out = io.StringIO()
        cursor.copy_expert("COPY (SELECT * FROM driver_psycopg2 WHERE n >= 2000 ORDER BY n) TO STDOUT", out)
        check(out.getvalue() == lines, True, "COPY there and back")

        def bad():
            cursor.copy_from(io.StringIO("no number\tx\n"), "driver_psycopg2")

        check_raises(errors.InvalidTextRepresentation, bad, "a COPY with a wrong line")
    check(row(connection, "SELECT 1"), (1,), "after a failed COPY")


def asynchronous():
    def wait(connection):
        while (state := connection.poll()) != psycopg2.extensions.POLL_OK:
            readers = [connection] if state == psycopg2.extensions.POLL_READ else []
            writers = [connection] if state == psycopg2.extensions.POLL_WRITE else []
            select.select(readers, writers, [], 10)

    connections = [psycopg2.connect(DSN, async_=True) for _ in range(6)]
    for connection in connections:
        wait(connection)
    cursors = [connection.cursor() for connection in connections]
    for repeat in range(10):
        for number, cursor in enumerate(cursors):
            cursor.execute("SELECT %s, %s, repeat('x', 20000)", (number, repeat))
        for number, cursor in enumerate(cursors):
            wait(cursor.connection)
            check(cursor.fetchone()[:2], (number, repeat), "an asynchronous connection")
    for connection in connections:
        connection.close()


def cancel(connection):
    timer = threading.Timer(0.3, connection.cancel)
    timer.start()
    check_raises(errors.QueryCanceled, lambda: row(connection, "SELECT pg_sleep(60)"), "a cancelled query")
    timer.join()
    check(row(connection, "SELECT 2"), (2,), "after a cancel")


def threads():
    pool = ThreadedConnectionPool(6, 6, DSN)
    turn = threading.Semaphore(6)
    got = []

    def client(number):
        for repeat in range(20):
            with turn:
                connection = pool.getconn()
                with connection:
                    got.append(row(connection, "SELECT %s, %s", (number, repeat)) == (number, repeat))
                pool.putconn(connection)

    in_threads(12, client)
    check(got, [True] * 240, "a pool of threads")
    pool.closeall()


def reported_settings(first, second):
    first.set_client_encoding("LATIN1")
    for _ in range(3):
        check(row(first, "SELECT 'é', octet_length('é')"), ("é", 2), "an encoding of one's own")
        with busy(first):
            check(row(second, "SHOW client_encoding"), ("UTF8",), "another client's encoding")
        with busy(second):
            check(row(first, "SHOW client_encoding"), ("LATIN1",), "the encoding on the other server")
    first.set_client_encoding("UTF8")


def session_state():
    first, second = connect(), connect()
    # Without autocommit it sends these as SET SESSION CHARACTERISTICS or as defaults of the session.
    first.set_session(isolation_level="REPEATABLE READ", readonly=True)
    for _ in range(3):
        with busy(second):
            check(row(first, "SHOW default_transaction_isolation"), ("repeatable read",), "a session's level")
        check(row(second, "SHOW default_transaction_read_only"), ("off",), "another client's")
    first.close()

    first = connect(options="-c statement_timeout=5000")
    with busy(second):
        check(row(first, "SHOW statement_timeout"), ("5s",), "options at the start")
    row(first, "SET statement_timeout = '6s'")
    with busy(second):
        check(row(first, "SHOW statement_timeout"), ("6s",), "SET")
        row(first, "RESET statement_timeout")
    check(row(first, "SHOW statement_timeout"), ("5s",), "RESET to what the start said")
    check(row(second, "SHOW statement_timeout"), ("0",), "another client's")
    first.close()

    first = connect()
    row(first, "LISTEN driver_psycopg2")
    row(second, "NOTIFY driver_psycopg2, 'word'")
    select.select([first], [], [], 5)
    first.poll()
    check([notify.payload for notify in first.notifies], ["word"], "a notification")
    first.close()

    first = connect()
    with first.cursor("held", withhold=True) as cursor:
        cursor.execute("SELECT generate_series(1, 30)")
        with busy(second):
            check(len(cursor.fetchmany(10)), 10, "a cursor WITH HOLD")
        check(len(cursor.fetchall()), 20, "the rest of it")
    row(first, "CREATE TEMP TABLE driver_psycopg2_temp AS SELECT 3 AS n")
    with busy(second):
        check(row(first, "SELECT n FROM driver_psycopg2_temp"), (3,), "a temporary table")
    # Its own end of a session: ABORT, then DISCARD ALL.
    first.reset()
    with busy(second):
        check_raises(
            errors.UndefinedTable, lambda: row(first, "TABLE driver_psycopg2_temp"), "what reset has dropped"
        )
    first.close()
    second.close()


def ordinary():
    connections = [connect() for _ in range(6)]
    transactions(*connections[:2])
    cursors(connections[2])
    copy(connections[3])
    cancel(connections[4])
    asynchronous()
    threads()
    reported_settings(*connections[4:6])
    row(connections[0], "DROP TABLE driver_psycopg2")
    for connection in connections:
        connection.close()


{"": ordinary, "session-state": session_state}[PART]()
done()

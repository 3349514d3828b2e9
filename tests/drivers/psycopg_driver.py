"""psycopg 3 through the pooler: statements that it prepares by itself, pipelines, cursors, COPY, cancel."""

import faulthandler
import logging
import os
import threading

import psycopg
from psycopg import errors

DSN = os.environ["PGWEIR_DSN"]
CONNECTIONS = 6
checks = 0


def check(got, expected, what):
    global checks
    checks += 1
    assert got == expected, f"{what}: got {got!r}, expected {expected!r}"


def check_raises(error, act, what):
    global checks
    checks += 1
    try:
        act()
    except error:
        return
    raise AssertionError(f"{what}: no {error.__name__}")


def prepared_statements(connections):
    """Every connection prepares the same names for other statements; they share few servers."""
    for repeat in range(12):
        for number, connection in enumerate(connections):
            sql = f"SELECT %s::int + {number}, %s::text"
            row = connection.execute(sql, (repeat, "é")).fetchone()
            check(row, (repeat + number, "é"), "a statement prepared after two uses")
            row = connection.execute("SELECT %s::bytea", (b"\x00\xff",), prepare=True).fetchone()
            check(row, (b"\x00\xff",), "a statement prepared at once")


def evicted_statements(connection):
    """More statements than psycopg keeps: it closes the oldest."""
    connection.prepare_threshold = 0
    connection.prepared_max = 5
    for repeat in range(3):
        for number in range(20):
            row = connection.execute(f"SELECT {number} + %s::int", (repeat,)).fetchone()
            check(row, (number + repeat,), "a statement that comes back after its eviction")


def pipelines(connections):
    for connection in connections:
        with connection.pipeline() as pipeline:
            cursors = [connection.execute("SELECT %s::int", (n,)) for n in range(50)]
            pipeline.sync()
            check([c.fetchone()[0] for c in cursors], list(range(50)), "a pipeline of 50")
            with connection.transaction():
                cursor = connection.execute("SELECT txid_current() = txid_current()")
                check(cursor.fetchone(), (True,), "a transaction in a pipeline")
    connection = connections[0]

    def fails():
        with connection.pipeline():
            connection.execute("SELECT 1")
            connection.execute("SELECT 1 / 0")
            connection.execute("SELECT 2")

    check_raises(errors.DivisionByZero, fails, "an error inside a pipeline")
    check(connection.execute("SELECT 3").fetchone(), (3,), "after a pipeline's error")


def transactions(connections):
    first, second = connections[:2]
    first.execute("CREATE TABLE driver_psycopg (n int PRIMARY KEY)")
    with first.transaction():
        first.execute("INSERT INTO driver_psycopg VALUES (1)")
        seen = second.execute("SELECT count(*) FROM driver_psycopg").fetchone()
        check(seen, (0,), "what another client sees of an open transaction")

        def duplicate():
            with first.transaction():
                first.execute("INSERT INTO driver_psycopg VALUES (1)")

        check_raises(errors.UniqueViolation, duplicate, "an error in a savepoint")
        first.execute("INSERT INTO driver_psycopg VALUES (2)")
    seen = second.execute("SELECT count(*) FROM driver_psycopg").fetchone()
    check(seen, (2,), "what another client sees after commit")


def server_cursors(connection):
    with connection.transaction(), connection.cursor("portal") as cursor:
        cursor.itersize = 7
        cursor.execute("SELECT n FROM generate_series(1, 100) AS n")
        check([row[0] for row in cursor], list(range(1, 101)), "a server-side cursor")


def copy(connection):
    connection.execute("TRUNCATE driver_psycopg")
    with connection.cursor().copy("COPY driver_psycopg FROM STDIN") as stream:
        for n in range(20000):
            stream.write_row((n,))
    with connection.cursor().copy("COPY driver_psycopg TO STDOUT (FORMAT BINARY)") as stream:
        stream.set_types(["int4"])
        check(sum(row[0] for row in stream.rows()), sum(range(20000)), "COPY there and back")

    def aborted():
        with connection.cursor().copy("COPY driver_psycopg FROM STDIN") as stream:
            stream.write_row((30000,))
            raise KeyError("the application gives up")

    check_raises(KeyError, aborted, "a COPY that the client gives up")
    count = connection.execute("SELECT count(*) FROM driver_psycopg").fetchone()
    check(count, (20000,), "after a COPY that was given up")


def cancel(connection):
    timer = threading.Timer(0.3, connection.cancel_safe)
    timer.start()
    check_raises(
        errors.QueryCanceled, lambda: connection.execute("SELECT pg_sleep(60)"), "a cancelled query"
    )
    timer.join()
    check(connection.execute("SELECT 4").fetchone(), (4,), "after a cancel")


def main():
    faulthandler.dump_traceback_later(60, exit=True)
    # It warns when a pipeline was already aborted at its end: that depends on the timing.
    logging.getLogger("psycopg").setLevel(logging.ERROR)
    connections = [psycopg.connect(DSN, autocommit=True, prepare_threshold=2) for _ in range(CONNECTIONS)]
    prepared_statements(connections)
    evicted_statements(connections[0])
    pipelines(connections)
    transactions(connections)
    server_cursors(connections[2])
    copy(connections[3])
    cancel(connections[4])
    connections[0].execute("DROP TABLE driver_psycopg")
    for connection in connections:
        connection.close()
    print(f"ok {checks} checks")


main()

"""asyncpg through the pooler: its statement cache, prepared statements, cursors, COPY, timeouts."""

import asyncio
import datetime
import decimal
import uuid
from contextlib import asynccontextmanager

import asyncpg
from checks import DSN, PART, check, check_raises_async, done


@asynccontextmanager
async def busy(other):
    """Another client is in a transaction, with the server that was used last: all others get the next one."""
    async with other.transaction():
        await other.execute("SELECT 1")
        yield


async def statement_cache(pool):
    async def client(number):
        for repeat in range(20):
            async with pool.acquire() as connection:
                got = await connection.fetchval("SELECT $1::int + $2::int", number, repeat)
                check(got, number + repeat, "a cached statement")
                got = await connection.fetchval(f"SELECT $1::text || '{number}'", "é")
                check(got, f"é{number}", "a cached statement of its own")

    await asyncio.gather(*(client(number) for number in range(12)))


async def prepared(connections):
    statements = [
        await connection.prepare(f"SELECT $1::int * {number}, array[$1, 2]")
        for number, connection in enumerate(connections)
    ]
    for repeat in range(10):
        for number, statement in enumerate(statements):
            row = await statement.fetchrow(repeat)
            check(tuple(row), (repeat * number, [repeat, 2]), "a prepared statement")


async def many_statements(connection):
    """More than the cache of 8 holds: asyncpg closes the oldest."""
    for repeat in range(2):
        for number in range(30):
            got = await connection.fetchval(f"SELECT {number} + $1::int", repeat)
            check(got, number + repeat, "a statement that comes back after its eviction")


async def transactions(first, second):
    await first.execute("CREATE TABLE driver_asyncpg (n int PRIMARY KEY, word text)")
    async with first.transaction():
        await first.execute("INSERT INTO driver_asyncpg VALUES ($1, $2)", 1, "one")
        got = await second.fetchval("SELECT count(*) FROM driver_asyncpg")
        check(got, 0, "what another client sees of an open transaction")
        cursor = first.cursor("SELECT n FROM generate_series(1, 100) AS n", prefetch=9)
        check([row["n"] async for row in cursor], list(range(1, 101)), "a cursor")
    await check_raises_async(
        asyncpg.UniqueViolationError,
        first.execute("INSERT INTO driver_asyncpg VALUES ($1, $2)", 1, "one"),
        "an error in the extended protocol",
    )
    await first.executemany(
        "INSERT INTO driver_asyncpg VALUES ($1, $2)", [(n, str(n)) for n in range(2, 2000)]
    )
    got = await second.fetchval("SELECT count(*) FROM driver_asyncpg")
    check(got, 1999, "executemany")
    await check_raises_async(
        asyncpg.UniqueViolationError,
        first.executemany(
            "INSERT INTO driver_asyncpg VALUES ($1, $2)", [(n, "") for n in range(3000, 1500, -1)]
        ),
        "an error inside executemany",
    )
    got = await first.fetchval("SELECT count(*) FROM driver_asyncpg")
    check(got, 1999, "executemany is all or nothing")


async def copy(connection):
    records = [(n, f"word {n}") for n in range(10000, 30000)]
    await connection.copy_records_to_table("driver_asyncpg", records=records)
    chunks = []

    async def keep(data):
        chunks.append(data)

    await connection.copy_from_query("SELECT n FROM driver_asyncpg WHERE n >= $1", 10000, output=keep)
    check(b"".join(chunks).count(b"\n"), 20000, "COPY there and back")


async def timeouts(connection):
    await check_raises_async(
        asyncio.TimeoutError, connection.fetchval("SELECT pg_sleep(60)", timeout=0.3), "a timeout"
    )
    check(await connection.fetchval("SELECT 5"), 5, "after a timeout, which cancels")
    task = asyncio.create_task(connection.fetchval("SELECT pg_sleep(60)"))
    await asyncio.sleep(0.2)
    task.cancel()
    await check_raises_async(asyncio.CancelledError, task, "a cancelled task")
    check(await connection.fetchval("SELECT 6"), 6, "after a cancelled task")


async def types(connection):
    await connection.execute("CREATE TYPE driver_asyncpg_mood AS ENUM ('sad', 'happy')")
    await connection.execute("CREATE TYPE driver_asyncpg_pair AS (n int, mood driver_asyncpg_mood)")
    for value, sql_type in [
        (decimal.Decimal("12345678901234567890.0987654321"), "numeric"),
        (uuid.UUID(int=2**127 + 1), "uuid"),
        (datetime.datetime(2024, 2, 29, 23, 59, 59, 999999, datetime.timezone.utc), "timestamptz"),
        (datetime.timedelta(days=-3, microseconds=1), "interval"),
        ([[1, 2], [3, None]], "int[]"),
        (b"\x00\xff" * 10000, "bytea"),
        ('{"key": [1, null]}', "json"),
        (asyncpg.Range(1, 9), "int4range"),
        ("happy", "driver_asyncpg_mood"),
        ((7, "sad"), "driver_asyncpg_pair"),
    ]:
        # It asks the catalogs about a type that it does not know, in a statement of its own.
        got = await connection.fetchval(f"SELECT $1::{sql_type}", value)
        check(tuple(got) if isinstance(value, tuple) else got, value, sql_type)
    await connection.execute("DROP TYPE driver_asyncpg_pair; DROP TYPE driver_asyncpg_mood")


async def moved_statements(first, second):
    """A statement that was prepared on one server, used on the other and again on the first."""
    statement = await first.prepare("SELECT $1::int + 1")
    for n in range(3):
        check(await statement.fetchval(n), n + 1, "on the one server")
        async with busy(second):
            check(await statement.fetchval(n), n + 1, "on the other server")


async def schema_change():
    """It prepares anew by itself when a plan's result has changed."""
    first, second = [await asyncpg.connect(DSN) for _ in range(2)]
    await first.execute("CREATE TABLE driver_asyncpg_plan AS SELECT 1 AS n")
    read = "SELECT * FROM driver_asyncpg_plan"
    for _ in range(2):
        check(tuple(await first.fetchrow(read)), (1,), "a plan on the one server")
        async with busy(second):
            check(tuple(await first.fetchrow(read)), (1,), "a plan on the other server")
    await second.execute("ALTER TABLE driver_asyncpg_plan ADD COLUMN word text DEFAULT 'new'")
    for _ in range(2):
        check(tuple(await first.fetchrow(read)), (1, "new"), "a plan whose result has changed")
        async with busy(second):
            check(tuple(await first.fetchrow(read)), (1, "new"), "the same on the other server")
    for connection in (first, second):
        await connection.close()


async def nested_transactions(first, second):
    await first.execute("CREATE TABLE driver_asyncpg_nested (n int PRIMARY KEY)")
    async with first.transaction(isolation="repeatable_read"):
        check(await first.fetchval("SHOW transaction_isolation"), "repeatable read", "an isolation level")
        await first.execute("INSERT INTO driver_asyncpg_nested VALUES (1)")
        try:
            async with first.transaction():
                await first.execute("INSERT INTO driver_asyncpg_nested VALUES (2)")
                await first.execute("INSERT INTO driver_asyncpg_nested VALUES ($1)", 1)
        except asyncpg.UniqueViolationError:
            pass
        await first.execute("INSERT INTO driver_asyncpg_nested VALUES (3)")
    rows = await second.fetch("SELECT n FROM driver_asyncpg_nested ORDER BY n")
    check([row["n"] for row in rows], [1, 3], "after an error in a savepoint")
    check(await second.fetchval("SHOW transaction_isolation"), "read committed", "another client's level")
    await first.execute("DROP TABLE driver_asyncpg_nested")


async def carried_settings(first, second):
    await first.execute("SET statement_timeout = '4321ms'")
    for _ in range(3):
        check(await second.fetchval("SHOW statement_timeout"), "0", "another client's timeout")
        async with busy(second):
            check(await first.fetchval("SHOW statement_timeout"), "4321ms", "on the other server")
        check(await first.fetchval("SHOW statement_timeout"), "4321ms", "on the one server")
    # What its pool does when a connection is given back: locks, cursors, LISTEN and settings go.
    await first.reset()
    async with busy(second):
        check(await first.fetchval("SHOW statement_timeout"), "0", "after a reset")


async def startup_settings(second):
    first = await asyncpg.connect(DSN, server_settings={"statement_timeout": "7s", "geqo": "off"})
    for _ in range(3):
        async with busy(second):
            check(await first.fetchval("SHOW statement_timeout"), "7s", "a setting of the start")
            check(await first.fetchval("SHOW geqo"), "off", "a setting of the start")
        check(await second.fetchval("SHOW geqo"), "on", "another client's")
    await first.reset()
    check(await first.fetchval("SHOW geqo"), "off", "a setting of the start after RESET ALL")
    await first.close()


async def notifications(second):
    first = await asyncpg.connect(DSN)
    heard = asyncio.Queue()
    await first.add_listener("driver_asyncpg", lambda _c, _pid, _channel, payload: heard.put_nowait(payload))
    for number in range(3):
        async with busy(second):
            await first.execute("SELECT 1")
        await second.execute("SELECT pg_notify('driver_asyncpg', $1)", str(number))
        check(await asyncio.wait_for(heard.get(), 5), str(number), "a notification")
    await first.close()


async def locks_and_tables(second):
    first = await asyncpg.connect(DSN)
    take = "SELECT pg_try_advisory_lock(12)"
    check(await first.fetchval(take), True, "an advisory lock")
    check(await second.fetchval(take), False, "the lock of another client")
    await first.execute("CREATE TEMP TABLE driver_asyncpg_temp (n int)")
    for n in range(3):
        async with busy(second):
            await first.execute("INSERT INTO driver_asyncpg_temp VALUES ($1)", n)
    await first.copy_records_to_table("driver_asyncpg_temp", records=[(n,) for n in range(100)])
    check(await first.fetchval("SELECT count(*) FROM driver_asyncpg_temp"), 103, "a temporary table")
    await first.reset()
    check(await second.fetchval(take), True, "the lock after a reset")
    check(await second.fetchval("SELECT pg_advisory_unlock(12)"), True, "and back")
    await first.close()


async def pool_with_a_setup():
    """What applications do: settings for each connection of the pool as it is made."""

    async def init(connection):
        await connection.execute("SET lock_timeout = '3s'")

    async def setup(connection):
        await connection.execute("SET statement_timeout = '9s'")

    pool = await asyncpg.create_pool(DSN, min_size=6, max_size=6, init=init, setup=setup)

    async def client(number):
        for _ in range(10):
            async with pool.acquire() as connection, connection.transaction():
                await connection.fetchval("SELECT pg_sleep(0.001)")
                check(await connection.fetchval("SHOW statement_timeout"), "9s", "what setup has set")

    await asyncio.gather(*(client(number) for number in range(12)))
    await pool.close()


async def session_state():
    first, second = [await asyncpg.connect(DSN) for _ in range(2)]
    await carried_settings(first, second)
    await startup_settings(second)
    await notifications(second)
    await locks_and_tables(second)
    await pool_with_a_setup()
    for connection in (first, second):
        await connection.close()


async def ordinary():
    pool = await asyncpg.create_pool(DSN, min_size=6, max_size=6)
    await statement_cache(pool)
    await pool.close()
    connections = [await asyncpg.connect(DSN, statement_cache_size=8) for _ in range(6)]
    await prepared(connections)
    await many_statements(connections[0])
    await transactions(*connections[:2])
    await copy(connections[2])
    await timeouts(connections[3])
    await types(connections[4])
    await moved_statements(*connections[1:3])
    await nested_transactions(*connections[2:4])
    await connections[0].execute("DROP TABLE driver_asyncpg")
    for connection in connections:
        await connection.close()


asyncio.run({"": ordinary, "session-state": session_state, "schema-change": schema_change}[PART]())
done()

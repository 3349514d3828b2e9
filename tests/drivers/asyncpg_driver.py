"""asyncpg through the pooler: its statement cache, prepared statements, cursors, COPY, timeouts."""

import asyncio
import os

import asyncpg

DSN = os.environ["PGWEIR_DSN"]
checks = 0


def check(got, expected, what):
    global checks
    checks += 1
    assert got == expected, f"{what}: got {got!r}, expected {expected!r}"


async def check_raises(error, awaitable, what):
    global checks
    checks += 1
    try:
        await awaitable
    except error:
        return
    raise AssertionError(f"{what}: no {error.__name__}")


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
    await check_raises(
        asyncpg.UniqueViolationError,
        first.execute("INSERT INTO driver_asyncpg VALUES ($1, $2)", 1, "one"),
        "an error in the extended protocol",
    )
    await first.executemany(
        "INSERT INTO driver_asyncpg VALUES ($1, $2)", [(n, str(n)) for n in range(2, 2000)]
    )
    got = await second.fetchval("SELECT count(*) FROM driver_asyncpg")
    check(got, 1999, "executemany")
    await check_raises(
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
    await check_raises(
        asyncio.TimeoutError, connection.fetchval("SELECT pg_sleep(60)", timeout=0.3), "a timeout"
    )
    check(await connection.fetchval("SELECT 5"), 5, "after a timeout, which cancels")
    task = asyncio.create_task(connection.fetchval("SELECT pg_sleep(60)"))
    await asyncio.sleep(0.2)
    task.cancel()
    await check_raises(asyncio.CancelledError, task, "a cancelled task")
    check(await connection.fetchval("SELECT 6"), 6, "after a cancelled task")


async def main():
    pool = await asyncpg.create_pool(DSN, min_size=6, max_size=6)
    await statement_cache(pool)
    await pool.close()
    connections = [await asyncpg.connect(DSN, statement_cache_size=8) for _ in range(6)]
    await prepared(connections)
    await many_statements(connections[0])
    await transactions(*connections[:2])
    await copy(connections[2])
    await timeouts(connections[3])
    await connections[0].execute("DROP TABLE driver_asyncpg")
    for connection in connections:
        await connection.close()
    print(f"ok {checks} checks")


# What hangs is cancelled, and the traceback says where.
asyncio.run(asyncio.wait_for(main(), 60))

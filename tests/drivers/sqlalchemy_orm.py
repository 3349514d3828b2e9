"""SQLAlchemy through the pooler, over psycopg, psycopg2 and asyncpg, on the tables of Alembic's migrations."""

import asyncio
from decimal import Decimal

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from checks import DSN, PART, check, check_raises, done, in_threads
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, selectinload


class Base(DeclarativeBase):
    pass


class Account(Base):
    __tablename__ = "driver_account"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    kind: Mapped[str] = mapped_column(sa.Enum("free", "paid", "gone", name="driver_kind"))
    entries: Mapped[list["Entry"]] = relationship(back_populates="account")


class Entry(Base):
    __tablename__ = "driver_entry"
    id: Mapped[int] = mapped_column(sa.BigInteger, primary_key=True)
    account_id: Mapped[int] = mapped_column(sa.ForeignKey("driver_account.id"))
    amount: Mapped[Decimal]
    note: Mapped[str]
    account: Mapped[Account] = relationship(back_populates="entries")


def url(driver):
    return DSN.replace("postgres://", f"postgresql+{driver}://")


def migrate(engine, to):
    config = Config()
    config.set_main_option("script_location", "sqlalchemy_migrations")
    act = command.downgrade if to == "base" else command.upgrade
    with engine.connect() as connection:
        config.attributes["connection"] = connection
        act(config, to)


def migrations(engine):
    for _ in range(2):
        migrate(engine, "1")
        migrate(engine, "head")
        with engine.connect() as connection:
            inspector = sa.inspect(connection)
            columns = [column["name"] for column in inspector.get_columns("driver_entry")]
            check(columns, ["id", "account_id", "amount", "note"], "the table after the migrations")
            indexes = [index["name"] for index in inspector.get_indexes("driver_entry")]
            check(indexes, ["driver_entry_amount"], "the index after the migrations")
        migrate(engine, "base")
        check(sa.inspect(engine).get_table_names(), ["alembic_version"], "after the way back")
    migrate(engine, "head")


def unit_of_work(engine):
    with Session(engine) as session, session.begin():
        account = Account(name="é", kind="paid")
        account.entries = [Entry(amount=Decimal(n) / 4, note=f"note {n}") for n in range(500)]
        session.add(account)
    with Session(engine) as session:
        account = session.scalars(sa.select(Account).options(selectinload(Account.entries))).one()
        check(len(account.entries), 500, "a relation that is loaded")
        total = session.scalar(sa.select(sa.func.driver_total(account.id)))
        check(total, Decimal(499 * 500) / 8, "a function")
        try:
            with session.begin_nested():
                session.add(Account(name="é", kind="free"))
                session.flush()
        except IntegrityError:
            pass
        session.add(Account(name="after a savepoint", kind="free"))
        session.commit()
        session.expire_all()
        check(session.scalar(sa.select(sa.func.count(Account.id))), 2, "after an error in a savepoint")
        statement = insert(Account).values(name="é", kind="free")
        statement = statement.on_conflict_do_update(index_elements=["name"], set_={"kind": "gone"})
        check(session.scalar(statement.returning(Account.kind)), "gone", "ON CONFLICT")
        session.rollback()


def streams(engine):
    with engine.connect().execution_options(stream_results=True, max_row_buffer=50) as connection:
        rows = connection.execute(sa.select(Entry.amount).order_by(Entry.id)).scalars()
        check(sum(rows), Decimal(499 * 500) / 8, "a server-side cursor")


def isolation(engine):
    serializable = engine.execution_options(isolation_level="SERIALIZABLE")
    with serializable.connect() as connection:
        level = connection.scalar(sa.text("SHOW transaction_isolation"))
        check(level, "serializable", "an isolation level")
    with engine.connect() as connection:
        level = connection.scalar(sa.text("SHOW transaction_isolation"))
        check(level, "read committed", "the level of the next")
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("VACUUM driver_entry"))


def threads(engine):
    failures = []

    def client(number):
        try:
            for repeat in range(10):
                with Session(engine) as session, session.begin():
                    session.execute(sa.update(Account).values(kind="paid").where(Account.name == "nobody"))
                    got = session.scalar(sa.select(sa.literal(number) * 100 + repeat))
                    assert got == number * 100 + repeat, got
        except Exception as error:  # noqa: BLE001: the main thread tells of it
            failures.append(error)

    in_threads(8, client)
    check(failures, [], "sessions of several threads")


async def asynchronous():
    engine = create_async_engine(url("asyncpg"), pool_size=6, max_overflow=0)

    async def client(number):
        for _ in range(5):
            async with AsyncSession(engine) as session, session.begin():
                query = sa.select(Entry.note).where(Entry.note == f"note {number}")
                check(await session.scalar(query), f"note {number}", "an asynchronous session")
                await session.execute(sa.text("SAVEPOINT before"))
                try:
                    await session.execute(sa.text("SELECT 1 / 0"))
                except DBAPIError:
                    await session.execute(sa.text("ROLLBACK TO before"))
                check(await session.scalar(sa.select(sa.literal(number))), number, "after an error")

    await asyncio.gather(*(client(number) for number in range(12)))
    async with engine.connect() as connection:
        stream = await connection.stream(sa.select(Entry.id))
        check(len([row async for row in stream]), 500, "an asynchronous stream")
    await engine.dispose()


def ordinary():
    engines = [sa.create_engine(url(driver), pool_size=6) for driver in ("psycopg", "psycopg2")]
    for engine in engines:
        migrations(engine)
        unit_of_work(engine)
        streams(engine)
        isolation(engine)
        threads(engine)
        if engine is engines[-1]:
            asyncio.run(asynchronous())
        engine.dispose()
        migrate(engine, "base")
        engine.dispose()


def session_state():
    engine = sa.create_engine(url("psycopg"), pool_size=6, connect_args={"options": "-c search_path=driver_a"})

    @sa.event.listens_for(engine, "connect")
    def settings(connection, _record):
        connection.autocommit = True
        connection.execute("SET statement_timeout = '8s'")
        connection.autocommit = False

    plain = sa.create_engine(url("psycopg2"), pool_size=6)
    with plain.begin() as connection:
        connection.execute(sa.text("CREATE SCHEMA driver_a"))
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE only_here AS SELECT 1 AS n"))
    for _ in range(5):
        with engine.connect() as one, engine.connect() as two:
            for connection in (one, two):
                timeout = connection.scalar(sa.text("SHOW statement_timeout"))
                check(timeout, "8s", "what the listener has set")
                check(connection.scalar(sa.text("SELECT n FROM only_here")), 1, "the search_path of the engine")
        with plain.connect() as one, plain.connect() as two:
            for connection in (one, two):
                check(connection.scalar(sa.text("SHOW statement_timeout")), "0", "another engine's")
                exists = connection.scalar(sa.text("SELECT to_regclass('only_here')"))
                check(exists, None, "another engine's search_path")
    # One deploys while another does: each takes a lock for the whole session, as some projects' env.py does.
    done = []

    def deploy():
        with plain.connect().execution_options(isolation_level="AUTOCOMMIT") as lock:
            lock.execute(sa.text("SELECT pg_advisory_lock(77)"))
            migrate(maintenance, "head")
            done.append(lock.scalar(sa.text("SELECT pg_advisory_unlock(77)")))

    maintenance = sa.create_engine(url("psycopg"))
    deploy()
    migrate(maintenance, "base")
    deploy()
    check(done, [True, True], "migrations under an advisory lock")
    for used in (engine, plain, maintenance):
        used.dispose()
    check_raises(DBAPIError, lambda: engine.connect().execute(sa.text("SELECT no_such")), "an error")
    engine.dispose()


{"": ordinary, "session-state": session_state}[PART]()
done()

"""Django through the pooler: its migrations, nested transactions, row locks, iterators, threads."""

import datetime
import io
import threading
from decimal import Decimal
from urllib.parse import urlsplit

import django
from checks import DSN, PART, check, check_raises, done, in_threads
from django.conf import settings
from psycopg import IsolationLevel

ADDRESS = urlsplit(DSN)
DATABASE = {
    "ENGINE": "django.db.backends.postgresql",
    "HOST": ADDRESS.hostname,
    "PORT": ADDRESS.port,
    "USER": ADDRESS.username,
    "NAME": ADDRESS.path[1:],
    "CONN_MAX_AGE": None,
    "CONN_HEALTH_CHECKS": True,
}
settings.configure(
    DATABASES={
        "default": DATABASE,
        # Each connection of these says what it wants: the zone behind the login, the rest at the start.
        "tokyo": {**DATABASE, "TIME_ZONE": "Asia/Tokyo"},
        "bound": {
            **DATABASE,
            "OPTIONS": {"server_side_binding": True, "isolation_level": IsolationLevel.SERIALIZABLE},
        },
        "limited": {**DATABASE, "OPTIONS": {"options": "-c statement_timeout=5000 -c lock_timeout=4000"}},
    },
    INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth", "django_shop"],
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    USE_TZ=True,
    TIME_ZONE="UTC",
)
django.setup()

from django.core.management import call_command  # noqa: E402: Django wants its settings first
from django.db import DatabaseError, IntegrityError, connection, connections, transaction  # noqa: E402
from django.db.models import F, Sum  # noqa: E402
from django_shop.models import Customer, Order  # noqa: E402


def value(using, sql):
    with connections[using].cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone()[0]


def migrations():
    for _ in range(2):
        call_command("migrate", verbosity=0)
        check(Customer.objects.get().name, "first", "what a migration has written")
        names = {name for name in connection.introspection.table_names() if name.startswith("django_shop")}
        check(names, {"django_shop_customer", "django_shop_order"}, "the tables")
        call_command("migrate", "django_shop", "zero", verbosity=0)
    call_command("migrate", verbosity=0)
    plan = io.StringIO()
    call_command("migrate", plan=True, stdout=plan)
    check("No planned migration operations." in plan.getvalue(), True, "nothing is left to migrate")
    # It ends the script if the models are not what the migrations make.
    call_command("makemigrations", check=True, dry_run=True, verbosity=0)


def objects():
    Customer.objects.bulk_create(Customer(name=f"é {n}", tags=["a", str(n)], extra={"n": n}) for n in range(300))
    check(Customer.objects.filter(tags__contains=["7"]).get().extra, {"n": 7}, "an array and JSON")
    check(Customer.objects.filter(extra__n__gte=290).count(), 10, "a look into JSON")
    customer = Customer.objects.get(name="first")
    Order.objects.bulk_create(Order(customer=customer, amount=Decimal(n) / 4) for n in range(1000))
    check(Order.objects.aggregate(total=Sum("amount"))["total"], Decimal(999 * 1000) / 8, "a sum")
    joined = datetime.datetime(2024, 2, 29, 12, tzinfo=datetime.timezone.utc)
    Customer.objects.filter(pk=customer.pk).update(joined=joined)
    customer.refresh_from_db()
    check(customer.joined, joined, "a time")
    with transaction.atomic():
        total = sum(order.amount for order in Order.objects.iterator(chunk_size=99))
        check(total, Decimal(999 * 1000) / 8, "an iterator")


def transactions():
    done_later = []
    with transaction.atomic():
        Customer.objects.create(name="outer")
        transaction.on_commit(lambda: done_later.append(value("default", "SELECT 1")))

        def duplicate():
            with transaction.atomic():
                Customer.objects.create(name="inner")
                Customer.objects.create(name="outer")

        check_raises(IntegrityError, duplicate, "an error in a savepoint")
        check(Customer.objects.filter(name__in=["outer", "inner"]).count(), 1, "behind the savepoint")
    check(done_later, [1], "on_commit")

    def fails():
        with transaction.atomic():
            Customer.objects.create(name="lost")
            value("default", "SELECT 1 / 0")

    check_raises(DatabaseError, fails, "an error in a transaction")
    check(Customer.objects.filter(name="lost").exists(), False, "what was rolled back")


def row_locks():
    with transaction.atomic():
        first = Order.objects.select_for_update(skip_locked=True).order_by("pk")[:10]
        held = [order.pk for order in first]
        others = []

        def other():
            with transaction.atomic():
                query = Order.objects.select_for_update(skip_locked=True).order_by("pk")[:10]
                others.extend(order.pk for order in query)
            connection.close()

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        check(set(held) & set(others), set(), "rows that another client has locked")


def threads():
    failures = []

    def client(number):
        try:
            customer, _ = Customer.objects.get_or_create(name=f"shared {number % 2}")
            for _ in range(15):
                with transaction.atomic():
                    Customer.objects.select_for_update().get(pk=customer.pk)
                    Customer.objects.filter(pk=customer.pk).update(extra={"by": number})
                    assert Customer.objects.get(pk=customer.pk).extra == {"by": number}
                    Order.objects.create(customer=customer, amount=1)
                Order.objects.filter(customer=customer).update(amount=F("amount") + 1)
        except Exception as error:  # noqa: BLE001: the main thread tells of it
            failures.append(error)
        connection.close()

    in_threads(8, client)
    check(failures, [], "several threads")
    check(Order.objects.filter(customer__name__startswith="shared").count(), 120, "what they have written")


def several_connections():
    for _ in range(5):
        for using, zone in [("default", "UTC"), ("tokyo", "Asia/Tokyo"), ("bound", "UTC")]:
            check(value(using, "SHOW TimeZone"), zone, f"the zone of {using}")
            with transaction.atomic(using=using):
                check(Customer.objects.using(using).get(name="first").name, "first", f"a query of {using}")
                level = value(using, "SHOW transaction_isolation")
                check(level, "serializable" if using == "bound" else "read committed", f"the level of {using}")
    with transaction.atomic(using="tokyo"):
        hour = value("tokyo", "SELECT extract(hour FROM joined)::int FROM django_shop_customer WHERE name = 'first'")
        check(hour, 21, "an hour in Tokyo")


def ordinary():
    migrations()
    objects()
    transactions()
    row_locks()
    threads()
    several_connections()
    call_command("flush", interactive=False, verbosity=0)
    check(Customer.objects.count(), 0, "after flush")
    connections.close_all()


def session_state():
    call_command("migrate", verbosity=0)
    Customer.objects.bulk_create(Customer(name=f"customer {n}") for n in range(300))
    for _ in range(5):
        check(value("limited", "SHOW statement_timeout"), "5s", "options at the start")
        with transaction.atomic(using="default"):
            check(value("default", "SHOW statement_timeout"), "0", "another connection's")
            check(value("limited", "SHOW lock_timeout"), "4s", "options on the other server")
    # Outside of a transaction an iterator is a cursor WITH HOLD.
    rows = Customer.objects.using("tokyo").order_by("pk").iterator(chunk_size=50)
    first = next(rows).name
    with transaction.atomic():
        check(Customer.objects.count(), 301, "another connection meanwhile")
    check([first, *(row.name for row in rows)][-1], "customer 299", "an iterator outside of a transaction")
    connections["tokyo"].close()
    value("default", "SELECT set_config('statement_timeout', '7s', false)")
    with transaction.atomic(using="limited"):
        check(value("limited", "SHOW statement_timeout"), "5s", "another connection's")
        check(value("default", "SHOW statement_timeout"), "7s", "set_config on the other server")
    connections.close_all()


{"": ordinary, "session-state": session_state}[PART]()
done()

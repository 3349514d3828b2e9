"""What the Python scripts have in common: they check, count their checks, and say so at the end.

A script without arguments uses what any pooler in transaction mode must support. With `session-state` it uses
what a session keeps between its transactions, with `schema-change` statements whose tables change, with
`deallocate` SQL that drops statements of the protocol. Each runs directly and through the pooler, and must print
the same.
"""

import faulthandler
import os
import sys
import threading

DSN = os.environ["PGWEIR_DSN"]
PART = " ".join(sys.argv[1:])
checks = 0

# What hangs ends here, and the traceback says where.
faulthandler.dump_traceback_later(100, exit=True)


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


async def check_raises_async(error, awaitable, what):
    global checks
    checks += 1
    try:
        await awaitable
    except error:
        return
    raise AssertionError(f"{what}: no {error.__name__}")


def in_threads(count, client):
    """Runs so many clients at once, each of which is told its number, to their ends."""
    clients = [threading.Thread(target=client, args=(number,)) for number in range(count)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()


def done():
    print(f"ok {checks} checks")

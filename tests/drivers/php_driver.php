<?php
// PDO and the pgsql extension of PHP through the pooler: PDO names its statements and drops each with SQL.

declare(strict_types=1);

$checks = 0;

function check(mixed $got, mixed $expected, string $what): void
{
    global $checks;
    $checks += 1;
    if ($got !== $expected) {
        throw new Exception("$what: got " . var_export($got, true) . ', expected ' . var_export($expected, true));
    }
}

function check_raises(string $code, callable $act, string $what): void
{
    global $checks;
    $checks += 1;
    try {
        $act();
    } catch (PDOException $error) {
        if ($error->getCode() === $code) {
            return;
        }
        throw $error;
    }
    throw new Exception("$what: no $code");
}

function address(string $more = ''): string
{
    return sprintf('host=%s port=%s dbname=%s user=app %s', getenv('PGHOST'), getenv('PGPORT'), getenv('PGDATABASE'), $more);
}

function open(string $more = '', array $options = []): PDO
{
    return new PDO('pgsql:' . address($more), null, null, [PDO::ATTR_EMULATE_PREPARES => false] + $options);
}

/** Another client is in a transaction, with the server that was used last: all others get the next one. */
function busy(PDO $other, callable $act): void
{
    $other->beginTransaction();
    $other->exec('SELECT 1');
    $act();
    $other->commit();
}

function value(PDO $pdo, string $sql, array $parameters = []): mixed
{
    $statement = $pdo->prepare($sql);
    $statement->execute($parameters);
    return $statement->fetchColumn();
}

function statements(array $connections): void
{
    $statements = [];
    foreach ($connections as $n => $pdo) {
        $statements[] = $pdo->prepare("SELECT CAST(? AS int) + $n");
    }
    for ($repeat = 0; $repeat < 10; $repeat += 1) {
        foreach ($statements as $n => $statement) {
            $statement->execute([$repeat]);
            check($statement->fetchColumn(), $repeat + $n, 'a statement that is prepared once');
            check(value($connections[$n], 'SELECT CAST(? AS text)', ["é$repeat"]), "é$repeat", 'one that is dropped at once');
        }
    }
    [$first, $second] = $connections;
    busy($second, function () use ($statements): void {
        $statements[0]->execute([5]);
        check($statements[0]->fetchColumn(), 5, 'a statement on the other server');
    });
    unset($statements);
    check(value($first, 'SELECT 1'), 1, 'after all were dropped');
    // Only the first has an answer for PDO, so it makes all of them one simple query.
    $first->setAttribute(PDO::ATTR_EMULATE_PREPARES, true);
    check(value($first, 'SELECT CAST(:n AS int) * 2', ['n' => 4]), 8, 'an emulated statement');
    $first->setAttribute(PDO::ATTR_EMULATE_PREPARES, false);
}

function transactions(PDO $first, PDO $second): void
{
    $first->exec('CREATE TABLE driver_php (n int PRIMARY KEY, word text)');
    $first->beginTransaction();
    $insert = $first->prepare('INSERT INTO driver_php VALUES (?, ?)');
    for ($n = 1; $n <= 200; $n += 1) {
        $insert->execute([$n, "word $n"]);
    }
    check(value($second, 'SELECT count(*) FROM driver_php'), 0, 'what another client sees of it');
    $first->exec('SAVEPOINT before');
    check_raises('23505', fn () => $insert->execute([1, 'again']), 'an error');
    check_raises('25P02', fn () => $first->exec('SELECT 1'), 'behind the error');
    $first->exec('ROLLBACK TO before');
    $insert->execute([201, null]);
    $first->exec('SET LOCAL statement_timeout = 100');
    $first->exec('SAVEPOINT before');
    check_raises('57014', fn () => $first->exec('SELECT pg_sleep(60)'), 'a statement_timeout');
    $first->exec('ROLLBACK TO before');
    $first->commit();
    check(value($second, 'SELECT count(*) FROM driver_php'), 201, 'after commit');
    check(value($first, 'SHOW statement_timeout'), '0', 'after SET LOCAL');
    // The statement goes out of scope in a failed transaction: its DEALLOCATE fails there.
    $first->beginTransaction();
    $lost = $first->prepare('SELECT CAST(? AS int)');
    $lost->execute([1]);
    check_raises('22012', fn () => $first->exec('SELECT 1 / 0'), 'an error');
    unset($lost);
    $first->rollBack();
    check(value($first, 'SELECT CAST(? AS int)', [3]), 3, 'after a statement that was dropped in vain');
}

function cursors_and_copy(PDO $pdo): void
{
    $pdo->beginTransaction();
    $cursor = $pdo->prepare('SELECT n FROM driver_php ORDER BY n', [PDO::ATTR_CURSOR => PDO::CURSOR_SCROLL]);
    $cursor->execute();
    check($cursor->fetch(PDO::FETCH_NUM, PDO::FETCH_ORI_NEXT), [1], 'a cursor forward');
    check($cursor->fetch(PDO::FETCH_NUM, PDO::FETCH_ORI_ABS, 100), [100], 'a cursor to a row');
    check($cursor->fetch(PDO::FETCH_NUM, PDO::FETCH_ORI_PRIOR), [99], 'a cursor back');
    unset($cursor);
    $pdo->commit();
    $rows = array_map(fn (int $n): string => "$n\tword $n", range(1000, 10999));
    check($pdo->pgsqlCopyFromArray('driver_php', $rows), true, 'COPY in');
    check(count($pdo->pgsqlCopyToArray('driver_php')), 10201, 'COPY out');
    $pdo->beginTransaction();
    $oid = $pdo->pgsqlLOBCreate();
    fwrite($pdo->pgsqlLOBOpen($oid, 'w'), str_repeat("\0\xff", 5000));
    check(strlen(stream_get_contents($pdo->pgsqlLOBOpen($oid, 'r'))), 10000, 'a large object');
    $pdo->pgsqlLOBUnlink($oid);
    $pdo->commit();
}

function pgsql_extension(): void
{
    $connections = array_map(fn (): PgSql\Connection => pg_connect(address(), PGSQL_CONNECT_FORCE_NEW), range(0, 3));
    foreach ($connections as $n => $connection) {
        pg_prepare($connection, 'add', "SELECT \$1::int + $n");
    }
    for ($repeat = 0; $repeat < 10; $repeat += 1) {
        foreach ($connections as $n => $connection) {
            pg_send_execute($connection, 'add', [$repeat]);
        }
        foreach ($connections as $n => $connection) {
            check(pg_fetch_result(pg_get_result($connection), 0, 0), (string) ($repeat + $n), 'asynchronous queries');
            check(pg_get_result($connection), false, 'their end');
        }
    }
    $connection = $connections[0];
    check(pg_fetch_result(pg_query_params($connection, 'SELECT $1::text', ['é']), 0, 0), 'é', 'pg_query_params');
    $result = @pg_query($connection, 'SELECT 1; SELECT 1 / 0');
    check($result, false, 'an error in the second statement');
    pg_send_query($connection, 'SELECT pg_sleep(60)');
    usleep(200_000);
    check(pg_cancel_query($connection), true, 'a cancel');
    check(pg_fetch_result(pg_query($connection, 'SELECT 7'), 0, 0), '7', 'after a cancel');
    array_map(pg_close(...), $connections);
}

function persistent(): void
{
    // The connection goes back to PHP and not to the server; the next one finds it as it was left.
    for ($n = 0; $n < 5; $n += 1) {
        $pdo = open('', [PDO::ATTR_PERSISTENT => true]);
        check(value($pdo, 'SELECT CAST(? AS int)', [$n]), $n, 'a persistent connection');
        unset($pdo);
    }
}

function ordinary(): void
{
    $connections = array_map(fn (): PDO => open(), range(0, 5));
    statements($connections);
    transactions($connections[0], $connections[1]);
    cursors_and_copy($connections[2]);
    pgsql_extension();
    persistent();
    $connections[0]->exec('DROP TABLE driver_php');
}

/** A statement that goes out of scope is dropped with DEALLOCATE, also within a transaction. */
function deallocate(): void
{
    [$first, $second] = [open(), open()];
    for ($n = 0; $n < 5; $n += 1) {
        $first->beginTransaction();
        for ($m = 0; $m < 5; $m += 1) {
            check(value($first, 'SELECT CAST(? AS int)', [$m]), $m, 'a statement within a transaction');
        }
        busy($second, fn () => check(value($second, 'SELECT CAST(? AS int)', [$n]), $n, "another client's"));
        $first->commit();
        busy($second, fn () => check(value($first, 'SELECT CAST(? AS text)', ["é"]), 'é', 'on the other server'));
    }
}

function session_state(): void
{
    $second = open();
    $first = open("options='-c statement_timeout=5s -c geqo=off'");
    for ($n = 0; $n < 3; $n += 1) {
        busy($second, function () use ($first): void {
            check(value($first, 'SHOW statement_timeout'), '5s', 'an option of the start');
            check(value($first, 'SHOW geqo'), 'off', 'an option of the start');
        });
        check(value($second, 'SHOW geqo'), 'on', "another client's");
    }
    // What Laravel and Doctrine set behind each login.
    $second->exec('CREATE SCHEMA driver_php_side');
    $first->exec("SET NAMES 'utf8'");
    $first->exec("SET TIME ZONE 'Asia/Tokyo'");
    $first->exec('SET search_path TO "driver_php_side", "public"');
    $first->exec("SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL REPEATABLE READ");
    $first->exec('CREATE TABLE driver_php_side.hidden AS SELECT 7 AS n');
    for ($n = 0; $n < 3; $n += 1) {
        busy($second, function () use ($first): void {
            check(value($first, 'SELECT n FROM hidden'), 7, 'search_path on the other server');
            check(value($first, 'SHOW TIME ZONE'), 'Asia/Tokyo', 'the zone on the other server');
            check(value($first, 'SHOW transaction_isolation'), 'repeatable read', 'the level on the other server');
        });
        check(value($second, 'SHOW transaction_isolation'), 'read committed', "another client's level");
        check(value($second, "SELECT to_regclass('hidden')"), null, "another client's search_path");
    }
    unset($first);

    $first = open();
    check(value($first, 'SELECT pg_try_advisory_lock(15)'), true, 'an advisory lock');
    check(value($second, 'SELECT pg_try_advisory_lock(15)'), false, 'the lock of another client');
    busy($second, fn () => $first->exec('CREATE TEMPORARY TABLE driver_php_temp AS SELECT 3 AS n'));
    busy($second, fn () => check(value($first, 'SELECT n FROM driver_php_temp'), 3, 'a temporary table'));
    check(value($first, 'SELECT pg_advisory_unlock(15)'), true, 'the lock is given back');
    $first->exec('LISTEN driver_php');
    $second->exec("NOTIFY driver_php, 'word'");
    check($first->pgsqlGetNotify(PDO::FETCH_ASSOC, 5000)['payload'], 'word', 'a notification');
}

set_error_handler(fn (int $_, string $message) => error_reporting() & E_WARNING ? throw new ErrorException($message) : false);
match ($argv[1] ?? '') {
    '' => ordinary(),
    'deallocate' => deallocate(),
    'session-state' => session_state(),
};
echo "ok $checks checks\n";

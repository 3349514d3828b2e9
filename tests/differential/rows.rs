//! Scripts by hand: the cases of which poolers are known to get wrong. How they are written: `script.rs`.

/// What needs no session state between transactions.
pub const ROWS: &[(&str, &str)] = &[
    (
        "p3 an error in the middle of each kind of message, and what follows is skipped",
        "Parse s SELECT 1/$1::int / Bind - s 1 / Execute - / Bind - s 0 / Execute - / Bind - s 2 / Execute - / Sync
         Bind - s 2 / Execute - / Describe S nothing / Bind - s 2 / Execute - / Sync / Bind - s 3 / Execute - / Sync
         Bind - s 2 / Execute - / Execute nothing / Close S s / Sync / Bind - s 3 / Execute - / Sync
         Bind - s x / Close S s / Sync / Parse s SELECT 1 / Sync / Bind - s 3 / Execute - / Sync",
    ),
    (
        "p6 the driver asks what it has prepared, waits, and goes on",
        "Parse s SELECT n FROM items WHERE n > $1 / Describe S s / Flush
         B: Query BEGIN
         Bind - s 1 / Flush
         Describe P - / Execute - 1 / Flush
         Execute - 1 / Flush
         Execute - 0 / Flush
         Sync
         B: Query COMMIT
         Bind - s 2 / Execute - / Sync",
    ),
    (
        "p7 two portals are read in turns, and outlive the Syncs of their transaction",
        "Query BEGIN
         Parse s SELECT generate_series(1, 5) / Bind one s / Bind two s / Execute one 2 / Sync
         Execute two 1 / Execute one 2 / Sync
         Close S s / Execute one 2 / Execute two 0 / Sync
         Close P one / Execute one 1 / Sync
         Query ROLLBACK
         Execute two 1 / Sync",
    ),
    (
        "p8 errors behind Flush are told once, and nothing more until Sync",
        "Parse s SELEC / Flush
         Parse s SELECT 1 / Bind - s / Flush
         Query SELECT 'skipped' / Sync
         Parse s SELECT 1 / Bind - s / Execute - / Sync",
    ),
    (
        "p10 implicit transactions around several statements",
        "Query INSERT INTO log VALUES ('a'); INSERT INTO log VALUES ('b'); SELECT 1/0
         Query INSERT INTO log VALUES ('c'); COMMIT; INSERT INTO log VALUES ('d'); SELECT 1/0
         Query BEGIN; INSERT INTO log VALUES ('e'); COMMIT; SELECT 1/0
         Query SELECT 1; BEGIN; INSERT INTO log VALUES ('f'); SAVEPOINT a; SELECT 1/0
         Query ROLLBACK TO a; INSERT INTO log VALUES ('g'); COMMIT
         Query SELECT string_agg(word, ',') FROM log",
    ),
    (
        "p12 nothing, in all its forms",
        "Query  / Query ; / Query -- / Query ;;SELECT 1; / Parse -  / Bind - - / Describe P - / Execute - / Sync
         Sync / Sync / Flush
         Close S nothing / Close P nothing / Close S - / Close P - / Sync
         CopyDone / CopyFail nothing / CopyData nothing / Query SELECT 1",
    ),
    (
        "p14 transaction blocks that begin and end in the extended protocol",
        "Parse b BEGIN / Parse c COMMIT / Parse r ROLLBACK / Sync
         Bind - b / Execute - / Sync / Query INSERT INTO log VALUES ('x') / Bind - c / Execute - / Sync
         B: Query BEGIN
         Bind - b / Execute - / Parse - SELECT 1/0 / Bind - - / Execute - / Sync / Bind - r / Execute - / Sync
         Bind - c / Execute - / Sync
         Parse - COMMIT AND CHAIN / Bind - b / Execute - / Bind - - / Execute - / Sync
         Query ROLLBACK",
    ),
    (
        "p14 a block that failed refuses to prepare what the server has already",
        "Parse s SELECT 'known' / Close S s / Sync
         Query BEGIN / Query SELECT 1/0
         Parse t SELECT 'known' / Sync
         Query ROLLBACK
         Bind - t / Execute - / Sync
         Parse - BEGIN / Bind - - / Execute - / Parse - SELECT 1/0 / Bind - - / Execute - / Sync / Parse t SELECT 'known' / Sync
         Query ROLLBACK
         Parse t SELECT 'known' / Bind - t / Execute - / Sync",
    ),
    (
        "p17 notices stand where they were raised",
        "Query SELECT noisy('one'); SELECT noisy('two')
         Parse s SELECT noisy($1) / Bind - s one / Execute - / Bind - s two / Execute - / Sync
         Query BEGIN; BEGIN; COMMIT; COMMIT
         Query DO $$ BEGIN RAISE WARNING 'now'; RAISE EXCEPTION 'then' USING DETAIL = 'd', HINT = 'h', ERRCODE = 'P0009'; END $$",
    ),
    (
        "r13 a name in use, in a failed transaction, on a server that lacks it",
        "Parse s INSERT INTO items VALUES ($1, $2) / Sync
         B: Query BEGIN
         Query BEGIN
         Query SELECT 1/0
         Parse s ROLLBACK / Sync
         Parse s SELECT 1 / Sync
         Parse s SELEC / Sync
         Parse s COMMIT / Sync
         Query ROLLBACK
         Parse s SELECT 1 / Sync / Bind - s 7 seven / Execute - / Sync",
    ),
    (
        "r1 the other client has the same names for other statements",
        "Parse s SELECT 'mine' / Sync
         B: Parse s SELECT 'other' / Bind - s / Execute - / Sync
         Bind - s / Execute - / Sync
         B: Close S s / Parse s SELECT 'another' / Sync
         B: Query BEGIN
         Describe S s / Bind - s / Execute - / Sync
         Close S s / Bind - s / Execute - / Sync
         B: Bind - s / Execute - / Sync",
    ),
    (
        "r6 a Parse that fails leaves no name, and one that is skipped leaves the old one",
        "Parse s SELECT * FROM nowhere / Sync / Bind - s / Sync
         Parse s SELECT 1 / Bind - s / Execute - / Sync
         Bind - nothing / Close S s / Parse s SELECT 2 / Sync / Bind - s / Execute - / Sync
         Parse s SELECT 3 / Sync
         Bind - s / Execute - / Sync",
    ),
    (
        "r10 the same text with other types is another statement",
        "Parse a SELECT $1 / Describe S a / Sync
         Parse b(23) SELECT $1 / Describe S b / Sync
         Parse c(0) SELECT $1 / Describe S c / Bind - c text / Execute - / Sync
         B: Query BEGIN
         Bind - b \\x00000007 -> 1 / Describe P - / Execute - / Sync
         Bind - a \\x6162 -> 0 / Describe P - / Execute - / Sync
         Describe S b / Describe S a / Sync",
    ),
    (
        "r11 the unnamed statement lives until the next one or a Query",
        "Parse - SELECT $1::int / Sync
         B: Parse - SELECT 'other' / Sync
         Bind - - 1 / Execute - / Sync
         B: Query BEGIN
         Bind - - 2 / Execute - / Sync
         Query SELECT 'it is gone now'
         Bind - - 3 / Execute - / Sync
         Parse - SELECT 1 / Sync / Parse - SELEC / Sync / Bind - - / Execute - / Sync
         Parse - SELECT 1 / Sync / Close S - / Sync / Bind - - / Execute - / Sync
         Parse - SELECT 1 / Sync / FunctionCall 177 1 2 / Bind - - / Execute - / Sync
         Parse - DISCARD ALL / Bind - - / Execute - / Sync / Bind - - / Execute - / Sync",
    ),
    (
        "r12 a portal and a statement may have the same name",
        "Query BEGIN
         Parse x SELECT 1 / Bind x x / Close P x / Bind x x / Execute x / Sync
         Close P x / Describe S x / Execute x / Sync
         Query ROLLBACK
         Bind - x / Execute - / Sync",
    ),
    (
        "r13 a name in use is refused, behind all other faults of the text",
        "Parse s SELECT 1 / Parse s SELECT 2 / Sync
         Parse s SELECT 1 / Sync
         Parse s SELECT 1 / Sync / Bind - s / Execute - / Sync
         Parse s SELEC / Sync
         Parse s SELECT * FROM nowhere / Sync
         Close S s / Parse s SELECT 4 / Close S s / Parse s SELECT 5 / Bind - s / Execute - / Sync
         Query BEGIN
         Parse s SELECT 6 / Sync
         Parse s SELECT 6 / Sync
         Query ROLLBACK",
    ),
    (
        "r13 a name that is closed in a batch that is skipped is in use",
        "Parse s SELECT 1 / Parse t SELECT 2 / Sync
         Bind - nothing / Close S s / Sync / Close S s / Parse s SELECT 3 / Bind - s / Execute - / Sync
         Bind - nothing / Close S s / Parse s SELECT 2 / Sync / Bind - s / Execute - / Sync
         Bind - nothing / Close S s / Sync / Bind - s / Execute - / Sync
         Bind - nothing / Parse u SELECT 4 / Sync / Bind - u / Execute - / Sync",
    ),
    (
        "r15 who drops all statements has none left, and the other client has its own",
        "Parse s SELECT 1 / Sync
         B: Parse s SELECT 'other' / Sync
         Query DEALLOCATE ALL
         Bind - s / Execute - / Sync
         Parse s SELECT 2 / Bind - s / Execute - / Sync
         Parse d DEALLOCATE ALL / Bind - d / Execute - / Bind - d / Sync
         Bind - s / Execute - / Sync
         B: Bind - s / Execute - / Sync
         Query BEGIN / Query DISCARD ALL / Query ROLLBACK
         Query BEGIN; DEALLOCATE ALL; ROLLBACK
         Query DISCARD ALL; SELECT 1
         Query DISCARD PLANS / Query DISCARD TEMP",
    ),
    (
        "r18 what is prepared again on another server is described as before, in both formats",
        "Parse s SELECT n, word, n::numeric/3, n > 1 FROM items WHERE n >= $1 ORDER BY n / Describe S s / Sync
         B: Query BEGIN
         Describe S s / Bind - s 1 -> 1 0 1 1 / Describe P - / Execute - / Sync
         B: Query COMMIT
         Bind - s \\x00000002 -> 1 / Describe P - / Execute - 1 / Sync
         Bind - s NULL -> 0 / Describe P - / Execute - / Sync",
    ),
    (
        "k1 COPY in a block, in each protocol, well and badly ended",
        "Query BEGIN
         Query COPY log FROM STDIN
         CopyData a\\nb\\n
         CopyData c
         CopyDone
         Parse c COPY log FROM STDIN / Bind - c / Execute - / Flush
         CopyData d\\n / CopyData e / CopyDone / Sync
         Query SELECT count(*) FROM log / Query COMMIT
         Query COPY items FROM STDIN / CopyData 7\\tseven\\n / CopyFail no / Query SELECT 1
         Query COPY items FROM STDIN / CopyData 1\\tdouble\\n / CopyDone / Query SELECT 1
         Bind - c / Execute - / CopyData f\\n / CopyFail no / Sync / Query SELECT string_agg(word, ',') FROM log",
    ),
    (
        "k1 COPY beside other statements of one Query",
        "Query SELECT 1; COPY log FROM STDIN; SELECT 2 / CopyData a\\n / CopyDone
         Query COPY log FROM STDIN; SELECT 1/0 / CopyData b\\n / CopyDone
         Query COPY log TO STDOUT; COPY log FROM STDIN; COPY log TO STDOUT / CopyData c\\n / CopyDone
         Query BEGIN; COPY log FROM STDIN; COMMIT / CopyData d\\n / CopyDone",
    ),
    (
        "k2 data that comes behind the error is thrown away",
        "Query COPY items FROM STDIN
         CopyData bad\\n
         CopyData 8\\teight\\n / CopyDone
         Query SELECT count(*) FROM items
         Parse - COPY items FROM STDIN / Bind - - / Execute - / Flush
         CopyData bad\\n
         CopyData 8\\teight\\n / CopyDone / Sync
         Query COPY nowhere FROM STDIN
         CopyData 8\\n / CopyDone / Query SELECT 1",
    ),
    (
        "k5 COPY to the client, with an error in its middle",
        "Query COPY items TO STDOUT / Query COPY (SELECT generate_series(1, 500)) TO STDOUT
         Query COPY (SELECT 1/(n-3) FROM items ORDER BY n) TO STDOUT / Query SELECT 1
         Parse - COPY items TO STDOUT (FORMAT binary) / Describe S - / Bind - - / Describe P - / Execute - / Sync
         Parse - COPY (SELECT 1/(n-3) FROM items ORDER BY n) TO STDOUT / Bind - - / Execute - / Parse - SELECT 1 / Sync",
    ),
    (
        "k7 FunctionCall, also where it fails and where it is skipped",
        "FunctionCall 177 3 4 / FunctionCall 154 1 0 / FunctionCall 177 1 / FunctionCall 99999999
         Query BEGIN / FunctionCall 177 3 4 / FunctionCall 154 1 0 / FunctionCall 177 3 4 / Query ROLLBACK
         Parse - SELEC / FunctionCall 177 3 4 / Sync
         Parse - SELECT 1 / FunctionCall 177 3 4 / Bind - - / Execute - / Sync",
    ),
    (
        "s8 what is set for the transaction ends with it",
        "Query BEGIN; SET LOCAL work_mem = '5MB'; SET LOCAL TimeZone = 'Europe/Berlin'; SET TRANSACTION READ ONLY
         Query SHOW work_mem / Query SHOW TimeZone / Query INSERT INTO log VALUES ('no')
         Query ROLLBACK
         Query SHOW work_mem / Query SHOW TimeZone / Query SHOW transaction_read_only
         Query SET LOCAL work_mem = '5MB'
         Query SET TRANSACTION READ ONLY",
    ),
    (
        "s12 parameters that PostgreSQL reports are the client's own",
        "Query SET DateStyle = 'German'
         B: Query SET DateStyle = 'ISO, MDY'
         Query SELECT '2026-02-01'::date
         B: Query BEGIN / Query SET TimeZone = 'Asia/Tokyo'
         Query SET TIME ZONE 'Europe/Berlin' / Query SET application_name = 'it''s'
         Query SHOW TimeZone / Query SHOW application_name / Query SHOW DateStyle
         B: Query COMMIT
         Query BEGIN; SET DateStyle = 'SQL'; ROLLBACK
         Query SHOW TimeZone / Query SHOW DateStyle
         Query SET client_encoding = 'LATIN1' / Query SELECT chr(228)
         Query SET client_encoding = 'nonsense'
         Query RESET client_encoding / Query SELECT chr(228)",
    ),
    (
        "a1 a login with parameters",
        "Login DateStyle=German,~DMY TimeZone=Europe/Berlin application_name=the~app client_encoding=LATIN1
         Query SHOW DateStyle / Query SHOW TimeZone / Query SHOW application_name / Query SELECT chr(228)
         B: Query BEGIN
         Query SHOW DateStyle / Query SHOW TimeZone / Query SHOW application_name / Query SHOW client_encoding",
    ),
    (
        "d3 who says goodbye in the same write is answered first",
        "Query INSERT INTO log VALUES ('x') / Parse - INSERT INTO log VALUES ('y') / Bind - - / Execute - / Sync / Terminate",
    ),
    (
        "d3 what was not committed at the goodbye is not there",
        "Query BEGIN / Query INSERT INTO log VALUES ('x') / Terminate",
    ),
];

/// What needs the session state of transaction mode to follow the client.
pub const STATE_ROWS: &[(&str, &str)] = &[
    (
        "r14 a name of Parse is deallocated where its tables are not found",
        "Parse s INSERT INTO items VALUES ($1, $2) / Sync
         Query SET search_path = a
         B: Query BEGIN
         Query DEALLOCATE s
         Bind - s 1 2 / Sync",
    ),
    (
        "s5 a setting that a server has by default is not taken for one that was reset",
        "Login IntervalStyle=iso_8601
         Query SET IntervalStyle = 'postgres'
         B: Query BEGIN
         Query SET work_mem = '5MB'
         Query SHOW IntervalStyle
         B: Query ROLLBACK
         Query SHOW IntervalStyle",
    ),
    (
        "k3 a COPY that failed with Syncs in its data takes nothing of the session away",
        "Query CREATE TEMP TABLE temporary (n int)
         Query COPY items FROM STDIN
         Sync / CopyData \\tw35\\n135\\tw\\n / CopyDone
         Query INSERT INTO temporary VALUES (1)
         Query BEGIN
         Parse - COPY items FROM STDIN / Bind - - / Execute - 0 / Sync
         CopyData 1\\tw1\\n / CopyDone / Sync
         Query SELECT 1
         Query ROLLBACK
         Query SELECT * FROM temporary",
    ),
    (
        "s1 a SET is the client's own on each server",
        "Query SET statement_timeout = '50s'
         B: Query SHOW statement_timeout / Query BEGIN
         Query SHOW statement_timeout
         B: Query COMMIT / Query SET statement_timeout = '60s'
         Query SHOW statement_timeout",
    ),
    (
        "s2 a SET that is rolled back, wholly or in part, did not happen",
        "Query SET work_mem = '5MB'
         Query BEGIN / Query SET work_mem = '6MB' / Query SAVEPOINT a / Query SET work_mem = '7MB' / Query ROLLBACK TO a / Query COMMIT
         B: Query BEGIN
         Query SHOW work_mem
         Query BEGIN / Query SET work_mem = '8MB' / Query ROLLBACK
         B: Query COMMIT
         Query SHOW work_mem
         Query SET work_mem = '9MB'; SELECT 1/0
         Query SHOW work_mem",
    ),
    (
        "s3 pg_dump sets search_path to nothing",
        "Query SELECT pg_catalog.set_config('search_path', '', false);
         B: Query BEGIN
         Query SHOW search_path / Query SELECT * FROM t
         Query BEGIN; RESET search_path; ROLLBACK
         B: Query COMMIT
         Query SHOW search_path
         Query SELECT set_config('search_path', 'a', true); SHOW search_path
         Query SHOW search_path
         Query RESET search_path
         Query SELECT * FROM t",
    ),
    (
        "s5 a role is the client's own on each server",
        "Query SET ROLE differential_role
         B: Query BEGIN
         Query SELECT current_user, session_user
         B: Query COMMIT
         Query SELECT current_user, session_user
         Query RESET ROLE
         B: Query BEGIN
         Query SELECT current_user, session_user",
    ),
    (
        "s6 who only reads leaves others writing, and goes on reading",
        "Query SET default_transaction_read_only = on
         B: Query BEGIN / Query INSERT INTO log VALUES ('b') / Query ROLLBACK / Query BEGIN
         Query INSERT INTO log VALUES ('a')
         Query SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE, ISOLATION LEVEL SERIALIZABLE
         B: Query COMMIT
         Query INSERT INTO log VALUES ('a') / Query SHOW transaction_isolation",
    ),
    (
        "s7 forms of SET",
        "Query set Work_Mem to '5MB'; SET app.x = 'it''s'; SET \"app\".\"Y\" TO E'a\\\\b'
         B: Query BEGIN
         Query SHOW work_mem / Query SHOW app.x / Query SELECT current_setting('app.Y')
         Query /* why */ SET app.x TO '' -- because
         B: Query COMMIT
         Query SHOW app.x
         Parse - SET app.x = 'extended' / Bind - - / Execute - / Sync
         B: Query BEGIN
         Query SHOW app.x
         Query SET app.x TO DEFAULT / Query SHOW app.x
         Query RESET ALL / Query SHOW work_mem",
    ),
    (
        "s9 options of the login hold on each server",
        "Login options=-c~search_path=a~-c~work_mem=5MB extra_float_digits=0
         Query SHOW search_path / Query SHOW work_mem / Query SELECT * FROM t
         B: Query BEGIN
         Query SHOW search_path / Query SHOW work_mem / Query SELECT * FROM t
         Query SET work_mem = '6MB' / Query SHOW extra_float_digits
         B: Query COMMIT
         Query SHOW work_mem / Query SHOW extra_float_digits
         Query SET search_path = b / Query RESET ALL
         Query SHOW search_path / Query SHOW work_mem
         Query SET extra_float_digits = 3 / Query RESET extra_float_digits
         B: Query BEGIN
         Query SHOW extra_float_digits / Query DISCARD ALL
         Query SHOW search_path",
    ),
    (
        "s14 SQL's own prepared statements",
        "Query PREPARE q (int) AS SELECT $1 + 1
         B: Query PREPARE q AS SELECT 'other' / Query BEGIN
         Query EXECUTE q(1)
         Describe S q / Bind - q 7 / Execute - / Sync
         Query PREPARE q AS SELECT 1
         B: Query COMMIT
         Query DEALLOCATE q
         Query EXECUTE q(1)",
    ),
    (
        "s14 a temporary table, until it is dropped",
        "Query CREATE TEMP TABLE mine (n int)
         B: Query BEGIN
         Query INSERT INTO mine VALUES (1) / Query SELECT * FROM mine
         B: Query COMMIT
         Query SELECT * FROM mine
         Query DROP TABLE mine
         B: Query BEGIN
         Query SELECT * FROM mine",
    ),
    (
        "s14 an advisory lock, until it is given back",
        "Query SELECT pg_advisory_lock(1)
         B: Query BEGIN
         Query SELECT pg_try_advisory_lock(1)
         Query SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()
         Query SELECT pg_advisory_unlock(1) / Query SELECT pg_advisory_unlock(1)
         B: Query COMMIT
         Query SELECT pg_advisory_unlock(1)",
    ),
    (
        "s14 a cursor with hold",
        "Query BEGIN / Query DECLARE c CURSOR WITH HOLD FOR SELECT generate_series(1, 5) / Query FETCH 2 FROM c / Query COMMIT
         B: Query BEGIN
         Query FETCH 2 FROM c
         Query CLOSE c
         B: Query COMMIT
         Query FETCH 2 FROM c",
    ),
    (
        "s13 notifications of one's own channel",
        "Query LISTEN news
         B: Query BEGIN
         Query NOTIFY news, 'one'
         Query SELECT * FROM pg_listening_channels()
         Query UNLISTEN news
         Query NOTIFY news, 'two'",
    ),
    (
        "r9 the same text means another table under another search_path",
        "Query SET search_path = a
         Parse s SELECT * FROM t / Describe S s / Bind - s / Execute - / Sync
         B: Query SET search_path = b / Parse s SELECT * FROM t / Bind - s / Execute - / Sync
         B: Query BEGIN
         Bind - s / Describe P - / Execute - / Sync",
    ),
    (
        "r9 a Parse behind a SET search_path of its batch does not find what another one would",
        "Parse s SELECT n, word FROM items / Sync
         Parse path SET search_path = a / Bind - path / Execute - / Parse again SELECT n, word FROM items / Sync
         Query BEGIN / Query SET LOCAL search_path = b
         Parse again SELECT n, word FROM items / Sync
         Query ROLLBACK",
    ),
    (
        "r9 the same text means another date under another DateStyle",
        "B: Query SET DateStyle = 'ISO, MDY' / Parse x SELECT '01/02/2026'::date / Bind - x / Execute - / Sync
         Query SET DateStyle = 'ISO, DMY'
         Parse s SELECT '01/02/2026'::date / Bind - s / Execute - / Sync
         B: Query BEGIN
         Bind - s / Execute - / Sync",
    ),
    (
        "r9 the same text means another moment in another TimeZone",
        "Parse x SELECT timestamptz '2026-02-01 12:00' / Bind - x / Execute - / Sync
         Query SET TimeZone = 'Asia/Tokyo'
         Parse s SELECT timestamptz '2026-02-01 12:00' / Bind - s / Execute - / Sync
         Query SET TimeZone = 'Europe/Berlin' / Parse t SELECT timestamptz '2026-02-01 12:00' / Bind - t / Execute - / Sync",
    ),
    (
        "r9 the same text means another string without standard_conforming_strings",
        "Parse x SELECT 'a\\\\nb' / Bind - x / Execute - / Sync
         Query SET standard_conforming_strings = off / Query SET escape_string_warning = off
         Parse s SELECT 'a\\\\nb' / Bind - s / Execute - / Sync",
    ),
    (
        "r14 DEALLOCATE of what the protocol has prepared, and EXECUTE of it",
        "Parse s SELECT $1::int / Sync
         Query EXECUTE s(7)
         B: Query BEGIN
         Query EXECUTE s(8)
         [14] Query DEALLOCATE s
         Bind - s 1 / Execute - / Sync
         Parse s SELECT 2 / Bind - s / Execute - / Sync",
    ),
    (
        "s14 the unnamed statement of a client that keeps its server",
        "Parse - CREATE TEMP TABLE IF NOT EXISTS mine (n int) / Bind - - / Execute - / Sync
         Bind - - / Execute - / Sync
         Query SELECT pg_advisory_lock(1) / Parse - SELECT pg_advisory_unlock(1) / Bind - - / Execute - / Sync
         B: Query BEGIN
         Bind - - / Execute - / Sync",
    ),
];

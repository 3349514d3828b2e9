-- What psql does: its output must be psql.expected, line by line.
\set VERBOSITY sqlstate
\echo simple
SELECT 1 AS one, NULL AS nothing, 'text' AS word;
SELECT 1; SELECT 2;
SELECT 1 \; SELECT 2 \; SELECT 3;
SELECT 40 + 2 AS answer \gset
\echo answer :answer
\echo transaction
BEGIN;
CREATE TABLE driver_psql (n int PRIMARY KEY, word text);
INSERT INTO driver_psql VALUES (1, 'one') RETURNING n;
COMMIT;
\echo copy in
\copy driver_psql FROM stdin
2	two
3	three
4	\N
\.
\copy driver_psql (n) FROM PROGRAM 'seq 5 20000'
SELECT count(*), sum(n), count(word) FROM driver_psql;
\echo copy out
\copy (SELECT * FROM driver_psql ORDER BY n LIMIT 4) TO stdout
\copy (SELECT * FROM driver_psql ORDER BY n) TO PROGRAM 'cksum'
\echo errors
SELECT 1 / 0;
\echo :SQLSTATE
SELEKT;
\echo :SQLSTATE
BEGIN;
SELECT * FROM no_such_table;
\echo :SQLSTATE
SELECT 1;
\echo :SQLSTATE
COMMIT;
\copy driver_psql FROM stdin
1	duplicate
\.
SELECT count(*) FROM driver_psql;
DO $$ BEGIN RAISE EXCEPTION 'mine' USING ERRCODE = 'PW001'; END $$;
\echo :SQLSTATE
SELECT 'still here';
\echo cursors
\set FETCH_COUNT 100
SELECT n FROM generate_series(1, 1000) AS n \g |tail -n 1
\unset FETCH_COUNT
\echo large results
SELECT n, repeat('x', 100) FROM generate_series(1, 50000) AS n \g |cksum
SELECT repeat('y', 10000000) \g |wc -c
\echo long statement
SELECT length(:'LONG_TEXT');
\echo gexec
SELECT format('SELECT %s', n) FROM generate_series(1, 3) AS n \gexec
\echo describe
\d driver_psql
DROP TABLE driver_psql;

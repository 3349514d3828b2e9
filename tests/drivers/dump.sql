-- A database with something of everything that pg_dump asks for.
CREATE SCHEMA shop;
CREATE TYPE shop.kind AS ENUM ('free', 'paid');
CREATE DOMAIN shop.amount AS numeric(20, 4) CHECK (VALUE >= 0);
CREATE TABLE shop.customer (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL UNIQUE,
    kind shop.kind NOT NULL DEFAULT 'free',
    extra jsonb,
    picture bytea,
    ratio float8,
    joined timestamptz
);
CREATE TABLE shop.entry (customer bigint NOT NULL REFERENCES shop.customer, amount shop.amount, day date NOT NULL)
    PARTITION BY RANGE (day);
CREATE TABLE shop.entry_2023 PARTITION OF shop.entry FOR VALUES FROM ('2023-01-01') TO ('2024-01-01');
CREATE TABLE shop.entry_2024 PARTITION OF shop.entry FOR VALUES FROM ('2024-01-01') TO ('2025-01-01');
CREATE INDEX ON shop.entry (customer, day);
CREATE FUNCTION shop.total(bigint) RETURNS numeric LANGUAGE sql STABLE AS
    'SELECT coalesce(sum(amount), 0) FROM shop.entry WHERE customer = $1';
CREATE FUNCTION shop.touch() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN NEW.extra := coalesce(NEW.extra, '{}') || '{"touched": true}'; RETURN NEW; END $$;
CREATE TRIGGER touch BEFORE UPDATE ON shop.customer FOR EACH ROW EXECUTE FUNCTION shop.touch();
INSERT INTO shop.customer (name, kind, extra, picture, ratio, joined)
    SELECT 'é ' || n, (ARRAY['free', 'paid'])[n % 2 + 1]::shop.kind, jsonb_build_object('n', n, 'text', E'a\tb\\c'),
        decode(repeat(lpad(to_hex(n % 256), 2, '0'), n % 3000), 'hex'), 1 / n::float8, timestamptz '2024-01-01' + n * interval '1 hour'
    FROM generate_series(1, 1000) AS n;
INSERT INTO shop.entry SELECT n % 1000 + 1, n / 4.0, date '2023-01-01' + n % 700 FROM generate_series(1, 10000) AS n;
CREATE VIEW shop.best AS SELECT name, shop.total(id) AS total FROM shop.customer ORDER BY total DESC LIMIT 10;
CREATE MATERIALIZED VIEW shop.days AS SELECT day, sum(amount) AS total FROM shop.entry GROUP BY day;
CREATE UNIQUE INDEX ON shop.days (day);
SELECT lo_from_bytea(0, decode(repeat('00ff', 10000), 'hex')) IS NOT NULL AS large_object;
COMMENT ON TABLE shop.customer IS 'those who pay; é';
GRANT SELECT ON shop.customer TO PUBLIC;
ALTER SEQUENCE shop.customer_id_seq RESTART WITH 5000;

CREATE TABLE driver_sqlx (n int PRIMARY KEY, word text);
INSERT INTO driver_sqlx SELECT n, 'word ' || n FROM generate_series(1, 1000) AS n;

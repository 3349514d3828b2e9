CREATE INDEX driver_sqlx_word ON driver_sqlx (word);

DROP INDEX driver_sqlx_word;

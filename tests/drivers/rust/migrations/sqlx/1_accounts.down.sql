DROP TABLE driver_sqlx;

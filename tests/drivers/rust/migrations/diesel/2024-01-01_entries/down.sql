DROP TABLE driver_diesel;

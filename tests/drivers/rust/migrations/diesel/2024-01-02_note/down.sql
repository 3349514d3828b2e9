ALTER TABLE driver_diesel DROP COLUMN note;

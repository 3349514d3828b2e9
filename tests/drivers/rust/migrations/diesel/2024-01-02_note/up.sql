ALTER TABLE driver_diesel ADD COLUMN note text;

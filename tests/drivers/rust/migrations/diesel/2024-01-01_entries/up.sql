CREATE TABLE driver_diesel (id serial PRIMARY KEY, word text NOT NULL UNIQUE, tags text[] NOT NULL DEFAULT '{}');

"""The history of the schema; one file a step, each in a transaction of its own."""

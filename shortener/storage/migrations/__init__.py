"""The migrations of the schema. This version of the code requires the revision `HEAD`, which is the newest."""

HEAD = "0026"

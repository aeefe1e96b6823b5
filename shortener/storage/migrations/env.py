"""The entry point of Alembic. It uses the connection that `shortener.storage.migrate` passes. There is no alembic.ini."""

# Tested by tests/storage/test_migrate.py

from alembic import context

from shortener.storage.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
    transaction_per_migration=True,
)
with context.begin_transaction():
    context.run_migrations()

"""Alembic's entry: runs on the connection that `shortener.storage.migrate` hands over; there is no alembic.ini."""

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

"""Sort the queues of deliveries by bytes on PostgreSQL"""

# Tested by tests/delivery/test_queue_walk.py

from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # The dispatcher also compares names of queues in Python, so the database must have the same order. Linguistic collations,
    # such as those of most packages of PostgreSQL, sort "c12/~" before "c12/host". PostgreSQL does not copy the table, but builds
    # the indexes of this column again. Meanwhile, all reads and writes of deliveries wait, but clicks do not. In a process that
    # runs during the migration, one search for due deliveries fails, because its prepared statements have become invalid. The
    # search is then repeated.
    if op.get_context().dialect.name == "postgresql":
        op.execute('ALTER TABLE deliveries ALTER COLUMN lane TYPE text COLLATE "C"')

"""Leave the events of first clicks out of the index of events by message"""

# Tested by tests/storage/test_migrate.py

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    other = sa.text("coalesce(hit_id, 0) <> id")
    op.drop_index("events_by_message", "events")
    op.create_index("events_by_message", "events", ["message_id"], sqlite_where=other, postgresql_where=other)

"""Move the clicks of messages to the table first_clicks"""

# Tested by tests/storage/test_migrate.py

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    row_id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "first_clicks",
        sa.Column("id", row_id, autoincrement=False, nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=True),
        sa.Column("hit_id", sa.BigInteger(), nullable=True),
        sa.Column("links", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("first_clicks_pkey")),
    )
    op.execute(
        "INSERT INTO first_clicks (id, at, hit_id, links) SELECT id, clicked_at, click_hit_id, clicked_links FROM messages "
        "WHERE clicked_at IS NOT NULL OR clicked_links <> 0 ORDER BY id"
    )
    # `first_clicks` now stores that a message was clicked. Therefore the state of each clicked message becomes its state before
    # the first click.
    op.execute("UPDATE messages SET state = coalesce(previous_state, 0) WHERE clicked_at IS NOT NULL")
    for column in ("previous_state", "clicked_at", "click_hit_id", "clicked_links", "room"):
        op.drop_column("messages", column)

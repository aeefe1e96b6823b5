"""Add a table of changes of links, and columns for paths and defaults of domains; extend the permissions of API keys"""

# Tested by tests/storage/test_migrate.py

import json

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

#: All permissions that existed before this migration. An API key that has all of them also gets the new permissions.
_OLD_PERMISSIONS = {"sms.send", "sms.read", "trackers.write"}
_NEW_PERMISSIONS = {"trackers.read", "links.write", "privacy.erase", "privacy.reveal", "admin"}


def upgrade() -> None:
    row_id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.add_column("domains", sa.Column("path", sa.Text(), nullable=False, server_default=""))
    op.add_column("domains", sa.Column("previous_paths", sa.Text(), nullable=True))
    op.add_column("domains", sa.Column("home_url", sa.Text(), nullable=True))
    op.add_column("domains", sa.Column("assetlinks", sa.Text(), nullable=True))
    op.add_column("domains", sa.Column("apple_app_site_association", sa.Text(), nullable=True))
    op.add_column("domains", sa.Column("is_default", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("domains", sa.Column("removed_at", sa.BigInteger(), nullable=True))
    op.add_column("links", sa.Column("path", sa.Text(), nullable=True))
    op.create_table(
        "link_changes",
        sa.Column("id", row_id, autoincrement=False, nullable=False),
        sa.Column("link_id", sa.BigInteger(), nullable=False),
        sa.Column("application_id", sa.Integer(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("update_id", sa.BigInteger(), nullable=True),
        sa.Column("changes", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("link_changes_pkey")),
    )
    op.create_index(op.f("link_changes_by_link_id"), "link_changes", ["link_id"])
    op.create_table(
        "link_updates",
        sa.Column("id", row_id, autoincrement=False, nullable=False),
        sa.Column("application_id", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("filter", sa.Text(), nullable=False),
        sa.Column("changes", sa.Text(), nullable=False),
        sa.Column("total", sa.BigInteger(), nullable=True),
        sa.Column("counted", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("done", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("changed", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("last_message_id", sa.BigInteger(), nullable=False),
        sa.Column("range_index", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("cursor", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("lease_until", sa.BigInteger(), nullable=True),
        sa.Column("owner", sa.Text(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("finished_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("link_updates_pkey")),
    )
    op.create_index(op.f("link_updates_by_application_id"), "link_updates", ["application_id"])
    _extend_permissions()


def _extend_permissions() -> None:
    """Extend the permissions of API keys. A key that had all permissions gets the new ones. A key that may change trackers may
    now also read trackers."""
    connection = op.get_bind()
    keys = sa.table("api_keys", sa.column("id", sa.Integer), sa.column("permissions", sa.Text))
    for key in connection.execute(sa.select(keys)).all():
        permissions = set(json.loads(key.permissions))
        extended = set(permissions)
        if permissions >= _OLD_PERMISSIONS:
            extended |= _NEW_PERMISSIONS
        elif "trackers.write" in permissions:
            extended.add("trackers.read")
        if extended != permissions:
            text = json.dumps(sorted(extended), separators=(",", ":"))
            connection.execute(sa.update(keys).where(keys.c.id == key.id).values(permissions=text))

"""Add the tables of gateways, of messages that are handed on to them, of prices, balances and opt-outs"""

# Tested by tests/storage/test_migrate.py

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("applications", sa.Column("gateway_id", sa.Integer(), nullable=True))
    _create_gateways()
    _create_sends()
    _create_prices()


def _create_gateways() -> None:
    op.create_table(
        "gateways",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("application_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("preset", sa.Text(), server_default="", nullable=False),
        sa.Column("settings", sa.Text(), nullable=True),
        sa.Column("report_key", sa.Text(), nullable=True),
        sa.Column("report_key_hash", sa.Text(), nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("disabled_reason", sa.Text(), nullable=True),
        sa.Column("allow_private", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("on_doubt", sa.Text(), server_default="resend", nullable=False),
        sa.Column("max_attempts", sa.Integer(), nullable=True),
        sa.Column("timeout", sa.Float(), nullable=True),
        sa.Column("concurrency", sa.Integer(), nullable=True),
        sa.Column("schedule", sa.Text(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.Column("removed_at", sa.BigInteger(), nullable=True),
        sa.Column("revision", sa.Integer(), server_default="1", nullable=False),
        sa.Column("failures_in_row", sa.Integer(), server_default="0", nullable=False),
        sa.Column("open_until", sa.BigInteger(), nullable=True),
        sa.Column("opened_at", sa.BigInteger(), nullable=True),
        sa.Column("recovering_at", sa.BigInteger(), nullable=True),
        sa.Column("last_success_at", sa.BigInteger(), nullable=True),
        sa.Column("last_failure_at", sa.BigInteger(), nullable=True),
        sa.Column("max_per_second", sa.Float(), nullable=True),
        sa.Column("rate", sa.Float(), nullable=True),
        sa.Column("rate_ceiling", sa.Float(), nullable=True),
        sa.Column("rate_lowered_at", sa.BigInteger(), nullable=True),
        sa.Column("paced_until", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="gateways_pkey"),
        sa.UniqueConstraint("report_key_hash", name="gateways_report_key_hash_key"),
        sqlite_autoincrement=True,
    )
    _index("gateways_by_name", "gateways", ["application_id", "name"], "removed_at IS NULL", unique=True)


def _create_sends() -> None:
    row_id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "sends",
        sa.Column("id", row_id, autoincrement=False, nullable=False),
        sa.Column("application_id", sa.Integer(), nullable=False),
        sa.Column("gateway_id", sa.Integer(), nullable=False),
        sa.Column("status", sa.SmallInteger(), nullable=False),
        sa.Column("text", sa.Text(), nullable=True),
        sa.Column("attempt", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column("base_attempt", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column("queue", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column("next_at", sa.BigInteger(), nullable=False),
        sa.Column("lease_until", sa.BigInteger(), nullable=True),
        sa.Column("doubtful", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("cost", sa.Text(), nullable=True),
        sa.Column("refunded", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("finished_at", sa.BigInteger(), nullable=True),
        sa.Column("gateway_message_id", sa.Text(), nullable=True),
        sa.Column("last_status", sa.Integer(), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="sends_pkey"),
    )
    _index("sends_due", "sends", ["gateway_id", "queue", "next_at"], "status = 0")
    _index("sends_in_flight", "sends", ["gateway_id", "lease_until"], "lease_until IS NOT NULL")
    _index("sends_unfinished", "sends", ["id"], "status IN (0, 3)")
    _index("sends_held", "sends", ["application_id", "id"], "status = 3")
    _index("sends_by_gateway_message_id", "sends", ["gateway_id", "gateway_message_id"], "gateway_message_id IS NOT NULL")
    op.create_table(
        "send_attempts",
        sa.Column("id", row_id, autoincrement=False, nullable=False),
        sa.Column("send_id", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.SmallInteger(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("milliseconds", sa.Integer(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="send_attempts_pkey"),
    )
    op.create_index("send_attempts_by_send_id", "send_attempts", ["send_id"])


def _create_prices() -> None:
    row_id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "prices",
        sa.Column("application_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("prefix", sa.Text(), nullable=False),
        sa.Column("price", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("application_id", "prefix", name="prices_pkey"),
    )
    op.create_table(
        "balances",
        sa.Column("application_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("amount", sa.Text(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("application_id", name="balances_pkey"),
    )
    op.create_table(
        "balance_changes",
        sa.Column("id", row_id, autoincrement=False, nullable=False),
        sa.Column("application_id", sa.Integer(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("amount", sa.Text(), nullable=False),
        sa.Column("balance", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="balance_changes_pkey"),
    )
    op.create_index("balance_changes_by_application", "balance_changes", ["application_id", "id"])
    op.create_table(
        "opt_outs",
        sa.Column("application_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("phone", sa.Text(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("application_id", "phone", name="opt_outs_pkey"),
    )


def _index(name: str, table: str, columns: list[str], where: str, *, unique: bool = False) -> None:
    """Create a partial index: it contains only the rows that match a condition."""
    op.create_index(name, table, columns, unique=unique, sqlite_where=sa.text(where), postgresql_where=sa.text(where))

"""Change nothing; the revision is reserved"""

# Tested by tests/storage/test_migrate.py

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    pass

"""Changes of links, paths and defaults of domains"""

# Tested by tests/storage/test_migrate.py

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    pass

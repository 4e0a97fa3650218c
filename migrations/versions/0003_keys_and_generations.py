"""Add API keys, and generations that are embedded beside the active one."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

# 64 bits: SQLite generates primary keys only for columns of the type INTEGER.
Number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Add API keys, and generations that are embedded beside the active one."""
    op.create_table(
        "keys",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("rights", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_keys")),
        sa.UniqueConstraint("name", name=op.f("uq_keys_name")),
        sa.UniqueConstraint("sha256", name=op.f("uq_keys_sha256")),
    )
    op.add_column("library", sa.Column("model_setting", sa.String(), nullable=True))
    for column in (
        sa.Column("wanted", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("activate", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("completed_at", sa.DateTime(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
    ):
        op.add_column("generations", column)
    if op.get_bind().dialect.name == "sqlite":
        _changes_of_sqlite()
    else:
        op.add_column("changes", sa.Column("generation", sa.String(), server_default="", nullable=False))
        op.drop_constraint(op.f("uq_changes_video_key"), "changes", type_="unique")
        op.create_unique_constraint(op.f("uq_changes_video_key"), "changes", ["video_key", "generation"])
    op.create_index(op.f("ix_changes_generation"), "changes", ["generation"])


def _changes_of_sqlite() -> None:
    # Explicit statements: SQLite cannot change a constraint in place, and the change numbers must stay the same,
    # because an index snapshot stores the number of the last change that was applied to it.
    op.rename_table("changes", "changes_before")
    op.create_table(
        "changes",
        sa.Column("number", Number, nullable=False),
        sa.Column("video_key", Number, nullable=False),
        sa.Column("generation", sa.String(), server_default="", nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_changes")),
        sa.UniqueConstraint("video_key", "generation", name=op.f("uq_changes_video_key")),
        sqlite_autoincrement=True,
    )
    op.execute("INSERT INTO changes (number, video_key) SELECT number, video_key FROM changes_before ORDER BY number")
    # No number may be used twice, even if the row with the highest number was deleted.
    op.execute(
        "UPDATE sqlite_sequence SET seq = max(seq, (SELECT seq FROM sqlite_sequence WHERE name = 'changes_before')) "
        "WHERE name = 'changes' AND EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = 'changes_before')"
    )
    op.drop_table("changes_before")

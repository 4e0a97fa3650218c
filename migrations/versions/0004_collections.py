"""What the collections of vectors hold that are kept outside."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

# 64 bits: SQLite means them by the name INTEGER.
Number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """What the collections of vectors hold that are kept outside."""
    op.create_table(
        "collections",
        sa.Column("generation", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("next", sa.String(), server_default="", nullable=False),
        sa.Column("index_type", sa.String(), nullable=False),
        sa.Column("version", Number, nullable=False),
        sa.Column("number", Number, nullable=False),
        sa.Column("coming", Number, nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("largest", Number, nullable=False),
        sa.Column("moments", sa.LargeBinary(), nullable=False),
        sa.Column("batch", sa.LargeBinary(), nullable=True),
        sa.ForeignKeyConstraint(["generation"], ["generations.id"], name=op.f("fk_collections_generation")),
        sa.PrimaryKeyConstraint("generation", "kind", name=op.f("pk_collections")),
    )

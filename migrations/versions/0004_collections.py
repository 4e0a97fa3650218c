"""Add the state of vector collections in Milvus."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

# 64 bits: on SQLite a column of the type INTEGER has them.
Number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Add the state of vector collections in Milvus."""
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

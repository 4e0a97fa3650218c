"""Settings, read only from environment variables with the prefix `REELSRS_` and from an `.env` file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    NoDecode,
    SettingsConfigDict,
)

from service.errors import ConfigurationError
from service.models import MAX_FRAME_INTERVAL, MAX_FRAMES, Aggregation, Precision, Sampling
from service.names import readable, sqlite_url

PREFIX = "REELSRS_"
DEFAULT_MODEL = "ViT-B-32-256/datacomp_s34b_b86k"


class Settings(BaseSettings):
    """All settings, validated. Create them with `load`, which reports an invalid value in one sentence."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True
    )

    data_dir: Path = Field(Path("data"), description="folder of everything that ReelsRS stores")
    database_url: str | None = Field(
        None,
        description="sqlite:///FILE or postgresql+psycopg://USER:PASSWORD@HOST/NAME; unset: SQLite in the data folder",
    )
    vector_store: str = Field(
        "faiss",
        description="vector index: faiss, milvus+http://HOST:PORT, or milvus+PATH.db (Milvus Lite)",
    )
    storage_url: str | None = Field(
        None, description="folder of the stored clips, or s3://BUCKET/PREFIX; unset: in the data folder"
    )
    link_seconds: int | None = Field(
        None,
        ge=1,
        le=604_800,
        description="redirect clients to S3 by links valid for so many seconds; unset: the service streams the clips",
    )
    model: str = Field(
        DEFAULT_MODEL,
        description="open_clip NAME/PRETRAINED, local-dir:PATH of a checkpoint folder, starter (made here, without a "
        "model hub), or tiny (for tests)",
    )
    device: str = Field(
        "auto",
        description="auto (CUDA, then MPS, then the CPU), cpu, cuda, cuda:N, mps, or openvino (the CPU, by OpenVINO)",
    )
    precision: Precision = Field(
        "auto",
        description="auto (float16 on CUDA, else float32), float32, float16, bfloat16, or int8 (the CPU, by OpenVINO)",
    )
    num_frames: int = Field(10, ge=1, le=MAX_FRAMES, description="frames sampled from a clip")
    frame_interval: int | None = Field(
        None,
        ge=1,
        le=MAX_FRAME_INTERVAL,
        description="unset: frames spread evenly over the clip; N: every Nth frame from the start",
    )
    frames: Literal["exact", "keyframes"] = Field(
        "exact", description="exact, or keyframes: the keyframes nearest to the exact frames; faster in long clips"
    )
    aggregation: Aggregation = Field("mean", description="how the frames become one vector: mean or max")
    host: str = Field("127.0.0.1", description="address that `serve` listens on")
    port: int = Field(8000, ge=0, le=65535, description="port that `serve` listens on")
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (), description="comma-separated API keys with the right `admin`, in addition to those of `reelsrs keys create`"
    )
    allow_anyone: bool = Field(False, description="true: serve without an API key on addresses that others can reach")
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="comma-separated origins that browsers may call from; none by default"
    )
    max_upload_bytes: int = Field(1 << 30, ge=1, description="largest upload, bytes")
    max_duration_seconds: float = Field(3600.0, gt=0, description="longest clip, seconds")
    max_pixels: int = Field(8192 * 4352, ge=1, description="most pixels in one frame")
    max_uploads: int = Field(16, ge=1, description="most concurrent uploads; further ones return 429")
    max_queue: int = Field(
        10_000, ge=1, description="uploads return 429 while more videos than this wait to be embedded"
    )
    max_requests: int = Field(256, ge=4, description="most other concurrent requests; further ones return 429")
    requests_per_minute: int | None = Field(
        None, ge=1, description="most requests of one API key, or of one address without a key; unset: no limit"
    )

    @field_validator("api_keys", "cors_origins", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @field_validator("device")
    @classmethod
    def _known_device(cls, value: str) -> str:
        base, _, number = value.partition(":")
        if base not in ("auto", "cpu", "cuda", "mps", "openvino") or (
            number and not (base == "cuda" and number.isdigit())
        ):
            raise ValueError("must be auto, cpu, cuda, cuda:N, mps or openvino")
        return value

    @field_validator("vector_store")
    @classmethod
    def _known_engine(cls, value: str) -> str:
        engine, _, rest = value.partition("+")
        there = rest.startswith(("http://", "https://")) or ("://" not in rest and rest.endswith(".db"))
        if value != "faiss" and not (engine == "milvus" and there):
            raise ValueError("must be faiss, milvus+http://HOST:PORT or milvus+PATH.db")
        return value

    @field_validator("database_url")
    @classmethod
    def _known_database(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("sqlite:///", "postgresql+psycopg://")):
            raise ValueError("must start with sqlite:/// or postgresql+psycopg://")
        return value

    @field_validator("storage_url")
    @classmethod
    def _known_storage(cls, value: str | None) -> str | None:
        if value is not None and "://" in value and not value.startswith(("file://", "s3://")):
            raise ValueError("must be a folder or start with file:// or s3://")
        return value

    @property
    def sampling(self) -> Sampling:
        """Default sampling, for clips that are added without a sampling of their own."""
        return Sampling(self.num_frames, self.frame_interval)

    @property
    def database(self) -> str:
        """URL of the database, with the default filled in."""
        return self.database_url or sqlite_url(self.data_dir / "reelsrs.db")

    @property
    def storage(self) -> str:
        """Location of the stored clips, with the default filled in: a folder, or the URL of an object store."""
        return (self.storage_url or str(self.data_dir / "media")).removeprefix("file://")

    @property
    def requested_model(self) -> tuple[str | None, str | None]:
        """Configured model and precision; None for each that is not set explicitly, or is the precision `auto`.

        None leaves the choice to the library, because the defaults only apply to a new library.
        """
        explicit = {name: getattr(self, name) for name in ("model", "precision") if name in self.model_fields_set}
        return explicit.get("model"), None if explicit.get("precision") == "auto" else explicit.get("precision")

    def environ(self) -> dict[str, str]:
        """Return these settings as environment variables, for a child process.

        Settings that were not set explicitly are left out; otherwise the child process would take the default model for
        a configured one.
        """
        return {
            PREFIX + name.upper(): _as_text(getattr(self, name), secrets=True)
            for name in self.model_fields_set
            if getattr(self, name) is not None
        }


def load(**overrides: Any) -> Settings:
    """Load the settings of this process.

    `overrides` (command-line flags) take precedence; None among them is ignored. Raises ConfigurationError, which names
    the variable.
    """
    try:
        return Settings(**{name: value for name, value in overrides.items() if value is not None})
    except ValidationError as error:
        problems = "; ".join(
            f"{PREFIX}{'_'.join(str(part) for part in item['loc'][:1]).upper()}: {item['msg']} (got {item['input']!r})"
            if "keys" not in str(item["loc"])
            else f"{PREFIX}API_KEYS: {item['msg']}"
            for item in error.errors()
        )
        raise ConfigurationError(f"invalid setting: {problems}") from error


def describe(settings: Settings) -> list[dict[str, str | None]]:
    """Return name, value (secrets masked), source and description of every setting."""
    environment, dotenv = EnvSettingsSource(Settings)(), DotEnvSettingsSource(Settings)()
    rows: list[dict[str, str | None]] = []
    for name, field in Settings.model_fields.items():
        source = "environment" if name in environment else ".env" if name in dotenv else "default"
        value = getattr(settings, name)
        rows.append(
            {
                "name": PREFIX + name.upper(),
                "value": None if value is None else readable(_as_text(value)),
                "source": source,
                "description": field.description,
            }
        )
    return rows


def _as_text(value: Any, *, secrets: bool = False) -> str:
    if isinstance(value, tuple):
        return ",".join(_as_text(part, secrets=secrets) for part in value)
    if isinstance(value, SecretStr):
        return value.get_secret_value() if secrets else "********"
    return str(value).lower() if isinstance(value, bool) else str(value)

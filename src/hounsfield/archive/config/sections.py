"""Every key of config.toml, with its type, its bounds and its default: one frozen struct per section.

The defaults are the ones ``config.toml`` at the root of the repository shows; a test holds the two
together. A bound here keeps out values that can only be mistakes. What a limit protects is said where it
is enforced.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40

Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Count = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
Bytes = Annotated[int, msgspec.Meta(ge=1, le=1 << 62)]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=86_400)]
Milliseconds = Annotated[float, msgspec.Meta(ge=0, le=10_000)]
# PS3.5 6.2, VR AE: at most 16 characters of the default repertoire, no backslash, not only spaces.
Title = Annotated[str, msgspec.Meta(pattern=r"^(?! *$)[ -\[\]-~]{1,16}$")]

# Of the archive, or of a plugin: which there are is checked where plugins are known.
AeService = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9-]{0,31}$")]
Reason = Literal["quality", "patient-safety", "worklist", "expired"]


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of config.toml. Equal when every key is equal."""


class Archive(Section, frozen=True):
    data: str = "/var/lib/hounsfield"
    ae_title: Title = "HOUNSFIELD"
    workers: Annotated[int, msgspec.Meta(ge=0, le=256)] = 0  # 0: one per core
    drain_seconds: Seconds = 30.0


class Keys(Section, frozen=True):
    master_key: str = ""  # "": the development key


class DicomListener(Section, frozen=True):
    host: str = "127.0.0.1"
    port: Port = 11112
    plain: bool = False
    tls_certificate: str = ""
    tls_key: str = ""
    tls_client_ca: str = ""
    tls_client_crl: str = ""
    identity_required: bool = False

    @property
    def tls(self) -> bool:
        """Whether this listener speaks DICOM over TLS (PS3.15 B)."""
        return bool(self.tls_certificate)


class Dicom(Section, frozen=True):
    listeners: tuple[DicomListener, ...] = (DicomListener(),)
    check_called_title: bool = True
    called_titles: tuple[Title, ...] = ()
    calling_titles: tuple[Title, ...] = ()
    sources: tuple[str, ...] = ()
    tls_client_certificate: str = ""
    tls_client_key: str = ""
    tls_client_ca: str = ""
    tls_client_crl: str = ""
    association_events: bool = True
    associations_max: Count = 200
    associations_per_address_max: Count = 100
    pdu_bytes_max: Annotated[int, msgspec.Meta(ge=4 * KIB, le=16 * MIB)] = 256 * KIB
    artim_seconds: Seconds = 30.0
    idle_seconds: Seconds = 600.0
    dimse_seconds: Seconds = 60.0
    find_answers_max: Count = 100_000
    find_headers_max: Count = 20_000
    find_relational_always: bool = False
    move_associations: Annotated[int, msgspec.Meta(ge=1, le=16)] = 1
    move_retries: Annotated[int, msgspec.Meta(ge=0, le=100)] = 2
    availability_to: tuple[Title, ...] = ()


class Identity(Section, frozen=True):
    """User identity in DICOM associations (PS3.7 D.3.3.7)."""

    names_alone: bool = False
    jwt_keys: tuple[str, ...] = ()
    jwt_secret_file: str = ""
    jwt_issuer: str = ""
    jwt_audience: str = ""
    jwt_user_claim: str = "sub"


class HttpListener(Section, frozen=True):
    host: str = "127.0.0.1"
    port: Port = 8042
    tls_certificate: str = ""
    tls_key: str = ""

    @property
    def tls(self) -> bool:
        """Whether this listener speaks HTTPS."""
        return bool(self.tls_certificate)


class Http(Section, frozen=True):
    listeners: tuple[HttpListener, ...] = (HttpListener(),)
    bearer_token_file: str = ""
    base_url: str = ""
    trusted_proxies: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    deletion_by: tuple[str, ...] = ()
    tiering_by: tuple[str, ...] = ()
    connections_max: Count = 1000
    uploads_max: Count = 64
    feeds_max: Count = 64
    header_bytes_max: Annotated[int, msgspec.Meta(ge=KIB, le=MIB)] = 32 * KIB
    body_bytes_max: Bytes = 64 * GIB
    header_seconds: Seconds = 15.0
    body_idle_seconds: Seconds = 30.0
    write_stall_seconds: Seconds = 30.0
    keep_alive_seconds: Seconds = 75.0


class Ingest(Section, frozen=True):
    memory_bytes_max: Annotated[int, msgspec.Meta(ge=8 * MIB, le=TIB)] = 2 * GIB
    memory_wait_seconds: Seconds = 20.0
    stream_bytes_min: Annotated[int, msgspec.Meta(ge=MIB, le=GIB)] = 32 * MIB
    object_bytes_max: Bytes = TIB
    group_wait_ms_max: Milliseconds = 4.0
    group_objects_max: Count = 256
    group_bytes_max: Bytes = 64 * MIB
    compression: Literal["none", "zstd", "jpegxl", "htj2k"] = "none"


class Storage(Section, frozen=True):
    duplicates: Literal["keep-first", "newest-current"] = "keep-first"
    rejection_notes: tuple[Reason, ...] = ("quality", "patient-safety", "worklist", "expired")
    study_stable_seconds: Seconds = 60.0
    metadata_quiet_seconds: Seconds = 10.0
    metadata_bytes_max: Annotated[int, msgspec.Meta(ge=MIB, le=TIB)] = 4 * GIB
    segment_bytes_max: Annotated[int, msgspec.Meta(ge=MIB, le=TIB)] = GIB
    index_map_bytes: Annotated[int, msgspec.Meta(ge=64 * MIB, le=64 * TIB)] = TIB
    direct_writes: bool = True
    disk_reserve_bytes: Annotated[int, msgspec.Meta(ge=0, le=TIB)] = 512 * MIB


class Scrub(Section, frozen=True):
    days: Annotated[float, msgspec.Meta(ge=0, le=3650)] = 30.0  # 0: only when asked
    bytes_per_second: Annotated[int, msgspec.Meta(ge=0, le=1 << 40)] = 32 * MIB  # 0: as fast as it goes
    copies: tuple[str, ...] = ()


class Frames(Section, frozen=True):
    decoded_bytes_max: Annotated[int, msgspec.Meta(ge=0, le=TIB)] = 128 * MIB
    transcoded_bytes_max: Annotated[int, msgspec.Meta(ge=0, le=TIB)] = 256 * MIB
    processes_max: Annotated[int, msgspec.Meta(ge=1, le=64)] = 2
    process_bytes_max: Annotated[int, msgspec.Meta(ge=512 * MIB, le=TIB)] = GIB
    frame_seconds_max: Seconds = 20.0
    frame_bytes_max: Annotated[int, msgspec.Meta(ge=MIB, le=8 * GIB)] = 128 * MIB


class Rendered(Section, frozen=True):
    files_bytes_max: Annotated[int, msgspec.Meta(ge=0, le=TIB)] = 128 * MIB
    descriptions_bytes_max: Annotated[int, msgspec.Meta(ge=0, le=TIB)] = 96 * MIB
    film_frames_max: Count = 1024
    film_bytes_max: Annotated[int, msgspec.Meta(ge=MIB, le=TIB)] = 256 * MIB
    films_bytes_max: Annotated[int, msgspec.Meta(ge=MIB, le=TIB)] = 512 * MIB
    films_wait_seconds: Seconds = 60.0
    at_once_max: Annotated[int, msgspec.Meta(ge=1, le=64)] = 2
    video_bytes_max: Annotated[int, msgspec.Meta(ge=0, le=8 * GIB)] = 256 * MIB
    video_seconds_max: Seconds = 60.0
    fonts: tuple[str, ...] = ()


class Compaction(Section, frozen=True):
    dead_fraction: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.25
    erase_days: Annotated[float, msgspec.Meta(ge=0, le=3650)] = 30.0
    quiet_seconds: Annotated[float, msgspec.Meta(ge=0, le=86_400)] = 600.0
    bytes_per_second: Annotated[int, msgspec.Meta(ge=0, le=1 << 40)] = 64 * MIB  # 0: as fast as it goes


class Logs(Section, frozen=True):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "console"] = "auto"


class Metrics(Section, frozen=True):
    enabled: bool = True


class RemoteAE(Section, frozen=True):
    """One application entity that is known here: where it listens, from where it may call, and what it may
    do. The rules between its keys are :func:`~hounsfield.archive.config.entities.check_ae`'s.
    """

    title: Title
    host: str = ""
    port: Port = 104
    tls: bool = False
    sources: tuple[str, ...] = ()
    comment: str = ""
    services: tuple[AeService, ...] = ()
    associations_max: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 0
    refused_sop_classes: tuple[str, ...] = ()
    refused_transfer_syntaxes: tuple[str, ...] = ()
    preferred_transfer_syntaxes: tuple[str, ...] = ()
    called_title: str = ""
    calling_title: str = ""
    tls_ca: str = ""
    tls_crl: str = ""
    tls_certificate: str = ""
    tls_key: str = ""
    certificates: tuple[str, ...] = ()
    identity_required: bool = False
    users: tuple[str, ...] = ()
    commitment_to: str = ""
    move_associations: Annotated[int, msgspec.Meta(ge=0, le=16)] = 0


class CoercionEntry(Section, frozen=True):
    """What becomes of attributes on receipt: see :mod:`hounsfield.archive.dicom.coercion`."""

    name: str
    match: dict[str, Any] = {}
    copy: dict[str, str] = {}
    map: dict[str, dict[str, str]] = {}
    set: dict[str, str] = {}
    remove: tuple[str, ...] = ()


class RouteEntry(Section, frozen=True):
    """What is sent on to whom, and how. ``match`` is a rule: see :mod:`hounsfield.archive.dicom.rules`."""

    name: str
    to: tuple[Title, ...]
    match: dict[str, Any] = {}
    when: Literal["received", "stable"] = "received"
    transfer_syntaxes: tuple[str, ...] = ()
    associations: Annotated[int, msgspec.Meta(ge=1, le=32)] = 1
    priority: Annotated[int, msgspec.Meta(ge=-100, le=100)] = 0
    retries: Annotated[int, msgspec.Meta(ge=0, le=10_000)] = 10
    back_off_seconds: Seconds = 5.0
    back_off_seconds_max: Seconds = 300.0
    give_up_hours: Annotated[float, msgspec.Meta(ge=0, le=87_600)] = 0.0  # 0: never
    bytes_per_second: Annotated[int, msgspec.Meta(ge=0, le=1 << 40)] = 0  # 0: as fast as it goes
    hours: str = ""
    back_to_sender: bool = False


class Tiering(Section, frozen=True):
    plan_minutes: Annotated[float, msgspec.Meta(gt=0, le=10_080)] = 60.0
    quiet_minutes: Annotated[float, msgspec.Meta(ge=0, le=10_080)] = 60.0
    bytes_per_second: Annotated[int, msgspec.Meta(ge=0, le=1 << 40)] = 32 * MIB  # 0: as fast as they go
    recall_when_opened: bool = True
    recalled_days: Annotated[float, msgspec.Meta(ge=0, le=36_500)] = 7.0
    recalled_bytes_max: Annotated[int, msgspec.Meta(ge=0, le=1 << 62)] = 0  # 0: no limit
    range_bytes_max: Bytes = 128 * MIB


class Prefetch(Section, frozen=True):
    hours_before: Annotated[float, msgspec.Meta(ge=0, le=8760)] = 24.0
    priors_max: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 3
    years_max: Annotated[float, msgspec.Meta(gt=0, le=200)] = 10.0
    only: Literal["any", "modality", "body-part", "both"] = "any"


class TierEntry(Section, frozen=True):
    """A place for copies of packs beside the data directory: ``directory``, or ``bucket`` of an S3 server."""

    name: Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9-]{0,31}$")]
    directory: str = ""
    bucket: str = ""
    endpoint: str = ""
    region: str = "us-east-1"
    prefix: str = ""
    path_style: Literal["auto", "path", "host"] = "auto"
    tls_ca: str = ""
    plain: bool = False
    credentials: str = "default"
    requests_max: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 16
    retry_seconds: Seconds = 60.0
    silence_seconds: Seconds = 20.0
    verify_days: Annotated[float, msgspec.Meta(ge=0, le=36_500)] = 90.0


class TierRuleEntry(Section, frozen=True):
    """What lies where: see :mod:`hounsfield.archive.engine.tier_rules`. Numbers of 0 are not asked for."""

    name: str
    action: Literal["move", "copy", "recompress", "pin", "expire"]
    match: dict[str, Any] = {}
    to: tuple[str, ...] = ()
    compress: Literal["none", "zstd", "jpegxl", "htj2k"] = "none"
    older_than_days: Annotated[float, msgspec.Meta(ge=0, le=36_500)] = 0.0
    not_opened_days: Annotated[float, msgspec.Meta(ge=0, le=36_500)] = 0.0
    bytes_min: Annotated[int, msgspec.Meta(ge=0, le=1 << 62)] = 0
    bytes_max: Annotated[int, msgspec.Meta(ge=0, le=1 << 62)] = 0
    patient_age_min: Annotated[int, msgspec.Meta(ge=0, le=150)] = 0
    patient_age_max: Annotated[int, msgspec.Meta(ge=0, le=150)] = 0
    fill_above: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.0
    fill_until: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.0
    report_states: tuple[str, ...] = ()
    keep_years: Annotated[float, msgspec.Meta(ge=0, le=200)] = 0.0
    keep_until_age: Annotated[int, msgspec.Meta(ge=0, le=150)] = 0
    keep_from_study: bool = False


class Config(Section, frozen=True):
    """The whole of config.toml."""

    archive: Archive = Archive()
    keys: Keys = Keys()
    dicom: Dicom = Dicom()
    identity: Identity = Identity()
    http: Http = Http()
    ingest: Ingest = Ingest()
    storage: Storage = Storage()
    scrub: Scrub = Scrub()
    frames: Frames = Frames()
    rendered: Rendered = Rendered()
    compaction: Compaction = Compaction()
    tiering: Tiering = Tiering()
    prefetch: Prefetch = Prefetch()
    logs: Logs = Logs()
    metrics: Metrics = Metrics()
    aes: tuple[RemoteAE, ...] = ()
    routes: tuple[RouteEntry, ...] = ()
    coercions: tuple[CoercionEntry, ...] = ()
    tiers: tuple[TierEntry, ...] = ()
    tier_rules: tuple[TierRuleEntry, ...] = ()
    plugins: dict[str, dict[str, Any]] = {}  # by name; what may stand there is each one's own


# The keys whose value says where a secret is. They are shown; what they point at never is.
SECRET_SOURCES = frozenset({"keys.master_key", "http.bearer_token_file", "identity.jwt_secret_file"})

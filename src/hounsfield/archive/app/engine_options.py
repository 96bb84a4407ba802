"""config.toml's keys as the engine's own limits: each package defines its limits, this maps onto them."""

from __future__ import annotations

import math

from hounsfield.archive.app.tier_options import tiering_options
from hounsfield.archive.config import Config
from hounsfield.archive.dicom.rejection import REASONS
from hounsfield.archive.engine.compaction import CompactionLimits
from hounsfield.archive.engine.decoding import DecodingLimits
from hounsfield.archive.engine.engine import EngineOptions
from hounsfield.archive.engine.ingest import IngestLimits
from hounsfield.archive.engine.isolation import IsolationLimits
from hounsfield.archive.engine.large_objects import LargeLimits
from hounsfield.archive.engine.prepared_store import PreparedLimits
from hounsfield.archive.engine.rendered import RenderedLimits
from hounsfield.archive.engine.scrub import ScrubLimits
from hounsfield.archive.engine.transcoding import TranscodingLimits
from hounsfield.storage_backends.lmdb_store import LmdbLimits
from hounsfield.storage_backends.local_blobs import LocalBlobLimits
from hounsfield.storage_backends.segment_appending import SegmentLimits

OBJECTS_AT_LEAST = 4  # gathered blocks are powers of two: up to twice as large as what they hold


def engine_options(config: Config, workers: int) -> EngineOptions:
    """The options of one worker's engine out of ``workers``.

    The memory for objects in flight is the archive's, so each worker has its share; but never less than a few
    objects take that are just about to be too long to be gathered, or such an object could never be received.
    """
    ingest, storage = config.ingest, config.storage
    of_one = ingest.stream_bytes_min + LargeLimits().memory_bytes
    share = max(ingest.memory_bytes_max // workers, OBJECTS_AT_LEAST * of_one)
    return EngineOptions(
        ingest=IngestLimits(
            bytes_in_flight_max=share,
            budget_wait_s_max=ingest.memory_wait_seconds,
            stream_bytes_min=ingest.stream_bytes_min,
            object_bytes_max=ingest.object_bytes_max,
            group_wait_s_max=ingest.group_wait_ms_max / 1000,
            group_objects_max=ingest.group_objects_max,
            group_bytes_max=ingest.group_bytes_max,
        ),
        segments=SegmentLimits(segment_bytes=storage.segment_bytes_max),
        blobs=LocalBlobLimits(reserve_bytes=storage.disk_reserve_bytes),
        direct_writes=storage.direct_writes,
        # Half of the blobs' reserve, so that the index can still record a deletion when blobs are full.
        index=LmdbLimits(map_bytes=storage.index_map_bytes, reserve_bytes=storage.disk_reserve_bytes // 2),
        duplicates=storage.duplicates,
        rejection_notes=frozenset(code for code, name in REASONS.items() if name in storage.rejection_notes),
        compression="" if ingest.compression == "none" else ingest.compression,
        study_stable_s=storage.study_stable_seconds,
        metadata=PreparedLimits(quiet_s=storage.metadata_quiet_seconds, bytes_max=storage.metadata_bytes_max),
        isolation=IsolationLimits(
            memory_bytes_max=config.frames.process_bytes_max,
            cpu_s_max=math.ceil(config.frames.frame_seconds_max / 2),
            wall_s_max=config.frames.frame_seconds_max,
            frame_bytes_max=config.frames.frame_bytes_max,
            processes_max=config.frames.processes_max,
        ),
        decoding=DecodingLimits(cache_bytes_max=config.frames.decoded_bytes_max // workers),
        transcoding=TranscodingLimits(cache_bytes_max=config.frames.transcoded_bytes_max // workers),
        rendered=RenderedLimits(
            cache_bytes_max=config.rendered.files_bytes_max // workers,
            descriptions_bytes_max=config.rendered.descriptions_bytes_max // workers,
            animation_frames_max=config.rendered.film_frames_max,
            animation_bytes_max=config.rendered.film_bytes_max,
            films_bytes_max=config.rendered.films_bytes_max,
            films_wait_s_max=config.rendered.films_wait_seconds,
            at_once_max=config.rendered.at_once_max,
            video_bytes_max=config.rendered.video_bytes_max,
            video_seconds_max=config.rendered.video_seconds_max,
        ),
        fonts=config.rendered.fonts,
        compaction=CompactionLimits(
            dead_fraction=config.compaction.dead_fraction,
            erase_s=config.compaction.erase_days * 86_400,
            quiet_s=config.compaction.quiet_seconds,
            bytes_per_second=config.compaction.bytes_per_second,
        ),
        scrub=ScrubLimits(
            interval_s=config.scrub.days * 86_400,
            bytes_per_second=config.scrub.bytes_per_second,
            copies=config.scrub.copies,
        ),
        tiering=tiering_options(config, workers),
    )

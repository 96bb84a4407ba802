"""The header of a synthetic instance: as many elements, sequences and private elements as a scanner
writes.
"""

from __future__ import annotations

from typing import Any

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    CTImageStorage,
    MRImageStorage,
    UltrasoundMultiFrameImageStorage,
)

# What stands in a template where an instance's own value goes. Each is valid for its VR, as long as every
# value it is replaced by, and occurs nowhere else.
SLOT_MARKERS: dict[str, bytes] = {
    "sop_instance_uid": b"2.25.199999999999993000000000000000000000001",
    "study_uid": b"2.25.199999999999991000000000000000000000001",
    "series_uid": b"2.25.199999999999992000000000000000000000001",
    "frame_of_reference_uid": b"2.25.199999999999994000000000000000000000001",
    "patient_id": b"HF7777700001",
    "patient_name": b"Marker^Of A Patient Name",
    "birth_date": b"19010203",
    "accession": b"A55555000021",
    "study_id": b"S4444001",
    "date": b"19020304",
    "time": b"235911",
    "series_number": b"666661",
    "instance_number": b"88888123",
    "slice_mm": b"-98765.432",
}

# Specific Character Set (PS3.3 C.12.1.1.2) and a name in it, with ideographic and phonetic groups where
# there are any.
REPERTOIRES: dict[str, tuple[str | list[str], str]] = {
    "latin": ("ISO_IR 100", "Marker^Of A Patient Name"),
    "western": ("ISO_IR 100", "Grünwald^Zoë"),
    "greek": ("ISO_IR 126", "Διονυσιος^Παπας"),
    "japanese": (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
    "korean": (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동"),
    "chinese": ("ISO_IR 192", "Wang^XiaoDong=王^小东"),
}

_SOP_CLASSES = {
    "ct": CTImageStorage,
    "mr": MRImageStorage,
    "small": MRImageStorage,
    "cr": ComputedRadiographyImageStorage,
    "us": UltrasoundMultiFrameImageStorage,
}
_SIZES = {"ct": (512, 512), "mr": (256, 256), "small": (128, 128), "cr": (2500, 2048), "us": (480, 640)}
_MODALITIES = {"ct": "CT", "mr": "MR", "small": "MR", "cr": "CR", "us": "US"}


def build_header(kind: str, repertoire: str) -> Dataset:
    """Everything but PixelData, with slot markers in place of what differs between instances."""
    mark = {name: value.decode() for name, value in SLOT_MARKERS.items()}
    charset, name = REPERTOIRES[repertoire]
    dataset = Dataset()
    _set(
        dataset,
        SpecificCharacterSet=charset,
        SOPClassUID=_SOP_CLASSES[kind],
        SOPInstanceUID=mark["sop_instance_uid"],
        StudyInstanceUID=mark["study_uid"],
        SeriesInstanceUID=mark["series_uid"],
        InstanceCreationDate=mark["date"],
        InstanceCreationTime=mark["time"],
        StudyDate=mark["date"],
        SeriesDate=mark["date"],
        AcquisitionDate=mark["date"],
        ContentDate=mark["date"],
        StudyTime=mark["time"],
        SeriesTime=mark["time"],
        AcquisitionTime=mark["time"],
        ContentTime=mark["time"],
        AccessionNumber=mark["accession"],
        Modality=_MODALITIES[kind],
        Manufacturer="Synthetic Medical Systems",
        InstitutionName="Hounsfield General",
        InstitutionAddress="1 Slice Street, Wakefield",
        InstitutionalDepartmentName="Radiology",
        ReferringPhysicianName="Cormack^Allan^^Dr",
        StationName=f"{_MODALITIES[kind]}01",
        StudyDescription="CHEST AND ABDOMEN WITH CONTRAST" if kind == "ct" else "STANDARD EXAMINATION",
        SeriesDescription="Thorax 0.6 B31f" if kind == "ct" else "axial overview",
        PerformingPhysicianName="Roentgen^Wilhelm",
        NameOfPhysiciansReadingStudy="Curie^Marie",
        OperatorsName="Operator^One",
        ManufacturerModelName="Tomo 2026",
        PatientName=name,
        PatientID=mark["patient_id"],
        IssuerOfPatientID="HOUNSFIELD-BENCH",
        PatientBirthDate=mark["birth_date"],
        PatientSex="O",
        PatientAge="054Y",
        PatientSize="1.75",
        PatientWeight="75.5",
        PatientPosition="HFS",
        AdditionalPatientHistory="Synthetic. Generated for measurements; nobody was examined.",
        BodyPartExamined="CHEST",
        ProtocolName="Thorax routine",
        DeviceSerialNumber="000042",
        SoftwareVersions=["syn VB20A", "recon 7.1"],
        StudyID=mark["study_id"],
        SeriesNumber=mark["series_number"],
        AcquisitionNumber="1",
        InstanceNumber=mark["instance_number"],
        LossyImageCompression="00",
        PerformedProcedureStepStartDate=mark["date"],
        PerformedProcedureStepStartTime=mark["time"],
        PerformedProcedureStepID="PPS0001",
        PerformedProcedureStepDescription="Thorax routine",
        RequestedProcedureDescription="CT THORAX",
        RequestingPhysician="Cormack^Allan^^Dr",
        CommentsOnThePerformedProcedureStep="none",
    )
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    _add_pixels_description(dataset, kind)
    _add_sequences(dataset)
    if kind in {"ct", "mr", "small"}:
        _add_geometry(dataset, mark)
    if kind == "ct":
        _add_ct(dataset)
    elif kind in {"mr", "small"}:
        _add_mr(dataset)
    elif kind == "cr":
        _set(
            dataset, ViewPosition="PA", KVP="117", PlateID="P01", CassetteSize="35CMX43CM", ExposureTime="12"
        )
        _set(dataset, SliceLocation=mark["slice_mm"], FrameOfReferenceUID=mark["frame_of_reference_uid"])
    elif kind == "us":
        _set(
            dataset,
            NumberOfFrames="10",
            FrameTime="33.3",
            RecommendedDisplayFrameRate="30",
            TransducerData="C5-1",
        )
        _set(dataset, SliceLocation=mark["slice_mm"], FrameOfReferenceUID=mark["frame_of_reference_uid"])
        dataset.FrameIncrementPointer = 0x00181063
    _add_private(dataset, kind)
    return dataset


def _add_pixels_description(dataset: Dataset, kind: str) -> None:
    rows, columns = _SIZES[kind]
    _set(dataset, Rows=rows, Columns=columns, PixelRepresentation=0, BurnedInAnnotation="NO")
    if kind == "us":
        _set(dataset, SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0)
        _set(dataset, BitsAllocated=8, BitsStored=8, HighBit=7)
        return
    _set(dataset, SamplesPerPixel=1, PhotometricInterpretation="MONOCHROME2")
    _set(
        dataset,
        BitsAllocated=16,
        BitsStored=12,
        HighBit=11,
        SmallestImagePixelValue=0,
        LargestImagePixelValue=4095,
    )
    dataset.WindowCenter = ["1064", "524"]
    dataset.WindowWidth = ["400", "1500"]
    dataset.WindowCenterWidthExplanation = ["WINDOW1", "WINDOW2"]


def _add_geometry(dataset: Dataset, mark: dict[str, str]) -> None:
    _set(
        dataset,
        ImagePositionPatient=["-187.500", "-187.500", mark["slice_mm"]],
        ImageOrientationPatient=["1", "0", "0", "0", "1", "0"],
        FrameOfReferenceUID=mark["frame_of_reference_uid"],
        PositionReferenceIndicator="",
        SliceLocation=mark["slice_mm"],
        SliceThickness="0.625",
        SpacingBetweenSlices="0.625",
        PixelSpacing=["0.7324219", "0.7324219"],
    )


def _add_ct(dataset: Dataset) -> None:
    _set(
        dataset,
        ContrastBolusAgent="Iodine 300",
        ContrastBolusRoute="IV",
        ContrastBolusVolume="90",
        ScanOptions="HELICAL MODE",
        KVP="120",
        DataCollectionDiameter="500",
        ReconstructionDiameter="375",
        DistanceSourceToDetector="1040",
        DistanceSourceToPatient="570",
        GantryDetectorTilt="0",
        TableHeight="150.5",
        RotationDirection="CW",
        ExposureTime="500",
        XRayTubeCurrent="215",
        Exposure="107",
        FilterType="WEDGE_3",
        GeneratorPower="32",
        FocalSpots=["1.2", "1.2"],
        ConvolutionKernel="B31f",
        RevolutionTime=0.5,
        SingleCollimationWidth=0.6,
        TotalCollimationWidth=38.4,
        TableSpeed=46.0,
        TableFeedPerRotation=23.0,
        SpiralPitchFactor=0.6,
        CTDIvol=7.42,
        RescaleIntercept="-1024",
        RescaleSlope="1",
        RescaleType="HU",
    )


def _add_mr(dataset: Dataset) -> None:
    _set(
        dataset,
        ScanningSequence="SE",
        SequenceVariant="SK",
        ScanOptions="PFP",
        MRAcquisitionType="2D",
        SequenceName="tse2d1_11",
        AngioFlag="N",
        RepetitionTime="4500",
        EchoTime="98",
        NumberOfAverages="2",
        ImagingFrequency="123.25",
        ImagedNucleus="1H",
        EchoNumbers="1",
        MagneticFieldStrength="3",
        NumberOfPhaseEncodingSteps="256",
        EchoTrainLength="11",
        PercentSampling="100",
        PercentPhaseFieldOfView="100",
        PixelBandwidth="195",
        ReceiveCoilName="HeadNeck_20",
        AcquisitionMatrix=[0, 256, 256, 0],
        InPlanePhaseEncodingDirection="ROW",
        FlipAngle="150",
        VariableFlipAngleFlag="N",
        SAR="1.2",
        dBdt="0",
    )


def _add_sequences(dataset: Dataset) -> None:
    dataset.ProcedureCodeSequence = Sequence([_code("36813-4", "LN", "CT Abdomen and Pelvis W contrast IV")])
    dataset.AnatomicRegionSequence = Sequence([_code("51185008", "SCT", "Chest")])
    dataset.ReferencedImageSequence = Sequence([_reference(number) for number in range(3)])
    dataset.ReferencedStudySequence = Sequence([_reference(9)])
    request = Dataset()
    request.RequestedProcedureID = "RP0001"
    request.ScheduledProcedureStepID = "SPS0001"
    request.ScheduledProcedureStepDescription = "Thorax routine"
    request.ScheduledProtocolCodeSequence = Sequence([_code("CTTHOR", "99HOUN", "Thorax")])
    dataset.RequestAttributesSequence = Sequence([request])
    dataset.PerformedProtocolCodeSequence = Sequence([_code("CTTHOR", "99HOUN", "Thorax")])
    equipment = Dataset()
    equipment.PurposeOfReferenceCodeSequence = Sequence([_code("109101", "DCM", "Acquisition Equipment")])
    equipment.Manufacturer = "Synthetic Medical Systems"
    equipment.ContributionDescription = "Acquisition"
    dataset.ContributingEquipmentSequence = Sequence([equipment])


def _add_private(dataset: Dataset, kind: str) -> None:
    header = dataset.private_block(0x0029, "SYNTHETIC CSA HEADER", create=True)
    header.add_new(0x08, "CS", "IMAGE NUM 4")
    header.add_new(0x09, "LO", "20260101")
    # Scanners keep kilobytes of their own here: about as many as Siemens' CSA image header.
    header.add_new(0x10, "OB", bytes(range(256)) * 16)
    block = dataset.private_block(0x0019, "SYNTHETIC ACQU", create=True)
    for element in range(0x10, 0x24):
        block.add_new(element, "DS", f"{element * 1.25:.2f}")
    block.add_new(0x30, "LO", f"kernel {kind}")


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    item = Dataset()
    _set(item, CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)
    return item


def _reference(number: int) -> Dataset:
    item = Dataset()
    _set(item, ReferencedSOPClassUID=CTImageStorage)
    item.ReferencedSOPInstanceUID = f"2.25.18888888888888800000000000000000000{number:04d}"
    return item


def _set(dataset: Dataset, **values: Any) -> None:
    for keyword, value in values.items():
        setattr(dataset, keyword, value)

"""Presentation states and parametric maps to render with."""

from __future__ import annotations

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

GRAYSCALE_STATE = "1.2.840.10008.5.1.4.1.1.11.1"
PARAMETRIC_MAP = "1.2.840.10008.5.1.4.1.1.30"


def presentation_state(of: Dataset | None = None) -> Dataset:
    """A grayscale softcopy presentation state of one image, which says nothing yet."""
    state = Dataset()
    state.SpecificCharacterSet = "ISO_IR 192"
    state.SOPClassUID, state.SOPInstanceUID = GRAYSCALE_STATE, generate_uid()
    state.SeriesInstanceUID, state.Modality = generate_uid(), "PR"
    if of is not None:
        state.StudyInstanceUID, state.PatientID = of.StudyInstanceUID, of.PatientID
        image = Dataset()
        image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = of.SOPClassUID, of.SOPInstanceUID
        series = Dataset()
        series.SeriesInstanceUID, series.ReferencedImageSequence = of.SeriesInstanceUID, [image]
        state.ReferencedSeriesSequence = [series]
    state.PresentationLUTShape = "IDENTITY"
    return state


def annotated_state() -> Dataset:
    """One with everything: window, shutters, area, rotation, graphics of every kind and text."""
    state = presentation_state()
    voi = Dataset()
    voi.WindowCenter, voi.WindowWidth = 100, 500
    state.SoftcopyVOILUTSequence = [voi]
    state.ShutterShape = ["RECTANGULAR", "CIRCULAR", "POLYGONAL"]
    state.ShutterLeftVerticalEdge, state.ShutterRightVerticalEdge = 5, 120
    state.ShutterUpperHorizontalEdge, state.ShutterLowerHorizontalEdge = 5, 120
    state.CenterOfCircularShutter, state.RadiusOfCircularShutter = [64, 64], 60
    state.VerticesOfThePolygonalShutter = [1, 1, 1, 128, 128, 128, 128, 1]
    state.ShutterPresentationValue = 0x4000
    state.ImageRotation, state.ImageHorizontalFlip = 270, "Y"
    area = Dataset()
    area.DisplayedAreaTopLeftHandCorner, area.DisplayedAreaBottomRightHandCorner = [-9, 1], [128, 140]
    area.PresentationSizeMode, area.PresentationPixelAspectRatio = "SCALE TO FIT", [1, 1]
    state.DisplayedAreaSelectionSequence = [area]
    graphics = []
    for kind, points in (
        ("POINT", [5, 5]), ("POLYLINE", [1, 1, 9, 9, 30, 2]), ("INTERPOLATED", [1, 1, 9, 9, 30, 2]),
        ("CIRCLE", [60, 60, 70, 60]), ("ELLIPSE", [40, 60, 80, 60, 60, 50, 60, 70]),
    ):  # fmt: skip
        graphic = Dataset()
        graphic.GraphicAnnotationUnits, graphic.GraphicDimensions = "PIXEL", 2
        graphic.NumberOfGraphicPoints, graphic.GraphicData = len(points) // 2, points
        graphic.GraphicType, graphic.GraphicFilled = kind, "Y"
        graphics.append(graphic)
    text = Dataset()
    text.BoundingBoxAnnotationUnits, text.UnformattedTextValue = "DISPLAY", "Läsion\r\n12 mm"
    text.BoundingBoxTopLeftHandCorner, text.BoundingBoxBottomRightHandCorner = [0.5, 0.5], [0.9, 0.6]
    annotation = Dataset()
    annotation.GraphicLayer, annotation.GraphicObjectSequence = "LAYER", graphics
    annotation.TextObjectSequence = [text]
    state.GraphicAnnotationSequence = [annotation]
    return state


def parametric_map(*frames: np.ndarray) -> Dataset:
    """A parametric map of one frame or more, of numbers of 32 or 64 bits (PS3.3 A.75), without a window."""
    data = Dataset()
    data.SOPClassUID, data.SOPInstanceUID = PARAMETRIC_MAP, generate_uid()
    data.StudyInstanceUID, data.SeriesInstanceUID = generate_uid(), generate_uid()
    data.Modality, data.PatientID = "MR", "1"
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.Rows, data.Columns = frames[0].shape
    data.NumberOfFrames, data.BitsAllocated = len(frames), frames[0].dtype.itemsize * 8
    name = "FloatPixelData" if data.BitsAllocated == 32 else "DoubleFloatPixelData"
    setattr(data, name, b"".join(frame.tobytes() for frame in frames))
    return data

"""Programs that radiologists sit in front of: OHIF's published build in headless Chromium, over DICOMweb.

``npm_packages`` fetches the viewer and a real MR series, ``site`` serves the viewer from an origin of its
own, ``pictures`` compares what is on the screen with what pydicom decodes. OHIF reads frames with
Cornerstone3D's DICOM image loader: the page gives it away, and it is asked for pixels here, value by value.
``image_loader_page`` is a page with that loader alone, which is asked to read files by WADO-URI too.
"""

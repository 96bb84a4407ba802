"""What the RIS keeps: one module per concern with its structs, their kinds, and the keys they are found by.

Only data: what is done with it stands in the modules above. Structs are frozen; a later release adds fields
with defaults only. Moments are nanoseconds since 1970 (UTC), 0 for none; ordinals of keys are their seconds.
Days are ``YYYYMMDD``, times of day minutes since midnight in the department's time zone. Person names are
DICOM's (PS3.5 6.2.1): ``FAMILY^GIVEN^MIDDLE^PREFIX^SUFFIX``, up to three groups.
"""

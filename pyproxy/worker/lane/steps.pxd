"""From what size on a command is worked on in slices, and how much of it is a step; see slices.py."""

cdef enum:
    SLICE_ABOVE_KEYS = 4096         # up to so many a command is begun at once, and its answer made at once
    SLICE_ABOVE_BYTES = 1048576     # and up to so many bytes
    STEP_PARTS = 50         # of a step, see slices.py: BATCH
    FOUND_OF_PART = 64      # words that are found in the time of a part
    SHARED_OF_PART = 16     # keys that are hashed in it
    MOVED_OF_PART = 32      # keys, or elements of an answer, that are copied in it
    BYTES_OF_PART = 4096    # bytes that are

"""Where media come from.

In: the clips of a video. Out: their media files, or why there are none.
"""

"""One clip, decoded.

In: a media file, read by ffmpeg in a limited child process. Out: JPEG frames, log-mel, FLAC, quality flags.
"""

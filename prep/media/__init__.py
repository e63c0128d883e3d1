"""Decoding one clip.

In: a media file, read by ffmpeg in a child process with limits. Out: JPEG frames, log-mel, FLAC, quality flags.
"""

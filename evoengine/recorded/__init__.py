"""Recorded spaces: every config of a tuning space with its measured time, read from files and searched again.

`load.load` reads a file, `replay.replay` searches it with any sampler, `score` says what the search was worth, and
`recording.write_recording` makes such a file of our own measurements.
"""

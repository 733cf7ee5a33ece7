"""Fuzzing of everything that reads bytes from others, with atheris."""

"""Keeps a running service busy with valid requests, and measures what it holds: memory, open files, keys and bytes.

`python -m tests.soak --minutes 2 --clients 4` fails if memory grows after warm-up by more than 5 %, or at any error.
"""

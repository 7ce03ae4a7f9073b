"""Sends a running service what nobody would: `python -m tests.fuzz`, or `make fuzz`.

Three parts, one seed: random requests by the OpenAPI document with every check of schemathesis, a corpus of hostile
uploads, and stored records that somebody damaged. Short forms of all three are among the tests.
"""
